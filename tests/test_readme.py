"""What the README and the page on one's own images show is run as it stands there."""

import csv
import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

from deepsimreg.cli import main

PAGES = [Path(__file__).parents[1] / name for name in ("README.md", "docs/own-images.md")]
TEXT = "\n".join(page.read_text() for page in PAGES)
SHAPE = (36, 40, 32)


def block(containing):
    """The code block with these words."""
    return next(code for code in re.findall(r"```(?:sh|python)\n(.*?)```", TEXT, re.DOTALL) if containing in code)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A pair with a known smooth warp, its masks, labels and points, under the names that the README uses."""
    monkeypatch.chdir(tmp_path)
    rng, affine = np.random.default_rng(0), np.diag([-1.0, 1.2, 1.5, 1])
    moving = gaussian_filter(rng.normal(size=SHAPE), 2)
    moving = (moving - moving.min()) / np.ptp(moving)
    u = np.stack([gaussian_filter(rng.normal(size=SHAPE), 6) for _ in SHAPE])
    u *= 4 / np.abs(u).max()
    place = np.indices(SHAPE) + u
    labels = (moving > 0.6) * 1 + (moving > 0.7) * 1
    everything = np.ones(SHAPE, np.uint8)
    files = {"moving": moving.astype(np.float32), "fixed": map_coordinates(moving, place, order=1, mode="nearest")}
    files |= {"moving_labels": labels.astype(np.uint8), "moving_mask": everything, "fixed_mask": everything}
    files["fixed_labels"] = map_coordinates(labels, place, order=0, mode="nearest").astype(np.uint8)
    for name, array in files.items():
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        nibabel.save(nibabel.Nifti1Image(array, affine), f"{name}.nii.gz")
    Path("fixed_points.csv").write_text("x,y,z\n10,-12,15\n12,-20,20\n", encoding="utf-8")
    Path("pairs.csv").write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n", encoding="utf-8")
    return tmp_path


def test_the_readme_is_short():
    words = re.sub(r"<!-- results: .*?<!-- end -->", "", PAGES[0].read_text(), flags=re.DOTALL).split()
    assert len(words) <= 900, "what is more belongs into docs/"


def test_the_six_lines_of_the_readme(study):
    names = {}
    exec(block("from deepsimreg import register\n\nresult"), names)
    assert names["result"].displacement.shape == (1, 3, *SHAPE)
    assert {path.name for path in Path("result").iterdir()} >= {"moved.nii.gz", "field.nii.gz", "inverse_field.nii.gz"}


def test_the_commands_of_a_study(study):
    commands = block("deepsimreg apply").replace("\\\n", " ").strip().splitlines()
    assert len(commands) == 6
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "deepsimreg"
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, f"{command}: {done.output}"
        if arguments[0] == "evaluate":
            found = dict(re.findall(r"(\w+): ([\d.e+-]+)", done.output))
    before = CliRunner().invoke(main, ["evaluate", "moving_labels.nii.gz", "fixed_labels.nii.gz"]).output
    before = dict(re.findall(r"(\w+): ([\d.e+-]+)", before))
    print(f"foreground Dice {before['dice_foreground']} before, {found['dice_foreground']} after")
    assert float(found["dice_foreground"]) > float(before["dice_foreground"]) + 0.1
    assert "data:image/png;base64" in Path("result/report.html").read_text(encoding="utf-8")
    with open("result/points_in_moving.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert nibabel.load("result/labels_in_moving.nii.gz").shape == SHAPE
    with open("study/results.csv", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["moving--fixed"]


def test_a_network_from_elsewhere(tmp_path, monkeypatch):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 4, stride=2, padding=1)

        def forward(self, image):
            full = torch.tanh(self.first(image))
            return full, torch.tanh(self.second(full))

    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Small()), "network.pt")
    from deepsimreg import register

    moving = torch.from_numpy(gaussian_filter(np.random.default_rng(0).normal(size=(48, 56)), 3)).float()
    names = {"register": register, "moving": moving, "fixed": moving.roll(1, 0)}
    exec(block("TorchScriptFeatures"), names)
    assert torch.isfinite(names["result"].displacement).all()
