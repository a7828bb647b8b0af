"""What `register` takes for an image: a path, an array, a tensor or a nibabel image, with the place of its voxels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from deepsimreg.io import read_image
from deepsimreg.itk import grid_affine
from deepsimreg.learn2reg import read_disp

ImageLike = str | Path | np.ndarray | Tensor | nibabel.spatialimages.SpatialImage


@dataclass(frozen=True, eq=False)
class Image:
    """Values and the grid that they lie on.

    data: (N, C, *spatial). affine: (4, 4), voxel to world, RAS, mm. name: what errors call it. dtype: of the source.
    placed: the affine is the source's own.
    """

    data: Tensor
    affine: np.ndarray
    name: str
    dtype: np.dtype
    placed: bool = False

    @property
    def ndim(self) -> int:
        return self.data.ndim - 2

    @property
    def shape(self) -> torch.Size:
        """Voxels along each axis."""
        return self.data.shape[2:]

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm between voxels, array axis order."""
        return tuple(float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0)[: self.ndim])

    @property
    def unit(self) -> str:
        """Of the spacing: mm, or voxels where neither a file nor a caller gave it."""
        return "mm" if self.placed or set(self.spacing) != {1.0} else "voxels"


def as_image(source: ImageLike | Image, what: str, spacing: Sequence[float] | None = None) -> Image:
    """An image from whatever holds one.

    Args:
        source: path of a NIfTI or TIFF file (a TIFF of several pages is a volume); a nibabel image; an array (H, W) or
            (X, Y, Z); or a tensor of that shape, or (N, C, *spatial).
        what: "moving" or "fixed", for errors.
        spacing: mm, array axis order, of a source that has none; None: 1.

    Raises:
        DataError: a file that cannot be read.
        ValueError: a shape that is no image, an empty image, or values that are NaN or infinite.
    """
    if isinstance(source, Image):
        return source
    array, affine, name = _read(source, what)
    dtype = np.dtype(str(array.dtype).removeprefix("torch.").replace("bfloat16", "float32"))
    if isinstance(array, Tensor):
        data = array.clone() if array.is_inference() else array
        data = data.float() if data.dtype in (torch.bfloat16, torch.float16) else data
    else:
        data = torch.from_numpy(np.ascontiguousarray(array, _plain(dtype)))
    if data.ndim in (2, 3):
        data = data[None, None]
    elif data.ndim not in (4, 5) or not isinstance(source, Tensor):
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}: give a plane (H, W), a volume (X, Y, Z), or a tensor "
            "(N, C, H, W) or (N, C, X, Y, Z)"
        )
    if not data.numel():
        raise ValueError(f"{name} is empty, its shape is {tuple(array.shape)}: give an image with voxels")
    if data.is_floating_point() and not torch.isfinite(data).all():
        raise ValueError(f"{name} contains NaN or inf; fix the image first")
    placed = affine is not None
    if not placed:
        steps = [1.0] * (data.ndim - 2) if spacing is None else [float(step) for step in spacing]
        if len(steps) != data.ndim - 2 or min(steps) <= 0:
            raise ValueError(f"spacing of {name} is {tuple(steps)}: give {data.ndim - 2} positive values in mm")
        affine = np.diag([*steps, *[1.0] * (4 - len(steps))])
    return Image(data, np.asarray(affine, dtype=float), name, dtype, placed)


def check_same_grid(image: Image, reference: Image) -> None:
    """ValueError unless the image lies on the grid of the reference: its shape, and its affine where both have one."""
    if image.shape != reference.shape:
        raise ValueError(
            f"{image.name} has shape {tuple(image.shape)}, {reference.name} {tuple(reference.shape)}: "
            f"give one on the grid of {reference.name}"
        )
    if image.placed and reference.placed and not np.allclose(image.affine, reference.affine, atol=1e-3):
        raise ValueError(
            f"{image.name} lies elsewhere than {reference.name}, their affines differ: resample it onto that grid, or "
            "mend its header"
        )


def unit_range(image: Image) -> Tensor:
    """Grey values in [0, 1], float32: as they are if they lie there and the highest is above 0.5, else scaled from
    their 1 % and 99 % quantiles.

    Raises:
        ValueError: a channel with one value only.
    """
    data = image.data.float()
    flat = data.flatten(2)
    low, high = flat.amin(2), flat.amax(2)
    if (low == high).any():
        value = low[low == high][0].item()
        raise ValueError(f"{image.name} is constant, every voxel is {value:g}: there is nothing to register")
    if low.min() >= 0 and 0.5 < high.max() <= 1:
        return data
    ends = np.quantile(flat.cpu().numpy(), (0.01, 0.99), axis=2)
    bottom, top = (torch.as_tensor(end, dtype=data.dtype, device=data.device) for end in ends)
    narrow = top <= bottom  # nearly all voxels have one value: take the extremes
    bottom, top = torch.where(narrow, low, bottom), torch.where(narrow, high, top)
    shape = (*bottom.shape, *[1] * image.ndim)
    return ((data - bottom.view(shape)) / (top - bottom).view(shape)).clamp(0, 1)


