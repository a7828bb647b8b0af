"""Bad days: what becomes of the paper's runs when they are killed, cut, crowded or starved, against an undisturbed run.

    python tests/soak.py --seed 1 --minutes 30              # every kind in turn, until the time is up
    python tests/soak.py --seed 1 --days 20 --only kill

Each day begins with the runs of a tiny profile, two of them missing or all, in a copy of the project. `make paper` is
disturbed at a moment that the seed draws; then the same command is given again, and the weights and tables are compared
with those of the undisturbed run. The difference has to be 0, or the command has to say what to do. A Markdown table is
printed. Filling a disk takes a tmpfs, so that kind needs root.
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
SAYS = ("error", "damaged", "not gone on", "died", "failed", "waiting", "cannot", "were ended", "begins anew", "is now")
CUT = (".ckpt", ".csv", ".json", ".yaml", ".safetensors", ".ipynb", ".png", ".pdf")


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

    def start(self, runs: Path, **environment: str) -> "Call":
        given = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "DEEPSIMREG_RUNS": str(runs)} | environment
        return Call(["make", "paper", "PROFILE=soak", "CORES=2"], self.folder, os.environ | given)

    def make(self, runs: Path, **environment: str) -> tuple[int, str]:
        """The documented command to its end: its exit status, and what it said."""
        return self.start(runs, **environment).end()


class Call:
    """A command in a process group of its own; what it says goes to a file, which a process that outlives it keeps."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]):
        self.file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        given = {"stdout": self.file, "stderr": subprocess.STDOUT, "start_new_session": True}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, **given)

    def end(self) -> tuple[int, str]:
        status = self.process.wait(timeout=900)
        self.file.seek(0)
        return status, self.file.read()

    def alive(self, word: str) -> list[psutil.Process]:
        """The processes below this one whose command line has a word in it."""
        found = []
        for one in (*psutil.Process(self.process.pid).children(recursive=True),) if self.process.poll() is None else ():
            with contextlib.suppress(psutil.Error):
                found += [one] if word in " ".join(one.cmdline()) else []
        return found


def results(runs: Path) -> dict[str, np.ndarray | str]:
    """Every weight and every cell of every table, by its place."""
    found = {}
    for path in sorted(runs.rglob("weights.safetensors")):
        place = path.relative_to(runs).as_posix()
        found |= {f"{place} {name}": value for name, value in load_file(path).items()}
    for path in sorted(runs.rglob("*.csv")):
        try:
            table = pd.read_csv(path).drop(columns="seconds", errors="ignore")
        except ValueError:
            table = pd.DataFrame({"damaged": []})
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
            both = np.stack([value, other]).astype(float)
            apart = np.abs(np.nan_to_num(both[0], nan=np.pi) - np.nan_to_num(both[1], nan=np.pi)).max(initial=0.0)
            largest, where = max((largest, where), (float(apart), name))
        elif not (pd.Series(value).fillna("") == pd.Series(other).fillna("")).all():
            return f"{name} differs"
    return f"{largest:g} in {where}" if largest else "0"


