"""U-Net for segmentation; its encoder is the extractor of DeepSim_seg (Ronneberger et al. 2015; Czolbe et al. 2023)."""

from deepsimreg.models.backbone import ImageNetwork


class UNet(ImageNetwork):
    """Segments: (N, C, *spatial) in, class logits (N, classes, *spatial) out, with skip connections."""

    skips = True
