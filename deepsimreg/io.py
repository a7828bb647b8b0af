"""Images in and out, with their place as ITK reads it, chosen by the suffix.

NIfTI (.nii, .nii.gz, .img with .hdr) and MGH (.mgh, .mgz) by nibabel; NRRD, MetaImage and PNG by SimpleITK; TIFF by
tifffile. Array axes: (X, Y, Z); of TIFF and PNG (page, row, column). What is read in a type is written in it.
"""

import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nibabel
import numpy as np
import tifffile

from deepsimreg import tiff
from deepsimreg.errors import DataError, UnreadableError
from deepsimreg.files import whole
from deepsimreg.grid import FLIP, Grid
from deepsimreg.tiff import take

if TYPE_CHECKING:
    import SimpleITK

NIFTI, MGH = (".nii", ".nii.gz", ".img", ".hdr"), (".mgh", ".mgz")
META, ITK, PNG = (".mha", ".mhd"), (".nrrd", ".nhdr", ".mha", ".mhd"), (".png",)
SUFFIXES = (*NIFTI, *MGH, *ITK, *tiff.SUFFIXES, *PNG)
WRITTEN = (".nii", ".nii.gz", ".nrrd", ".mha", *tiff.SUFFIXES, *PNG)  # an image in one file appears whole or not at all
UNPLACED = -1  # instead of a code: the header does not say where the image lies


class Stored(NamedTuple):
    """The voxels of a file, and where they lie."""

    array: np.ndarray
    grid: Grid


def read_image(path: str | Path, channel: int | None = None, page: int | None = None) -> Stored:
    """A plane or a volume.

    Integer voxels stay integer unless the header scales them. channel: of several; colours are channels, too. page: of
    a time series, or of a stack that is to be read as one plane.

    Raises:
        DataError: a file that is missing, cut short, of an unknown suffix, or whose header ITK refuses; several
            channels or time points none of which is chosen.
    """
    with _found(path) as (path, suffix):
        if suffix in tiff.SUFFIXES:
            return Stored(*tiff.read_tiff(path, channel, page))
        if suffix in MGH:
            file = load_nibabel(path)
            array, affine, code, itk_ndim = np.asarray(file.dataobj), file.affine, 1, 3
        else:
            file = load_nibabel(path) if suffix in NIFTI else None  # before ITK, which prints what it finds wrong
            itk_ndim, affine = itk_place(path)
            if file is not None:
                array, code = np.asarray(file.dataobj), _code(file.header, affine)
            else:
                import SimpleITK

                array, code = itk_array(SimpleITK.ReadImage(str(path))), 0
                array = array.swapaxes(0, 1) if suffix in PNG else array  # rows before columns
        return _stored(array, affine, itk_ndim, code, suffix in PNG, channel, page, path)


def _stored(array, affine, itk_ndim, code, is_png, channel, page, path) -> Stored:
    """Channels (the last axis beyond space) and time points chosen."""
    if array.dtype.names:  # RGB of a NIfTI
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
        array = array.reshape(*array.shape[:3], *[n for n in array.shape[3:-1] if n > 1], array.shape[-1])
    colours = array.ndim > itk_ndim and (is_png or array.shape[-1] in (3, 4))
    while array.ndim > itk_ndim:
        what, chosen = ("channel", channel) if colours and channel is not None else ("page", page)
        chosen = channel if chosen is None else chosen
        if chosen is None and array.shape[-1] > 1:
            raise DataError(
                f"{path} has shape {array.shape}, colours or several images: choose one with "
                f"{'channel' if colours else 'page'} (0 to {array.shape[-1] - 1})"
            )
        array = take(array, array.ndim - 1, chosen or 0, what, path)
    axes = (1, 0) if is_png else tuple(range(array.ndim))
    placed = not is_png and code != UNPLACED
    return Stored(array, Grid(array.shape, affine, axes, array.ndim, placed=placed, code=max(code, 0)))


def load_nibabel(path: Path) -> nibabel.spatialimages.SpatialImage:
    """An image of nibabel's; a compressed file is read to its end, where its checksum is, which nibabel does not do."""
    image = nibabel.load(path)
    packed = path.name.lower().endswith((".gz", ".mgz"))
    return type(image).from_bytes(gzip.decompress(path.read_bytes())) if packed else image


