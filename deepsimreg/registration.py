"""Two images, one call: `register(moving, fixed)`, by a trained network, by optimisation of this pair, or by both.

1  both images onto the fixed grid, through their affines and, if asked for, an affine pre-alignment
2  a network's displacement, or none, to start from
3  coarse to fine, the displacement that makes this pair most similar (optimisation.py)
4  the moving image, labels and points pulled once through all of it
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepsimreg.alignment import align_affinely
from deepsimreg.errors import WeightsError
from deepsimreg.image import Image, ImageLike, as_image, check_same_grid, positions, unit_range, voxel_map
from deepsimreg.io import write_image
from deepsimreg.itk import write_field
from deepsimreg.losses.base import Similarity
from deepsimreg.losses.registry import default_lam, parse_similarity, required_extractors, similarity_terms
from deepsimreg.metrics import indexed_labels, segmentation_metrics, smoothness
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS
from deepsimreg.optimise import LEARNING_RATE, Level, default_levels, evaluating, optimise
from deepsimreg.pretrained import load, pretrained
from deepsimreg.warps import invert, jacobian_determinant, sample_image, sample_labels, warp_points

LABELS = ("moving label", "fixed label")  # what errors call them


@dataclass(frozen=True, eq=False)
class Registration:
    """What `register` found.

    moved: (N, C, *spatial), the moving image on the fixed grid, in the moving image's own grey values.
    displacement: (N, D, *spatial), voxels of the fixed grid, array axis order: what lies at the fixed voxel x lies, in
    the world of the moving image, at x + u(x). velocity: of `Optimised`.
    losses: of every step of the optimisation. seconds: of the steps of the call, by name, and `total`.
    """

    moved: Tensor
    displacement: Tensor
    velocity: Tensor | None
    losses: tuple[float, ...]
    seconds: Mapping[str, float]
    moving: Image = field(repr=False)
    fixed: Image = field(repr=False)
    matrix: np.ndarray = field(repr=False)  # (D + 1, D + 1), fixed voxels to moving voxels before the displacement
    transform: np.ndarray | None = field(repr=False, default=None)  # (4, 4), of the affine pre-alignment
    moved_labels: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def jacobian(self) -> Tensor:
        """Determinant of x → x + u(x), (N, *spatial): 1 keeps volume, 0 or less folds."""
        return jacobian_determinant(self.displacement)

    @cached_property
    def inverse(self) -> Tensor:
        """The displacement v with v(x) = −u(x + v(x)), (N, D, *spatial), voxels of the fixed grid."""
        return invert(self.displacement)

    @cached_property
    def _positions(self) -> Tensor:
        return positions(self.matrix, self.displacement)

    def warp(self, image: ImageLike) -> Tensor:
        """Another image on the moving image's grid, pulled onto the fixed one, linear: (N, C, *spatial)."""
        return sample_image(self._same_grid(image).data.to(self.displacement.device), self._positions)

    def warp_labels(self, labels: ImageLike) -> Tensor:
        """Integer labels on the moving image's grid, pulled onto the fixed one, nearest; keeps the dtype."""
        return sample_labels(self._same_grid(labels).data.to(self.displacement.device), self._positions)

    def warp_points(self, points: Tensor | np.ndarray) -> Tensor:
        """Points (P, D) of the fixed image, voxels, to where they lie in the moving image, voxels: (P, D)."""
        points = torch.as_tensor(points, dtype=torch.float32, device=self.displacement.device)
        matrix = torch.as_tensor(self.matrix, dtype=torch.float32, device=self.displacement.device)
        ndim = self.fixed.ndim
        return warp_points(points[None], self.displacement[:1])[0] @ matrix[:ndim, :ndim].T + matrix[:ndim, ndim]

    def save(self, folder: str | Path) -> list[Path]:
        """Write moved, labels and the field for ITK, ANTs and Slicer; in NIfTI, on the fixed image's grid.

        Returns:
            moved.nii.gz, field.nii.gz, and moved_labels.nii.gz if labels were given.

        Raises:
            ValueError: several images or channels; nothing is written then.
        """
        if self.moved.shape[:2] != (1, 1):
            raise ValueError(f"{len(self.moved)} images of {self.moved.shape[1]} channels: save one of one channel")
        folder, affine = Path(folder), self.fixed.affine
        written = [folder / "moved.nii.gz", folder / "field.nii.gz"]
        write_image(written[0], _as_file(self.moved, self.moving.dtype), affine=affine)
        world = np.eye(4) if self.transform is None else self.transform
        write_field(written[1], self.displacement, affine, world @ affine)
        if self.moved_labels is not None:
            written.append(folder / "moved_labels.nii.gz")
            write_image(written[-1], self.moved_labels[0, 0].cpu().numpy(), affine=affine)
        return written

    def _same_grid(self, image: ImageLike) -> Image:
        other = as_image(image, "image")
        check_same_grid(other, self.moving)
        return other


