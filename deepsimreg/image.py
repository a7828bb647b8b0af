"""What `register` takes for an image: a file, an array or an object of another library, with its place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from deepsimreg.grid import Grid
from deepsimreg.io import itk_affine, itk_array, read_image

ImageLike = str | Path | np.ndarray | Tensor | nibabel.spatialimages.SpatialImage | Any
ROUNDED = 1e-3  # how far a label that is stored as a float, or scaled by its header, may be from an integer
EXACT = {torch.float32: 2**24, torch.float64: 2**53}  # up to there all integers are told apart
LARGEST = 2.0**126  # of grey values: float32 holds the difference of two
_UNITS = {"micron": 1e-3, "meter": 1e3}


@dataclass(frozen=True, eq=False)
class Image:
    """Values and the grid that they lie on.

    data: (N, C, *spatial). name: what errors call it. dtype: of the source. from_file: it was read from one.
    channel_dtypes: of the sources of its channels, if it is made of several.
    """

    data: Tensor
    grid: Grid
    name: str
    dtype: np.dtype
    from_file: bool = False
    channel_dtypes: tuple[np.dtype, ...] = ()

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    @property
    def shape(self) -> torch.Size:
        """Voxels along each axis."""
        return self.data.shape[2:]

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm between voxels, array axis order."""
        return self.grid.spacing

    @property
    def unit(self) -> str:
        """Of the spacing: mm, or voxels where neither a file nor a caller gave it."""
        return "mm" if self.grid.placed or set(self.spacing) != {1.0} else "voxels"


def as_image(
    source: ImageLike | Image,
    what: str,
    spacing: Sequence[float] | None = None,
    channel: int | None = None,
    page: int | None = None,
) -> Image:
    """An image from whatever holds one. A volume of one slice is a plane that keeps its place in the volume's world.

    Args:
        source: path of a file (`deepsimreg.io`; a TIFF of several pages is a volume); an image of nibabel, SimpleITK or
            ANTs; an array (H, W) or (X, Y, Z); or a tensor of that shape, or (N, C, *spatial).
        what: "moving" or "fixed", for errors.
        spacing: mm, array axis order, of a source whose header does not place it: arrays, TIFF, PNG; None: what a
            TIFF's tags say, or 1.
        channel, page: of a file that holds several.

    Raises:
        DataError: a file that cannot be read.
        ValueError: a shape that is no image, colours, complex numbers, an empty image, NaN, infinite values, or such
            that float32 does not hold.
    """
    if isinstance(source, Image):
        return source
    array, grid, name = _read(source, what, channel, page)
    dtype = np.dtype(str(array.dtype).removeprefix("torch.").replace("bfloat16", "float32"))
    if dtype.kind not in "buif":
        raise ValueError(f"{name} holds {dtype} values: give real grey values, such as the magnitude")
    if isinstance(array, Tensor):
        data = array.clone() if array.is_inference() else array
        data = data.float() if data.dtype in (torch.bfloat16, torch.float16) else data
    else:
        data = torch.from_numpy(np.require(array, _plain(dtype), ["C", "W"]))
    if data.ndim in (2, 3):
        data = data[None, None]
    elif data.ndim not in (4, 5) or not isinstance(source, Tensor):
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}: give a plane (H, W), a volume (X, Y, Z), or a tensor "
            "(N, C, H, W) or (N, C, X, Y, Z)"
        )
    if not data.numel():
        raise ValueError(f"{name} is empty, its shape is {tuple(array.shape)}: give an image with voxels")
    if data.is_floating_point() and not data.abs().max() <= LARGEST:  # NaN is not
        what = "values beyond float32" if torch.isfinite(data).all() else "NaN or inf"
        raise ValueError(f"{name} contains {what}; fix the image first")
    grid = grid or Grid.of(data.shape[2:])
    if spacing is not None and not grid.placed:
        try:
            grid = grid.with_spacing(spacing)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    squeezed = grid.squeezed()
    return Image(data.view(*data.shape[:2], *squeezed.shape), squeezed, name, dtype, isinstance(source, str | Path))


