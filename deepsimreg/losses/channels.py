"""Several images a side: the weighted mean of a similarity over their channels."""

from collections.abc import Sequence

from torch import Tensor

from deepsimreg.losses.base import Similarity, WeightedSum


class ChannelMean(WeightedSum):
    """Σ weight · similarity(channel) / Σ weight, of two images (N, C, *spatial).

    weights: one for each of C channels, not negative. ValueError for others, and for images of another C.
    """

    def __init__(self, similarity: Similarity, weights: Sequence[float]):
        if not weights or min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"weights of the channels are {tuple(weights)}: give one of at least 0 for each image")
        super().__init__([similarity] * len(weights), [weight / sum(weights) for weight in weights])

    compare = Similarity.compare  # of the images: each similarity sees a channel

    def _parts(self, image: Tensor) -> Sequence[Tensor]:
        if image.shape[1] != len(self.weights):
            raise ValueError(f"{image.shape[1]} channels and {len(self.weights)} weights: give one each")
        return image.split(1, dim=1)
