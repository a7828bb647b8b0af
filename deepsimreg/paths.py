"""Every folder that the project reads or writes, named once. A relative path in a variable starts at the project."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = PROJECT / "notebooks"
EXPERIMENTS = PROJECT / "experiments"
FIGURES = PROJECT / "figures"


def data_root() -> Path:
    """Folder of fetched data: `DEEPSIMREG_DATA`, else `data/` of the project."""
    return PROJECT / os.environ.get("DEEPSIMREG_DATA", "data")


def runs_root() -> Path:
    """Folder that runs write to: `DEEPSIMREG_RUNS`, else `runs/` of the project."""
    return PROJECT / os.environ.get("DEEPSIMREG_RUNS", "runs")
