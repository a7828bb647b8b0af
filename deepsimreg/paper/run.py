"""A run: one set of resolved settings, one identity, one folder.

The identity is the digest of the settings, the data, the identities of the runs that this one is made from, and the
code that decides its numbers. A run ends by writing `done-<identity>.json`, last of all. The folder asks for that file,
and so does the graph: they cannot disagree. A folder that holds another identity's run is moved aside.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel

from deepsimreg.files import remove_partial
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.files import read_json, size_of, writable, write_json, write_text
from deepsimreg.paper.identity import code_digest, digest
from deepsimreg.paper.paths import runs_root
from deepsimreg.paper.processes import IN_GRAPH, RECORD
from deepsimreg.paper.settings import Resources
from deepsimreg.paths import PROJECT

TRAINING = ("training.json", "weights.safetensors", "metrics.csv")  # what a training leaves, in the order it is trusted
KEPT = ("config.yaml", "*.csv", "*.safetensors", "*.json", "*.png", "*.pdf")  # whose sizes a mark records


@dataclass(frozen=True, eq=False)
class Run:
    """What a profile plans for one folder; settings, data, inputs and code decide its numbers."""

    profile: str
    dataset: str
    name: str  # of the folder below the dataset's, as "registration/mse/seed-0"
    chapter: str  # the notebook that makes it
    settings: BaseModel  # resolved
    data: Mapping[str, str]  # dataset name → fingerprint
    code: tuple[str, ...]  # modules, or paths of chapters, that the numbers come from
    resources: Resources  # that its job asks for
    inputs: tuple["Run", ...] = ()  # that it is made from
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the notebook, besides profile and dataset
    on_demand: bool = False  # made where a chapter misses it
    place: str = ""  # folder of a run with settings of one's own; empty: the profile's place

    @cached_property
    def folder(self) -> Path:
        if self.place:
            return PROJECT / self.place
        return runs_root() / self.profile / self.dataset / self.name

    @cached_property
    def identity(self) -> str:
        return digest(self._ingredients)

    @cached_property
    def _ingredients(self) -> dict[str, Any]:
        return {
            "settings": self.settings.model_dump(mode="json"),
            "data": dict(self.data),
            "inputs": {f"{run.dataset}/{run.name}": run.identity for run in self.inputs},
            "code": code_digest(self.code),
        }

    @property
    def mark(self) -> Path:
        """The file that says that the run has ended: what the graph waits for."""
        return self.folder / f"done-{self.identity}.json"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def validation(self) -> Path:
        """Every metric of the validation pairs."""
        return self.folder / "validation.csv"

    def changed(self, place: str, settings: BaseModel) -> "Run":
        """This run with settings of one's own, in a folder of one's own; without a folder none may differ."""
        if settings != self.settings and not place:
            raise SettingsError("these settings are not the profile's: give the run a folder of its own (folder=…)")
        return replace(self, place=place, settings=settings) if place else self

    @property
    def current(self) -> bool:
        """Whether the folder holds this very run, ended, with all its files whole."""
        return self._mark_content() is not None

    def _mark_content(self) -> dict[str, Any] | None:
        content = read_json(self.mark)
        return content if content and not self._damaged(content) else None

    def _damaged(self, content: dict[str, Any]) -> list[str]:
        """The files of a finished run that have another size now."""
        return [name for name, size in content["files"].items() if size_of(self.folder / name) != size]

    def result(self) -> dict[str, Any]:
        """What `finish` was given. SettingsError if the run has not ended."""
        content = self._mark_content()
        if content is None:
            raise SettingsError(
                f"{self}: there is no finished run with the settings of profile {self.profile} and this code. Run "
                f"notebooks/{self.chapter}.ipynb with this profile, dataset and {dict(self.parameters)}; make paper "
                f"PROFILE={self.profile} makes it if a method of the profile needs it"
            )
        return content

    def need(self) -> "Run":
        """The run itself, finished; asked from the graph where it is missing and the profile makes runs on demand."""
        if not self.current and self.on_demand and not self.place and IN_GRAPH not in os.environ:
            ask_graph(self.profile, [self])
        self.result()
        return self

    @contextmanager
    def open(self) -> Iterator["Run"]:
        """The folder, locked and ready to be written: another run's content is moved aside, damaged files go."""
        with locked(self.folder):
            self._make_room()
            config = self.folder / "config.yaml"
            if not config.is_file():
                content = {"identity": self.identity} | self._ingredients | {"provenance": provenance()}
                write_text(config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
            yield self

    def _make_room(self) -> None:
        folder = writable(self.folder)
        remove_partial(*_own(folder))
        self.repair()
        config, held = folder / "config.yaml", self.identity
        try:
            held = yaml.safe_load(config.read_text(encoding="utf-8"))["identity"] if config.is_file() else held
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
            held = ""
        if held != self.identity:
            named = f"{folder.name}~{time.strftime('%Y%m%d-%H%M%S')}-{self.identity[:4]}"
            names = chain([named], (f"{named}-{number}" for number in count(2)))
            aside = next(path for path in map(folder.with_name, names) if not path.exists())
            aside.mkdir()
            for path in _own(folder):
                path.rename(aside / path.name)
            why = "its settings, data, inputs or code have changed" if held else f"its {config.name} is damaged"
            print(f"{self}: {why}; the earlier run is now {aside.name}")

    def repair(self) -> None:
        """Remove the damaged files of a finished run, and its mark, so that they are made again."""
        if not self.mark.is_file() or (self.current and not self._notebook_cut):
            return
        damaged = self._damaged(read_json(self.mark) or {"files": {}})
        told = ["notebook.ipynb"] if self.current else damaged or [self.mark.name]
        print(f"{self}: {', '.join(told)} is damaged and is made again")
        if {*told} & {*TRAINING, self.mark.name}:  # weights cannot be made without training, nor rows without weights
            damaged += [*TRAINING, "last.ckpt", self.validation.name]
        for name in (*damaged, self.mark.name):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def _notebook_cut(self) -> bool:
        """Whether the executed notebook lacks its end. While a process works on the run, it may be half written."""
        path = self.folder / "notebook.ipynb"
        if not path.is_file() or (self.folder / RECORD).exists():
            return False
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4))
            return not file.read().rstrip().endswith(b"\n}")

    def finish(self, **result: Any) -> None:
        """Mark the run as ended: the result, beside what an earlier call gave, and the sizes of the files it is in."""
        before = self._mark_content() or {}
        files = [path for pattern in KEPT for path in sorted(self.folder.glob(pattern))]
        records = {RECORD, *(path.name for path in self.folder.glob("done-*.json"))}  # of no result
        sizes = {path.name: path.stat().st_size for path in files if path.name not in records}
        write_json(self.mark, before | result | {"identity": self.identity, "files": sizes})

    def __str__(self) -> str:
        """The run as it is called in messages and notebooks, without a path of the machine."""
        return relative(self.folder)


