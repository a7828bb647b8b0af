"""Dense displacement fields: warp with them, compose, invert, and measure how they deform space.

A displacement u is (N, D, *spatial), in voxels, components in array axis order, on the fixed image's grid.
It pulls: moved(x) = moving(x + u(x)). Outside the image the nearest edge value counts (border padding).

composition      u(x) = second(x) + first(x + second(x))
inverse          v(x) = -u(x + v(x)), by fixed-point iteration (Chen et al. 2008, Medical Physics 35:81), then Newton's
Jacobian         det(identity + du/dx), with its sign: zero or negative where the map folds
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4  # voxels: residual at which an inverse has converged
FIXED_POINT, NEWTON = 8, 30  # iterations of either, at most
STALLED = 1e-3  # fraction of Newton's step below which a voxel is given up: the field folds there
PROBE = 0.25  # voxels to either side, for the derivatives of an interpolated field
CHUNK = 2**17  # voxels that Newton's method takes at once, to bound its memory


def warp_image(image: Tensor, displacement: Tensor) -> Tensor:
    """Pull `image` (N, C, *spatial) through `displacement` (N, D, *spatial) with linear interpolation.

    Returns (N, C, *spatial) in the dtype of the image (of the coordinates if the image is integer). Coordinates are at
    least float32. Raises ValueError if the shapes do not belong together.
    """
    _check(image, displacement, "image")
    grid = _sampling_grid(displacement)
    moved = _sample(image.to(grid.dtype), grid)
    return moved.to(image.dtype) if image.is_floating_point() else moved


def warp_labels(labels: Tensor, displacement: Tensor) -> Tensor:
    """Pull integer `labels` (N, C, *spatial) by nearest neighbours (halves round up); keeps the dtype, no gradient."""
    _check(labels, displacement, "labels")
    # A diverged field (NaN) reads the first voxel, as linear sampling does, and never leaves the array.
    axes = range(displacement.ndim - 2)
    positions = torch.stack([displacement[:, axis] + _coordinates(displacement, axis) for axis in axes], dim=1)
    return sample_labels(labels, positions)


def sample_image(image: Tensor, positions: Tensor, outside: float | Tensor | None = None) -> Tensor:
    """Values of `image` (N, C, *size) at `positions` (N, D, *spatial), voxels of the image, linear; (N, C, *spatial).

    The image may have another size than the grid of positions. outside: value there (`inside`); None: the nearest edge.
    """
    values = _sample(image.to(positions.dtype), _normalised(positions.unbind(1), image.shape[2:]))
    if outside is not None:
        values = torch.where(inside(positions, image.shape[2:]), values, outside)
    return values.to(image.dtype) if image.is_floating_point() else values


def inside(positions: Tensor, size: Sequence[int]) -> Tensor:
    """Whether `positions` (N, D, *spatial), voxels, lie in an image of that size: (N, 1, *spatial), bool.

    A voxel reaches half a step around its centre, as ITK has it.
    """
    ends = torch.tensor(size, device=positions.device).view(1, -1, *[1] * (positions.ndim - 2)) - 0.5
    return ((positions >= -0.5) & (positions < ends)).all(1, keepdim=True)


def sample_labels(labels: Tensor, positions: Tensor, outside: int | None = None) -> Tensor:
    """As `sample_image` for integer labels: the value of the nearest voxel, halves round up; keeps the dtype."""
    index = 0
    for axis, size in enumerate(labels.shape[2:]):
        index = index * size + (positions[:, axis].nan_to_num() + 0.5).floor().clamp(0, size - 1).long()
    flat = index.flatten(1).unsqueeze(1).expand(-1, labels.shape[1], -1)
    values = labels.flatten(2).gather(2, flat).view(*labels.shape[:2], *positions.shape[2:])
    return values if outside is None else values.where(inside(positions, labels.shape[2:]), outside)


def warp_one_hot(labels: Tensor, displacement: Tensor, classes: int) -> Tensor:
    """Pull integer `labels` (N, 1, *spatial) as `classes` linear membership maps (N, classes, *spatial).

    Differentiable in the displacement; the maps sum to one in every voxel.
    """
    _check(labels, displacement, "labels")
    grid = _sampling_grid(displacement)
    values = torch.arange(classes, device=labels.device).view(1, classes, *[1] * (labels.ndim - 2))
    return _sample((labels == values).to(grid.dtype), grid)


def warp_points(points: Tensor, displacement: Tensor) -> Tensor:
    """Points x (N, P, D) of the fixed image, voxels, array axis order, at x + u(x) in the moving one; u is linear."""
    ndim = _rank(displacement)
    if points.ndim != 3 or points.shape[0] != len(displacement) or points.shape[2] != ndim:
        raise ValueError(
            f"points {tuple(points.shape)} must be (N, P, {ndim}) to go with displacement {tuple(displacement.shape)}"
        )
    positions = points.to(_coordinate_dtype(displacement))
    grid = _normalised(positions.unbind(-1), displacement.shape[2:])  # (N, P, D)
    grid = grid.view(*grid.shape[:2], *[1] * (ndim - 1), ndim)
    sampled = _sample(displacement.to(grid.dtype), grid).flatten(2)  # (N, D, P)
    return positions + sampled.transpose(1, 2)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The displacement second(x) + first(x + second(x)): all three are (N, D, *spatial) in voxels.

    Up to interpolation, it warps an image as `first` and then `second` do.
    """
    return second + warp_image(first, second)


