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


def subjects(root: str | Path | None, name: str, by_hand: str) -> tuple[Path, dict[str, list[str]]]:
    """The folder `name` of the data root, and split → subjects as its metadata.csv has them.

    DataError if there is none, which says how to get it, or for a split of another name.
    """
    folder = Path(root or data_root()) / name
    table = folder / "metadata.csv"
    if not table.is_file():
        raise DataError(f"{table} is missing: {by_hand}")
    splits = {split: [] for split in SPLITS}
    for row in read_table(table, ("subject_id", "SPLIT")):
        split = SPLIT_NAMES.get(row["SPLIT"].strip().lower())
        if split is None:
            raise DataError(f"{table}: SPLIT of {row['subject_id']} is {row['SPLIT']!r}: write train, validate or test")
        splits[split].append(row["subject_id"])
    return folder, splits


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
        folder, splits = subjects(root, "brain_mris", self.by_hand)
        places = {ATLAS: folder / ATLAS}
        places |= {name: folder / "data" / name for names in splits.values() for name in names}
        files = {name: Files(place / IMAGE, place / LABEL) for name, place in places.items()}
        self.open(folder.parent, files, splits, downsample, cache)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Each subject (moving) with the atlas (fixed)."""
        return self.named_pairs([(subject, ATLAS) for subject in self.splits[check_split(split)]])