def as_labels(source: ImageLike | Image, what: str, **options) -> Image:
    """Integer labels of any values, negative ones, too; options as `as_image`.

    Floats that are integers up to `ROUNDED`, as headers that scale make them, are rounded. ValueError for others, such
    as probabilities.
    """
    image = as_image(source, what, **options)
    if not image.data.is_floating_point():
        return image
    rounded = image.data.round()
    if (image.data - rounded).abs().max() > ROUNDED:
        raise ValueError(f"{image.name} holds values that are no integers: give labels, not probabilities")
    largest = rounded.abs().max().item()
    if largest > EXACT[rounded.dtype]:
        raise ValueError(f"{image.name} holds labels up to {largest:g} as floats, which round them: store integers")
    return replace(image, data=rounded.long(), dtype=np.dtype(np.int32 if largest < 2**31 else np.int64))


def check_same_grid(image: Image, reference: Image) -> None:
    """ValueError unless the image lies on the grid of the reference: its shape, and its place where both have one."""
    if image.shape != reference.shape:
        raise ValueError(
            f"{image.name} has shape {tuple(image.shape)}, {reference.name} {tuple(reference.shape)}: "
            f"give one on the grid of {reference.name}"
        )
    if not image.grid.same_place(reference.grid):
        raise ValueError(
            f"{image.name} lies elsewhere than {reference.name}, their headers differ: resample it onto that grid, or "
            "mend its header"
        )


def as_mask(source: ImageLike | Image, what: str, image: Image, **options) -> Image:
    """What is more than 0, as 1, on the grid of an image; options as `as_image`. ValueError if nothing is."""
    mask = as_image(source, what, **options)
    check_same_grid(mask, image)
    data = (mask.data[:, :1] > 0).float()
    if not data.flatten(1).any(1).all():
        raise ValueError(f"{mask.name} is empty: nothing would count; give 1 where voxels count")
    return replace(mask, data=data)


def unit_range(image: Image, mask: Image | None = None) -> Tensor:
    """Grey values in [0, 1], float32: as they are if they lie there and the highest is above 0.5, else scaled from
    their 1 % and 99 % quantiles.

    mask: the quantiles are those of its voxels. ValueError for a channel with one value only.
    """
    data = image.data.float()
    flat = data.flatten(2)
    if mask is not None:
        if len(mask.data) > 1 or len(data) > 1:
            raise ValueError(f"{mask.name}: masks are for one pair of images, not for a batch")
        flat = flat[:, :, mask.data.flatten() > 0]
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


def _read(
    source: ImageLike, what: str, channel: int | None, page: int | None
) -> tuple[np.ndarray | Tensor, Grid | None, str]:
    """Values, grid or None, and what errors call them."""
    if isinstance(source, str | Path):
        return *read_image(Path(source).expanduser(), channel, page), f"{what} {source}"
    if isinstance(source, nibabel.spatialimages.SpatialImage):
        array, affine = np.asarray(source.dataobj), source.affine.copy()
        affine[:3] *= _UNITS.get(getattr(source.header, "get_xyzt_units", lambda: ("mm",))()[0], 1.0)
    elif getattr(source, "has_components", False) or getattr(source, "GetNumberOfComponentsPerPixel", int)() > 1:
        raise ValueError(f"{what} holds several values a voxel, colours or vectors: give one channel")
    elif type(source).__module__.startswith("SimpleITK"):
        array, affine = itk_array(source), itk_affine(source.GetOrigin(), source.GetSpacing(), source.GetDirection())
    elif type(source).__module__.startswith("ants"):
        array, affine = source.numpy(), itk_affine(source.origin, source.spacing, source.direction.ravel())
    else:
        return source, None, what
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array, Grid.of(array.shape, affine=affine), what


def _plain(dtype: np.dtype) -> np.dtype:
    """A dtype of this machine's byte order that torch computes with, and that holds the values."""
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(f"i{min(2 * dtype.itemsize, 8)}")
    if dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize in (4, 8)):
        return dtype.newbyteorder("=")
    return np.dtype(np.uint8 if dtype.kind == "b" else np.float32)
