"""t98g-phase: phase-contrast movie of T98G glioblastoma cells and 45 single fields, the public stand-in for phc-u373.

The movie's labels are the output of the authors' Mask R-CNN, so they are automatic; those of the fields were drawn by
hand. The first field is a frame of the movie: there the two agree with a Dice of .906 (foreground), which bounds what
an overlap on the movie can mean. It is left out of the extractor's images.
Source: Tsai et al. 2019.
"""

from pathlib import Path

import numpy as np

from deepsimreg.data.base import Source
from deepsimreg.data.stacks import HalvedStacks, write_halved
from deepsimreg.errors import DataError
from deepsimreg.io import read_image

FRAME, CROP = (1022, 1024), slice(7, 1015)  # rows
MOVIE = ("ExampleData/T98G_sample/*.tif", "ExampleData/T98G_sample_Exp_2018-08-31T161026/Id_masks_per_frame/*.png")
HAND = "Mask R-CNN/train"


def prepare(raw: Path, target: Path) -> None:
    """The movie and the fields as stacks, at half and at full size: 16 bit to 8 bit, rows cut to 1008.

    DataError: a frame or its label is missing, or has another size.
    """
    movie = list(zip(*(sorted(raw.glob(pattern)) for pattern in MOVIE), strict=False))
    fields = sorted((raw / HAND).glob("set*"), key=lambda path: int(path.name.removeprefix("set")))
    hand = [(field / "raw.tif", field / "instances_ids.png") for field in fields]
    for name, pairs in {"movie": movie, "hand": hand}.items():
        if not pairs:
            raise DataError(f"{raw} holds no {name}: fetch the data again")
        images = [np.rint(_rows(image) / 257).astype(np.uint8) for image, _ in pairs]
        labels = [(_rows(label) > 0).astype(np.uint8) for _, label in pairs]
        write_halved(target, name, np.stack(images), np.stack(labels))


def _rows(path: Path) -> np.ndarray:
    array = read_image(path).array
    if array.shape != FRAME:
        raise DataError(f"{path} has shape {array.shape}, but frames are {FRAME}: fetch the data again")
    return array[CROP]


class T98gPhase(HalvedStacks):
    """The T98G cells; train, validate and test on stretches of the movie, extractors on the fields drawn by hand."""

    source = Source(
        name="t98g-phase",
        url="https://github.com/oist/Usiigaci/archive/9501d80c.zip",
        checksum="",
        size_bytes=None,
        archive="zip",
        folder="T98G-phase",
        licence="MIT",
        citation="Tsai et al., Usiigaci: instance-aware cell tracking, SoftwareX 9:230 (2019)",
        raw="Usiigaci-*",
        files="t98g-phase.sha256",
        prepare=prepare,
    )
    name, licence, citation = source.name, source.licence, source.citation
    shape = (504, 512)
    parts = {
        "train": ("movie", slice(20)),
        "validation": ("movie", slice(20, 27)),
        "test": ("movie", slice(27, 37)),
        "extractor": ("hand", slice(1, None)),
    }
    classes = ("background", "cell")
    colors = ("#000000", "#e69f00")
    description = "phase-contrast movie of T98G glioblastoma cells, automatic labels; extractors: drawn by hand"
