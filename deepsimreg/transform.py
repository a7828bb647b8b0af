"""What a registration gives: the warp, and what it does to images, labels and points, in memory and on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepsimreg.alignment import write_affine
from deepsimreg.files import OUTPUTS
from deepsimreg.grid import positions
from deepsimreg.image import Image, ImageLike, as_image, as_labels, check_same_grid
from deepsimreg.io import write_image
from deepsimreg.itk import write_field
from deepsimreg.metrics import indexed_labels, segmentation_metrics, smoothness
from deepsimreg.optimise import SQUARINGS
from deepsimreg.warps import (
    expand,
    expansion,
    grid_step,
    integrate,
    inverse_residual,
    invert,
    jacobian_determinant,
    sample_image,
    sample_labels,
    warp_points,
)


@dataclass(frozen=True, eq=False)
class Registration:
    """What `register` found.

    displacement: (N, D, *spatial), voxels of the fixed grid, array axis order: what lies at the fixed voxel x lies, in
    the world of the moving image, at x + u(x). velocity: of `Optimised`. losses: of every step of the optimisation.
    seconds: of the steps of the call, by name, and `total`. moving, fixed: the images. matrix: (D + 1, D + 1), fixed
    voxels to moving voxels before the displacement. transform: (4, 4), of the affine pre-alignment, world to world.
    moving_labels, fixed_labels: those that were given. fill: grey value outside the moving image; None: its lowest.
    background: label outside. similarity, lam: its name, and the weight λ of the regulariser; None without
    optimisation. steps: of each of its levels.
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
    fill: float | None = None
    background: int = 0
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
        """Folds and SD log J of the first image, and Dice if labels of both images were given; computed when asked.

        Folds and SD log J are of the deformation: an affine pre-alignment is not in them.
        """
        found = smoothness(self.displacement[:1])
        if self.moved_labels is None or self.fixed_labels is None:
            return found
        labels = indexed_labels(self.moved_labels, self.fixed_labels.data, self.background)
        return found | segmentation_metrics(*labels)

    @cached_property
    def jacobian(self) -> Tensor:
        """Determinant of x → x + u(x), (N, *spatial): 1 keeps volume, 0 or less folds; without the pre-alignment."""
        return jacobian_determinant(self.displacement)

    @cached_property
    def inverse(self) -> Tensor:
        """The displacement v with v(x) = −u(x + v(x)), (N, D, *spatial), voxels of the fixed grid."""
        return invert(self.displacement)

    def partway(self, fraction: float) -> Tensor:
        """The displacement of exp(fraction · v), on the way from rest to the warp: (N, D, *spatial), voxels.

        v is the velocity; of a registration without one, it is fraction · u.
        """
        if self.velocity is None:
            return fraction * self.displacement
        points, shape = self.velocity.shape[2:], self.displacement.shape[2:]
        steps = [grid_step(size, count) for size, count in zip(shape, points, strict=True)]
        flow = integrate(fraction * self.velocity, SQUARINGS)
        flow = flow * flow.new_tensor(steps).view(1, -1, *[1] * len(steps))
        return expand(flow, [expansion(*axis).to(flow) for axis in zip(points, steps, shape, strict=True)])

    @property
    def inverse_residual(self) -> Mapping[str, float]:
        """What is left of there and back by `inverse`: `inverse_residual` mean, `inverse_residual_max`, mm."""
        mean, most = inverse_residual(self.displacement, self.inverse, self.fixed.spacing)
        return {"inverse_residual": mean, "inverse_residual_max": most}

    @cached_property
    def _positions(self) -> Tensor:
        return positions(self.matrix, self.displacement)

    def _sampled(self, data: Tensor) -> Tensor:
        lowest = data.amin(dim=(0, *range(2, data.ndim)), keepdim=True).to(self.displacement.device)
        outside = lowest if self.fill is None else self.fill
        return sample_image(data.to(self.displacement.device), self._positions, outside)

    def warp(self, image: ImageLike) -> Tensor:
        """Another image on the moving image's grid, pulled onto the fixed one, linear: (N, C, *spatial)."""
        return self._sampled(self._same_grid(as_image(image, "image")).data.float())

    def warp_labels(self, labels: ImageLike) -> Tensor:
        """Integer labels on the moving image's grid, pulled onto the fixed one, nearest; keeps the dtype."""
        data = self._same_grid(as_labels(labels, "labels")).data.to(self.displacement.device)
        return sample_labels(data, self._positions, self.background)

    def warp_points(self, points: Tensor | np.ndarray) -> Tensor:
        """Points (P, D) of the fixed image, voxels, to where they lie in the moving image, voxels: (P, D)."""
        points = torch.as_tensor(points, dtype=torch.float32, device=self.displacement.device)
        matrix = torch.as_tensor(self.matrix, dtype=torch.float32, device=self.displacement.device)
        ndim = self.fixed.ndim
        return warp_points(points[None], self.displacement[:1])[0] @ matrix[:ndim, :ndim].T + matrix[:ndim, ndim]

    def save(self, folder: str | Path, outputs: Sequence[str] = OUTPUTS) -> list[Path]:
        """Write what the registration has found, in NIfTI, where ITK, ANTs and Slicer expect it.

        moved (of further channels moved1, …), moved_labels: on the fixed image's grid, in the types of their sources.
        field: the whole warp, the pre-alignment included, from the fixed to the moving image's world. inverse_field:
        back, on the moving image's grid. affine.mat: the pre-alignment alone. velocity: on its control grid, mm.
        jacobian: the determinant of the deformation, the pre-alignment left out.

        Args:
            folder: is made.
            outputs: some of `OUTPUTS`; what this registration does not have is left out.

        Returns:
            The files.

        Raises:
            ValueError: several pairs, or an unknown output; nothing is written then.
        """
        unknown = set(outputs) - set(OUTPUTS)
        if unknown:
            raise ValueError(f"unknown output {', '.join(sorted(unknown))}: there is {', '.join(OUTPUTS)}")
        if len(self.moving.data) > 1:
            raise ValueError(f"{len(self.moving.data)} images: save one pair at a time")
        mine = {"moved_labels": self.moving_labels, "affine": self.transform, "velocity": self.velocity}
        files = {
            Path(folder, name + (".mat" if name == "affine" else ".nii.gz")): getattr(self, f"_write_{name}")
            for name in outputs
            if mine.get(name, self) is not None
        }
        for channel in range(1, self.moving.data.shape[1] if "moved" in outputs else 0):
            files[Path(folder, f"moved{channel}.nii.gz")] = partial(self._write_moved, channel=channel)
        for path, write in files.items():
            write(path)
        return list(files)

    def _write_moved(self, path: Path, channel: int = 0) -> None:
        dtype = (self.moving.channel_dtypes or [self.moving.dtype] * (channel + 1))[channel]
        write_image(path, as_type(self.moved[:, channel:], dtype), self.fixed.grid)

    def _write_moved_labels(self, path: Path) -> None:
        write_image(path, as_type(self.moved_labels, self.moving_labels.dtype), self.fixed.grid)

    def _write_field(self, path: Path) -> None:
        write_field(path, self.displacement, self.fixed.grid, self.moving.grid, self.matrix)

    def _write_inverse_field(self, path: Path) -> None:
        """v lies on the fixed grid: at the moving voxel y, the linear part of the matrix times v(matrix⁻¹ y)."""
        back, ndim, grid = np.linalg.inv(self.matrix), self.fixed.ndim, self.moving.grid
        still = torch.zeros(1, ndim, *grid.shape, device=self.displacement.device)
        found = sample_image(self.inverse, positions(back, still)).double()
        linear = torch.as_tensor(self.matrix[:ndim, :ndim], device=found.device)
        write_field(path, torch.einsum("ij,nj...->ni...", linear, found), grid, self.fixed.grid, back)

    def _write_affine(self, path: Path) -> None:
        write_affine(path, self.transform, self.fixed.grid.file_ndim)

    def _write_velocity(self, path: Path) -> None:
        shape = self.velocity.shape[2:]
        steps = [grid_step(size, points) for size, points in zip(self.fixed.shape, shape, strict=True)]
        write_field(path, self.velocity, self.fixed.grid.coarser(steps))

    def _write_jacobian(self, path: Path) -> None:
        write_image(path, self.jacobian[0].cpu().numpy(), self.fixed.grid)

    def _same_grid(self, image: Image) -> Image:
        check_same_grid(image, self.moving)
        return image


def as_type(values: Tensor, dtype: np.dtype) -> np.ndarray:
    """The first image as an array of a source's dtype; what becomes an integer is rounded."""
    array = values[0, 0].cpu().numpy()
    dtype = np.dtype({"b": np.uint8, "f": np.float32}.get(dtype.kind, dtype))
    if dtype.kind in "iu" and array.dtype.kind == "f":
        array = np.clip(np.rint(array.astype(np.float64)), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return array.astype(dtype.newbyteorder("="))
