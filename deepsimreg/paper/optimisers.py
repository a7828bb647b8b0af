"""Registration without training: SyN (ANTs) and greedy, on grey values and on deep features, and convexAdam.

The first two search the warp of one pair by gradient steps on local similarities. Features of a frozen network, brought
to full resolution and reduced to a few principal components, are further channels: mean squares in SyN, as in the
DeepSim papers, and components of greedy's multi-component correlation.
Sources: Avants et al. 2008, Medical Image Analysis 12:26 (SyN); Yushkevich et al. 2016, Alzheimer's & Dementia 12
(greedy).
"""

import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepsimreg.losses.features import feature_channels
from deepsimreg.paper.baselines import CONVEXADAM_ITERATIONS, GREEDY_ITERATIONS, SYN_ITERATIONS
from deepsimreg.paper.evaluate import Weights

INSTALL = "is not installed: pip install 'deepsimreg[baselines]'"


def syn(
    moving: Tensor,
    fixed: Tensor,
    spacing: Sequence[float],
    extractor=None,
    smoothing: float = 3.0,
    iterations: Sequence[int] = SYN_ITERATIONS,
    components: int = 4,
    weight: float = 1.0,
    weights: Weights | None = None,
) -> Tensor:
    """Displacement (1, D, *spatial), voxels, of a pair by ANTs' `SyNOnly`, from the identity.

    Args:
        moving, fixed: (1, C, *spatial) in [0, 1]; with an extractor, C is 1.
        spacing: mm, array axis order.
        extractor: its features become further channels; None for none.
        smoothing: of each step (`flow_sigma`), tuned.
        iterations: on each resolution, coarse to fine.
        components: principal components of the features.
        weight: of all feature channels together, against the grey values.
        weights: of the moving and of the fixed voxels, (1, 1, *spatial): what is 0 is masked, as far as the tools' own
            masks go. They blur the images for coarser levels without them.
    """
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(torch.get_num_threads()))
    try:
        import ants
    except ImportError as error:
        raise ImportError(f"antspyx {INSTALL}") from error

    def image(plane: np.ndarray):
        return ants.from_numpy(np.ascontiguousarray(plane, dtype=np.float32), spacing=tuple(map(float, spacing)))

    (grey, *others) = _channels(moving, fixed, extractor, components, weight)
    masks = {name: image(mask) for name, mask in _masks(weights, "moving_mask", "mask").items()}
    with tempfile.TemporaryDirectory() as folder:
        result = ants.registration(
            image(grey[1]),
            image(grey[0]),
            type_of_transform="SyNOnly",
            initial_transform="Identity",
            outprefix=f"{folder}/",
            reg_iterations=tuple(iterations),
            flow_sigma=smoothing,
            multivariate_extras=[("MeanSquares", image(f), image(m), share, 0) for m, f, share in others] or None,
            random_seed=1,
            **masks,
        )
        warp = next(path for path in result["fwdtransforms"] if path.endswith(".nii.gz"))
        vectors = ants.image_read(warp).numpy()
    return _displacement(vectors, spacing).to(fixed.device)


