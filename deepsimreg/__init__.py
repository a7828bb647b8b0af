"""deepsimreg: image registration with semantic similarity (DeepSim)."""

import lazy_loader as lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy.attach(
    __name__, submod_attrs={"pretrained": ["load"], "registration": ["register"], "transform": ["Registration"]}
)
