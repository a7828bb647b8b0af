"""What every dataset gives: labelled images, pairs of them to register, and three splits.

Image (1, *spatial) float32 in [0, 1]; label (1, *spatial) uint8, a class index a voxel; displacement
(D, *spatial), voxels, components in array axis order, on the fixed grid: fixed(x) = moving(x + u(x)).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

SPLITS = ("train", "validation", "test")

Item = TypeVar("Item")


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the remedy."""


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
