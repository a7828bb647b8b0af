"""Adam for one field, with steps that become shorter when the loss does not fall.

A pair that is nearly aligned would be moved past its goal by a first step of full length. Then the field goes back to
the best so far and takes a step of a quarter of the length, and so on; what has become shorter grows again with every
step that is taken. So the best field is only the start if no step, however short, lowers the loss.
Source: Kingma and Ba, Adam (ICLR 2015).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BETA = 0.9, 0.99  # memory of the slope and of its square
FLAT = 0.01  # a slope that is this part of the root mean square is followed half as far
RETRIES = 4  # steps in a row that may leave the loss above the lowest; after a restart no more than half of its steps
SHORTER, LONGER, SHORTEST = 0.25, 1.2, 1e-3  # factors of a step's length: then, after each step, and the least
PATIENCE, TOLERANCE = 10, 2e-3  # it ends when so many steps bring no more than that fraction of what all have brought


class Adam:
    """The length of a step is up to `rate` in the unit of the field, whatever unit the loss has."""

    def __init__(self, rate: float):
        self.rate = self.longest = rate
        self.restart()

    def restart(self) -> None:
        """Forget the slopes, not the rate."""
        self.mean, self.square, self.taken = 0.0, 0.0, 0

    def shorten(self) -> bool:
        """Restart with shorter steps; False if they would be too short."""
        self.rate *= SHORTER
        self.restart()
        return self.rate > SHORTEST * self.longest

    @torch.no_grad()
    def step(self, field: Tensor, slope: Tensor) -> None:
        """Change the field, in place."""
        self.taken += 1
        self.mean = BETA[0] * self.mean + (1 - BETA[0]) * slope
        self.square = BETA[1] * self.square + (1 - BETA[1]) * slope.square()
        size = (self.square / (1 - BETA[1] ** self.taken)).sqrt()
        size += FLAT * size.square().mean().sqrt() + torch.finfo(size.dtype).tiny
        field.sub_(self.mean / size, alpha=self.rate / (1 - BETA[0] ** self.taken))
        self.rate = min(self.longest, self.rate * LONGER)


def descend(
    field: Tensor,
    loss: Callable[[Tensor], Tensor],
    steps: int,
    adam: Adam,
    losses: list[float],
    after: Callable[[Tensor], None],
) -> Tensor:
    """The field with the lowest loss.

    losses: that of every field that a step starts from is appended. after: called with the field after each step.

    Raises FloatingPointError if the loss is not finite.
    """
    field = field.detach().clone().requires_grad_()
    adam.restart()
    best, steepest, lows, failed = field.detach(), None, [], 0
    for step in range(steps + 1):
        last = step == steps  # is measured, and not followed by another
        with torch.set_grad_enabled(not last):
            total = loss(field)
        value = total.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {len(losses) + 1}: lower learning_rate")
        failed = 0 if not lows or value < lows[-1] else failed + 1
        lows.append(lows[-1] if failed else value)
        if not failed:
            best = field.detach().clone()
        if not last:
            losses.append(value)
        if last or _converged(lows):
            break
        (slope,) = torch.autograd.grad(total, field)
        if not failed:
            steepest = slope
        elif failed > min(RETRIES, adam.taken // 2):
            if not adam.shorten():
                break
            field, slope, failed = best.clone().requires_grad_(), steepest, 0
        adam.step(field, slope)
        after(field)
    return best


def _converged(lows: Sequence[float]) -> bool:
    """Whether the last steps have gained next to nothing of what all have gained."""
    gained = lows[0] - lows[-1]
    return len(lows) > PATIENCE and 0 < gained and lows[-1 - PATIENCE] - lows[-1] <= TOLERANCE * gained
