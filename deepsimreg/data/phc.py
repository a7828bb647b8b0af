"""phc-u373: phase-contrast video of U373 cells, every frame cropped to 688 × 512 pixels, silver-truth labels.

Source: Cell Tracking Challenge; Ulman et al. 2017.
"""

from pathlib import Path

import numpy as np

from deepsimreg.data.base import Source
from deepsimreg.data.stacks import Stacks
from deepsimreg.errors import DataError
from deepsimreg.io import read_image, write_image

CROP = (slice(4, 516), slice(4, 692))  # rows, columns
FRAME = (520, 696)


def prepare(raw: Path, target: Path) -> None:
    """The videos of the folder PhC-C2DH-U373 as stacks in images/ and labels-class/: cropped, labels clipped to {0, 1}.

    DataError: a frame or its label is missing, or has another size.
    """
    for video in ("01", "02"):
        frames = sorted((raw / video).glob("t*.tif"))
        if not frames:
            raise DataError(f"{raw / video} holds no frames t###.tif: fetch the data again")
        truth = raw / f"{video}_ST" / "SEG"
        labels = [_frame(truth / f"man_seg{frame.stem.removeprefix('t')}.tif").clip(0, 1) for frame in frames]
        write_image(target / "images" / f"{video}.tif", np.stack([_frame(frame) for frame in frames]))
        write_image(target / "labels-class" / f"{video}.tif", np.stack(labels).astype(np.uint8))


def _frame(path: Path) -> np.ndarray:
    array = read_image(path).array
    if array.shape != FRAME:
        raise DataError(f"{path} has shape {array.shape}, but frames are {FRAME}: fetch the data again")
    return array[CROP]


class PhcU373(Stacks):
    """The U373 cells; train on video 01, validate and test on video 02."""

    source = Source(
        name="phc-u373",
        url="http://data.celltrackingchallenge.net/training-datasets/PhC-C2DH-U373.zip",
        checksum="sha256:b18185c18fce54e8eeb93e4bbb9b201d757add9409bbf2283b8114185a11bc9e",
        size_bytes=40_000_000,
        archive="zip",
        folder="PhC-U373",
        licence="free for research, cite the source (Cell Tracking Challenge)",
        citation="Ulman et al., An objective comparison of cell-tracking algorithms, Nature Methods 14:1141 (2017)",
        raw="PhC-C2DH-U373",
        prepare=prepare,
    )
    name, licence, citation = source.name, source.licence, source.citation
    shape, patterns = (512, 688), ("images/{}.tif", "labels-class/{}.tif")
    parts = {"train": ("01", slice(None)), "validation": ("02", slice(50)), "test": ("02", slice(60, 115))}
    classes = ("background", "cell")
    colors = ("#000000", "#e69f00")
    description = "phase-contrast video of glioblastoma-astrocytoma U373 cells, silver-truth labels"
