"""Labelled images in files: read on access, brought to one size, the last few kept in memory.

An image is a NIfTI volume or plane, a TIFF file, or one page of a TIFF stack. Headers are checked when the dataset is
opened, voxels when an image is read.
"""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import permutations
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from nibabel.affines import from_matvec

from deepsimreg.data.base import Dataset, LazySequence, Pair, Sample, check_split, shuffled_split
from deepsimreg.data.digests import file_digests
from deepsimreg.errors import DataError
from deepsimreg.io import image_shape, read_image, read_page
from deepsimreg.paths import data_root
from deepsimreg.warps import pooled

SUBJECT = "{subject}"


class Files(NamedTuple):
    """The files of one image; `page` of both if they are stacks."""

    image: Path
    label: Path
    page: int | None = None


class LabelledFiles(Dataset):
    """A dataset whose images lie in files.

    A subclass sets the facts of `Dataset` and calls `open`; it may override `pairs`, `intensities`, `class_indices` and
    what they go by.
    """

    multiple: ClassVar[int] = 1  # the common size is rounded up to a multiple of it
    limits: tuple[float, float] | None = None  # the grey values that become 0 and 1
    quantiles: tuple[float, float] | None = None  # the same, as quantiles of each image
    values: Sequence[int] = range(255)  # of the classes in label files
    remedy = "remove it, or fetch it again"  # for a file that cannot be used

    def open(
        self,
        root: Path,
        files: Mapping[str, Files],
        splits: Mapping[str, Sequence[str]],
        downsample: int = 1,
        cache: int = 16,
        spacing: Sequence[float] | None = None,
    ) -> None:
        """Check the headers and keep the tables: name → files, and split → names.

        Args:
            root: the folder that paths in the fingerprint are relative to.
            downsample: voxels along each axis that are merged into one: their mean, and their most frequent class.
            cache: images kept in memory.
            spacing: mm, array axis order; None: that of the files, which must agree.

        Raises:
            DataError: a file is missing, damaged, or has another shape than its label; an empty split.
        """
        for split, names in splits.items():
            if not names:
                raise DataError(f"{self.name} has no images for the split {split}: assign some, or {self.remedy}")
        self.root, self.files, self.splits = root, dict(files), {split: list(names) for split, names in splits.items()}
        shapes = {path: image_shape(path) for path in dict.fromkeys(p for f in files.values() for p in f[:2])}
        extents = [_extent(entry, shapes) for entry in files.values()]
        if len({len(extent) for extent in extents}) > 1:
            raise DataError(f"{self.name} mixes planes and volumes: use one kind")
        largest = np.max(extents, axis=0)
        if not 1 <= downsample <= min(largest):
            raise DataError(f"downsample is {downsample}: choose a whole number from 1 to {min(largest)}")
        if spacing is not None and len(spacing) != len(largest):
            raise DataError(f"spacing has {len(spacing)} values for {len(largest)} axes: give one per axis, in mm")
        rounded = -(-largest // self.multiple) * self.multiple
        self.downsample, self.cache = downsample, cache
        self.shape = tuple(int(side) // downsample for side in rounded)
        self._given = self._step = None if spacing is None else tuple(map(float, spacing))
        self.spacing = self.sample(next(iter(self.files))).spacing

    def open_subjects(self, root: str | Path | None, images: str, labels: str, downsample: int, cache: int) -> None:
        """Open the fetched folder of `source`, split 60/20/20 by subject; patterns as for `matched_files`."""
        folder = self.fetched(root)
        files = matched_files(folder, images, labels)
        self.open(folder.parent, files, shuffled_split(list(files)), downsample, cache)

    def fetched(self, root: str | Path | None) -> Path:
        """The folder of `source` in the root, None: `data_root()`. DataError if it is missing or empty."""
        folder = Path(root or data_root()) / self.source.folder
        if not folder.is_dir() or not any(folder.iterdir()):
            place = f"set DEEPSIMREG_DATA to the folder that holds {folder.name}"
            raise DataError(f"{folder} holds no data: run `deepsimreg fetch {self.name}`, or {place}")
        return folder

    def samples(self, split: str) -> Sequence[Sample]:
        return LazySequence(self.splits[check_split(split)], self.sample)

    def sample(self, name: str) -> Sample:
        return self._cached(name)

    def pairs(self, split: str) -> Sequence[Pair]:
        """Train: every ordered pair of different images. Else: image i (moving) with image n - 1 - i (fixed)."""
        names = self.splits[check_split(split)]
        if split == "train":
            return self.named_pairs(list(permutations(names, 2)))
        return self.named_pairs([key for key in zip(names, reversed(names), strict=True) if key[0] != key[1]])

    def named_pairs(self, names: Sequence[tuple[str, str]]) -> Sequence[Pair]:
        """The pairs of the images with these names: moving, fixed."""
        return LazySequence(names, self._pair)

    def _pair(self, names: tuple[str, str]) -> Pair:
        return Pair(*map(self.sample, names))

    def neighbours(self, split: str, distances: Sequence[int]) -> Sequence[Pair]:
        """Image i (moving) with image i + distance (fixed) of the same stack; to train also the other way round."""
        names, files = self.splits[check_split(split)], self.files
        keys = [(names[i], names[i + d]) for i in range(len(names)) for d in distances if i + d < len(names)]
        keys = [(a, b) for a, b in keys if files[a].page is None or files[a].image == files[b].image]
        return self.named_pairs([k for a, b in keys for k in ([(a, b), (b, a)] if split == "train" else [(a, b)])])

    def fingerprint(self) -> str:
        paths = dict.fromkeys(path for entry in self.files.values() for path in entry[:2])
        digests = file_digests(list(paths), self.root)
        content = f"{sorted(digests.items())} {sorted(self.splits.items())} {self.downsample}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def intensities(self, image: np.ndarray, path: Path) -> np.ndarray:
        """Grey values of a file, clipped at the limits or quantiles and mapped to [0, 1]; without these, unchanged.

        DataError if the image is constant or, unchanged, outside [0, 1].
        """
        low, high = self.limits or (np.quantile(image, self.quantiles) if self.quantiles else (0, 1))
        if low == high:
            raise DataError(f"{path} is constant: {self.remedy}")
        if not (self.limits or self.quantiles) and (image.min() < 0 or image.max() > 1):
            found = f"values from {image.min():g} to {image.max():g}"
            raise DataError(f"{path} has {found}: they must lie in [0, 1]: {self.remedy}")
        return (np.clip(image, low, high) - low) / (high - low)

    def class_indices(self, label: np.ndarray, path: Path) -> np.ndarray:
        """Class indices, uint8, from the values of a label file. DataError for a value that is none of `values`."""
        indices, known = np.full(label.shape, 255, np.uint8), dict(zip(self.values, self.classes, strict=False))
        for index, value in enumerate(known):
            indices[label == value] = index
        if (indices == 255).any():
            raise DataError(
                f"{path} has the label {label[indices == 255][0]}, which is no class; the integers {known} are: "
                f"{self.remedy}"
            )
        return indices

    @cached_property
    def _cached(self):
        return lru_cache(maxsize=self.cache)(self._read)

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_cached"}

    def _read(self, name: str) -> Sample:
        image_path, label_path, page = self.files[name]
        if page is None:
            (image, grid), (label, _) = read_image(image_path), read_image(label_path)
            step, affine = grid.spacing, grid.affine if grid.placed else None
        else:
            image, label = read_page(image_path, page), read_page(label_path, page)
            step, affine = (1.0,) * image.ndim, None
        if not np.isfinite(image).all():
            raise DataError(f"{image_path} has voxels that are NaN or infinite: {self.remedy}")
        image, label = image.reshape(_plane(image.shape)), label.reshape(_plane(label.shape))
        step = self._given or tuple(step[: image.ndim])
        self._step = self._step or step
        if not np.allclose(step, self._step, rtol=1e-3):
            raise DataError(
                f"{image_path} has voxels of {step} mm, the images before it {self._step}: resample them to one size"
            )
        full = [side * self.downsample for side in self.shape]
        image, label = self.intensities(image, image_path), self.class_indices(label, label_path)
        sample = padded_sample(image, label, full, name, step, affine)
        return sample if self.downsample == 1 else downsampled(sample, self.downsample)


def matched_files(folder: Path, images: str, labels: str, both: bool = True) -> dict[str, Files]:
    """Subject → its files, sorted; hidden files are skipped, such as the `._*` of macOS.

    images, labels: paths below `folder` in which {subject} stands for what both have in common. DataError for an image
    without a label and, if `both`, for a label without an image.
    """
    found = []
    for pattern in (images, labels):
        first, *others = map(re.escape, str(folder / pattern).split(SUBJECT))
        named = first + "(.+)" + r"\1".join(others)
        paths = [path for path in folder.glob(pattern.replace(SUBJECT, "*")) if not path.name.startswith(".")]
        found.append({match[1]: path for path in paths if (match := re.fullmatch(named, str(path)))})
    for subject in sorted(found[0].keys() ^ found[1].keys() if both else found[0].keys() - found[1].keys()):
        there = found[0].get(subject) or found[1][subject]
        missing = folder / (labels if subject in found[0] else images).replace(SUBJECT, subject)
        raise DataError(f"{missing} is missing beside {there}: add it, or remove {there.name}")
    return {subject: Files(found[0][subject], found[1][subject]) for subject in sorted(found[0])}


def stack_pages(name: str, image: Path, label: Path, pages: slice = slice(None)) -> dict[str, Files]:
    """<name>-t### → one page of two stacks each. DataError if it is no stack."""
    shape = image_shape(image)
    if len(shape) != 3:
        raise DataError(f"{image} has shape {shape}: a stack is (pages, rows, columns)")
    return {f"{name}-t{page:03d}": Files(image, label, page) for page in range(shape[0])[pages]}


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file. DataError if it lacks a column."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        missing = set(columns) - set(table.fieldnames or ())
        if missing:
            there = ", ".join(table.fieldnames or ["nothing"])
            raise DataError(f"{path} has no column {', '.join(sorted(missing))}: it has {there}")
        return list(table)


def padded_sample(
    image: np.ndarray, label: np.ndarray, shape: Sequence[int], name: str, spacing: tuple[float, ...], affine
) -> Sample:
    """A sample of that shape: padded with edge values on both sides where smaller, cut at the end where larger.

    The affine's origin moves with the padding, so each voxel keeps its world coordinate.
    """
    cut = tuple(slice(side) for side in shape)
    image, label = image[cut].astype(np.float32), label[cut].astype(np.uint8)
    missing = np.subtract(shape, image.shape)
    padding = np.stack([missing // 2, missing - missing // 2], axis=1)
    image, label = (torch.from_numpy(np.pad(array, padding, mode="edge"))[None] for array in (image, label))
    return Sample(image, label, name, tuple(spacing), _regridded(affine, -padding[:, 0]))


def downsampled(sample: Sample, factor: int) -> Sample:
    """Blocks of factor^D voxels become one: the mean of the image, the most frequent class (the lowest of equals).

    Both lie at the centre of the block, as the affine says.
    """
    image, classes = pooled(sample.image[None], factor)[0], sample.label.unique()
    fractions = torch.stack([pooled((sample.label == index).float()[None], factor)[0] for index in classes])
    label = classes[fractions.argmax(dim=0)]
    affine = _regridded(sample.affine, np.full(image.ndim - 1, (factor - 1) / 2), factor)
    return Sample(image, label, sample.name, tuple(step * factor for step in sample.spacing), affine)


def _regridded(affine: np.ndarray | None, first: np.ndarray, step: int = 1) -> np.ndarray | None:
    """The affine of a grid that starts at voxel `first` (D,) of the one given, in steps of `step` of its voxels."""
    absent = 3 - len(first)  # the axes that a plane does not have stay as they are
    scale, shift = np.diag([float(step)] * len(first) + [1.0] * absent), np.pad(first, (0, absent))
    return None if affine is None else affine @ from_matvec(scale, shift)


def _extent(files: Files, shapes: Mapping[Path, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of one image; DataError unless its label has the same and it is a plane or a volume."""
    image, label, page = files
    if shapes[image] != shapes[label]:
        raise DataError(
            f"{label} has shape {shapes[label]}, its image {image.name} {shapes[image]}: resample the label to the "
            "image, or fetch both again"
        )
    shape = _plane(shapes[image]) if page is None else shapes[image][1:]
    if len(shape) not in (2, 3):
        raise DataError(f"{image} has shape {shape}: provide planes or volumes")
    return shape


def _plane(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape without trailing axes of length one: a slice may be stored as (X, Y, 1)."""
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
