"""MIND-SSC: similar where each voxel resembles its own neighbourhood in the same way.

d_ab(x) = mean over a patch around x of (I(y + a) - I(y + b))^2
m_ab(x) = exp(-(d_ab(x) - min_ab d_ab(x)) / V(x))
V       = mean over ab of (d_ab - min), clamped to its image mean · [1e-3, 1e3]
loss    = mean over voxels and pairs of (m_ab(I) - m_ab(J))^2

a, b are neighbours of the voxel, `dilation` away along the axes, that are not opposite each other: 12 pairs in 3D, 4 in
2D. Beyond the border an image goes on with its edge values; patches are clipped to the image.
Source: Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using self-similarities
(MICCAI 2013). Dilation 2 as in the DeepSim papers, whose radius is 2, too; with 1 an optimised pair overlaps more.
"""

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from deepsimreg.losses.base import MapSimilarity, at_least_float32, weighted_mean
from deepsimreg.losses.box import box_mean


class MIND(MapSimilarity):
    """Mean squared difference of the MIND-SSC descriptors of two images (N, 1, *spatial); 0 for identical images.

    radius: of the patch, 2 radius + 1 voxels wide. dilation: distance of the neighbours, voxels.
    """

    anew = True

    def __init__(self, radius: int = 1, dilation: int = 2):
        super().__init__()
        if radius < 0 or dilation < 1:
            raise ValueError(f"radius is {radius} and dilation {dilation}: give radius ≥ 0 and dilation ≥ 1")
        self.radius, self.dilation = radius, dilation

    def maps(self, image: Tensor) -> list[Tensor]:
        return [self.describe(image)]

    def distance(self, moved: list[Tensor], fixed: list[Tensor], weights: Tensor | None = None) -> Tensor:
        if weights is not None:  # a descriptor that looks at a masked voxel does not count
            reach = self.radius + self.dilation
            pool = {4: functional.max_pool2d, 5: functional.max_pool3d}[weights.ndim]
            weights = 1 - pool(1 - weights, 2 * reach + 1, stride=1, padding=reach)
        return weighted_mean((moved[0] - fixed[0]).square(), weights)

    def describe(self, image: Tensor) -> Tensor:
        """Descriptor of (N, 1, *spatial): (N, 12, *spatial) in 3D, (N, 4, *spatial) in 2D, in [0, 1]."""
        if image.shape[1] != 1:
            raise ValueError(f"MIND describes images of one channel, not {image.shape[1]}")
        ndim, step = image.ndim - 2, self.dilation
        padded = functional.pad(at_least_float32(image), [step] * 2 * ndim, mode="replicate")
        neighbours = []
        for axis, sign in itertools.product(range(ndim), (-1, 1)):
            offsets = [step + sign * step * (axis == other) for other in range(ndim)]
            window = (slice(start, start + size) for start, size in zip(offsets, image.shape[2:], strict=True))
            neighbours.append((axis, padded[(..., *window)]))
        pairs = [(a, b) for (i, a), (j, b) in itertools.combinations(neighbours, 2) if i != j]
        distances = box_mean(torch.cat([(a - b).square() for a, b in pairs], dim=1), self.radius)
        distances = distances - distances.amin(1, keepdim=True)
        variance = distances.mean(1, keepdim=True)
        typical = variance.mean(dim=tuple(range(1, image.ndim)), keepdim=True)
        floor = torch.finfo(variance.dtype).eps
        variance = torch.minimum(torch.maximum(variance, (1e-3 * typical).clamp(min=floor)), 1e3 * typical + floor)
        return torch.exp(-distances / variance)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, dilation={self.dilation}"
