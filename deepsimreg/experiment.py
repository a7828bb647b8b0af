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
from deepsimreg.losses import SIMILARITIES, required_extractor
from deepsimreg.paths import EXPERIMENTS, FIGURES, PROJECT, runs_root
from deepsimreg.training import FitSettings

EXTRACTORS = ("seg", "ae")
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
            raise SettingsError(f"training setting {name} is {value!r}, but must be of type {kind.__name__}") from None
    return FitSettings(**typed)


@dataclass(frozen=True)
class ExtractorSettings:
    """A feature extractor: the U-Net (`seg`) or the autoencoder (`ae`) of a dataset."""

    profile: str
    dataset: str
    kind: str  # seg or ae
    data: dict = field(default_factory=dict)  # options of the dataset
    network: dict = field(default_factory=dict)  # options of the network
    fit: FitSettings = field(default_factory=FitSettings)

    @property
    def folder(self) -> Path:
        return runs_root() / self.profile / self.dataset / f"extractor-{self.kind}"


@dataclass(frozen=True)
class RegistrationSettings:
    """A registration network: a similarity, its weight against the regulariser, and how it is trained."""

    profile: str
    dataset: str
    similarity: str  # a name in SIMILARITIES
    lam: float  # weight λ of the diffusion regulariser
    data: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)  # options of the similarity
    extractor: str = ""  # run folder of its feature extractor; empty: the profile's
    network: dict = field(default_factory=dict)
    fit: FitSettings = field(default_factory=FitSettings)

    @property
    def folder(self) -> Path:
        root = runs_root() / self.profile / self.dataset / "registration"
        return root / self.similarity / f"lam-{self.lam:g}" / f"seed-{self.fit.seed}"


SECTIONS = {
    "extractors": ("network", "fit", *EXTRACTORS),
    "registration": ("network", "fit", "seeds", "similarities"),
}


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
            known("dataset", dataset, DATASETS)
            for section, values in (sections or {}).items():
                where = f"{dataset}.{section} in {path.name}"
                known(f"section of {dataset} in {path.name}", section, ("data", *SECTIONS))
                if section == "data":
                    continue
                for key in values:
                    known(f"setting of {where}", key, SECTIONS[section])
                for kind in EXTRACTORS:
                    for key in values.get(kind) or {}:
                        known(f"setting of {kind} of {where}", key, ("network", "fit"))
                for similarity, own in values.get("similarities", {}).items():
                    known(f"similarity of {where}", similarity, SIMILARITIES)
                    for key in own or {}:
                        known(f"setting of {similarity} of {where}", key, ("lam", "options", "network", "fit"))
                    if not (own or {}).get("lam"):
                        raise SettingsError(f"{similarity} of {where} has no λ: give lam, a list")

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

    def load(self, dataset: str) -> Dataset:
        """The dataset, with the profile's options for it."""
        return load_dataset(dataset, **self._section(dataset, "data"))

    def similarities(self, dataset: str) -> list[str]:
        """Names of the similarities that the profile trains on a dataset."""
        return list(self._section(dataset, "registration").get("similarities", {}))

    def extractor(self, dataset: str, kind: str, **changes: Any) -> ExtractorSettings:
        """Settings of one extractor; `changes` replace settings of its training (steps, seed, …)."""
        section = self._section(dataset, "extractors")
        own = section.get(known("extractor", kind, EXTRACTORS)) or {}
        return ExtractorSettings(
            self.name,
            dataset,
            kind,
            self._section(dataset, "data"),
            section.get("network", {}) | own.get("network", {}),
            fit_settings(section.get("fit", {}) | own.get("fit", {}) | changes),
        )

    def registration(
        self, dataset: str, similarity: str, lam: float | None = None, **changes: Any
    ) -> RegistrationSettings:
        """Settings of one registration; `lam` None takes the first of the profile's."""
        section = self._section(dataset, "registration")
        known("similarity", similarity, SIMILARITIES)
        own = section.get("similarities", {}).get(similarity, {})
        if lam is None:
            if "lam" not in own:
                raise SettingsError(f"profile {self.name} has no λ for {similarity} on {dataset}: give lam")
            lam = own["lam"][0]
        return RegistrationSettings(
            self.name,
            dataset,
            similarity,
            float(lam),
            self._section(dataset, "data"),
            own.get("options", {}),
            "",
            section.get("network", {}) | own.get("network", {}),
            fit_settings(section.get("fit", {}) | own.get("fit", {}) | changes),
        )

    def registrations(self, dataset: str) -> list[RegistrationSettings]:
        """Every similarity × λ × seed of a dataset."""
        section = self._section(dataset, "registration")
        return [
            self.registration(dataset, similarity, lam, seed=seed)
            for similarity, own in section.get("similarities", {}).items()
            for lam in own["lam"]
            for seed in section.get("seeds", [0])
        ]

    def extractors(self, dataset: str) -> list[ExtractorSettings]:
        """The extractors that the similarities of a dataset need."""
        kinds = {required_extractor(name) for name in self.similarities(dataset)} - {None}
        return [self.extractor(dataset, kind) for kind in EXTRACTORS if kind in kinds]

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
    fit = dataclasses.asdict(FitSettings()) | before["settings"]["fit"]
    return all(before.get(key) == now[key] for key in ("inputs", "data_fingerprint")) and (
        before["settings"] | {"fit": fit} == now["settings"]
    )


def configuration(folder: Path) -> dict[str, Any]:
    """What a run folder's config.yaml holds: settings, inputs, data fingerprint, provenance.

    Raises:
        SettingsError: there is no config.yaml.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise SettingsError(f"{folder}: no run (there is no config.yaml); name the folder of one")
    return yaml.safe_load(path.read_text())


def settings_of(folder: Path) -> ExtractorSettings | RegistrationSettings:
    """The settings of a run folder: what re-creates the run. Errors as `configuration`."""
    values = configuration(folder)["settings"]
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
        settings: ExtractorSettings | RegistrationSettings,
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
