"""What every similarity shares: the two images live on one grid."""

import torch
from torch import Tensor


def check_pair(moved: Tensor, fixed: Tensor) -> None:
    """ValueError unless both images are (N, C, *spatial) of one shape, in 2D or 3D."""
    if moved.shape != fixed.shape or moved.ndim not in (4, 5):
        raise ValueError(
            f"moved {tuple(moved.shape)} and fixed {tuple(fixed.shape)} must have one shape, "
            "(N, C, H, W) or (N, C, X, Y, Z)"
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or wider if it is: sums over a feature or an image need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
