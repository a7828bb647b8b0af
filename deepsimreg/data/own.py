"""A dataset of your own, described by one YAML file: no code.

    name: nuclei                            # as figures and folders call it
    kind: planes                            # planes, volumes, or stacks (TIFF; neighbouring pages are registered)
    images: images/{subject}.tif            # {subject} stands for what images and labels have in common
    labels: labels/{subject}_mask.tif
    classes: {0: background, 255: nucleus}  # value in the label files: name; or a list, for the values 0, 1, …
    intensity: {range: [0, 255]}            # or {quantiles: [0.01, 0.99]} of each image; brought to 0 … 1
    split: {train: 0.6, validation: 0.2, test: 0.2, seed: 42}  # or a list of subjects for each
    pairs: all                              # all, neighbours, {atlas: subject}, or {file: pairs.csv}

pairs.csv has the columns moving, fixed and split.

Further keys: neighbours (distances for stacks, [1]), spacing (mm, array axis order), colors, description, licence,
citation. Paths start at the YAML file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from deepsimreg.data.base import (
    SPLITS,
    LazySequence,
    Pair,
    check_split,
    mirrored_pairs,
    neighbour_pairs,
    ordered_pairs,
    shuffled_split,
    spread_colors,
)
from deepsimreg.data.labelled import Files, LabelledFiles, scaled
from deepsimreg.errors import DataError
from deepsimreg.io import image_shape

NEEDED = ("name", "kind", "images", "labels", "classes")
DEFAULTS = {
    "intensity": {"quantiles": [0.01, 0.99]},
    "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    "pairs": None,
    "neighbours": [1],
    "spacing": None,
    "colors": None,
    "description": "",
    "licence": "not stated",
    "citation": "",
}
KINDS = ("planes", "volumes", "stacks")
SUBJECT = "{subject}"


class OwnData(LabelledFiles):
    """What a YAML file describes.

    Args:
        description: the YAML file.
        downsample: whole number, for a first look or a small machine.
        cache: images that are kept in memory.

    Raises:
        DataError: an unknown key or value, no files, or a file that cannot be used; named with the remedy.
    """

    def __init__(self, description: str | Path, downsample: int = 1, cache: int = 64):
        self.path = Path(description)
        self.settings = DEFAULTS | self._checked()
        own = self.settings
        self.name, self.description = str(own["name"]), own["description"] or f"described by {self.path.name}"
        self.licence, self.citation = own["licence"], own["citation"]
        given = own["classes"]
        self.values = list(given) if isinstance(given, Mapping) else list(range(len(given)))
        self.classes = tuple(map(str, given.values() if isinstance(given, Mapping) else given))
        self.colors = tuple(own["colors"] or spread_colors(len(self.classes)))
        if len(self.colors) != len(self.classes):
            raise DataError(f"{self.path}: {len(self.colors)} colors for {len(self.classes)} classes: give one each")
        subjects = self._subjects()
        files = {}
        for subject, (image, label) in subjects.items():
            if own["kind"] != "stacks":
                files[subject] = Files(image, label)
                continue
            shape = image_shape(image)
            if len(shape) != 3:
                raise DataError(f"{image} has shape {shape}: a stack is (pages, rows, columns); or set kind: planes")
            files |= {f"{subject}-t{page:03d}": Files(image, label, page) for page in range(shape[0])}
        splits = self._splits(list(subjects))
        if own["kind"] == "stacks":
            splits = {
                split: [name for name in files if name.rpartition("-t")[0] in names] for split, names in splits.items()
            }
        self.open(files, splits, downsample, cache, own["spacing"])
        if (len(self.shape) == 3) != (own["kind"] == "volumes"):
            raise DataError(f"{self.path}: kind is {own['kind']}, but the images have {len(self.shape)} axes")
        self._pairs = self._listed_pairs() if isinstance(own["pairs"], Mapping) and "file" in own["pairs"] else None

    def pairs(self, split: str) -> Sequence[Pair]:
        """As `pairs` of the description says; default: neighbours in stacks, else all.

        all: every ordered pair to train, subject i to subject n - 1 - i for validation and test.
        """
        samples, policy = self.samples(check_split(split)), self.settings["pairs"]
        policy = policy or ("neighbours" if self.settings["kind"] == "stacks" else "all")
        if self._pairs is not None:
            listed = self._pairs[split]
            return LazySequence(len(listed), lambda index: Pair(*map(self.sample, listed[index])))
        if isinstance(policy, Mapping):
            atlas = policy["atlas"]
            names = [name for name in self.splits[split] if name != atlas]
            return LazySequence(len(names), lambda index: Pair(self.sample(names[index]), self.sample(atlas)))
        if policy == "neighbours":
            return neighbour_pairs(samples, self.settings["neighbours"], both=split == "train")
        return ordered_pairs(samples) if split == "train" else mirrored_pairs(samples)

    def intensities(self, image: np.ndarray, path: Path) -> np.ndarray:
        intensity = self.settings["intensity"]
        low, high = intensity["range"] if "range" in intensity else np.quantile(image, intensity["quantiles"])
        return scaled(image, low, high, path)

    def class_indices(self, label: np.ndarray, path: Path) -> np.ndarray:
        indices = np.full(label.shape, 255, np.uint8)
        for index, value in enumerate(self.values):
            indices[label == value] = index
        if (indices == 255).any():
            raise DataError(
                f"{path} has the label {label[indices == 255][0]}, which is no class of {self.path.name}: "
                f"{dict(zip(self.values, self.classes, strict=True))}"
            )
        return indices

    def _checked(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise DataError(f"{self.path} does not exist: name the YAML file that describes your dataset")
        try:
            own = yaml.safe_load(self.path.read_text())
        except yaml.YAMLError as error:
            raise DataError(f"{self.path} is not YAML: {error}") from error
        if not isinstance(own, dict):
            raise DataError(f"{self.path} holds no settings: it needs {', '.join(NEEDED)}")
        unknown, missing = set(own) - {*NEEDED, *DEFAULTS}, set(NEEDED) - set(own)
        if unknown:
            there = ", ".join((*NEEDED, *DEFAULTS))
            raise DataError(f"{self.path} has unknown keys {', '.join(sorted(map(str, unknown)))}; there is: {there}")
        if missing:
            raise DataError(f"{self.path} lacks {', '.join(sorted(missing))}")
        choices = {
            "kind": own["kind"] in KINDS,
            "classes": isinstance(own["classes"], list | dict) and 1 < len(own["classes"]) < 255,
            "intensity": set(own.get("intensity", {"range": 0})) in ({"range"}, {"quantiles"}),
            "pairs": own.get("pairs") in (None, "all", "neighbours")
            or (isinstance(own["pairs"], dict) and set(own["pairs"]) in ({"atlas"}, {"file"})),
            "split": isinstance(own.get("split", {}), dict) and set(own.get("split", SPLITS)) - {"seed"} == set(SPLITS),
        }
        for key, right in choices.items():
            if not right:
                raise DataError(f"{self.path}: {key} is {own[key]!r}; see deepsimreg/data/own.py for what it may be")
        for key in ("images", "labels"):
            if SUBJECT not in own[key]:
                where = f"{self.path}: {key} is {own[key]!r}"
                raise DataError(f"{where}, but must hold {SUBJECT}, as in scans/{SUBJECT}.nii.gz")
        return own

    def _subjects(self) -> dict[str, tuple[Path, Path]]:
        """Subject → image and label, sorted by subject."""
        folder, patterns = self.path.parent, (self.settings["images"], self.settings["labels"])
        found = []
        for pattern in patterns:
            before, _, after = str(folder / pattern).partition(SUBJECT)
            paths = folder.glob(pattern.replace(SUBJECT, "*"))
            found.append({str(path)[len(before) : len(str(path)) - len(after)]: path for path in paths})
        images, labels = found
        if not images:
            raise DataError(f"{self.path}: no file is called {folder / patterns[0]}: check the key images")
        for subject in sorted(images):
            if subject not in labels:
                label = folder / patterns[1].replace(SUBJECT, subject)
                raise DataError(f"{label} is missing beside {images[subject]}: add it, or remove the image")
        return {subject: (images[subject], labels[subject]) for subject in sorted(images)}

    def _splits(self, subjects: list[str]) -> dict[str, list[str]]:
        split = dict(self.settings["split"])
        if isinstance(split["train"], list):
            strange = {str(name) for part in SPLITS for name in split[part]} - set(subjects)
            if strange:
                raise DataError(f"{self.path}: split names {', '.join(sorted(strange))}, of which there is no image")
            return {part: list(map(str, split[part])) for part in SPLITS}
        shares = [split[part] for part in SPLITS]
        if abs(sum(shares) - 1) > 1e-6:
            raise DataError(f"{self.path}: the shares of split are {shares}: they must add up to 1")
        atlas = self.settings["pairs"].get("atlas") if isinstance(self.settings["pairs"], dict) else None
        return shuffled_split([name for name in subjects if name != atlas], shares[:2], split.get("seed", 42))

    def _listed_pairs(self) -> dict[str, list[tuple[str, str]]]:
        path = self.path.parent / self.settings["pairs"]["file"]
        if not path.is_file():
            raise DataError(f"{path} does not exist: {self.path} names it for its pairs")
        table = pd.read_csv(path, dtype=str)
        missing = {"moving", "fixed", "split"} - set(table)
        if missing:
            raise DataError(f"{path} has no column {', '.join(sorted(missing))}: it needs moving, fixed, split")
        strange = ({*table["moving"], *table["fixed"]} - set(self.files)) | (set(table["split"]) - set(SPLITS))
        if strange:
            raise DataError(f"{path} names {', '.join(sorted(strange))}, which is no image and no split of {self.path}")
        rows = table.itertuples()
        pairs = {split: [] for split in SPLITS}
        for row in rows:
            pairs[row.split].append((row.moving, row.fixed))
        return pairs
