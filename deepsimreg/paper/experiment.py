"""Settings of every run, the folder that a run lives in, and where its numbers came from.

A profile (`experiments/<name>.yaml`) says which runs there are and at which size; a run is one set of resolved settings
and one folder. `config.yaml` in the folder re-creates the run; `done.json` says that it has ended.
"""

import dataclasses
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from deepsimreg.data import DATASETS, Dataset, load_dataset
from deepsimreg.losses import SIMILARITIES, required_extractor, similarity_terms
from deepsimreg.models import ARCHITECTURES, EXTRACTORS
from deepsimreg.optimise import Level
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.paths import EXPERIMENTS, FIGURES, runs_root
from deepsimreg.paper.training import FitSettings
from deepsimreg.paths import PROJECT

FIXED_EXTRACTORS = ("vgg",)  # kinds that come with their weights
QUICK = "quick"  # the profile whose missing runs are made where they are needed


class SettingsError(ValueError):
    """A setting that does not exist or cannot be; the message names it and what there is."""


def known(what: str, name: str, names) -> str:
    """`name` itself.

    Raises:
        SettingsError: it is not among `names`.
    """
    if name not in names:
        raise SettingsError(f"unknown {what} '{name}'; there is: {', '.join(map(str, names))}")
    return name


def fit_settings(values: Mapping[str, Any]) -> FitSettings:
    """FitSettings from a mapping.

    Raises:
        SettingsError: a name that it does not have, or a value that is not of its type.
    """
    defaults, typed = dataclasses.asdict(FitSettings()), {}
    for name, value in values.items():
        kind = type(defaults[known("training setting", name, defaults)])
        try:
            typed[name] = kind(value)
        except (TypeError, ValueError):
            typed[name] = None
        if typed[name] is None or (kind in (int, bool) and typed[name] != value):
            raise SettingsError(f"training setting {name} is {value!r}, but must be of type {kind.__name__}")
    try:
        return FitSettings(**typed)
    except ValueError as error:
        raise SettingsError(f"training setting {error}") from None


@dataclass(frozen=True)
class ExtractorSettings:
    """A feature extractor: a U-Net (`seg`) or an autoencoder (`ae`)."""

    profile: str
    dataset: str
    name: str  # of the extractor in the profile
    kind: str  # seg or ae
    source: str = ""  # dataset that it is trained on; empty: the dataset itself
    labels: float = 1.0  # share of the training images that are used
    data: dict = field(default_factory=dict)  # options of the dataset that it is trained on
    network: dict = field(default_factory=dict)  # options of the network
    fit: FitSettings = field(default_factory=FitSettings)

    @property
    def folder(self) -> Path:
        return runs_root() / self.profile / self.dataset / f"extractor-{self.name}"


@dataclass(frozen=True)
class RegistrationSettings:
    """A registration network: a similarity, its weight against the regulariser, and how it is trained."""

    profile: str
    dataset: str
    method: str  # its name in the profile; in the stages tuning and registration that of its similarity
    lam: float | None  # weight λ of the diffusion regulariser; None: not chosen yet
    stage: str = "registration"  # tuning, registration or ablation
    similarity: str = ""  # a name in SIMILARITIES
    data: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)  # options of the similarity
    extractor: str = ""  # name in the profile, or a run folder; empty: the one of the similarity's kind
    architecture: str = "voxelmorph"
    network: dict = field(default_factory=dict)
    fit: FitSettings = field(default_factory=FitSettings)

    @property
    def folder(self) -> Path:
        last = f"lam-{self.lam:g}" if self.stage == "tuning" else f"seed-{self.fit.seed}"
        return runs_root() / self.profile / self.dataset / self.stage / self.method / last


@dataclass(frozen=True)
class BaselineSettings:
    """A method that is not trained (SyN, greedy), and the values of its one tuned option."""

    profile: str
    dataset: str
    method: str  # a name in BASELINES
    values: tuple[float, ...]  # the best on the validation pairs is taken to the test
    pairs: int = 0  # validation pairs that the values are compared on, the first ones; 0: all
    data: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return runs_root() / self.profile / self.dataset / "baseline" / self.method


