"""neurite-oasis: 414 subjects of OASIS-1, aligned affinely; volumes (3D) or one coronal slice of each (2D).

Sources: Hoopes et al. 2022; Marcus et al. 2007. Structures are numbered as in the files.
"""

from pathlib import Path

import numpy as np

from deepsimreg.data.base import Source, spread_colors
from deepsimreg.data.files import LabelledFiles
from deepsimreg.errors import DataError


def _source(name: str, file: str, checksum: str, size_bytes: int) -> Source:
    return Source(
        name=name,
        url=f"https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/{file}.tar",
        checksum=checksum,
        size_bytes=size_bytes,
        archive="tar",
        folder=file,
        licence="OASIS data use agreement",
        citation="Hoopes et al., Learning the effect of registration hyperparameters with HyperMorph, MELBA 1 (2022); "
        "Marcus et al., Open Access Series of Imaging Studies (OASIS), J. Cognitive Neuroscience 19:1498 (2007)",
        raw=".",
    )


class NeuriteOasis3d(LabelledFiles):
    """Volumes with 35 structures, subject to subject; 60/20/20 of the shuffled names.

    root: the folder that holds `source.folder`. downsample: whole number. cache: images kept in memory.
    """

    source = _source("neurite-oasis-3d", "neurite-oasis.v1.0", "md5:081392a8150ff99ab7a64a9ded377835", 6_600_000_000)
    name, licence, citation = source.name, source.licence, source.citation
    shape = (160, 192, 224)
    image_name, label_name, structures = "aligned_norm.nii.gz", "aligned_seg35.nii.gz", 35
    description = "T1 MRI of OASIS-1, 414 subjects, 35 structures, affinely aligned"

    def __init__(self, root: str | Path | None = None, downsample: int = 1, cache: int = 8):
        self.classes = ("background", *(f"structure {number + 1}" for number in range(self.structures)))
        self.colors = spread_colors(len(self.classes))
        self.open_subjects(root, f"{{subject}}/{self.image_name}", f"{{subject}}/{self.label_name}", downsample, cache)

    def intensities(self, image: np.ndarray, path: Path, counted: np.ndarray | None = None) -> np.ndarray:
        """Unchanged if they lie in [0, 1], else divided by the largest."""
        return super().intensities(image / max(1.0, float(image.max())), path, counted)


class NeuriteOasis2d(NeuriteOasis3d):
    """One coronal slice per subject; labels: 4 or 24 structures."""

    source = _source("neurite-oasis-2d", "neurite-oasis.2d.v1.0", "md5:c9ae5864f250c7e4b8d83a104e51ae8e", 24_000_000)
    name = source.name
    shape, image_name = (160, 192), "slice_norm.nii.gz"
    description = "T1 MRI of OASIS-1, one coronal slice of each of 414 subjects"

    def __init__(self, root: str | Path | None = None, labels: int = 24, downsample: int = 1, cache: int = 512):
        if labels not in (4, 24):
            raise DataError(f"labels is {labels}: neurite-oasis-2d has 4 or 24 structures")
        self.label_name, self.structures = f"slice_seg{labels}.nii.gz", labels
        super().__init__(root, downsample, cache)
