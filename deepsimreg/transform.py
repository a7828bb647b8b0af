"""What a registration gives: the warp, and what it does to images, labels and points, in memory and on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepsimreg.image import Image, ImageLike, as_image, check_same_grid, positions
from deepsimreg.io import write_image
from deepsimreg.itk import write_field
from deepsimreg.metrics import indexed_labels, segmentation_metrics, smoothness
from deepsimreg.warps import invert, jacobian_determinant, sample_image, sample_labels, warp_points


@dataclass(frozen=True, eq=False)
class Registration:
    """What `register` found.

    displacement: (N, D, *spatial), voxels of the fixed grid, array axis order: what lies at the fixed voxel x lies, in
    the world of the moving image, at x + u(x). velocity: of `Optimised`. losses: of every step of the optimisation.
    seconds: of the steps of the call, by name, and `total`. moving, fixed: the images. matrix: (D + 1, D + 1), fixed
    voxels to moving voxels before the displacement. transform: (4, 4), of the affine pre-alignment, world to world.
    moving_labels, fixed_labels: those that were given. similarity, lam: its name, and the weight λ of the regulariser;
    None without optimisation. steps: of each of its levels.
    """

    displacement: Tensor
    velocity: Tensor | None
    losses: tuple[float, ...]
    seconds: Mapping[str, float]
    moving: Image = field(repr=False)
    fixed: Image = field(repr=False)
    matrix: np.ndarray = field(repr=False)
    transform: np.ndarray | None = field(repr=False, default=None)
    moving_labels: Image | None = field(repr=False, default=None)
    fixed_labels: Image | None = field(repr=False, default=None)
    similarity: str | None = None
    lam: float | None = None
    steps: tuple[int, ...] = ()

    @cached_property
    def moved(self) -> Tensor:
        """The moving image on the fixed grid, (N, C, *spatial), in its own grey values, linear, as ITK resamples it."""
        return self._sampled(self.moving.data.float())

    @cached_property
    def moved_labels(self) -> Tensor | None:
        """The moving labels on the fixed grid, (N, 1, *spatial), nearest; None if none were given."""
        return None if self.moving_labels is None else self.warp_labels(self.moving_labels)

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """Folds and SD log J of the first image, and Dice if labels of both images were given; computed when asked."""
        found = smoothness(self.displacement[:1])
        if self.moved_labels is None or self.fixed_labels is None:
            return found
        return found | segmentation_metrics(*indexed_labels(self.moved_labels, self.fixed_labels.data))

    @cached_property
    def jacobian(self) -> Tensor:
        """Determinant of x → x + u(x), (N, *spatial): 1 keeps volume, 0 or less folds."""
        return jacobian_determinant(self.displacement)

    @cached_property
    def inverse(self) -> Tensor:
        """The displacement v with v(x) = −u(x + v(x)), (N, D, *spatial), voxels of the fixed grid."""
        return invert(self.displacement)

    @cached_property
    def _positions(self) -> Tensor:
        return positions(self.matrix, self.displacement)

    def _sampled(self, data: Tensor) -> Tensor:
        return sample_image(data.to(self.displacement.device), self._positions)

    def warp(self, image: ImageLike) -> Tensor:
        """Another image on the moving image's grid, pulled onto the fixed one, linear: (N, C, *spatial)."""
        return self._sampled(self._same_grid(image).data)

    def warp_labels(self, labels: ImageLike) -> Tensor:
        """Integer labels on the moving image's grid, pulled onto the fixed one, nearest; keeps the dtype."""
        return sample_labels(self._same_grid(labels).data.to(self.displacement.device), self._positions)

    def warp_points(self, points: Tensor | np.ndarray) -> Tensor:
        """Points (P, D) of the fixed image, voxels, to where they lie in the moving image, voxels: (P, D)."""
        points = torch.as_tensor(points, dtype=torch.float32, device=self.displacement.device)
        matrix = torch.as_tensor(self.matrix, dtype=torch.float32, device=self.displacement.device)
        ndim = self.fixed.ndim
        return warp_points(points[None], self.displacement[:1])[0] @ matrix[:ndim, :ndim].T + matrix[:ndim, ndim]

    def save(self, folder: str | Path) -> list[Path]:
        """Write moved, labels and the field for ITK, ANTs and Slicer; in NIfTI, on the fixed image's grid.

        Returns:
            moved.nii.gz, field.nii.gz, and moved_labels.nii.gz if labels were given.

        Raises:
            ValueError: several images or channels; nothing is written then.
        """
        if self.moved.shape[:2] != (1, 1):
            raise ValueError(f"{len(self.moved)} images of {self.moved.shape[1]} channels: save one of one channel")
        folder, affine = Path(folder), self.fixed.affine
        written = [folder / "moved.nii.gz", folder / "field.nii.gz"]
        write_image(written[0], _as_file(self.moved, self.moving.dtype), affine=affine)
        world = np.eye(4) if self.transform is None else self.transform
        write_field(written[1], self.displacement, affine, world @ affine)
        if self.moved_labels is not None:
            written.append(folder / "moved_labels.nii.gz")
            write_image(written[-1], self.moved_labels[0, 0].cpu().numpy(), affine=affine)
        return written

    def _same_grid(self, image: ImageLike | Image) -> Image:
        other = as_image(image, "image")
        check_same_grid(other, self.moving)
        return other


def _as_file(moved: Tensor, dtype: np.dtype) -> np.ndarray:
    """The first image as an array of the moving image's dtype; whole numbers are rounded."""
    array = moved[0, 0].cpu().numpy()
    if dtype.kind in "iub":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return np.clip(np.rint(array), low, high).astype(np.uint8 if dtype.kind == "b" else dtype)
    return array.astype(np.float32)
