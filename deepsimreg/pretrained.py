"""Pretrained networks that come with the package: `load("hippocampus-mr/seg")`, without a network connection.

Each is a safetensors file in half precision in `deepsimreg/weights/`, beside its model card; `index.json` there holds
their checksums.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from deepsimreg.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).parent / "weights"
INDEX = WEIGHTS / "index.json"


def pretrained(index: Path | None = None) -> dict[str, dict]:
    """Name → what the index says of it: file, sha256, data, licence, what it is for, validation and test figures.

    index: of another folder than the package's.
    """
    path = index or INDEX
    return json.loads(path.read_text()) if path.is_file() else {}


def load(name: str | Path, kind: "type[nn.Module] | None" = None) -> "nn.Module":
    """A network by the name of a pretrained one or by the path of its weights, in evaluation mode and float32.

    Args:
        name: "hippocampus-mr/seg", "hippocampus-mr/ae", "hippocampus-mr/registration", or a .safetensors file.
        kind: the class that is expected.

    Raises:
        WeightsError: no such name or file, a file that is damaged, or another network than `kind`.
    """
    from deepsimreg.models.store import load_model  # loads torch, which the index does not need

    known = pretrained()
    if str(name) not in known:
        if not Path(name).suffix:
            there = ", ".join(known) or "none in this version"
            raise WeightsError(f"unknown pretrained network {str(name)!r}; there is: {there}; or give a path")
        return load_model(Path(name), kind).float()
    path = WEIGHTS / known[str(name)]["file"]
    if path.is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != known[str(name)]["sha256"]:
            raise WeightsError(f"{path}: damaged, its sha256 is {found[:16]}…; install deepsimreg again")
    return load_model(path, kind).float()
