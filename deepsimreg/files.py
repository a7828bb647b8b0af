"""Files that appear whole or not at all, folders that can be written, and tables."""

import csv
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepsimreg.errors import DataError

OUTPUTS = ("moved", "moved_labels", "field", "inverse_field", "affine", "velocity", "jacobian")  # of a registration
PARTIAL = ".partial."  # in the name of a file that is being written
WRITTEN = re.compile(rf"({'|'.join(OUTPUTS)}|moved\d+)\.(nii\.gz|mat)")  # the names of their files


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path` and with its suffixes; it takes its place when the writing has succeeded.

    DataError for what is there and is no file, such as a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file that could be replaced: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{secrets.token_hex(4)}{PARTIAL}{path.name}")  # machines that share it share process ids
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(*places: Path) -> None:
    """Remove what processes that were killed had begun to write: files, or files below folders where nobody writes."""
    for path in (one for place in places for one in (place, *place.rglob(f".*{PARTIAL}*"))):
        if PARTIAL in path.name:
            path.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> Path:
    """Make a folder for results. DataError if it cannot be made or written: better before the work than after it."""
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): choose another folder, or free it") from error
    return folder


def remove_outputs(folder: Path, but: Iterable[Path]) -> None:
    """Remove the files of an earlier registration from a folder, but those given."""
    kept = {path.resolve() for path in but}
    for path in folder.iterdir():
        if WRITTEN.fullmatch(path.name) and path.is_file() and path.resolve() not in kept:
            path.unlink()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names of its columns. DataError for a file that is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV table ({error}): save it as UTF-8, with commas") from error


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with every column of any row; it appears whole or not at all."""
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
