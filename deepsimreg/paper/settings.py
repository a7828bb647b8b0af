"""What a profile may say: one pydantic model for each part of `experiments/<profile>.yaml`.

A profile maps dataset names to their plans. Every part that holds a `fit` or a `network` changes only the keys it
names; plan.py merges the parts into the settings of each run. `python -m deepsimreg.paper.settings` writes the JSON
schema that editors complete profiles by.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from deepsimreg.data.augment import CONTRASTS
from deepsimreg.data.faults import told
from deepsimreg.losses.registry import SIMILARITIES, similarity_terms
from deepsimreg.models.registry import ARCHITECTURES
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.errors import SettingsError, check_choice
from deepsimreg.paper.files import write_json
from deepsimreg.paper.paths import EXPERIMENTS

SCHEMA = "profile.schema.json"
MAPS = ("probabilities", "segmentation", "atlas", "labels")


def _one_of(what: str, names: Iterable[str]) -> Callable[[str], str]:
    return lambda name: check_choice(what, name, names)


SimilarityName = Annotated[str, AfterValidator(_one_of("similarity", SIMILARITIES))]
BaselineName = Annotated[str, AfterValidator(_one_of("baseline", BASELINES))]
ContrastName = Annotated[str, AfterValidator(_one_of("contrast", CONTRASTS))]
Architecture = Annotated[str, AfterValidator(_one_of("architecture", ARCHITECTURES))]
Terms = Annotated[dict[str, float], BeforeValidator(similarity_terms)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0)]
Lam = Weight | Literal["tuned"]
Grid = tuple[Weight, ...]


class Strict(BaseModel, frozen=True, extra="forbid"):
    """A part of a profile: unknown keys are errors that name what there is."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if values is None:
            return {}
        if not isinstance(values, Mapping):
            raise ValueError(f"is {values!r}, but holds settings: {', '.join(cls.model_fields)}")
        if cls.model_config["extra"] == "forbid":
            for key in values:
                check_choice("key", key, cls.model_fields)
        return values


class RangesPart(Strict):
    """Changes of the random affine maps (`Augmentation`); null: as in the papers."""

    rotation: float | None = Field(None, ge=0, le=180, description="degrees at most, either way")
    scale: tuple[Positive, Positive] | None = Field(None, description="from, to")
    shear: float | None = Field(None, ge=0, description="fraction at most, either way")
    translation: float | None = Field(None, ge=0, le=1, description="fraction of a side at most, either way")


class Fit(Strict):
    """How a network is trained."""

    steps: int = Field(300, ge=0, description="optimiser steps, in whole validation intervals; 0: initial weights")
    batch: int = Field(4, ge=1, description="samples of a batch")
    accumulate: int = Field(1, ge=1, description="batches of an optimiser step")
    learning_rate: float = Field(1e-4, ge=0, description="of Adam")
    validate_every: int = Field(50, ge=1, description="optimiser steps between two validations")
    schedule: Literal["plateau", "cosine"] = Field("plateau", description="cosine ends at 0 with the last step")
    warmup: int = Field(0, ge=0, description="steps in which the learning rate rises from 0")
    plateau: int = Field(10, ge=1, description="validations without a lower loss before the rate drops to a tenth")
    early_stopping: int = Field(0, ge=0, description="validations without a lower loss that end training; 0: never")
    gradient_clip: float = Field(0.0, ge=0, description="largest norm of a step's gradient; 0: any")
    augment: bool = Field(True, description="random affine maps and flips, the same for both images of a pair")
    flips: bool = Field(True, description="part of the augmentation; false where left and right mean something")
    ranges: RangesPart = Field(RangesPart(), description="of the augmentation, in place of the papers'")
    crop: tuple[int, ...] = Field((), description="sides of a random training window, voxels; empty: the whole image")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = Field(False, description="torch.compile the network: a start of minutes, then fewer seconds a step")
    workers: int = Field(0, ge=0, description="processes that load samples; their number changes no result")
    devices: int = Field(1, ge=1, description="processes, one for each GPU")
    seed: int = Field(0, description="of initial weights, samples and augmentation")


class Resources(Strict):
    """What a job asks a cluster for."""

    gpu: int = Field(0, ge=0)
    cpus: int = Field(0, ge=0, description="0: one for each process of the training and each that loads its samples")
    memory: int = Field(4000, ge=1, description="MB")
    minutes: int = Field(120, ge=1, description="of one run; a training that needs more goes on in a second start")
    together: int = Field(1440, ge=0, description="minutes: runs share a job as long as theirs add up to no more")


