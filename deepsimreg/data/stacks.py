"""What phc-u373 and platelet-em share: planes of TIFF stacks, in which neighbours are registered.

Train: partner one or two planes away, in both directions. Validation and test: plane i (moving) with plane i + 1. Grey
values are divided by 256. Spacing is 1: distances are in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from deepsimreg.data.base import Pair, Source
from deepsimreg.data.files import LabelledFiles, stack_pages
from deepsimreg.errors import DataError
from deepsimreg.io import advising


class Stacks(LabelledFiles):
    """Planes of TIFF stacks, read one by one. root: the folder that holds `source.folder`. downsample: whole number."""

    source: ClassVar[Source]
    patterns: ClassVar[tuple[str, str]]  # paths of the image stack and the label stack, {} for the name of the stack
    parts: ClassVar[dict[str, tuple[str, slice]]]  # split → stack, planes

    def __init__(self, root: str | Path | None = None, downsample: int = 1):
        folder = self.fetched(root)
        files, splits = {}, {}
        for split, (stack, planes) in self.parts.items():
            with advising(self.remedy):
                pages = stack_pages(stack, *(folder / pattern.format(stack) for pattern in self.patterns), planes)
            files, splits[split] = files | pages, list(pages)
        self.open(folder.parent, files, splits, downsample)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Neighbouring planes, as above."""
        return self.neighbours(split, (1, 2) if split == "train" else (1,))

    def intensities(self, image: np.ndarray, path: Path, counted: np.ndarray | None = None) -> np.ndarray:
        if image.min() < 0 or image.max() > 255:
            raise DataError(f"{path} has values from {image.min():g} to {image.max():g}: 8 bit are expected")
        return image / 256
