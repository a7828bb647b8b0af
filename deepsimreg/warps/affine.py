"""Affine maps as displacement fields, in voxels about the centre of the array.

With c = (shape - 1) / 2 and the matrix [A | t]: x -> A (x - c) + c + t, so u(x) = (A - identity)(x - c) + t.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def affine_displacement(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Displacement (N, D, *shape), voxels, of the affine `matrix` [A | t] (N, D, D + 1), array axis order, t in voxels.

    It pulls, as every displacement does: the warped image is image(A (x - c) + c + t). ValueError if sizes disagree.
    """
    ndim = len(shape)
    if matrix.ndim != 3 or tuple(matrix.shape[1:]) != (ndim, ndim + 1):
        raise ValueError(f"matrix {tuple(matrix.shape)} must be (N, {ndim}, {ndim + 1}) for shape {tuple(shape)}")
    axes = [torch.arange(n, dtype=matrix.dtype, device=matrix.device) - (n - 1) / 2 for n in shape]
    centred = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (D, voxels)
    linear = matrix[..., :ndim] - torch.eye(ndim, dtype=matrix.dtype, device=matrix.device)
    return (linear @ centred + matrix[..., ndim:]).view(len(matrix), ndim, *shape)
