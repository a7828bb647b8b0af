"""What every dataset gives: labelled images, pairs of them to register, and three splits.

Image (1, *spatial) float32 in [0, 1]; label (1, *spatial) uint8, a class index a voxel; displacement
(D, *spatial), voxels, components in array axis order, on the fixed grid: fixed(x) = moving(x + u(x)).
"""

import colorsys
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

SPLITS = ("train", "validation", "test")

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image. Spacing in mm, array axis order; affine: voxel to world (RAS, mm), or None."""

    image: Tensor
    label: Tensor
    name: str
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Pair:
    """Two samples on one grid size. The displacement is the exact solution where it is known, else None."""

    moving: Sample
    fixed: Sample
    displacement: Tensor | None = None

    @property
    def name(self) -> str:
        return f"{self.moving.name}--{self.fixed.name}"


class LazySequence(Sequence[Item]):
    """A sequence whose items are made when they are asked for: `make(index)` for 0 <= index < length."""

    def __init__(self, length: int, make: Callable[[int], Item]):
        self._indices, self._make = range(length), make

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self):  # Sequence.__iter__ would take an IndexError inside `make` for the end
        return map(self._make, self._indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._make(i) for i in self._indices[index]]
        return self._make(self._indices[index])


class Dataset(ABC):
    """Attributes are facts that figures and run records quote; shape is common to all samples."""

    name: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    description: str
    licence: str
    citation: str

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
        """Prefix of the SHA-256 of the content: the same data give the same sixteen hex digits."""


def check_split(split: str) -> str:
    """The split itself; ValueError that lists the splits if there is none of that name."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: choose one of {', '.join(SPLITS)}")
    return split


def shuffled_split(names: Sequence[str], shares: Sequence[float] = (0.6, 0.2), seed: int = 42) -> dict[str, list[str]]:
    """Names of each split: shuffled by `random.Random(seed)`; the shares train and validate, the rest tests."""
    names = list(names)
    random.Random(seed).shuffle(names)
    train, validation = (round(share * len(names)) for share in shares)
    edges = (0, train, train + validation, len(names))
    return {split: names[edges[i] : edges[i + 1]] for i, split in enumerate(SPLITS)}


def ordered_pairs(samples: Sequence[Sample]) -> Sequence[Pair]:
    """Every ordered pair of different samples."""
    n = len(samples)

    def ordered(index: int) -> Pair:
        moving, other = divmod(index, n - 1)
        return Pair(samples[moving], samples[other + (other >= moving)])

    return LazySequence(n * (n - 1), ordered)


def mirrored_pairs(samples: Sequence[Sample]) -> Sequence[Pair]:
    """Sample i (moving) to sample n - 1 - i; one in the middle is left out, so none is paired with itself."""
    n = len(samples)
    indices = [i for i in range(n) if i != n - 1 - i]
    return LazySequence(len(indices), lambda k: Pair(samples[indices[k]], samples[n - 1 - indices[k]]))


def neighbour_pairs(samples: Sequence[Sample], distances: Sequence[int], both: bool) -> Sequence[Pair]:
    """Sample i (moving) to the samples that many places on; `both`: and back."""
    indices = [(i, i + d) for i in range(len(samples)) for d in distances if i + d < len(samples)]
    indices = [pair for i, j in indices for pair in ([(i, j), (j, i)] if both else [(i, j)])]
    return LazySequence(len(indices), lambda k: Pair(samples[indices[k][0]], samples[indices[k][1]]))


def spread_colors(count: int) -> tuple[str, ...]:
    """Black and count - 1 colours, neighbours far apart in hue and in lightness: for many classes."""
    hues = ((0.08 + 0.618034 * i) % 1 for i in range(count - 1))
    colors = (colorsys.hls_to_rgb(hue, (0.35, 0.55, 0.75)[i % 3], 0.75) for i, hue in enumerate(hues))
    return ("#000000", *("#" + "".join(f"{round(255 * part):02x}" for part in color) for color in colors))
