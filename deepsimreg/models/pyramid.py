"""Registration network that estimates a displacement from coarse to fine on the features of both images.

    one encoder for both images → features at 1/2, 1/4, 1/8 …
    from the coarsest level: moving features pulled through the displacement so far, fixed features, what the level
    before has found → conv k3 → LeakyReLU 0.2 → conv k3 → LeakyReLU 0.2 → flow, composed with the displacement so far

Each level has to find only what the levels below it have left, a few voxels of its own grid, so a small network reaches
in few steps what a U-Net on the two concatenated images needs a cascade for.
Sources: Sun et al., PWC-Net (CVPR 2018); Hu et al., Dual-stream pyramid registration network (MICCAI 2019). The encoder
stages are those of `Backbone`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepsimreg.models.backbone import (
    PAPER_CHANNELS,
    convolutions,
    crop,
    encoder_stages,
    pad_to_multiple,
    upsample,
)
from deepsimreg.models.voxelmorph import flow_layer
from deepsimreg.warps import compose, integrate, warp_image


class Pyramid(nn.Module):
    """Predicts the displacement that pulls the moving image onto the fixed one, level by level.

    Args:
        ndim: 2 or 3.
        in_channels: channels of the two images together.
        channels: of the encoder levels at 1/2, 1/4, … resolution.
        batch_norm, dropout: as `Backbone`, in the encoder.
        light: the finest level is that at half resolution; else the images themselves are one more.
        diffeomorphic: number of squarings of each level's stationary velocity; 0: its displacement itself.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int = 2,
        channels: Sequence[int] | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
        light: bool = False,
        diffeomorphic: int = 0,
    ):
        super().__init__()
        channels = list(channels or PAPER_CHANNELS[ndim])
        self.config = {
            "ndim": ndim,
            "in_channels": in_channels,
            "channels": channels,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "light": light,
            "diffeomorphic": diffeomorphic,
        }
        self.squarings, self.finest, self.multiple = diffeomorphic, int(light), 2 ** len(channels)
        widths = [in_channels // 2, *channels]
        self.encoder = encoder_stages(ndim, widths, batch_norm, dropout)
        self.decoder, self.flows = nn.ModuleList(), nn.ModuleList()
        before = 0
        for level in range(len(channels), self.finest - 1, -1):
            width = channels[max(level - 1, 0)]
            self.decoder.append(convolutions(ndim, [2 * widths[level] + before, width, width]))
            self.flows.append(flow_layer(ndim, width))
            before = width

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement of a pair.

        Args:
            moving, fixed: (N, C, *spatial) in [0, 1], any spatial size.

        Returns:
            (N, D, *spatial), voxels, components in array axis order: moved(x) = moving(x + u(x)).
        """
        images = pad_to_multiple(torch.cat([moving, fixed]), self.multiple)
        levels = [images]
        for stage in self.encoder:
            levels.append(stage(levels[-1]))
        displacement, found = None, []
        for features, decode, flow in zip(reversed(levels[self.finest :]), self.decoder, self.flows, strict=True):
            moving_features, fixed_features = features.chunk(2)
            if displacement is not None:
                displacement, found = 2 * upsample(displacement), [upsample(found[0])]
                moving_features = warp_image(moving_features, displacement)
            found = [decode(torch.cat([moving_features, fixed_features, *found], dim=1))]
            step = flow(found[0]).float()
            if self.squarings:
                step = integrate(step, self.squarings)
            displacement = step if displacement is None else compose(displacement, step)
        for _ in range(self.finest):
            displacement = 2 * upsample(displacement)
        return crop(displacement, moving.shape[2:])