@dataclass(frozen=True)
class WaySettings:
    """One way to register a pair: a method without training, a network, optimisation, or a network and then that."""

    name: str
    baseline: str = ""  # a method that is not trained, at the value that its run chose
    network: str = ""  # method of the profile whose network, of the first seed, is the start
    similarity: dict = field(default_factory=dict)  # name → weight, of the optimisation; empty: none
    options: dict = field(default_factory=dict)  # of each similarity, by its name
    lams: tuple[float, ...] = ()  # the best on the validation pairs is taken to the test
    levels: tuple[Level, ...] = ()  # coarse to fine; empty: the defaults


Settings = ExtractorSettings | RegistrationSettings | BaselineSettings

ANY = object()
NETWORK = {"network": ANY, "fit": ANY}
EXTRACTOR = NETWORK | {"kind": ANY, "source": ANY, "labels": ANY}
METHOD = NETWORK | {"lam": ANY, "grid": ANY, "options": ANY, "extractor": ANY, "architecture": ANY}
WAY = dict.fromkeys(("baseline", "network", "similarity", "options", "lam", "levels"), ANY)
SECTIONS = {
    "data": ANY,
    "extractors": NETWORK | {"*": EXTRACTOR},
    "registration": NETWORK | {"seeds": ANY, "tuning": ANY, "architecture": ANY, "similarities": {"*": METHOD}},
    "ablations": {"fit": ANY, "seeds": ANY, "variants": {"*": METHOD | {"of": ANY, "group": ANY}}},
    "baselines": {"*": {"values": ANY, "pairs": ANY, "options": ANY}},
    "robustness": {"noise": ANY},
    "optimisation": {"pairs": ANY, "ways": {"*": WAY}},
}


def _check_keys(tree: Any, schema: Any, where: str) -> None:
    """SettingsError for a key of `tree` that `schema` does not have; "*" stands for any name."""
    if schema is ANY or tree is None:
        return
    if not isinstance(tree, Mapping):
        raise SettingsError(f"{where} is {tree!r}, but must hold settings: {', '.join(schema)}")
    for key, value in tree.items():
        if key not in schema and "*" not in schema:
            raise SettingsError(f"unknown setting of {where}: '{key}'; there is: {', '.join(schema)}")
        _check_keys(value, schema.get(key, schema.get("*")), f"{where}.{key}")


