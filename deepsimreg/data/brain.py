"""brain-mri and its public stand-in neurite-oasis: T1 volumes, skull-stripped and affinely aligned, with many classes.

brain-mri      the paper's ABIDE I/II and OASIS-3 subjects, which may not be redistributed: each (moving) to one atlas
neurite-oasis  414 subjects of OASIS-1, volumes (3D) or one coronal slice a subject (2D): subject to subject

Sources: Czolbe et al. 2023 for the layout and the classes of brain-mri; Hoopes et al. 2022 (MELBA) and Marcus et al.
2007 for neurite-oasis, whose structures are numbered here as in its files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deepsimreg.data.base import (
    SPLITS,
    LazySequence,
    Pair,
    check_split,
    mirrored_pairs,
    ordered_pairs,
    shuffled_split,
    spread_colors,
)
from deepsimreg.data.labelled import Files, LabelledFiles
from deepsimreg.errors import DataError
from deepsimreg.paths import data_root

STRUCTURES = (
    "Background",
    "Cerebral G. Matter",
    "Cerebral W. Matter",
    "Lateral Ventricle",
    "Inf Lat Ventricle",
    "Cerebellum W. Matter",
    "Cerebellum Cortex",
    "Thalamus",
    "Caudate",
    "Putamen",
    "Pallidum",
    "3rd Ventricle",
    "4th Ventricle",
    "Brain Stem",
    "Hippocampus",
    "Amygdala",
    "CSF",
    "Accumbens area",
    "Ventral DC",
    "Vessel",
    "Choroid plexus",
    "5th Ventricle",
    "Cingulate Cortex",
    "WM hypointensities",
)
SPLIT_NAMES = {"validate": "validation", "val": "validation"} | {split: split for split in SPLITS}
ATLAS = "atlas"


class BrainMri(LabelledFiles):
    """The authors' layout: metadata.csv with `subject_id` and `SPLIT`, data/<subject_id>/, atlas/.

    root: the folder that holds brain_mris. downsample: whole number. cache: volumes that are kept in memory. Grey
    values 0 … 128 become 0 … 1.
    """

    name = "brain-mri"
    shape = (160, 192, 224)
    classes = STRUCTURES
    colors = spread_colors(len(STRUCTURES))
    description = "T1 MRI of ABIDE I/II and OASIS-3, FreeSurfer-processed, to one atlas"
    licence = "not to be redistributed; see ABIDE and OASIS-3"
    citation = "Czolbe et al., Semantic similarity metrics for image registration, Medical Image Analysis 87 (2023)"

    def __init__(self, root: str | Path | None = None, downsample: int = 1, cache: int = 4):
        folder = Path(root or data_root()) / "brain_mris"
        table = folder / "metadata.csv"
        if not table.is_file():
            raise DataError(
                f"{table} is missing, and brain-mri cannot be fetched: put metadata.csv (subject_id, SPLIT), data/"
                "<subject_id>/{brain_aligned,seg_coalesced_aligned}.nii.gz and atlas/ with the same two files into "
                f"{folder}; a public stand-in is neurite-oasis-3d"
            )
        subjects = pd.read_csv(table, dtype=str)
        missing = {"subject_id", "SPLIT"} - set(subjects)
        if missing:
            raise DataError(f"{table} has no column {', '.join(sorted(missing))}: it has {', '.join(subjects)}")
        subjects["split"] = subjects["SPLIT"].str.strip().str.lower().map(SPLIT_NAMES)
        strange = subjects[subjects["split"].isna()]
        if len(strange):
            row = strange.iloc[0]
            raise DataError(f"{table}: SPLIT of {row['subject_id']} is {row['SPLIT']!r}: write train, validate or test")
        places = {ATLAS: folder / ATLAS} | {name: folder / "data" / name for name in subjects["subject_id"]}
        files = {
            name: Files(place / "brain_aligned.nii.gz", place / "seg_coalesced_aligned.nii.gz")
            for name, place in places.items()
        }
        splits = {split: list(subjects.loc[subjects["split"] == split, "subject_id"]) for split in SPLITS}
        self.open(files, splits, downsample, cache)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Each subject (moving) to the atlas (fixed)."""
        samples = self.samples(check_split(split))
        return LazySequence(len(samples), lambda index: Pair(samples[index], self.sample(ATLAS)))

    def intensities(self, image: np.ndarray, path: Path) -> np.ndarray:
        return np.clip(image, 0, 128) / 128


class NeuriteOasis(LabelledFiles):
    """OASIS-1 as neurite prepared it, subject to subject; 60/20/20 of the shuffled names (`shuffled_split`)."""

    folder: str
    image_name: str
    label_name: str
    licence = "OASIS data use agreement"
    citation = "Hoopes et al., HyperMorph, MELBA 1 (2022); Marcus et al., OASIS, J. Cogn. Neurosci. 19:1498 (2007)"

    def _find(self, root: str | Path | None, downsample: int, cache: int) -> None:
        folder = Path(root or data_root()) / self.folder
        subjects = sorted(path.name for path in folder.glob("OASIS_OAS1_*_MR1") if path.is_dir())
        if not subjects:
            raise DataError(
                f"{folder} holds no subjects OASIS_OAS1_####_MR1: run python -m deepsimreg.data.download {self.name}, "
                f"or set DEEPSIMREG_DATA to the folder that holds {self.folder}"
            )
        files = {name: Files(folder / name / self.image_name, folder / name / self.label_name) for name in subjects}
        self.open(files, shuffled_split(subjects), downsample, cache)

    def intensities(self, image: np.ndarray, path: Path) -> np.ndarray:
        """As they are, if they lie in [0, 1]; else divided by the largest."""
        return super().intensities(image / max(1.0, float(image.max())), path)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Train: every ordered pair of different subjects. Else: subject i (moving) to subject n - 1 - i."""
        samples = self.samples(split)
        return ordered_pairs(samples) if split == "train" else mirrored_pairs(samples)


def _numbered(count: int) -> tuple[str, ...]:
    return ("background", *(f"structure {number}" for number in range(1, count)))


class NeuriteOasis3d(NeuriteOasis):
    """Volumes with 35 structures. root: the folder that holds neurite-oasis.v1.0; cache: volumes kept in memory."""

    name = "neurite-oasis-3d"
    shape = (160, 192, 224)
    folder, image_name, label_name = "neurite-oasis.v1.0", "aligned_norm.nii.gz", "aligned_seg35.nii.gz"
    classes = _numbered(36)
    colors = spread_colors(36)
    description = "T1 MRI of OASIS-1, 414 subjects, 35 structures, affinely aligned"

    def __init__(self, root: str | Path | None = None, downsample: int = 1, cache: int = 8):
        self._find(root, downsample, cache)


class NeuriteOasis2d(NeuriteOasis):
    """One coronal slice a subject, with 4 or 24 structures. root: the folder that holds neurite-oasis.2d.v1.0."""

    name = "neurite-oasis-2d"
    shape = (160, 192)
    folder, image_name = "neurite-oasis.2d.v1.0", "slice_norm.nii.gz"
    classes = _numbered(25)
    description = "T1 MRI of OASIS-1, one coronal slice of each of 414 subjects"

    def __init__(self, root: str | Path | None = None, labels: int = 24, downsample: int = 1, cache: int = 512):
        if labels not in (4, 24):
            raise DataError(f"labels is {labels}: neurite-oasis-2d has 4 or 24 structures")
        self.label_name, self.classes = f"slice_seg{labels}.nii.gz", _numbered(labels + 1)
        self.colors = spread_colors(labels + 1)
        self._find(root, downsample, cache)
