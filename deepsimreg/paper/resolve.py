"""From a profile's parts to the settings of one run: what is given for all, for a kind, and for one, is merged."""

import inspect
from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

from pydantic import BaseModel

from deepsimreg.data import DATASETS
from deepsimreg.data.base import Dataset
from deepsimreg.losses.registry import SIMILARITIES, required_extractors
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.errors import SettingsError, check_choice
from deepsimreg.paper.settings import (
    MAPS,
    BaselinePart,
    DatasetPart,
    ExtractorPart,
    Fit,
    MethodPart,
    NetworkPart,
    Resources,
    VariantPart,
    validated,
)

FIXED_EXTRACTORS = ("vgg",)  # kinds that come with their weights


class RegistrationSettings(NetworkPart):
    """A registration network; `grid` is empty unless λ is tuned, `extractor` may be the folder of a run."""

    similarity: str
    loss: str  # where the registry finds the similarity, and what it binds
    weights: str = ""  # digest of those in an extractor's folder


class BaselineSettings(BaselinePart):
    """A method that is not trained."""

    baseline: str
    place: str  # the function that registers


class ChapterSettings(BaseModel, frozen=True):
    """What a chapter that makes tables or figures depends on, besides its runs."""

    values: dict[str, Any] = {}


def check_names(dataset: str, part: DatasetPart, datasets: Iterable[str], stages: Iterable[str]) -> None:
    """SettingsError for a name in a dataset's part that refers to nothing in the profile."""
    if "description" not in part.data:
        check_choice("dataset without data.description", dataset, DATASETS)
    for stage in part.resources:
        check_choice("stage in resources", stage, ("default", *stages))
    for name in extractor_names(part):
        extractor = extractor_settings(part, name)
        check_choice(f"kind of extractor {name}", extractor.kind, EXTRACTORS)
        check_choice(f"source of extractor {name}", extractor.source or dataset, datasets)
    networks = part.registration.similarities
    for name, variant in part.ablations.variants.items():
        base = networks[check_choice(f"method that {name} is a variant of", variant.of, networks)]
        if variant.lam == "tuned" and not base.grid:
            raise SettingsError(f"λ of {name} is tuned, but {variant.of} has no grid: give lam or grid")
    for network in (*networks.values(), *part.ablations.variants.values()):
        check_choice("extractor", network.extractor or "seg", extractor_names(part))
    methods, extractors = part.optimisation.methods, extractor_names(part)
    for name, method in methods.items():
        if method.baseline:
            check_choice(f"baseline of optimisation.methods.{name}", method.baseline, part.baselines)
        if method.network:
            check_choice(f"network of optimisation.methods.{name}", method.network, networks)
        for one in filter(None, (method.extractor, method.segmentation)):
            check_choice(f"extractor of optimisation.methods.{name}", one, extractors)
        if method.extractor and len(required_extractors(method.similarity)) > 1:
            raise SettingsError(f"optimisation.methods.{name} needs two kinds of extractors: name none")
    if part.release:
        check_choice("network in release", part.release, networks)
    for first, others in part.repeats.items():
        for one in (first, *others):
            check_choice("extractor in repeats", one, extractors)
    for first, family in part.optimisation.tests.items():
        for one in (first, *family.against):
            check_choice("method in optimisation.tests", one, methods)
        if len(methods[first].lam) < 2:
            raise SettingsError(f"optimisation.tests.{first} has no grid: give lam, two values at least")
    for name in part.robustness.methods:
        method = methods[check_choice("method in robustness", name, methods)]
        if method.maps or method.segmentation:
            raise SettingsError(f"robustness changes images, but {name} registers none: leave it out")


