"""Sums over a box around each voxel, clipped at the border: what local statistics are made of."""

import torch
from torch import Tensor


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Mean of (N, C, *spatial) over the 2 radius + 1 voxels along each axis, those that are inside the image."""
    voxels = _box_sum(torch.ones_like(image[:1, :1]), radius)
    return _BoxSum.apply(image, radius) / voxels


class _BoxSum(torch.autograd.Function):
    """Sum over the clipped window around each voxel: a symmetric linear map, so its gradient is itself."""

    @staticmethod
    def forward(ctx, image: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        return _box_sum(image, radius)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _BoxSum.apply(gradient, ctx.radius), None


def _box_sum(image: Tensor, radius: int) -> Tensor:
    """Sums of (N, C, *spatial) over 2 radius + 1 voxels along each axis in turn, by adding shifted copies.

    Faster than a cumulative sum (which crosses the memory with a stride) and free of its cancellation.
    """
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        total = image.clone()
        for shift in range(1, min(radius, size - 1) + 1):
            overlap = size - shift
            total.narrow(axis, 0, overlap).add_(image.narrow(axis, shift, overlap))
            total.narrow(axis, shift, overlap).add_(image.narrow(axis, 0, overlap))
        image = total
    return image
