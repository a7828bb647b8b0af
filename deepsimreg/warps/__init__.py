"""Spatial transforms: displacement (N, D, *spatial) in voxels, pulling moved(x) = moving(x + u(x))."""

from deepsimreg.warps.affine import affine_displacement, affine_positions
from deepsimreg.warps.control import coarsened, expand, expansion, pull
from deepsimreg.warps.displacement import (
    compose,
    inside,
    inverse_residual,
    invert,
    jacobian_determinant,
    sample_image,
    sample_labels,
    warp_image,
    warp_labels,
    warp_one_hot,
    warp_points,
)
from deepsimreg.warps.resolution import (
    INTERPOLATION,
    along_axes,
    crop,
    displacement_at,
    grid_step,
    pad_to_multiple,
    pooled,
    pooled_least,
    upsample,
)
from deepsimreg.warps.velocity import integrate

__all__ = [
    "INTERPOLATION",
    "affine_displacement",
    "affine_positions",
    "along_axes",
    "coarsened",
    "compose",
    "crop",
    "displacement_at",
    "expand",
    "expansion",
    "grid_step",
    "inside",
    "integrate",
    "inverse_residual",
    "invert",
    "jacobian_determinant",
    "pad_to_multiple",
    "pooled",
    "pooled_least",
    "pull",
    "sample_image",
    "sample_labels",
    "upsample",
    "warp_image",
    "warp_labels",
    "warp_one_hot",
    "warp_points",
]
