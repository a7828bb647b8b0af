"""Small files and the folders of runs: SettingsError where one cannot be written, None where one is damaged."""

import json
import shutil
from pathlib import Path
from typing import Any

from deepsimreg.errors import DataError
from deepsimreg.files import check_writable, whole
from deepsimreg.paper.errors import SettingsError


def writable(folder: Path) -> Path:
    """The folder of a run itself, made if it is missing. SettingsError if it cannot be written."""
    try:
        return check_writable(folder)
    except DataError as error:
        raise SettingsError(f"the run folder {error}; DEEPSIMREG_RUNS names the folder of all runs") from error


def size_of(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    return path.stat().st_size if path.is_file() else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Any) -> None:
    """Write an object as JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text; the file appears whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the copy appears whole or not at all."""
    with whole(target) as partial:
        shutil.copyfile(source, partial)
