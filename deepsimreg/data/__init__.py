"""Datasets by name: `load_dataset("phantom-2d")`. One module a dataset; base.py says what they share."""

from collections.abc import Callable

from deepsimreg.data.base import SPLITS, DataError, Dataset, LazySequence, Pair, Sample
from deepsimreg.data.hippocampus import Hippocampus
from deepsimreg.data.phantom import Phantom, phantom_2d, phantom_3d

DATASETS: dict[str, Callable[..., Dataset]] = {
    "phantom-2d": phantom_2d,
    "phantom-3d": phantom_3d,
    "hippocampus-mr": Hippocampus,
}


def load_dataset(name: str, **options) -> Dataset:
    """The dataset of that name; `options` go to its constructor. ValueError lists the names there are."""
    if name not in DATASETS:
        raise ValueError(f"dataset is {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name](**options)


__all__ = [
    "DATASETS",
    "SPLITS",
    "DataError",
    "Dataset",
    "Hippocampus",
    "LazySequence",
    "Pair",
    "Phantom",
    "Sample",
    "load_dataset",
    "phantom_2d",
    "phantom_3d",
]
