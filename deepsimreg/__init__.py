"""deepsimreg: learned image registration with semantic similarity."""

__version__ = "0.1.0"
