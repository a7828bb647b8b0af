"""phc-u373 and platelet-em: planes of TIFF stacks, in which neighbours are registered.

phc-u373     phase-contrast video of U373 cells, Cell Tracking Challenge: every frame cropped to 688 × 512 pixels,
             labels {background, cell} from the silver truth
platelet-em  serial block-face electron microscopy of platelets: 800 × 800 pixels, seven classes reduced to three

Train: partner one or two planes away, in either direction. Validation and test: plane i (moving) to plane i + 1. Grey
values are divided by 256. Pixel sizes are not used: spacing is 1, and distances are in pixels.
Sources: Ulman et al. 2017, Nature Methods 14:1141; Guay et al. 2021, Scientific Reports 11:2561.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import tifffile

from deepsimreg.data.base import Pair, check_split, neighbour_pairs
from deepsimreg.data.labelled import Files, LabelledFiles
from deepsimreg.errors import DataError
from deepsimreg.io import image_shape, read_image, read_page
from deepsimreg.paths import data_root


class Part(NamedTuple):
    """The planes start … stop - 1 of a stack; stop None: to its end."""

    stack: str
    start: int = 0
    stop: int | None = None


class Stacks(LabelledFiles):
    """Planes of the stacks `images/<stack><suffix>` and `labels-class/<stack><suffix>`, read one by one.

    root: the folder that holds `folder`. downsample: whole number, for machines without a GPU.
    """

    folder: ClassVar[str]
    suffixes: ClassVar[tuple[str, str]]  # of the image's and the label's file
    parts: ClassVar[dict[str, Part]]

    def __init__(self, root: str | Path | None = None, downsample: int = 1):
        folder = Path(root or data_root()) / self.folder
        if not folder.is_dir():
            raise DataError(
                f"{folder} is missing: run python -m deepsimreg.data.download {self.name}, or set DEEPSIMREG_DATA to "
                f"the folder that holds {self.folder}"
            )
        files, splits = {}, {}
        for split, (stack, start, stop) in self.parts.items():
            image, label = (
                folder / part / f"{stack}{suffix}"
                for part, suffix in zip(("images", "labels-class"), self.suffixes, strict=True)
            )
            pages = image_shape(image)[0]
            names = {f"{stack}-t{page:03d}": page for page in range(start, min(stop or pages, pages))}
            files |= {name: Files(image, label, page) for name, page in names.items()}
            splits[split] = list(names)
        self.open(files, splits, downsample)

    def pairs(self, split: str) -> Sequence[Pair]:
        train = check_split(split) == "train"
        return neighbour_pairs(self.samples(split), (1, 2) if train else (1,), both=train)

    def intensities(self, image: np.ndarray, path: Path) -> np.ndarray:
        if image.min() < 0 or image.max() > 255:
            raise DataError(f"{path} has values from {image.min():g} to {image.max():g}: 8 bit are expected")
        return image / 256


class PhcU373(Stacks):
    """The U373 cells; train on video 01, validate and test on video 02."""

    name = "phc-u373"
    shape = (512, 688)
    folder, suffixes = "PhC-U373", (".tif", ".tif")
    parts = {"train": Part("01"), "validation": Part("02", 0, 50), "test": Part("02", 60, 115)}
    classes = ("background", "cell")
    colors = ("#000000", "#e69f00")
    description = "phase-contrast video of glioblastoma-astrocytoma U373 cells, silver-truth labels"
    licence = "free for research, cite the source (Cell Tracking Challenge)"
    citation = "Ulman et al., An objective comparison of cell-tracking algorithms, Nature Methods 14:1141 (2017)"


class PlateletEm(Stacks):
    """The platelets; train on the stack of 50 slices, validate and test on the halves of the one of 24."""

    name = "platelet-em"
    shape = (800, 800)
    folder, suffixes = "platelet_em_reduced", ("-images.tif", "-class.tif")
    parts = {"train": Part("50"), "validation": Part("24", 0, 12), "test": Part("24", 12, 24)}
    classes = ("background", "cytoplasm", "organelle")
    colors = ("#000000", "#56b4e9", "#e69f00")
    description = "serial block-face electron microscopy of human platelets"
    licence = "see the source; not to be redistributed"
    citation = "Guay et al., Dense cellular segmentation for EM, Scientific Reports 11:2561 (2021)"

    def class_indices(self, label: np.ndarray, path: Path) -> np.ndarray:
        """Seven classes, where a folder still has them: background, cytoplasm, everything else is an organelle."""
        return np.minimum(label, 2)


CROP = (slice(4, 516), slice(4, 692))  # rows, columns
FRAME = (520, 696)
PLATELET_COLOURS = {
    (0, 0, 0): 0,  # background
    (1, 1, 224): 1,  # cell
    (1, 171, 254): 2,  # mitochondrion
    (1, 254, 1): 2,  # alpha granule
    (255, 224, 0): 2,  # canalicular vessel
    (250, 94, 0): 2,  # dense granule
    (245, 0, 203): 2,  # dense granule core
}


def prepare_phc(raw: Path, target: Path) -> None:
    """The videos of the Cell Tracking Challenge as stacks: cropped, labels clipped to {0, 1}, frame by frame.

    raw: the folder PhC-C2DH-U373. target: receives images/ and labels-class/.

    Raises:
        DataError: a frame or its label is missing, or has another size.
    """
    for video in ("01", "02"):
        frames = sorted((raw / video).glob("t*.tif"))
        if not frames:
            raise DataError(f"{raw / video} holds no frames t###.tif: fetch the data again")

        def image(frame: Path) -> np.ndarray:
            return _frame(frame)[CROP]

        def label(frame: Path, video: str = video) -> np.ndarray:
            path = raw / f"{video}_ST" / "SEG" / f"man_seg{frame.stem.removeprefix('t')}.tif"
            return np.clip(_frame(path), 0, 1).astype(np.uint8)[CROP]

        _write_stack(target / "images" / f"{video}.tif", map(image, frames))
        _write_stack(target / "labels-class" / f"{video}.tif", map(label, frames))


def _frame(path: Path) -> np.ndarray:
    array = read_image(path)[0]
    if array.shape != FRAME:
        raise DataError(f"{path} has shape {array.shape}, but frames are {FRAME}: fetch the data again")
    return array


def prepare_platelet(raw: Path, target: Path) -> None:
    """The platelet stacks with three classes, by the colours of the seven, slice by slice.

    raw: the folder platelet-em. target: receives images/ and labels-class/.

    Raises:
        DataError: a colour that no class has.
    """
    for stack in ("24", "50"):
        images, colours = raw / "images" / f"{stack}-images.tif", raw / "labels-semantic" / f"{stack}-semantic.tif"
        pages = image_shape(images)[0]
        _write_stack(target / "images" / images.name, (read_page(images, page) for page in range(pages)))
        classes = (_classes(read_page(colours, page), f"{colours}, slice {page}") for page in range(pages))
        _write_stack(target / "labels-class" / f"{stack}-class.tif", classes)


def _classes(rgba: np.ndarray, where: str) -> np.ndarray:
    """Class indices (rows, columns) of colours (rows, columns, 3 or 4)."""
    codes = rgba[..., 0].astype(np.int64) << 16 | rgba[..., 1].astype(np.int64) << 8 | rgba[..., 2]
    classes = np.full(codes.shape, 255, np.uint8)
    for (red, green, blue), index in PLATELET_COLOURS.items():
        classes[codes == red << 16 | green << 8 | blue] = index
    if (classes == 255).any():
        unknown = tuple(int(part) for part in rgba[classes == 255][0][:3])
        raise DataError(f"{where} has the colour {unknown}, which no class has: fetch the data again")
    return classes


def _write_stack(path: Path, planes) -> None:
    """A compressed TIFF stack, written plane by plane under a temporary name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with tifffile.TiffWriter(partial) as file:
        for plane in planes:
            file.write(plane, compression="zlib", contiguous=False, metadata=None)
    os.replace(partial, path)
