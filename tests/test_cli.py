"""The command line, as a user calls it: files in, files out, messages and exit codes."""

import json

import click
import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from deepsimreg.cli import main
from deepsimreg.warps import warp_image, warp_labels


@pytest.fixture
def files(tmp_path):
    """A volume, the same pulled through a smooth displacement, and labels of both, on an anisotropic grid."""
    shape = (24, 28, 20)
    coarse = torch.rand(1, 1, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    moving = torch.nn.functional.interpolate(coarse, shape, mode="trilinear")
    axes = torch.meshgrid(*[torch.linspace(0, torch.pi, size) for size in shape], indexing="ij")
    truth = torch.stack(axes).sin().prod(0) * torch.tensor([2.0, -1.5, 1.0]).view(1, 3, 1, 1, 1)
    labels = (moving > 0.5).to(torch.uint8)
    images = {
        "moving": moving * 1000,
        "fixed": warp_image(moving, truth) * 1000,
        "moving_labels": labels,
        "fixed_labels": warp_labels(labels, truth),
    }
    for name, image in images.items():
        dtype = np.uint8 if "labels" in name else np.int16
        nibabel.save(
            nibabel.Nifti1Image(image[0, 0].numpy().astype(dtype), np.diag([1, 1.5, 2, 1])), tmp_path / f"{name}.nii.gz"
        )
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_register_apply_and_evaluate_agree(files):
    moving, fixed, labels, fixed_labels = (
        files / f"{name}.nii.gz" for name in ("moving", "fixed", "moving_labels", "fixed_labels")
    )
    given = ["--similarity", "mse", "--lam", "0.001", "--labels", labels, "--fixed-labels", fixed_labels, "--json"]
    done = call("register", moving, fixed, "--out", files / "out", *given)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["dice"] > 0.97
    assert sorted(path.name for path in (files / "out").iterdir()) == [
        "field.nii.gz",
        "inverse_field.nii.gz",
        "jacobian.nii.gz",
        "moved.nii.gz",
        "moved_labels.nii.gz",
        "velocity.nii.gz",
    ]
    assert nibabel.load(files / "out" / "moved.nii.gz").get_data_dtype() == np.int16

    field = files / "out" / "field.nii.gz"
    done = call("apply", field, labels, "--labels", "--out", files / "again.nii.gz")
    assert done.exit_code == 0, done.output
    ours, again = (nibabel.load(path) for path in (files / "out" / "moved_labels.nii.gz", files / "again.nii.gz"))
    assert (np.asarray(ours.dataobj) == np.asarray(again.dataobj)).mean() > 0.9999
    assert again.get_data_dtype() == np.uint8
    np.testing.assert_allclose(again.affine, ours.affine)

    done = call("evaluate", files / "out" / "moved_labels.nii.gz", fixed_labels, "--field", field, "--json")
    measured = json.loads(done.stdout)
    assert measured["dice"] == pytest.approx(result["dice"])
    assert measured["folds"] == result["folds"] == 0
    assert 0 <= measured["hd95_1"] <= 4


def names_in(folder):
    return {path.name.split(".")[0] for path in folder.iterdir()}


def test_what_an_earlier_run_left_gives_way(files):
    """All of it but what is no output, and what the later run is made from."""
    out, pair = files / "out", [files / "moving.nii.gz", files / "fixed.nii.gz"]
    first = ["--affine", "rigid", "--labels", files / "moving_labels.nii.gz", "--also", *pair, "--steps", 1]
    done = call("register", *pair, "--out", out, *first)
    assert done.exit_code == 0, done.output
    results = {"moved", "field", "inverse_field", "velocity", "jacobian"}
    assert names_in(out) == {*results, "moved1", "moved_labels", "affine"}
    for name in ("moved_by_hand.nii.gz", "moved2.txt", "field.nrrd"):
        (out / name).touch()
    own = {"moved_by_hand", "moved2", "field"}
    for further, left in (
        (["--start", out / "affine.mat"], {*results, "affine"}),
        ([], results),
        (["--outputs", "field,moved"], {"field", "moved"}),
    ):
        done = call("register", *pair, "--out", out, "--steps", 1, *further)
        assert done.exit_code == 0, done.output
        assert names_in(out) == left | own


def test_errors_name_the_file_and_end_with_one(files):
    (files / "cut.nii.gz").write_bytes((files / "moving.nii.gz").read_bytes()[:300])
    done = call("register", files / "cut.nii.gz", files / "fixed.nii.gz", "--out", files / "out")
    assert done.exit_code == 1
    assert "cut.nii.gz is truncated" in done.stderr
    done = call(
        "register", files / "moving.nii.gz", files / "fixed.nii.gz", "--out", files / "out", "--similarity", "nc"
    )
    assert done.exit_code == 1
    assert "unknown similarity 'nc'" in done.stderr
    assert call("register", files / "none.nii.gz", files / "fixed.nii.gz", "--out", files / "out").exit_code == 2
    done = call(
        "register",
        files / "moving.nii.gz",
        files / "fixed.nii.gz",
        "--out",
        files,
        "--fixed-labels",
        files / "fixed_labels.nii.gz",
    )
    assert done.exit_code == 2
    assert "needs --labels" in done.stderr


def test_help_has_examples_and_the_commands_of_other_floors():
    for command in ("register", "apply", "evaluate"):
        assert f"deepsimreg {command}" in call(command, "--help").stdout
    assert "fetch" in call("--help").stdout
    assert "--url" in call("fetch", "--help").stdout


def test_fetch_says_what_must_be_got_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSIMREG_DATA", str(tmp_path))
    done = call("fetch", "brain-mri")
    assert done.exit_code == 1
    assert "brain" in done.stderr


MACHINE = [
    OSError(28, "No space left on device"),
    RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"),
    MemoryError(),
    PermissionError(13, "denied"),
]


def assert_one_line(done, error):
    assert isinstance(done.exception, SystemExit)
    expected = " ".join(str(error).split()) or "MemoryError"
    # A bar that an earlier test left open above this one's makes it move the cursor.
    printed = click.unstyle(done.stderr).replace("\r", "\n")
    assert printed.strip().splitlines()[-1].strip() == f"Error: {expected}"


@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_errors_of_the_machine_in_a_command_of_another_floor_are_one_line(monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("deepsimreg.data.fetch.fetch_dataset", fails)
    done = call("fetch", "hippocampus-mr")
    assert done.exit_code == 1
    assert_one_line(done, error)


@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_errors_of_the_machine_are_one_line(files, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("deepsimreg.transform.Registration.save", fails)
    given = ["--similarity", "mse", "--lam", "0.001", "--steps", "1"]
    done = call("register", files / "moving.nii.gz", files / "fixed.nii.gz", "--out", files / "out", *given)
    assert done.exit_code == 1
    assert_one_line(done, error)


def test_a_folder_that_cannot_be_written_is_named_before_the_work(files, monkeypatch):
    monkeypatch.setattr("deepsimreg.registration.optimise", lambda *_, **__: pytest.fail("the work has begun"))
    (files / "taken").write_text("a file")
    given = ("register", files / "moving.nii.gz", files / "fixed.nii.gz", "--out")
    done = call(*given, files / "taken" / "below")
    assert done.exit_code == 1
    assert "taken/below cannot be written" in done.stderr
    assert "choose another folder" in done.stderr


def test_home_is_found_and_options_that_would_do_nothing_are_refused(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    moving, fixed = "~/moving.nii.gz", "~/fixed.nii.gz"
    done = call("register", moving, fixed, "--out", "~/home", "--steps", 1, "--outputs", "field")
    assert done.exit_code == 0, done.output
    assert (files / "home" / "field.nii.gz").is_file()
    done = call("apply", "~/home/field.nii.gz", moving, "--out", "~/home/moved.nii.gz")
    assert done.exit_code == 0, done.output
    (files / "points.csv").write_text("x,y,z\n1,2,3\n")
    points = ["apply", "~/home/field.nii.gz", "~/points.csv", "--out"]
    for command, message in (
        ([*points, "~/points.nii.gz"], "points are written as .csv"),
        ([*points, "~/sent.csv", "--labels"], "no options of images"),
        (["apply", "~/home/field.nii.gz", moving, "--out", "~/a.nii.gz", "--voxels", moving, fixed], "is for points"),
        (["register", moving, fixed, "--out", "~/home", "--channel-weights", "1,2"], "one for each --also"),
    ):
        done = call(*command)
        assert done.exit_code == 2, command
        assert message in done.output


def test_a_field_of_another_grid_is_not_scored(files):
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 9, 10), np.uint8), np.eye(4)), files / "small.nii.gz")
    done = call("register", files / "moving.nii.gz", files / "fixed.nii.gz", "--out", files / "o", "--steps", 1)
    assert done.exit_code == 0, done.output
    small, there = files / "small.nii.gz", files / "o" / "field.nii.gz"
    done = call("evaluate", small, small, "--field", there)
    assert done.exit_code == 1
    assert "field.nii.gz has shape" in done.output
