"""deepsimreg: image registration with semantic similarity (DeepSim)."""

__version__ = "0.1.0"

from deepsimreg.pretrained import load
from deepsimreg.registration import Registration, register

__all__ = ["Registration", "load", "register"]
