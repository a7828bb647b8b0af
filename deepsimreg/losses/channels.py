"""Several images a side: the weighted mean of a similarity over their channels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deepsimreg.losses.base import Similarity


class ChannelMean(Similarity):
    """Σ weight · similarity(channel) / Σ weight, of two images (N, C, *spatial).

    weights: one for each of C channels, not negative. ValueError for others, and for images of another C.
    """

    def __init__(self, similarity: Similarity, weights: Sequence[float]):
        super().__init__()
        if not weights or min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"weights of the channels are {tuple(weights)}: give one of at least 0 for each image")
        self.similarity, self.shares = similarity, [weight / sum(weights) for weight in weights]
        self.needs_labels = similarity.needs_labels

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        pairs = zip(self._split(moved), self._split(fixed), strict=True)
        return self._mean([self.similarity(*pair, weights) for pair in pairs])

    def maps(self, image: Tensor) -> list:
        return [self.similarity.maps(channel) for channel in self._split(image)]

    def distance(self, moved: list, fixed: list, weights: Tensor | None = None) -> Tensor:
        return self.against(fixed, weights)(moved)

    def against(self, fixed: list, weights: Tensor | None = None) -> Callable[[list], Tensor]:
        measures = [self.similarity.against(maps, weights) for maps in fixed]
        return lambda moved: self._mean([measure(maps) for measure, maps in zip(measures, moved, strict=True)])

    def _split(self, image: Tensor) -> Sequence[Tensor]:
        if image.shape[1] != len(self.shares):
            raise ValueError(f"{image.shape[1]} channels and {len(self.shares)} weights: give one each")
        return image.split(1, dim=1)

    def _mean(self, losses: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(losses)) @ losses[0].new_tensor(self.shares)
