"""What every dataset provides: labelled images, pairs of them to register, three splits, and where it comes from.

Image (1, *spatial) float32 in [0, 1]; label (1, *spatial) uint8, one class index per voxel; mask (1, *spatial) uint8,
0 where a voxel neither counts nor pulls; displacement (D, *spatial), voxels, components in array axis order, on the
fixed grid: fixed(x) = moving(x + u(x)).
"""

import colorsys
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from deepsimreg.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Where a dataset is fetched from, and under which terms.

    folder: what the data root receives: a folder, or a file if `archive` is "file". archive: tar, tar.gz, zip or file.
    checksum: `algorithm:hexadecimal`, or its first digits; "" where none is published: the digest of the first download
    is then kept in `<folder>.sha256`. raw: the folder inside the archive ("": same as `folder`; ".": all of it; a
    pattern, such as that of GitHub's archives), which `prepare(raw, target)` converts to `folder`; without `prepare` it
    is used as it is. files: a list of SHA-256 beside this module, of the files in `raw` that are used: they are checked
    in place of the archive.
    """

    name: str
    url: str
    checksum: str
    size_bytes: int | None  # None: not published
    archive: str
    folder: str
    licence: str
    citation: str = ""
    raw: str = ""
    files: str = ""
    prepare: Callable[[Path, Path], None] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image. Spacing in mm, array axis order; affine (4, 4): voxel to world (RAS, mm), or None; mask or
    None: every voxel counts.
    """

    image: Tensor
    label: Tensor
    name: str
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two samples of the same shape. displacement: the exact solution where it is known, else None."""

    moving: Sample
    fixed: Sample
    displacement: Tensor | None = None

    @property
    def name(self) -> str:
        return f"{self.moving.name}--{self.fixed.name}"

    @property
    def weights(self) -> dict[str, Tensor]:
        """The masks that there are as `moving_weights` and `fixed_weights` (1, *spatial) float32, for a similarity.

        DataError if no voxel is left in both.
        """
        masks = {"moving_weights": self.moving.mask, "fixed_weights": self.fixed.mask}
        found = {name: mask.float() for name, mask in masks.items() if mask is not None}
        if found and not math.prod(found.values()).any():
            raise DataError(f"pair {self.name}: its masks leave no voxel to compare; mend them, or leave the pair out")
        return found


class LazySequence(Sequence):
    """A sequence whose items are made on access: item i is `make(keys[i])`. Pickles if `make` does.

    keys: a sequence, or the length n of `range(n)`.
    """

    def __init__(self, keys: Sequence | int, make: Callable[[Any], Any]):
        self._keys, self._make = range(keys) if isinstance(keys, int) else keys, make

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self):  # Sequence.__iter__ would mistake an IndexError inside `make` for the end
        return map(self._make, self._keys)

    def __getitem__(self, index):
        return list(map(self._make, self._keys[index])) if isinstance(index, slice) else self._make(self._keys[index])


class Dataset(ABC):
    """The attributes are facts that figures and run records quote; all samples have the same shape."""

    name: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    description: str
    licence: str
    citation: str
    source: ClassVar[Source | None] = None
    by_hand: ClassVar[str] = "there is nothing to download"  # how to get it if `source` is None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @abstractmethod
    def samples(self, split: str) -> Sequence[Sample]:
        """All images of a split."""

    @abstractmethod
    def pairs(self, split: str) -> Sequence[Pair]:
        """All registration pairs of a split."""

    @abstractmethod
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 of the content: equal data have equal fingerprints."""


def check_split(split: str) -> str:
    """The split itself, or a ValueError that lists the splits."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
    return split


def shuffled_split(names: Sequence[str], fractions: Sequence[float] = (0.6, 0.2), seed: int = 42):
    """Split → names, shuffled by `random.Random(seed)`. fractions: of train and validation; the rest is for testing."""
    names = list(names)
    random.Random(seed).shuffle(names)
    train, validation = (round(fraction * len(names)) for fraction in fractions)
    edges = (0, train, train + validation, len(names))
    return {split: names[edges[i] : edges[i + 1]] for i, split in enumerate(SPLITS)}


def spread_colors(count: int) -> tuple[str, ...]:
    """Black and count - 1 colours whose neighbours differ in hue and lightness: for many classes."""
    hues = ((0.08 + 0.618034 * i) % 1 for i in range(count - 1))
    colors = (colorsys.hls_to_rgb(hue, (0.35, 0.55, 0.75)[i % 3], 0.75) for i, hue in enumerate(hues))
    return ("#000000", *("#" + "".join(f"{round(255 * part):02x}" for part in color) for color in colors))
