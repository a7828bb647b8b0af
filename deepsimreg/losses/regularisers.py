"""Regularisers: what a displacement costs whatever the images say.

diffusion   mean over axes a, components c, voxels of ((u_c(x + e_a) - u_c(x)) · spacing_c / spacing_a)^2;
            Balakrishnan et al. 2019, IEEE TMI, with the derivatives in mm
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepsimreg.losses.base import at_least_float32


def diffusion(displacement: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Mean squared forward difference of `displacement` (N, D, *spatial), voxels; 0 for a translation, and along
    an axis of one voxel.

    spacing: mm, array axis order: the displacement and its derivatives are then in mm. None: the same along all axes.
    """
    field = at_least_float32(displacement)
    step = torch.as_tensor(spacing or [1.0] * (field.ndim - 2), dtype=field.dtype, device=field.device)
    field = field if spacing is None else field * step.view(1, -1, *[1] * (field.ndim - 2))
    parts = [
        field.diff(dim=2 + axis).square().mean() / step[axis] ** 2 if field.shape[2 + axis] > 1 else field.sum() * 0
        for axis in range(field.ndim - 2)
    ]
    return torch.stack(parts).mean()
