"""Runs that are made in a process of their own, which is disturbed; `made` forks it from one that has torch loaded."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from conftest_tree import SMALL, D, make_inputs

TREE = {
    D: {
        "data": {"shape": [32, 32], "train": 3, "validation": 2, "test": 2},
        "registration": {
            "network": SMALL,
            "fit": {"steps": 6, "batch": 1, "validate_every": 2, "learning_rate": 1e-3},
            "similarities": {"mse": {"lam": 0.1}},
        },
        "baselines": {"greedy": {"smoothing": [0.7, 1], "options": {"iterations": [4]}}},
    }
}
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["deepsimreg.paper.tables", "torch.utils.tensorboard", "picsl_greedy", "disturbed"])


def made(folder: Path, disturb: Callable | None = None, *options) -> tuple[int, str]:
    """Make a network, a baseline and their evaluation in a folder; returns the exit status and what was said."""
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(TREE))
    process = FORKED.Process(target=_make, args=(folder, disturb, *options))
    process.start()
    process.join()
    return process.exitcode, (folder / "said").read_text()


def _make(folder: Path, disturb: Callable | None, *options) -> None:
    from deepsimreg.paper import settings
    from deepsimreg.paper.plan import Profile
    from deepsimreg.paper.tables import evaluation

    os.environ["DEEPSIMREG_RUNS"] = str(folder / "runs")
    settings.EXPERIMENTS = folder
    sys.stdout = (folder / "said").open("w", buffering=1)
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # progress
    if disturb:
        disturb(*options)
    try:
        plan = Profile("mine")
        for run in plan.runs(D):  # as the graph does before it makes them
            run.repair()
        make_inputs(plan, plan.chapter(D, "evaluation"))
        evaluation(plan, D)
    except Exception as error:
        print(f"{type(error).__name__}: {error}"[:300])
        sys.exit(1)


def killed_at(name: str, before: bool) -> None:
    """From here on this process is killed when it writes a file of that name: before it is in its place, or after."""
    replace = os.replace

    def dies(source, target, **more):
        hit = Path(target).name.startswith(name)
        if not (hit and before):
            replace(source, target, **more)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dies


def noted(path: Path) -> None:
    """From here on this process notes the names of the files that it writes."""
    replace = os.replace

    def notes(source, target, **more):
        with path.open("a", encoding="utf-8") as file:
            file.write(Path(target).name + "\n")
        replace(source, target, **more)

    os.replace = notes


def small_disk(most: int) -> None:
    """From here on no file of this process may have more bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