class Profile:
    """The runs of `experiments/<name>.yaml`.

    Raises:
        SettingsError: no such profile, or a name in it that nothing reads.
    """

    def __init__(self, name: str):
        path = EXPERIMENTS / f"{name}.yaml"
        known("profile", name, sorted(file.stem for file in EXPERIMENTS.glob("*.yaml")))
        self.name, self.tree = name, yaml.safe_load(path.read_text()) or {}
        for dataset, sections in self.tree.items():
            where = f"{dataset} in {path.name}"
            _check_keys(sections, SECTIONS, where)
            if "description" not in self._data(dataset):
                known("dataset", dataset, DATASETS)
            for extractor in self.extractor_names(dataset):
                settings = self.extractor(dataset, extractor)
                known(f"kind of extractor {extractor} of {where}", settings.kind, EXTRACTORS)
            for method in self.methods(dataset):
                known(f"similarity of {where}", method, SIMILARITIES)
                own = self._method(dataset, method)
                if not isinstance(own.get("lam"), int | float) and not isinstance(own.get("grid"), list):
                    raise SettingsError(f"{method} of {where} has no λ: give lam, a number, or grid, a list")
            for variant in self.variants(dataset):
                base = self._variant(dataset, variant).get("of")
                known(f"method that {variant} of {where} is a variant `of`", base, self.methods(dataset))
            for method in self._section(dataset, "baselines"):
                known(f"baseline of {where}", method, BASELINES)
            for way in self.ways(dataset):
                self._check_way(way, dataset, f"the way {way.name} of {where}")
            for settings in [*self.registrations(dataset), *self.ablations(dataset)]:
                known(f"architecture of {settings.method} of {where}", settings.architecture, ARCHITECTURES)
                if settings.extractor:
                    known(
                        f"extractor of {settings.method} of {where}", settings.extractor, self.extractor_names(dataset)
                    )

    def _check_way(self, way: WaySettings, dataset: str, where: str) -> None:
        if way.baseline:
            known(f"baseline of {where}", way.baseline, self._section(dataset, "baselines"))
        if way.network:
            known(f"network of {where}", way.network, self.methods(dataset))
        if way.baseline and (way.network or way.similarity):
            raise SettingsError(f"{where} has a baseline: give nothing beside it")
        if bool(way.similarity) != bool(way.lams) or not (way.baseline or way.network or way.similarity):
            raise SettingsError(f"{where}: give a baseline, a network, or a similarity with lam (a list)")
        labelled = [name for name in way.similarity if SIMILARITIES[name].needs_labels]
        if labelled:
            raise SettingsError(f"{where} compares labels by {labelled[0]}: a pair is registered without them")
        for name in way.options:
            known(f"similarity that {where} has options for", name, way.similarity)

    @property
    def gpu(self) -> int:
        """GPUs that a training asks the cluster for: one in the paper's profile."""
        return int(self.name == "paper")

    @property
    def datasets(self) -> list[str]:
        return list(self.tree)

    def _section(self, dataset: str, section: str) -> dict:
        sections = self.tree[known(f"dataset of profile {self.name}", dataset, self.tree)] or {}
        return sections.get(section) or {}

    def _data(self, dataset: str) -> dict:
        return self._section(dataset, "data") if dataset in self.tree else {}

    def load(self, dataset: str) -> Dataset:
        """The dataset, with the profile's options for it; the option `description` names the YAML of one of your own.

        Raises:
            SettingsError: the description has another name than the profile gives the dataset.
        """
        options = dict(self._data(dataset))
        if "description" not in options:
            return load_dataset(dataset, **options)
        path = PROJECT / options.pop("description")
        loaded = load_dataset(str(path), **options)
        if loaded.name != dataset:
            raise SettingsError(
                f"{path} describes '{loaded.name}', profile {self.name} calls it '{dataset}': rename one"
            )
        return loaded

    # extractors

    def extractor_names(self, dataset: str) -> list[str]:
        """seg, ae and the further extractors of a dataset."""
        return list(dict.fromkeys([*EXTRACTORS, *(set(self._section(dataset, "extractors")) - set(NETWORK))]))

    def extractor(self, dataset: str, name: str, **changes: Any) -> ExtractorSettings:
        """Settings of one extractor; `changes` replace settings of its training (steps, seed, …)."""
        section = self._section(dataset, "extractors")
        own = section.get(known("extractor", name, self.extractor_names(dataset))) or {}
        kind = own.get("kind", name)
        same = section.get(kind) or {}  # a further extractor starts from the one of its kind
        return ExtractorSettings(
            self.name,
            dataset,
            name,
            kind,
            own.get("source", ""),
            float(own.get("labels", 1.0)),
            self._data(own.get("source", dataset)),
            section.get("network", {}) | same.get("network", {}) | own.get("network", {}),
            fit_settings(section.get("fit", {}) | same.get("fit", {}) | own.get("fit", {}) | changes),
        )

    def extractor_for(self, settings: RegistrationSettings | BaselineSettings) -> ExtractorSettings | None:
        """The trained extractor that a method of the profile uses; None if it uses none."""
        if isinstance(settings, BaselineSettings):
            name = BASELINES[settings.method].extractor
        else:
            name = settings.extractor or required_extractor(settings.similarity)
        return None if name in (None, *FIXED_EXTRACTORS) else self.extractor(settings.dataset, name)

    def extractors(self, dataset: str) -> list[ExtractorSettings]:
        """The extractors that the methods of a dataset need."""
        users = [*self.registrations(dataset), *self.ablations(dataset), *self.baselines(dataset)]
        needed = {settings.name for settings in map(self.extractor_for, users) if settings}
        return [self.extractor(dataset, name) for name in self.extractor_names(dataset) if name in needed]

    # registration networks

    def methods(self, dataset: str) -> list[str]:
        """Names of the similarities that the profile trains on a dataset."""
        return list(self._section(dataset, "registration").get("similarities") or {})

    def seeds(self, dataset: str) -> list[int]:
        return list(self._section(dataset, "registration").get("seeds", [0]))

    def _method(self, dataset: str, method: str) -> dict:
        return (self._section(dataset, "registration").get("similarities") or {}).get(method) or {}

    def grid(self, dataset: str, method: str) -> list[float]:
        """The λ that are compared on validation; empty for a method without a grid."""
        return [float(lam) for lam in self._method(dataset, method).get("grid", [])]

    def chosen_by_tuning(self, dataset: str, method: str) -> bool:
        """Whether λ is the best of the grid; else the profile gives it, and a grid is for the figures."""
        return "lam" not in self._method(dataset, method) and bool(self.grid(dataset, method))

    def lam(self, dataset: str, method: str) -> float | None:
        """λ of a method: the profile's, or the one that 06_tuning chose; None while nothing is chosen."""
        own = self._method(dataset, method)
        if "lam" in own:
            return float(own["lam"])
        path = self.choice(dataset)
        chosen = json.loads(path.read_text()) if path.is_file() else {}
        return chosen.get(method) if chosen.get(method) in self.grid(dataset, method) else None

    def choice(self, dataset: str) -> Path:
        """The file that holds the chosen λ of each tuned method."""
        return runs_root() / self.name / dataset / "tuning" / "choice.json"

    def registration(
        self, dataset: str, method: str, lam: float | None = None, stage: str = "registration", **changes: Any
    ) -> RegistrationSettings:
        """Settings of one registration.

        Args:
            dataset: of the profile.
            method: a similarity, or in the stage ablation a variant.
            lam: None takes the profile's or the chosen one.
            stage: tuning, registration or ablation.
            changes: replace settings of the training (steps, seed, …).
        """
        section = self._section(dataset, "registration")
        known("stage", stage, ("tuning", "registration", "ablation"))
        fit = section.get("fit", {}) | {"seed": self.seeds(dataset)[0]}
        if stage == "ablation":
            variant = self._variant(dataset, known("variant", method, self.variants(dataset)))
            similarity = variant["of"]
        else:
            variant, similarity = {}, known("similarity", method, SIMILARITIES)
        own = self._method(dataset, similarity)
        fit |= own.get("fit", {})
        if stage == "tuning":
            fit |= section.get("tuning", {})
        if stage == "ablation":
            fit |= self._section(dataset, "ablations").get("fit", {}) | variant.get("fit", {})
        if lam is None:
            lam = float(variant["lam"]) if "lam" in variant else self.lam(dataset, similarity)
        architecture = (
            variant.get("architecture") or own.get("architecture") or section.get("architecture", "voxelmorph")
        )
        inherited = section.get("network", {}) | own.get("network", {})
        return RegistrationSettings(
            self.name,
            dataset,
            method,
            None if lam is None else float(lam),
            stage,
            similarity,
            self._data(dataset),
            own.get("options", {}) | variant.get("options", {}),
            variant.get("extractor", own.get("extractor", "")),
            architecture,
            variant.get("network", {}) if variant.get("architecture") else inherited | variant.get("network", {}),
            fit_settings(fit | changes),
        )

    def registrations(self, dataset: str) -> list[RegistrationSettings]:
        """Every similarity × seed of a dataset, each with its λ."""
        return [
            self.registration(dataset, method, seed=seed)
            for method in self.methods(dataset)
            for seed in self.seeds(dataset)
        ]

    def tunings(self, dataset: str) -> list[RegistrationSettings]:
        """Every similarity × λ of its grid, with the first seed."""
        return [
            self.registration(dataset, method, lam, "tuning")
            for method in self.methods(dataset)
            for lam in self.grid(dataset, method)
        ]

    # ablations

    def variants(self, dataset: str) -> list[str]:
        """Names of the ablations: the methods they start from, and then the variants."""
        variants = self._section(dataset, "ablations").get("variants") or {}
        bases = [variant.get("of") for variant in variants.values() if variant]
        return list(dict.fromkeys([*bases, *variants]))

    def _variant(self, dataset: str, name: str) -> dict:
        """A variant's own settings; the method that others are variants of is one without changes."""
        return (self._section(dataset, "ablations").get("variants") or {}).get(name) or {"of": name}

    def ablations(self, dataset: str) -> list[RegistrationSettings]:
        """Every variant × seed of the ablations, the methods they start from first."""
        return [
            self.registration(dataset, variant, stage="ablation", seed=seed)
            for variant in self.variants(dataset)
            for seed in self._section(dataset, "ablations").get("seeds", [0])
        ]

    def groups(self, dataset: str) -> dict[str, tuple[str, str]]:
        """Variant → (the group it is shown in, the method it is a variant of)."""
        values = {name: self._variant(dataset, name) for name in self.variants(dataset)}
        return {name: (value.get("group", ""), value["of"]) for name, value in values.items()}

    # methods without training, and the test with noise

    def baselines(self, dataset: str) -> list[BaselineSettings]:
        """The methods that are not trained."""
        return [self.baseline(dataset, name) for name in self._section(dataset, "baselines")]

    def baseline(self, dataset: str, method: str) -> BaselineSettings:
        own = self._section(dataset, "baselines").get(known("baseline", method, BASELINES)) or {}
        values = own.get("values", [BASELINES[method].value])
        return BaselineSettings(
            self.name,
            dataset,
            method,
            tuple(map(float, values)),
            int(own.get("pairs", 0)),
            self._data(dataset),
            own.get("options", {}),
        )

    def noise(self, dataset: str) -> list[float]:
        """Standard deviations of the noise that 08_robustness adds; empty: no such test."""
        return [float(sd) for sd in self._section(dataset, "robustness").get("noise", [])]

    # ways to register one pair

    def ways(self, dataset: str) -> list[WaySettings]:
        """The ways that 09_optimisation compares."""
        given = self._section(dataset, "optimisation").get("ways") or {}
        return [self._way(name, way) for name, way in given.items()]

    @staticmethod
    def _way(name: str, own: dict) -> WaySettings:
        try:
            return WaySettings(
                name,
                own.get("baseline", ""),
                own.get("network", ""),
                similarity_terms(own["similarity"]) if "similarity" in own else {},
                own.get("options", {}),
                tuple(map(float, own.get("lam", ()))),
                tuple(Level(*level) for level in own.get("levels", ())),
            )
        except (TypeError, ValueError) as error:
            raise SettingsError(f"the way {name}: {error}") from error

    def way_pairs(self, dataset: str) -> int:
        """Validation pairs that the λ of the ways are compared on, the first ones; 0: all."""
        return int(self._section(dataset, "optimisation").get("pairs", 0))

    def folder(self, dataset: str, stage: str) -> Path:
        """Folder of a stage that is no training (data, evaluation, figures), made if it is missing."""
        known(f"dataset of profile {self.name}", dataset, self.tree)
        return writable(runs_root() / self.name / dataset / stage)


