"""Where the voxels of an image lie: in the world, and in the world as ITK reads the file that the image is from.

The world is RAS, in mm. An array may hold the axes of its file in another order (TIFF: row, column) or without those of
one voxel (a slice of a volume), so each array axis names its file axis. ITK takes no voxel size from the tags of most
TIFF files; what is written for it lies where it places the file, whatever the voxels measure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from deepsimreg.errors import DataError

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS, and back
TILT = 0.01  # of its length, by which an axis of one slice may leave the plane of the other


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of an image.

    shape: voxels along each array axis. affine: (4, 4), index in the file to world, RAS, mm. axes: of each array axis,
    its axis in the file. file_ndim: axes of the file as ITK counts them, 2 or 3. itk: as `affine`, where ITK places the
    file. placed: the source says where it lies. code: of the space, as NIfTI numbers them; 0: unknown.
    DataError for an affine that is singular or sheared.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    axes: tuple[int, ...]
    file_ndim: int
    itk: np.ndarray = field(default=None)
    placed: bool = True
    code: int = 0

    def __post_init__(self):
        if self.itk is None:
            object.__setattr__(self, "itk", self.affine)
        for affine in (self.affine, self.itk):
            steps = np.linalg.norm(affine[:3, :3], axis=0)
            if not np.isfinite(affine).all() or not steps.all():
                raise DataError(f"affine {affine.tolist()} is singular: give every axis a size")
            cosines = (affine[:3, :3] / steps).T @ (affine[:3, :3] / steps)
            if np.abs(cosines - np.eye(3)).max() > 1e-3:
                raise DataError(f"affine {affine.tolist()} is sheared: resample the image to a grid with right angles")

    @classmethod
    def of(cls, shape: Sequence[int], spacing: Sequence[float] | None = None, affine: np.ndarray | None = None):
        """The grid of an array of two or three axes.

        spacing: mm, array axis order; None: 1. affine: (4, 4) or, in 2D, (3, 3), in place of the spacing.
        DataError for an affine that is singular or sheared, or tilts a plane, ValueError for another size.
        """
        ndim, placed = len(shape), affine is not None
        if placed:
            given, affine, inside = np.asarray(affine, dtype=float), np.eye(4), [*range(ndim), 3]
            if given.shape == (4, 4) and ndim == 2 and (given[:2, 2].any() or given[2, :2].any()):
                raise DataError(f"affine {given.tolist()} tilts a 2D image out of its plane: give a volume of 1 slice")
            if given.shape not in ((4, 4), (ndim + 1, ndim + 1)):
                raise ValueError(f"affine has shape {given.shape}: give (4, 4)")
            affine[np.ix_(inside, inside)] = given if len(given) == ndim + 1 else given[np.ix_(inside, inside)]
        else:
            affine = np.diag([*(spacing or [1.0] * ndim), *[1.0] * (4 - ndim)])
        return cls(tuple(shape), affine, tuple(range(ndim)), ndim, placed=placed)

    def with_spacing(self, spacing: Sequence[float]) -> "Grid":
        """The grid with other sizes of its voxels (mm, array axis order); ITK sees it as before if it is of a file."""
        if len(spacing) != self.ndim or min(spacing) <= 0:
            raise ValueError(f"spacing is {tuple(spacing)}: give {self.ndim} positive values in mm")
        affine = self.affine.copy()
        affine[:3, list(self.axes)] *= np.asarray(spacing, dtype=float) / self.spacing
        return replace(self, affine=affine, itk=self.itk)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm between voxels, array axis order."""
        return tuple(np.linalg.norm(self.columns[:3, :-1], axis=0).tolist())

    @property
    def columns(self) -> np.ndarray:
        """(4, D + 1): array index (x, 1) to world."""
        return self.affine[:, [*self.axes, 3]]

    @property
    def itk_columns(self) -> np.ndarray:
        """(4, D + 1): array index (x, 1) to the world as ITK places the file."""
        return self.itk[:, [*self.axes, 3]]

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """An array (*shape, …) with the axes of the file: in its order, with those of one voxel."""
        array = np.moveaxis(array, range(self.ndim), np.argsort(np.argsort(self.axes)))
        return np.expand_dims(array, [axis for axis in range(self.file_ndim) if axis not in self.axes])

    def in_file(self, array: np.ndarray) -> np.ndarray:
        """Undoes `to_file`."""
        array = array.squeeze(tuple(axis for axis in range(self.file_ndim) if axis not in self.axes))
        return np.moveaxis(array, np.argsort(np.argsort(self.axes)), range(self.ndim))

    def squeezed(self) -> "Grid":
        """The grid without axes of one voxel, of which a volume may have one."""
        keep = [axis for axis, size in enumerate(self.shape) if size > 1]
        if self.ndim != 3 or len(keep) != 2:
            return self
        return replace(self, shape=tuple(self.shape[i] for i in keep), axes=tuple(self.axes[i] for i in keep))

    def coarser(self, steps: Sequence[int]) -> "Grid":
        """The grid of control points, each the centre of a block of that many voxels along each array axis."""
        shape = tuple(-(-size // step) for size, step in zip(self.shape, steps, strict=True))
        affine, itk = self.affine.copy(), self.itk.copy()
        for matrix in (affine, itk):
            for axis, step in zip(self.axes, steps, strict=True):
                matrix[:3, 3] += matrix[:3, axis] * (step - 1) / 2
                matrix[:3, axis] *= step
        return replace(self, shape=shape, affine=affine, itk=itk)

    def same_place(self, other: "Grid") -> bool:
        """Whether ITK sees both at the same place, to 1 ‰ of a voxel; a grid that is not placed lies anywhere."""
        if not (self.placed and other.placed):
            return True
        step = np.linalg.norm(other.itk_columns[:3, :-1], axis=0).min()
        corners = np.array(np.meshgrid(*[(0, size - 1) for size in self.shape], 1)).reshape(self.ndim + 1, -1)
        apart = (self.itk_columns - other.itk_columns) @ corners
        return bool(np.abs(apart[:3]).max() < 1e-3 * step + 1e-6 * np.abs(other.itk_columns[:3]).max())


def voxel_map(fixed: Grid, moving: Grid, transform: np.ndarray | None = None) -> np.ndarray:
    """(D + 1, D + 1): voxels of the fixed grid to voxels of the moving one, through the world.

    transform: (4, 4), world of the fixed to world of the moving image, mm; None: the same world. Of a slice it is what
    lies in the plane of the moving slice. ValueError if the planes of two slices are tilted against each other.
    """
    wanted = (np.eye(4) if transform is None else transform) @ fixed.columns
    steps, start = moving.columns[:3, :-1], moving.columns[:3, -1]
    wanted[:3, -1] -= start
    matrix = np.eye(fixed.ndim + 1)
    matrix[:-1] = np.linalg.lstsq(steps, wanted[:3], rcond=None)[0]
    off = np.linalg.norm(wanted[:3, :-1] - steps @ matrix[:-1, :-1], axis=0) / np.linalg.norm(wanted[:3, :-1], axis=0)
    if off.max() > TILT:
        raise ValueError("the two slices lie in planes that are tilted against each other: resample one to the other's")
    return matrix


def positions(matrix: np.ndarray, displacement: Tensor) -> Tensor:
    """Voxels of the moving image (N, D, *spatial) at which matrix · (x + u(x)) lies, for each voxel x of the fixed one.

    matrix: of `voxel_map`. displacement: (N, D, *spatial), voxels of the fixed grid.
    """
    axes = [torch.arange(size, dtype=torch.float32, device=displacement.device) for size in displacement.shape[2:]]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement.float()
    m = torch.as_tensor(matrix, dtype=torch.float32, device=displacement.device)
    ndim = displacement.shape[1]
    return torch.einsum("ij,nj...->ni...", m[:ndim, :ndim], x) + m[:ndim, ndim].view(1, -1, *[1] * ndim)
