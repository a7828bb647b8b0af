"""What the YAML file of a dataset of your own may say. data/README.md explains the keys by examples."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from deepsimreg.data.base import SPLITS
from deepsimreg.data.faults import told
from deepsimreg.data.files import SUBJECT
from deepsimreg.errors import DataError

RANGE = re.compile(r"\d+(-\d*)?")  # 3, 0-19, or 20- for 20 to the end


def _pattern(value: str) -> str:
    if SUBJECT not in value:
        raise ValueError(f"must contain {SUBJECT}, as in scans/{SUBJECT}.nii.gz")
    return value


def _part(value: Any) -> float | str | list[str] | dict[str, str]:
    if isinstance(value, list) and not any(isinstance(name, list | dict) for name in value):
        return list(map(str, value))
    if isinstance(value, dict) and all(RANGE.fullmatch(str(pages)) for pages in value.values()):
        return {str(stack): str(pages) for stack, pages in value.items()}
    if isinstance(value, int | float) and 0 < value < 1:
        return float(value)
    if isinstance(value, str) and RANGE.fullmatch(value):
        return value
    raise ValueError(
        "give a fraction between 0 and 1, a list of subjects, a range such as 0-19 (both ends, counted from 0) of the "
        "images in their order, or {stack: 0-19} of its pages"
    )


def _policy(value: Any) -> str | dict[str, Any] | None:
    if value in (None, "all", "neighbours") or (isinstance(value, dict) and list(value) in (["atlas"], ["file"])):
        return value
    raise ValueError("choose all, neighbours, {atlas: subject} or {file: pairs.csv}")


Pattern = Annotated[str, pydantic.AfterValidator(_pattern)]
Part = Annotated[Any, pydantic.PlainValidator(_part)]
Limits = tuple[float, float] | None
Classes = Annotated[
    dict[int, str],
    pydantic.BeforeValidator(lambda value: dict(enumerate(value)) if isinstance(value, list) else value),
    pydantic.Field(min_length=2, max_length=254),
]


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


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
    """Fractions of the shuffled subjects; or lists of subjects and ranges, with images of their own for extractors."""

    train: Part = 0.6
    validation: Part = 0.2
    test: Part = 0.2
    extractor: Part | None = None
    seed: int = 42

    @pydantic.model_validator(mode="after")
    def _whole(self):
        fractions = [part for part in self.parts.values() if isinstance(part, float)]
        if fractions and len(fractions) < len(self.parts):
            raise ValueError("give three fractions, or lists of subjects and ranges for all")
        if fractions and abs(sum(fractions) - 1) > 1e-6:
            raise ValueError("the fractions must add up to 1")
        return self

    @property
    def parts(self) -> dict[str, Any]:
        """What is given for each split, and for the extractors if they have images of their own."""
        parts = {split: getattr(self, split) for split in SPLITS}
        return parts if self.extractor is None else parts | {"extractor": self.extractor}


class Description(_Settings):
    """The keys of the YAML file."""

    name: str
    kind: Literal["planes", "volumes", "stacks"]
    images: Pattern
    labels: Pattern | None = None
    mask: Pattern | None = None
    classes: Classes | None = None
    intensity: Intensity = Intensity(quantiles=(0.01, 0.99))
    split: Split = Split()
    pairs: Annotated[Any, pydantic.PlainValidator(_policy)] = None
    neighbours: list[pydantic.PositiveInt] = [1]
    spacing: list[pydantic.PositiveFloat] | None = None
    colors: list[str] | None = None
    description: str = ""
    licence: str = "not stated"
    citation: str = ""

    @pydantic.model_validator(mode="after")
    def _labelled(self):
        if (self.labels is None) != (self.classes is None):
            raise ValueError(
                "labels and classes: give both; or neither, for images that only an autoencoder learns from"
            )
        return self


def read_description(path: Path) -> Description:
    """The settings of a YAML file. DataError with one line per fault, which names the file, the key and the choices."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: name the YAML file that describes your dataset")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except Exception as error:  # YAML's own, and of dates, numbers and nesting that Python does not take
        raise DataError(f"{path} is not YAML: {error}") from error
    try:
        return Description.model_validate(tree)
    except pydantic.ValidationError as error:
        raise DataError(told(error, path, Description)) from None
