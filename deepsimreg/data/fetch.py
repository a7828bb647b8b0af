"""Fetch a dataset to the data root, once: `deepsimreg fetch hippocampus-mr`, or `python -m deepsimreg.data.fetch …`.

The download is kept as `.part` and resumes where it stopped; it is checked before it is used, and unpacked and prepared
in a temporary folder. The result takes its final name when it is complete.
"""

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from deepsimreg.data import DATASETS
from deepsimreg.data.base import Source
from deepsimreg.errors import DataError
from deepsimreg.io import advising
from deepsimreg.paths import data_root

TIMEOUT = 30  # s
PLAIN = (0, 0o4, 0o10)  # type of a zip member: not stated, folder, file
VGG16 = Source(  # the weights of the similarity `vgg`
    name="vgg16",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    checksum="sha256:397923af",
    size_bytes=528_000_000,
    archive="file",
    folder="vgg16-397923af.pth",
    licence="BSD 3-Clause (torchvision)",
    citation="Simonyan & Zisserman, Very deep convolutional networks, ICLR (2015)",
)


def fetch_dataset(name: str, root: str | Path | None = None, url: str | None = None) -> Path:
    """Fetch a dataset, or the weights vgg16, by name; return where it lies.

    root: None: the data root. url: of a mirror of the same archive; the checksum still holds. DataError: an unknown
    name, or a dataset that cannot be fetched; as `fetch`.
    """
    names = [*DATASETS, VGG16.name]
    if name not in names:
        raise DataError(f"nothing is called {name!r}: choose one of {', '.join(names)}")
    source = VGG16 if name == VGG16.name else getattr(DATASETS[name], "source", None)
    if source is None:
        raise DataError(f"{name} cannot be fetched: {getattr(DATASETS[name], 'by_hand', 'it is made in code')}")
    return fetch(source if url is None else replace(source, url=url), Path(root or data_root()))


def fetch(source: Source, root: Path) -> Path:
    """Download, check, unpack and prepare into `root / source.folder`; return that. Does nothing if it exists.

    An archive or raw folder that was put into the root by hand is used without a download.

    Raises:
        DataError: names the URL, the file and the remedy; a failed fetch leaves no folder behind.
    """
    target = root / source.folder
    if target.exists():
        print(f"{source.name} is already at {target}: nothing to do")
        return target
    root.mkdir(parents=True, exist_ok=True)
    if source.prepare and (given := _raw(source, root)):
        print(f"{source.name}: preparing {given} -> {target}")
        _place(source, given, target)
        return target
    size = "size not published" if source.size_bytes is None else f"{source.size_bytes / 1e6:.0f} MB"
    print(f"{source.name}: {size}, licence {source.licence}\n  {source.citation}")
    print(f"  {source.url}\n  -> {target}")
    record = root / f"{source.folder}.sha256"
    checksum = source.checksum or (record.read_text(encoding="utf-8").strip() if record.is_file() else "")
    archive = target if source.archive == "file" else root / f"{source.folder}.{source.archive}"
    if archive.exists():
        verify(archive, checksum)
    else:
        download(source.url, archive, checksum)
    if archive == target:
        return target
    if not (checksum or source.files):
        record.write_text(f"sha256:{_digest(archive, 'sha256')}\n")
        print(f"{source.name}: no checksum is published; that of this download is kept in {record.name}")
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{source.folder}-") as unpacked:
        extract(archive, Path(unpacked), source.archive)
        raw = _raw(source, Path(unpacked))
        if raw is None:
            raise DataError(f"{archive} from {source.url} holds no folder {source.raw or source.folder}: check the URL")
        _place(source, raw, target)
    archive.unlink()
    return target


def _raw(source: Source, folder: Path) -> Path | None:
    """The raw folder of a source in another one."""
    if source.raw == ".":
        return folder
    return next((path for path in sorted(folder.glob(source.raw or source.folder)) if path.is_dir()), None)


