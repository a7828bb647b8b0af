"""The loss of one noisy patch against its shifted self."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def loss_landscape_curves(
    image: Tensor,
    similarities: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    max_shift: int,
    axis: int = -1,
    noise: float = 0.05,
    generator: torch.Generator | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Loss of one noisy patch against its shifted self: name → (shifts in voxels, values).

    image: (1, 1, *spatial). Two copies get independent Gaussian noise of SD `noise`. The fixed patch is the
    first copy without a margin of `max_shift` at both ends of the (spatial) axis; the moving patch is cut
    from the second one, s voxels further along. A good loss has its one minimum at s = 0 and rises steadily
    on both sides. Shifts and values are (2 max_shift + 1,).
    """
    length = image.shape[axis] - 2 * max_shift
    if length < 1:
        raise ValueError(
            f"axis {axis} has {image.shape[axis]} voxels; shifts of ±{max_shift} leave none: lower max_shift"
        )
    generator = generator or torch.Generator(image.device).manual_seed(0)
    draws = torch.randn(2, *image.shape, generator=generator, device=image.device, dtype=image.dtype)
    first, second = image + noise * draws
    fixed = first.narrow(axis, max_shift, length)
    shifts = np.arange(-max_shift, max_shift + 1)
    patches = [second.narrow(axis, max_shift + int(shift), length) for shift in shifts]
    return {
        name: (shifts, np.array([float(similarity(patch, fixed)) for patch in patches]))
        for name, similarity in similarities.items()
    }
