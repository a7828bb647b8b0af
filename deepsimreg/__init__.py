"""deepsimreg: image registration with semantic similarity (DeepSim)."""

from deepsimreg.registration import Registration, register

__all__ = ["Registration", "register"]
__version__ = "0.1.0"
