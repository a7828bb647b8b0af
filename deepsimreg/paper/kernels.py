"""The kernel of a notebook: which interpreter it is, and how it is noticed that its answer was lost."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty

import psutil

PATIENCE = 60.0  # seconds; a notebook is saved between two cells, which may take some, on a slow file system
LOOK = 0.5  # seconds that one look for a message waits


@contextmanager
def this_interpreter() -> Iterator[None]:
    """The kernel "python3" is the interpreter that runs this, whatever kernels a site has under that name."""
    from ipykernel.kernelspec import write_kernel_spec

    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(Path(folder, "kernels", "python3"))
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, *([before] if before else [])])
        try:
            yield
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


@contextmanager
def lost_answers() -> Iterator[list[int]]:
    """End a kernel that has said that it is idle, and is not given its next cell; its process id is in the list then.

    The client sends the next cell as soon as it has the answer to the last one: a kernel that stays idle for `PATIENCE`
    has answered, and the answer was lost (papermill issue 711, jupyter_client issue 922). A cell that waits, for a lock
    or a file, leaves its kernel busy.
    """
    lost, ended = [], threading.Event()
    thread = threading.Thread(target=_listen, args=(lost, ended), daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()


def _listen(lost: list[int], ended: threading.Event) -> None:
    """Follow what the kernel below this process says of its state."""
    from jupyter_client import BlockingKernelClient

    kernel = None
    while kernel is None and not ended.wait(0.2):
        with suppress(psutil.Error):
            kernel = next((one for one in psutil.Process().children() if "ipykernel_launcher" in one.cmdline()), None)
    if kernel is None:
        return
    client, state, quiet = BlockingKernelClient(), "starting", 0
    try:
        client.load_connection_file(next(word for word in kernel.cmdline() if word.endswith(".json")))
    except (OSError, psutil.Error, StopIteration):  # it has ended already
        return
    client.start_channels(shell=False, stdin=False, hb=False, control=False)
    try:
        while not ended.is_set():
            quiet += 1  # looks are counted, not time: it passes while this process is stopped
            with suppress(Empty):
                message = client.get_iopub_msg(timeout=LOOK)
                state, quiet = message["content"].get("execution_state", state), 0
            if state == "idle" and quiet * LOOK > PATIENCE:
                lost.append(kernel.pid)
                with suppress(psutil.Error):
                    kernel.kill()
                return
    finally:
        client.stop_channels()
