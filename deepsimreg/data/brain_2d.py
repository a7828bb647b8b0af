"""brain-2d: one axial slice of 20 subjects of Mindboggle-101 (OASIS-TRT-20), the public stand-in for brain-mri in 2D.

Cortex, thalamus, caudate and putamen were drawn by hand; the rest of the brain is derived: it is what is not black.
Sources: Klein & Tourville 2012; one slice of each as in the repository ntustison/MalfLabelingExample.
"""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

from deepsimreg.data.base import Pair, check_split
from deepsimreg.data.brain_mri import IMAGE, LABEL, subjects
from deepsimreg.data.files import Files, LabelledFiles


class Brain2d(LabelledFiles):
    """The slices, in the layout of brain-mri without an atlas. root: the folder that holds brain-2d."""

    by_hand = (
        "put the slices of OASIS-TRT-20 into brain-2d/ under the data root: metadata.csv (subject_id, SPLIT), "
        f"data/<subject_id>/ with {IMAGE} (0 to 128) and {LABEL} (0, 1 cortex, 2 rest of the brain, 7 thalamus, "
        "8 caudate, 9 putamen). The slices: github.com/ntustison/MalfLabelingExample at e9f9c1bd"
    )
    name, remedy = "brain-2d", "correct it, or copy it again"
    shape, limits = (144, 192), (0, 128)
    values = (0, 1, 2, 7, 8, 9)
    classes = ("background", "cortex", "rest of the brain", "thalamus", "caudate", "putamen")
    colors = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7")
    description = "one axial T1 slice of 20 subjects (OASIS-TRT-20 of Mindboggle-101)"
    licence = "known as CC BY-NC-SA 3.0; see Mindboggle-101"
    citation = "Klein & Tourville, 101 labeled brain images and a consistent protocol, Front. Neurosci. 6:171 (2012)"

    def __init__(self, root: str | Path | None = None, downsample: int = 1, cache: int = 64):
        folder, splits = subjects(root, self.name, self.by_hand)
        places = {name: folder / "data" / name for names in splits.values() for name in names}
        files = {name: Files(place / IMAGE, place / LABEL) for name, place in places.items()}
        self.open(folder.parent, files, splits, downsample, cache)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Every ordered pair of different subjects."""
        return self.named_pairs(list(permutations(self.splits[check_split(split)], 2)))