def image_shape(path: str | Path) -> tuple[int, ...]:
    """Shape of the array of a file, from its header alone: (pages, rows, columns) for a TIFF stack.

    DataError as `read_image`.
    """
    with _found(path) as (path, suffix):
        if suffix in tiff.SUFFIXES:
            with tifffile.TiffFile(path) as file:
                return tuple(tiff.layout(file)[1])
        if suffix in (*NIFTI, *MGH):
            return tuple(nibabel.load(path).shape)
        return _reader(path).GetSize()


def image_affine(path: str | Path) -> np.ndarray | None:
    """(4, 4), index to world, RAS, mm, from the header alone; None for a file that does not say where it lies."""
    with _found(path) as (path, suffix):
        if suffix in (*tiff.SUFFIXES, *PNG):
            return None
        if suffix in MGH:
            return nibabel.load(path).affine
        header = nibabel.load(path).header if suffix in NIFTI else None
        affine = itk_place(path)[1]
        return None if header is not None and _code(header, affine) == UNPLACED else affine


def read_page(path: str | Path, page: int) -> np.ndarray:
    """One page of a TIFF stack, (rows, columns), without reading the others. DataError if it cannot be read."""
    try:
        with tifffile.TiffFile(path) as file:
            if len(file.pages) > 1:
                found = tiff.decoded(path, file.pages[page].asarray)
                return found if found.shape == file.pages[page].shape else found[page]
        return np.array(tifffile.memmap(path, mode="r")[page])
    except Exception as error:  # as in `readable`
        raise UnreadableError(f"{path}: page {page} cannot be read ({error})") from error


def write_image(path: str | Path, array: np.ndarray, grid: Grid | None = None) -> None:
    """Write an array with its dtype; the file appears whole or not at all.

    grid: where ITK is to place it; None: voxels of 1 mm, and in a TIFF (page, row, column). TIFF and PNG keep no place.
    DataError for a suffix that is not written, and for a type that the format does not have.
    """
    path, array = Path(path), np.asarray(array)
    suffix = _suffix(path, WRITTEN)
    if suffix in tiff.SUFFIXES:
        pages = array if grid is None else grid.to_file(array).T  # page, row, column
        with whole(path) as partial:
            tifffile.imwrite(partial, pages, photometric="minisblack")  # three pages are no colours
        return
    array = array.astype(np.uint8) if array.dtype == bool else array
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    grid = grid or Grid.of(array.shape)
    if suffix in (*ITK, *PNG):
        write_itk(path, itk_image(grid.to_file(array), grid.itk), array.dtype)
    else:
        write_nifti(path, nibabel.Nifti1Image(grid.to_file(array), None, dtype=array.dtype), grid)


def write_nifti(path: Path, image: nibabel.Nifti1Image, grid: Grid) -> None:
    """Write an image at the place of a grid, both forms alike, mm; the file appears whole or not at all."""
    image.header.set_xyzt_units("mm")
    for place in (image.set_qform, image.set_sform):
        place(grid.itk, grid.code or 1)
    with whole(path) as partial:
        nibabel.save(image, partial)


def write_itk(path: Path, image: "SimpleITK.Image", what: object) -> None:
    """Write an image, compressed; the file appears whole or not at all. DataError if its format cannot hold `what`."""
    import SimpleITK

    with whole(path) as partial:
        try:
            SimpleITK.WriteImage(image, str(partial), useCompression=True)
        except RuntimeError as error:
            raise DataError(f"{path} cannot hold {what}: write .nii.gz") from error


def itk_image(array: np.ndarray, affine: np.ndarray, vectors: bool = False) -> "SimpleITK.Image":
    """A SimpleITK image of an array in the axes of the file, (X, Y, Z) or, with vectors, (X, Y, Z, D).

    affine: (4, 4) or, of D axes, (4, D + 1): index to world, RAS, mm.
    """
    import SimpleITK

    ndim = array.ndim - vectors
    ordered = np.ascontiguousarray(np.moveaxis(array, range(ndim), range(ndim)[::-1]))
    image = SimpleITK.GetImageFromArray(ordered, isVector=vectors)
    linear, origin = (FLIP @ affine)[:ndim, :ndim], (FLIP @ affine)[:ndim, -1]
    steps = np.linalg.norm(linear, axis=0)
    image.SetSpacing(steps.tolist())
    image.SetDirection((linear / steps).flatten().tolist())
    image.SetOrigin(origin.tolist())
    return image


