"""Affine maps as displacement fields and as positions, in voxels about the centre of the array.

With c = (shape - 1) / 2 and the matrix [A | t]: x -> A (x - c) + c + t, so u(x) = (A - identity)(x - c) + t.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def affine_displacement(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Displacement (N, D, *shape), voxels, of the affine `matrix` [A | t] (N, D, D + 1), array axis order, t in voxels.

    It pulls, as every displacement does: the warped image is image(A (x - c) + c + t). ValueError if sizes disagree.
    """
    ndim = _rank(matrix, shape)
    linear = matrix[..., :ndim] - torch.eye(ndim, dtype=matrix.dtype, device=matrix.device)
    return (linear @ _centred(matrix, shape, shape) + matrix[..., ndim:]).view(len(matrix), ndim, *shape)


def affine_positions(
    matrix: Tensor, shape: Sequence[int], window: Sequence[int] = (), corner: Tensor | None = None
) -> Tensor:
    """Where the affine `matrix`, as above, sends the voxels of a window: (N, D, *window), voxels of the whole array.

    shape: of the array that the map is about the centre of. window: its sides; empty: the array. corner (N, D): its
    first voxel, of each image; None: that of the array.
    """
    ndim, window = _rank(matrix, shape), tuple(window) or tuple(shape)
    moved = matrix[..., :ndim] @ _centred(matrix, shape, window, corner) + matrix[..., ndim:]
    placed = [moved[:, axis] + (size - 1) / 2 for axis, size in enumerate(shape)]
    return torch.stack(placed, dim=1).view(len(matrix), ndim, *window)


def _rank(matrix: Tensor, shape: Sequence[int]) -> int:
    ndim = len(shape)
    if matrix.ndim != 3 or tuple(matrix.shape[1:]) != (ndim, ndim + 1):
        raise ValueError(f"matrix {tuple(matrix.shape)} must be (N, {ndim}, {ndim + 1}) for shape {tuple(shape)}")
    return ndim


def _centred(matrix: Tensor, shape: Sequence[int], window: Sequence[int], corner: Tensor | None = None) -> Tensor:
    """x - c of the voxels of a window: (N or 1, D, voxels)."""
    lines = []
    for axis, (size, side) in enumerate(zip(shape, window, strict=True)):
        line = torch.arange(side, dtype=matrix.dtype, device=matrix.device)[None] - (size - 1) / 2
        line = line if corner is None else line + corner[:, axis, None].to(matrix)
        lines.append(line.view(-1, *[side if other == axis else 1 for other in range(len(shape))]))
    return torch.stack(torch.broadcast_tensors(*lines), dim=1).flatten(2)
