"""Encoder and decoder that every network of the paper shares (U-Net, autoencoder, registration network).

    encoder stage: [batch norm] → conv k4 s2 → LeakyReLU 0.2 → conv k3 → LeakyReLU 0.2 → [dropout]
    decoder stage: conv k3 → LeakyReLU 0.2 → conv k3 → LeakyReLU 0.2 → [dropout] → ×2 linear → concatenate skip

Source: Czolbe et al., Semantic similarity metrics for image registration (Medical Image Analysis 2023), "VoxelMorph,
slightly modified". The light variant is ours: without the last decoder stage, which takes most of the time on a CPU.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepsimreg.warps import crop, pad_to_multiple, upsample

PAPER_CHANNELS = {2: (64, 128, 256), 3: (32, 64, 128)}  # by the number of spatial axes


def arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration, which its file holds: the arguments of `__init__`, from its `locals()`."""
    return {name: value for name, value in scope.items() if name not in ("self", "__class__")}


def convolution(ndim: int) -> type[nn.Module]:
    """The convolution class for 2 or 3 spatial axes; ValueError for another number."""
    try:
        return {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    except KeyError:
        raise ValueError(f"networks are 2D or 3D, not {ndim}D") from None


def convolutions(ndim: int, channels: Sequence[int]) -> nn.Sequential:
    """A 3-wide convolution and LeakyReLU for every step of `channels`; keeps the spatial size."""
    conv = convolution(ndim)
    layers = []
    for before, after in itertools.pairwise(channels):
        layers += [conv(before, after, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers)


def dropouts(ndim: int, probability: float) -> list[nn.Module]:
    """What ends a stage: dropout of whole channels, or nothing."""
    return [{2: nn.Dropout2d, 3: nn.Dropout3d}[ndim](probability)] if probability else []


def encoder_stages(ndim: int, widths: Sequence[int], batch_norm: bool, dropout: float) -> nn.ModuleList:
    """The encoder: a stage for every step of `widths`, the channels of the input first; each halves the resolution."""
    conv, norm = convolution(ndim), {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[ndim]
    return nn.ModuleList(
        nn.Sequential(
            *([norm(before)] if batch_norm else []),
            conv(before, after, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            convolutions(ndim, [after, after]),
            *dropouts(ndim, dropout),
        )
        for before, after in itertools.pairwise(widths)
    )


class Backbone(nn.Module):
    """Encoder and decoder.

    Args:
        ndim: 2 or 3, the number of spatial axes.
        in_channels: channels of the input.
        channels: of the encoder levels at 1/2, 1/4, … resolution; the decoder has them in reverse.
        skips: concatenate the encoder's output of the same resolution (at full resolution: the input).
        batch_norm: at the start of every encoder stage.
        dropout: probability at the end of every stage; 0 leaves it out.
        light: stop the decoder at half resolution; `out_scale` is 2 then, else 1.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int,
        channels: Sequence[int],
        skips: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
        light: bool = False,
    ):
        super().__init__()
        self.ndim, self.skips, self.multiple = ndim, skips, 2 ** len(channels)
        self.out_scale = 2 if light else 1
        widths = [in_channels, *channels]
        self.encoder = encoder_stages(ndim, widths, batch_norm, dropout)
        self.decoder = nn.ModuleList()
        width = channels[-1]
        for level in range(len(channels), int(light), -1):
            after = channels[level - 1]
            self.decoder.append(nn.Sequential(convolutions(ndim, [width, after, after]), *dropouts(ndim, dropout)))
            width = after + widths[level - 1] * skips
        self.out_channels = width

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features of (N, in_channels, *spatial), any size: one (N, C_l, *⌈spatial / 2^l⌉) for each level l."""
        return [
            crop(features, [-(-size // 2**level) for size in image.shape[2:]])
            for level, features in enumerate(self._encode(pad_to_multiple(image, self.multiple)), start=1)
        ]

    def _encode(self, image: Tensor) -> list[Tensor]:
        levels = []
        for stage in self.encoder:
            image = stage(image)
            levels.append(image)
        return levels

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, *spatial), spatial a multiple of `multiple`, to (N, out_channels, *spatial / out_scale)."""
        levels = [image, *self._encode(image)]
        features = levels.pop()
        for stage in self.decoder:
            features = upsample(stage(features))
            skip = levels.pop()
            if self.skips:
                features = torch.cat([features, skip], dim=1)
        return features


class ImageNetwork(nn.Module):
    """Backbone and head: one image in, a map of the same size out; its encoder gives the features of DeepSim.

    out_channels: of the output. The other arguments as `Backbone`.
    """

    skips: bool

    def __init__(
        self,
        ndim: int,
        out_channels: int,
        in_channels: int = 1,
        channels: Sequence[int] | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
        light: bool = False,
    ):
        super().__init__()
        channels = list(channels or PAPER_CHANNELS.get(ndim, ()))
        self.config = arguments(locals())
        self.backbone = Backbone(ndim, in_channels, channels, self.skips, batch_norm, dropout, light)
        width = channels[0]
        self.head = nn.Sequential(
            convolutions(ndim, [self.backbone.out_channels, width, width]),
            convolution(ndim)(width, out_channels, 1),
        )

    def features(self, image: Tensor) -> list[Tensor]:
        """Encoder outputs of (N, C, *spatial): one (N, C_l, *⌈spatial / 2^l⌉) for each level l = 1, 2, …"""
        return self.backbone.encode(image)

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, *spatial), any spatial size, to (N, out_channels, *spatial)."""
        out = self.head(self.backbone(pad_to_multiple(image, self.backbone.multiple)))
        if self.backbone.out_scale > 1:
            out = upsample(out, self.backbone.out_scale)
        return crop(out, image.shape[2:])
