"""vnc-em: 20 serial sections of a Drosophila nerve cord, transmission EM, the public stand-in for platelet-em.

Classes of the published labels: inside of a cell, its synapses with it; mitochondria; all else (membranes, glia,
outside). Drawn by the authors. Sections are much thicker than a pixel is wide, so neighbours differ.
Source: Gerhard et al. 2013.
"""

from pathlib import Path

import numpy as np

from deepsimreg.data.base import Source
from deepsimreg.data.stacks import HalvedStacks, write_halved
from deepsimreg.errors import DataError
from deepsimreg.io import read_image

SECTION = (1024, 1024)
VALUES = {255: 1, 223: 1, 191: 2}  # of the published labels; the others are 0


def prepare(raw: Path, target: Path) -> None:
    """stack1 with its labels, at half and at full size. DataError: a section or its label is missing or cut."""
    sections = sorted((raw / "stack1" / "raw").glob("*.tif"))
    if not sections:
        raise DataError(f"{raw} holds no stack1/raw: fetch the data again")
    labels = [raw / "stack1" / "labels" / f"labels{int(path.stem):08d}.png" for path in sections]
    images = np.stack([_section(path) for path in sections])
    write_halved(target, "stack1", images, np.stack([_classes(_section(path)) for path in labels]))


def _section(path: Path) -> np.ndarray:
    array = read_image(path).array
    if array.shape != SECTION:
        raise DataError(f"{path} has shape {array.shape}, but sections are {SECTION}: fetch the data again")
    return array


def _classes(values: np.ndarray) -> np.ndarray:
    classes = np.zeros(values.shape, np.uint8)
    for value, index in VALUES.items():
        classes[values == value] = index
    return classes


class VncEm(HalvedStacks):
    """The nerve cord; train on sections 0 to 11, validate on 12 to 15, test on 16 to 19."""

    source = Source(
        name="vnc-em",
        url="https://github.com/unidesigner/groundtruth-drosophila-vnc/archive/4a5f0514.zip",
        checksum="",
        size_bytes=None,
        archive="zip",
        folder="VNC-EM",
        licence="CC BY-NC-SA 3.0",
        citation="Gerhard et al., Segmented anisotropic ssTEM dataset of neural tissue, figshare 856713 (2013)",
        raw="groundtruth-drosophila-vnc-*",
        files="vnc-em.sha256",
        prepare=prepare,
    )
    name, licence, citation = source.name, source.licence, source.citation
    shape = (512, 512)
    parts = {
        "train": ("stack1", slice(12)),
        "validation": ("stack1", slice(12, 16)),
        "test": ("stack1", slice(16, 20)),
    }
    classes = ("outside", "cell", "mitochondrion")
    colors = ("#000000", "#56b4e9", "#e69f00")
    description = "serial-section transmission EM of a Drosophila larva's nerve cord"
