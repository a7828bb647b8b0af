"""The Learn2Reg challenge: its displacement files, and its own numbers for a submission.

File: disp_<fixed>_<moving>.nii.gz of shape (X, Y, Z, 3), voxels, array axis order: moved(x) = moving(x + u(x)), on the
fixed image's grid; affines play no part.
Numbers: Dice and HD95 of each label, warped by the nearest voxel and 0 outside; the SD of log(clip(J + 3)) without two
voxels along the border; over the pairs of a task their means, and DSC30, the 30 % quantile of the pairs' mean Dice.
Source: the challenge's evaluation, github.com/MDL-UzL/L2R (Hering et al., IEEE TMI 2023), and for HD95
github.com/google-deepmind/surface-distance (Nikolov et al. 2018), with a spacing of 1: it is in voxels.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from deepsimreg.errors import DataError
from deepsimreg.grid import Grid
from deepsimreg.io import NIFTI, itk_place, load_nibabel, read_image, readable, write_nifti
from deepsimreg.itk import INTENT_VECTOR, check_vectors, from_itk, read_field
from deepsimreg.metrics import defined_mean
from deepsimreg.surfaces import hausdorff_distance_95_by_area
from deepsimreg.warps import jacobian_determinant

CLIP = (1e-9, 1e9)  # of J + 3


def is_disp(path: str | Path) -> bool:
    """Whether a file is Learn2Reg's: a NIfTI of shape (X, Y, Z, 3) without ITK's vector intent."""
    if not Path(path).name.lower().endswith(NIFTI):
        return False
    with readable(Path(path), "NIfTI"):
        image = nibabel.load(path)
        return image.ndim == 4 and image.shape[3] == 3 and image.header["intent_code"] != INTENT_VECTOR


def read_disp(path: str | Path, moving: Grid | None = None) -> tuple[Tensor, Grid]:
    """Displacement (1, D, *spatial), voxels, float32, of a Learn2Reg file or an ITK field, and its grid.

    moving: the moving grid, for an ITK field between two grids. DataError for any other file.
    """
    if not is_disp(path):
        vectors, grid = read_field(path)
        return from_itk(vectors, grid, moving, np.eye(grid.ndim + 1)), grid
    with readable(Path(path), "NIfTI"):
        vectors = load_nibabel(Path(path)).get_fdata(dtype=np.float32)
        check_vectors(vectors)
        grid = Grid.of(vectors.shape[:3], affine=itk_place(Path(path))[1])
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(vectors, -1, 0)))[None], grid


def write_disp(path: str | Path, displacement: Tensor, fixed: Grid) -> None:
    """Write a displacement (1, 3, X, Y, Z), voxels, on the fixed grid, as float32. ValueError if it is 2D."""
    if displacement.ndim != 5 or displacement.shape[:2] != (1, 3):
        raise ValueError(f"displacement is {tuple(displacement.shape)}: Learn2Reg takes that of one volume")
    vectors = displacement[0].detach().movedim(0, -1).cpu().float().numpy()
    write_nifti(Path(path), nibabel.Nifti1Image(vectors, None), fixed)


def learn2reg_metrics(
    displacement: Tensor, moving_labels: np.ndarray, fixed_labels: np.ndarray, labels: Sequence[int] | None = None
) -> dict[str, float]:
    """The challenge's numbers of one pair: `dice` and `hd95` (voxels), the means, each `_<label>`, and `sdlogj`.

    displacement: (1, 3, X, Y, Z), voxels. moving_labels, fixed_labels: integers, (X', Y', Z') and (X, Y, Z). labels:
    those that are scored; None: all but 0. One that either image lacks is NaN and counts in no mean; HD95 of one that
    the warp has lost is infinite. ValueError for other shapes.
    """
    if displacement.shape != (1, 3, *fixed_labels.shape) or moving_labels.ndim != 3:
        raise ValueError(f"displacement {tuple(displacement.shape)} does not fit the labels, {fixed_labels.shape}")
    place = displacement[0].double().cpu().numpy() + np.indices(fixed_labels.shape)
    moved = ndimage.map_coordinates(moving_labels, place, order=0)
    if labels is None:
        labels = sorted({int(k) for k in (*np.unique(fixed_labels), *np.unique(moving_labels))} - {0})
    found = {}
    for label in labels:
        a, b = fixed_labels == label, moved == label
        scored = a.any() and (moving_labels == label).any()
        found[f"dice_{label}"] = float(2 * (a & b).sum() / (a.sum() + b.sum())) if scored else np.nan
        found[f"hd95_{label}"] = hausdorff_distance_95_by_area(a, b) if scored else np.nan
    means = {
        kind: defined_mean(value for name, value in found.items() if name.startswith(kind)) for kind in ("dice", "hd95")
    }
    jacobian = jacobian_determinant(displacement.double())[0, 2:-2, 2:-2, 2:-2]
    return means | found | {"sdlogj": (jacobian + 3).clamp(*CLIP).log().std(correction=0).item()}


def evaluate_fields(fields: Path, moving_labels: Path, fixed_labels: Path) -> dict[str, float]:
    """The numbers of a field and two label files; of three folders the means over their pairs, `dsc30` and `pairs`.

    Fields are named disp_<fixed>_<moving>.nii.gz and labels <task>_<number>_0000.nii.gz; the moving ones end in _0001
    if both numbers are the same. disp_<fixed>_0000_<moving>_0001.nii.gz names others. DataError for a missing file.
    """
    if not fields.is_dir():
        moving = read_image(moving_labels)
        return learn2reg_metrics(read_disp(fields, moving.grid)[0], moving.array, read_image(fixed_labels).array)
    pairs = []
    for path in sorted(fields.glob("disp_*.nii.gz")):
        names = path.name.split(".")[0].split("_")[1:]
        if len(names) == 2:
            names = [names[0], "0000", names[1], "0001" if names[0] == names[1] else "0000"]
        if len(names) != 4:
            raise DataError(f"{path} is not named disp_<fixed>_<moving>.nii.gz: rename it")
        fixed, moving = (_labels(folder, *names[i : i + 2]) for folder, i in ((fixed_labels, 0), (moving_labels, 2)))
        pairs.append(learn2reg_metrics(read_disp(path)[0], moving, fixed))
    if not pairs:
        raise DataError(f"{fields} holds no disp_<fixed>_<moving>.nii.gz: `deepsimreg apply --learn2reg` writes them")
    names = dict.fromkeys(itertools.chain(*pairs))
    means = {name: defined_mean(pair[name] for pair in pairs if name in pair) for name in names}
    return means | {"dsc30": float(np.quantile([pair["dice"] for pair in pairs], 0.3)), "pairs": len(pairs)}


def _labels(folder: Path, number: str, modality: str) -> np.ndarray:
    found = sorted(folder.glob(f"*_{number}_{modality}.nii.gz"))
    if len(found) != 1:
        raise DataError(f"{folder} has {len(found)} files *_{number}_{modality}.nii.gz: give the task's labels")
    return read_image(found[0]).array