def itk_array(image: "SimpleITK.Image") -> np.ndarray:
    """The values of a SimpleITK image in the axes of the file, (X, Y, Z) or, of vectors, (X, Y, Z, D)."""
    import SimpleITK

    array, ndim = SimpleITK.GetArrayFromImage(image), image.GetDimension()
    return np.moveaxis(array, range(ndim), range(ndim)[::-1])


def itk_affine(origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float]) -> np.ndarray:
    """(4, 4), index to world, RAS, mm, of ITK's three (LPS); of a fourth axis, time, nothing is kept."""
    ndim, affine = min(len(spacing), 3), np.eye(4)
    cosines = np.reshape(direction, (len(spacing), len(spacing)))
    affine[:ndim, :ndim] = (cosines * np.asarray(spacing))[:ndim, :ndim]
    affine[:ndim, 3] = origin[:ndim]
    return FLIP @ affine


def _reader(path: Path) -> "SimpleITK.ImageFileReader":
    """ITK's reader, which knows the header."""
    import SimpleITK

    warnings = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(warnings)
    return reader


def itk_place(path: Path) -> tuple[int, np.ndarray]:
    """Number of axes in space, and affine (4, 4), RAS, mm, as ITK reads the header. DataError for a sheared one."""
    try:
        reader = _reader(path)
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise DataError(
                f"{path}: its header places it on a sheared grid, and ITK takes none: resample it, or mend its qform"
            ) from error
        raise
    return min(reader.GetDimension(), 3), itk_affine(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection())


def _code(header: nibabel.Nifti1Header, affine: np.ndarray) -> int:
    """The code of the form that ITK has taken; UNPLACED for a header without one."""
    try:
        forms = (header.get_sform(coded=True), header.get_qform(coded=True))
    except AttributeError:  # Analyze
        return UNPLACED
    if not any(code for _, code in forms):
        return UNPLACED
    near = [int(code) for form, code in forms if code and np.allclose(form[:3, :3], affine[:3, :3], rtol=1e-3)]
    return near[0] if near else 0


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    for suffix in sorted(known, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return suffix
    raise DataError(f"{path} has an unknown suffix: use one of {', '.join(known)}")


@contextmanager
def _found(path: str | Path) -> Iterator[tuple[Path, str]]:
    """A file to be read, and its suffix; errors as `readable`, and DataError for an unknown suffix."""
    path = Path(path)
    suffix = _suffix(path, SUFFIXES)
    kind = "TIFF" if suffix in tiff.SUFFIXES else "NIfTI" if suffix in NIFTI else suffix[1:].upper()
    with readable(path, kind):
        yield path, suffix


def _check_meta(path: Path) -> None:
    """DataError for a number of axes, or a last line of the header, with which ITK ends the process.

    That line is missing, or it holds a % that is no number of a slice, as in %03d.raw: ITK prints by it.
    """
    with path.open("rb") as file:
        header, _, rest = file.read(2**16).partition(b"ElementDataFile")
    if not re.match(rb"\s*[=:][ \t]*(?=[\x21-\x7e])[^\r\n%]*(%0?\d*d[^\r\n%]*)?\r?(\n|$)", rest):
        raise DataError("its header does not say where the voxels are (ElementDataFile): copy it anew")
    for count in re.findall(rb"NDims\s*[=:]\s*(\S*)", header):
        if count not in (b"2", b"3", b"4"):
            raise DataError(f"NDims is {count.decode('latin-1')}, which no image has: copy it anew")


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Raise an UnreadableError that names the file if it is missing, or if reading it as that kind fails."""
    if not path.is_file():
        found = ("is a folder", "name a file in it") if path.is_dir() else ("does not exist", "check the path")
        raise UnreadableError(f"{path} {found[0]}", found[1])
    try:
        if path.suffix.lower() in META:
            _check_meta(path)
        yield
    except DataError as error:
        told = str(error)
        if str(path) in told:
            raise
        raise DataError(told.replace(path.name, str(path), 1) if path.name in told else f"{path}: {told}") from error
    except MemoryError as error:
        raise UnreadableError(f"{path} does not fit into memory, or its header is damaged") from error
    except Exception as error:  # damaged bytes make the libraries that read them raise whatever they come upon
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UnreadableError(f"{path} is truncated or not {kind} ({reason})") from error


@contextmanager
def advising(remedy: str) -> Iterator[None]:
    """Tell this remedy for a file that cannot be read."""
    try:
        yield
    except UnreadableError as error:
        raise DataError(f"{error.fault}: {remedy}") from error
