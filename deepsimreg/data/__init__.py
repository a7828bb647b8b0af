"""Datasets by name: `load_dataset("phantom-2d")`. One module per dataset; base.py defines what they share.

Names are imported when they are read: importing this package loads no dataset.
"""

import inspect
from functools import partial

import lazy_loader as lazy

from deepsimreg.lazy import Registry

DATASETS = Registry(
    {
        "phantom-2d": "deepsimreg.data.phantom:phantom_2d",
        "phantom-3d": "deepsimreg.data.phantom:phantom_3d",
        "hippocampus-mr": "deepsimreg.data.hippocampus:Hippocampus",
        "phc-u373": "deepsimreg.data.phc:PhcU373",
        "t98g-phase": "deepsimreg.data.t98g:T98gPhase",
        "platelet-em": "deepsimreg.data.platelet:PlateletEm",
        "vnc-em": "deepsimreg.data.vnc:VncEm",
        "brain-mri": "deepsimreg.data.brain_mri:BrainMri",
        "brain-2d": "deepsimreg.data.brain_2d:Brain2d",
        "neurite-oasis-3d": "deepsimreg.data.neurite:NeuriteOasis3d",
        "neurite-oasis-2d": "deepsimreg.data.neurite:NeuriteOasis2d",
    }
)
__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "base": ["SPLITS", "Dataset", "LazySequence", "Pair", "Sample"],
        "own": ["OwnData"],
    },
)


def load_dataset(name: str, **options):
    """The dataset of that name; `options` go to its constructor. ValueError lists the names, or the options.

    A name that ends in .yaml or .yml is the description of a dataset of your own (`own.py`).
    """
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in DATASETS:
        raise ValueError(f"dataset is {name!r}: choose one of {', '.join(DATASETS)}")
    make = partial(__getattr__("OwnData"), name) if own else DATASETS[name]
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; the options are {', '.join(inspect.signature(make).parameters)}") from None
    return make(**options)
