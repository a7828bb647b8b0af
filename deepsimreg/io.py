"""Images in and out: NIfTI by nibabel (affine kept) and TIFF stacks by tifffile, chosen by the suffix.

Arrays keep the file's axis order: (X, Y, Z) for NIfTI, (page, row, column) for TIFF.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import tifffile

from deepsimreg.errors import DataError
from deepsimreg.files import whole

NIFTI = (".nii", ".nii.gz")
TIFF = (".tif", ".tiff")
BROKEN_FILE = (  # what the readers raise for a file that is cut short or of another kind
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    tifffile.TiffFileError,
    zlib.error,
    EOFError,
    struct.error,
    OSError,
    ValueError,
)


def read_image(path: str | Path) -> tuple[np.ndarray, tuple[float, ...], np.ndarray | None]:
    """Array, spacing (mm, array axis order; ones for TIFF) and affine (4, 4), None for TIFF.

    Integer voxels stay integer unless the header scales them. DataError for a file that is missing, cut short
    or of an unknown suffix.
    """
    path = Path(path)
    suffix = _suffix(path)
    with readable(path, "TIFF" if suffix in TIFF else "NIfTI"):
        if suffix in TIFF:
            array = tifffile.imread(path)
            return array, (1.0,) * array.ndim, None
        file = nibabel.load(path)
        spacing = tuple(float(zoom) for zoom in file.header.get_zooms())
        return np.asarray(file.dataobj), spacing, file.affine


def image_shape(path: str | Path) -> tuple[int, ...]:
    """Shape of the array of a file, from its header alone: (pages, rows, columns) for a TIFF stack.

    DataError as `read_image`.
    """
    path = Path(path)
    suffix = _suffix(path)
    with readable(path, "TIFF" if suffix in TIFF else "NIfTI"):
        if suffix in TIFF:
            with tifffile.TiffFile(path) as file:
                first = file.pages.first.shape
                return file.series[0].shape if len(file.pages) == 1 else (len(file.pages), *first)
        return tuple(nibabel.load(path).shape)


def read_page(path: str | Path, page: int) -> np.ndarray:
    """One page of a TIFF stack, (rows, columns), without reading the others. DataError if it cannot be read."""
    try:
        with tifffile.TiffFile(path) as file:
            if len(file.pages) > 1:
                return file.pages[page].asarray()
        return np.array(tifffile.memmap(path, mode="r")[page])
    except (*BROKEN_FILE, IndexError) as error:
        raise DataError(f"{path}: page {page} cannot be read ({error}): fetch the file again") from error


def write_image(path: str | Path, array: np.ndarray, spacing=None, affine: np.ndarray | None = None) -> None:
    """Write an array with its dtype; the file appears whole or not at all.

    Without `affine` a NIfTI gets one with `spacing` (mm, array axis order; default 1) on its diagonal. TIFF
    keeps neither. DataError for an unknown suffix.
    """
    path = Path(path)
    suffix = _suffix(path)
    array = np.asarray(array)
    if suffix in TIFF:
        with whole(path) as partial:
            tifffile.imwrite(partial, array, photometric="minisblack")  # three pages are no colours
        return
    if affine is None:
        affine = np.diag([*[*(spacing or ()), 1.0, 1.0, 1.0][:3], 1.0])
    array = array.astype(np.uint8) if array.dtype == bool else array
    write_nifti(path, nibabel.Nifti1Image(array, affine, dtype=array.dtype))


def write_nifti(path: Path, image: nibabel.Nifti1Image) -> None:
    """Write an image whose affine is in mm; the file appears whole or not at all."""
    image.header.set_xyzt_units("mm")
    with whole(path) as partial:
        nibabel.save(image, partial)


def _suffix(path: Path) -> str:
    for suffix in (*NIFTI, *TIFF):
        if path.name.lower().endswith(suffix):
            return suffix
    raise DataError(f"{path} has an unknown suffix: use one of {', '.join((*NIFTI, *TIFF))}")


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Raise a DataError that names the file if it is missing, or if reading it as that kind fails."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: check the path, or fetch the data again")
    try:
        yield
    except BROKEN_FILE as error:
        raise DataError(f"{path} is truncated or not {kind} ({error}): fetch it again") from error