def method_extractors(part: DatasetPart, method: MethodPart) -> list[str]:
    """The extractors that a method of the optimisation chapter is tested with: the one that it names or needs, and
    those that repeat it with other seeds; of a sum that needs two kinds: both, which are not repeated.
    """
    own = method.segmentation or method.extractor or ("seg" if method.maps in MAPS[:3] else "")
    kind = BASELINES[method.baseline].extractor if method.baseline else None
    names = [own] if own else [kind] if kind else required_extractors(method.similarity)
    return [*names, *part.repeats.get(names[0], ())] if len(names) == 1 else names


def optimisation_values(part: DatasetPart) -> dict[str, Any]:
    """What the optimisation chapter depends on besides its runs: its section, and what its methods take from others."""
    methods = part.optimisation.methods.values()
    baselines = {one.baseline for one in methods if one.baseline and one.lam}  # the others have runs
    return part.optimisation.model_dump(mode="json") | {
        "repeats": part.repeats,
        "similarities": {name: bound(name) for one in methods for name in one.similarity},
        "baselines": {name: baseline_settings(part, name).model_dump(mode="json") for name in sorted(baselines)},
    }


def labels_used(
    part: DatasetPart, extractors: Iterable[str], networks: Iterable[str] = (), at_test: bool = False
) -> str:
    """How a method comes to know labels: none; by its extractor, which may be taught some classes only; by its network
    (the similarities that it was trained with); or at test.
    """
    extractors = [*extractors, *(registration_settings(part, name, "registration").extractor for name in networks)]
    found = {"at test": None} if at_test else {}
    for name in extractors:
        one = extractor_settings(part, name) if name and name not in FIXED_EXTRACTORS else None
        if one and one.kind == "seg" and one.fit.steps:
            taught = ", ".join(" and ".join(group) for group in one.taught)
            found[f"by the extractor{taught and f': {taught}'}"] = None
    if any(SIMILARITIES[name].needs_labels for name in networks):
        found["by the network"] = None
    return "; ".join(found) or "none"


def resources(part: DatasetPart, stages: Iterable[str], fit: Fit) -> Resources:
    """What a job asks for: as the profile says for the first of the stages that it names, else by default."""
    named = [part.resources[stage] for stage in (*stages, "default") if stage in part.resources]
    asked = named[0] if named else Resources()
    return asked if asked.cpus else asked.model_copy(update={"cpus": fit.devices * (1 + fit.workers)})


def check_labelled(data: Dataset | None, settings: DatasetPart | ExtractorPart, who: str = "") -> None:
    """SettingsError if a dataset without labels is registered, or if an extractor is to learn labels from it; also if
    it is to learn classes that are not there, or if a baseline does not register planes.
    """
    if data is None:
        return
    if isinstance(settings, ExtractorPart):
        for name in (name for group in settings.taught for name in group):
            check_choice(f"class of {data.name} that {who} is taught", name, data.classes[1:])
    else:
        for name in settings.baselines:
            if data.ndim == 2 and not BASELINES[name].planes:
                raise SettingsError(f"{data.name} are planes, but {name} registers volumes: leave it out")
        for name in (name for family in settings.optimisation.tests.values() for name in family.classes):
            check_choice(f"class of {data.name} in optimisation.tests", name, data.classes[1:])
    if len(data.classes) > 1:
        return
    if isinstance(settings, ExtractorPart):
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
        places = {name: SIMILARITIES[name].loss for name in method.similarity}
        places |= {name: BASELINES[name].place for name in filter(None, [method.baseline])}
        asked += [(name, options, places[name]) for name, options in method.options.items()]
    for what, options, place in asked:
        known = inspect.signature(resolve_name(place)).parameters if options else ()
        for option in options:
            check_choice(f"option of {what}", option, known)


def extractor_names(part: DatasetPart) -> list[str]:
    """seg, ae and the further extractors of a dataset."""
    return list(dict.fromkeys([*EXTRACTORS, *part.extractors.__pydantic_extra__]))


