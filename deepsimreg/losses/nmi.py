"""Normalised mutual information: similar if the grey values of one image predict those of the other, by any rule.

loss = 2 - (H(I) + H(J)) / H(I, J)          in [0, 1]

H are the entropies of the grey values and of their joint histogram. To have a gradient, each value counts in four bins,
by a cubic B-spline around it (a Parzen window). The loss is near 0 (the windows overlap) if each grey value of one
image belongs to one bin of the other, and 1 if they are independent.
Narrower windows than these depend on where in its bin a value lies, wider ones draw values towards those that are
frequent: either leaves a pull where the images agree. It is least with a wider window for the fixed image.
Source: Studholme et al. 1999, Pattern Recognition 32:71; the windows of Mattes et al. 2003, IEEE TMI 22:120. The 64
bins and the tenth of the voxels are those of the DeepSim papers.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deepsimreg.losses.base import Similarity, at_least_float32, check_pair

FEWEST = 2**17  # voxels of a histogram in evaluation mode, if the image has as many
GOLDEN = 0.618  # step between two sampled voxels, as a fraction of the image, so that they do not line up with its rows
SUPPORT = 4  # bins of a cubic B-spline


class NMI(Similarity):
    """2 - NMI of two images (N, C, *spatial) in [0, 1] (other values are clamped), the mean over the batch.

    bins: of the moved image's histogram and of the fixed one's; one number is both. fraction: of the voxels that are
    sampled: drawn anew by torch's generator in every call in training mode; in evaluation mode always the same, spread
    evenly, and at least `FEWEST`.
    """

    def __init__(self, bins: int | tuple[int, int] = (64, 48), fraction: float = 0.1):
        super().__init__()
        self.bins, self.fraction = (bins, bins) if isinstance(bins, int) else tuple(bins), fraction
        if min(self.bins) < SUPPORT or not 0 < fraction <= 1:
            raise ValueError(
                f"bins is {bins} and fraction {fraction}: give at least {SUPPORT} bins, and a fraction in (0, 1]"
            )

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        check_pair(moved, fixed)
        return self.against([fixed], weights)([moved])

    def against(self, fixed: list[Tensor], weights: Tensor | None = None) -> Callable[[list[Tensor]], Tensor]:
        chosen = self._chosen(fixed[0][0].numel(), fixed[0].device)
        columns, theirs = _windows(fixed[0], chosen, self.bins[1])
        if weights is not None:
            counts = weights.expand_as(fixed[0]).flatten(1)[:, chosen, None].to(theirs)
            theirs = theirs * counts / counts.sum(1, keepdim=True).clamp(min=1e-12)
        else:
            theirs = theirs / len(chosen)

        def distance(moved: list[Tensor]) -> Tensor:
            rows, ours = _windows(moved[0], chosen, self.bins[0])
            cells = (rows * self.bins[1]).unsqueeze(-1) + columns.unsqueeze(-2)  # (N, V, 4, 4)
            parts = ours.unsqueeze(-1) * theirs.unsqueeze(-2)
            joint = parts.new_zeros(len(parts), math.prod(self.bins)).scatter_add(1, cells.flatten(1), parts.flatten(1))
            table = joint.unflatten(1, self.bins)
            nmi = (entropy(table.sum(2)) + entropy(table.sum(1))) / entropy(joint).clamp(min=1e-6)
            return 2 - nmi.mean()

        return distance

    def _chosen(self, voxels: int, device: torch.device) -> Tensor:
        """Indices of the sampled voxels."""
        count = max(1, round(self.fraction * voxels))
        if count == voxels:
            return torch.arange(voxels, device=device)
        if self.training:
            return torch.randint(voxels, (count,), device=device)
        step = max(1, round(voxels * GOLDEN))
        while math.gcd(step, voxels) > 1:  # a step without common divisor never returns to a voxel
            step += 1
        return torch.arange(min(voxels, max(count, FEWEST)), device=device) * step % voxels

    def extra_repr(self) -> str:
        return f"bins={self.bins}, fraction={self.fraction}"


def _windows(image: Tensor, chosen: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The bins in which the chosen values of (N, C, *spatial) count, and what part of them in each: (N, V, 4) both."""
    place = at_least_float32(image).flatten(1)[:, chosen].clamp(0, 1) * (bins - SUPPORT + 1)
    first = place.detach().nan_to_num().floor().clamp(max=bins - SUPPORT)
    t = place - first
    parts = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (t + t**2 - t**3) + 1, t**3]
    return first.long().unsqueeze(-1) + torch.arange(SUPPORT, device=image.device), torch.stack(parts, -1) / 6


def entropy(probability: Tensor) -> Tensor:
    """-Σ p log p over the last axis of (N, K), nats; 0 log 0 is 0."""
    return -torch.special.xlogy(probability, probability.clamp(min=torch.finfo(probability.dtype).tiny)).sum(-1)
