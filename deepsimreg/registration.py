"""Two images, one call: `register(moving, fixed)`, by a trained network, by optimisation of this pair, or by both.

1  both images onto the fixed grid, through their affines and, if asked for, an affine pre-alignment
2  a network's displacement, or none, to start from
3  coarse to fine, the displacement that makes this pair most similar (optimise.py)
4  the moving image, labels and points pulled once through all of it (transform.py)
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepsimreg.alignment import align_affinely
from deepsimreg.errors import WeightsError
from deepsimreg.image import (
    Image,
    ImageLike,
    antialiased,
    as_image,
    check_same_grid,
    positions,
    unit_range,
    voxel_map,
)
from deepsimreg.losses.base import Similarity
from deepsimreg.losses.registry import default_lam, parse_similarity, required_extractors, similarity_terms
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS
from deepsimreg.optimise import LEARNING_RATE, Level, Optimised, default_levels, evaluating, optimise
from deepsimreg.pretrained import load, pretrained
from deepsimreg.transform import Registration
from deepsimreg.warps import sample_image

LABELS = ("moving label", "fixed label")  # what errors call them


@torch.inference_mode(False)
def register(
    moving: ImageLike,
    fixed: ImageLike,
    similarity: str | Mapping[str, float] | Similarity = "ncc-25",
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
    learning_rate: float = LEARNING_RATE,
    spacing: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Registration:
    """Pull `moving` onto `fixed`.

    With a network and steps = 0 the network alone; with a network and steps, both; else optimisation from the identity.

    Args:
        moving, fixed: paths (NIfTI, TIFF), nibabel images, arrays (H, W) or (X, Y, Z), tensors (N, C, *spatial).
            Images on different grids are brought together by their affines; a moving image that is finer than the
            fixed grid is smoothed for the comparison. Grey values that leave [0, 1], or stay below 0.5, are scaled
            from their 1 % and 99 % quantiles for it.
        similarity: a name ("ncc"), a sum ("deepsim-seg + 0.5 mind"), names with weights, or a `Similarity`.
        lam: weight λ of the diffusion regulariser; None: that of the similarity's record. Its derivatives are in mm per
            mm: on a grid with equal spacing, whatever it is, λ means what it means in the papers (voxels per voxel).
        network: a registration network, the path of its weights, or a pretrained one's name.
        extractor: for DeepSim: anything with a method `features`, the path of its weights, or the name of a pretrained
            network or of its dataset.
        levels: (resolution, grid, steps), coarse to fine; None: `default_levels`.
        steps: of each level, in place of the schedule's.
        labels: on the moving image's grid, or a pair of them, the fixed image's second; then Dice is measured.
        affine: "rigid" or "affine" aligns the images by that first.
        model, extract, learning_rate: as `optimise`.
        spacing: mm, array axis order, for images that carry none.
        device: where it runs; None: a GPU if there is one.
        progress: show a bar.

    Raises:
        DataError: a file that cannot be read.
        FloatingPointError: the optimisation has diverged.
        ValueError: images that do not go together, are empty, constant or not finite; an unknown name or option.
        WeightsError: weights that cannot be used.
    """
    pair = _prepared(moving, fixed, labels, affine, spacing, _device(device))
    compared = _similarity(similarity, extractor, pair.fixed).to(pair.device)
    lam = default_lam(similarity) if lam is None else float(lam)
    schedule = _levels(levels, steps, pair.fixed, started=network is not None)
    start = _predicted(_network(network, pair.fixed, pair.device), pair)
    found = Optimised(start, None, ())
    if start is None or sum(level.steps for level in schedule):
        images = (*pair.values, compared, lam, schedule, pair.fixed.spacing, start)
        found = optimise(*images, model, extract, learning_rate, progress=progress)
    return pair.registered(found)


@dataclass(frozen=True)
class _Prepared:
    """Two images that go together: on the fixed grid, (N, C, *spatial) in [0, 1], with how they came there."""

    moving: Image
    fixed: Image
    labels: tuple[Image | None, Image | None]
    values: tuple[Tensor, Tensor]
    matrix: np.ndarray
    transform: np.ndarray | None
    device: torch.device
    clock: dict[str, float] = field(default_factory=dict)

    def registered(self, found: Optimised) -> Registration:
        """The result, with the seconds of each step and `total`."""
        self.clock["optimise"] = time.perf_counter()
        names, times = list(self.clock)[1:], list(self.clock.values())
        seconds = {name: after - before for name, before, after in zip(names, times, times[1:], strict=False)}
        seconds["total"] = times[-1] - times[0]
        where = (self.moving, self.fixed, self.matrix, self.transform, *self.labels)
        return Registration(found.displacement, found.velocity, found.losses, seconds, *where)


def _prepared(moving, fixed, labels, affine, spacing, device) -> _Prepared:
    clock = {"start": time.perf_counter()}
    moving, fixed = as_image(moving, "moving", spacing), as_image(fixed, "fixed", spacing)
    _check_together(moving, fixed)
    given = _labels(labels, moving, fixed)
    moving_values, fixed_values = unit_range(moving).to(device), unit_range(fixed).to(device)
    transform = align_affinely(moving, fixed, affine) if affine else None
    matrix = voxel_map(fixed, moving, transform)
    if not _overlap(matrix, moving, fixed):
        raise ValueError(
            f"{moving.name} and {fixed.name} do not overlap in the world: check their affines, or give affine='rigid', "
            "which first aligns their centres"
        )
    if moving.shape != fixed.shape or not np.allclose(matrix, np.eye(len(matrix)), atol=1e-5):
        still = fixed_values.new_zeros(len(fixed_values), fixed.ndim, *fixed.shape)
        moving_values = sample_image(antialiased(moving_values, matrix), positions(matrix, still))
    clock["prepare"] = time.perf_counter()
    return _Prepared(moving, fixed, tuple(given), (moving_values, fixed_values), matrix, transform, device, clock)


def _levels(levels, steps: int | None, fixed: Image, started: bool) -> list[Level]:
    levels = levels or default_levels(fixed.shape, fixed.spacing, started)
    levels = [level if isinstance(level, Level) else Level(*level) for level in levels]
    return levels if steps is None else [Level(level.resolution, level.grid, steps) for level in levels]


def _predicted(network: nn.Module | None, pair: _Prepared) -> Tensor | None:
    """A network's displacement, to start from."""
    start = None
    if network is not None:
        with torch.no_grad(), evaluating(network):
            start = network(*pair.values)
    pair.clock["network"] = time.perf_counter()
    return start


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
