"""Training of one run of a profile on several devices, each a process of its own.

python -m deepsimreg.paper.train PROFILE DATASET RUN        as paper brain-mri registration/ncc/seed-0

The notebook of the run calls it and goes on with its files: processes that start in a notebook hang. Lightning starts
the others by this very command; they train alike, and the first one writes.
"""

import os
import threading
import time

from deepsimreg.paper.errors import check_choice, run_main
from deepsimreg.paper.extractors import extractor_parts, source_data
from deepsimreg.paper.plan import CHAPTERS, Profile
from deepsimreg.paper.registrations import lam_of, registration_parts
from deepsimreg.paper.training import fit


def main(profile: str, dataset: str, name: str) -> None:
    """Train, or go on from the checkpoint."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    plan = Profile(profile)
    runs = {run.name: run for run in (*plan.runs(dataset), *plan.tunings(dataset))}
    run = runs[check_choice(f"run of {profile}, {dataset}", name, runs)]
    if run.chapter == CHAPTERS["extractor"]:
        data = source_data(plan, run)
        make_module, items = extractor_parts(run, data)
    else:
        data = plan.data(dataset)
        make_module, items = registration_parts(plan, run, data, lam_of(run))
    fit(make_module, run.settings.fit, items("train"), items("validation"), data, run.folder, run.name)


def _end_with(parent: int) -> None:
    """End this process when the one that started it has died."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    run_main(main)
