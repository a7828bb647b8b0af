"""Two images that go together: read, checked, in one world, on one grid, with their masks, labels and landmarks."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from deepsimreg.alignment import align_affinely
from deepsimreg.grid import FLIP, positions, voxel_map
from deepsimreg.image import Image, ImageLike, antialiased, as_image, as_labels, as_mask, check_same_grid, unit_range
from deepsimreg.losses.base import joint_weights
from deepsimreg.optimise import Landmarks, Optimised
from deepsimreg.transform import Registration
from deepsimreg.warps import inside, sample_image

LABELS = ("moving label", "fixed label")  # what errors call them
OVERLAP = 0.25  # of the fixed grid: less of it in the moving image is warned of
BEYOND = 0.01  # of the fixed grid: more of it that a start takes beyond the fixed grid is warned of


@dataclass(frozen=True)
class Pair:
    """Two images that go together.

    values: (N, C, *spatial) in [0, 1], and weights (1, 1, *spatial) or None: of the moving and of the fixed image, both
    on the fixed grid. matrix, transform: how the moving one came there, as in `Registration`.
    """

    moving: Image
    fixed: Image
    labels: tuple[Image | None, Image | None]
    values: tuple[Tensor, Tensor]
    weights: tuple[Tensor | None, Tensor | None]
    matrix: np.ndarray
    transform: np.ndarray | None
    device: torch.device
    clock: dict[str, float] = field(default_factory=dict)

    def landmarks(self, points: tuple[np.ndarray, np.ndarray], weight: float) -> Landmarks:
        """Points (P, D) of the moving and of the fixed image that should meet.

        mm, LPS, as ITK has them; of arrays mm along their axes. ValueError for other shapes.
        """
        moving, fixed = (np.asarray(one, dtype=float) for one in points)
        axes = self.fixed.ndim, self.fixed.grid.file_ndim
        if moving.shape != fixed.shape or fixed.ndim != 2 or fixed.shape[1] not in axes:
            raise ValueError(f"landmarks have the shapes {moving.shape} and {fixed.shape}: give two of (points, axes)")
        if len(self.values[1]) > 1:
            raise ValueError("landmarks of a batch: register its pairs one by one, each with its own")
        if not len(fixed) or weight <= 0:
            raise ValueError(f"{len(fixed)} landmarks of weight {weight}: give some, and a weight of more than 0")
        there, here = _voxels(moving, self.moving), _voxels(fixed, self.fixed)
        target = np.linalg.solve(self.matrix, np.column_stack([there, np.ones(len(there))]).T).T[:, :-1]
        return Landmarks(torch.from_numpy(here), torch.from_numpy(target - here), weight)

    def check_reach(self, start: Tensor) -> None:
        """A warning if a start (1, D, *spatial), voxels, looks where the moving image was not brought to."""
        there, moving = (positions(matrix, start) for matrix in (np.eye(1 + self.fixed.ndim), self.matrix))
        share = (inside(moving, self.moving.shape) & ~inside(there, self.fixed.shape)).float().mean().item()
        if share > BEYOND:
            warnings.warn(
                f"the start takes {share:.0%} of {self.fixed.name} to where {self.moving.name} lies beyond the fixed "
                "grid, which is not looked at: pull it through the start first (deepsimreg apply)",
                stacklevel=4,
            )

    def tick(self, step: str) -> None:
        """Note the end of a step."""
        self.clock[step] = time.perf_counter()

    def registered(self, found: Optimised, **how) -> Registration:
        """The result, with the seconds of each step and `total`."""
        self.tick("optimise")
        names, times = list(self.clock)[1:], list(self.clock.values())
        seconds = {name: after - before for name, before, after in zip(names, times, times[1:], strict=False)}
        seconds["total"] = times[-1] - times[0]
        where = (self.moving, self.fixed, self.matrix, self.transform, *self.labels)
        return Registration(found.displacement, found.velocity, found.losses, seconds, *where, steps=found.steps, **how)


def prepared(
    moving: ImageLike | Sequence[ImageLike],
    fixed: ImageLike | Sequence[ImageLike],
    device: torch.device,
    labels: tuple[ImageLike, ImageLike] | ImageLike | None = None,
    masks: tuple[ImageLike | None, ImageLike | None] = (None, None),
    affine: str | None = None,
    spacing: Sequence[float] | None = None,
    started: bool = False,
) -> Pair:
    """The pair, its moving values pulled onto the fixed grid; arguments and errors as `register`.

    started: there is a start that brings the images together, so that they need not overlap as they are.
    """
    clock = {"start": time.perf_counter()}
    moving, fixed = _channels(moving, "moving", spacing), _channels(fixed, "fixed", spacing)
    _check_together(moving, fixed)
    moving, fixed = _in_one_world(moving, fixed, affine), _in_one_world(fixed, moving, affine)
    given = _labels(labels, moving, fixed)
    moving_mask, fixed_mask = (
        None if mask is None else as_mask(mask, f"mask of the {what} image", image)
        for mask, what, image in zip(masks, ("moving", "fixed"), (moving, fixed), strict=True)
    )
    values, target = unit_range(moving, moving_mask).to(device), unit_range(fixed, fixed_mask).to(device)
    transform = align_affinely(moving, fixed, affine, 0, moving_mask, fixed_mask) if affine else None
    matrix = voxel_map(fixed.grid, moving.grid, transform)
    if not started:
        _check_overlap(matrix, moving, fixed)
    weights = None if moving_mask is None else moving_mask.data.to(device)
    if moving.shape != fixed.shape or not np.allclose(matrix, np.eye(len(matrix)), atol=1e-5):
        there = positions(matrix, target.new_zeros(1, fixed.ndim, *fixed.shape))
        values = sample_image(antialiased(values, matrix), there.expand(len(values), *there.shape[1:]))
        seen = inside(there, moving.shape).float()  # the others have no counterpart
        seen = seen if weights is None else seen * sample_image(weights, there)
        weights = None if seen.all() else seen
    clock["prepare"] = time.perf_counter()
    weights = weights, None if fixed_mask is None else fixed_mask.data.to(device)
    both = joint_weights(*weights)
    if both is not None and not both.any() and not started:
        raise ValueError(f"the masks of {moving.name} and {fixed.name} have nothing in common where the images lie now")
    return Pair(moving, fixed, tuple(given), (values, target), weights, matrix, transform, device, clock)


def _channels(sources: ImageLike | Sequence[ImageLike], what: str, spacing: Sequence[float] | None) -> Image:
    """An image, or several on one grid as its channels."""
    if not isinstance(sources, list | tuple):
        return as_image(sources, what, spacing)
    images = [as_image(source, what, spacing) for source in sources]
    if not images:
        raise ValueError(f"no {what} image: give one at least")
    for image in images[1:]:
        check_same_grid(image, images[0])
    dtypes = tuple(image.dtype for image in images)
    return replace(images[0], data=torch.cat([image.data.float() for image in images], dim=1), channel_dtypes=dtypes)


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


def _in_one_world(image: Image, other: Image, affine: str | None) -> Image:
    """The image, placed. An array of the other image's shape lies on its grid; a file without a place is refused."""
    if image.grid.placed or not other.grid.placed or affine:
        return image
    if image.from_file or image.shape != other.shape:
        raise ValueError(
            f"{image.name} does not say where it lies, {other.name} does: write its place into its header, "
            "or give affine='rigid', which first aligns their centres"
        )
    return replace(image, grid=other.grid)


