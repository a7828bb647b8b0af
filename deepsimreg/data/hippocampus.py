"""hippocampus-mr: Task04 of the Medical Segmentation Decathlon, 260 labelled T1 crops around a hippocampus.

The sorted names are shuffled by `random.Random(42)` and split 60/20/20; the paper's order is not published.
Intensities: clipped at the 1 % and 99 % quantiles q of the volume, then (x - q01) / (q99 - q01). All volumes are padded
with their edge values to 48 × 64 × 48, array axis order (X, Y, Z).
"""

from pathlib import Path

from deepsimreg.data.base import Source
from deepsimreg.data.files import LabelledFiles


class Hippocampus(LabelledFiles):
    """The volumes; once read they stay in memory (about 200 MB). root: the folder that holds Task04_Hippocampus."""

    source = Source(
        name="hippocampus-mr",
        url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
        checksum="md5:9d24dba78a72977dbd1d2e110310f31b",
        size_bytes=28_000_000,
        archive="tar",
        folder="Task04_Hippocampus",
        licence="CC BY-SA 4.0",
        citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128 (2022)",
    )
    name, licence, citation = source.name, source.licence, source.citation
    shape, multiple, quantiles = (48, 64, 48), 8, (0.01, 0.99)
    classes = ("background", "anterior", "posterior")
    colors = ("#000000", "#e69f00", "#56b4e9")
    description = "T1 MRI crops around the hippocampus, 260 labelled volumes (Decathlon Task04)"

    def __init__(self, root: str | Path | None = None, downsample: int = 1, cache: int = 512):
        self.open_subjects(root, "imagesTr/{subject}.nii.gz", "labelsTr/{subject}.nii.gz", downsample, cache)
        for name in self.files:  # every volume is checked at the start: about a second
            self.sample(name)
