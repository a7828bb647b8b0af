"""What every similarity shares: what it may look at, and how it is asked."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from deepsimreg.warps import warp_image


@dataclass(frozen=True, eq=False)
class Alignment:
    """A batch of pairs and the displacement that is to be judged.

    Images (N, C, *spatial) in [0, 1]; displacement (N, D, *spatial), voxels; labels (N, 1, *spatial), integers.
    """

    moving: Tensor
    fixed: Tensor
    displacement: Tensor
    moving_label: Tensor | None = None
    fixed_label: Tensor | None = None

    @cached_property
    def moved(self) -> Tensor:
        """The moving image, warped."""
        return warp_image(self.moving, self.displacement)


class Similarity(nn.Module, ABC):
    """A loss that falls as two images become more alike.

    `forward` compares two images on one grid; `compare` may look at more than that: labels, or the displacement.
    """

    needs_labels = False

    @abstractmethod
    def forward(self, moved: Tensor, fixed: Tensor) -> Tensor:
        """Scalar loss of two images (N, C, *spatial)."""

    def compare(self, alignment: Alignment) -> Tensor:
        """Scalar loss of an alignment."""
        return self(alignment.moved, alignment.fixed)


class WeightedSum(Similarity):
    """Σ weight · similarity, as DeepSim + 0.5 NCC."""

    def __init__(self, similarities: Sequence[Similarity], weights: Sequence[float]):
        super().__init__()
        if len(similarities) != len(weights) or not similarities:
            raise ValueError(f"{len(similarities)} similarities and {len(weights)} weights: give one weight each")
        self.similarities, self.weights = nn.ModuleList(similarities), tuple(weights)
        self.needs_labels = any(similarity.needs_labels for similarity in similarities)

    def forward(self, moved: Tensor, fixed: Tensor) -> Tensor:
        return sum(w * one(moved, fixed) for w, one in zip(self.weights, self.similarities, strict=True))

    def compare(self, alignment: Alignment) -> Tensor:
        return sum(w * one.compare(alignment) for w, one in zip(self.weights, self.similarities, strict=True))


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
