"""Stationary velocity fields: the flow of dx/dt = v(x) from time 0 to 1, by scaling and squaring.

exp(v) = exp(v / 2^n) composed with itself n times (Arsigny et al. 2006, MICCAI); exp(-v) is its inverse.
"""

from torch import Tensor

from deepsimreg.warps.displacement import compose


def integrate(velocity: Tensor, steps: int = 6) -> Tensor:
    """Displacement after unit time of `velocity` (N, D, *spatial), voxels, array axis order; same shape.

    `steps` squarings stand for 2^steps Euler steps; velocity / 2^steps should stay below about half a voxel.
    """
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement
