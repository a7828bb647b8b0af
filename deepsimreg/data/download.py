"""Fetch a dataset: resumable download, checksum before use, safe extraction, and its files brought to their layout.

`python -m deepsimreg.data.download hippocampus-mr` puts the dataset under the data root, once. A file that is
still being fetched ends in `.part` and goes on from where it stopped; an archive is unpacked, and prepared, in
temporary folders, and the result takes its final name only when it is complete.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from deepsimreg.data.stacks import prepare_phc, prepare_platelet
from deepsimreg.errors import DataError
from deepsimreg.paths import data_root

CHUNK = 1 << 18
TIMEOUT = 30  # s


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from, and what is made of it.

    `folder` is what the data root gets: a folder, or a file if `archive` is "file". `raw` is the folder in the archive
    ("": all of it; None: `folder`), which `prepare(raw, target)` turns into `folder`; None takes it as it is.
    `checksum` is `algorithm:hexadecimal`, or the first digits of it; "" where none is published: the digest of the
    first download is then written to `<folder>.sha256` and holds from there on. `size_bytes` is shown, not checked.
    """

    name: str
    url: str
    checksum: str
    size_bytes: int
    archive: str
    folder: str
    licence: str
    citation: str = ""
    raw: str | None = None
    prepare: Callable[[Path, Path], None] | None = None

    def __post_init__(self):
        if self.archive not in (*UNPACK, "file"):
            raise ValueError(f"archive is {self.archive!r}: choose one of {', '.join(UNPACK)}, file")
        if self.checksum and self.checksum.partition(":")[0] not in hashlib.algorithms_guaranteed:
            raise ValueError(f"checksum is {self.checksum!r}: write it as md5:… or sha256:…")


def fetch(source: Source, root: str | Path) -> Path:
    """Download, check, unpack and prepare into `root / source.folder`; return that. Does nothing if it exists.

    A raw folder that lies in the root, fetched by hand, is prepared without a download, and kept.
    DataError names the URL, the file and the remedy; a failed fetch leaves no folder behind.
    """
    root = Path(root)
    target = root / source.folder
    if target.exists():
        print(f"{source.name} is already at {target}: nothing to do")
        return target
    root.mkdir(parents=True, exist_ok=True)
    by_hand = root / (source.raw or source.folder)
    if source.prepare is not None and source.raw and by_hand.is_dir():
        print(f"{source.name}: preparing {by_hand} -> {target}")
        _prepared(source, by_hand, target)
        return target
    size = f"{source.size_bytes / 1e6:.0f} MB"
    print(f"{source.name}: {size}, licence {source.licence}\n  {source.citation}\n  {source.url}\n  -> {target}")
    record = root / f"{source.folder}.sha256"
    checksum = source.checksum or (record.read_text().strip() if record.is_file() else "")
    if source.archive == "file":
        download(source.url, target, checksum)
        return target
    archive = root / f"{source.folder}.{source.archive}"
    if archive.exists():
        verify(archive, checksum)
    else:
        download(source.url, archive, checksum)
    if not checksum:
        with archive.open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        record.write_text(found + "\n")
        print(f"{source.name}: no checksum is published; this download has {found}, kept in {record.name}")
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{source.folder}-") as unpacked:
        extract(archive, unpacked, source.archive)
        raw = Path(unpacked) / (source.folder if source.raw is None else source.raw)
        if not raw.is_dir():
            raise DataError(f"{archive} from {source.url} holds no folder {raw.name}: check the URL")
        _prepared(source, raw, target)
    archive.unlink()
    return target


def _prepared(source: Source, raw: Path, target: Path) -> None:
    """Bring a raw folder to its layout; the target appears when it is complete."""
    if source.prepare is None:
        os.replace(raw, target)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{source.folder}-") as folder:
        source.prepare(raw, Path(folder) / "ready")
        os.replace(Path(folder) / "ready", target)


