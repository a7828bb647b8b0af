"""Class probabilities: similar where a segmentation network sees the same classes.

loss = sum_k mean_p (s_k(moved)_p - s_k(fixed)_p)^2,   s(.)_p the softmax of the network's output at voxel p

Where DeepSim asks the encoder what a place looks like, this asks the whole network what it is. It has nothing to say
inside a class, and judges a warp that is already there better than it leads to one.
Source: the Brier score; networks that segment while they register, as in Xu and Niethammer, DeepAtlas (MICCAI 2019).
"""

from torch import Tensor, nn

from deepsimreg.losses.base import MapSimilarity


class ClassProbabilities(MapSimilarity):
    """Squared difference of the class probabilities of two images (N, C, *spatial), in [0, 2]; 0 for identical images.

    network: image -> logits (N, classes, *spatial). It is frozen in place. Gradient reaches the moved image only.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not callable(network):
            raise TypeError(f"{type(network).__name__} cannot be called: give a network, image -> logits")
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ClassProbabilities":
        super().train(mode)
        self.network.eval()
        return self

    def maps(self, image: Tensor) -> list[Tensor]:
        logits = self.network(image).float()
        if logits.shape[1] < 2:
            raise ValueError(
                f"{type(self.network).__name__} has {logits.shape[1]} output channel: class probabilities need a "
                "segmentation network with at least two classes"
            )
        return [logits.softmax(1)]

    def distance(self, moved: list[Tensor], fixed: list[Tensor]) -> Tensor:
        return (moved[0] - fixed[0]).square().sum(1).mean()
