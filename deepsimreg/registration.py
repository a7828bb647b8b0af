"""Register two images directly: no network is trained, the displacement of this one pair is optimised.

    u = argmin  D(moving ∘ Φ, fixed) + λ·R(u),    Φ(x) = x + u(x) = exp(v)(x)

v is a stationary velocity on a grid at a fraction of the image's resolution, integrated by scaling and squaring
(Arsigny et al., MICCAI 2006), coarse grid first; Adam does the steps, and the best of each grid is kept.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from deepsimreg.losses import diffusion
from deepsimreg.models.backbone import INTERPOLATION
from deepsimreg.warps import integrate, warp_image


@dataclass(frozen=True)
class Registration:
    """What `register` found.

    moved: (N, C, *spatial), the moving image on the fixed grid. displacement: (N, D, *spatial), voxels, array axis
    order: moved(x) = moving(x + u(x)). losses: of every step. seconds: of the whole call.
    """

    moved: Tensor
    displacement: Tensor
    losses: tuple[float, ...]
    seconds: float


def register(
    moving: Tensor,
    fixed: Tensor,
    similarity: nn.Module,
    lam: float,
    steps: int = 60,
    scales: Sequence[int] = (16, 8, 4),
    learning_rate: float = 0.2,
    squarings: int = 5,
) -> Registration:
    """Pull `moving` onto `fixed` by optimisation.

    Args:
        moving, fixed: (N, C, *spatial), the same shape, intensities in [0, 1].
        similarity: (moved, fixed) → scalar loss.
        lam: weight of the diffusion regulariser on the displacement.
        steps: of Adam, on each scale.
        scales: voxels between two points of the velocity's grid, coarse to fine.
        learning_rate: of Adam, in voxels.
        squarings: of the velocity's integration.

    Raises:
        FloatingPointError: the loss is not finite.
        ValueError: images that are not (N, C, *spatial) of one shape, or hold NaN or infinite values.
    """
    for name, image in (("moving", moving), ("fixed", fixed)):
        if image.ndim not in (4, 5):
            raise ValueError(f"{name} has shape {tuple(image.shape)}: give (N, C, H, W) or (N, C, X, Y, Z)")
        if not torch.isfinite(image).all():
            raise ValueError(f"{name} holds NaN or infinite values: mend the image before it is registered")
    if moving.shape != fixed.shape:
        raise ValueError(f"moving {tuple(moving.shape)} and fixed {tuple(fixed.shape)}: bring both onto one grid first")
    started, losses, ndim, shape = time.perf_counter(), [], fixed.ndim - 2, fixed.shape[2:]
    velocity = torch.zeros(len(fixed), ndim, *[1] * ndim, device=fixed.device)
    with tqdm(total=steps * len(scales), desc="register", unit="step", leave=False) as bar:
        for scale in scales:
            grid = [-(-size // scale) for size in shape]
            velocity = _resize(velocity, grid).detach().requires_grad_()
            optimizer = torch.optim.Adam([velocity], lr=learning_rate)
            best, lowest = velocity.detach().clone(), math.inf
            for _ in range(steps):
                displacement = _displacement(velocity, shape, squarings)
                loss = similarity(warp_image(moving, displacement), fixed) + lam * diffusion(displacement)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(f"the loss is {losses[-1]} at step {len(losses)}: lower learning_rate")
                if losses[-1] < lowest:
                    best, lowest = velocity.detach().clone(), losses[-1]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
            velocity = best
    with torch.no_grad():
        displacement = _displacement(velocity, shape, squarings)
    return Registration(warp_image(moving, displacement), displacement, tuple(losses), time.perf_counter() - started)


def _resize(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Linear resampling to another grid over the same image; values keep their unit."""
    return functional.interpolate(field, tuple(shape), mode=INTERPOLATION[field.ndim - 2], align_corners=True)


def _displacement(velocity: Tensor, shape: Sequence[int], squarings: int) -> Tensor:
    """Displacement (N, D, *shape), voxels of the image, of a velocity (voxels of the image) on a coarser grid."""
    scale = torch.tensor(
        [max(fine - 1, 1) / max(coarse - 1, 1) for fine, coarse in zip(shape, velocity.shape[2:], strict=True)],
        device=velocity.device,
    ).view(1, -1, *[1] * len(shape))
    return _resize(integrate(velocity / scale, squarings) * scale, shape)
