"""Registration without training: SyN (ANTs) and greedy, on grey values and on deep features.

Both search the warp of one pair by gradient steps on local similarities. Features of a frozen network, brought to full
resolution and reduced to a few principal components, are further channels: mean squares in SyN, as in the DeepSim
papers, and components of greedy's multi-component correlation.
Sources: Avants et al. 2008, Medical Image Analysis 12:26 (SyN); Yushkevich et al. 2016, Alzheimer's & Dementia 12
(greedy).
"""

import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deepsimreg.paper.baselines import GREEDY_ITERATIONS, SYN_ITERATIONS
from deepsimreg.warps import INTERPOLATION

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
) -> Tensor:
    """Displacement of a pair by ANTs' `SyNOnly`, from the identity.

    Args:
        moving, fixed: (1, 1, *spatial) in [0, 1].
        spacing: mm, array axis order.
        extractor: its features become further channels; None for none.
        smoothing: of each step (`flow_sigma`), tuned.
        iterations: on each resolution, coarse to fine.
        components: principal components of the features.
        weight: of all feature channels together, against the grey values.

    Returns:
        (1, D, *spatial), voxels.

    Raises:
        ImportError: antspyx is not installed.
    """
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", str(torch.get_num_threads()))
    try:
        import ants
    except ImportError as error:
        raise ImportError(f"antspyx {INSTALL}") from error

    def image(plane: np.ndarray):
        return ants.from_numpy(np.ascontiguousarray(plane, dtype=np.float32), spacing=tuple(map(float, spacing)))

    extras = None
    if extractor is not None:
        channels = zip(*feature_channels(extractor, moving, fixed, components), strict=True)
        extras = [("MeanSquares", image(f), image(m), weight / components, 0) for m, f in channels]
    with tempfile.TemporaryDirectory() as folder:
        result = ants.registration(
            image(fixed[0, 0].cpu().numpy()),
            image(moving[0, 0].cpu().numpy()),
            type_of_transform="SyNOnly",
            initial_transform="Identity",
            outprefix=f"{folder}/",
            reg_iterations=tuple(iterations),
            flow_sigma=smoothing,
            multivariate_extras=extras,
            random_seed=1,
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
) -> Tensor:
    """Displacement of a pair by greedy, with normalised cross-correlation.

    Args: as `syn`, and
        smoothing: of the warp in voxels, of the steps twice that; tuned.
        radius: of the correlation's window, voxels.

    Returns:
        (1, D, *spatial), voxels.

    Raises:
        ImportError: picsl_greedy is not installed.
    """
    try:
        import picsl_greedy
        import SimpleITK
    except ImportError as error:
        raise ImportError(f"picsl_greedy {INSTALL}") from error
    ndim = fixed.ndim - 2

    def image(plane: np.ndarray):
        made = SimpleITK.GetImageFromArray(np.ascontiguousarray(plane.T, dtype=np.float32))
        made.SetSpacing([float(step) for step in spacing])
        return made

    images = {"fixed0": image(fixed[0, 0].cpu().numpy()), "moving0": image(moving[0, 0].cpu().numpy())}
    inputs = "-w 1 -i fixed0 moving0"
    if extractor is not None:
        for number, (m, f) in enumerate(zip(*feature_channels(extractor, moving, fixed, components), strict=True), 1):
            images |= {f"fixed{number}": image(f), f"moving{number}": image(m)}
            inputs += f" -w {weight / components} -i fixed{number} moving{number}"
    tool = {2: picsl_greedy.Greedy2D, 3: picsl_greedy.Greedy3D}[ndim]()
    window, schedule = "x".join([str(radius)] * ndim), "x".join(map(str, iterations))
    tool.execute(
        f"-d {ndim} -m NCC {window} {inputs} -o warp -n {schedule} -s {2 * smoothing}vox {smoothing}vox "
        f"-seed 1 -threads {torch.get_num_threads()} -V 0",
        **images,
        warp=None,
    )
    vectors = SimpleITK.GetArrayFromImage(tool["warp"])  # (…, Y, X, D)
    return _displacement(vectors.transpose(*reversed(range(ndim)), ndim), spacing).to(fixed.device)


def feature_channels(extractor, moving: Tensor, fixed: Tensor, components: int) -> tuple[list, list]:
    """Features of both images as a few full-resolution channels, each in [0, 1] over the pair.

    All levels are brought to full resolution (linear, aligned by voxel areas), each divided by the root of its number
    of channels, so that each level weighs the same; the principal components are those of both images together.

    Returns:
        `components` arrays (*spatial) of the moving and of the fixed image.
    """
    with torch.no_grad():
        both = torch.cat([moving, fixed])
        levels = [
            functional.interpolate(level, both.shape[2:], mode=INTERPOLATION[both.ndim - 2]) / level.shape[1] ** 0.5
            for level in extractor.features(both)
        ]
        features = torch.cat(levels, dim=1).movedim(1, -1).flatten(0, -2).double()  # (2 · voxels, channels)
        features = features - features.mean(0)
        _, directions = torch.linalg.eigh(features.mT @ features)
        channels = (features @ directions.flip(1)[:, :components]).mT.reshape(-1, *both[:, 0].shape)
        low, high = (extreme(channels.flatten(1), 1).values for extreme in (torch.min, torch.max))
        shape = (-1, *[1] * (channels.ndim - 1))
        channels = ((channels - low.view(shape)) / (high - low).clamp(min=1e-12).view(shape)).cpu().numpy()
    return [channel[0] for channel in channels], [channel[1] for channel in channels]


def _displacement(vectors: np.ndarray, spacing: Sequence[float]) -> Tensor:
    """(1, D, *spatial), voxels, of vectors (*spatial, D) in mm along the array's axes."""
    scaled = np.asarray(vectors, dtype=np.float32) / np.asarray(spacing, dtype=np.float32)
    return torch.from_numpy(np.moveaxis(scaled, -1, 0)[None].copy())
