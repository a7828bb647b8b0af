"""Labelled images in files: read when they are asked for, brought to one size, the last few kept in memory.

What phc-u373, platelet-em, brain-mri, neurite-oasis and a dataset of one's own have in common. An image is a NIfTI
volume, a TIFF plane, or a page of a TIFF stack; headers are checked at the start, voxels when an image is read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from deepsimreg.data.base import Dataset, LazySequence, Sample, check_split
from deepsimreg.errors import DataError
from deepsimreg.io import image_shape, read_image, read_page
from deepsimreg.warps import pooled

CHUNK = 1 << 20
LARGE = 1 << 30  # bytes from which hashing shows its progress


class Files(NamedTuple):
    """The files of one image; `page` of both, if they are stacks."""

    image: Path
    label: Path
    page: int | None = None


class LabelledFiles(Dataset):
    """A dataset whose images lie in files.

    A subclass sets the facts of `Dataset` and calls `open`; it may replace `intensities` and `class_indices`.
    """

    def open(
        self,
        files: Mapping[str, Files],
        splits: Mapping[str, Sequence[str]],
        downsample: int = 1,
        cache: int = 16,
        spacing: Sequence[float] | None = None,
    ) -> None:
        """Check the headers and keep the tables.

        Args:
            files: name → its files.
            splits: split → names.
            downsample: whole number; the mean of so many voxels along each axis becomes one (labels: the middle one's).
            cache: images that are kept in memory.
            spacing: mm, array axis order; None takes that of the files, which must agree.

        Raises:
            DataError: a file is missing, damaged, or of another shape than its label; an empty split.
        """
        if downsample < 1:
            raise DataError(f"downsample is {downsample}: give a whole number from 1")
        for split, names in splits.items():
            if not names:
                raise DataError(f"{self.name} has no images for the split {split}: give it some, or fetch them again")
        self.files, self.splits, self.downsample = dict(files), {k: list(v) for k, v in splits.items()}, downsample
        extents, shapes = [], {}
        for name, (image, label, page) in self.files.items():
            for path in (image, label):
                if path not in shapes:
                    shapes[path] = image_shape(path)
            if shapes[image] != shapes[label]:
                raise DataError(
                    f"{label} has shape {shapes[label]}, its image {image.name} {shapes[image]}: resample the label to "
                    "the image, or fetch both again"
                )
            shape = _plane(shapes[image]) if page is None else shapes[image][1:]
            if page is not None and not 0 <= page < shapes[image][0]:
                raise DataError(f"{image} has {shapes[image][0]} pages, {name} would be page {page}: fetch it again")
            if len(shape) not in (2, 3):
                raise DataError(f"{image} has shape {shape}: give planes or volumes")
            extents.append(shape)
        if len({len(shape) for shape in extents}) > 1:
            raise DataError(f"{self.name} mixes planes and volumes: give one kind")
        self.shape = tuple(int(side) // downsample for side in np.max(extents, axis=0))
        self._given = None if spacing is None else tuple(map(float, spacing))
        if self._given is not None and len(self._given) != len(self.shape):
            raise DataError(f"spacing has {len(self._given)} values for {len(self.shape)} axes: give one in mm each")
        self._cached = lru_cache(maxsize=cache)(self._read)
        first = next(iter(self.files))
        self.spacing = self._cached(first).spacing

    def samples(self, split: str) -> Sequence[Sample]:
        names = self.splits[check_split(split)]
        return LazySequence(len(names), lambda index: self._cached(names[index]))

    def sample(self, name: str) -> Sample:
        """The image of that name."""
        return self._cached(name)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        paths = list(dict.fromkeys(path for files in self.files.values() for path in files[:2]))
        size = sum(path.stat().st_size for path in paths)
        with tqdm(total=size, desc="fingerprint", unit="B", unit_scale=True, disable=size < LARGE, leave=False) as bar:
            for path in paths:
                digest.update(path.name.encode())
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        digest.update(chunk)
                        bar.update(len(chunk))
        digest.update(f"{sorted(self.splits.items())} {self.downsample}".encode())
        return digest.hexdigest()[:16]

    def intensities(self, image: np.ndarray, path: Path) -> np.ndarray:
        """Grey values in [0, 1] of what a file holds; as they are, if not replaced.

        Raises:
            DataError: values outside [0, 1].
        """
        if image.min() < 0 or image.max() > 1:
            raise DataError(f"{path} has values from {image.min():g} to {image.max():g}: they must lie in [0, 1]")
        return image

    def class_indices(self, label: np.ndarray, path: Path) -> np.ndarray:
        """Class indices of what a label file holds; as they are, if not replaced.

        Raises:
            DataError: a value that is no class.
        """
        highest = len(self.classes) - 1
        if not np.isin(label, range(highest + 1)).all():
            raise DataError(
                f"{path} has labels from {label.min()} to {label.max()}: only the integers 0 to {highest} "
                f"({', '.join(self.classes)}) are known; correct it, or fetch it again"
            )
        return label

    def _read(self, name: str) -> Sample:
        image_path, label_path, page = self.files[name]
        if page is None:
            (image, spacing, affine), (label, _, _) = read_image(image_path), read_image(label_path)
        else:
            image, label = read_page(image_path, page), read_page(label_path, page)
            spacing, affine = (1.0,) * image.ndim, None
        if not np.isfinite(image).all():
            raise DataError(f"{image_path} has voxels that are NaN or infinite: fetch it again, or remove it")
        image, label = image.reshape(_plane(image.shape)), label.reshape(_plane(label.shape))
        spacing = self._given or tuple(spacing[: image.ndim])
        known = getattr(self, "spacing", None)
        steps = self.downsample
        if known is not None and not np.allclose(np.multiply(spacing, steps), known, rtol=1e-3):
            raise DataError(
                f"{image_path} has voxels of {spacing} mm, the images before it {np.divide(known, steps)}: "
                "resample them to one size of voxel"
            )
        full = [side * steps for side in self.shape]
        image = self.intensities(image.astype(np.float32), image_path)
        sample = padded_sample(image, self.class_indices(label, label_path), full, name, spacing, affine)
        return sample if steps == 1 else _downsampled(sample, steps)


def scaled(image: np.ndarray, low: float, high: float, path: Path) -> np.ndarray:
    """Grey values clipped to low … high and brought to 0 … 1.

    Raises:
        DataError: the image is constant.
    """
    if low == high:
        raise DataError(f"{path} is constant: fetch it again, or remove it")
    return (np.clip(image, low, high) - low) / (high - low)


def padded_sample(
    image: np.ndarray, label: np.ndarray, shape: Sequence[int], name: str, spacing: tuple[float, ...], affine
) -> Sample:
    """A sample of that shape: edge values on both sides where it was smaller, cut at the end where it was larger.

    The affine's origin moves with the padding, so a voxel keeps its world coordinate.
    """
    cut = tuple(slice(side) for side in shape)
    image, label = image[cut], label[cut]
    before = [(side - n) // 2 for side, n in zip(shape, image.shape, strict=True)]
    padding = [(b, side - n - b) for b, side, n in zip(before, shape, image.shape, strict=True)]
    if affine is not None:
        affine = affine.copy()
        affine[:3, 3] -= affine[:3, : len(before)] @ before
    return Sample(
        image=torch.from_numpy(np.pad(image.astype(np.float32), padding, mode="edge"))[None],
        label=torch.from_numpy(np.pad(label.astype(np.uint8), padding, mode="edge"))[None],
        name=name,
        spacing=tuple(spacing),
        affine=affine,
    )


def _plane(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape without axes of length one at the end: a slice may be stored as (X, Y, 1)."""
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _downsampled(sample: Sample, factor: int) -> Sample:
    """The mean of factor^D voxels becomes one; labels: that of the middle voxel. Spacing and affine follow."""
    ndim = sample.image.ndim - 1
    middle = (slice(None), *[slice(factor // 2, None, factor)] * ndim)
    affine = sample.affine
    if affine is not None:
        affine = affine.copy()
        affine[:3, 3] += affine[:3, :ndim] @ np.full(ndim, (factor - 1) / 2)
        affine[:3, :ndim] *= factor
    return Sample(
        pooled(sample.image[None], factor)[0],
        sample.label[middle].contiguous(),
        sample.name,
        tuple(step * factor for step in sample.spacing),
        affine,
    )