class Days:
    """One method for each kind of day: it disturbs, gives the documented command, and says what was done and said."""

    def __init__(self, place: Place, reference: Path, seconds: float, rng: random.Random):
        self.place, self.reference, self.seconds, self.rng = place, reference, seconds, rng

    def _begun(self, runs: Path) -> str:
        """Begin with the undisturbed runs but two, whose names are returned: a day is shorter."""
        shutil.copytree(self.reference, runs, dirs_exist_ok=True)
        marks = sorted(runs.rglob("done-*.json"))
        missing = [path.parent for path in self.rng.sample(marks, 2)]
        for folder in missing:
            shutil.rmtree(folder)
        return " and ".join(str(path.relative_to(runs / "soak" / "phantom-2d")) for path in missing)

    def _killed(self, runs: Path, word: str) -> str:
        """`make paper`, and the processes with that word are killed at a drawn moment; what outlives them goes on."""
        moment = self.rng.uniform(0.0, 0.9) * self.seconds / 3
        call, deadline = self.place.start(runs), time.monotonic() + moment
        while time.monotonic() < deadline and call.process.poll() is None:
            time.sleep(0.05)
        while not (hit := call.alive(word)) and call.process.poll() is None:
            time.sleep(0.02)
        if word == "":
            hit = [psutil.Process(call.process.pid), *hit] if call.process.poll() is None else []
        for one in hit:
            with contextlib.suppress(psutil.Error):
                one.kill()
        return f"{moment:.1f} s ({working(call.end()[1])})" + ("" if hit else ", too late")

    def kill(self, runs: Path) -> tuple[str, int, str]:
        """Up to three kills, each followed by the command; what the last one leaves is what is compared."""
        done = [f"of {self._begun(runs)}"]
        for _ in range(self.rng.randint(1, 3)):
            what = self.rng.choice(list(TARGETS))
            done.append(f"{what} killed at {self._killed(runs, TARGETS[what])}")
        return "; ".join(done), *self.place.make(runs)

    def interrupt(self, runs: Path) -> tuple[str, int, str]:
        done = [f"of {self._begun(runs)}"]
        for _ in range(self.rng.randint(1, 3)):
            moment = self.rng.uniform(0.0, 0.9) * self.seconds / 3
            call = self.place.start(runs)
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(call.process.pid, signal.SIGINT)
            status, said = call.end()
            left = [
                one for one in psutil.process_iter(["cmdline"]) if f"{runs}/" in " ".join(one.info["cmdline"] or [])
            ]
            done.append(f"Ctrl-C at {moment:.1f} s ({working(said)}; {len(left)} left, exit {status})")
        return "; ".join(done), *self.place.make(runs)

    def crowd(self, runs: Path) -> tuple[str, int, str]:
        begun, first = self._begun(runs), self.place.start(runs)
        time.sleep(self.rng.uniform(0, 0.2) * self.seconds)
        second, (status, said) = self.place.make(runs), first.end()
        return f"{begun} by two at once: exit {status} and {second[0]}", self.place.make(runs)[0], said + second[1]

    def cut(self, runs: Path) -> tuple[str, int, str]:
        """Three files of an unfinished or of a finished run are cut, or emptied, one after the other."""
        finished, done = self.rng.random() < 0.5, []
        if finished:
            shutil.copytree(self.reference, runs)
        else:
            done.append(f"{self._begun(runs)}, killed at {self._killed(runs, '')}")
        for _ in range(3):
            files = [path for path in sorted((runs / "soak").rglob("*")) if path.is_file() and path.name[0] != "."]
            files = [path for path in files if path.suffix in CUT]
            if not files:
                break
            path, part = self.rng.choice(files), self.rng.choice([0, 0.5])
            path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
            done.append(f"{path.relative_to(runs / 'soak' / 'phantom-2d')} {'halved' if part else 'emptied'}")
        return f"{'finished' if finished else 'unfinished'}: {'; '.join(done)}", *self.place.make(runs)

    def clock(self, runs: Path) -> tuple[str, int, str]:
        when = f"{self._begun(runs)} killed at {self._killed(runs, '')}"
        days = self.rng.choice([-400, 400])
        for path in runs.rglob("*"):
            os.utime(path, (time.time() + 86400 * days,) * 2)
        return f"{when}; times of files {days:+d} days", *self.place.make(runs)

    def home(self, runs: Path) -> tuple[str, int, str]:
        home = self.rng.choice(["/proc/none", str(self.place.folder / "Makefile")])
        return f"HOME is {'missing' if 'none' in home else 'a file'}", *self.place.make(runs, HOME=home)

    def umask(self, runs: Path) -> tuple[str, int, str]:
        before = os.umask(0o077)
        try:
            return "umask 077", *self.place.make(runs)
        finally:
            os.umask(before)

    def disk(self, runs: Path) -> tuple[str, int, str]:
        need, part, temporary = size_of(self.reference), self.rng.random(), self.rng.random() < 0.5
        begun = self._begun(runs)
        size = size_of(runs) + int(part * (need - size_of(runs)))
        kept = runs.rename(runs.with_name(runs.name + "-kept"))
        runs.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(runs)], check=True)
        try:
            shutil.copytree(kept, runs, dirs_exist_ok=True)
            shutil.rmtree(kept)
            given = {"TMPDIR": str(runs)} if temporary else {}
            told = first_word(self.place.make(runs, **given)[1])
            subprocess.run(["mount", "-o", "remount,size=200m", str(runs)], check=True)
            status, said = self.place.make(runs, **given)
            shutil.copytree(runs, kept, ignore=shutil.ignore_patterns("tmp*"))
        finally:
            subprocess.run(["umount", "-l", str(runs)], check=True)
        runs.rmdir()
        kept.rename(runs)
        where = "runs and temporary files" if temporary else "runs"
        return f"{begun}; disk of {where} full at {size} of {need} kB: {told}; then freed", status, said

    def path(self, runs: Path) -> tuple[str, int, str]:
        odd = Place(runs.parent / "it's a földer" / "of mine")
        inside = odd.folder / "runs of mine"
        done = odd.make(inside)
        inside.rename(runs)
        return "blanks, apostrophe, umlaut in the path", *done


