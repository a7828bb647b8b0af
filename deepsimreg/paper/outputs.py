"""Where networks and optimisations run, and how tables and images of a run are written."""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from deepsimreg.data.base import Sample
from deepsimreg.files import whole
from deepsimreg.grid import Grid
from deepsimreg.io import write_image


def device() -> torch.device:
    """Where networks and optimisations run: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def named(where: torch.device) -> str:
    """A device as tables call it: cpu, or the name of the GPU."""
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def write_sample(stem: Path, values: Tensor, like: Sample) -> None:
    """Write (*spatial) on the grid of a sample: NIfTI for volumes, TIFF for planes."""
    volume = values.ndim == 3
    path = stem.with_name(stem.name + (".nii.gz" if volume else ".tif"))
    write_image(path, values.cpu().numpy(), Grid.of(values.shape, like.spacing, like.affine) if volume else None)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """CSV that appears whole or not at all."""
    with whole(path) as partial:
        table.to_csv(partial, index=False)