class ExtractorPart(Strict):
    """One extractor; one with another name than its kind starts from the settings of its kind."""

    kind: str = Field("", description="seg or ae; empty: the extractor's name")
    source: str = Field(
        "", description="another dataset of the profile to train on; ae needs no labels; empty: its own"
    )
    labels: float = Field(1.0, gt=0, le=1, description="fraction of the training images that is used")
    taught: tuple[tuple[str, ...], ...] = Field(
        (),
        description="seg: the classes of the dataset that it is told of, in groups that it is to take for one; all "
        "others are background to it; empty: all of them, one by one",
    )
    network: dict[str, Any] = {}
    fit: Fit = Fit()


class ExtractorsPart(Strict, extra="allow"):
    """Settings of all extractors, and any number of named ones."""

    __pydantic_extra__: dict[str, ExtractorPart]
    network: dict[str, Any] = {}
    fit: Fit = Fit()


class NetworkPart(Strict):
    """How a registration network is trained with one similarity."""

    lam: Lam = Field("tuned", description="weight of the regulariser (mm/mm derivatives); tuned: the best of grid")
    grid: Grid = Field((), description="values that are compared on the validation pairs")
    options: dict[str, Any] = Field({}, description="of the similarity")
    extractor: str = Field("", description="of the profile; empty: the one that the similarity needs")
    architecture: Architecture | None = None
    network: dict[str, Any] = {}
    fit: Fit = Fit()

    @model_validator(mode="after")
    def _has_a_lam(self) -> "NetworkPart":
        if self.lam == "tuned" and not self.grid and not isinstance(self, VariantPart):
            raise ValueError("has no λ: give lam, a number, or grid, a list")
        return self


class RegistrationPart(Strict):
    """The registration networks: shared settings, seeds, the shorter trainings of tuning, and one part each."""

    architecture: Architecture = "voxelmorph"
    network: dict[str, Any] = {}
    fit: Fit = Fit()
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    tuning: Fit = Field(Fit(), description="changes of fit while λ is tuned")
    similarities: dict[SimilarityName, NetworkPart] = {}


class VariantPart(NetworkPart):
    """A method changed in one point."""

    of: str = Field(description="the method it is a variant of")
    group: str = Field("", description="variants of one group are shown together")
    lam: Lam | None = Field(None, description="empty: that of the method it is a variant of")


class AblationsPart(Strict):
    fit: Fit = Fit()
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    variants: dict[str, VariantPart] = {}


Widen = Annotated[int, Field(ge=0, description="values, at most, that a grid gets where its best lies at an edge")]


class BaselinePart(Strict):
    smoothing: Grid = Field((), description="values that are compared on the validation pairs; empty: the default")
    widen: Widen = 0
    pairs: int = Field(0, ge=0, description="validation pairs that they are compared on, the first ones; 0: all")
    options: dict[str, Any] = {}


class RobustnessPart(Strict):
    noise: Grid = Field((), description="of the networks: standard deviations of the noise that both images get")
    contrast: tuple[ContrastName, ...] = Field((), description="of methods: what the moving image alone goes through")
    methods: tuple[str, ...] = Field((), description="of the optimisation chapter, each at its λ, for contrast")

    @model_validator(mode="after")
    def _both(self) -> "RobustnessPart":
        if bool(self.contrast) != bool(self.methods):
            raise ValueError("needs both or neither: contrast and methods")
        return self


