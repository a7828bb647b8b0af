"""The paper as a graph: every job is a notebook that papermill runs. `make paper` calls it.

snakemake --cores all --config profile=cpu          every run of experiments/cpu.yaml
snakemake -n --config profile=paper                 what would run
"""

import json
import shlex
import sys
from dataclasses import asdict

from deepsimreg.paper.paths import runs_root
from deepsimreg.paper.experiment import Profile
from deepsimreg.paths import PROJECT

profile = Profile(config.get("profile", "quick"))
ROOT = f"{runs_root() / profile.name}"
MODULES = [
    str(path)
    for path in sorted((PROJECT / "deepsimreg").rglob("*.py"))
    if path.stem not in {"notebook", "readme", "plots"}
]


def command(notebook: str) -> str:
    """Shell line that runs a notebook into its folder; profile and dataset are parameters of all of them."""
    return (
        f"{shlex.quote(sys.executable)} -m deepsimreg.paper.notebook run {shlex.quote(str(PROJECT / 'notebooks' / f'{notebook}.ipynb'))} {{params.folder:q}} "
        f"-p profile={profile.name} dataset={{wildcards.dataset}} {{params.parameters}}"
    )


def done(settings) -> str:
    return f"{settings.folder}/done.json"


def resolved(settings) -> str:
    """A change of any setting runs the job again; a λ that 06_tuning chooses counts by the file that it is in."""
    values = asdict(settings)
    if getattr(settings, "stage", "") != "tuning" and profile.chosen_by_tuning(settings.dataset, getattr(settings, "similarity", "")):
        values.pop("lam")
    return json.dumps(values, sort_keys=True)


def extractor_of(settings) -> list[str]:
    extractor = profile.extractor_for(settings)
    return [done(extractor)] if extractor else []


def choice_of(settings) -> list[str]:
    return [str(profile.choice(settings.dataset))] if profile.chosen_by_tuning(settings.dataset, settings.similarity) else []


def stages(dataset: str) -> list[str]:
    """What a dataset's profile asks for, besides its trainings."""
    wanted = {
        "data": True,
        "tuning": profile.tunings(dataset),
        "ablations": profile.ablations(dataset),
        "robustness": profile.noise(dataset),
        "optimisation": profile.ways(dataset),
        "figures": True,
    }
    return [stage for stage, there in wanted.items() if there]


def tuning(w):
    return profile.registration(w.dataset, w.method, float(w.lam), "tuning")


def trained(w):
    return profile.registration(w.dataset, w.method, stage=w.stage, seed=int(w.seed))


wildcard_constraints:
    dataset="[^/]+",
    method="[^/]+",
    stage="registration|ablation",


rule all:
    input:
        [f"{ROOT}/{dataset}/{stage}/done.json" for dataset in profile.datasets for stage in stages(dataset)],


rule data:
    input:
        f"{PROJECT}/notebooks/01_data.ipynb",
        MODULES,
    output:
        f"{ROOT}/{{dataset}}/data/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/data",
        parameters="",
    shell:
        command("01_data")


rule extractor:
    input:
        f"{PROJECT}/notebooks/02_feature_extractor.ipynb",
        MODULES,
    output:
        f"{ROOT}/{{dataset}}/extractor-{{name}}/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/extractor-{w.name}",
        parameters=lambda w: f"extractor={w.name}",
        settings=lambda w: resolved(profile.extractor(w.dataset, w.name)),
    resources:
        gpu=profile.gpu,
    shell:
        command("02_feature_extractor")


rule tuning_run:
    input:
        f"{PROJECT}/notebooks/03_registration.ipynb",
        MODULES,
        lambda w: extractor_of(tuning(w)),
    output:
        f"{ROOT}/{{dataset}}/tuning/{{method}}/lam-{{lam}}/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/tuning/{w.method}/lam-{w.lam}",
        parameters=lambda w: f"method={w.method} stage=tuning lam={w.lam}",
        settings=lambda w: resolved(tuning(w)),
    resources:
        gpu=profile.gpu,
    shell:
        command("03_registration")


