"""Base classes of the similarities: what they compare, and the methods they share.

Every similarity takes weights (N or 1, 1, *spatial), at least 0, of the voxels of the fixed grid: how much each counts.
Where they are 0, outside a mask, a voxel neither pulls nor pushes.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from deepsimreg.warps import grid_step, pooled_least, warp_image

WHOLE = 0.999  # a pulled weight that is less is none


@dataclass(frozen=True, eq=False)
class Alignment:
    """A batch of pairs and the displacement that is to be judged.

    Images (N, C, *spatial) in [0, 1]; displacement (N, D, *spatial), voxels; labels (N, 1, *spatial), integers below
    `classes`, the number of classes of the dataset; weights (N, 1, *spatial) of the fixed voxels, and of the moving
    ones, which are pulled along.
    """

    moving: Tensor
    fixed: Tensor
    displacement: Tensor
    moving_label: Tensor | None = None
    fixed_label: Tensor | None = None
    classes: int | None = None
    moving_weights: Tensor | None = None
    fixed_weights: Tensor | None = None

    @cached_property
    def moved(self) -> Tensor:
        """The moving image, warped."""
        return warp_image(self.moving, self.displacement)

    @cached_property
    def weights(self) -> Tensor | None:
        """The weights of both images, on the fixed grid, without a gradient; a voxel masked in part is masked."""
        pulled = self.moving_weights
        if pulled is not None:
            pulled = whole_weights(warp_image(pulled, self.displacement.detach()))
        return joint_weights(pulled, self.fixed_weights)


class Similarity(nn.Module, ABC):
    """A loss that falls as two images become more alike.

    `forward` compares two images on one grid; `compare` may look at more than that: labels, or the displacement.
    """

    needs_labels = False
    anew = False  # the warped maps are far from the maps of the warped image: extract them anew on the finest level

    @abstractmethod
    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scalar loss of two images (N, C, *spatial)."""

    def compare(self, alignment: Alignment) -> Tensor:
        """Scalar loss of an alignment."""
        return self.weighted(alignment.moved, alignment.fixed, alignment.weights)

    def weighted(self, moved: Tensor, fixed: Tensor, weights: Tensor | None) -> Tensor:
        """`self(moved, fixed)`, with the weights if there are any: a similarity of one's own need not take them."""
        return self(moved, fixed) if weights is None else self(moved, fixed, weights)

    def maps(self, image: Tensor) -> list:
        """What is compared of one image: tensors (N, C, *spatial / r), r a power of two, or lists of them."""
        return [image]

    def distance(self, moved: list, fixed: list, weights: Tensor | None = None) -> Tensor:
        """Scalar loss of the maps of two images, `self(moved, fixed)` without extracting them again."""
        return self.weighted(moved[0], fixed[0], weights)

    def against(self, fixed: list, weights: Tensor | None = None) -> Callable[[list], Tensor]:
        """`distance` to maps that do not change: what follows from them alone is computed once."""
        return lambda moved: self.distance(moved, fixed, weights)


class MapSimilarity(Similarity):
    """Compares what it extracts from each image; the fixed image's maps have no gradient."""

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        check_pair(moved, fixed)
        with torch.no_grad():
            maps = self.maps(fixed)
        return self.distance(self.maps(moved), maps, weights)

    @abstractmethod
    def maps(self, image: Tensor) -> list:
        """Tensors (N, C, *spatial / r), r a power of two."""

    @abstractmethod
    def distance(self, moved: list, fixed: list, weights: Tensor | None = None) -> Tensor:
        """Scalar loss of the maps of two images."""


class NetworkSimilarity(MapSimilarity):
    """Compares the outputs of a frozen deep copy of a network, always in evaluation mode: the caller's does not change.

    extractor: an nn.Module; any other object is used as it is, without a copy.
    """

    def __init__(self, extractor: object):
        super().__init__()
        self.extractor = extractor
        if isinstance(extractor, nn.Module):
            self.extractor = copy.deepcopy(extractor).requires_grad_(False).eval()

    def as_input(self, image: Tensor) -> Tensor:
        """The image in the dtype of the network's weights, if it has any."""
        weight = next(self.parameters(), image)
        return image.to(weight.dtype)

    def train(self, mode: bool = True) -> "NetworkSimilarity":
        super().train(mode)
        if isinstance(self.extractor, nn.Module):
            self.extractor.eval()
        return self


class WeightedSum(Similarity):
    """Σ weight · similarity, as DeepSim + 0.5 NCC."""

    def __init__(self, similarities: Sequence[Similarity], weights: Sequence[float]):
        super().__init__()
        if len(similarities) != len(weights) or not similarities:
            raise ValueError(f"{len(similarities)} similarities and {len(weights)} weights: give one weight each")
        self.similarities, self.weights = nn.ModuleList(similarities), tuple(weights)
        self.needs_labels = any(similarity.needs_labels for similarity in similarities)
        networks = any(isinstance(one, NetworkSimilarity) for one in self.modules())  # cost much to extract anew
        self.anew = any(similarity.anew for similarity in similarities) and not networks

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        pairs = zip(self._parts(moved), self._parts(fixed), strict=True)
        losses = [one.weighted(*pair, weights) for one, pair in zip(self.similarities, pairs, strict=True)]
        return self._sum(losses)

    def compare(self, alignment: Alignment) -> Tensor:
        return self._sum([one.compare(alignment) for one in self.similarities])

    def maps(self, image: Tensor) -> list:
        return [one.maps(part) for one, part in zip(self.similarities, self._parts(image), strict=True)]

    def distance(self, moved: list, fixed: list, weights: Tensor | None = None) -> Tensor:
        return self.against(fixed, weights)(moved)

    def against(self, fixed: list, weights: Tensor | None = None) -> Callable[[list], Tensor]:
        measures = [one.against(maps, weights) for one, maps in zip(self.similarities, fixed, strict=True)]
        return lambda moved: self._sum([measure(maps) for measure, maps in zip(measures, moved, strict=True)])

    def _parts(self, image: Tensor) -> Sequence[Tensor]:
        """What each similarity sees of an image."""
        return [image] * len(self.weights)

    def _sum(self, losses: Sequence[Tensor]) -> Tensor:
        return sum(weight * loss for weight, loss in zip(self.weights, losses, strict=True))


def check_pair(moved: Tensor, fixed: Tensor) -> None:
    """ValueError unless both images are (N, C, *spatial) of one shape, in 2D or 3D."""
    if moved.shape != fixed.shape or moved.ndim not in (4, 5):
        raise ValueError(
            f"moved {tuple(moved.shape)} and fixed {tuple(fixed.shape)} must have one shape, "
            "(N, C, H, W) or (N, C, X, Y, Z)"
        )


def joint_weights(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The product of two weights, either of which may be none: 1 everywhere."""
    return a if b is None else b if a is None else a * b


def whole_weights(pulled: Tensor) -> Tensor:
    """Pulled weights of a mask as 1 where nothing masked is in them, else 0."""
    return (pulled > WHOLE).to(pulled)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of (N, C, *positions) with weights (N or 1, 1, *spatial); 0 if no position counts.

    A position of a coarser grid counts as the least of its voxels: what is masked is not seen through it.
    """
    if weights is None:
        return values.mean()
    shape = values.shape[2:]
    steps = [grid_step(size, own) for size, own in zip(weights.shape[2:], shape, strict=True)]
    weights = pooled_least(weights, steps)
    weights = weights.to(values)
    return (values * weights).sum() / weights.expand_as(values).sum().clamp(min=1e-12)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or wider if it is: sums over a feature or an image need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
