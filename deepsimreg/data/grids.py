"""Where the voxels of a file lie; images of several files in one orientation, one size and one resolution."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import from_matvec
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from deepsimreg.data.base import Sample
from deepsimreg.io import image_affine, image_shape
from deepsimreg.warps import pooled, pooled_least


def header(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A stand-in for the array of a file, without memory, and its affine, None for TIFF; from the header alone."""
    return np.broadcast_to(np.uint8(0), image_shape(path)), image_affine(path)


def turned(array: np.ndarray, affine: np.ndarray | None, axes: np.ndarray | None):
    """The array and its affine with axes swapped and flipped to run as `axes` (of `io_orientation`), and their order.

    A plane gets a third axis. Where there is no affine, nothing changes.
    """
    if affine is None or axes is None:
        return array, affine, range(array.ndim)
    turn = ornt_transform(io_orientation(affine), axes)
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    order = (*np.argsort(turn[:, 0]), *range(3, array.ndim))
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape[:3]), order


def distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """How many voxels of a grid of that shape two affines lie apart, at most and along one axis."""
    apart = np.linalg.solve(affine, other) - np.eye(4)
    return float((np.abs(apart[:3]) @ [*shape[:3], 1]).max())


def plane(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape without trailing axes of length one: a slice may be stored as (X, Y, 1)."""
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def padded_sample(
    image: np.ndarray,
    label: np.ndarray,
    shape: Sequence[int],
    name: str,
    spacing: tuple[float, ...],
    affine: np.ndarray | None,
    mask: np.ndarray | None = None,
) -> Sample:
    """A sample of that shape: padded with edge values on both sides where smaller, cut at the end where larger.

    The affine's origin moves with the padding, so each voxel keeps its world coordinate.
    """
    cut = tuple(slice(side) for side in shape)
    missing = np.subtract(shape, image[cut].shape)
    padding = np.stack([missing // 2, missing - missing // 2], axis=1)
    image, label, mask = (
        None if array is None else torch.from_numpy(np.pad(array[cut].astype(dtype), padding, mode="edge"))[None]
        for array, dtype in ((image, np.float32), (label, np.uint8), (mask, np.uint8))
    )
    return Sample(image, label, name, tuple(spacing), _regridded(affine, -padding[:, 0]), mask)


def downsampled(sample: Sample, factor: int) -> Sample:
    """Blocks of factor^D voxels become one: the mean of the image, the most frequent class (the lowest of equals), and
    what counts only if all of its voxels do.

    All lie at the centre of the block, as the affine says.
    """
    image, classes = pooled(sample.image[None], factor)[0], sample.label.unique()
    fractions = torch.stack([pooled((sample.label == index).float()[None], factor)[0] for index in classes])
    label = classes[fractions.argmax(dim=0)]
    affine = _regridded(sample.affine, np.full(image.ndim - 1, (factor - 1) / 2), factor)
    mask = sample.mask
    if mask is not None:
        mask = pooled_least(mask[None].float(), [factor] * (mask.ndim - 1))[0].to(mask.dtype)
    return Sample(image, label, sample.name, tuple(step * factor for step in sample.spacing), affine, mask)


def _regridded(affine: np.ndarray | None, first: np.ndarray, step: int = 1) -> np.ndarray | None:
    """The affine of a grid that starts at voxel `first` (D,) of the one given, in steps of `step` of its voxels."""
    absent = 3 - len(first)  # the axes that a plane does not have stay as they are
    scale, shift = np.diag([float(step)] * len(first) + [1.0] * absent), np.pad(first, (0, absent))
    return None if affine is None else affine @ from_matvec(scale, shift)
