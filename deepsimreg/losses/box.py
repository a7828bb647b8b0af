"""Sums over a box around each voxel, clipped at the border: what local statistics are made of."""

import torch
from torch import Tensor
from torch.nn import functional


def box_mean(image: Tensor, radius: int) -> Tensor:
    """Mean of (N, C, *spatial) over the 2 radius + 1 voxels along each axis, those that are inside the image."""
    return _BoxSum.apply(image, radius) / box_count(image, radius)


def box_count(image: Tensor, radius: int) -> Tensor:
    """Voxels of the window around each voxel of (N, C, *spatial), those inside the image: (1, 1, *spatial)."""
    count = image.new_ones(())
    for size in image.shape[2:]:
        count = count[..., None] * box_sum(image.new_ones(1, 1, size), radius)[0, 0]
    return count[None, None]


def box_sum(image: Tensor, radius: int) -> Tensor:
    """Sums of (N, C, *spatial) over 2 radius + 1 voxels along each axis in turn.

    Sums of 2, 4, 8 … voxels are sums of two shifted copies; those that make up the window are added. Faster than a
    cumulative sum (which crosses the memory with a stride) and free of its cancellation.
    """
    for axis in range(2, image.ndim):
        reach = min(radius, image.shape[axis] - 1)
        image = functional.pad(image, [0, 0] * (image.ndim - 1 - axis) + [reach, reach])
        total, width = image, 1
        for bit in f"{2 * reach + 1:b}"[1:]:
            total, width = _paired(total, total, axis, width), 2 * width
            if bit == "1":
                total, width = _paired(total, image, axis, width), width + 1
        image = total
    return image


def _paired(first: Tensor, second: Tensor, axis: int, shift: int) -> Tensor:
    """first(x) + second(x + shift), where both are."""
    size = min(first.shape[axis], second.shape[axis] - shift)
    return first.narrow(axis, 0, size) + second.narrow(axis, shift, size)


class _BoxSum(torch.autograd.Function):
    """`box_sum`: a symmetric linear map, so its gradient is itself."""

    @staticmethod
    def forward(ctx, image: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        return box_sum(image, radius)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _BoxSum.apply(gradient, ctx.radius), None
