"""The two extractors of the papers: a U-Net that segments, and an autoencoder that reconstructs.

Sources: Ronneberger et al., U-Net (MICCAI 2015); Czolbe et al. 2021 (MIDL), 2023 (Medical Image Analysis).
"""

from torch import Tensor

from deepsimreg.models.backbone import ImageNetwork


class UNet(ImageNetwork):
    """Segments: (N, C, *spatial) in, class logits (N, classes, *spatial) out, with skip connections."""

    skips = True


class Autoencoder(ImageNetwork):
    """Reconstructs: (N, C, *spatial) in [0, 1] to the same shape and range, through the narrowest level alone."""

    skips = False

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *spatial), any spatial size, to its reconstruction in [0, 1]."""
        return super().forward(image).sigmoid()