def extractor_settings(part: DatasetPart, name: str) -> ExtractorPart:
    """An extractor with its kind, and what is given for all extractors, for its kind, and for itself."""
    named = part.extractors.__pydantic_extra__
    own = named.get(check_choice("extractor", name, extractor_names(part))) or ExtractorPart()
    kind = own.kind or name
    chain = [part.extractors, named.get(kind) or ExtractorPart(), own]
    merged = {"network": merged_networks(chain), "fit": merged_fits(one.fit for one in chain)}
    return own.model_copy(update={"kind": kind, **merged})


def variant_names(part: DatasetPart) -> list[str]:
    """The methods that variants start from, and then the variants."""
    variants = part.ablations.variants
    return list(dict.fromkeys([*(variant.of for variant in variants.values()), *variants]))


def registration_settings(part: DatasetPart, method: str, stage: str) -> RegistrationSettings:
    """Settings of a registration network with the first seed; method and stage as in `Profile.registration`."""
    section, ablations = part.registration, part.ablations
    check_choice("stage", stage, ("tuning", "registration", "ablation"))
    if stage == "ablation":
        check_choice("variant", method, variant_names(part))
    found = ablations.variants if stage == "ablation" else {}
    variant = found.get(method) or VariantPart(of=method)  # the method itself changes nothing
    similarity = check_choice("similarity of the profile", variant.of, section.similarities)
    own = section.similarities[similarity]
    chain = (section, own, variant)
    stages = {"tuning": section.tuning, "ablation": ablations.fit, "registration": Fit()}
    lam = own.lam if variant.lam is None else variant.lam
    return RegistrationSettings(
        similarity=similarity,
        loss=bound(similarity),
        options=own.options | variant.options,
        lam=lam,
        grid=own.grid if lam == "tuned" else (),
        extractor=next(filter(None, (variant.extractor, own.extractor, *required_extractors([similarity]))), ""),
        architecture=next(one.architecture for one in reversed(chain) if one.architecture),
        network=variant.network if variant.architecture else merged_networks(chain),
        fit=merged_fits([section.fit, Fit(seed=section.seeds[0]), own.fit, stages[stage], variant.fit]),
    )


def family(part: MethodPart) -> str:
    """What a method compares, as figures group them: grey values, features, class maps; or a network, or a control."""
    if part.segmentation or part.maps or part.extractor:
        return "controls"
    if part.network:
        return "networks"
    kinds = {SIMILARITIES[name].extractor and SIMILARITIES[name].loss.rpartition(":")[2] for name in part.similarity}
    if "ClassProbabilities" in kinds:
        return "class maps"
    seen = {*kinds, part.baseline and BASELINES[part.baseline].extractor} - {None, ""}
    return "features" if seen else "grey values"


def bound(similarity: str) -> str:
    """Where the registry finds a similarity, and the options that its record binds."""
    record = SIMILARITIES[similarity]
    return f"{record.loss} {dict(record.options)}"


def baseline_settings(part: DatasetPart, name: str) -> BaselineSettings:
    own = part.baselines[check_choice("baseline of the profile", name, part.baselines)]
    record = BASELINES[name]
    smoothing = own.smoothing or (record.smoothing,)
    options = {"iterations": list(record.iterations)} | own.options
    changes = {"smoothing": smoothing, "options": options}
    return BaselineSettings(**own.model_dump() | changes, baseline=name, place=record.place)


def changed_fit(fit: Fit, changes: Mapping[str, Any]) -> Fit:
    """A training with some settings changed; unknown ones are refused."""
    return validated(Fit, fit.model_dump() | dict(changes), "training setting") if changes else fit


def merged_fits(fits: Iterable[Fit]) -> Fit:
    """What each training gives, later ones before earlier ones."""
    return Fit(**{key: value for fit in fits for key, value in fit.model_dump(exclude_unset=True).items()})


def merged_networks(parts: Iterable[Any]) -> dict[str, Any]:
    """The options of networks, those of later parts before those of earlier ones."""
    return {key: value for part in parts for key, value in part.network.items()}
