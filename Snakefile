"""The paper as a graph: every job is a notebook that papermill runs. `make paper` calls it.

snakemake --cores all --config profile=cpu          every run of experiments/cpu.yaml
snakemake -n --config profile=paper                 what would run
"""

import json
import shlex
import sys
from dataclasses import asdict

from deepsimreg.experiment import Profile
from deepsimreg.losses import required_extractor
from deepsimreg.paths import PROJECT, runs_root

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
        f"{shlex.quote(sys.executable)} -m deepsimreg.notebook run {shlex.quote(str(PROJECT / 'notebooks' / f'{notebook}.ipynb'))} {{params.folder:q}} "
        f"-p profile={profile.name} dataset={{wildcards.dataset}} {{params.parameters}}"
    )


def done(settings) -> str:
    return f"{settings.folder}/done.json"


def resolved(settings) -> str:
    """A change of any setting runs the job again."""
    return json.dumps(asdict(settings), sort_keys=True)


wildcard_constraints:
    dataset="[^/]+",


rule all:
    input:
        expand(f"{ROOT}/{{dataset}}/{{stage}}/done.json", dataset=profile.datasets, stage=["data", "figures"]),


rule data:
    input:
        f"{PROJECT}/notebooks/01_data.ipynb",
        MODULES,
    output:
        f"{ROOT}/{{dataset}}/data/done.json",
    params:
        folder=lambda wildcards: f"{ROOT}/{wildcards.dataset}/data",
        parameters="",
    shell:
        command("01_data")


rule extractor:
    input:
        f"{PROJECT}/notebooks/02_feature_extractor.ipynb",
        MODULES,
    output:
        f"{ROOT}/{{dataset}}/extractor-{{kind}}/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/extractor-{w.kind}",
        parameters=lambda w: f"kind={w.kind}",
        settings=lambda w: resolved(profile.extractor(w.dataset, w.kind)),
    resources:
        gpu=profile.gpu,
    shell:
        command("02_feature_extractor")


def extractor_of(wildcards) -> list[str]:
    kind = required_extractor(wildcards.similarity)
    return [done(profile.extractor(wildcards.dataset, kind))] if kind else []


rule registration:
    input:
        f"{PROJECT}/notebooks/03_registration.ipynb",
        MODULES,
        extractor_of,
    output:
        f"{ROOT}/{{dataset}}/registration/{{similarity}}/lam-{{lam}}/seed-{{seed}}/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/registration/{w.similarity}/lam-{w.lam}/seed-{w.seed}",
        parameters=lambda w: f"similarity={w.similarity} lam={w.lam} seed={w.seed}",
        settings=lambda w: resolved(
            profile.registration(w.dataset, w.similarity, float(w.lam), seed=int(w.seed))
        ),
    resources:
        gpu=profile.gpu,
    shell:
        command("03_registration")


rule evaluation:
    input:
        f"{PROJECT}/notebooks/04_evaluation.ipynb",
        MODULES,
        lambda w: [done(settings) for settings in profile.registrations(w.dataset)],
    output:
        f"{ROOT}/{{dataset}}/evaluation/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/evaluation",
        parameters="",
    shell:
        command("04_evaluation")


rule figures:
    input:
        f"{PROJECT}/notebooks/05_figures.ipynb",
        f"{PROJECT}/deepsimreg/plots.py",
        f"{ROOT}/{{dataset}}/evaluation/done.json",
        lambda w: [done(settings) for settings in profile.extractors(w.dataset)],
    output:
        f"{ROOT}/{{dataset}}/figures/done.json",
    params:
        folder=lambda w: f"{ROOT}/{w.dataset}/figures",
        parameters="",
    shell:
        command("05_figures")
