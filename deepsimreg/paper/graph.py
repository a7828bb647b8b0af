"""The graph of a profile's runs as `make paper` calls it: after what a killed call has left, and one call at a time.

python -m deepsimreg.paper.graph quick [CORES]
"""

import os
import socket
import sys
from pathlib import Path

from filelock import Timeout

from deepsimreg.paper.errors import SettingsError, run_main
from deepsimreg.paper.files import writable
from deepsimreg.paper.paths import runs_root
from deepsimreg.paper.processes import end_all
from deepsimreg.paper.run import relative, snakemake, take_lock
from deepsimreg.paths import PROJECT


def main(profile: str, cores: str = "all") -> None:
    """Become Snakemake, which holds the lock of the profile's runs until it ends, however that happens.

    Snakemake's own lock would outlive a killed process. SettingsError if another call works on these runs.
    """
    folder, descriptors = writable(runs_root() / profile), []
    path = folder / ".graph.lock"
    try:
        lock = take_lock(path, 0, on_acquired=descriptors.append)
    except Timeout:
        raise SettingsError(
            f"another `make paper` works on {relative(folder)} ({path.read_text(encoding='utf-8')}): wait for it, or "
            "end it and give this command again"
        ) from None
    Path(lock.lock_file).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    if ended := end_all(profile):
        print(f"{ended} processes that a killed call had left were ended; their runs go on from their checkpoints")
    sys.stdout.flush()
    os.set_inheritable(descriptors[0], True)
    os.chdir(PROJECT)
    line = snakemake(profile, "--cores", cores, "--rerun-incomplete", "--quiet", "rules", "host")
    os.execv(line[0], line)


if __name__ == "__main__":
    run_main(main)
