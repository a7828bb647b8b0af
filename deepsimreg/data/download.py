"""Fetch a dataset: resumable download, checksum before use, safe extraction.

`python -m deepsimreg.data.download hippocampus-mr` puts the dataset under the data root, once. A file that is
still being fetched ends in `.part` and goes on from where it stopped; an archive is unpacked into a temporary
folder that takes its final name only when it is complete.
"""

import argparse
import hashlib
import os
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from deepsimreg.data.base import DataError
from deepsimreg.paths import data_root

CHUNK = 1 << 18
TIMEOUT = 30  # s


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from. `folder` is in the archive; `size_bytes` is shown, not checked."""

    name: str
    url: str
    checksum: str
    size_bytes: int
    archive: str
    folder: str
    licence: str

    def __post_init__(self):
        if self.archive not in UNPACK:
            raise ValueError(f"archive is {self.archive!r}: choose one of {', '.join(UNPACK)}")
        if self.checksum.partition(":")[0] not in hashlib.algorithms_guaranteed:
            raise ValueError(f"checksum is {self.checksum!r}: write it as md5:… or sha256:…")


def fetch(source: Source, root: str | Path) -> Path:
    """Download, check and unpack into `root / source.folder`; return that folder. Does nothing if it exists.

    DataError names the URL, the file and the remedy; a failed fetch leaves no folder behind.
    """
    root = Path(root)
    target = root / source.folder
    if target.exists():
        print(f"{source.name} is already at {target}: nothing to do")
        return target
    size = f"{source.size_bytes / 1e6:.0f} MB"
    print(f"{source.name}: {size}, licence {source.licence}\n  {source.url}\n  -> {target}")
    root.mkdir(parents=True, exist_ok=True)
    archive = root / f"{source.folder}.{source.archive}"
    if archive.exists():
        verify(archive, source.checksum)
    else:
        download(source.url, archive, source.checksum)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{source.folder}-") as unpacked:
        extract(archive, unpacked, source.archive)
        if not (Path(unpacked) / source.folder).is_dir():
            raise DataError(f"{archive} from {source.url} holds no folder {source.folder}: check the URL")
        os.replace(Path(unpacked) / source.folder, target)
    archive.unlink()
    return target


def download(url: str, path: Path, checksum: str) -> None:
    """Fetch `url` to `path`, which appears only with the right checksum.

    `<path>.part` keeps what has arrived; the next call continues it by an HTTP range.
    """
    part = path.with_name(path.name + ".part")
    remedy = f"run again to resume, or download it by hand to {path}"
    try:
        missing = _receive(url, part)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise DataError(f"{url} could not be fetched ({error}): {remedy}") from error
    if missing:
        raise DataError(f"{url} stopped {missing} bytes before the end: {remedy}")
    try:
        verify(part, checksum)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)


def verify(path: Path, checksum: str) -> None:
    """DataError unless the file has the checksum, written `algorithm:hexadecimal`."""
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} has {algorithm} {found}, expected {expected}: remove it if it is still there and "
            "fetch it again; if that repeats, the file at the URL has changed"
        )


def extract(archive: Path, folder: str | Path, kind: str) -> None:
    """Unpack files and folders, without `._*`. Refused: members that leave `folder`, links and devices.

    Every member is judged before the first is written.
    """
    folder = Path(folder)
    try:
        UNPACK[kind](archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} is damaged or not {kind} ({error}): fetch it again") from error


def _receive(url: str, part: Path) -> int:
    """Append what `part` lacks, from 0 if the server cannot resume; return how many bytes are missing."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "deepsimreg"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return 0  # all bytes are there; the checksum decides
    with answer:
        have = have if answer.status == HTTPStatus.PARTIAL_CONTENT else 0
        total = have + int(answer.headers.get("Content-Length", 0))
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem) as progress,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
            return max(total - file.tell(), 0)


def _members(archive: Path, names_and_kinds: Iterator[tuple[str, bool]]) -> list[str]:
    """Names to unpack, each checked: (name, whether it is a plain file or folder)."""
    wanted = []
    for name, plain in names_and_kinds:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not plain:
            raise DataError(
                f"{archive} holds {name!r}, which leaves its folder, or is a link or a device: "
                "nothing was unpacked; do not use this archive"
            )
        if not any(part.startswith("._") for part in path.parts):
            wanted.append(name)
    return wanted


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        wanted = set(_members(archive, ((m.name, m.isreg() or m.isdir()) for m in file.getmembers())))
        file.extractall(folder, [m for m in file.getmembers() if m.name in wanted], filter="data")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        modes = ((m.filename, (m.external_attr >> 28) in (0, 0o4, 0o10)) for m in file.infolist())
        file.extractall(folder, _members(archive, modes))


UNPACK = {"tar": _untar, "tar.gz": _untar, "zip": _unzip}

SOURCES = {
    "hippocampus-mr": Source(
        name="hippocampus-mr",
        url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
        checksum="md5:9d24dba78a72977dbd1d2e110310f31b",
        size_bytes=28_000_000,
        archive="tar",
        folder="Task04_Hippocampus",
        licence="CC BY-SA 4.0",
    ),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deepsimreg.data.download", description=__doc__)
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("--url", help="fetch the same archive from a mirror; the checksum is still checked")
    options = parser.parse_args(arguments)
    source = SOURCES[options.name]
    if options.url:
        source = replace(source, url=options.url)
    try:
        print(f"{source.name} is ready in {fetch(source, data_root())}")
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
