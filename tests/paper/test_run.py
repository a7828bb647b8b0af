"""Run folders: what they hold, when they count as finished, and what becomes of another run's content."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
import yaml
from safetensors.torch import save_file

from deepsimreg.errors import WeightsError
from deepsimreg.models import VGG16Features, vgg_path
from deepsimreg.paper import run as run_module
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.methods import optimisation_method
from deepsimreg.paper.paths import runs_root
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.processes import RECORD
from deepsimreg.paper.run import locked, relative, take_lock

D = "phantom-2d"


@pytest.fixture
def run(profile):
    return profile().extractor(D, "seg")


def ended(run):
    with run.open():
        run.weights.write_text("weights")
        (run.folder / "metrics.csv").write_text("step\n1\n")
        (run.folder / "training.json").write_text("{}")
        run.finish(best={"step": 3})
    return run


def test_a_run_writes_its_configuration_and_its_end(run):
    with run.open():
        config = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert config["identity"] == run.identity
        assert config["settings"] == run.settings.model_dump(mode="json")
        assert config["provenance"]["torch"].startswith("2.")
        assert not run.current
        with pytest.raises(SettingsError, match=r"extractor-seg: there is no finished run .* make paper PROFILE=mine"):
            run.result()
        run.finish(best={"step": 3})
        run.finish(test={"dice": 0.5})
    assert run.current
    assert (run.result()["best"], run.result()["test"]) == ({"step": 3}, {"dice": 0.5})
    assert str(run) == "runs/mine/phantom-2d/extractor-seg"


def test_the_same_run_goes_on_and_another_starts_anew(profile, capsys):
    tree = {D: {"data": {"shape": [32, 32]}, "registration": {"similarities": {"mse": {"lam": 1}}}}}
    run = profile(tree).registration(D, "mse")
    with run.open():
        (run.folder / "last.ckpt").write_text("hours of work")
        before = (run.folder / "config.yaml").read_text()
    with profile(tree).registration(D, "mse").open() as again:
        assert (again.folder / "last.ckpt").exists()
        assert (again.folder / "config.yaml").read_text() == before
    others = [{"registration": {"similarities": {"mse": {"lam": 2}}}}, {"data": {"shape": [32, 48]}}]
    for number, change in enumerate(others, 1):
        with profile({D: tree[D] | change}).registration(D, "mse").open() as other:
            assert not (other.folder / "last.ckpt").exists()
        kept = list(run.folder.parent.glob("seed-0~*"))
        assert len(kept) == number
        assert [(path / "last.ckpt").read_text() for path in kept if (path / "last.ckpt").exists()] == ["hours of work"]
        printed = capsys.readouterr().out
        assert any(path.name in printed for path in kept)


def test_a_chapter_that_is_moved_aside_leaves_the_runs_below_it(profile):
    """The trainings of tuning are below the folder of its chapter, and are its inputs."""
    tree = {D: {"registration": {"similarities": {"mse": {"grid": [0.5]}}}}}
    with profile(tree).chapter(D, "tuning").open() as chapter:
        (chapter.folder / "tuning.csv").write_text("old")
        (chapter.folder / "pictures").mkdir()
    tree[D]["registration"]["similarities"]["mse"]["grid"] = [0.5, 1]
    plan = profile(tree)
    training = ended(plan.tunings(D)[0])
    with plan.chapter(D, "tuning").open():
        assert training.current
        assert not (chapter.folder / "tuning.csv").exists()
        assert not (chapter.folder / "pictures").exists()
    (kept,) = chapter.folder.parent.glob("tuning~*")
    assert (kept / "tuning.csv").read_text() == "old"
    assert sorted(path.name for path in kept.iterdir()) == ["config.yaml", "pictures", "tuning.csv"]


def test_runs_that_are_moved_aside_within_a_second_are_all_kept(profile, monkeypatch):
    """Or by a clock that was set back."""
    monkeypatch.setattr(run_module.time, "strftime", lambda _: "20260101-000000")
    for number in range(4):
        tree = {D: {"registration": {"similarities": {"mse": {"lam": number % 2}}}}}
        with profile(tree).registration(D, "mse").open() as run:
            (run.folder / "last.ckpt").write_text(str(number))
    kept = [path.read_text() for path in run.folder.parent.glob("seed-0~*/last.ckpt")]
    assert sorted(kept) == ["0", "1", "2"]


def test_a_cut_notebook_of_a_finished_run_is_made_again_unless_it_is_being_written(run, capsys):
    notebook = ended(run).folder / "notebook.ipynb"
    notebook.write_text(json.dumps({"cells": [], "nbformat": 4}, indent=1))
    run.repair()
    assert run.current
    notebook.write_text(notebook.read_text()[:20])
    (run.folder / RECORD).write_text("{}")
    run.repair()
    assert run.current
    (run.folder / RECORD).unlink()
    run.repair()
    assert not run.current
    assert run.weights.exists()
    assert "notebook.ipynb is damaged and is made again" in capsys.readouterr().out


def test_what_a_killed_process_had_begun_to_write_goes_when_the_run_goes_on(run):
    code = "import os, sys; from pathlib import Path; from deepsimreg.files import whole\n"
    code += "with whole(Path(sys.argv[1])) as partial: partial.write_text('half'); os._exit(9)"
    with run.open():
        done = subprocess.run([sys.executable, "-c", code, str(run.weights)], check=False)
    assert done.returncode == 9
    assert [path.read_text() for path in run.folder.glob(".*partial*")] == ["half"]
    below = run.folder / "test" / ".0.partial.image.tif"
    below.parent.mkdir()
    below.touch()
    with run.open():
        assert not list(run.folder.rglob(".*partial*"))
        assert not run.weights.exists()


def test_a_run_depends_on_what_it_is_made_from(profile):
    tree = {
        "extractors": {"fit": {"steps": 5}},
        "registration": {"similarities": {"deepsim-seg": {"lam": 1}, "mse": {"lam": 1}}},
    }
    before, after = profile({D: tree}), profile({D: tree | {"extractors": {"fit": {"steps": 6}}}})
    assert before.registration(D, "deepsim-seg").identity != after.registration(D, "deepsim-seg").identity
    assert before.registration(D, "mse").identity == after.registration(D, "mse").identity


@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("name", ["weights.safetensors", "metrics.csv", "training.json"])
def test_a_finished_run_whose_files_were_cut_short_is_not_finished(run, name, keep, capsys):
    ended(run)
    whole = (run.folder / name).read_bytes()
    (run.folder / name).write_bytes(whole[:keep] if keep < len(whole) else whole[:-1])
    assert not run.current
    with run.open():
        assert not run.weights.exists(), "weights are trained again, never taken for whole"
        assert not (run.folder / "training.json").exists()
    assert f"{name} is damaged and is made again" in capsys.readouterr().out


def test_a_figure_whose_record_was_cut_short_is_drawn_again(run):
    """It would be published without its caption."""
    with run.open():
        (run.folder / "dice.json").write_text('{"caption": "Dice of each method"}')
        (run.folder / RECORD).write_text("{}")
        run.finish()
        run.finish(figures=["dice.png"])
    (run.folder / RECORD).unlink()
    assert run.current
    (run.folder / "dice.json").write_text("")
    assert not run.current


@pytest.mark.parametrize("name", ["config.yaml", "mark"])
@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_damaged_records_are_no_obstacle(run, name, content):
    path = ended(run).mark if name == "mark" else ended(run).folder / name
    path.write_text(content)
    with run.open():
        run.weights.write_text("weights")
        run.finish(best={"step": 4})
    assert run.result()["best"] == {"step": 4}


def test_one_process_at_a_time_in_a_run_folder(runs):
    order = []

    def second():
        with locked(runs / "a"):
            order.append("second")

    with locked(runs / "a"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_refused_since_a_lost_machine_would_leave_its_lock_behind(runs, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(SettingsError, match=r"cannot be locked .*DEEPSIMREG_RUNS has to name"), locked(runs / "a"):
        pass


def test_a_lock_that_its_process_left_behind_locks_nothing(runs):
    with locked(runs / "a"):
        pass
    (lock,) = runs.glob(".*lock")
    script = (
        f"from deepsimreg.paper.run import take_lock; l = take_lock({str(lock)!r}); import os; os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    take_lock(lock, 0).release()


def test_a_folder_that_cannot_be_written(run, monkeypatch):
    root = runs_root()
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_text("a file is in the way")
    with pytest.raises(SettingsError, match=r"the run folder .* cannot be written .* DEEPSIMREG_RUNS"), run.open():
        pass


def test_names_of_folders_hold_no_machine_path(run, tmp_path):
    assert relative(run.folder) == "runs/mine/phantom-2d/extractor-seg"
    assert relative(tmp_path / "elsewhere") == "elsewhere"


def test_lam_keeps_its_digits_in_the_folder(profile):
    lam = 2.0**-9
    plan = profile({D: {"registration": {"similarities": {"mse": {"grid": [lam, 0.1]}}}}})
    run = plan.tunings(D)[0]
    assert float(run.folder.name.removeprefix("lam-")) == lam == run.settings.lam
    assert plan.registration(D, "mse", "tuning", run.parameters["lam"]).identity == run.identity


def test_a_missing_run_is_asked_from_the_graph_only_where_the_profile_says_so(profile, monkeypatch):
    asked = []
    monkeypatch.setattr(run_module, "ask_graph", lambda profile, runs: asked.append(runs))
    tree = {"registration": {"similarities": {"mse": {"lam": 1}}}}
    with pytest.raises(SettingsError, match="no finished run"):
        profile({D: tree}).registration(D, "mse").need()
    assert asked == []
    with pytest.raises(SettingsError, match="no finished run"):
        profile({D: tree | {"on_demand": True}}).registration(D, "mse").need()
    assert [run.name for run in asked[0]] == ["registration/mse/seed-0"]


def test_extractors_come_in_the_order_of_the_profile(profile):
    names = [f"seg-{number}" for number in range(9)]
    tree = {
        "extractors": {name: {"kind": "seg"} for name in names},
        "registration": {"similarities": {"deepsim-seg": {"lam": 1}}},
        "ablations": {"variants": {f"v{name}": {"of": "deepsim-seg", "extractor": name} for name in reversed(names)}},
    }
    plan: Profile = profile({D: tree})
    assert [run.name for run in plan.extractors(D)] == ["extractor-seg", *(f"extractor-{name}" for name in names)]


def test_the_mark_names_sizes(run):
    content = json.loads(ended(run).mark.read_text())
    assert content["files"]["weights.safetensors"] == len("weights")


def test_the_group_of_a_variant_concerns_its_chapter_alone(profile):
    tree = {"registration": {"similarities": {"mse": {"lam": 1}}}}

    def plan(group):
        return profile({D: tree | {"ablations": {"variants": {"v": {"of": "mse", "lam": 2, "group": group}}}}})

    before, after = plan("a"), plan("b")
    assert before.chapter(D, "ablations").identity != after.chapter(D, "ablations").identity
    assert [run.identity for run in before.ablations(D)] == [run.identity for run in after.ablations(D)]


def test_weights_of_ones_own_count_by_their_tensors(profile, tmp_path):
    """safetensors orders its header at random: the same tensors in another file are the same extractor."""
    tree = {"registration": {"similarities": {"deepsim-seg": {"lam": 1}}}}
    path = tmp_path / "mine" / "weights.safetensors"
    path.parent.mkdir()

    def identity(tensors):
        save_file(tensors, path)
        run = profile({D: tree}).registration(D, "deepsim-seg", place="runs/x", extractor=str(path.parent))
        return run.identity

    tensors = {f"layer-{number}": torch.full((3,), float(number)) for number in range(20)}
    first = identity(tensors)
    assert identity(dict(reversed(tensors.items()))) == first
    assert identity(tensors | {"layer-3": torch.zeros(3)}) != first


def test_vgg_is_no_run_and_its_weights_are_named_where_they_are_missing(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSIMREG_DATA", str(tmp_path))
    plan = profile({D: {"optimisation": {"methods": {"photo": {"similarity": "vgg", "lam": [1]}}}}})
    assert plan.optimisation(D).inputs == ()
    with pytest.raises(WeightsError, match="no VGG-16 weights; run deepsimreg fetch vgg16"):
        optimisation_method(plan, D, plan.methods(D)["photo"], 1.0)
    torch.save({f"features.{key}": value for key, value in VGG16Features().layers.state_dict().items()}, vgg_path())
    pair = plan.data(D).pairs("test")[0]
    register = optimisation_method(plan, D, plan.methods(D)["photo"].model_copy(update={"levels": ((4, 8, 1),)}), 1.0)
    assert torch.isfinite(register(pair.moving.image[None], pair.fixed.image[None])).all()
