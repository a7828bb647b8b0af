"""Registration network: moving and fixed image in, displacement out ("VoxelMorph, slightly modified").

Sources: Balakrishnan et al., VoxelMorph (TMI 2019); Czolbe et al. (Medical Image Analysis 2023). With `diffeomorphic`
the head predicts a stationary velocity that is integrated by scaling and squaring (Dalca et al., MICCAI 2018).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepsimreg.models.backbone import PAPER_CHANNELS, Backbone, arguments, convolution, convolutions
from deepsimreg.warps import crop, integrate, pad_to_multiple, upsample


class VoxelMorph(nn.Module):
    """Predicts the displacement that pulls the moving image onto the fixed one.

    Args:
        ndim: 2 or 3.
        in_channels: channels of the two images together.
        channels, batch_norm, dropout, light: as `Backbone`.
        diffeomorphic: number of squarings of a stationary velocity; 0 predicts the displacement itself (the paper).
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
        channels = list(channels or PAPER_CHANNELS.get(ndim, ()))
        self.config = arguments(locals())
        self.squarings = diffeomorphic
        self.backbone = Backbone(ndim, in_channels, channels, True, batch_norm, dropout, light)
        width = channels[0]
        self.head = convolutions(ndim, [self.backbone.out_channels, width, width])
        self.flow = flow_layer(ndim, width)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, D, *spatial), voxels, components in array axis order: moved(x) = moving(x + u(x)).

        moving, fixed: (N, C, *spatial) in [0, 1], any spatial size.
        """
        images = pad_to_multiple(torch.cat([moving, fixed], dim=1), self.backbone.multiple)
        flow = flow_from(self.flow, self.head(self.backbone(images)))
        return displacement_of(flow, self.squarings, self.backbone.out_scale, moving.shape[2:])


def flow_layer(ndim: int, channels: int) -> nn.Module:
    """The last convolution: D components, weights ~ N(0, 1e-5) at first: training starts at the identity."""
    flow = convolution(ndim)(channels, ndim, 3, padding=1)
    nn.init.normal_(flow.weight, std=1e-5)
    nn.init.zeros_(flow.bias)
    return flow


def flow_from(layer: nn.Module, features: Tensor) -> Tensor:
    """Output of the last convolution, outside autocast: bfloat16 has steps of .06 voxel at 10 voxels.

    The displacement is float32, or float64 if the network's weights are.
    """
    with torch.autocast(features.device.type, enabled=False):
        flow = layer(features.to(layer.weight.dtype))
    return flow.to(torch.promote_types(flow.dtype, torch.float32))


def displacement_of(flow: Tensor, squarings: int, scale: int, shape: Sequence[int]) -> Tensor:
    """Displacement (N, D, *shape), voxels, from the output of a network's last layer at 1/scale of the resolution.

    flow: (N, D, *spatial / scale), voxels of the image: a displacement, or with `squarings` a stationary velocity.
    """
    if squarings:
        flow = integrate(flow / scale, squarings) * scale
    if scale > 1:
        flow = upsample(flow, scale)
    return crop(flow, shape)
