"""TransMorph: a registration network whose encoder is a Swin transformer, beside VoxelMorph.

    images → patches of 4 (light: 2) voxels → Swin stages, each half as fine as the one before
    → decoder: ×2 linear → concatenate the encoder's output, or convolved images at the resolutions of 1/2 and 1
      → conv k3 → LeakyReLU 0.2 → conv k3 → LeakyReLU 0.2
    → flow

Source: Chen et al., TransMorph: Transformer for unsupervised medical image registration (Medical Image Analysis 2022),
without positional embedding, as is its default. The Swin transformer is MONAI's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepsimreg.models.backbone import arguments, convolution, convolutions
from deepsimreg.models.voxelmorph import displacement_of, flow_from, flow_layer
from deepsimreg.warps import pad_to_multiple, pooled, upsample


class TransMorph(nn.Module):
    """Predicts the displacement that pulls the moving image onto the fixed one.

    Args:
        ndim: 2 or 3.
        in_channels: channels of the two images together.
        embed_dim: channels of the first Swin stage; each further one has twice as many. A multiple of the heads.
        depths: blocks of each stage, up to four stages.
        heads: attention heads of each stage.
        window: side of the attention's window, in patches.
        light: patches of 2 voxels, and a flow at half resolution; else patches of 4, and a flow at full resolution.
        diffeomorphic: as `VoxelMorph`.

    Raises ImportError if MONAI is not installed.
    """

    def __init__(
        self,
        ndim: int,
        in_channels: int = 2,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 4, 2),
        heads: Sequence[int] = (4, 4, 8, 8),
        window: int = 5,
        light: bool = False,
        diffeomorphic: int = 0,
    ):
        super().__init__()
        depths, heads = list(depths), list(heads)
        self.config = arguments(locals())
        try:
            from monai.networks.nets.swin_unetr import SwinTransformer
        except ImportError as error:
            raise ImportError("MONAI is not installed: pip install 'deepsimreg[transmorph]'") from error
        convolution(ndim)  # refuses what is neither 2D nor 3D
        if not 0 < len(depths) == len(heads) <= 4:
            raise ValueError(f"depths {depths} and heads {heads}: give one of each for up to four stages")
        self.ndim, self.squarings, self.out_scale = ndim, diffeomorphic, 2 if light else 1
        self.patch = 2 if light else 4
        self.multiple = self.patch * 2 ** len(depths)
        self.stages = len(depths)
        sides = ((side,) * ndim for side in (window, self.patch))
        more = {"spatial_dims": ndim, "use_checkpoint": ndim == 3}
        self.encoder = SwinTransformer(in_channels, embed_dim, *sides, depths, heads, **more)
        widths = [embed_dim * 2**level for level in range(self.stages + 1)]
        self.decoder = nn.ModuleList(
            convolutions(ndim, [coarse + fine, fine, fine])
            for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        width, scale = embed_dim, self.patch
        self.skips = nn.ModuleList()
        while scale > self.out_scale:
            scale //= 2
            after = max(embed_dim // 2, 8)
            self.skips.append(convolutions(ndim, [in_channels, after]))
            self.decoder.append(convolutions(ndim, [width + after, after, after]))
            width = after
        self.head = convolutions(ndim, [width + in_channels, max(embed_dim // 2, 8)])
        self.flow = flow_layer(ndim, max(embed_dim // 2, 8))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, D, *spatial), voxels, components in array axis order: moved(x) = moving(x + u(x)).

        moving, fixed: (N, C, *spatial) in [0, 1], any spatial size.
        """
        images = pad_to_multiple(torch.cat([moving, fixed], dim=1), self.multiple)
        levels = self._encode(images)
        features = levels.pop()
        decoder = iter(self.decoder)
        while levels:
            features = next(decoder)(torch.cat([upsample(features), levels.pop()], dim=1))
        scale = self.patch
        for skip in self.skips:
            scale //= 2
            features = self._recomputed(_finer, next(decoder), skip, features, pooled(images, scale))
        features = self._recomputed(_headed, self.head, features, pooled(images, self.out_scale))
        return displacement_of(flow_from(self.flow, features), self.squarings, self.out_scale, moving.shape[2:])

    def _recomputed(self, stage: Callable, *inputs) -> Tensor:
        """The stage's output; in the training of volumes what is in between is computed again for the gradient, since
        the finest stages hold the most memory.
        """
        if self.training and self.ndim == 3 and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=False)
        return stage(*inputs)

    def _encode(self, images: Tensor) -> list[Tensor]:
        """Outputs of the patch embedding and of each Swin stage, fine to coarse."""
        encoder = self.encoder
        features = encoder.pos_drop(encoder.patch_embed(images))
        levels = [encoder.proj_out(features, True)]
        for stage in (encoder.layers1, encoder.layers2, encoder.layers3, encoder.layers4)[: self.stages]:
            features = stage[0](features.contiguous())
            levels.append(encoder.proj_out(features, True))
        return levels


def _finer(decode: nn.Module, skip: nn.Module, features: Tensor, images: Tensor) -> Tensor:
    """One decoder stage at twice the resolution, beside what it sees of the images there."""
    return decode(torch.cat([upsample(features), skip(images)], dim=1))


def _headed(head: nn.Module, features: Tensor, images: Tensor) -> Tensor:
    return head(torch.cat([features, images], dim=1))