def greedy(
    moving: Tensor,
    fixed: Tensor,
    spacing: Sequence[float],
    extractor=None,
    smoothing: float = 1.0,
    iterations: Sequence[int] = GREEDY_ITERATIONS,
    radius: int = 2,
    components: int = 4,
    weight: float = 1.0,
    metric: str = "NCC",
    weights: Weights | None = None,
) -> Tensor:
    """Displacement (1, D, *spatial), voxels, of a pair by greedy, with normalised cross-correlation.

    Args: as `syn`, and
        smoothing: of the warp in voxels, of the steps twice that; tuned.
        radius: of the correlation's window, voxels.
        metric: NCC, or SSD: squared differences, for maps of classes.
    """
    try:
        import picsl_greedy
        import SimpleITK
    except ImportError as error:
        raise ImportError(f"picsl_greedy {INSTALL}") from error
    ndim = fixed.ndim - 2
    if torch.equal(moving, fixed) or torch.equal(*moving.flatten(2).aminmax(dim=2)):
        return fixed.new_zeros(1, ndim, *fixed.shape[2:])  # greedy divides by its largest step, which is 0 here

    def image(plane: np.ndarray):
        made = SimpleITK.GetImageFromArray(np.ascontiguousarray(plane.T, dtype=np.float32))
        made.SetSpacing([float(step) for step in spacing])
        return made

    masks = _masks(weights, "mm", "gm")
    images, inputs = {name: image(mask) for name, mask in masks.items()}, "".join(f" -{name} {name}" for name in masks)
    for number, (m, f, share) in enumerate(_channels(moving, fixed, extractor, components, weight)):
        images |= {f"fixed{number}": image(f), f"moving{number}": image(m)}
        inputs += f" -w {share} -i fixed{number} moving{number}"
    tool = {2: picsl_greedy.Greedy2D, 3: picsl_greedy.Greedy3D}[ndim]()
    window, schedule = "x".join([str(radius)] * ndim) if metric == "NCC" else "", "x".join(map(str, iterations))
    tool.execute(
        f"-d {ndim} -m {metric} {window}{inputs} -o warp -n {schedule} -s {2 * smoothing}vox {smoothing}vox "
        f"-seed 1 -threads {torch.get_num_threads()} -V 0",
        **images,
        warp=None,
    )
    vectors = SimpleITK.GetArrayFromImage(tool["warp"])  # (…, Y, X, D)
    return _displacement(vectors.transpose(*reversed(range(ndim)), ndim), spacing).to(fixed.device)


def _channels(moving: Tensor, fixed: Tensor, extractor, components: int, weight: float) -> list[tuple]:
    """(moving, fixed, weight) of what is compared: the image's channels, and the features if there is an extractor."""
    grey = [(m.cpu().numpy(), f.cpu().numpy(), 1) for m, f in zip(moving[0], fixed[0], strict=True)]
    if extractor is None:
        return grey
    with torch.no_grad():
        both = torch.cat([moving, fixed])
        extractor = extractor.to(both.device)
        channels = feature_channels(extractor.features(both), both.shape[2:], components).cpu().numpy()
    return [*grey, *((m, f, weight / components) for m, f in zip(*channels, strict=True))]


def _masks(weights: Weights | None, *names: str) -> dict[str, np.ndarray]:
    """The masks that there are, of the moving and of the fixed image, by the names that a tool has for them."""
    pairs = zip(names, weights or (), strict=False)
    return {name: mask[0, 0].cpu().numpy() for name, mask in pairs if mask is not None}


def _displacement(vectors: np.ndarray, spacing: Sequence[float]) -> Tensor:
    """(1, D, *spatial), voxels, of vectors (*spatial, D) in mm along the array's axes."""
    scaled = np.asarray(vectors, dtype=np.float32) / np.asarray(spacing, dtype=np.float32)
    return torch.from_numpy(np.moveaxis(scaled, -1, 0)[None].copy())


def convexadam(
    moving: Tensor,
    fixed: Tensor,
    spacing: Sequence[float],
    extractor=None,
    smoothing: float = 1.25,
    iterations: Sequence[int] = CONVEXADAM_ITERATIONS,
    weights: Weights | None = None,
) -> Tensor:
    """Displacement (1, 3, *spatial), voxels, of a pair of volumes by convexAdam: MIND, a discrete search whose coupled
    convex problems are solved in turn, then Adam.

    Args: as `syn`, and
        smoothing: weight of the diffusion regulariser of Adam's steps; tuned.
        iterations: of Adam.
        weights: not used.
    Source: Siebert et al. 2025, IEEE TMI 44:738.
    """
    try:
        from convexAdam.convex_adam_MIND import convex_adam_pt
    except ImportError as error:
        raise ImportError(f"convexAdam {INSTALL}") from error
    options = {"lambda_weight": smoothing, "selected_niter": iterations[0], "dtype": torch.float32}
    with torch.enable_grad():
        vectors = convex_adam_pt(fixed[0, 0], moving[0, 0], device=fixed.device, **options)
    return torch.from_numpy(np.moveaxis(vectors, -1, 0)[None].astype(np.float32)).to(fixed.device)
