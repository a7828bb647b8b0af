"""Which processes of this machine the graph has started for a run, and how those are ended that outlive it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from deepsimreg.paper.files import read_json, write_json
from deepsimreg.paper.paths import runs_root

RECORD = "process.json"
IN_GRAPH = "DEEPSIMREG_IN_GRAPH"  # set for the jobs of the graph


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """The id of this process stands in the run's folder while it works on it, if the graph has started it."""
    if IN_GRAPH not in os.environ:
        yield
        return
    path = folder / RECORD
    write_json(path, record(psutil.Process()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def end_all(profile: str) -> int:
    """End what still works on a profile's runs, kernels included; returns how many processes that were.

    What another machine or another job of a cluster has started is left alone, on a file system that all of them see.
    """
    ended = []
    for path in (runs_root() / profile).rglob(RECORD):
        found = read_json(path) or _here()
        if any(found.get(key) != value for key, value in _here().items()):
            continue
        with suppress(psutil.NoSuchProcess, ValueError, KeyError, TypeError):
            process = psutil.Process(found["pid"])
            if record(process) == found:
                ended += [*process.children(recursive=True), process]
        path.unlink(missing_ok=True)
    for process in ended:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ended, timeout=10)
    return len(ended)


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")}


def record(process: psutil.Process) -> dict[str, Any]:
    """What tells a process from all others: seconds since the machine's start, which no clock that is set changes."""
    return {**_here(), "pid": process.pid, "started": round(process.create_time() - psutil.boot_time(), 2)}
