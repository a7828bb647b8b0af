"""The runs of a profile, each with its settings, inputs, code, folder and identity; nothing is made here."""

import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from deepsimreg.data import DATASETS, load_dataset
from deepsimreg.data.base import Dataset
from deepsimreg.losses.registry import SIMILARITIES
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS
from deepsimreg.models.store import tensor_digest
from deepsimreg.paper import resolve
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.errors import SettingsError, check_choice
from deepsimreg.paper.paths import NOTEBOOKS
from deepsimreg.paper.run import IN_GRAPH, Run
from deepsimreg.paper.settings import DatasetPart, Fit, Lam, MethodPart, read_profile
from deepsimreg.paths import PROJECT

PAPER = "deepsimreg.paper"
CHAPTERS = {  # stage → notebook
    "data": "01_data",
    "extractor": "02_feature_extractor",
    "registration": "03_registration",
    "baseline": "04_baselines",
    "evaluation": "06_evaluation",
    "figures": "11_figures",
    "tuning": "05_tuning",
    "ablations": "07_ablations",
    "robustness": "08_robustness",
    "optimisation": "09_optimisation",
}


class Profile:
    """The runs of `experiments/<name>.yaml`.

    fingerprints: of datasets whose files are not at hand; others are computed when they are needed. SettingsError for
    anything in the profile that cannot be; the message names file, key and what there is.
    """

    def __init__(self, name: str, fingerprints: Mapping[str, str] | None = None):
        self.name, self.parts = name, read_profile(name)
        self._fingerprints = dict(fingerprints or {})
        self._loaded: dict[str, Dataset] = {}
        self._runs: dict[tuple, Run] = {}
        for dataset, part in self.parts.items():
            try:
                resolve.check_names(dataset, part, self.parts, CHAPTERS)
                resolve.check_options(part)
                if part.reference:
                    check_choice("reference", part.reference, self.evaluated(dataset))
            except SettingsError as error:
                raise SettingsError(f"{name}.yaml: {dataset}: {error}") from None

    @property
    def datasets(self) -> list[str]:
        return list(self.parts)

    def part(self, dataset: str) -> DatasetPart:
        return self.parts[check_choice(f"dataset of profile {self.name}", dataset, self.parts)]

    def data(self, dataset: str) -> Dataset:
        """The dataset, with the profile's options for it. SettingsError if its description has another name."""
        if dataset not in self._loaded:
            options = dict(self.part(dataset).data)
            description = options.pop("description", None)
            loaded = load_dataset(str(PROJECT / description) if description else dataset, **options)
            if loaded.name != dataset:
                raise SettingsError(f"{description} describes '{loaded.name}', but {self.name}.yaml says '{dataset}'")
            resolve.check_labelled(loaded, self.part(dataset))
            self._loaded[dataset] = loaded
        return self._loaded[dataset]

    def fingerprint(self, dataset: str) -> str:
        if dataset not in self._fingerprints:
            self._fingerprints[dataset] = self.data(dataset).fingerprint()
        return self._fingerprints[dataset]

    def _run(self, dataset: str, name: str, stage: str, settings: BaseModel, code: Iterable[str], **more: Any) -> Run:
        """One object for each run, so that its identity is computed once.

        more: of it; source: if of other data; stages: whose resources it takes, if not those of its own.
        """
        part, source, stages = self.part(dataset), more.pop("source", "") or dataset, more.pop("stages", [stage])
        key = (dataset, name, settings.model_dump_json())
        if key not in self._runs:
            own = "description" in self.part(source).data
            code = (*code, "deepsimreg.data.own" if own else DATASETS.module(source))
            more |= {"resources": resolve.resources(part, stages, getattr(settings, "fit", Fit()))}
            more |= {"data": {source: self.fingerprint(source)}, "on_demand": part.on_demand}
            self._runs[key] = Run(self.name, dataset, name, CHAPTERS[stage], settings, code=code, **more)
        return self._runs[key]

    # extractors

    def extractor(self, dataset: str, name: str, place: str = "", **changes: Any) -> Run:
        """The run of one extractor; `changes` of its training need a place of their own."""
        settings = resolve.extractor_settings(self.part(dataset), name)
        code = (f"{PAPER}.extractors", EXTRACTORS.module(settings.kind))
        more = {"parameters": {"extractor": name}, "source": settings.source}
        run = self._run(dataset, f"extractor-{name}", "extractor", settings, code, **more)
        return run.changed(place, settings.model_copy(update={"fit": resolve.changed_fit(settings.fit, changes)}))

    def _needed(self, dataset: str, names: Iterable[str]) -> list[Run]:
        """The runs of extractors; SettingsError for one that is to learn labels where there are none."""
        runs = [self.extractor(dataset, name) for name in names if name and name not in resolve.FIXED_EXTRACTORS]
        for run in runs:
            resolve.check_labelled(self._loaded.get(*run.data), run.settings, f"{dataset}: {run.name}")
        return runs

    @staticmethod
    def _modules(extractors: Iterable[Run]) -> list[str]:
        return [EXTRACTORS.module(one.settings.kind) for one in extractors]

    def extractors(self, dataset: str) -> list[Run]:
        """The extractors that the runs of a dataset are made from, in the order of the profile."""
        users = [*self.registrations(dataset), *self.ablations(dataset), *self.baselines(dataset)]
        users += [self.optimisation(dataset)] if self.methods(dataset) else []
        needed = {one.name for run in users for one in run.inputs}
        names = resolve.extractor_names(self.part(dataset))
        return [self.extractor(dataset, name) for name in names if f"extractor-{name}" in needed]

    # registration networks

    def networks(self, dataset: str) -> list[str]:
        """The similarities that networks are trained with."""
        return list(self.part(dataset).registration.similarities)

    def registration(
        self,
        dataset: str,
        method: str,
        stage: str = "registration",
        lam: Lam | str = "tuned",
        seed: int | None = None,
        place: str = "",
        extractor: str = "",
        **changes: Any,
    ) -> Run:
        """The run of one registration network.

        Args:
            method: a similarity; in the stage ablation a variant, or a method that others are variants of.
            stage: tuning, registration or ablation.
            lam: a number; "tuned": the profile's, or the best of its grid. One that is not the profile's needs a place.
            seed: None: the first of the profile.
            place: folder of a run with settings of one's own.
            extractor: name in the profile, or folder of a run, in place of the profile's; needs a place.
            changes: of the training; they need a place.
        """
        settings = resolve.registration_settings(self.part(dataset), method, stage)
        fit = settings.fit if seed is None else settings.fit.model_copy(update={"seed": seed})
        repeats = (settings.extractor, *self.part(dataset).repeats.get(settings.extractor, ()))
        seeds = self.part(dataset).registration.seeds if stage == "registration" else ()
        number = min(seeds.index(fit.seed) if fit.seed in seeds else 0, len(repeats) - 1)
        planned = settings.model_copy(update={"fit": fit, "extractor": repeats[number]})
        wanted = planned if lam == "tuned" else planned.model_copy(update={"lam": float(lam), "grid": ()})
        planned = wanted if stage == "tuning" else planned
        last = f"lam-{planned.lam!r}" if stage == "tuning" else f"seed-{fit.seed}"
        parameters = {"method": method, "stage": stage, "seed": fit.seed}
        parameters |= {"lam": planned.lam} if stage == "tuning" else {}
        extractors = self._needed(dataset, [planned.extractor])
        tunings = [self.registration(dataset, planned.similarity, "tuning", value) for value in planned.grid]
        modules = [ARCHITECTURES.module(planned.architecture), planned.loss.split(":")[0], *self._modules(extractors)]
        code = (f"{PAPER}.registrations", *modules)
        stages = ("ablations" if stage == "ablation" else stage, "registration")
        more = {"parameters": parameters, "inputs": (*extractors, *tunings), "stages": stages}
        run = self._run(dataset, f"{stage}/{method}/{last}", "registration", planned, code, **more)
        if extractor and not planned.extractor:
            raise SettingsError(f"{planned.similarity} compares no features: leave extractor empty")
        own = {"fit": resolve.changed_fit(fit, changes), "extractor": extractor or planned.extractor}
        if "/" in extractor:
            own["weights"] = tensor_digest(PROJECT / extractor / "weights.safetensors")
        return run.changed(place, wanted.model_copy(update=own))

    def registrations(self, dataset: str) -> list[Run]:
        """Every similarity × seed of a dataset, each with its λ."""
        seeds = self.part(dataset).registration.seeds
        return [self.registration(dataset, name, seed=seed) for name in self.networks(dataset) for seed in seeds]

    def tunings(self, dataset: str) -> list[Run]:
        """Every similarity × λ of its grid, with the first seed."""
        parts = self.part(dataset).registration.similarities
        return [self.registration(dataset, name, "tuning", lam) for name, part in parts.items() for lam in part.grid]

    def groups(self, dataset: str) -> dict[str, tuple[str, str]]:
        """Variant → (the group it is shown in, the method it is a variant of)."""
        found = self.part(dataset).ablations.variants
        names = resolve.variant_names(self.part(dataset))
        return {name: (found[name].group, found[name].of) if name in found else ("", name) for name in names}

    def ablations(self, dataset: str) -> list[Run]:
        """Every variant × seed of the ablations, the methods they start from first."""
        seeds = self.part(dataset).ablations.seeds
        names = resolve.variant_names(self.part(dataset))
        return [self.registration(dataset, name, "ablation", seed=seed) for name in names for seed in seeds]

    # baselines

    def baseline(self, dataset: str, name: str) -> Run:
        settings = resolve.baseline_settings(self.part(dataset), name)
        inputs = self._needed(dataset, [BASELINES[name].extractor or ""])
        code = (f"{PAPER}.methods", BASELINES[name].module, *self._modules(inputs))
        more = {"parameters": {"method": name}, "inputs": tuple(inputs)}
        return self._run(dataset, f"baseline/{name}", "baseline", settings, code, **more)

    def baselines(self, dataset: str) -> list[Run]:
        return [self.baseline(dataset, name) for name in self.part(dataset).baselines]

    # chapters that make tables and figures

    def chapter(self, dataset: str, stage: str) -> Run:
        """The run of a chapter that makes tables or figures."""
        part = self.part(dataset)
        if stage == "optimisation":
            return self.optimisation(dataset)
        inputs, values = {
            "data": lambda: ([], {}),
            "tuning": lambda: (
                self.tunings(dataset),
                {"lam": {name: one.lam for name, one in part.registration.similarities.items()}},
            ),
            "evaluation": lambda: (
                [*self.registrations(dataset), *self.baselines(dataset), *self.tunings(dataset)],
                {"reference": self.reference(dataset)},
            ),
            "ablations": lambda: (self.ablations(dataset), {"groups": self.groups(dataset)}),
            "robustness": lambda: (
                [*self.registrations(dataset), *([self.optimisation(dataset)] if part.robustness.methods else [])],
                part.robustness.model_dump(mode="json"),
            ),
            "figures": lambda: ([*self.extractors(dataset), *self.reports(dataset)], {}),
        }[check_choice("chapter", stage, [*CHAPTERS])]()
        code = {f"{PAPER}.tables"} if inputs else set()
        code |= {*self.optimisation(dataset).code} if stage == "robustness" and part.robustness.methods else set()
        return self._chapter(dataset, stage, inputs, values, sorted(code))

    def _chapter(self, dataset: str, stage: str, inputs: Iterable[Run], values: dict, code: Iterable[str]) -> Run:
        """Tables are made by the modules alone; where a chapter itself draws or shows, its own code counts, too."""
        own = [f"notebooks/{CHAPTERS[stage]}.py"] if stage in ("data", "figures") else []
        code = (*code, *own)
        stages = {"tuning": [], "ablations": ["evaluation"], "robustness": [stage, "evaluation"]}.get(stage, [stage])
        more = {"inputs": tuple(inputs), "stages": stages}
        return self._run(dataset, stage, stage, resolve.ChapterSettings(values=values), code, **more)

    def evaluated(self, dataset: str) -> list[str]:
        """The methods of the evaluation; "unregistered" are the pairs before it."""
        return [*self.networks(dataset), *self.part(dataset).baselines, "unregistered"]

    def reference(self, dataset: str) -> str:
        """The method that the others are tested against."""
        methods = self.evaluated(dataset)
        return self.part(dataset).reference or ("deepsim-seg" if "deepsim-seg" in methods else methods[0])

    def methods(self, dataset: str) -> dict[str, MethodPart]:
        """The methods of the optimisation chapter."""
        return self.part(dataset).optimisation.methods

    def optimisation(self, dataset: str) -> Run:
        """The chapter that registers one pair at a time; its inputs and code are those of its methods."""
        inputs, code = [], {f"{PAPER}.optimisation"}
        for part in self.methods(dataset).values():
            if part.baseline:
                inputs += [] if part.lam else [self.baseline(dataset, part.baseline)]
                code |= {BASELINES[part.baseline].module}
            inputs += [self.registration(dataset, part.network)] if part.network else []
            extractors = self._needed(dataset, resolve.method_extractors(self.part(dataset), part))
            inputs += extractors
            code |= {SIMILARITIES[name].loss.partition(":")[0] for name in part.similarity}
            code |= {*self._modules(extractors)}
        unique = {run.name: run for run in inputs}.values()
        values = resolve.optimisation_values(self.part(dataset))
        return self._chapter(dataset, "optimisation", unique, values, sorted(code))

    def reports(self, dataset: str) -> list[Run]:
        """The chapters with tables that a dataset's profile asks for."""
        part = self.part(dataset)
        asked = {
            "tuning": self.tunings(dataset),
            "evaluation": self.networks(dataset) or part.baselines,
            "ablations": part.ablations.variants,
            "robustness": part.robustness.noise or part.robustness.contrast,
            "optimisation": part.optimisation.methods,
        }
        return [self.chapter(dataset, stage) for stage, wanted in asked.items() if wanted]

    def figures(self, dataset: str) -> list[Run]:
        """The chapter of figures, which draws the evaluation: there is none without one."""
        return [self.chapter(dataset, "figures")] if self.networks(dataset) or self.part(dataset).baselines else []

    def runs(self, dataset: str) -> list[Run]:
        """All runs of a dataset, each after those that it is made from."""
        ordered: dict[str, Run] = {}

        def add(run: Run) -> None:
            for one in run.inputs:
                add(one)
            ordered.setdefault(f"{run.dataset}/{run.name}", run)

        last = self.figures(dataset) or self.reports(dataset)
        for run in (self.chapter(dataset, "data"), *self.extractors(dataset), *last):
            add(run)
        return list(ordered.values())

    def all_runs(self) -> dict[str, Run]:
        """The runs of all datasets by `<dataset>/<name>`, each after those that it is made from."""
        return {f"{run.dataset}/{run.name}": run for dataset in self.datasets for run in self.runs(dataset)}


def command(run: Run) -> str:
    """Shell line that runs a notebook into its folder; profile and dataset are parameters of all of them."""
    values = {"profile": run.profile, "dataset": run.dataset, **run.parameters}
    given = " ".join(shlex.quote(f"{name}={value}") for name, value in values.items())
    notebook, folder = shlex.quote(str(NOTEBOOKS / f"{run.chapter}.ipynb")), shlex.quote(str(run.folder))
    line = f"{shlex.quote(sys.executable)} -m deepsimreg.paper.notebook run {notebook} {folder} -p {given}"
    return f"{IN_GRAPH}=1 {line}"
