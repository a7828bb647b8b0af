"""Changes of resolution: position i of a level that is r times coarser is the centre of the voxels r·i … r·i + r − 1.

So strided convolutions, pooling and linear resampling by voxel areas leave it. Sizes that r does not divide are padded
with edge values at their end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

INTERPOLATION = {2: "bilinear", 3: "trilinear"}  # by the number of spatial axes
POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


def upsample(features: Tensor, factor: int | Sequence[int] = 2) -> Tensor:
    """(N, C, *spatial) to (N, C, *factor·spatial), linear, aligned by voxel areas; one factor, or one per axis."""
    factor = factor if isinstance(factor, int) else tuple(map(float, factor))
    return functional.interpolate(features, scale_factor=factor, mode=INTERPOLATION[features.ndim - 2])


def pad_to_multiple(image: Tensor, multiple: int | Sequence[int]) -> Tensor:
    """Pad the end of every spatial axis of (N, C, *spatial) by edge values to a multiple: one, or one per axis."""
    multiples = [multiple] * (image.ndim - 2) if isinstance(multiple, int) else multiple
    padding = []
    for size, step in zip(reversed(image.shape[2:]), reversed(multiples), strict=True):
        padding += [0, -size % step]
    return functional.pad(image, padding, mode="replicate") if any(padding) else image


def crop(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The first `shape` voxels of (N, C, *spatial): undoes `pad_to_multiple`."""
    return image[(..., *(slice(size) for size in shape))]


def pooled(image: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Mean of (N, C, *spatial) over blocks of factor voxels, one or one per axis: (N, C, *⌈spatial / factor⌉)."""
    return POOL[image.ndim - 2](pad_to_multiple(image, factor), factor)


def pooled_least(image: Tensor, factor: Sequence[int]) -> Tensor:
    """As `pooled`, the least value of each block instead of its mean."""
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[image.ndim - 2]
    return -pool(-pad_to_multiple(image, factor), list(factor)) if max(factor) > 1 else image


def displacement_at(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """A displacement (N, D, *spatial), voxels, on the grid of a feature level, in steps of that grid.

    A level of shape ⌈spatial / r⌉, r a power of two, has steps of r voxels; u at a position is the mean of its voxels.
    ValueError for another shape.
    """
    ratios = [grid_step(size, level) for size, level in zip(displacement.shape[2:], shape, strict=True)]
    return pooled(displacement, ratios) / along_axes(ratios, displacement)


def along_axes(values: Sequence[float], field: Tensor) -> Tensor:
    """One number for each component of a field (N, D, *spatial): (1, D, 1, …). They are filled in where the field is; a
    copy from the host would be waited for.
    """
    return torch.stack([field.new_full((), value) for value in values]).view(1, -1, *[1] * len(values))


def grid_step(size: int, level: int) -> int:
    """Voxels of a position along an axis: the smallest power of two r with ⌈size / r⌉ = level, or ValueError."""
    ratio = 1
    while -(-size // ratio) > level:
        ratio *= 2
    if -(-size // ratio) != level:
        raise ValueError(f"a feature level of {level} positions does not divide {size} voxels by a power of two")
    return ratio
