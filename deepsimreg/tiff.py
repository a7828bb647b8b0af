"""TIFF files: which of their axes are space, channels or time, and the voxel sizes in their tags (plain, ImageJ, OME).

Pages that were appended one by one and those of one series read alike. Arrays are (row, column) or (page, row, column).
"""

import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from deepsimreg.errors import DataError
from deepsimreg.grid import FLIP, Grid

SUFFIXES = (".tif", ".tiff")
_MM = {"nm": 1e-6, "nanometer": 1e-6, "um": 1e-3, "micron": 1e-3, "micrometer": 1e-3, "mm": 1.0, "millimeter": 1.0}
_MM |= {"cm": 10.0, "centimeter": 10.0, "m": 1e3, "meter": 1e3, "inch": 25.4, "in": 25.4}
_SIZELESS = ("", "pixel", "none")  # what ImageJ writes where nothing was measured; its ratios count, as mm
_PACKED = {1: 1, 8: 1100, 32946: 1100}  # by TIFF's number of a compression, how much smaller it makes data at most
_MICRO = re.compile(r"\\u00b5|[µμ]", re.IGNORECASE)


def layout(file: tifffile.TiffFile) -> tuple[str, tuple[int, ...], Callable[[], np.ndarray]]:
    """Axes by their letters (Q: pages of no known meaning), sizes, and a function that reads the array.

    DataError for several series of different shapes, none, and sizes that are 0 or more than the file could hold.
    """
    _check_pages(file)
    series = file.series
    if not series:
        raise DataError(f"{file.filehandle.path} holds no image: copy it anew, or give another file")
    for one in series:  # reading what is not there would fill the memory with zeros
        claimed = one.size * max(one.keyframe.bitspersample, 1) // 8
        if not 0 < claimed <= file.filehandle.size * _PACKED.get(int(one.keyframe.compression), 2**16):
            raise DataError(f"{file.filehandle.path} cannot hold the {one.shape} values of its header: copy it anew")
    if len(series) > 1:
        if len({(one.shape, one.axes) for one in series}) > 1:
            raise DataError(
                f"{file.filehandle.path} holds images of {len(series)} different kinds: save the one that is meant"
            )
        shape = (len(series), *series[0].shape)
        return "Q" + series[0].axes, shape, lambda: np.stack([one.asarray() for one in series])
    return series[0].axes.replace("I", "Q"), series[0].shape, series[0].asarray


def _check_pages(file: tifffile.TiffFile) -> None:
    """DataError for a page that is followed by one before it, where tifffile would go round millions of times, or by
    one that is cut off, of which it says nothing.
    """
    handle, kind, seen = file.filehandle, file.tiff, set()
    place = kind.offsetsize  # of the first page's offset in the file
    while True:
        handle.seek(place)
        (page,) = struct.unpack(kind.offsetformat, handle.read(kind.offsetsize))
        if page in seen:
            raise DataError(f"{file.filehandle.path} has pages that follow each other in a circle: copy it anew")
        if not page:
            return
        handle.seek(page)
        count = handle.read(kind.tagnosize)
        if len(count) < kind.tagnosize:
            raise DataError(f"{file.filehandle.path} is cut short, of {len(seen)} pages another follows: copy it anew")
        seen.add(page)
        place = page + kind.tagnosize + struct.unpack(kind.tagnoformat, count)[0] * kind.tagsize


