"""Hippocampus-MR: Task04 of the Medical Segmentation Decathlon, 260 labelled T1 crops around a hippocampus.

Source: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13 (2022). Splits 60/20/20
of the sorted names shuffled by `random.Random(42)`, which is this project's order: the paper's is not
published. Intensities: clipped at the 1 % and 99 % quantiles q of the volume, then (x - q01) / (q99 - q01).
Volumes are padded with their edge values to one size, array axis order (X, Y, Z); the affine's origin moves
with the padding, so a voxel keeps its world coordinate.
"""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from deepsimreg.data.base import SPLITS, Dataset, Pair, Sample, check_split, mirrored_pairs, ordered_pairs
from deepsimreg.data.labelled import padded_sample, scaled
from deepsimreg.errors import DataError
from deepsimreg.io import BROKEN_FILE, read_image
from deepsimreg.paths import data_root

FOLDER = "Task04_Hippocampus"
MULTIPLE = 8
FEWEST = 10


class Hippocampus(Dataset):
    """All volumes, read and checked at the start (about 2 s) and kept in memory (about 200 MB).

    `root` is the folder that holds Task04_Hippocampus; `limit` keeps only that many volumes of the shuffled
    order, for quick runs. DataError names the first file that cannot be used.
    """

    name = "hippocampus-mr"
    shape = (48, 64, 48)
    classes = ("background", "anterior", "posterior")
    colors = ("#000000", "#e69f00", "#56b4e9")
    description = "T1 MRI crops around the hippocampus, 260 labelled volumes (Decathlon Task04)"
    licence = "CC BY-SA 4.0"
    citation = "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128 (2022)"

    def __init__(self, root: str | Path | None = None, limit: int | None = None):
        self.folder = Path(root or data_root()) / FOLDER
        names = self._names()
        extent = np.max([self._check_headers(name) for name in names], axis=0)
        self.shape = tuple(int(side) for side in -(-extent // MULTIPLE) * MULTIPLE)
        random.Random(42).shuffle(names)
        self.names = names[:limit]
        if len(self.names) < FEWEST:
            raise DataError(
                f"{len(self.names)} volumes are too few to split 60/20/20: give at least {FEWEST} "
                f"(limit={limit}, {len(names)} in {self.folder})"
            )
        self._samples = [self._read(name) for name in self.names]
        self.spacing = self._samples[0].spacing

    def samples(self, split: str) -> Sequence[Sample]:
        train, validation = round(0.6 * len(self.names)), round(0.2 * len(self.names))
        edges = (0, train, train + validation, len(self.names))
        which = SPLITS.index(check_split(split))
        return self._samples[edges[which] : edges[which + 1]]

    def pairs(self, split: str) -> Sequence[Pair]:
        """Train: every ordered pair of different subjects. Else: subject i (moving) to subject n - 1 - i."""
        samples = self.samples(split)
        return ordered_pairs(samples) if split == "train" else mirrored_pairs(samples)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(name.encode())
            for path in self._paths(name):
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / "imagesTr" / f"{name}.nii.gz", self.folder / "labelsTr" / f"{name}.nii.gz"

    def _names(self) -> list[str]:
        """Sorted names of the volumes; macOS resource forks (`._*`) are skipped."""
        images, labels = (
            {path.name.removesuffix(".nii.gz") for path in (self.folder / part).glob("[!.]*.nii.gz")}
            for part in ("imagesTr", "labelsTr")
        )
        if not images:
            raise DataError(
                f"{self.folder / 'imagesTr'} holds no volumes: run `make data`, or set DEEPSIMREG_DATA "
                f"to the folder that holds {FOLDER}"
            )
        for name in sorted(images ^ labels):
            image, label = self._paths(name)
            there, missing = (image, label) if name in images else (label, image)
            raise DataError(f"{missing} is missing beside {there}: fetch the data again, or remove {there.name}")
        return sorted(images)

    def _check_headers(self, name: str) -> tuple[int, ...]:
        shapes = []
        for path in self._paths(name):
            try:
                shapes.append(nibabel.load(path).shape)
            except BROKEN_FILE as error:
                raise DataError(f"{path} is truncated or not NIfTI ({error}): fetch it again") from error
        image, label = shapes
        if len(image) != 3:
            raise DataError(f"{self._paths(name)[0]} has shape {image}: give one 3-D volume a file")
        if image != label:
            raise DataError(
                f"{self._paths(name)[1]} has shape {label}, its image {image}: "
                "resample the label to the image, or fetch both again"
            )
        return image

    def _read(self, name: str) -> Sample:
        image_path, label_path = self._paths(name)
        image, spacing, affine = read_image(image_path)
        label, _, _ = read_image(label_path)
        if not np.isfinite(image).all():
            raise DataError(f"{image_path} has voxels that are NaN or infinite: fetch it again, or remove it")
        highest = len(self.classes) - 1
        if not np.isin(label, range(highest + 1)).all():
            raise DataError(
                f"{label_path} has labels from {label.min()} to {label.max()}: only the integers 0 to "
                f"{highest} ({', '.join(self.classes)}) are known; correct it, or fetch it again"
            )
        image = scaled(image, *np.quantile(image, (0.01, 0.99)), image_path)
        return padded_sample(image, label, self.shape, name, spacing, affine)
