"""Where data lie. A relative path in a variable starts at the project: the checkout, or for an installed package the
folder that the caller works in."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


def data_root() -> Path:
    """Folder of fetched data: `DEEPSIMREG_DATA`, else `data/` of the project."""
    return PROJECT / Path(os.environ.get("DEEPSIMREG_DATA", "data")).expanduser()