def read_tiff(path: Path, channel: int | None, page: int | None) -> tuple[np.ndarray, Grid]:
    """A plane, or a volume of its Z pages, and where it lies.

    channel: of several (axes C and S). page: of a time-lapse (T); of any other stack that is to be read as one plane.
    DataError for several channels or time points none of which is chosen, and for a choice that there is not.
    """
    with tifffile.TiffFile(path) as file:
        axes, shape, read = layout(file)
        array, steps = decoded(path, read).reshape(shape), _steps(file)
    timed = "T" in axes
    for letter in axes:
        index = axes.index(letter)
        if letter in "YX" or (letter in "ZQ" and (page is None or timed)):
            continue
        what, chosen = ("channel", channel) if letter in "CS" else ("page", page)
        count = array.shape[index]
        if chosen is None and count > 1:
            kind = {"C": "channels", "S": "colours", "T": "time points"}.get(letter, f"entries along axis {letter}")
            depth = "" if set("ZQ") & set(axes) else ", and no depth"
            raise DataError(f"{path} holds {count} {kind}{depth}: choose one with {what} (0 to {count - 1})")
        array = take(array, index, chosen or 0, what, path)
        axes = axes.replace(letter, "", 1)
    order = ["ZQYX".index(letter) for letter in axes]
    if axes[-2:] != "YX" or sorted(order) != order or len(axes) > 3:
        raise DataError(f"{path} has the axes {axes}: give a plane, or pages of rows and columns")
    return array, _grid(array.shape, steps, file)


def decoded(path: Path, read: Callable[[], np.ndarray]) -> np.ndarray:
    """What `read` gives; the whole file by SimpleITK where tifffile lacks the codec (LZW, JPEG)."""
    try:
        return read()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def take(array: np.ndarray, axis: int, index: int, what: str, path: Path) -> np.ndarray:
    """One entry along an axis. DataError if there is none."""
    if not -array.shape[axis] <= index < array.shape[axis]:
        raise DataError(f"{path} has no {what} {index}: there are {array.shape[axis]}, numbered from 0")
    return array.take(index, axis)


def _grid(shape: tuple[int, ...], steps: dict[str, float], file: tifffile.TiffFile) -> Grid:
    """ITK: x is the column, y the row, z the page; sizes only from a resolution in inches or cm."""
    ndim, tags = len(shape), file.pages.first.tags
    unit = {2: 25.4, 3: 10.0}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 0)
    seen = [_tag_step(tags, name, unit) or 1.0 if unit else 1.0 for name in ("XResolution", "YResolution")] + [1.0]
    true = [steps.get(letter, itk) for letter, itk in zip("XYZ", seen, strict=True)]
    itk, affine = (FLIP @ np.diag([*sizes[:ndim], *[1.0] * (4 - ndim)]) for sizes in (seen, true))
    return Grid(tuple(shape), affine, tuple(range(ndim))[::-1], ndim, itk, placed=False)


def _tag_step(tags, name: str, unit: float | None) -> float | None:
    """Size of a pixel from pixels per unit."""
    value = tags[name].value if name in tags else (0, 1)
    return unit * value[1] / value[0] if unit and value[0] and value[1] else None


def _steps(file: tifffile.TiffFile) -> dict[str, float]:
    """mm between pixels by axis, as far as ImageJ's or OME's tags say."""
    if file.is_ome:
        pixels = next(e for e in ElementTree.fromstring(file.ome_metadata).iter() if e.tag.endswith("Pixels"))
        given = {
            axis: (pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XYZ"
        }
        return {axis: float(size) * mm for axis, (size, unit) in given.items() if size and (mm := _mm(unit))}
    found = file.imagej_metadata or {}
    unit = _mm(str(found.get("unit", "pixel"))) if file.is_imagej else None
    if not unit:
        return {}
    tags = file.pages.first.tags
    steps = {axis: _tag_step(tags, f"{axis}Resolution", unit) for axis in "XY"} | {"Z": found.get("spacing", 0) * unit}
    return {axis: step for axis, step in steps.items() if step}


def _mm(unit: str) -> float | None:
    """mm of a unit of length; 1 where nothing was measured. None, and a warning, for one that is not known."""
    name = _MICRO.sub("u", unit).strip().lower().replace("metre", "meter")
    name = {"inches": "inch", "pixels": "pixel"}.get(name, name if name in _MM else name.removesuffix("s"))
    if name not in _MM and name not in _SIZELESS:
        warnings.warn(f"the unit {unit!r} of a TIFF is not known, its voxels count as 1 mm: give spacing", stacklevel=2)
    return 1.0 if name in _SIZELESS else _MM.get(name)
