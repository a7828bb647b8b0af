"""Regularisers: what a displacement costs whatever the images say.

diffusion   mean over axes, components, voxels of (u(x + e_axis) - u(x))^2; Balakrishnan et al. 2019, IEEE TMI
"""

import torch
from torch import Tensor

from deepsimreg.losses.base import at_least_float32


def diffusion(displacement: Tensor) -> Tensor:
    """Mean squared forward difference of `displacement` (N, D, *spatial), voxels; 0 for a translation."""
    field = at_least_float32(displacement)
    return torch.stack([field.diff(dim=axis).square().mean() for axis in range(2, field.ndim)]).mean()
