"""What the cells and the electron microscopy share: planes of TIFF stacks, in which neighbours are registered.

Train: partner one or two planes away, in both directions. Validation and test: plane i (moving) with plane i + 1, of
halved stacks also with i + 2. Grey values are divided by 256. Spacing is 1: distances are in pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from deepsimreg.data.base import Pair, Source
from deepsimreg.data.files import LabelledFiles, stack_pages
from deepsimreg.errors import DataError
from deepsimreg.io import advising, write_image


class Stacks(LabelledFiles):
    """Planes of TIFF stacks, read one by one. root: the folder that holds `source.folder`. downsample: whole number."""

    source: ClassVar[Source]
    patterns: ClassVar[tuple[str, str]]  # paths of the image stack and the label stack, {} for the name of the stack
    parts: ClassVar[dict[str, tuple[str, slice]]]  # split, or extractor → stack, planes
    reach: ClassVar[int] = 1  # planes between partners at most, in validation and test

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
        return self.neighbours(split, (1, 2) if split == "train" else range(1, self.reach + 1))

    def intensities(self, image: np.ndarray, path: Path, counted: np.ndarray | None = None) -> np.ndarray:
        if image.min() < 0 or image.max() > 255:
            raise DataError(f"{path} has values from {image.min():g} to {image.max():g}: 8 bit are expected")
        return image / 256


class HalvedStacks(Stacks):
    """Stacks at half their size, or full=True, as they were taken. The other arguments as `Stacks`."""

    patterns, reach = ("images/{}.tif", "labels-class/{}.tif"), 2

    def __init__(self, root: str | Path | None = None, downsample: int = 1, full: bool = False):
        if full:
            self.patterns = tuple(f"full/{pattern}" for pattern in self.patterns)
        super().__init__(root, downsample)


def write_halved(target: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """A stack of images (planes, rows, columns), 8 bit, and its labels, as they are to `full`, and at half the size.

    Half the size: of images the mean of 2 × 2 pixels, halves up; of labels every second pixel.
    """
    planes, rows, columns = images.shape
    means = images.reshape(planes, rows // 2, 2, columns // 2, 2).mean((2, 4), dtype=np.float64)
    for folder, image, label in (
        (target / "full", images, labels),
        (target, np.floor(means + 0.5).astype(np.uint8), labels[:, ::2, ::2]),
    ):
        for pattern, array in zip(HalvedStacks.patterns, (image, np.ascontiguousarray(label)), strict=True):
            write_image(folder / pattern.format(name), array)
