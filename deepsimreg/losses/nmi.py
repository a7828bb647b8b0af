"""Normalised mutual information: similar if the grey values of one image predict those of the other, by any rule.

loss = 2 - (H(I) + H(J)) / H(I, J)          in [0, 1]

H are the entropies of the grey values and of their joint histogram. To have a gradient, each value counts in all bins
by a Gaussian of its distance to the bin (a Parzen window), normalised to one. The loss is near 0 (the windows overlap)
if each grey value of one image belongs to one bin of the other, and 1 if they are independent.
Source: Studholme et al. 1999, Pattern Recognition 32:71. The Gaussian (one bin wide at half maximum) and the tenth of
the voxels are those of the DeepSim papers. They use 64 bins; with 32 a phantom pair's true warp gains a third more.
"""

import math

import torch
from torch import Tensor

from deepsimreg.losses.base import Similarity, at_least_float32, check_pair

FEWEST = 2**17  # voxels of a histogram in evaluation mode, if the image has as many
GOLDEN = 0.618  # step between two sampled voxels, as a fraction of the image, so that they do not line up with its rows


class NMI(Similarity):
    """2 - NMI of two images (N, C, *spatial) in [0, 1] (other values are clamped), the mean over the batch.

    bins: of each histogram. fraction: of the voxels that are sampled: drawn anew by torch's generator in every call in
    training mode; in evaluation mode always the same, spread evenly, and at least `FEWEST`.
    """

    def __init__(self, bins: int = 32, fraction: float = 0.1):
        super().__init__()
        if bins < 2 or not 0 < fraction <= 1:
            raise ValueError(f"bins is {bins} and fraction {fraction}: give at least 2 bins, and a fraction in (0, 1]")
        self.bins, self.fraction = bins, fraction

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        check_pair(moved, fixed)
        i, j = at_least_float32(moved).flatten(1), at_least_float32(fixed).flatten(1)
        chosen = self._chosen(i.shape[1], i.device)
        with torch.autocast(i.device.type, enabled=False):  # which would round the histogram to three digits
            ours, theirs = self._windows(i[:, chosen]), self._windows(j[:, chosen])
            if weights is None:
                joint = ours.mT @ theirs / len(chosen)
            else:
                counts = weights.expand_as(moved).flatten(1)[:, chosen, None].to(ours)
                joint = (ours * counts).mT @ theirs / counts.sum(1, keepdim=True).clamp(min=1e-12)
        nmi = (entropy(joint.sum(2)) + entropy(joint.sum(1))) / entropy(joint.flatten(1)).clamp(min=1e-6)
        return 2 - nmi.mean()

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

    def _windows(self, values: Tensor) -> Tensor:
        """Fraction of each of the values (N, V) in each bin: (N, V, bins)."""
        centres = (torch.arange(self.bins, device=values.device, dtype=values.dtype) + 0.5) / self.bins
        deviation = 1 / self.bins / math.sqrt(8 * math.log(2))
        return torch.softmax(-((values.clamp(0, 1)[..., None] - centres) / deviation).square() / 2, dim=-1)

    def extra_repr(self) -> str:
        return f"bins={self.bins}, fraction={self.fraction}"


def entropy(probability: Tensor) -> Tensor:
    """-Σ p log p over the last axis of (N, K), nats; 0 log 0 is 0."""
    return -torch.special.xlogy(probability, probability.clamp(min=torch.finfo(probability.dtype).tiny)).sum(-1)
