"""platelet-em: serial block-face electron microscopy of platelets, 800 × 800 pixels, seven classes reduced to three.

Source: Guay et al. 2021.
"""

from pathlib import Path

import numpy as np

from deepsimreg.data.base import Source
from deepsimreg.data.stacks import Stacks
from deepsimreg.errors import DataError
from deepsimreg.io import image_shape, read_image, read_page, write_image

COLOURS = {
    (0, 0, 0): 0,  # background
    (1, 1, 224): 1,  # cell
    (1, 171, 254): 2,  # mitochondrion
    (1, 254, 1): 2,  # alpha granule
    (255, 224, 0): 2,  # canalicular vessel
    (250, 94, 0): 2,  # dense granule
    (245, 0, 203): 2,  # dense granule core
}


def prepare(raw: Path, target: Path) -> None:
    """The stacks of the folder platelet-em in images/ and labels-class/: three classes, from the colours of the seven.

    DataError: a colour that belongs to no class.
    """
    for stack in ("24", "50"):
        images, colours = raw / "images" / f"{stack}-images.tif", raw / "labels-semantic" / f"{stack}-semantic.tif"
        pages = range(image_shape(colours)[0])
        classes = [_classes(read_page(colours, page), f"{colours}, slice {page}") for page in pages]
        write_image(target / "images" / images.name, read_image(images).array)
        write_image(target / "labels-class" / f"{stack}-class.tif", np.stack(classes))


def _classes(rgba: np.ndarray, where: str) -> np.ndarray:
    """Class indices (rows, columns) of colours (rows, columns, 3 or 4)."""
    classes = np.full(rgba.shape[:2], 255, np.uint8)
    for colour, index in COLOURS.items():
        classes[(rgba[..., :3] == colour).all(axis=-1)] = index
    if (classes == 255).any():
        unknown = tuple(rgba[classes == 255][0, :3].tolist())
        raise DataError(f"{where} has the colour {unknown}, which belongs to no class: fetch the data again")
    return classes


class PlateletEm(Stacks):
    """The platelets; train on the stack of 50 slices, validate and test on the halves of the one of 24."""

    source = Source(
        name="platelet-em",
        url="https://www.dropbox.com/s/pvrfnurjq11k0l3/images_and_labels_rgba.zip?dl=1",
        checksum="",
        size_bytes=50_000_000,
        archive="zip",
        folder="platelet_em_reduced",
        licence="see https://bio3d-vision.github.io/platelet-description.html; not to be redistributed",
        citation="Guay et al., Dense cellular segmentation for EM, Scientific Reports 11:2561 (2021)",
        raw="platelet-em",
        prepare=prepare,
    )
    name, licence, citation = source.name, source.licence, source.citation
    shape, patterns = (800, 800), ("images/{}-images.tif", "labels-class/{}-class.tif")
    parts = {"train": ("50", slice(None)), "validation": ("24", slice(12)), "test": ("24", slice(12, 24))}
    classes = ("background", "cytoplasm", "organelle")
    colors = ("#000000", "#56b4e9", "#e69f00")
    description = "serial block-face electron microscopy of human platelets"

    def class_indices(self, label: np.ndarray, path: Path) -> np.ndarray:
        """Folders that still have seven classes are reduced: background, cytoplasm, everything else is an organelle."""
        return np.minimum(label, 2)
