"""Registration network that matches the features of both images, from coarse to fine.

    one encoder for both images → features at 1/2, 1/4, 1/8 …
    from the coarsest level: moving features pulled through the displacement so far
      → cosine with the fixed features at every shift of one voxel; both features; the features decoded one level before
      → conv k3 → LeakyReLU 0.2 → conv k3 → LeakyReLU 0.2 → flow, composed with the displacement so far

Each level has to find only what the coarser ones left, a voxel or two of its own grid.
Sources: Sun et al., PWC-Net (CVPR 2018); Hu et al., Dual-stream pyramid registration network (MICCAI 2019).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepsimreg.models.backbone import PAPER_CHANNELS, arguments, convolutions, encoder_stages
from deepsimreg.models.voxelmorph import flow_from, flow_layer
from deepsimreg.warps import compose, crop, integrate, pad_to_multiple, upsample, warp_image


class Pyramid(nn.Module):
    """Predicts the displacement that pulls the moving image onto the fixed one, level by level.

    Args:
        ndim: 2 or 3.
        in_channels: channels of the two images together.
        channels: of the encoder levels at 1/2, 1/4, … resolution.
        batch_norm, dropout: of the encoder, as `Backbone`.
        light: stop at half resolution; else the images themselves are one more level.
        diffeomorphic: number of squarings of each level's stationary velocity; 0: its displacement itself.
        radius: largest shift, in voxels of a level, at which it is given how well the features match; 0: none.
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
        radius: int = 1,
    ):
        super().__init__()
        channels = list(channels or PAPER_CHANNELS.get(ndim, ()))
        self.config = arguments(locals())
        self.squarings, self.radius = diffeomorphic, radius
        self.finest, self.multiple = int(light), 2 ** len(channels)
        widths = [in_channels // 2, *channels]
        self.encoder = encoder_stages(ndim, widths, batch_norm, dropout)
        self.decoder, self.flows = nn.ModuleList(), nn.ModuleList()
        before = 0
        for level in range(len(channels), self.finest - 1, -1):
            width = channels[max(level - 1, 0)]
            matches = (2 * radius + 1) ** ndim if radius else 0
            self.decoder.append(convolutions(ndim, [2 * widths[level] + matches + before, width, width]))
            self.flows.append(flow_layer(ndim, width))
            before = width

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, D, *spatial), voxels, components in array axis order: moved(x) = moving(x + u(x)).

        moving, fixed: (N, C, *spatial) in [0, 1], any spatial size.
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
            if self.radius:
                found.append(correlation(moving_features, fixed_features, self.radius))
            found = [decode(torch.cat([moving_features, fixed_features, *found], dim=1))]
            step = flow_from(flow, found[0])
            if self.squarings:
                step = integrate(step, self.squarings)
            displacement = step if displacement is None else compose(displacement, step)
        for _ in range(self.finest):
            displacement = 2 * upsample(displacement)
        return crop(displacement, moving.shape[2:])


def correlation(moving: Tensor, fixed: Tensor, radius: int) -> Tensor:
    """Cosine over the channels of the fixed features with the moving ones at every shift of up to `radius` voxels.

    moving, fixed: (N, C, *spatial). Returns (N, (2 · radius + 1)^D, *spatial), in array order of the shifts.
    """
    moving, fixed = functional.normalize(moving, dim=1), functional.normalize(fixed, dim=1)
    padded = functional.pad(moving, [radius] * 2 * (moving.ndim - 2), mode="replicate")
    shifts = itertools.product(range(2 * radius + 1), repeat=moving.ndim - 2)
    windows = (
        padded[(..., *(slice(shift, shift + size) for shift, size in zip(by, moving.shape[2:], strict=True)))]
        for by in shifts
    )
    return torch.stack([(window * fixed).sum(1) for window in windows], dim=1)
