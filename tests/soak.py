"""Bad days: what becomes of the paper's runs when they are killed, cut, crowded or starved, against an undisturbed run.

    python tests/soak.py --seed 1 --minutes 30              # every kind in turn, until the time is up
    python tests/soak.py --seed 1 --days 20 --only kill

Each day begins with empty runs of a tiny profile, in a copy of the project. `make paper` is disturbed at a moment that
the seed draws; then the documented command is given, and the weights and tables are compared with those of the
undisturbed run. The difference has to be 0, or the command has to say what to do. A Markdown table is printed.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd
import psutil
import yaml
from safetensors.numpy import load_file

from deepsimreg.paths import PROJECT

SMALL = {"channels": [4, 6, 8], "light": True}
FIT = {"batch": 2, "validate_every": 30, "steps": 150, "learning_rate": 1.0e-3}
PLAN = {
    "phantom-2d": {
        "data": {"shape": [48, 48], "train": 6, "validation": 3, "test": 3},
        "extractors": {"network": SMALL, "fit": FIT},
        "registration": {
            "network": SMALL,
            "fit": FIT,
            "similarities": {"deepsim-seg": {"lam": 0.5}},
        },
        "baselines": {"greedy": {"smoothing": [0.7, 1]}},
    }
}
TARGETS = {
    "the kernel of a notebook": "ipykernel_launcher",
    "the runner of a notebook": "deepsimreg.paper.notebook",
    "the graph": "snakemake",
    "all processes": "",
}
SAYS = ("error", "damaged", "not gone on", "died", "failed", "waiting", "cannot", "processes ended", "begins anew")


class Place:
    """A copy of the project, and what is done in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        names = subprocess.check_output(["git", "ls-files", "-z"], cwd=PROJECT, text=True).split("\0")
        for name in filter(None, names):
            if (PROJECT / name).is_file() and not name.startswith(("figures/", "tests/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)
                os.utime(folder / name, (0, 0))  # the environment is newer, and is not installed again
        (folder / ".venv").symlink_to(PROJECT / ".venv")
        (folder / "experiments" / "soak.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False), encoding="utf-8")

    def start(self, runs: Path, target: str = "paper", **environment: str) -> subprocess.Popen:
        given = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "DEEPSIMREG_RUNS": str(runs)} | environment
        command = ["make", target, "PROFILE=soak", "CORES=2"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=os.environ | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, runs: Path, target: str = "paper", **environment: str) -> tuple[int, str]:
        """The command to its end: its exit status, and what it said."""
        process = self.start(runs, target, **environment)
        said = process.communicate(timeout=600)[0]
        return process.returncode, said


def results(runs: Path) -> dict[str, np.ndarray | str]:
    """Every weight and every cell of every table, by its place."""
    found = {}
    for path in sorted((runs / "soak").rglob("weights.safetensors")):
        place = path.relative_to(runs).as_posix()
        found |= {f"{place} {name}": value for name, value in load_file(path).items()}
    for path in sorted((runs / "soak").rglob("*.csv")):
        table = pd.read_csv(path).drop(columns="seconds", errors="ignore")
        table = table[table["metric"] != "seconds"] if "metric" in table else table
        found |= {f"{path.relative_to(runs)} {name}": table[name].to_numpy() for name in table}
    return {name: value for name, value in found.items() if "~" not in name}  # what was moved aside


def difference(found: dict, expected: dict) -> str:
    """Largest difference of any number; what is missing or has another size is named."""
    if found.keys() != expected.keys():
        return f"not the same files or columns: {', '.join(sorted(found.keys() ^ expected.keys())[:3])}"
    largest, where = 0.0, ""
    for name, value in expected.items():
        other = found[name]
        if value.shape != other.shape:
            return f"{name}: {other.shape} for {value.shape}"
        if value.dtype.kind in "fiub":
            apart = float(np.nanmax(np.abs(value.astype(float) - other.astype(float)), initial=0.0))
            largest, where = max((largest, where), (apart, name))
        elif not (pd.Series(value).fillna("") == pd.Series(other).fillna("")).all():
            return f"{name} differs"
    return f"{largest:g} in {where}" if largest else "0"


def alive(process: subprocess.Popen, word: str) -> list[psutil.Process]:
    """The processes below a command whose command line has a word in it."""
    with contextlib.suppress(psutil.Error):
        return [one for one in psutil.Process(process.pid).children(recursive=True) if word in " ".join(one.cmdline())]
    return []


class Days:
    """One method for each kind of day: it disturbs, gives the documented command, and says what was done and said."""

    def __init__(self, place: Place, seconds: float, rng: random.Random):
        self.place, self.seconds, self.rng = place, seconds, rng

    def _killed(self, runs: Path, word: str, how: int = signal.SIGKILL) -> str:
        """`make paper`, and the processes with that word are killed at a drawn moment."""
        moment = self.rng.uniform(0.05, 0.95) * self.seconds
        process = self.place.start(runs)
        deadline = time.time() + moment
        while time.time() < deadline and process.poll() is None:
            time.sleep(0.05)
        while not (hit := alive(process, word)) and process.poll() is None:
            time.sleep(0.02)
        for one in hit:
            with contextlib.suppress(psutil.Error):
                one.send_signal(how)
        process.communicate(timeout=300)
        return f"{moment:.1f} s"

    def kill(self, runs: Path) -> tuple[str, int, str]:
        what = self.rng.choice(list(TARGETS))
        moment = self._killed(runs, TARGETS[what])
        return f"{what} killed at {moment}", *self.place.make(runs, "resume")

    def interrupt(self, runs: Path) -> tuple[str, int, str]:
        moment = self.rng.uniform(0.0, 0.95) * self.seconds
        process = self.place.start(runs)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=300)
        return f"Ctrl-C at {moment:.1f} s", *self.place.make(runs)

    def crowd(self, runs: Path) -> tuple[str, int, str]:
        first = self.place.start(runs)
        time.sleep(self.rng.uniform(0, 0.5) * self.seconds)
        second = self.place.make(runs)
        said = first.communicate(timeout=600)[0]
        return f"two at once; exit {first.returncode} and {second[0]}", *self.place.make(runs)[:1], said + second[1]

    def cut(self, runs: Path) -> tuple[str, int, str]:
        """A file of an unfinished or of a finished run is cut, or emptied."""
        finished = self.rng.random() < 0.5
        if finished:
            self.place.make(runs)
        else:
            self._killed(runs, "")
        files = [path for path in sorted((runs / "soak").rglob("*")) if path.is_file() and "partial" not in path.name]
        files = [path for path in files if path.suffix in (".ckpt", ".csv", ".json", ".yaml", ".safetensors")]
        path, part = self.rng.choice(files), self.rng.choice([0, 0.5])
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
        what = f"{path.relative_to(runs / 'soak' / 'phantom-2d')} {'halved' if part else 'emptied'}"
        return f"{what}, {'finished' if finished else 'killed'}", *self.place.make(runs, "resume")

    def clock(self, runs: Path) -> tuple[str, int, str]:
        self._killed(runs, "")
        days = self.rng.choice([-400, 400])
        for path in runs.rglob("*"):
            os.utime(path, (time.time() + 86400 * days,) * 2)
        return f"killed; files {days:+d} days", *self.place.make(runs, "resume")

    def home(self, runs: Path) -> tuple[str, int, str]:
        home = self.rng.choice(["/nonexistent", str(self.place.folder / "Makefile")])
        return f"HOME is {'missing' if 'none' in home else 'a file'}", *self.place.make(runs, HOME=home)

    def umask(self, runs: Path) -> tuple[str, int, str]:
        before = os.umask(0o077)
        try:
            return "umask 077", *self.place.make(runs)
        finally:
            os.umask(before)

    def disk(self, runs: Path) -> tuple[str, int, str]:
        size = self.rng.choice([100, 300, 700, 1500])
        runs.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(runs)], check=True)
        try:
            given = self.place.make(runs)
            subprocess.run(["mount", "-o", "remount,size=200m", str(runs)], check=True)
            told = first_word(given[1])
            status, said = self.place.make(runs, "resume")
            kept = runs.with_name(runs.name + "-kept")
            shutil.copytree(runs, kept)
        finally:
            subprocess.run(["umount", "-l", str(runs)], check=True)
        runs.rmdir()
        kept.rename(runs)
        return f"disk full at {size} kB ({told}); then freed", status, said

    def path(self, runs: Path) -> tuple[str, int, str]:
        odd = Place(runs.parent / "it's a földer" / "of mine")
        return "blanks, apostrophe, umlaut in the path", *odd.make(runs)


