"""Datasets by name: `load_dataset("phantom-2d")`. One module a dataset; base.py says what they share."""

from collections.abc import Callable

from deepsimreg.data.base import SPLITS, Dataset, LazySequence, Pair, Sample
from deepsimreg.data.brain import BrainMri, NeuriteOasis2d, NeuriteOasis3d
from deepsimreg.data.hippocampus import Hippocampus
from deepsimreg.data.own import OwnData
from deepsimreg.data.phantom import Phantom, phantom_2d, phantom_3d
from deepsimreg.data.stacks import PhcU373, PlateletEm

DATASETS: dict[str, Callable[..., Dataset]] = {
    "phantom-2d": phantom_2d,
    "phantom-3d": phantom_3d,
    "hippocampus-mr": Hippocampus,
    "phc-u373": PhcU373,
    "platelet-em": PlateletEm,
    "brain-mri": BrainMri,
    "neurite-oasis-3d": NeuriteOasis3d,
    "neurite-oasis-2d": NeuriteOasis2d,
}


def load_dataset(name: str, **options) -> Dataset:
    """The dataset of that name; `options` go to its constructor. ValueError lists the names there are.

    A name that ends in .yaml or .yml is the description of a dataset of your own (`own.py`).
    """
    if name.endswith((".yaml", ".yml")):
        return OwnData(name, **options)
    if name not in DATASETS:
        raise ValueError(f"dataset is {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name](**options)


__all__ = [
    "DATASETS",
    "SPLITS",
    "Dataset",
    "Hippocampus",
    "LazySequence",
    "OwnData",
    "Pair",
    "Phantom",
    "Sample",
    "load_dataset",
    "phantom_2d",
    "phantom_3d",
]
