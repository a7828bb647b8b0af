"""Small files that appear whole or not at all, and folders that can be written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from deepsimreg.paper.errors import SettingsError


def writable(folder: Path) -> Path:
    """The folder itself, made if it is missing. SettingsError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"{folder}: the run folder cannot be written ({error.strerror}); "
            "free it, or set DEEPSIMREG_RUNS to a folder of yours"
        ) from error
    return folder


def size_of(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    return path.stat().st_size if path.is_file() else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Any) -> None:
    """Write under a temporary name, then rename."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def copy_file(source: Path, target: Path) -> None:
    """Copy under a temporary name, then rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
