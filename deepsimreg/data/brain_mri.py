"""brain-mri: the paper's T1 volumes of ABIDE I/II and OASIS-3, skull-stripped, aligned affinely, with 24 classes.

They may not be redistributed, so nothing is fetched; neurite-oasis is the public stand-in. Layout and classes: Czolbe
et al. 2023.
"""

from collections.abc import Sequence
from pathlib import Path

from deepsimreg.data.base import SPLITS, Pair, check_split, spread_colors
from deepsimreg.data.files import Files, LabelledFiles, read_table
from deepsimreg.errors import DataError
from deepsimreg.paths import data_root

STRUCTURES = (
    "Background, Cerebral G. Matter, Cerebral W. Matter, Lateral Ventricle, Inf Lat Ventricle, Cerebellum W. Matter, "
    "Cerebellum Cortex, Thalamus, Caudate, Putamen, Pallidum, 3rd Ventricle, 4th Ventricle, Brain Stem, Hippocampus, "
    "Amygdala, CSF, Accumbens area, Ventral DC, Vessel, Choroid plexus, 5th Ventricle, Cingulate Cortex, "
    "WM hypointensities"
)
SPLIT_NAMES = {"validate": "validation", "val": "validation"} | {split: split for split in SPLITS}
IMAGE, LABEL, ATLAS = "brain_aligned.nii.gz", "seg_coalesced_aligned.nii.gz", "atlas"


class BrainMri(LabelledFiles):
    """The authors' layout: metadata.csv with `subject_id` and `SPLIT`, data/<subject_id>/, atlas/.

    root: the folder that holds brain_mris. downsample: whole number. cache: volumes kept in memory.
    """

    by_hand = (
        "ABIDE and OASIS-3 may not be redistributed. Put your own FreeSurfer-processed, affinely aligned copy into "
        f"brain_mris/ under the data root: metadata.csv (subject_id, SPLIT), data/<subject_id>/ with {IMAGE} and "
        f"{LABEL}, atlas/ with the same two files. A public stand-in is neurite-oasis-3d"
    )
    name, remedy = "brain-mri", "correct it, or copy it from your own data again"
    shape, limits = (160, 192, 224), (0, 128)
    classes = tuple(STRUCTURES.split(", "))
    colors = spread_colors(len(classes))
    description = "T1 MRI of ABIDE I/II and OASIS-3, FreeSurfer-processed, to one atlas"
    licence = "not to be redistributed; see ABIDE and OASIS-3"
    citation = "Czolbe et al., Semantic similarity metrics for image registration, Medical Image Analysis 87 (2023)"

    def __init__(self, root: str | Path | None = None, downsample: int = 1, cache: int = 4):
        folder = Path(root or data_root()) / "brain_mris"
        table = folder / "metadata.csv"
        if not table.is_file():
            raise DataError(f"{table} is missing: {self.by_hand}")
        places, splits = {ATLAS: folder / ATLAS}, {split: [] for split in SPLITS}
        for row in read_table(table, ("subject_id", "SPLIT")):
            subject, split = row["subject_id"], SPLIT_NAMES.get(row["SPLIT"].strip().lower())
            if split is None:
                raise DataError(f"{table}: SPLIT of {subject} is {row['SPLIT']!r}: write train, validate or test")
            splits[split].append(subject)
            places[subject] = folder / "data" / subject
        files = {name: Files(place / IMAGE, place / LABEL) for name, place in places.items()}
        self.open(folder.parent, files, splits, downsample, cache)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Each subject (moving) with the atlas (fixed)."""
        return self.named_pairs([(subject, ATLAS) for subject in self.splits[check_split(split)]])