def writable(folder: Path) -> Path:
    """The folder itself, made if it is missing.

    Raises:
        SettingsError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"{folder}: the run folder cannot be written ({error.strerror}); "
            "free it or set DEEPSIMREG_RUNS to a folder of yours"
        ) from error
    return folder


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two runs are one; a training setting that did not exist yet counts as its default."""
    fit = dataclasses.asdict(FitSettings()) | before["settings"].get("fit", {})
    settings = before["settings"] | ({"fit": fit} if "fit" in before["settings"] else {})
    return settings == now["settings"] and all(before.get(key) == now[key] for key in ("inputs", "data_fingerprint"))


def configuration(folder: Path) -> dict[str, Any]:
    """What a run folder's config.yaml holds: settings, inputs, data fingerprint, provenance.

    Raises:
        SettingsError: there is no config.yaml.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise SettingsError(f"{folder}: no run (there is no config.yaml); name the folder of one")
    return yaml.safe_load(path.read_text())


def settings_of(folder: Path) -> Settings:
    """The settings of a run folder: what re-creates the run. Errors as `configuration`."""
    values = configuration(folder)["settings"]
    if "values" in values:
        return BaselineSettings(**values | {"values": tuple(values["values"])})
    kind = ExtractorSettings if "kind" in values else RegistrationSettings
    return kind(**values | {"fit": fit_settings(values["fit"])})


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time in a run folder: a second one waits until the first has ended."""
    writable(folder.parent)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{relative(folder)}: another process is at work on this run; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def figures_folder(profile: str, dataset: str) -> Path:
    """Where published figures go; the quick profile's, which show the machinery and no result, lie apart."""
    return FIGURES / profile / dataset if profile == QUICK else FIGURES / dataset