def voxel_map(fixed: Image, moving: Image, transform: np.ndarray | None = None) -> np.ndarray:
    """(D + 1, D + 1): voxels of the fixed grid to voxels of the moving one, through the world.

    transform: (4, 4), world of the fixed to world of the moving image, mm; None: the same world.
    """
    ndim = fixed.ndim
    world = np.eye(4) if transform is None else transform
    inside = np.ix_([*range(ndim), 3], [*range(ndim), 3])
    there = grid_affine(moving.affine, ndim)
    return np.linalg.solve(there, world[inside] @ grid_affine(fixed.affine, ndim))


def positions(matrix: np.ndarray, displacement: Tensor) -> Tensor:
    """Voxels of the moving image (N, D, *spatial) at which matrix · (x + u(x)) lies, for each voxel x of the fixed one.

    matrix: of `voxel_map`. displacement: (N, D, *spatial), voxels of the fixed grid.
    """
    axes = [torch.arange(size, dtype=torch.float32, device=displacement.device) for size in displacement.shape[2:]]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement.float()
    m = torch.as_tensor(matrix, dtype=torch.float32, device=displacement.device)
    ndim = displacement.shape[1]
    return torch.einsum("ij,nj...->ni...", m[:ndim, :ndim], x) + m[:ndim, ndim].view(1, -1, *[1] * ndim)


def antialiased(values: Tensor, matrix: np.ndarray) -> Tensor:
    """Values (N, C, *spatial), smoothed along the axes on which a coarser grid will sample them.

    matrix: (D + 1, D + 1), voxels of that grid to voxels of the values; f, the length of its row, is how many voxels a
    step of the grid spans along an axis. The Gaussian's σ = √((f² − 1) / (8 ln 2)) voxels makes a point of width 1 one
    of width f (Cardoso et al., Scale factor point spread function matching, MICCAI 2015).
    """
    ndim = values.ndim - 2
    spans = np.linalg.norm(matrix[:ndim, :ndim], axis=1)
    sigma = np.sqrt(np.maximum(spans**2 - 1, 0) / (8 * np.log(2)))
    if sigma.max() < 0.05:
        return values
    smooth = gaussian_filter(values.cpu().numpy(), (0, 0, *sigma), mode="nearest")
    return torch.from_numpy(smooth).to(values)


def field_positions(path: str | Path, moving: Image) -> tuple[Tensor, np.ndarray]:
    """Voxels of the moving image at which a field of ITK or Learn2Reg looks, and the affine of its grid.

    Returns:
        (1, D, *spatial), and (4, 4).

    Raises:
        DataError: the file is no displacement field.
        ValueError: it has another number of axes than the image.
    """
    displacement, affine = read_disp(path, moving.affine)
    if displacement.ndim - 2 != moving.ndim:
        raise ValueError(f"{path} has {displacement.ndim - 2} axes, {moving.name} {moving.ndim}: give a field for it")
    return positions(np.eye(moving.ndim + 1), displacement), affine


def _read(source: ImageLike, what: str) -> tuple[np.ndarray | Tensor, np.ndarray | None, str]:
    """Values, affine or None, and what errors call them."""
    if isinstance(source, nibabel.spatialimages.SpatialImage):
        array, affine, name = np.asarray(source.dataobj), source.affine, what
    elif isinstance(source, str | Path):
        array, _, affine = read_image(source)
        name = f"{what} {source}"
        if affine is None and array.ndim == 3 and array.shape[-1] in (3, 4):
            raise ValueError(f"{name} is a colour image, {array.shape}: save it in grey values")
    else:
        return source, None, what
    while affine is not None and array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array, affine, name


def _plain(dtype: np.dtype) -> np.dtype:
    """A dtype of this machine's byte order that torch computes with, and that holds the values."""
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(f"i{min(2 * dtype.itemsize, 8)}")
    if dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize in (4, 8)):
        return dtype.newbyteorder("=")
    return np.dtype(np.uint8 if dtype.kind == "b" else np.float32)
