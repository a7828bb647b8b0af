"""Pretrained networks that come with the package: `load("hippocampus-mr/seg")`, without an internet connection.

`deepsimreg/weights/` holds each as a safetensors file in half precision with a model card, and the checksums in
`index.json`.
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
    """Name → its entry in the index: file, sha256, data, licence, purpose, validation and test figures.

    index: the index file of another folder than the package's.
    """
    path = index or INDEX
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load(name: str | Path, kind: "type[nn.Module] | None" = None) -> "nn.Module":
    """A pretrained network in evaluation mode and float32.

    name: "hippocampus-mr/seg", "hippocampus-mr/ae", "hippocampus-mr/registration", or the path of a .safetensors file.
    kind: the expected class. WeightsError for an unknown name, a missing or damaged file, or another network.
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