class MethodPart(Strict):
    """One method of the optimisation chapter: a baseline; a network; an optimisation; a network and then one; or, as a
    control, the segmentation of the fixed image, which registers nothing.
    """

    baseline: str = Field("", description="a baseline of the profile, at the smoothing that its run chose, or with lam")
    segmentation: str = Field("", description="an extractor that segments, in place of a registration")
    network: str = Field("", description="a similarity of the profile whose network, of the first seed, is the start")
    similarity: Terms = Field({}, description="name, sum or {name: weight}: what the optimisation compares")
    options: dict[str, dict[str, Any]] = Field({}, description="of each similarity, or of the baseline, by its name")
    extractor: str = Field("", description="of the profile; empty: the one that the similarity, baseline or maps need")
    maps: Literal["", *MAPS] = Field(
        "",
        description="what is registered in place of the images: classes that the extractor gives each voxel, as "
        "probabilities or as its segmentation; atlas: these probabilities of the fixed image, the true labels of the "
        "moving one; labels: the true ones of both, which is an oracle",
    )
    lam: Grid = Field((), description="values that are compared on the validation pairs; smoothing of a baseline")
    levels: tuple[tuple[int, int, int], ...] = Field((), description="resolution, grid, steps; coarse to fine")

    @model_validator(mode="after")
    def _one_kind(self) -> "MethodPart":
        kinds = {"baseline": self.baseline, "segmentation": self.segmentation, "similarity": self.similarity}
        given = [name for name, value in kinds.items() if value]
        if len(given) > 1 or (self.network and {*given} - {"similarity"}):
            raise ValueError(f"{' and '.join(map(repr, [*given, *['network'] * bool(self.network)]))}: choose one")
        if not (given or self.network) or (self.similarity and not self.lam):
            raise ValueError("needs a baseline, a network, a segmentation, or a similarity with lam (a list)")
        if self.lam and given not in (["similarity"], ["baseline"]):
            raise ValueError("lam belongs to a similarity or a baseline")
        if self.maps and (self.network or not self.lam):
            raise ValueError("maps are registered by a similarity or a baseline with lam (a list), without a network")
        labelled = [name for name in self.similarity if SIMILARITIES[name].needs_labels]
        if labelled:
            raise ValueError(f"compares labels by {labelled[0]}, but a pair is registered without labels")
        for name in self.options:
            check_choice("similarity or baseline with options", name, [*self.similarity, self.baseline])
        return self


class FamilyPart(Strict):
    """A method against others, at the λ of each and at equal smoothness; p-values are corrected over all of these."""

    against: tuple[str, ...] = Field(min_length=1, description="methods")
    classes: tuple[str, ...] = Field((), description="whose mean Dice decides; empty: all but the background")


class OptimisationPart(Strict):
    pairs: int = Field(0, ge=0, description="validation pairs that λ is chosen on, the first ones; 0: all")
    widen: Widen = 0
    tests: dict[str, FamilyPart] = Field({}, description="method → its family of hypotheses, written down beforehand")
    methods: dict[str, MethodPart] = {}


class DatasetPart(Strict):
    """All runs of one dataset."""

    on_demand: bool = Field(False, description="a chapter that is opened alone makes the runs that it misses")
    data: dict[str, Any] = Field({}, description="options of the dataset; description: the YAML of one of your own")
    resources: dict[str, Resources] = Field(
        {},
        description="by stage; 'default' for those that are not named. tuning and ablations are the trainings, else as "
        "registration; the tests of ablations and robustness are, where not named, as evaluation",
    )
    extractors: ExtractorsPart = ExtractorsPart()
    repeats: dict[str, tuple[str, ...]] = Field(
        {},
        description="extractor → others with another seed: single pairs are registered with each of them, and the "
        "network of the second seed is trained with the second, and so on",
    )
    registration: RegistrationPart = RegistrationPart()
    ablations: AblationsPart = AblationsPart()
    baselines: dict[BaselineName, BaselinePart] = {}
    reference: str = Field("", description="method the others are tested against; empty: deepsim-seg, or the first")
    release: str = Field("", description="similarity whose network, with both extractors, is shipped with the package")
    robustness: RobustnessPart = RobustnessPart()
    optimisation: OptimisationPart = OptimisationPart()


def read_profile(name: str) -> dict[str, DatasetPart]:
    """`experiments/<name>.yaml`, dataset by dataset. SettingsError names the file and the key of everything wrong."""
    path = EXPERIMENTS / f"{name}.yaml"
    check_choice("profile", name, sorted(file.stem for file in EXPERIMENTS.glob("*.yaml")))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # a date that is none is a ValueError, deep nesting a RecursionError, and so on
        raise SettingsError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise SettingsError(f"{path.name} holds {tree!r}, but maps dataset names to their settings")
    return validated(dict[str, DatasetPart], tree, path.name)


def validated(kind: Any, values: Any, where: str) -> Any:
    """Values as a model or type; SettingsError with one line for each thing wrong, `where` and the key before it."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise SettingsError(told(error, where)) from None


def write_schema(folder: Path = EXPERIMENTS) -> Path:
    """The JSON schema of a profile, for editors."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    head["title"] = "deepsimreg profile: the runs of each dataset"
    write_json(folder / SCHEMA, head | TypeAdapter(dict[str, DatasetPart]).json_schema())
    return folder / SCHEMA


if __name__ == "__main__":
    print(write_schema())