def size_of(runs: Path) -> int:
    """kB that a tmpfs takes for a folder: whole pages."""
    return sum(4 * -(-max(path.stat().st_size, 1) // 4096) for path in runs.rglob("*"))


def working(said: str) -> str:
    """What was at work when a command ended: the last run that had started."""
    started = [line for line in said.splitlines() if line.endswith(": started")]
    ended = [line for line in said.splitlines() if ": done in " in line]
    if not started or started[-1].removesuffix(": started") in {line.partition(": done in ")[0] for line in ended}:
        return f"after {len(ended)} runs"
    return "in " + started[-1].replace("profile=soak dataset=phantom-2d", "").removesuffix(": started").strip()


def first_word(said: str) -> str:
    """The first line that says what happened, or the last of all."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith((".venv", "/", " "))]
    found = [line for line in lines if any(word in line.lower() for word in SAYS)]
    return (found or lines[-1:] or ["nothing"])[0][:160].replace("|", "/")


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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background it is ignored, by what is started, too
    kinds = only or [name for name in vars(Days) if not name.startswith("_")]
    deadline, failed = time.monotonic() + 60 * minutes, 0
    with tempfile.TemporaryDirectory() as folder:
        place, reference = Place(Path(folder, "project")), Path(folder, "reference")
        started = time.monotonic()
        status, said = place.make(reference)
        if status:
            raise SystemExit(f"the undisturbed run failed:\n{said[-3000:]}")
        expected, seconds = results(reference), time.monotonic() - started
        print(f"undisturbed: {seconds:.0f} s, {len(expected)} arrays and columns; seed {seed}\n")
        print("| day | kind | what | exit | difference | said |\n|---|---|---|---|---|---|", flush=True)
        for day in range(days):
            if time.monotonic() > deadline:
                break
            rng, kind = random.Random(f"{seed} {day}"), kinds[day % len(kinds)]
            with emptied(Path(folder, f"day-{day}")) as here:
                act: Callable = getattr(Days(place, reference, seconds, rng), kind)
                what, status, said = act(here / "runs")
                found = difference(results(here / "runs"), expected)
                failed += found != "0" or status != 0
                print(f"| {day} | {kind} | {what} | {status} | {found} | {first_word(said)} |", flush=True)
    raise SystemExit(f"\n{failed} days ended in other results" if failed else 0)


if __name__ == "__main__":
    main()
