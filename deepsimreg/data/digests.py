"""SHA-256 of files, remembered by path, size and modification time: gigabytes are read only when they have changed."""

import hashlib
import json
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqdm.auto import tqdm

NAME = ".digests.json"
LARGE = 1 << 30  # bytes; above this, hashing shows its progress
SETTLED = 2_000_000_000  # ns; a file changed more recently may change again without a new modification time


def file_digests(paths: Sequence[Path], root: Path) -> dict[str, str]:
    """Path relative to `root` → SHA-256 of the content.

    Digests are kept in `root/.digests.json`, or in ~/.cache/deepsimreg if `root` is read-only. Two processes may write
    at the same time: the file is replaced as a whole, and a lost entry is computed again.
    """
    elsewhere = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    places = (root / NAME, Path.home() / ".cache" / "deepsimreg" / f"{elsewhere}.json")
    known = {path: entry for place in places for path, entry in _read(place).items()}
    entries = {}
    for path in paths:
        status = path.stat()
        entries[Path(os.path.relpath(path, root)).as_posix()] = [status.st_size, status.st_mtime_ns]
    changed = {path: entry for path, entry in entries.items() if known.get(path, [])[:2] != entry}
    size = sum(entry[0] for entry in changed.values())
    with tqdm(total=size, desc="fingerprint", unit="B", unit_scale=True, disable=size < LARGE, leave=False) as bar:
        for path, entry in changed.items():
            with (root / path).open("rb") as file:
                known[path] = [*entry, hashlib.file_digest(file, "sha256").hexdigest()]
            bar.update(entry[0])
    new = {path: known[path] for path, (_, changed_at) in changed.items() if time.time_ns() - changed_at > SETTLED}
    if new:
        _write(places, new)
    return {path: known[path][2] for path in entries}


def _read(place: Path) -> dict[str, list]:
    with suppress(OSError, ValueError):
        found = json.loads(place.read_text())
        return {path: entry for path, entry in found.items() if len(entry) == 3} if isinstance(found, dict) else {}
    return {}


def _write(places: Sequence[Path], new: dict[str, list]) -> None:
    """Add entries to the first place that can be written; without one, nothing is remembered."""
    for place in places:
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        with suppress(OSError):
            if place is not places[0]:
                place.parent.mkdir(parents=True, exist_ok=True)
            if place.parent.stat().st_mode & stat.S_IWUSR:
                partial.write_text(json.dumps(_read(place) | new))
                os.replace(partial, place)
                return
        with suppress(OSError):
            partial.unlink(missing_ok=True)