def first_word(said: str) -> str:
    """The first line that says what happened."""
    lines = [line.strip() for line in said.splitlines() if any(word in line.lower() for word in SAYS)]
    return (lines or ["–"])[0][:110].replace("|", "/")


@contextlib.contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@click.command(help=__doc__)
@click.option("--seed", default=0)
@click.option("--minutes", default=30.0, help="no further day begins after them")
@click.option("--days", default=10**6, help="how many at most")
@click.option("--only", multiple=True, type=click.Choice([name for name in vars(Days) if name[0] != "_"]))
def main(seed: int, minutes: float, days: int, only: tuple[str, ...]) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    kinds = only or [name for name in vars(Days) if not name.startswith("_")]
    deadline, failed = time.time() + 60 * minutes, 0
    with tempfile.TemporaryDirectory() as folder:
        place, reference = Place(Path(folder, "project")), Path(folder, "reference")
        started = time.time()
        status, said = place.make(reference)
        if status:
            raise SystemExit(f"the undisturbed run failed:\n{said[-3000:]}")
        expected, seconds = results(reference), time.time() - started
        print(f"undisturbed: {seconds:.0f} s, {len(expected)} arrays and columns; seed {seed}\n")
        print("| day | kind | what | exit | difference | said |\n|---|---|---|---|---|---|", flush=True)
        for day in range(days):
            if time.time() > deadline:
                break
            rng = random.Random(f"{seed} {day}")
            kind = kinds[day % len(kinds)]
            with emptied(Path(folder, f"day-{day}")) as here:
                act: Callable = getattr(Days(place, seconds, rng), kind)
                what, status, said = act(here / "runs")
                found = difference(results(here / "runs"), expected)
                failed += found != "0"
                print(f"| {day} | {kind} | {what} | {status} | {found} | {first_word(said)} |", flush=True)
    raise SystemExit(f"\n{failed} days ended in other results" if failed else 0)


if __name__ == "__main__":
    main()
