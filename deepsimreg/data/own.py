"""A dataset of your own, described by one YAML file: no code. data/README.md explains its keys by an example."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from deepsimreg.data.base import SPLITS, Pair, check_split, shuffled_split, spread_colors
from deepsimreg.data.files import SUBJECT, LabelledFiles, matched_files, read_table, stack_pages
from deepsimreg.errors import DataError


def _pattern(value: str) -> str:
    if SUBJECT not in value:
        raise ValueError(f"must contain {SUBJECT}, as in scans/{SUBJECT}.nii.gz")
    return value


def _part(value: Any) -> float | list[str]:
    if isinstance(value, list):
        return list(map(str, value))
    if isinstance(value, int | float) and 0 < value < 1:
        return float(value)
    raise ValueError("give a fraction between 0 and 1, or a list of subjects")


def _policy(value: Any) -> str | dict[str, Any] | None:
    if value in (None, "all", "neighbours") or (isinstance(value, dict) and list(value) in (["atlas"], ["file"])):
        return value
    raise ValueError("choose all, neighbours, {atlas: subject} or {file: pairs.csv}")


Pattern = Annotated[str, pydantic.AfterValidator(_pattern)]
Part = Annotated[float | list[str], pydantic.PlainValidator(_part)]
Limits = tuple[float, float] | None
Classes = Annotated[
    dict[int, str],
    pydantic.BeforeValidator(lambda value: dict(enumerate(value)) if isinstance(value, list) else value),
    pydantic.Field(min_length=2, max_length=254),
]


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class Intensity(_Settings):
    """The grey values, or the quantiles of each image, that become 0 and 1."""

    range: Limits = None
    quantiles: Limits = None

    @pydantic.model_validator(mode="after")
    def _one(self):
        given = [limits for limits in (self.range, self.quantiles) if limits is not None]
        low, high = given[0] if len(given) == 1 else (0, 0)
        if low >= high or (self.quantiles and not 0 <= low < high <= 1):
            raise ValueError("give either range: [low, high] or quantiles: [low, high], these from 0 to 1")
        return self


class Split(_Settings):
    """Fractions of the shuffled subjects, or lists of subjects."""

    train: Part = 0.6
    validation: Part = 0.2
    test: Part = 0.2
    seed: int = 42

    @pydantic.model_validator(mode="after")
    def _whole(self):
        parts = [getattr(self, split) for split in SPLITS]
        if len({isinstance(part, list) for part in parts}) > 1:
            raise ValueError("give three fractions or three lists of subjects")
        if isinstance(self.train, float) and abs(sum(parts) - 1) > 1e-6:
            raise ValueError("the fractions must add up to 1")
        return self


class Description(_Settings):
    """The keys of the YAML file."""

    name: str
    kind: Literal["planes", "volumes", "stacks"]
    images: Pattern
    labels: Pattern
    classes: Classes
    intensity: Intensity = Intensity(quantiles=(0.01, 0.99))
    split: Split = Split()
    pairs: Annotated[Any, pydantic.PlainValidator(_policy)] = None
    neighbours: list[pydantic.PositiveInt] = [1]
    spacing: list[pydantic.PositiveFloat] | None = None
    colors: list[str] | None = None
    description: str = ""
    licence: str = "not stated"
    citation: str = ""


def read_description(path: Path) -> Description:
    """The settings of a YAML file. DataError with one line per fault, which names the file, the key and the choices."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: name the YAML file that describes your dataset")
    try:
        return Description.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {error}") from error
    except pydantic.ValidationError as error:
        raise DataError("\n".join(f"{path}: {_line(fault)}" for fault in error.errors())) from None


def _line(fault: dict[str, Any]) -> str:
    place = fault["loc"]
    key = ".".join(str(part) for part in place if part != "[key]") or "the description"
    if fault["type"] in ("extra_forbidden", "missing"):
        model = Description if len(place) < 2 else Description.model_fields[place[0]].annotation
        problem = "unknown" if fault["type"] == "extra_forbidden" else "missing"
        return f"{problem} key {key}; the keys are {', '.join(model.model_fields)}"
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}, found {fault['input']!r}"


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
        self.classes, self.values = tuple(own.classes.values()), tuple(own.classes)
        self.limits, self.quantiles = own.intensity.range, own.intensity.quantiles
        self.colors = tuple(own.colors or spread_colors(len(self.classes)))
        if len(self.colors) != len(self.classes):
            raise DataError(f"{self.path}: colors has {len(self.colors)} entries for {len(self.classes)} classes")
        folder = self.path.parent
        files = matched_files(folder, own.images, own.labels, both=False)
        if not files:
            raise DataError(f"{self.path}: images: no file is called {folder / own.images}")
        splits = self._splits(list(files))
        if own.kind == "stacks":
            stacks = {subject: stack_pages(subject, *entry[:2]) for subject, entry in files.items()}
            files = {name: page for pages in stacks.values() for name, page in pages.items()}
            splits = {split: [name for subject in names for name in stacks[subject]] for split, names in splits.items()}
        self.open(folder, files, splits, downsample, cache, own.spacing)
        if (len(self.shape) == 3) != (own.kind == "volumes"):
            raise DataError(f"{self.path}: kind is {own.kind}, but the images have {len(self.shape)} axes")
        self._listed = self._listed_pairs()

    def pairs(self, split: str) -> Sequence[Pair]:
        """As `pairs` of the description says; default: neighbours in stacks, else all (see `LabelledFiles.pairs`)."""
        if self._listed:
            return self.named_pairs(self._listed[check_split(split)])
        policy = self.settings.pairs or ("neighbours" if self.settings.kind == "stacks" else "all")
        return super().pairs(split) if policy == "all" else self.neighbours(split, self.settings.neighbours)

    def _splits(self, subjects: list[str]) -> dict[str, list[str]]:
        split, pairs = self.settings.split, self.settings.pairs
        if isinstance(split.train, float):
            atlas = pairs.get("atlas") if isinstance(pairs, dict) else None
            return shuffled_split([s for s in subjects if s != atlas], (split.train, split.validation), split.seed)
        parts = {part: getattr(split, part) for part in SPLITS}
        unknown = {name for names in parts.values() for name in names} - set(subjects)
        if unknown:
            raise DataError(f"{self.path}: split names {', '.join(sorted(unknown))}, of which there is no image")
        return parts

    def _listed_pairs(self) -> dict[str, list[tuple[str, str]]]:
        """Split → names (moving, fixed), if the description names an atlas or a file of pairs."""
        pairs = self.settings.pairs
        if not isinstance(pairs, dict):
            return {}
        if "atlas" in pairs:
            path, atlas = self.path, str(pairs["atlas"])
            rows = [(name, atlas, split) for split in SPLITS for name in self.splits[split] if name != atlas]
        else:
            path, columns = self.path.parent / pairs["file"], ("moving", "fixed", "split")
            if not path.is_file():
                raise DataError(f"{path} does not exist: {self.path} names it for its pairs")
            rows = [tuple(row[column] for column in columns) for row in read_table(path, columns)]
        unknown = {name for row in rows for name in row[:2]} - set(self.files) | {row[2] for row in rows} - set(SPLITS)
        if unknown:
            raise DataError(f"{path} names {', '.join(sorted(unknown))}, which is no image and no split of {self.path}")
        return {split: [row[:2] for row in rows if row[2] == split] for split in SPLITS}