def _place(source: Source, raw: Path, target: Path) -> None:
    """Convert a raw folder to the target, which appears when it is complete."""
    if source.files:
        lines = (Path(__file__).parent / source.files).read_text(encoding="utf-8").splitlines()
        for digest, name in (line.split(maxsplit=1) for line in tqdm(lines, "checking", unit="file", leave=False)):
            if not (raw / name).is_file():
                raise DataError(f"{raw / name} is missing: remove {raw.name} if it is there, and fetch the data again")
            verify(raw / name, f"sha256:{digest}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{source.folder}-") as folder:
        ready = raw
        if source.prepare:
            ready = Path(folder) / "ready"
            with advising(f"remove {raw.name} if it is there, and fetch the data again"):
                source.prepare(raw, ready)
        os.replace(ready, target)


def download(url: str, path: Path, checksum: str) -> None:
    """Fetch `url` to `path`, which appears only with the right checksum; `<path>.part` is continued by a range."""
    part = path.with_name(path.name + ".part")
    remedy = f"run again to resume, or download it by hand to {path}"
    try:
        missing = _receive(url, part)
    except (HTTPException, OSError) as error:
        raise DataError(f"{url} could not be fetched ({error}): {remedy}") from error
    if missing:
        raise DataError(f"{url} stopped {missing} bytes before the end: {remedy}")
    try:
        verify(part, checksum)
    except DataError:
        part.unlink()
        raise
    os.replace(part, path)


def _receive(url: str, part: Path) -> int:
    """Append what `part` lacks, from 0 if the server cannot resume; return how many bytes are missing."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "deepsimreg"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return 0  # all bytes are there; the checksum decides
    with answer:
        have = have if answer.status == HTTPStatus.PARTIAL_CONTENT else 0
        total = have + int(answer.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as file:
            with tqdm.wrapattr(file, "write", total or None, initial=have, desc=part.stem) as counted:
                shutil.copyfileobj(answer, counted)
            return max(total - file.tell(), 0)


def verify(path: Path, checksum: str) -> None:
    """DataError unless the file has the checksum, `algorithm:hexadecimal` or its first digits; "" is not checked."""
    algorithm, _, expected = checksum.partition(":")
    if checksum and not (found := _digest(path, algorithm)).startswith(expected):
        raise DataError(
            f"{path} has {algorithm} {found}, expected {expected}: remove it if it is still there and fetch it again; "
            "if that repeats, the file at the URL has changed"
        )


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def extract(archive: Path, folder: Path, kind: str) -> None:
    """Unpack a tar, tar.gz or zip without the `._*` files of macOS.

    Raises:
        DataError: the archive is damaged, or a member leaves `folder` or is a link or a device; nothing is unpacked.
    """
    try:
        with zipfile.ZipFile(archive) if kind == "zip" else tarfile.open(archive) as file:
            members = file.infolist() if kind == "zip" else file.getmembers()
            wanted = [member for member in members if _wanted(archive, member)]
            file.extractall(folder, wanted, **({} if kind == "zip" else {"filter": "data"}))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} is damaged or not {kind} ({error}): fetch it again") from error


def _wanted(archive: Path, member: zipfile.ZipInfo | tarfile.TarInfo) -> bool:
    """Whether a member is unpacked. DataError for one that must not be."""
    if isinstance(member, zipfile.ZipInfo):
        path, plain = PurePosixPath(member.filename), member.external_attr >> 28 in PLAIN
    else:
        path, plain = PurePosixPath(member.name), member.isreg() or member.isdir()
    if path.is_absolute() or ".." in path.parts or not plain:
        raise DataError(
            f"{archive} holds '{path}', which leaves its folder, or is a link or a device: nothing was unpacked; "
            "do not use this archive"
        )
    return not any(part.startswith("._") for part in path.parts)


if __name__ == "__main__":
    from deepsimreg.data.command import fetch as command

    command()
