"""Displacement fields as ITK, ANTs, Slicer and SimpleITK read them: NIfTI of intent 1007, vectors in mm, LPS.

A voxel x of the fixed grid goes to the voxel x + u(x) of the moving grid. With the affines A, B of the two grids
(voxel to world, RAS, mm) and S, which turns RAS into LPS by the sign of the first two axes, the field holds

    v(x) = S (B (x + u(x)) - A x),    on one grid: S A_linear u(x)

Shape in the file: (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2D, as ITK writes it.
Source: NIfTI-1 header (intent codes, 4 × 4 affine); ITK, itkNiftiImageIO.
"""

from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from deepsimreg.errors import DataError
from deepsimreg.io import readable, write_nifti

INTENT_VECTOR = 1007


def write_field(
    path: str | Path, displacement: Tensor, affine: np.ndarray, moving_affine: np.ndarray | None = None
) -> None:
    """Write a displacement (1, D, *spatial), voxels, array axis order, as an ITK displacement field.

    affine: (4, 4) of the fixed grid, voxel to world, RAS, mm; in 2D also (3, 3). moving_affine: of the moving grid,
    if it is another. The file, .nii or .nii.gz, appears whole or not at all.
    ValueError for a field that is no (1, D, *spatial) or not finite, and for an affine that is singular, sheared, or
    tilts a 2D image out of its plane, since ITK has no such grids.
    """
    vectors = to_itk(displacement, affine, moving_affine)
    ndim = vectors.ndim - 1
    shape = (*vectors.shape[:ndim], *[1] * (4 - ndim), ndim)
    matrix = np.eye(4)
    matrix[np.ix_([*range(ndim), 3], [*range(ndim), 3])] = grid_affine(affine, ndim)
    image = nibabel.Nifti1Image(vectors.reshape(shape).astype(np.float32), matrix)
    image.header.set_intent(INTENT_VECTOR)
    write_nifti(Path(path), image)


def read_field(path: str | Path, moving_affine: np.ndarray | None = None) -> Tensor:
    """Displacement (1, D, *spatial), voxels, array axis order, float32, of an ITK displacement field.

    The fixed grid's affine is the file's own; moving_affine as for `write_field`. DataError for a file that is
    missing, cut short or no displacement field.
    """
    with readable(Path(path), "NIfTI"):
        image = nibabel.load(path)
        vectors = image.get_fdata()
    ndim = vectors.shape[-1]
    if vectors.ndim != 5 or ndim not in (2, 3) or any(size != 1 for size in vectors.shape[ndim:4]):
        raise DataError(
            f"{path} has shape {vectors.shape}: a displacement field has (X, Y, Z, 1, 3), or (X, Y, 1, 1, 2) in 2D"
        )
    return from_itk(vectors.reshape(*vectors.shape[:ndim], ndim), image.affine, moving_affine)


def to_itk(displacement: Tensor, affine: np.ndarray, moving_affine: np.ndarray | None = None) -> np.ndarray:
    """Vectors (*spatial, D), mm, LPS, float64, of a displacement (1, D, *spatial) in voxels; arguments as above."""
    ndim = displacement.ndim - 2
    if ndim not in (2, 3) or tuple(displacement.shape[:2]) != (1, ndim):
        raise ValueError(
            f"displacement is {tuple(displacement.shape)}: give one field, (1, 2, H, W) or (1, 3, X, Y, Z)"
        )
    if not torch.isfinite(displacement).all():
        raise ValueError("displacement holds NaN or infinite values: the registration has diverged")
    u = displacement[0].detach().cpu().double().movedim(0, -1).numpy()
    linear, rest = _relative(u.shape[:-1], affine, moving_affine)
    return (u @ linear.T + rest) * _lps(ndim)


def from_itk(vectors: np.ndarray, affine: np.ndarray, moving_affine: np.ndarray | None = None) -> Tensor:
    """Displacement (1, D, *spatial), voxels, float32, of vectors (*spatial, D) in mm, LPS: undoes `to_itk`."""
    ndim = vectors.shape[-1]
    linear, rest = _relative(vectors.shape[:-1], affine, moving_affine)
    u = np.linalg.solve(linear, (vectors * _lps(ndim) - rest)[..., None])[..., 0]
    return torch.from_numpy(np.moveaxis(u, -1, 0)[None].astype(np.float32))


def _relative(shape: tuple[int, ...], affine, moving_affine) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of u(x) in B (x + u(x)) - A x, and what does not depend on u: (*shape, D), or zero on one grid."""
    ndim = len(shape)
    fixed = grid_affine(affine, ndim)
    if moving_affine is None:
        return fixed[:ndim, :ndim], np.zeros(ndim)
    moving = grid_affine(moving_affine, ndim)
    difference = moving - fixed
    x = np.moveaxis(np.indices(shape), 0, -1)
    return moving[:ndim, :ndim], x @ difference[:ndim, :ndim].T + difference[:ndim, ndim]


def _lps(ndim: int) -> np.ndarray:
    return np.array([-1.0, -1.0, 1.0])[:ndim]


def grid_affine(affine: np.ndarray, ndim: int) -> np.ndarray:
    """(D + 1, D + 1), float64, of an affine of that size or, in 2D, of a (4, 4) that keeps the plane."""
    matrix = np.asarray(affine, dtype=np.float64)
    if ndim == 2 and matrix.shape == (4, 4):
        if np.abs(matrix[:2, 2]).max() + np.abs(matrix[2, :2]).max() > 1e-4 * np.abs(matrix[:3, :3]).max():
            raise ValueError(f"affine {matrix.tolist()} tilts a 2D image out of its plane: give one of the plane")
        matrix = matrix[np.ix_([0, 1, 3], [0, 1, 3])]
    if matrix.shape != (ndim + 1, ndim + 1):
        raise ValueError(f"affine has shape {matrix.shape}: give ({ndim + 1}, {ndim + 1}) for {ndim} axes")
    linear = matrix[:ndim, :ndim]
    zooms = np.linalg.norm(linear, axis=0)
    if not zooms.all() or np.abs((linear / zooms).T @ (linear / zooms) - np.eye(ndim)).max() > 1e-3:
        raise ValueError(
            f"affine {matrix.tolist()} is singular or sheared: resample the image to a grid with right angles"
        )
    return matrix
