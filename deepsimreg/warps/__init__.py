"""Spatial transforms: displacement (N, D, *spatial) in voxels, pulling moved(x) = moving(x + u(x))."""

from deepsimreg.warps.affine import affine_displacement
from deepsimreg.warps.displacement import (
    compose,
    invert,
    jacobian_determinant,
    sample_image,
    sample_labels,
    warp_image,
    warp_labels,
    warp_one_hot,
    warp_points,
)
from deepsimreg.warps.velocity import integrate

__all__ = [
    "affine_displacement",
    "compose",
    "integrate",
    "invert",
    "jacobian_determinant",
    "sample_image",
    "sample_labels",
    "warp_image",
    "warp_labels",
    "warp_one_hot",
    "warp_points",
]
