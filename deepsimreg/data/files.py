"""Labelled images in files: read on access, brought to one size, the last few kept in memory.

An image is a NIfTI volume or plane, a TIFF file, or one page of a TIFF stack. Headers are checked when the dataset is
opened, voxels when an image is read.
"""

import glob
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import permutations
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from nibabel.orientations import io_orientation

from deepsimreg.data.base import Dataset, LazySequence, Pair, Sample, check_split, shuffled_split
from deepsimreg.data.digests import file_digests
from deepsimreg.data.grids import distance, downsampled, header, padded_sample, plane, turned
from deepsimreg.errors import DataError
from deepsimreg.files import read_rows
from deepsimreg.io import advising, image_shape, read_image, read_page
from deepsimreg.paths import data_root
from deepsimreg.tiff import SUFFIXES as TIFF_SUFFIXES

SUBJECT = "{subject}"
APART = 0.1  # voxels that a label may lie beside its image by their headers: the rounding of affines


class Files(NamedTuple):
    """The files of one image; `page` of each if they are stacks; label, mask None: there is none."""

    image: Path
    label: Path | None
    page: int | None = None
    mask: Path | None = None

    @property
    def beside(self) -> dict[str, Path]:
        """What lies beside the image, by the word for it."""
        return {what: path for what, path in (("label", self.label), ("mask", self.mask)) if path}

    @property
    def paths(self) -> list[Path]:
        return [self.image, *self.beside.values()]


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
            DataError: a file is missing or damaged, a label or a mask lies elsewhere than its image; an empty split.
        """
        for split, names in splits.items():
            if not names:
                raise DataError(f"{self.name} has no images for the split {split}: assign some, or {self.remedy}")
        self.root, self.files, self.splits = root, dict(files), {split: list(names) for split, names in splits.items()}
        with advising(self.remedy):
            headers = {path: header(path) for path in dict.fromkeys(p for entry in files.values() for p in entry.paths)}
        placed = [headers[entry.image][1] for entry in files.values() if headers[entry.image][1] is not None]
        self._axes = io_orientation(placed[0]) if placed else None
        extents = [self._extent(entry, headers) for entry in files.values()]
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
        """The images of a split; to train, those for extractors, if they have images of their own."""
        names = self.splits[check_split(split)]
        return LazySequence(self.splits.get("extractor", names) if split == "train" else names, self.sample)

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
        paths = dict.fromkeys(path for entry in self.files.values() for path in entry.paths)
        digests = file_digests(list(paths), self.root)
        content = f"{sorted(digests.items())} {sorted(self.splits.items())} {self.downsample}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def intensities(self, image: np.ndarray, path: Path, counted: np.ndarray | None = None) -> np.ndarray:
        """Grey values of a file, clipped at the limits or quantiles and mapped to [0, 1]; without these, unchanged.

        counted: bool, where the quantiles are taken; None: everywhere. DataError if the image is constant there or,
        unchanged, outside [0, 1].
        """
        seen = image if counted is None else image[counted]
        low, high = self.limits or (np.quantile(seen, self.quantiles) if self.quantiles else (0, 1))
        if low == high:
            raise DataError(f"{path} is constant{'' if counted is None else ' in its mask'}: {self.remedy}")
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
        image_path, label_path, page, mask_path = self.files[name]
        image, step, affine = self._voxels(image_path, page)
        label = self._voxels(label_path, page)[0] if label_path else np.zeros(image.shape, np.uint8)
        if not np.isfinite(image).all():
            raise DataError(f"{image_path} has voxels that are NaN or infinite: {self.remedy}")
        image, label = image.reshape(plane(image.shape)), label.reshape(plane(label.shape))
        step = self._given or tuple(step[: image.ndim])
        self._step = self._step or step
        if not np.allclose(step, self._step, rtol=1e-3):
            raise DataError(
                f"{image_path} has voxels of {step} mm, the images before it {self._step}: resample them to one size"
            )
        full = [side * self.downsample for side in self.shape]
        mask = None if mask_path is None else self._voxels(mask_path, page)[0].reshape(image.shape) > 0
        if mask is not None and not mask.any():
            raise DataError(f"{mask_path} is 0 everywhere: give more than 0 where voxels count")
        image, label = self.intensities(image, image_path, mask), self.class_indices(label, label_path)
        sample = padded_sample(image, label, full, name, step, affine, mask)
        sample = sample if self.downsample == 1 else downsampled(sample, self.downsample)
        if sample.mask is not None and not sample.mask.any():
            raise DataError(f"{mask_path} has no block of {self.downsample} voxels that counts: downsample less")
        return sample

    def _voxels(self, path: Path, page: int | None) -> tuple[np.ndarray, tuple[float, ...], np.ndarray | None]:
        """Array, spacing and affine of a file or a page; the axes run as those of the first image with an affine."""
        with advising(self.remedy):
            if page is not None:
                return read_page(path, page), (1.0, 1.0), None
            array, grid = read_image(path)
        array, affine, order = turned(array, grid.affine if grid.placed else None, self._axes)
        return array, tuple((*grid.spacing, 1.0)[axis] for axis in order), affine

    def _extent(self, entry: Files, headers: Mapping[Path, tuple[np.ndarray, np.ndarray | None]]) -> tuple[int, ...]:
        """Shape of one image; DataError unless it is a plane or a volume, and its label and mask lie where it lies."""
        image, affine, _ = turned(*headers[entry.image], self._axes)
        for what, path in entry.beside.items():
            other, there, _ = turned(*headers[path], self._axes)
            if image.shape != other.shape:
                raise DataError(
                    f"{path} has shape {other.shape}, its image {entry.image.name} {image.shape}: resample the "
                    f"{what} to the image, or {self.remedy}"
                )
            apart = 0 if affine is None or there is None else distance(affine, there, image.shape)
            if apart > APART:
                raise DataError(
                    f"{path} lies up to {apart:.1f} voxels beside its image {entry.image.name}, as their "
                    f"headers say: resample the {what} to the image, or mend its header"
                )
        shape = plane(image.shape) if entry.page is None else image.shape[1:]
        if len(shape) not in (2, 3):
            raise DataError(f"{entry.image} has shape {shape}: provide planes or volumes")
        return shape


def matched_files(folder: Path, images: str, labels: str) -> dict[str, Files]:
    """Subject → its files, sorted; hidden files are skipped, such as the `._*` of macOS.

    images, labels: patterns of `found_files`. DataError for one without the other.
    """
    found = [found_files(folder, pattern) for pattern in (images, labels)]
    for subject in sorted(found[0].keys() ^ found[1].keys()):
        there = found[0].get(subject) or found[1][subject]
        missing = folder / (labels if subject in found[0] else images).replace(SUBJECT, subject)
        raise DataError(f"{missing} is missing beside {there}: add it, or remove {there.name}")
    return {subject: Files(found[0][subject], found[1][subject]) for subject in found[0]}


def found_files(folder: Path, pattern: str) -> dict[str, Path]:
    """Subject → path, sorted: what {subject}, once or more, stands for in a path below `folder`, or an absolute one."""
    first, *others = str(folder / Path(pattern).expanduser()).split(SUBJECT)
    named = re.escape(first) + "(?P<subject>.+)" + "(?P=subject)".join(map(re.escape, others))
    paths = sorted(glob.glob("*".join(map(glob.escape, (first, *others)))))
    return {match["subject"]: Path(path) for path in paths if (match := re.fullmatch(named, path))}


def stack_pages(
    name: str, image: Path, label: Path | None, pages: slice = slice(None), mask: Path | None = None
) -> dict[str, Files]:
    """<name>-t### → one page of each stack. DataError if it is no stack."""
    shape = image_shape(image)
    if len(shape) != 3 or not image.name.lower().endswith(TIFF_SUFFIXES):
        raise DataError(f"{image} has shape {shape}: a stack is a TIFF file of (pages, rows, columns)")
    return {f"{name}-t{page:03d}": Files(image, label, page, mask) for page in range(shape[0])[pages]}


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file. DataError if it has none, lacks a column, or a row is too short."""
    rows = read_rows(path)
    there = list(map(str, rows[0])) if rows else []
    missing = sorted({*columns} - {*there})
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}: it has {', '.join(there) or 'no rows'}")
    for number, row in enumerate(rows, start=1):
        if None in (row[column] for column in columns):
            raise DataError(f"{path}, row {number} has fewer values than columns: {[*row.values()]}")
    return rows
