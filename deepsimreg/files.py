"""Files that appear whole or not at all, and folders that can be written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepsimreg.errors import DataError

OUTPUTS = ("moved", "moved_labels", "field", "inverse_field", "affine", "velocity", "jacobian")  # of a registration


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path` and with its suffixes; it takes its place when the writing has succeeded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> Path:
    """Make a folder for results. DataError if it cannot be made or written: better before the work than after it."""
    folder = Path(folder)
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): choose another folder, or free it") from error
    return folder
