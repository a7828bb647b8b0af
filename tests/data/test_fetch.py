"""Fetching from a server on the loopback address: whole, resumed, damaged, hostile, out of reach."""

import hashlib
import io
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from deepsimreg.data import DATASETS
from deepsimreg.data.base import Source
from deepsimreg.data.command import fetch as command
from deepsimreg.data.fetch import extract, fetch
from deepsimreg.data.hippocampus import Hippocampus
from deepsimreg.errors import DataError

FOLDER = "Task04_Hippocampus"
CONTENT = {
    f"{FOLDER}/dataset.json": b"{}",
    f"{FOLDER}/imagesTr/hippocampus_001.nii.gz": bytes(range(256)) * 200,
    f"{FOLDER}/imagesTr/._hippocampus_001.nii.gz": b"fork",
    f"{FOLDER}/labelsTr/hippocampus_001.nii.gz": b"label",
    f"._{FOLDER}": b"fork",
}
KEPT = {name: content for name, content in CONTENT.items() if "._" not in name}


def tar(members: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `content` with ranges; closes after `cut` bytes; remembers the ranges asked for."""

    def __init__(self, content: bytes):
        self.content, self.cut, self.ranges, self.can_resume = content, None, [], True
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.can_resume else 0
        body = self.server.content[start:]
        if start and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(tar(CONTENT)) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def source(server, **changes) -> Source:
    facts = {
        "name": "hippocampus-mr",
        "url": server.url,
        "checksum": f"md5:{hashlib.md5(server.content).hexdigest()}",
        "size_bytes": len(server.content),
        "archive": "tar",
        "folder": FOLDER,
        "licence": "CC BY-SA 4.0",
    }
    return Source(**facts | changes)


def files(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_fetch_leaves_the_dataset_and_nothing_else(server, tmp_path, capsys):
    assert fetch(source(server), tmp_path) == tmp_path / FOLDER
    assert files(tmp_path) == KEPT
    assert "CC BY-SA 4.0" in capsys.readouterr().out
    fetch(source(server), tmp_path)
    assert "already" in capsys.readouterr().out
    assert server.ranges == [None]


def test_fetch_resumes_where_the_connection_broke(server, tmp_path):
    server.cut = 20_000
    with pytest.raises(DataError, match=rf"{server.url} stopped .*run again to resume.*by hand to {tmp_path}"):
        fetch(source(server), tmp_path)
    assert files(tmp_path) == {f"{FOLDER}.tar.part": server.content[:20_000]}
    server.cut = None
    fetch(source(server), tmp_path)
    assert server.ranges == [None, "bytes=20000-"]
    assert files(tmp_path) == KEPT


def test_fetch_starts_over_where_the_server_cannot_resume(server, tmp_path):
    (tmp_path / f"{FOLDER}.tar.part").write_bytes(server.content[:999])
    server.can_resume = False
    fetch(source(server), tmp_path)
    assert files(tmp_path) == KEPT


def test_fetch_finishes_when_all_bytes_had_arrived(server, tmp_path):
    (tmp_path / f"{FOLDER}.tar.part").write_bytes(server.content)
    fetch(source(server), tmp_path)
    assert files(tmp_path) == KEPT


def test_fetch_refuses_a_wrong_checksum_and_starts_afresh(server, tmp_path):
    (tmp_path / f"{FOLDER}.tar.part").write_bytes(b"X" * 1000)
    with pytest.raises(DataError, match=r"expected [0-9a-f]{32}"):
        fetch(source(server), tmp_path)
    assert files(tmp_path) == {}
    fetch(source(server), tmp_path)
    assert files(tmp_path) == KEPT


def test_fetch_uses_an_archive_put_there_by_hand(server, tmp_path):
    by_hand = tmp_path / f"{FOLDER}.tar"
    by_hand.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"expected [0-9a-f]{32}: remove it"):
        fetch(source(server), tmp_path)
    assert files(tmp_path) == {by_hand.name: b"something else"}
    by_hand.write_bytes(server.content)
    fetch(source(server), tmp_path)
    assert server.ranges == []
    assert files(tmp_path) == KEPT


def test_fetch_names_url_and_remedy_when_the_host_is_out_of_reach(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: the connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar"
        with pytest.raises(DataError, match=rf"{url} could not be fetched.*by hand to {tmp_path}"):
            fetch(source(server, url=url), tmp_path)
    assert files(tmp_path) == {}


def test_fetch_refuses_an_archive_without_the_folder(server, tmp_path):
    with pytest.raises(DataError, match="no folder Task99"):
        fetch(source(server, folder="Task99"), tmp_path)
    assert not (tmp_path / "Task99").exists()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/hostname"
    return member


@pytest.mark.parametrize(
    "archive",
    [
        tar(CONTENT | {"../outside": b"x"}),
        tar(CONTENT | {f"{FOLDER}/../../outside": b"x"}),
        tar(CONTENT | {"/outside": b"x"}),
        tar(CONTENT, link(f"{FOLDER}/link", tarfile.SYMTYPE)),
        tar(CONTENT, link(f"{FOLDER}/link", tarfile.LNKTYPE)),
        tar(CONTENT, link(f"{FOLDER}/device", tarfile.CHRTYPE)),
    ],
    ids=["parent", "inner parent", "absolute", "symbolic link", "hard link", "device"],
)
def test_fetch_refuses_members_that_leave_the_folder(server, tmp_path, archive):
    server.content = archive
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="nothing was unpacked"):
        fetch(source(server), tmp_path / "root")
    assert set(files(tmp_path)) == {f"root/{FOLDER}.tar"}


def test_zip_is_unpacked_and_judged_alike(tmp_path):
    good, bad, linked = (tmp_path / name for name in ("good.zip", "bad.zip", "linked.zip"))
    symbolic = zipfile.ZipInfo(f"{FOLDER}/link")
    symbolic.external_attr = 0o120777 << 16
    for path, extra in ((good, None), (bad, "../outside"), (linked, symbolic)):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in CONTENT.items():
                archive.writestr(name, content)
            if extra:
                archive.writestr(extra, b"/etc/hostname")
    extract(good, tmp_path / "out", "zip")
    assert files(tmp_path / "out") == KEPT
    for path in (bad, linked):
        with pytest.raises(DataError, match="nothing was unpacked"):
            extract(path, tmp_path / "none", "zip")
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_damaged_archive_is_named(tmp_path, kind):
    path = tmp_path / "a.archive"
    path.write_bytes(b"not an archive" * 50)
    with pytest.raises(DataError, match=rf"a.archive is damaged or not {kind}"):
        extract(path, tmp_path / "out", kind)


def test_the_command_fetches_to_the_data_root(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSIMREG_DATA", str(tmp_path))
    monkeypatch.setattr(Hippocampus, "source", source(server, url="http://127.0.0.1:9/none"))
    done = CliRunner().invoke(command, ["hippocampus-mr", "--url", server.url])
    assert files(tmp_path) == KEPT
    assert "is ready in" in done.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hippocampus-mr", "expected 9d24dba78a72977dbd1d2e110310f31b"),
        ("hippocampus", "nothing is called 'hippocampus': choose one of phantom-2d"),
        ("brain-mri", "brain-mri cannot be fetched: "),
        ("phantom-2d", "phantom-2d cannot be fetched: it is made in code"),
    ],
)
def test_the_command_ends_with_a_message(server, tmp_path, monkeypatch, name, message):
    monkeypatch.setenv("DEEPSIMREG_DATA", str(tmp_path))
    done = CliRunner().invoke(command, [name, "--url", server.url])
    assert done.exit_code == 1
    assert message in done.output


def test_the_module_is_the_same_command_and_errors_are_one_line():
    call = [sys.executable, "-m", "deepsimreg.data.fetch", "hippocampus"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    names = ", ".join((*DATASETS, "vgg16"))
    assert done.stderr.splitlines() == [f"Error: nothing is called 'hippocampus': choose one of {names}"]
