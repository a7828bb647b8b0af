"""Regularisers: what a displacement costs whatever the images say.

diffusion   mean over axes a, components c, voxels of ((u_c(x + e_a) - u_c(x)) · spacing_c / spacing_a)^2;
            Balakrishnan et al. 2019, IEEE TMI, with the derivatives in mm
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepsimreg.losses.base import at_least_float32
from deepsimreg.warps import along_axes


def diffusion(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Mean squared forward difference of `displacement` (N, D, *spatial), voxels; 0 for a translation, and along
    an axis of one voxel.

    spacing: mm, array axis order: the displacement and its derivatives are then in mm. None: the same along all axes.
    """
    field = at_least_float32(displacement)
    ndim = field.ndim - 2
    if spacing is not None:
        field = field * along_axes(spacing, field)
    return _Diffusion.apply(field, [1 / step**2 / ndim for step in spacing or [1.0] * ndim])


class _Diffusion(torch.autograd.Function):
    """Weighted sum over axes of the mean squared forward difference, with its gradient.

    Autograd pads the gradient of each difference to the size of the field, which takes most of the time on a CPU.
    """

    @staticmethod
    def forward(ctx, field: Tensor, weights: Sequence[float]) -> Tensor:
        value, gradient = field.new_zeros(()), torch.zeros_like(field) if field.requires_grad else None
        for axis, weight in enumerate(weights, start=2):
            if field.shape[axis] < 2:
                continue
            difference = field.diff(dim=axis)
            value += weight * difference.square().mean()
            if gradient is not None:
                factor, steps = 2 * weight / difference.numel(), difference.shape[axis]
                gradient.narrow(axis, 1, steps).add_(difference, alpha=factor)
                gradient.narrow(axis, 0, steps).sub_(difference, alpha=factor)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None
