"""Which processes of this machine work on a run, and how those are ended that outlive the graph that started them.

python -m deepsimreg.paper.processes quick
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from deepsimreg.paper.files import read_json, write_json
from deepsimreg.paper.paths import runs_root

RECORD = "process.json"


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """The id of this process stands in the run's folder while it works on it."""
    path = folder / RECORD
    own = psutil.Process()
    write_json(path, {"host": socket.gethostname(), "pid": own.pid, "started": own.create_time()})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def end_all(profile: str) -> int:
    """End what still works on a profile's runs, kernels included; returns how many processes that were."""
    ended = []
    for path in (runs_root() / profile).rglob(RECORD):
        record = read_json(path) or {}
        if record.get("host", socket.gethostname()) != socket.gethostname():
            continue  # of another machine, on a file system that both see
        with suppress(psutil.NoSuchProcess, ValueError, KeyError, TypeError):
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
