"""Every folder that the paper reads or writes, named once."""

import os
from pathlib import Path

from deepsimreg.paths import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
EXPERIMENTS = PROJECT / os.environ.get("DEEPSIMREG_EXPERIMENTS", "experiments")  # the profiles
FIGURES = PROJECT / "figures"


def runs_root() -> Path:
    """Folder that runs write to: `DEEPSIMREG_RUNS`, else `runs/` of the project."""
    return PROJECT / os.environ.get("DEEPSIMREG_RUNS", "runs")
