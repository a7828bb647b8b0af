"""Class probabilities: similar where a segmentation network predicts the same classes.

loss = sum_k mean_p (s_k(moved)_p - s_k(fixed)_p)^2

s(.)_p is the softmax of the network's output, averaged over the voxels of position p. DeepSim compares features, this
compares predictions. Inside a class it has no gradient; there the regulariser, or a second similarity, decides.
Source: the Brier score; networks that segment while they register, as in Xu and Niethammer, DeepAtlas (MICCAI 2019).
"""

from torch import Tensor, nn

from deepsimreg.losses.base import NetworkSimilarity, at_least_float32, weighted_mean
from deepsimreg.losses.deepsim import FeatureFunction
from deepsimreg.warps import pooled


class ClassProbabilities(NetworkSimilarity):
    """Squared difference of the class probabilities of two images (N, C, *spatial), in [0, 2]; 0 for identical images.

    network: image -> logits (N, classes, *spatial); a frozen copy is used. Only the moved image gets a gradient.
    resolution: voxels of a position along every axis, a power of two. 2 is the resolution of a light network.
    """

    def __init__(self, network: nn.Module, resolution: int = 2):
        if not callable(network) or isinstance(network, FeatureFunction):
            raise TypeError(f"{type(network).__name__} gives no logits: give a segmentation network")
        if resolution < 1 or resolution & (resolution - 1):
            raise ValueError(f"resolution is {resolution}: give a power of two")
        super().__init__(network)
        self.resolution = resolution

    def maps(self, image: Tensor) -> list[Tensor]:
        logits = at_least_float32(self.extractor(self.as_input(image)))
        if logits.shape[1] < 2:
            raise ValueError(
                f"{type(self.extractor).__name__} has {logits.shape[1]} output channel: class probabilities need a "
                "segmentation network with at least two classes"
            )
        return [pooled(logits.softmax(1), self.resolution)]

    def distance(self, moved: list[Tensor], fixed: list[Tensor], weights: Tensor | None = None) -> Tensor:
        return weighted_mean((moved[0] - fixed[0]).square().sum(1, keepdim=True), weights)

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}"