def write_json(path: Path, content: Any) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def provenance() -> dict[str, str]:
    """Versions of what computes the numbers, and the commit of the code."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    packages = ("deepsimreg", "torch", "lightning", "numpy", "scipy", "pandas")
    return {
        "commit": git.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


class Run:
    """The folder of one run.

    Args:
        settings: resolved settings; written to config.yaml.
        dataset: the data, whose fingerprint is written too.
        folder: empty for the profile's place; a relative one starts at the project.
        inputs: what the run is made from besides, such as the digest of its extractor's weights.

    Raises:
        SettingsError: the folder cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        folder: str = "",
        inputs: Mapping[str, str] | None = None,
    ):
        self.settings, self.folder = settings, writable(PROJECT / (folder or settings.folder))
        config = json.loads(json.dumps(dataclasses.asdict(settings)))
        identity = {"settings": config, "inputs": dict(inputs or {}), "data_fingerprint": dataset.fingerprint()}
        path = self.folder / "config.yaml"
        if path.is_file() and not _same(configuration(self.folder), identity):
            aside = self.folder.with_name(f"{self.folder.name}~{time.strftime('%Y%m%d-%H%M%S')}")
            self.folder.rename(aside)
            self.folder.mkdir()
            print(f"{self.folder.name}: settings, extractor or data have changed; the earlier run is now {aside.name}")
        if not path.is_file():
            temporary = self.folder / "config.yaml.tmp"
            temporary.write_text(yaml.safe_dump(identity | {"provenance": provenance()}, sort_keys=False))
            os.replace(temporary, path)

    @property
    def done(self) -> bool:
        return (self.folder / "done.json").is_file()

    @property
    def trained(self) -> Path:
        """Written when training has ended; what a notebook does after it can be repeated without training."""
        return self.folder / "training.json"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @staticmethod
    def result_of(folder: Path) -> dict:
        """What `finish` was given by the run of a folder.

        Raises:
            SettingsError: the run has not ended.
        """
        path = Path(folder) / "done.json"
        if not path.is_file():
            raise SettingsError(f"{folder}: no finished run; train it first (make paper PROFILE=…)")
        return json.loads(path.read_text())

    def finish(self, **result: Any) -> None:
        """Mark the run as ended and keep its results, beside those that are there."""
        before = self.result_of(self.folder) if self.done else {}
        write_json(self.folder / "done.json", before | result)

    def __str__(self) -> str:
        """Where the run is and what its best validation was."""
        best = self.result_of(self.folder)["best"]
        values = ", ".join(f"{name} {value:.4g}" for name, value in best.items())
        return f"{relative(self.folder)}: best {values}"


def relative(folder: Path) -> str:
    """A folder as it is called from the root of the runs: no machine's path gets into a notebook or a figure."""
    try:
        return str(Path("runs") / Path(folder).resolve().relative_to(runs_root().resolve()))
    except ValueError:
        return Path(folder).name


def run_folder(name: str) -> Path:
    """The folder that `relative` gave a name to."""
    return runs_root() / Path(name).relative_to("runs")


def main(profile: str) -> None:
    """Say where the results of a profile lie."""
    for dataset in Profile(profile).datasets:
        root = runs_root() / profile / dataset
        print(f"{dataset}: notebooks with results  {root}/*/notebook.ipynb")
        print(f"{dataset}: tables                  {root / 'evaluation'}")
        print(f"{dataset}: figures                 {figures_folder(profile, dataset)}")


if __name__ == "__main__":
    main(sys.argv[1])
