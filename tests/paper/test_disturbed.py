"""Runs that are killed at their writes, starved or cut end with the weights and tables of undisturbed ones."""

import os
import shutil
import time

import pytest
from disturbed import killed_at, made, noted, small_disk
from soak import difference, results

SEEN = ("config", "metrics", "weights", "last", "training", "validation", "test.csv", "pairs", "summary", "done")


class Undisturbed:
    def __init__(self, folder):
        self.folder = folder
        status, said = made(folder, noted, folder / "noted")
        assert status == 0, said
        self.results = results(folder / "runs")
        names = dict.fromkeys((folder / "noted").read_text().split())
        self.written = [name for name in names if name.startswith(SEEN) and "moving" not in name]

    def check(self, folder):
        """Made once more, a folder holds what the undisturbed one holds; returns what was said."""
        status, said = made(folder)
        assert status == 0, said
        assert difference(results(folder / "runs"), self.results) == "0"
        assert not list(folder.rglob(".*partial*"))
        return said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    made = Undisturbed(tmp_path_factory.mktemp("undisturbed") / "all")
    assert all(any(name.startswith(seen) for name in made.written) for seen in SEEN)
    return made


def test_killed_at_every_kind_of_file_that_it_writes(undisturbed, tmp_path):
    for number, name in enumerate(undisturbed.written):
        assert made(tmp_path / "all", killed_at, name, number % 2 == 0)[0] == -9, name
    undisturbed.check(tmp_path / "all")


def test_a_full_disk_is_said_and_then_it_goes_on(undisturbed, tmp_path):
    for most in (400, 5000, 20000):
        status, said = made(tmp_path / "all", small_disk, most)
        assert (status, said.count("\n")) == (1, 1)
        assert "File too large" in said or "disk full" in said
    undisturbed.check(tmp_path / "all")


def cut(path, half):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if half else 0])


def test_files_of_an_unfinished_training_that_were_cut(undisturbed, tmp_path):
    assert made(tmp_path / "killed", killed_at, "validation.csv", False)[0] == -9
    names = ("last.ckpt", "metrics.csv", "weights.safetensors", "training.json", "validation.csv", "config.yaml")
    for number, name in enumerate(names):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "killed", folder)
        (path,) = (folder / "runs/mine/phantom-2d/registration/mse").glob(f"seed-0/{name}")
        cut(path, number % 2)
        undisturbed.check(folder)


def test_files_of_finished_runs_that_were_cut(undisturbed, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(undisturbed.folder, folder)
    records = [
        path for path in sorted((folder / "runs").rglob("*")) if path.suffix in (".csv", ".json", ".safetensors")
    ]
    assert len(records) > 12
    for number, path in enumerate([*records, folder / "runs/mine/phantom-2d/evaluation/config.yaml"]):
        cut(path, number % 2)
        assert "made again" in undisturbed.check(folder), path


def test_times_of_files_decide_nothing(undisturbed, tmp_path):
    """As after a clock that was set back."""
    folder = tmp_path / "all"
    shutil.copytree(undisturbed.folder, folder)
    shutil.rmtree(folder / "runs/mine/phantom-2d/evaluation")
    for number, path in enumerate(folder.rglob("*")):
        os.utime(path, (time.time() + 4e7 * (-1) ** number,) * 2)
    assert "made again" not in undisturbed.check(folder)