def _own(folder: Path) -> list[Path]:
    """What a run's folder holds, but not the runs below it, as those of tuning are below its chapter's.

    The configuration is last: until it has been moved the folder is known to hold another run.
    """
    own = [path for path in folder.iterdir() if not any(path.rglob("config.yaml"))]
    return sorted(own, key=lambda path: path.name == "config.yaml")


def ask_graph(profile: str, runs: list[Run]) -> None:
    """Make runs, and what they need, by the graph. SettingsError if that fails."""
    print(f"making {', '.join(map(str, runs))} first (profile {profile})", flush=True)
    line = snakemake(profile, "--cores", "all", "--quiet", "all", "--", *(str(run.mark) for run in runs))
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SettingsError(f"{', '.join(map(str, runs))} could not be made:\n{(done.stdout + done.stderr)[-3000:]}")


def snakemake(profile: str, *options: str) -> list[str]:
    """The command line of a profile's graph: marks alone decide what is made, and the runs have locks of their own."""
    always = ("--nolock", "--rerun-triggers", "software-env", "--config", f"profile={profile}")
    return [sys.executable, "-m", "snakemake", *always, *options]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in a run's folder; a second one waits until the first has ended."""
    path = writable(folder.parent) / f".{folder.name}.lock"
    try:
        lock = take_lock(path, 0)
    except Timeout:
        print(f"{relative(folder)}: another process is working on this run; waiting for it", flush=True)
        lock = take_lock(path)
    try:
        yield
    finally:
        lock.release()


def take_lock(path: Path, timeout: float = -1, **options: Any) -> FileLock:
    """A lock that is held between the machines of a cluster, too. timeout: seconds, then Timeout is raised; -1: none.

    It is flock(2): the kernel releases it when the process ends, however that ends, and a file left behind locks
    nothing. Linux passes it on to an NFS server (since 2.6.12, as an fcntl lock of the whole file), so it holds between
    machines, unless they mount with nolock or local_lock=flock; Lustre needs the mount option flock, BeeGFS
    tuneUseGlobalFileLocks. The server releases the lock of a lost machine when its lease ends (NFS 4: 90 s by default),
    or when it starts again (NFS 3). Where there is no flock, filelock would take a file that exists for a lock, which a
    lost machine leaves behind for ever: that is a SettingsError here.
    """
    lock = FileLock(path, fallback_to_soft=False, **options)
    try:
        lock.acquire(timeout)
    except Timeout:
        raise
    except OSError as error:
        remedy = "DEEPSIMREG_RUNS has to name a folder on a file system with locks"
        raise SettingsError(f"{path} cannot be locked ({error.strerror}): {remedy}") from error
    return lock


def relative(folder: Path) -> str:
    """A folder as it is called from the root of the runs."""
    try:
        return str(Path("runs") / Path(folder).resolve().relative_to(runs_root().resolve()))
    except ValueError:
        return Path(folder).name


def provenance() -> dict[str, str]:
    """Versions of what computes the numbers, and the commit of the code."""
    command = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    packages = ("deepsimreg", "torch", "lightning", "numpy", "scipy", "pandas")
    return {
        "commit": git.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }
