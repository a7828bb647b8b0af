"""From a profile's parts to the settings of one run: what is given for all, for a kind, and for one, is merged."""

import inspect
from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

from deepsimreg.data import DATASETS
from deepsimreg.data.base import Dataset
from deepsimreg.losses.registry import SIMILARITIES, required_extractors
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.errors import SettingsError, check_choice
from deepsimreg.paper.settings import DatasetPart, ExtractorPart, Fit, Lam, Strict, VariantPart, validated

FIXED_EXTRACTORS = ("vgg",)  # kinds that come with their weights


class ExtractorSettings(Strict):
    """A feature extractor: its kind, the fraction of the training images that it sees, its network, its training."""

    kind: str
    labels: float
    network: dict[str, Any]
    fit: Fit


class RegistrationSettings(Strict):
    """A registration network: its similarity, the weight λ of the regulariser, its network, its training."""

    similarity: str
    loss: str  # where the registry finds the similarity, and what it binds
    options: dict[str, Any]
    lam: Lam
    grid: tuple[float, ...]  # that a tuned λ is chosen from
    extractor: str  # of the profile, or the folder of a run; empty: none
    weights: str = ""  # digest of those in such a folder
    architecture: str
    network: dict[str, Any]
    fit: Fit


class BaselineSettings(Strict):
    """A method that is not trained, the smoothings that are compared, and on how many validation pairs."""

    baseline: str
    place: str  # the function that registers
    smoothing: tuple[float, ...]
    pairs: int
    options: dict[str, Any]


class ChapterSettings(Strict):
    """What a chapter that makes tables or figures depends on, besides its runs."""

    values: dict[str, Any] = {}


def check_names(dataset: str, part: DatasetPart, datasets: Iterable[str], stages: Iterable[str]) -> None:
    """SettingsError for a name in a dataset's part that refers to nothing in the profile."""
    if "description" not in part.data:
        check_choice("dataset without data.description", dataset, DATASETS)
    for stage in part.resources:
        check_choice("stage in resources", stage, ("default", *stages))
    for name in extractor_names(part):
        extractor = extractor_part(part, name)
        check_choice(f"kind of extractor {name}", extractor.kind, EXTRACTORS)
        check_choice(f"source of extractor {name}", extractor.source or dataset, datasets)
    networks = part.registration.similarities
    for name, variant in part.ablations.variants.items():
        check_choice(f"method that {name} is a variant of", variant.of, networks)
    for network in (*networks.values(), *part.ablations.variants.values()):
        check_choice("extractor", network.extractor or "seg", extractor_names(part))
    for name, method in part.optimisation.methods.items():
        if method.baseline:
            check_choice(f"baseline of optimisation.methods.{name}", method.baseline, part.baselines)
        if method.network:
            check_choice(f"network of optimisation.methods.{name}", method.network, networks)


def check_labelled(data: Dataset | None, settings: DatasetPart | ExtractorSettings, who: str = "") -> None:
    """SettingsError if a dataset without labels is registered, or if an extractor is to learn labels from it."""
    if data is None or len(data.classes) > 1:
        return
    if isinstance(settings, ExtractorSettings):
        if settings.kind == "seg":
            raise SettingsError(f"{who} learns labels, but {data.name} has none: name another source")
    elif settings.registration.similarities or settings.baselines or settings.optimisation.methods:
        raise SettingsError(f"{data.name} has no labels to judge registrations by: use it as an extractor's source")


def check_options(part: DatasetPart) -> None:
    """SettingsError for an option that its network, similarity or baseline does not have."""
    asked = []
    for name in extractor_names(part):
        one = extractor_settings(part, name)
        asked.append((f"the network of extractor {name}", one.network, EXTRACTORS.places[one.kind]))
    stages = {"registration": part.registration.similarities, "ablation": part.ablations.variants}
    for stage, name in ((stage, name) for stage, names in stages.items() for name in names):
        one = registration_settings(part, name, stage)
        asked.append((f"the network of {name}", one.network, ARCHITECTURES.places[one.architecture]))
        asked.append((name, one.options, SIMILARITIES[one.similarity].loss))
    asked += [(name, own.options, BASELINES[name].place) for name, own in part.baselines.items()]
    for method in part.optimisation.methods.values():
        asked += [(name, options, SIMILARITIES[name].loss) for name, options in method.options.items()]
    for what, options, place in asked:
        known = inspect.signature(resolve_name(place)).parameters if options else ()
        for option in options:
            check_choice(f"option of {what}", option, known)


def extractor_names(part: DatasetPart) -> list[str]:
    """seg, ae and the further extractors of a dataset."""
    return list(dict.fromkeys([*EXTRACTORS, *part.extractors.__pydantic_extra__]))


def extractor_part(part: DatasetPart, name: str) -> ExtractorPart:
    """What is given for all extractors, for the kind of this one, and for itself."""
    named = part.extractors.__pydantic_extra__
    own = named.get(check_choice("extractor", name, extractor_names(part))) or ExtractorPart()
    kind = own.kind or name
    chain = [part.extractors, named.get(kind) or ExtractorPart(), own]
    merged = {"network": merged_networks(chain), "fit": merged_fits(one.fit for one in chain)}
    return own.model_copy(update={"kind": kind, **merged})


def extractor_settings(part: DatasetPart, name: str) -> ExtractorSettings:
    own = extractor_part(part, name)
    return ExtractorSettings(kind=own.kind, labels=own.labels, network=own.network, fit=own.fit)


def variant_names(part: DatasetPart) -> list[str]:
    """The methods that variants start from, and then the variants."""
    variants = part.ablations.variants
    return list(dict.fromkeys([*(variant.of for variant in variants.values()), *variants]))


def registration_settings(part: DatasetPart, method: str, stage: str) -> RegistrationSettings:
    """Settings of a registration network with the first seed.

    Args:
        part: of the dataset.
        method: a similarity of the profile; in the stage ablation a variant, or a method that others are variants of.
        stage: tuning, registration or ablation.
    """
    section, ablations = part.registration, part.ablations
    check_choice("stage", stage, ("tuning", "registration", "ablation"))
    if stage == "ablation":
        check_choice("variant", method, variant_names(part))
    variant: VariantPart | None = ablations.variants.get(method) if stage == "ablation" else None
    similarity = check_choice("similarity of the profile", variant.of if variant else method, section.similarities)
    own = section.similarities[similarity]
    chain = [section, own, *([variant] if variant else [])]
    fits = [section.fit, Fit(seed=section.seeds[0]), own.fit]
    fits += {"tuning": [section.tuning], "ablation": [ablations.fit]}.get(stage, [])
    fits += [variant.fit] if variant else []
    lam = own.lam if variant is None or variant.lam is None else variant.lam
    kinds = required_extractors([similarity])
    return RegistrationSettings(
        similarity=similarity,
        loss=bound(similarity),
        options=own.options | (variant.options if variant else {}),
        lam=lam,
        grid=own.grid if lam == "tuned" else (),
        extractor=(variant.extractor if variant else "") or own.extractor or (kinds[0] if kinds else ""),
        architecture=next(one.architecture for one in reversed(chain) if one.architecture),
        network=variant.network if variant and variant.architecture else merged_networks(chain),
        fit=merged_fits(fits),
    )


def bound(similarity: str) -> str:
    """Where the registry finds a similarity, and the options that its record binds."""
    record = SIMILARITIES[similarity]
    return f"{record.loss} {dict(record.options)}"


def baseline_settings(part: DatasetPart, name: str) -> BaselineSettings:
    own = part.baselines[check_choice("baseline of the profile", name, part.baselines)]
    record = BASELINES[name]
    return BaselineSettings(
        baseline=name,
        place=record.place,
        smoothing=own.smoothing or (record.smoothing,),
        pairs=own.pairs,
        options={"iterations": list(record.iterations)} | own.options,
    )


def changed_fit(fit: Fit, changes: Mapping[str, Any]) -> Fit:
    """A training with some settings changed; unknown ones are refused."""
    return validated(Fit, fit.model_dump() | dict(changes), "training setting") if changes else fit


def merged_fits(fits: Iterable[Fit]) -> Fit:
    """What each training gives, later ones before earlier ones."""
    given: dict[str, Any] = {}
    for fit in fits:
        given |= fit.changed()
    return Fit(**given)


def merged_networks(parts: Iterable[Strict]) -> dict[str, Any]:
    """The options of networks, those of later parts before those of earlier ones."""
    given: dict[str, Any] = {}
    for part in parts:
        given |= part.network
    return given