def register(
    moving: ImageLike,
    fixed: ImageLike,
    similarity: str | Mapping[str, float] | Similarity = "ncc",
    lam: float | None = None,
    *,
    network: str | Path | nn.Module | None = None,
    extractor: object | None = None,
    levels: Sequence[Level | tuple[int, int, int]] | None = None,
    steps: int | None = None,
    labels: tuple[ImageLike, ImageLike] | ImageLike | None = None,
    affine: str | None = None,
    model: str = "velocity",
    extract: str = "once",
    symmetric: bool = False,
    learning_rate: float = LEARNING_RATE,
    spacing: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Registration:
    """Pull `moving` onto `fixed`.

    With a network and steps = 0 the network alone; with a network and steps, both; else optimisation from rest.

    Args:
        moving, fixed: paths (NIfTI, TIFF), nibabel images, arrays (H, W) or (X, Y, Z), tensors (N, C, *spatial).
            Images on different grids are brought together by their affines. Grey values that leave [0, 1], or stay
            below 0.5, are scaled from their 1 % and 99 % quantiles for the comparison.
        similarity: a name ("ncc"), a sum ("deepsim-seg + 0.5 mind"), names with weights, or a `Similarity`.
        lam: weight of the diffusion regulariser, derivatives in mm; None: that of the similarity's record.
        network: a registration network, the path of its weights, or a pretrained one's name.
        extractor: for DeepSim: anything with a method `features`, the path of its weights, or the name of a pretrained
            network or of its dataset.
        levels: (resolution, grid, steps), coarse to fine; None: `default_levels`.
        steps: of each level, in place of the schedule's.
        labels: on the moving image's grid, or a pair of them, the fixed image's second; then Dice is measured.
        affine: "rigid" or "affine" aligns the images by that first.
        model, extract, symmetric, learning_rate: as `optimise`.
        spacing: mm, array axis order, for images that carry none.
        device: where it runs; None: a GPU if there is one.
        progress: show a bar.

    Raises:
        DataError: a file that cannot be read.
        FloatingPointError: the optimisation has diverged.
        ValueError: images that do not go together, are empty, constant or not finite; an unknown name or option.
        WeightsError: weights that cannot be used.
    """
    clock = {"start": time.perf_counter()}
    device = _device(device)
    moving, fixed = as_image(moving, "moving", spacing), as_image(fixed, "fixed", spacing)
    _check_together(moving, fixed)
    compared = _similarity(similarity, extractor, fixed).to(device)
    lam = default_lam(similarity) if lam is None else float(lam)
    network = _network(network, fixed, device)
    moving_label, fixed_label = _labels(labels, moving, fixed)
    levels = levels or default_levels(fixed.shape, started=network is not None)
    levels = [level if isinstance(level, Level) else Level(*level) for level in levels]
    if steps is not None:
        levels = [Level(level.resolution, level.grid, steps) for level in levels]
    moving_values, fixed_values = unit_range(moving).to(device), unit_range(fixed).to(device)
    transform = align_affinely(moving, fixed, affine) if affine else None
    matrix = voxel_map(fixed, moving, transform)
    if not _overlap(matrix, moving, fixed):
        raise ValueError(
            f"{moving.name} and {fixed.name} do not meet in the world: check their affines, or give affine='rigid', "
            "which first lays their centres on each other"
        )
    still = fixed_values.new_zeros(len(fixed_values), fixed.ndim, *fixed.shape)
    on_grid = sample_image(moving_values, positions(matrix, still)) if _moves(matrix, moving, fixed) else moving_values
    clock["prepare"] = time.perf_counter()

    start = None
    if network is not None:
        with torch.no_grad(), evaluating(network):
            start = network(on_grid, fixed_values)
    clock["network"] = time.perf_counter()
    displacement, velocity, losses = start, None, ()
    if start is None or sum(level.steps for level in levels):
        pair = (on_grid, fixed_values, compared, lam, levels, fixed.spacing, start)
        found = optimise(*pair, model, extract, symmetric, learning_rate, progress=progress)
        displacement, velocity, losses = found.displacement, found.velocity, found.losses
    clock["optimise"] = time.perf_counter()

    place = positions(matrix, displacement)
    moved = sample_image(moving.data.to(device).float(), place)
    moved_labels, metrics = None, smoothness(displacement[:1])
    if moving_label is not None:
        moved_labels = sample_labels(moving_label.data.to(device), place)
        if fixed_label is not None:
            metrics |= segmentation_metrics(*indexed_labels(moved_labels, fixed_label.data.to(device)))
    clock["warp"] = time.perf_counter()
    times = list(clock.values())
    seconds = {name: after - before for name, before, after in zip(list(clock)[1:], times, times[1:], strict=False)}
    seconds["total"] = times[-1] - times[0]
    return Registration(
        moved, displacement, velocity, losses, seconds, moving, fixed, matrix, transform, moved_labels, metrics
    )


def _check_together(moving: Image, fixed: Image) -> None:
    if moving.ndim != fixed.ndim:
        raise ValueError(
            f"{moving.name} has {moving.ndim} axes and {fixed.name} {fixed.ndim}: give two planes or two volumes"
        )
    for what, index in (("images", 0), ("channels", 1)):
        ours, theirs = moving.data.shape[index], fixed.data.shape[index]
        if ours != theirs:
            raise ValueError(f"{moving.name} has {ours} {what} and {fixed.name} {theirs}: give the same number")
    if min(fixed.shape) < 2 or min(moving.shape) < 2:
        raise ValueError(
            f"{moving.name} {tuple(moving.shape)} and {fixed.name} {tuple(fixed.shape)}: too thin to register"
        )


def _device(device: str | torch.device | None) -> torch.device:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch finds no GPU here: leave it out, or install torch with CUDA")
    return device


def _network(network: str | Path | nn.Module | None, fixed: Image, device: torch.device) -> nn.Module | None:
    """The registration network, on the device."""
    if isinstance(network, str | Path):
        name, network = network, load(network)
        if type(network) not in ARCHITECTURES.values():
            raise WeightsError(f"{name} holds weights of {type(network).__name__}: name a registration network")
    if network is not None:
        _check_network(network, fixed.ndim)
        network = network.to(device)
    return network


def _check_network(network: object, ndim: int, channels: int | None = None) -> None:
    """ValueError for a network of this package that is made for other images."""
    made = getattr(network, "config", {})
    for what, ours, own in (("axes", ndim, made.get("ndim")), ("channels", channels, made.get("in_channels"))):
        if None not in (ours, own) and ours != own:
            raise ValueError(f"{type(network).__name__} is for images of {own} {what}, these have {ours}: give another")


def _labels(labels, moving: Image, fixed: Image) -> list[Image | None]:
    """Labels of the moving image, and of the fixed one or None."""
    if labels is None:
        return [None, None]
    pair = labels if isinstance(labels, tuple | list) else (labels, None)
    if len(pair) != 2:
        raise ValueError(f"{len(pair)} label images: give those of the moving image, or a pair (moving, fixed)")
    found = [None if one is None else as_image(one, name) for one, name in zip(pair, LABELS, strict=True)]
    for label, image in zip(found, (moving, fixed), strict=True):
        if label is not None:
            check_same_grid(label, image)
            if len(label.data) != len(image.data):
                raise ValueError(f"{label.name}: {len(label.data)} for {len(image.data)} images, give one each")
    return found


def _overlap(matrix: np.ndarray, moving: Image, fixed: Image) -> bool:
    """Whether any part of the fixed grid lies in the moving one."""
    coarse = [np.linspace(0, size - 1, 16) for size in fixed.shape]
    points = np.stack(np.meshgrid(*coarse, indexing="ij")).reshape(fixed.ndim, -1)
    there = matrix[: fixed.ndim, : fixed.ndim] @ points + matrix[: fixed.ndim, fixed.ndim :]
    size = np.array(moving.shape)[:, None]
    return bool(((there > -1) & (there < size)).all(0).any())


def _moves(matrix: np.ndarray, moving: Image, fixed: Image) -> bool:
    """Whether the grids differ by more than rounding."""
    return moving.shape != fixed.shape or not np.allclose(matrix, np.eye(len(matrix)), atol=1e-5)


def _similarity(similarity, extractor, image: Image) -> Similarity:
    if isinstance(similarity, nn.Module):
        if not isinstance(similarity, Similarity):
            kind = type(similarity).__name__
            raise ValueError(f"{kind} is no similarity: derive it from deepsimreg.losses.Similarity")
        return similarity
    extractors = {}
    for kind in required_extractors(similarity_terms(similarity)):
        if extractor is None:
            raise ValueError(
                f"{similarity} compares features: give extractor, a pretrained dataset (deepsimreg models), "
                "a weight file, or a network with a method features(image)"
            )
        extractors[kind] = extractor
        if isinstance(extractor, str | Path):
            named = str(extractor) in pretrained() or Path(extractor).is_file()
            extractors[kind] = load(extractor if named else f"{extractor}/{kind}", EXTRACTORS.get(kind))
        _check_network(extractors[kind], image.ndim, image.data.shape[1])
    built = parse_similarity(similarity, extractors)
    if built.needs_labels:
        raise ValueError(f"{similarity} compares labels, too: it trains networks, and cannot register a pair")
    return built


def _as_file(moved: Tensor, dtype: np.dtype) -> np.ndarray:
    """The first image as an array of the moving image's dtype; whole numbers are rounded."""
    array = moved[0, 0].cpu().numpy()
    if dtype.kind in "iub":
        return np.clip(np.rint(array), *_limits(dtype)).astype(np.uint8 if dtype.kind == "b" else dtype)
    return array.astype(np.float32)


def _limits(dtype: np.dtype) -> tuple[int, int]:
    return (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
