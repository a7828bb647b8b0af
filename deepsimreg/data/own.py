"""A dataset of your own, described by one YAML file (description.py): no code."""

import hashlib
import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from deepsimreg.data.base import SPLITS, Pair, check_split, shuffled_split, spread_colors
from deepsimreg.data.description import read_description
from deepsimreg.data.files import SUBJECT, Files, LabelledFiles, found_files, read_table, stack_pages
from deepsimreg.errors import DataError
from deepsimreg.io import advising
from deepsimreg.warps import pooled

ALIKE = 0.8  # of the dissimilarity of images far apart: neighbours that show the same things have less


class OwnData(LabelledFiles):
    """What the YAML file `description` describes. downsample: whole number. cache: images kept in memory.

    DataError: an unknown key or value, no files, or a file that cannot be used; names the remedy.
    """

    def __init__(self, description: str | Path, downsample: int = 1, cache: int = 64):
        self.path = Path(description)
        self.settings = own = read_description(self.path)
        self.name, self.description = own.name, own.description or f"described by {self.path.name}"
        self.remedy = f"correct it, remove it, or change {self.path.name}"
        self.licence, self.citation = own.licence, own.citation
        self.values, self.classes = zip(*(own.classes or {0: "unlabelled"}).items(), strict=True)
        self.limits, self.quantiles = own.intensity.range, own.intensity.quantiles
        self.colors = tuple(own.colors or spread_colors(len(self.classes)))
        if len(self.colors) != len(self.classes):
            raise DataError(f"{self.path}: colors has {len(self.colors)} entries for {len(self.classes)} classes")
        subjects = self._subjects()
        splits = self._splits(subjects)
        files = {name: entry for entries in subjects.values() for name, entry in entries.items()}
        self._listed = self._listed_pairs(files, splits)
        used = {name for names in splits.values() for name in names}
        used |= {name for rows in self._listed.values() for pair in rows for name in pair}
        files = {name: entry for name, entry in files.items() if name in used}
        for entry in files.values():
            for path in entry.beside.values():
                if not path.is_file():
                    raise DataError(f"{path} is missing beside {entry.image}: add it, or remove {entry.image.name}")
        self.open(self.path.parent, files, splits, downsample, cache, own.spacing)
        if (len(self.shape) == 3) != (own.kind == "volumes"):
            raise DataError(f"{self.path}: kind is {own.kind}, but the images have {len(self.shape)} axes")
        self._policy = own.pairs or ("neighbours" if own.kind == "stacks" else "all")
        if own.labels:
            self._check_pairs()

    def fingerprint(self) -> str:
        aside = {"description", "licence", "citation", "colors", *(["mask"] if self.settings.mask is None else [])}
        content = f"{super().fingerprint()} {self.settings.model_dump_json(exclude=aside)} {self._listed}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def pairs(self, split: str) -> Sequence[Pair]:
        """As `pairs` of the description says; default: neighbours in stacks, else all (see `LabelledFiles.pairs`)."""
        if self._listed:
            return self.named_pairs(self._listed[check_split(split)])
        return super().pairs(split) if self._policy == "all" else self.neighbours(split, self.settings.neighbours)

    def _subjects(self) -> dict[str, dict[str, Files]]:
        """Subject → name → files of its images: one, or the pages of a stack. A file that is missing is named, too."""
        own, folder = self.settings, self.path.parent
        images = found_files(folder, own.images)
        if not images:
            raise DataError(f"{self.path}: images: no file is called {folder / own.images}")
        make = stack_pages if own.kind == "stacks" else lambda name, *two, mask: {name: Files(*two, mask=mask)}

        def beside(pattern: str | None, name: str) -> Path | None:
            return pattern and folder / Path(pattern.replace(SUBJECT, name)).expanduser()

        with advising(self.remedy):
            return {
                name: make(name, image, beside(own.labels, name), mask=beside(own.mask, name))
                for name, image in images.items()
            }

    def _splits(self, subjects: dict[str, dict[str, Files]]) -> dict[str, list[str]]:
        """Split → names of images; DataError if one is empty or two share an image."""
        split, pairs = self.settings.split, self.settings.pairs
        parts = split.parts
        if isinstance(split.train, float):
            atlas = str(pairs["atlas"]) if isinstance(pairs, dict) and "atlas" in pairs else None
            names = [subject for subject in subjects if subject != atlas]
            parts = shuffled_split(names, (split.train, split.validation), split.seed)
        splits = {part: self._names(f"split.{part}", value, subjects) for part, value in parts.items()}
        for part, names in splits.items():
            if not names:
                raise DataError(
                    f"{self.path}: split.{part}: none of {len(subjects)} subjects is left for it: list the subjects of "
                    "each split or, of stacks, their pages, as {stack: 0-19}"
                )
        for one, other in combinations(splits, 2):
            shared = sorted({*splits[one]} & {*splits[other]})
            if shared and {one, other} != {"train", "extractor"}:
                raise DataError(f"{self.path}: split: {shared[0]} is in {one} and {other}: leave it in one of them")
        return splits

    def _names(self, key: str, part: Any, subjects: dict[str, dict[str, Files]]) -> list[str]:
        """The images that a part of the split names."""
        if isinstance(part, str) and self.settings.kind != "stacks":
            return self._ranged(key, part, [*subjects])
        wanted = part if isinstance(part, dict) else dict.fromkeys(part, "0-")
        wanted = dict.fromkeys(subjects, part) if isinstance(part, str) else wanted
        unknown = ", ".join(sorted(wanted.keys() - subjects.keys()))
        if unknown:
            there = ", ".join([*subjects][:9]) + ", …" * (len(subjects) > 9)
            raise DataError(f"{self.path}: {key} names {unknown}, of which there is no image; there is: {there}")
        return [name for one, pages in wanted.items() for name in self._ranged(f"{key}.{one}", pages, [*subjects[one]])]

    def _ranged(self, key: str, pages: str, names: list[str]) -> list[str]:
        first, dash, last = pages.partition("-")
        start, end = int(first), int(last or len(names) - 1) if dash else int(first)
        if not start <= end < len(names):
            raise DataError(f"{self.path}: {key}: {pages} does not lie in 0-{len(names) - 1}, its {len(names)} images")
        return names[start : end + 1]

    def _listed_pairs(self, files: dict[str, Files], splits: dict[str, list[str]]) -> dict[str, list[tuple[str, str]]]:
        """Split → names (moving, fixed), if the description names an atlas or a file of pairs."""
        pairs = self.settings.pairs
        if not isinstance(pairs, dict):
            return {}
        if "atlas" in pairs:
            path, atlas = self.path, str(pairs["atlas"])
            rows = [(name, atlas, split) for split in SPLITS for name in splits[split] if name != atlas]
        else:
            path, columns = self.path.parent / pairs["file"], ("moving", "fixed", "split")
            if not path.is_file():
                raise DataError(f"{path} does not exist: {self.path} names it for its pairs")
            rows = [tuple(row[column] for column in columns) for row in read_table(path, columns)]
        unknown = {name for row in rows for name in row[:2]} - {*files} | {row[2] for row in rows} - {*SPLITS}
        if unknown:
            raise DataError(f"{path} names {', '.join(sorted(unknown))}, which is no image and no split of {self.path}")
        home = {name: "train" if split == "extractor" else split for split, names in splits.items() for name in names}
        for moving, fixed, split in rows if "file" in pairs else ():
            both = " and ".join(sorted((moving, fixed)))
            home.setdefault(both, split)
            for name in (moving, fixed, both):
                if home.get(name, split) != split:
                    raise DataError(
                        f"{path}: the split of {name} is {home[name]}, and here {split}: change one of them"
                    )
        return {split: [row[:2] for row in rows if row[2] == split] for split in SPLITS}

    def _check_pairs(self) -> None:
        """DataError for a split without a pair; a warning if neighbours are no more alike than images far apart.

        A file of pairs may have none to train on: optimisation needs none.
        """
        series: dict[str, list[str]] = {}
        table = self.settings.pairs["file"] if self._listed and "file" in self.settings.pairs else None
        for split in SPLITS:
            names = self.splits[split]
            if not len(self.pairs(split)) and table is None:
                raise DataError(f"{self.path}: split.{split}: no pair of its {len(names)} images: give the split more")
            if not len(self.pairs(split)) and split != "train":
                row = ",".join([*(names * 2)[:2], split])
                raise DataError(f"{self.path.parent / table} has no row of the split {split}: add some, such as {row}")
            for name in names if self._policy == "neighbours" else ():
                stack = self.files[name].image.name if self.settings.kind == "stacks" else split
                series.setdefault(stack, []).append(name)
        for what, names in series.items():
            picked = np.linspace(0, len(names) - 2, 5).astype(int) if len(names) > 3 else []
            near = [self._unlike(names[i], names[i + 1]) for i in picked]
            far = [self._unlike(names[i], names[(i + len(names) // 2) % len(names)]) for i in picked]
            if near and np.median(near) > ALIKE * np.median(far):
                warnings.warn(
                    f"{self.path}: neighbours in {what} are no more alike than images far apart. If they show "
                    "unrelated fields, leave them to split.extractor, or list the pairs",
                    stacklevel=2,
                )

    def _unlike(self, *names: str) -> float:
        """1 - correlation of two images, at about 64 positions along the shortest side."""
        factor = max(1, min(self.shape) // 64)
        images = [pooled(self.sample(name).image[None], factor).flatten().numpy() for name in names]
        return 1 - np.corrcoef(images)[0, 1]