def fetch_dataset(name: str, root: str | Path | None = None, url: str | None = None) -> Path:
    """Fetch a dataset, or the weights vgg16, by name; return where it lies.

    Args:
        name: in SOURCES.
        root: None for the data root.
        url: of a mirror of the same archive; the checksum is still checked.

    Raises:
        DataError: no source of that name; as `fetch`.
    """
    if name in BY_HAND:
        raise DataError(f"{name} cannot be fetched: {BY_HAND[name]}")
    if name not in SOURCES:
        raise DataError(f"nothing to fetch for {name!r}: choose one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    return fetch(source if url is None else replace(source, url=url), root or data_root())


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
    """DataError unless the file has the checksum, `algorithm:hexadecimal` or its first digits; "" is not checked."""
    if not checksum:
        return
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if not found.startswith(expected):
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

OASIS = (
    "Hoopes et al., Learning the effect of registration hyperparameters with HyperMorph, MELBA 1 (2022); "
    "Marcus et al., Open Access Series of Imaging Studies (OASIS), J. Cognitive Neuroscience 19:1498 (2007)"
)

SOURCES = {
    source.name: source
    for source in (
        Source(
            name="hippocampus-mr",
            url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
            checksum="md5:9d24dba78a72977dbd1d2e110310f31b",
            size_bytes=28_000_000,
            archive="tar",
            folder="Task04_Hippocampus",
            licence="CC BY-SA 4.0",
            citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128 (2022)",
        ),
        Source(
            name="phc-u373",
            url="http://data.celltrackingchallenge.net/training-datasets/PhC-C2DH-U373.zip",
            checksum="sha256:b18185c18fce54e8eeb93e4bbb9b201d757add9409bbf2283b8114185a11bc9e",
            size_bytes=40_000_000,
            archive="zip",
            folder="PhC-U373",
            licence="free for research, cite the source (Cell Tracking Challenge)",
            citation="Ulman et al., An objective comparison of cell-tracking algorithms, Nature Methods 14:1141 (2017)",
            raw="PhC-C2DH-U373",
            prepare=prepare_phc,
        ),
        Source(
            name="platelet-em",
            url="https://www.dropbox.com/s/pvrfnurjq11k0l3/images_and_labels_rgba.zip?dl=1",
            checksum="",
            size_bytes=50_000_000,
            archive="zip",
            folder="platelet_em_reduced",
            licence="see https://bio3d-vision.github.io/platelet-description.html; not to be redistributed",
            citation="Guay et al., Dense cellular segmentation for EM, Scientific Reports 11:2561 (2021)",
            raw="platelet-em",
            prepare=prepare_platelet,
        ),
        Source(
            name="neurite-oasis-3d",
            url="https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/neurite-oasis.v1.0.tar",
            checksum="md5:081392a8150ff99ab7a64a9ded377835",
            size_bytes=6_600_000_000,
            archive="tar",
            folder="neurite-oasis.v1.0",
            licence="OASIS data use agreement",
            citation=OASIS,
            raw="",
        ),
        Source(
            name="neurite-oasis-2d",
            url="https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/neurite-oasis.2d.v1.0.tar",
            checksum="md5:c9ae5864f250c7e4b8d83a104e51ae8e",
            size_bytes=24_000_000,
            archive="tar",
            folder="neurite-oasis.2d.v1.0",
            licence="OASIS data use agreement",
            citation=OASIS,
            raw="",
        ),
        Source(
            name="vgg16",
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
            checksum="sha256:397923af",
            size_bytes=528_000_000,
            archive="file",
            folder="vgg16-397923af.pth",
            licence="BSD 3-Clause (torchvision)",
            citation="Simonyan & Zisserman, Very deep convolutional networks, ICLR (2015)",
        ),
    )
}
BY_HAND = {
    "brain-mri": "ABIDE and OASIS-3 may not be redistributed. Put your own FreeSurfer-processed, affinely aligned copy "
    "into brain_mris/ under the data root: metadata.csv (subject_id, SPLIT), data/<subject_id>/brain_aligned.nii.gz "
    "and seg_coalesced_aligned.nii.gz, atlas/ with the same two files. Public stand-ins: neurite-oasis-3d, -2d"
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deepsimreg.data.download", description=__doc__)
    parser.add_argument("name", choices=[*SOURCES, *BY_HAND])
    parser.add_argument("--url", help="fetch the same archive from a mirror; the checksum is still checked")
    options = parser.parse_args(arguments)
    try:
        print(f"{options.name} is ready in {fetch_dataset(options.name, url=options.url)}")
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