rule tuning:
    input:
        f"{PROJECT}/notebooks/06_tuning.ipynb",
        lambda w: [done(settings) for settings in profile.tunings(w.dataset)],
    output:
        f"{ROOT}/{{dataset}}/tuning/done.json",
        f"{ROOT}/{{dataset}}/tuning/choice.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/tuning",
        parameters="",
    shell:
        command("06_tuning")


rule registration:
    input:
        f"{PROJECT}/notebooks/03_registration.ipynb",
        MODULES,
        lambda w: extractor_of(trained(w)),
        lambda w: choice_of(trained(w)),
    output:
        f"{ROOT}/{{dataset}}/{{stage}}/{{method}}/seed-{{seed}}/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/{w.stage}/{w.method}/seed-{w.seed}",
        parameters=lambda w: f"method={w.method} stage={w.stage} seed={w.seed}",
        settings=lambda w: resolved(trained(w)),
    resources:
        gpu=profile.gpu,
    shell:
        command("03_registration")


rule baseline:
    input:
        f"{PROJECT}/notebooks/03b_baselines.ipynb",
        MODULES,
        lambda w: extractor_of(profile.baseline(w.dataset, w.method)),
    output:
        f"{ROOT}/{{dataset}}/baseline/{{method}}/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/baseline/{w.method}",
        parameters=lambda w: f"method={w.method}",
        settings=lambda w: resolved(profile.baseline(w.dataset, w.method)),
    shell:
        command("03b_baselines")


def tested(w) -> list[str]:
    return [done(settings) for settings in [*profile.registrations(w.dataset), *profile.baselines(w.dataset)]]


rule evaluation:
    input:
        f"{PROJECT}/notebooks/04_evaluation.ipynb",
        MODULES,
        tested,
    output:
        f"{ROOT}/{{dataset}}/evaluation/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/evaluation",
        parameters="",
    shell:
        command("04_evaluation")


rule ablations:
    input:
        f"{PROJECT}/notebooks/07_ablations.ipynb",
        MODULES,
        lambda w: [done(settings) for settings in profile.ablations(w.dataset)],
    output:
        f"{ROOT}/{{dataset}}/ablations/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/ablations",
        parameters="",
    shell:
        command("07_ablations")


rule robustness:
    input:
        f"{PROJECT}/notebooks/08_robustness.ipynb",
        MODULES,
        lambda w: [done(settings) for settings in profile.registrations(w.dataset)],
    output:
        f"{ROOT}/{{dataset}}/robustness/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/robustness",
        parameters="",
    shell:
        command("08_robustness")


rule optimisation:
    input:
        f"{PROJECT}/notebooks/09_optimisation.ipynb",
        MODULES,
        tested,
        lambda w: [done(settings) for settings in profile.extractors(w.dataset)],
    output:
        f"{ROOT}/{{dataset}}/optimisation/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/optimisation",
        parameters="",
        settings=lambda w: json.dumps([asdict(way) for way in profile.ways(w.dataset)] + [profile.way_pairs(w.dataset)]),
    threads: workflow.resource_settings.cores or 1  # seconds are compared: nothing else runs beside it
    shell:
        command("09_optimisation")


rule figures:
    input:
        f"{PROJECT}/notebooks/05_figures.ipynb",
        f"{PROJECT}/deepsimreg/plots.py",
        f"{ROOT}/{{dataset}}/evaluation/done.json",
        lambda w: [f"{ROOT}/{w.dataset}/{s}/done.json" for s in stages(w.dataset) if s not in ("data", "figures")],
        lambda w: [done(settings) for settings in profile.extractors(w.dataset)],
    output:
        f"{ROOT}/{{dataset}}/figures/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/figures",
        parameters="",
    shell:
        command("05_figures")
