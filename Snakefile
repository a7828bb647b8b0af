"""The paper as a graph: every job is a notebook that papermill runs, one for each run of the profile (plan.py).

A job waits for and makes the file whose name holds the run's identity (run.py); files' times and Snakemake's own records
decide nothing. `make paper` calls it.
"""

import signal
import sys

from deepsimreg.paper.plan import Profile, command

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # when its reader has left, Snakemake would wait for ever for a job
try:
    runs = Profile(config.get("profile", "quick")).all_runs()
except ValueError as error:
    sys.exit(f"error: {error}")
for run in runs.values():
    run.repair()


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
        resources:  # `--resources gpu=1` holds back what one machine does not have
            gpu=run.resources.gpu,
            mem_mb=run.resources.memory,
        shell:
            "{params.line}"
