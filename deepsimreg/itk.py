"""Displacement fields as ITK, ANTs, Slicer and SimpleITK read them: vectors in mm, LPS; in NIfTI of intent 1007.

A voxel x of the fixed grid goes to the voxel M (x + u(x)) of the moving grid, M from `voxel_map`. With A, B of the two
grids (index to world, RAS, mm, as ITK places the files) and S, which turns RAS into LPS, the field holds

    v(x) = S (B M (x + u(x)) - A x),    on one grid: S A_linear u(x)

Shape in a NIfTI file: (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2D, as ITK writes it. The field of a slice (X, Y, 1) is
written as two equal slices, since SimpleITK drops axes of one voxel at the end.
Source: NIfTI-1 header (intent codes, 4 × 4 affine); ITK, itkNiftiImageIO.
"""

from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from deepsimreg.errors import DataError
from deepsimreg.grid import FLIP, Grid, voxel_map
from deepsimreg.io import (
    NIFTI,
    itk_affine,
    itk_array,
    itk_image,
    itk_place,
    load_nibabel,
    readable,
    write_itk,
    write_nifti,
)

INTENT_VECTOR, INTENT_RAS = 1007, 1006
TWICE = "slice twice"  # name of the intent


def write_field(
    path: str | Path,
    displacement: Tensor,
    fixed: Grid,
    moving: Grid | None = None,
    matrix: np.ndarray | None = None,
) -> None:
    """Write a displacement (1, D, *spatial), voxels of the fixed grid, array axis order, as an ITK displacement field.

    moving: the moving grid, if it is another. matrix: fixed to moving voxels, before the displacement; None: through
    the world. The file appears whole or not at all: NIfTI, or what SimpleITK writes. ValueError for a field that is no
    (1, D, *spatial), or not finite.
    """
    path, vectors = Path(path), to_itk(displacement, fixed, moving, matrix).astype(np.float32)
    in_file = fixed.to_file(vectors)
    if path.name.lower().endswith(NIFTI):
        twice = in_file.shape[2:3] == (1,) and fixed.file_ndim == 3
        in_file = in_file.repeat(2, axis=2) if twice else in_file
        five = in_file.reshape(*in_file.shape[:-1], *[1] * (4 - fixed.file_ndim), fixed.file_ndim)
        image = nibabel.Nifti1Image(five, None)
        image.header.set_intent(INTENT_VECTOR, name=TWICE if twice else "")
        write_nifti(path, image, fixed)
        return
    write_itk(path, itk_image(in_file, fixed.itk, vectors=True), "a displacement field")


def read_field(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Vectors (X, Y, Z, 3) or (X, Y, 2), mm, LPS, float64, and their grid, of an ITK displacement field.

    Vectors that a NIfTI declares to be RAS (intent 1006) are turned. DataError for a file that is missing, cut short or
    no displacement field, and for vectors that are not finite.
    """
    path = Path(path)
    nifti = path.name.lower().endswith(NIFTI)
    with readable(path, "a displacement field"):
        if nifti:
            stored, (_, affine) = load_nibabel(path), itk_place(path)
            vectors, (code, _, name) = stored.get_fdata(), stored.header.get_intent("code")
        else:
            import SimpleITK

            image = SimpleITK.ReadImage(str(path), SimpleITK.sitkVectorFloat64)
            vectors, affine = itk_array(image), itk_affine(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
        ndim, shape = vectors.shape[-1], vectors.shape
        if ndim not in (2, 3) or (nifti and vectors.ndim != 5) or any(size != 1 for size in shape[ndim:-1]):
            form = "a displacement field has (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2D"
            raise DataError(f"{path} has shape {shape}: {form}")
        vectors = vectors.reshape(*shape[:ndim], ndim)
        check_vectors(vectors)
        if nifti and code == INTENT_RAS:
            vectors = vectors * np.diag(FLIP)[:ndim]
        if nifti and name == TWICE:
            vectors = vectors[:, :, :1]
        return vectors, Grid(vectors.shape[:-1], affine, tuple(range(ndim)), ndim)


def check_vectors(vectors: np.ndarray) -> None:
    """DataError for vectors that are none, or not finite in float32."""
    if not vectors.size or not (np.abs(vectors) <= np.finfo(np.float32).max).all():
        raise DataError("its vectors are NaN, infinite or none: copy it anew, or write it again")


def to_itk(
    displacement: Tensor, fixed: Grid, moving: Grid | None = None, matrix: np.ndarray | None = None
) -> np.ndarray:
    """Vectors (*spatial, file axes), mm, LPS, float64, of a displacement (1, D, *spatial) in voxels; as above."""
    ndim = fixed.ndim
    if tuple(displacement.shape) != (1, ndim, *fixed.shape):
        raise ValueError(
            f"displacement is {tuple(displacement.shape)}: give one field on the fixed grid, {(1, ndim, *fixed.shape)}"
        )
    if not torch.isfinite(displacement).all():
        raise ValueError("displacement holds NaN or infinite values: the registration has diverged")
    moving = fixed if moving is None else moving
    matrix = voxel_map(fixed, moving) if matrix is None else matrix
    x = np.moveaxis(np.indices(fixed.shape, dtype=float), 0, -1)
    u = displacement[0].detach().cpu().double().movedim(0, -1).numpy()
    there = moving.itk_columns @ matrix
    linear, offset = there - fixed.itk_columns, u @ there[:3, :ndim].T
    vectors = x @ linear[:3, :ndim].T + linear[:3, ndim] + offset
    return (vectors @ FLIP[:3, :3])[..., : fixed.file_ndim]


def from_itk(vectors: np.ndarray, fixed: Grid, moving: Grid | None = None, matrix: np.ndarray | None = None) -> Tensor:
    """Displacement (1, D, *spatial), voxels, float32, of vectors in mm, LPS: undoes `to_itk`.

    vectors: (X, Y, Z, 3) or (X, Y, 2), axes of the file, on the fixed grid. Between slices: in their plane.
    """
    plane = fixed.squeezed()
    moving = plane if moving is None else moving
    matrix = voxel_map(plane, moving) if matrix is None else matrix
    world = np.zeros((*vectors.shape[:-1], 3))
    world[..., : vectors.shape[-1]] = vectors
    x = np.moveaxis(np.indices(plane.shape, dtype=float), 0, -1)
    there = plane.in_file(world @ FLIP[:3, :3]) + x @ plane.itk_columns[:3, :-1].T + plane.itk_columns[:3, -1]
    voxels = (there - moving.itk_columns[:3, -1]) @ np.linalg.pinv(moving.itk_columns[:3, :-1]).T
    u = (voxels - matrix[:-1, -1]) @ np.linalg.inv(matrix[:-1, :-1]).T - x
    return torch.from_numpy(np.moveaxis(u, -1, 0)[None].astype(np.float32))
