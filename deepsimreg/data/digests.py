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

from deepsimreg.files import whole

NAME = ".digests.json"
SETTLED = 2_000_000_000  # ns; a file changed more recently may change again without a new modification time
PATIENCE = 5  # s before a progress bar is shown


def file_digests(paths: Sequence[Path], root: Path) -> dict[str, str]:
    """Path relative to `root` → SHA-256 of the content.

    Digests are kept in `root/.digests.json`, or in ~/.cache/deepsimreg if `root` is read-only. Two processes may write
    at the same time: the file is replaced as a whole, and a lost entry is computed again.
    """
    elsewhere = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    places = (root / NAME, Path.home() / ".cache" / "deepsimreg" / f"{elsewhere}.json")
    known = _read(places[0]) | _read(places[1])
    status = {Path(os.path.relpath(path, root)).as_posix(): path.stat() for path in paths}
    stamps = {path: [found.st_size, found.st_mtime_ns] for path, found in status.items()}
    changed = [path for path, stamp in stamps.items() if known.get(path, [])[:2] != stamp]
    for path in tqdm(changed, "fingerprint", unit="file", delay=PATIENCE, leave=False):
        with (root / path).open("rb") as file:
            known[path] = [*stamps[path], hashlib.file_digest(file, "sha256").hexdigest()]
    new = {path: known[path] for path in changed if time.time_ns() - stamps[path][1] > SETTLED}
    for place in places if new else ():
        with suppress(OSError):  # where nothing can be written, nothing is remembered
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.parent.stat().st_mode & stat.S_IWUSR:
                with whole(place) as partial:
                    partial.write_text(json.dumps(_read(place) | new), encoding="utf-8")
                break
    return {path: known[path][2] for path in stamps}


def _read(place: Path) -> dict[str, list]:
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {path: entry for path, entry in json.loads(place.read_text(encoding="utf-8")).items() if len(entry) == 3}
    return {}