@torch.no_grad()
def invert(displacement: Tensor) -> Tensor:
    """The displacement v with v(x) = -u(x + v(x)), so that composing v and u in either order gives zero.

    displacement: u, (N, D, *spatial), voxels; v has its shape and dtype, and no gradient. Fixed-point iteration settles
    the voxels around which the derivatives of u stay below one, Newton's method the others, down to `TOLERANCE`, unless
    u folds; `inverse_residual` says how near v came. Of use only where x + v(x) stays inside the image.
    """
    _rank(displacement)
    field = displacement.to(_coordinate_dtype(displacement))
    inverse = -field
    for _ in range(FIXED_POINT):
        last, inverse = inverse, -warp_image(field, inverse)
        change = (inverse - last).square_().sum(1).flatten(1)  # squared residual of `last`; (N, voxels)
        if not (change > TOLERANCE**2).any():
            break
    inverse = inverse.flatten(2)
    for image, found, error in zip(field.split(1), inverse, change, strict=True):
        for index in (error > TOLERANCE**2).nonzero()[:, 0].split(CHUNK):
            found[:, index] = _newton(image, index, found[:, index])
    return inverse.view_as(field).to(displacement.dtype)


def _newton(field: Tensor, index: Tensor, start: Tensor) -> Tensor:
    """The inverse (D, P) of a field (1, D, *spatial) at P voxels, by their flat index, from a start near it.

    A step that does not bring x + v(x) + u(x + v(x)) nearer to x is cut to a quarter, each voxel's by itself.
    """
    shape, ndim = field.shape[2:], field.shape[1]
    x = torch.stack(torch.unravel_index(index, shape)).to(field.dtype)
    probes = PROBE * torch.eye(ndim, dtype=field.dtype, device=field.device).unsqueeze(-1)  # (axis, D, 1)

    def residual(place: Tensor, x: Tensor) -> Tensor:
        sampled = sample_image(field, place.view(1, ndim, -1, *[1] * (ndim - 1)))
        return place + sampled.view(ndim, -1) - x

    result, place = start.clone(), x + start
    left, missing, fraction = torch.arange(len(index), device=index.device), residual(place, x), torch.ones_like(x[0])
    for _ in range(NEWTON):
        columns = [(residual(place + e, x) - residual(place - e, x)) / (2 * PROBE) for e in probes]
        matrices = torch.stack(columns, dim=-1).movedim(1, 0)  # (P, D, D), d(x + u) / dx
        tried = place - fraction * torch.linalg.solve_ex(matrices, missing.T).result.T
        missing_there = residual(tried, x)
        better = missing_there.square().sum(0) < missing.square().sum(0)
        place, missing = torch.where(better, tried, place), torch.where(better, missing_there, missing)
        fraction = torch.where(better, (2 * fraction).clamp(max=1), fraction / 4)
        result[:, left] = place - x
        going = (missing.square().sum(0) > TOLERANCE**2) & (fraction > STALLED)
        left, x, place, missing, fraction = (each[..., going] for each in (left, x, place, missing, fraction))
        if not len(left):
            break
    return result


def inverse_residual(
    displacement: Tensor, inverse: Tensor, spacing: Sequence[float] | None = None
) -> tuple[float, float]:
    """Mean and maximum of |u(x + v(x)) + v(x)| over the voxels x for which x + v(x) lies inside the image.

    displacement, inverse: u and v, (N, D, *spatial), voxels. spacing: mm, array axis order, for a result in mm; None:
    in voxels. NaN if there are no such voxels.
    """
    steps = inverse.new_tensor(spacing or [1.0] * inverse.shape[1]).view(1, -1, *[1] * (inverse.ndim - 2))
    error = ((warp_image(displacement, inverse) + inverse) * steps).norm(dim=1)
    inside = torch.ones_like(error, dtype=torch.bool)
    for axis, size in enumerate(displacement.shape[2:]):
        place = inverse[:, axis] + _coordinates(inverse, axis)
        inside &= (place >= 0) & (place <= size - 1)
    error = error[inside]
    return (error.mean().item(), error.max().item()) if len(error) else (float("nan"), float("nan"))


