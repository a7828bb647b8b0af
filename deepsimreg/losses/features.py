"""Features by local correlation: similar where the image, and what a frozen network extracts, are locally linear in it.

loss = (NCC(image) + weight · mean_k NCC(channel_k)) / (1 + weight)

The channels are the first principal components of the features of both images. Every level is brought to full
resolution (linear, aligned by voxel areas) and divided by the root of its number of channels, so that each weighs the
same. Projecting and interpolating are both linear, so each level is projected where it is and only its components are
enlarged. Source: multi-component correlation of greedy (Yushkevich et al. 2016, Alzheimer's & Dementia 12); the feature
channels of the DeepSim papers' SyN.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deepsimreg.losses.base import NetworkSimilarity, at_least_float32, check_pair
from deepsimreg.losses.ncc import NCC
from deepsimreg.warps import INTERPOLATION

SAMPLES = 2**17  # positions, at most, from which the principal components are found


class FeatureCorrelation(NetworkSimilarity):
    """Local NCC of two images (N, 1, *spatial) and of their feature channels, in [0, 2]; 0 for identical images.

    extractor: as `DeepSim`. components: how many channels. weight: of all of them together, against the image's 1.
    window, signed: of the correlation, as `NCC`. Only the moved image gets a gradient; the components have none.
    """

    def __init__(
        self,
        extractor,
        components: int = 4,
        weight: float = 1.0,
        window: int | tuple[int, int] = (5, 3),
        signed: bool | tuple[bool, bool] = (True, False),
    ):
        if not callable(getattr(extractor, "features", None)):
            raise TypeError(f"extractor {type(extractor).__name__} has no method features(image) -> list of tensors")
        if components < 1 or weight <= 0:
            raise ValueError(f"components is {components} and weight {weight}: give at least 1, and more than 0")
        super().__init__(extractor)
        self.components, self.weight, self.ncc = components, weight, NCC(window, signed=signed)

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        check_pair(moved, fixed)
        moved_maps, fixed_maps = self.maps(torch.cat([moved, fixed.detach()]))[0].chunk(2)
        return self.distance([moved_maps], [fixed_maps.detach()], weights)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The image and its feature channels (N, 1 + components, *spatial); the batch has its components in common."""
        features = self.extractor.features(self.as_input(image))
        channels = feature_channels([at_least_float32(one) for one in features], image.shape[2:], self.components)
        return [torch.cat([image.to(channels.dtype), channels], dim=1)]

    def distance(self, moved: list[Tensor], fixed: list[Tensor], weights: Tensor | None = None) -> Tensor:
        return self.against(fixed, weights)(moved)

    def against(self, fixed: list[Tensor], weights: Tensor | None = None) -> Callable[[list[Tensor]], Tensor]:
        grey, features = (self.ncc.against([part], weights) for part in (fixed[0][:, :1], fixed[0][:, 1:]))

        def distance(moved: list[Tensor]) -> Tensor:
            ours, theirs = grey([moved[0][:, :1]]), features([moved[0][:, 1:]])
            return (ours + self.weight * theirs) / (1 + self.weight)

        return distance

    def extra_repr(self) -> str:
        return f"components={self.components}, weight={self.weight}"


def feature_channels(levels: Sequence[Tensor], shape: Sequence[int], components: int) -> Tensor:
    """The first principal components of features, at full resolution, in [0, 1] over the batch.

    levels: (N, C_l, *⌈spatial / r_l⌉). shape: of the image. Returns (N, components, *shape); fewer features than
    components leave the last ones 0.
    """
    mode = INTERPOLATION[len(shape)]
    levels = [level / level.shape[1] ** 0.5 for level in levels]
    with torch.no_grad():
        finest = levels[0].shape[2:]
        rows = torch.cat([_sampled(functional.interpolate(one, finest, mode=mode)) for one in levels], dim=1)
        mean = rows.mean(0)
        _, directions = torch.linalg.eigh((rows - mean).mT @ (rows - mean))
        directions = directions.flip(1)[:, :components]
        projected = (rows - mean) @ directions
        low = projected.amin(0)
        size = (projected.amax(0) - low).clamp(min=1e-12)
        basis = (directions / size).to(levels[0]).split([level.shape[1] for level in levels])
        offset = ((mean @ directions + low) / size).to(levels[0])
    channels = -offset.view(1, -1, *[1] * len(shape))
    for level, part in zip(levels, basis, strict=True):
        component = torch.einsum("nc...,ck->nk...", level, part)
        channels = channels + functional.interpolate(component, tuple(shape), mode=mode)
    missing = components - channels.shape[1]
    return functional.pad(channels, [*[0, 0] * len(shape), 0, missing]) if missing else channels


def _sampled(level: Tensor) -> Tensor:
    """Evenly spread positions of a batch (N, C, *spatial), at most twice `SAMPLES`: (positions, C), float64."""
    flat = level.flatten(2)
    chosen = torch.arange(
        0, len(flat) * flat.shape[2], max(1, len(flat) * flat.shape[2] // SAMPLES), device=flat.device
    )
    return flat[chosen // flat.shape[2], :, chosen % flat.shape[2]].double()
