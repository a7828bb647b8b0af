"""Digests of files: remembered, renewed when a file changes, and shared by processes."""

import hashlib
import json
import multiprocessing
import os
import time

import archives
import nibabel
import numpy as np
import pytest

from deepsimreg.data import load_dataset
from deepsimreg.data.digests import NAME, file_digests


def test_fingerprints_are_remembered_and_follow_the_files(tmp_path):
    archives.lay_out_brains(tmp_path)
    first = load_dataset("brain-mri", root=tmp_path).fingerprint()
    assert load_dataset("brain-mri", root=tmp_path).fingerprint() == first
    path = tmp_path / "brain_mris" / "data" / "s0" / "brain_aligned.nii.gz"
    image = nibabel.load(path)
    changed = image.get_fdata()
    changed[0, 0, 0] += 1
    archives.write_nifti(path, changed.astype(np.float32), image.affine)
    assert load_dataset("brain-mri", root=tmp_path).fingerprint() != first


def test_a_file_is_hashed_again_only_if_its_size_or_time_has_changed(tmp_path):
    path = tmp_path / "image"

    def digest(content: bytes, seconds: int) -> str:
        path.write_bytes(content)
        os.utime(path, (seconds, seconds))
        return file_digests([path], tmp_path)["image"]

    assert digest(b"one", 1000) == hashlib.sha256(b"one").hexdigest()
    assert digest(b"two", 1000) == hashlib.sha256(b"one").hexdigest(), "same size and time: not read"
    assert digest(b"two", 1001) == hashlib.sha256(b"two").hexdigest()
    assert digest(b"three", 1001) == hashlib.sha256(b"three").hexdigest()


@pytest.fixture
def old_files(tmp_path, monkeypatch):
    """Forty files last changed long ago, each with its name as content; and a home folder for the fallback."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    paths = [tmp_path / "data" / f"{number}" for number in range(40)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(path.name)
        os.utime(path, (1000, 1000))
    return paths


def expected(paths):
    return {path.name: hashlib.sha256(path.name.encode()).hexdigest() for path in paths}


def test_digests_of_a_read_only_folder_are_kept_in_the_users_cache(old_files, tmp_path):
    root = old_files[0].parent
    root.chmod(0o555)
    try:
        assert file_digests(old_files, root) == expected(old_files)
        assert not (root / NAME).exists()
        (kept,) = (tmp_path / "home" / ".cache" / "deepsimreg").iterdir()
        assert set(json.loads(kept.read_text())) == {path.name for path in old_files}
    finally:
        root.chmod(0o755)


@pytest.mark.parametrize("content", ["{cut", "[]", '{"0": 3}', '{"0": null}', '{"0": [1, 1000000000000]}'])
def test_damaged_records_are_computed_again(old_files, content):
    root = old_files[0].parent
    (root / NAME).write_text(content)
    assert file_digests(old_files, root) == expected(old_files)
    assert len(json.loads((root / NAME).read_text())) == len(old_files)


def test_processes_may_ask_at_the_same_time(old_files):
    root = old_files[0].parent
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.starmap(file_digests, [(old_files[start::4], root) for start in range(4)])
    assert {name: digest for part in found for name, digest in part.items()} == expected(old_files)
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == [NAME]
    assert file_digests(old_files, root) == expected(old_files)


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    path = tmp_path / "image"
    path.write_text("one")
    now = time.time()
    os.utime(path, (now, now))
    file_digests([path], tmp_path)
    path.write_text("two")
    os.utime(path, (now, now))
    assert file_digests([path], tmp_path)["image"] == hashlib.sha256(b"two").hexdigest()