def jacobian_determinant(displacement: Tensor, spacing: tuple[float, ...] | None = None) -> Tensor:
    """Determinant of the Jacobian of x -> x + u(x), signed: 1 keeps volume, 0 or less folds.

    displacement: (N, D, *spatial) in voxels, or in mm with `spacing`, the mm between voxels along each array axis.
    Returns (N, *spatial); derivatives are central differences inside, one-sided on the border, 0 along an axis of
    one voxel.
    """
    ndim = _rank(displacement)
    if spacing is not None and len(spacing) != ndim:
        raise ValueError(f"spacing {tuple(spacing)} must have one entry for each of the {ndim} axes")
    field = displacement.to(_coordinate_dtype(displacement))
    step = [float(value) for value in spacing or [1.0] * ndim]
    rows = [
        [slope + (axis == component) for axis, slope in enumerate(_slopes(field[:, component], step))]
        for component in range(ndim)
    ]
    return _determinant(rows)


def _slopes(values: Tensor, steps: Sequence[float]) -> list[Tensor]:
    """Derivatives of (N, *spatial) along each axis; 0 along one of one voxel."""
    axes = range(1, values.ndim)
    return [
        torch.gradient(values, spacing=step, dim=axis)[0] if values.shape[axis] > 1 else torch.zeros_like(values)
        for axis, step in zip(axes, steps, strict=True)
    ]


def _determinant(rows: list[list[Tensor]]) -> Tensor:
    """Determinant by expansion along the first row: much faster than `torch.linalg.det` on tiny matrices."""
    if len(rows) == 1:
        return rows[0][0]
    minors = [[row[:column] + row[column + 1 :] for row in rows[1:]] for column in range(len(rows))]
    return sum((-1) ** i * value * _determinant(minors[i]) for i, value in enumerate(rows[0]))


def _sample(values: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(values, on_numbers(grid), mode="bilinear", padding_mode="border", align_corners=True)


def on_numbers(grid: Tensor) -> Tensor:
    """A grid for `grid_sample` in which NaN, of a diverged field, is the first voxel.

    On a CPU torch's gradient there reads beyond the image, and the process ends.
    """
    if grid.device.type == "cpu" and not grid.detach().sum().isfinite():
        return grid.nan_to_num(-1.0)
    return grid


def _sampling_grid(displacement: Tensor) -> Tensor:
    """Positions x + u(x) as `grid_sample` takes them: (N, *spatial, D), in [-1, 1], last axis first."""
    moved = [displacement[:, axis] + _coordinates(displacement, axis) for axis in range(displacement.ndim - 2)]
    return _normalised(moved, displacement.shape[2:])


def _normalised(positions: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Positions in voxels, one tensor per axis, as `grid_sample` takes them: (…, D), in [-1, 1], last axis first."""
    scaled = [where * (2 / max(side - 1, 1)) - 1 for where, side in zip(positions, size, strict=True)]
    return torch.stack(scaled[::-1], dim=-1)


def _coordinates(displacement: Tensor, axis: int) -> Tensor:
    """Voxel indices along one axis, shaped to broadcast against (N, *spatial)."""
    ndim, size = displacement.ndim - 2, displacement.shape[2 + axis]
    shape = [size if other == axis else 1 for other in range(ndim)]
    return torch.arange(size, dtype=_coordinate_dtype(displacement), device=displacement.device).view(shape)


def _coordinate_dtype(displacement: Tensor) -> torch.dtype:
    return torch.promote_types(displacement.dtype, torch.float32)


def _rank(displacement: Tensor) -> int:
    """2 or 3; ValueError if it is not a displacement field."""
    ndim = displacement.ndim - 2
    if ndim not in (2, 3) or displacement.shape[1] != ndim:
        raise ValueError(
            f"displacement {tuple(displacement.shape)} must be (N, 2, H, W) or (N, 3, X, Y, Z): "
            "one component for each spatial axis"
        )
    return ndim


def _check(image: Tensor, displacement: Tensor, name: str) -> None:
    _rank(displacement)
    same_grid = image.shape[2:] == displacement.shape[2:]
    if image.ndim != displacement.ndim or len(image) != len(displacement) or not same_grid:
        raise ValueError(
            f"{name} {tuple(image.shape)} and displacement {tuple(displacement.shape)} must have the same "
            "batch and spatial size; resample or crop one of them"
        )
