"""Autoencoder without skip connections; its encoder is the extractor of DeepSim_ae (Czolbe et al. 2021)."""

from torch import Tensor

from deepsimreg.models.backbone import ImageNetwork


class Autoencoder(ImageNetwork):
    """Reconstructs: (N, C, *spatial) in [0, 1] to the same shape and range, through the narrowest level alone."""

    skips = False

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, *spatial), any spatial size, to its reconstruction in [0, 1]."""
        return super().forward(image).sigmoid()
