"""Transforms from disk, applied by ITK itself: to images, labels and points; several, and their inverses.

A transform takes a point of the fixed image's world to where its content lies in the moving image's. It pulls an image
from there onto the fixed grid, and it sends a point of the fixed image to the moving one; the inverse sends points of
the moving image to the fixed one. As in ANTs, several act on a point from the first to the last.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
import torch

from deepsimreg.alignment import SUFFIXES as AFFINES
from deepsimreg.errors import DataError
from deepsimreg.files import read_rows, write_rows
from deepsimreg.grid import FLIP, Grid
from deepsimreg.image import ImageLike, as_image, as_labels
from deepsimreg.io import itk_array, itk_image, readable, write_image
from deepsimreg.itk import from_itk, read_field, to_itk
from deepsimreg.learn2reg import is_disp, read_disp
from deepsimreg.transform import as_type
from deepsimreg.warps import invert

INVERSE = "inverse:"  # before a file: the inverse of its transform
COLUMNS = ("x", "y", "z")


def read_transforms(names: Sequence[str | Path], ndim: int, moving: Grid | None = None) -> SimpleITK.CompositeTransform:
    """ITK's transform of several files, the first of which acts first on a point, as in ANTs.

    names: displacement fields, or affines (.mat, .txt, .tfm); "inverse:" before a file inverts it. moving: the moving
    grid, in whose voxels the fields of Learn2Reg are.
    DataError for a file that is none of both or of another number of axes; ValueError for an affine without inverse.
    """
    composite = SimpleITK.CompositeTransform(ndim)
    for name in reversed(list(map(str, names))):  # ITK applies first what was added last
        path, inverse = file_of(name), name.startswith(INVERSE)
        transform = _affine(path, inverse) if _is_affine(path) else _field(path, inverse, moving)
        if transform.GetDimension() != ndim:
            raise DataError(
                f"{path} is a transform of {transform.GetDimension()} axes, the image has {ndim}: give one for it"
            )
        composite.AddTransform(transform)
    return composite


def displacement_of(names: Sequence[str | Path], fixed: Grid, moving: Grid, matrix: np.ndarray) -> torch.Tensor:
    """The displacement (1, D, *spatial), voxels of the fixed grid, that before `matrix` (`voxel_map`) does the same.

    A field that covers a part of the fixed grid is warned of.
    """
    transform = read_transforms(names, fixed.file_ndim, moving)
    _check_cover(transform, names, fixed)
    sampling = SimpleITK.TransformToDisplacementFieldFilter()
    sampling.SetReferenceImage(_blank(fixed))
    return from_itk(itk_array(sampling.Execute(transform)), fixed, moving, matrix)


def _check_cover(transform: SimpleITK.CompositeTransform, names: Sequence[str | Path], fixed: Grid) -> None:
    """A warning for each field that does not reach as far as the points of the fixed grid that come to it."""
    before, grid = [SimpleITK.Transform(fixed.file_ndim, SimpleITK.sitkIdentity)], _blank(fixed)
    for name, number in zip(names, reversed(range(len(names))), strict=True):
        for part in _parts(transform.GetNthTransform(number)):
            if isinstance(part, SimpleITK.DisplacementFieldTransform):
                field = part.GetDisplacementField()
                there = SimpleITK.Image(field.GetSize(), SimpleITK.sitkUInt8) + 1
                there.CopyInformation(field)
                so_far = SimpleITK.CompositeTransform(before[::-1])
                seen = SimpleITK.Resample(there, grid, so_far, SimpleITK.sitkNearestNeighbor, 0.0)
                share = SimpleITK.GetArrayViewFromImage(seen).mean()
                if share < 1:
                    warnings.warn(
                        f"{file_of(name)} covers {share:.1%} of the fixed grid: beside that it does nothing, and tears "
                        "at its border; give a field on all of the grid",
                        stacklevel=3,
                    )
            before.append(part)


def _parts(transform: SimpleITK.Transform) -> list[SimpleITK.Transform]:
    """The transforms of a composite, of composites in it, too, in the order in which they act."""
    transform = transform.Downcast()
    if not isinstance(transform, SimpleITK.CompositeTransform):
        return [transform]
    numbers = reversed(range(transform.GetNumberOfTransforms()))
    return [part for number in numbers for part in _parts(transform.GetNthTransform(number))]


def apply_to_image(
    image: ImageLike,
    names: Sequence[str | Path],
    out: str | Path,
    labels: bool = False,
    reference: ImageLike | None = None,
    fill: float | None = None,
    background: int = 0,
) -> None:
    """Pull an image through transforms and write it, in its own type.

    labels: take the nearest voxel. reference: the image on whose grid the result lies; None: the grid of the first
    field. fill, background: value outside the image; None: its lowest. Errors as `read_transforms` and `as_image`.
    """
    source = as_labels(image, "image") if labels else as_image(image, "image")
    if source.data.shape[:2] != (1, 1):
        raise ValueError(f"{source.name} has {source.data.shape[1]} channels: apply the transform to one")
    grid = reference_grid(names) if reference is None else as_image(reference, "reference").grid
    values = source.data[0, 0].numpy()
    values = values if labels or values.dtype.kind == "f" else values.astype(np.float64)  # exact for 32 bit integers
    outside = background if labels else float(values.min()) if fill is None else fill
    moved = SimpleITK.Resample(
        itk_image(source.grid.to_file(values), source.grid.itk),
        _blank(grid),
        read_transforms(names, source.grid.file_ndim, source.grid),
        SimpleITK.sitkNearestNeighbor if labels else SimpleITK.sitkLinear,
        float(outside),
    )
    array = np.ascontiguousarray(grid.in_file(itk_array(moved)))
    write_image(out, as_type(torch.from_numpy(array)[None, None], source.dtype), grid)


def apply_to_points(
    table: str | Path, names: Sequence[str | Path], out: str | Path, voxels: tuple[Grid, Grid] | None = None
) -> int:
    """Send the points of a CSV file through transforms, write the table with its other columns, and count them.

    The columns x, y, z (in 2D x, y) are mm in LPS, as ITK and ANTs have them; or voxels of the first grid, which become
    voxels of the second. DataError for a table without these columns or with values that are no numbers.
    """
    rows, points = read_points(table)
    moving = voxels[1] if voxels is not None else None
    steps = [read_transforms(names, points.shape[1], moving).TransformPoint]
    if voxels is not None:
        here, there = map(_blank, voxels)
        steps = [here.TransformContinuousIndexToPhysicalPoint, *steps, there.TransformPhysicalPointToContinuousIndex]
    points = points.tolist()
    for step in steps:
        points = [step(point) for point in points]
    sent = (dict(zip(COLUMNS, point, strict=False)) for point in points)
    write_rows(Path(out), [row | point for row, point in zip(rows, sent, strict=True)])
    return len(rows)


def read_points(table: str | Path) -> tuple[list[dict[str, str]], np.ndarray]:
    """The rows of a CSV file of points, and their coordinates (P, 2 or 3); errors as `apply_to_points`."""
    rows = read_rows(Path(table))
    there = list(map(str, rows[0])) if rows else []
    columns = [name for name in COLUMNS if name in there]
    if len(columns) < 2 or columns != list(COLUMNS[: len(columns)]):
        raise DataError(f"{table} has the columns {', '.join(there) or 'none'}: give points in the columns x, y, z")
    points = []
    for number, row in enumerate(rows, start=1):
        try:
            points.append([_finite(row[name]) for name in columns])
        except (TypeError, ValueError) as error:  # nothing, where a row is too short
            raise DataError(f"{table}, row {number}: a coordinate is no number: {list(row.values())}") from error
        if None in row:
            raise DataError(f"{table}, row {number} has more values than columns: {list(row.values())}")
    return rows, np.array(points)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _blank(grid: Grid) -> SimpleITK.Image:
    """An image of zeros on a grid, which tells ITK where its voxels lie."""
    return itk_image(grid.to_file(np.zeros(grid.shape, np.uint8)), grid.itk)


def file_of(name: str | Path) -> Path:
    """The file of a transform, inverted or not."""
    return Path(str(name).removeprefix(INVERSE)).expanduser()


def _is_affine(path: Path) -> bool:
    return path.name.lower().endswith(AFFINES)


def _affine(path: Path, inverse: bool) -> SimpleITK.Transform:
    with readable(path, "a transform that ITK reads"):
        transform = SimpleITK.ReadTransform(str(path))
        if not np.isfinite(transform.GetParameters() + transform.GetFixedParameters()).all():
            raise DataError("a parameter is NaN or infinite: write it again")
    try:
        return transform.GetInverse() if inverse else transform
    except RuntimeError as error:
        raise DataError(f"{path} has no inverse that ITK finds: write the inverse to a file of its own") from error


def _field(path: Path, inverse: bool, moving: Grid | None) -> SimpleITK.Transform:
    """The transform of a field, or its inverse."""
    if moving is not None and is_disp(path):
        displacement, grid = read_disp(path)
        vectors = to_itk(displacement, grid, moving, np.eye(grid.ndim + 1))
    else:
        vectors, grid = read_field(path)
    if not inverse:
        return SimpleITK.DisplacementFieldTransform(itk_image(vectors, grid.itk, vectors=True))
    try:
        return _inverted(vectors, grid)
    except ValueError as error:
        raise DataError(f"{path} has no inverse ({error}): write the inverse to a file of its own") from error


def _inverted(vectors: np.ndarray, grid: Grid) -> SimpleITK.CompositeTransform:
    """The inverse of the affine nearest to a field, and then of what is left, on the fixed grid."""
    ndim = vectors.shape[-1]
    x = _world(grid, ndim)
    affine = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), x + vectors.reshape(-1, ndim), rcond=None)[0]
    if grid.squeezed().ndim < ndim:  # a slice says nothing of what lies beside it
        affine = np.vstack([np.eye(ndim), vectors.reshape(-1, ndim).mean(0)])
    back = np.linalg.inv(affine[:ndim])
    left = ((x + vectors.reshape(-1, ndim) - affine[ndim]) @ back - x).reshape(vectors.shape)
    inverse_field = to_itk(invert(from_itk(left, grid)), grid.squeezed())
    linear = SimpleITK.AffineTransform(back.T.flatten().tolist(), (-affine[ndim] @ back).tolist())
    whole_way = SimpleITK.CompositeTransform(ndim)
    file_field = itk_image(grid.squeezed().to_file(inverse_field), grid.itk, vectors=True)
    whole_way.AddTransform(SimpleITK.DisplacementFieldTransform(file_field))
    whole_way.AddTransform(linear)  # acts first
    return whole_way


def _world(grid: Grid, ndim: int) -> np.ndarray:
    """The places of the voxels of a file's grid, (voxels, axes), mm, LPS."""
    index = np.indices(grid.shape, dtype=float).reshape(len(grid.shape), -1)
    place = FLIP @ grid.itk
    return (place[:ndim, : len(grid.shape)] @ index + place[:ndim, 3:]).T


def reference_grid(names: Sequence[str | Path]) -> Grid:
    """The grid of the first field of a list."""
    for name in map(str, names):
        path = file_of(name)
        if not _is_affine(path) and not name.startswith(INVERSE):
            return (read_disp(path) if is_disp(path) else read_field(path))[1].squeezed()
    raise ValueError("no transform has a grid of its own: give reference, an image on the grid that is wanted")
