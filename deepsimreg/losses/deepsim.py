"""DeepSim: images are similar where a frozen network extracts the same features from them.

loss = 1 - (1/L) sum_l mean_p cos(F_l(moved)_p, F_l(fixed)_p),   cos(a, b) = <a, b> / (|a| |b|)

F_l(.)_p is the feature vector, over channels, at position p of level l of an encoder trained on the dataset,
to segment (DeepSim-seg) or to reconstruct (DeepSim-ae).
Source: Czolbe et al. 2021, MIDL; 2023, Medical Image Analysis.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deepsimreg.losses.base import Alignment, NetworkSimilarity, at_least_float32, check_pair, weighted_mean
from deepsimreg.warps import displacement_at, warp_image


class DeepSim(NetworkSimilarity):
    """Cosine distance of deep features of two images (N, C, *spatial), in [0, 2]; 0 for identical images.

    extractor: any object with `.features(image)` → one tensor (N, C_l, *spatial_l) for each level l = 1…L. An
    nn.Module is copied and frozen: its weights get no gradient, and it stays in evaluation mode.
    levels: the levels that count, from 1, as (1, 3); None takes all.
    extract_before_warp: `compare` warps the features of the moving image instead of the image, and the gradient runs
    through the warp alone (an ablation of the paper). `forward`, which has no displacement, is not changed by it.
    zero_mean: subtract the mean over positions from each image's features, channel by channel (an ablation, too).

    Only the moved image gets a gradient. The cosine with a feature vector of length 0 is 0.
    """

    def __init__(
        self,
        extractor,
        levels: Sequence[int] | None = None,
        zero_mean: bool = False,
        extract_before_warp: bool = False,
    ):
        if not callable(getattr(extractor, "features", None)):
            raise TypeError(f"extractor {type(extractor).__name__} has no method features(image) -> list of tensors")
        if levels is not None and (not levels or min(levels) < 1 or len(set(levels)) < len(levels)):
            raise ValueError(f"levels {tuple(levels)} must be different numbers from 1 up, or None for all")
        super().__init__(extractor)
        self.levels = None if levels is None else tuple(levels)
        self.zero_mean = zero_mean
        self.extract_before_warp = extract_before_warp

    def compare(self, alignment: Alignment) -> Tensor:
        if not self.extract_before_warp:
            return super().compare(alignment)
        check_pair(alignment.moving, alignment.fixed)
        with torch.no_grad():
            features_moving, features_fixed = self.maps(alignment.moving), self.maps(alignment.fixed)
        moved = [warp_image(f, displacement_at(alignment.displacement, f.shape[2:])) for f in features_moving]
        return self.distance(moved, features_fixed, alignment.weights)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The features of the chosen levels."""
        features = list(self.extractor.features(self.as_input(image)))
        levels = self.levels or range(1, len(features) + 1)
        if max(levels) > len(features):
            raise ValueError(f"levels {self.levels}: the extractor has only the levels 1 to {len(features)}")
        chosen = [at_least_float32(features[level - 1]) for level in levels]
        if self.zero_mean:
            chosen = [f - f.mean(dim=tuple(range(2, f.ndim)), keepdim=True) for f in chosen]
        return chosen

    def distance(self, moved: list[Tensor], fixed: list[Tensor], weights: Tensor | None = None) -> Tensor:
        cosines = [cosine(a, b).unsqueeze(1) for a, b in zip(moved, fixed, strict=True)]
        return 1 - torch.stack([weighted_mean(one, weights) for one in cosines]).mean()

    def extra_repr(self) -> str:
        return f"levels={self.levels}, zero_mean={self.zero_mean}, extract_before_warp={self.extract_before_warp}"


class FeatureFunction(nn.Module):
    """An extractor made of a function, such as a part of a network that was trained elsewhere.

    function: image (N, C, *spatial) -> feature maps (N, C_l, *⌈spatial / r_l⌉), r_l a power of two, level by level. An
    nn.Module is frozen, put in evaluation mode and moved to the device of the registration; layers that a plain
    function only refers to are not. TypeError if it cannot be called, or gives no sequence.
    """

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]]):
        super().__init__()
        if not callable(function):
            raise TypeError(f"{type(function).__name__} cannot be called: give a function, image -> list of tensors")
        self.function = function

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps that the function gives."""
        maps = self.function(image)
        if isinstance(maps, Tensor):
            raise TypeError("the function gives one tensor: return a list of feature maps")
        return list(maps)


def cosine(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Cosine over the channels of (N, C, *spatial), squared norms clamped at `eps`. Returns (N, *spatial)."""
    norms = [f.square().sum(1).clamp(min=eps).sqrt() for f in (a, b)]
    return (a * b).sum(1) / (norms[0] * norms[1])