def _labels(labels, moving: Image, fixed: Image) -> list[Image | None]:
    """Labels of the moving image, and of the fixed one or None."""
    if labels is None:
        return [None, None]
    pair = labels if isinstance(labels, tuple | list) else (labels, None)
    if len(pair) != 2:
        raise ValueError(f"{len(pair)} label images: give those of the moving image, or a pair (moving, fixed)")
    found = [None if one is None else as_labels(one, name) for one, name in zip(pair, LABELS, strict=True)]
    for label, image in zip(found, (moving, fixed), strict=True):
        if label is not None:
            check_same_grid(label, image)
            if len(label.data) != len(image.data):
                raise ValueError(f"{label.name}: {len(label.data)} for {len(image.data)} images, give one each")
    return found


def _check_overlap(matrix: np.ndarray, moving: Image, fixed: Image) -> None:
    """ValueError if no part of the fixed grid lies in the moving image, a warning if little of it does."""
    coarse = [np.linspace(0, size - 1, 16) for size in fixed.shape]
    points = np.stack(np.meshgrid(*coarse, indexing="ij")).reshape(fixed.ndim, -1)
    there = matrix[: fixed.ndim, : fixed.ndim] @ points + matrix[: fixed.ndim, fixed.ndim :]
    share = ((there >= -0.5) & (there < np.array(moving.shape)[:, None] - 0.5)).all(0).mean()
    remedy = "check their headers, or give affine='rigid', which first aligns their centres"
    if share == 0:
        raise ValueError(f"{moving.name} and {fixed.name} do not overlap in the world: {remedy}")
    if share < OVERLAP:
        warnings.warn(f"{moving.name} covers {share:.0%} of {fixed.name}: {remedy}", stacklevel=4)


def _voxels(points: np.ndarray, image: Image) -> np.ndarray:
    """Points in the world as voxels, array axis order."""
    if not (image.grid.placed or image.from_file):
        return points / image.spacing
    world = np.zeros((len(points), 3))
    world[:, : points.shape[1]] = points
    columns = image.grid.itk_columns
    return (world @ FLIP[:3, :3] - columns[:3, -1]) @ np.linalg.pinv(columns[:3, :-1]).T
