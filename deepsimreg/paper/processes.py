"""Which processes work on a run, and how those are ended that outlive the graph that started them.

python -m deepsimreg.paper.processes quick
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from deepsimreg.paper.paths import runs_root

RECORD = "process.json"


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """The id of this process stands in the run's folder while it works on it."""
    path = folder / RECORD
    path.write_text(json.dumps({"pid": psutil.Process().pid, "started": psutil.Process().create_time()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def end_all(profile: str) -> int:
    """End what still works on a profile's runs, kernels included; returns how many processes that were."""
    ended = []
    for path in (runs_root() / profile).rglob(RECORD):
        with suppress(psutil.NoSuchProcess, ValueError, KeyError):
            record = json.loads(path.read_text(encoding="utf-8"))
            process = psutil.Process(record["pid"])
            if process.create_time() == record["started"]:
                ended += [*process.children(recursive=True), process]
        path.unlink(missing_ok=True)
    for process in ended:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ended, timeout=10)
    return len(ended)


if __name__ == "__main__":
    print(f"{end_all(sys.argv[1])} processes ended")
