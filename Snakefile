"""The paper as a graph: every job is a notebook that papermill runs, one for each run of the profile (plan.py).

A job waits for and makes the file whose name holds the run's identity (run.py); files' times and Snakemake's own records
decide nothing. `make paper` calls it.
"""

import shlex
import sys

from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.paths import NOTEBOOKS
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.run import IN_GRAPH

try:
    plan = Profile(config.get("profile", "quick"))
    runs = {f"{run.dataset}/{run.name}": run for dataset in plan.datasets for run in plan.runs(dataset)}
except ValueError as error:
    sys.exit(f"error: {error}")
for run in runs.values():
    run.repair()


def command(run) -> str:
    """Shell line that runs a notebook into its folder; profile and dataset are parameters of all of them."""
    values = {"profile": run.profile, "dataset": run.dataset, **run.parameters}
    given = " ".join(shlex.quote(f"{name}={value}") for name, value in values.items())
    notebook, folder = shlex.quote(str(NOTEBOOKS / f"{run.chapter}.ipynb")), shlex.quote(str(run.folder))
    line = f"{shlex.quote(sys.executable)} -m deepsimreg.paper.notebook run {notebook} {folder} -p {given}"
    return f"{IN_GRAPH}=1 {line}"


rule all:
    input:
        [run.mark for run in runs.values()],


for key, run in runs.items():

    rule:
        name:
            "".join(c if c.isalnum() else "_" for c in key)
        input:
            [] if run.current else [ancient(one.mark) for one in run.inputs],  # what is current waits for nothing
        output:
            run.mark,
        params:
            line=command(run),
        threads: (workflow.resource_settings.cores or 1) if run.name == "optimisation" else run.resources.cpus
        resources:
            gpu=run.resources.gpu,
            mem_mb=run.resources.memory,
            runtime=run.resources.minutes,
        shell:
            "{params.line}"
