"""The page of a registration: what its panels hold, against the arrays themselves; and its files."""

import base64
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.distance import cdist

from deepsimreg import Registration, register
from deepsimreg.cli import main
from deepsimreg.errors import DataError
from deepsimreg.grid import voxel_map
from deepsimreg.image import as_image
from deepsimreg.losses.registry import default_lam
from deepsimreg.report import check_report, report_numbers, write_report
from deepsimreg.report.page import draw

SPACING = (1.0, 2.0, 4.0)


def registration(shape=(20, 16, 9), peak=2.0, placed=True, labels=True, **options):
    """A known smooth displacement between two images of noise."""
    rng, ndim = np.random.default_rng(0), len(shape)
    affine = np.diag([*SPACING[:ndim], *[1.0] * (4 - ndim)])
    moving, fixed = (1000 * gaussian_filter(rng.random(shape), 1.5) for _ in range(2))
    images = [nibabel.Nifti1Image(image.astype(np.float32), affine) if placed else image for image in (moving, fixed)]
    moving, fixed = (as_image(image, what) for image, what in zip(images, ("moving", "fixed"), strict=True))
    u = gaussian_filter(rng.normal(size=(1, ndim, *shape)), (0, 0, *[2] * ndim))
    u = torch.from_numpy(u / np.abs(u).max() * peak).float()
    given = {}
    if labels:
        kinds = ("moving_labels", "fixed_labels")
        given = {
            kind: as_image((image.data[0, 0].numpy() > 500).astype(np.uint8), kind)
            for kind, image in zip(kinds, (moving, fixed), strict=True)
        }
    options = {"losses": (3.0, 2.0, 1.0, 5.0, 4.0), "steps": (3, 2), "similarity": "ncc", "lam": 0.5} | options
    losses = options.pop("losses")
    return Registration(
        u,
        None,
        losses,
        {"optimise": 1.0, "total": 2.5},
        moving,
        fixed,
        voxel_map(fixed.grid, moving.grid),
        **given,
        **options,
    )


def panels(found):
    """title → axes of the page, of the first slice; and all axes."""
    figure = draw(found, "title", {"name": "value"})
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}, figure


def scaled(image):
    low, high = np.quantile(image, (0.01, 0.99))
    return np.clip((image - low) / (high - low), 0, 1)


@pytest.mark.parametrize("placed", [True, False], ids=["file", "array"])
@pytest.mark.parametrize("shape", [(20, 16), (20, 16, 9)], ids=["2d", "3d"])
def test_panels_hold_the_images_in_the_orientation_of_their_grid(shape, placed):
    found = registration(shape, placed=placed)
    axes, _ = panels(found)
    fixed, moving = (scaled(image.data[0, 0].numpy()) for image in (found.fixed, found.moving))
    place = np.indices(shape) + found.displacement[0].numpy()
    ends = np.reshape(shape, (-1, *[1] * len(shape))) - 0.5
    seen = ((place >= -0.5) & (place < ends)).all(0)
    moved = np.where(seen, map_coordinates(moving, place, order=1, mode="nearest"), 0)
    inside = found.fixed_labels.data[0, 0].numpy() > 0
    cut = (..., int(np.median(np.argwhere(inside)[:, 2]))) if len(shape) == 3 else ...
    shown = {name: axes[name].get_images()[0] for name in axes if axes[name].get_images()}
    turned = np.transpose if placed else np.asarray
    for name, volume in {
        "fixed": fixed,
        "moving, before": moving,
        "moving, after": moved,
        "moving − fixed, before": moving - fixed,
        "moving − fixed, after": np.where(seen, moved - fixed, 0),
    }.items():
        np.testing.assert_allclose(shown[name].get_array(), turned(volume[cut]), atol=1e-4)
        assert shown[name].origin == ("lower" if placed else "upper")
    limits = {shown[name].get_clim() for name in shown if "−" in name}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    for name, other in (("checkerboard, before", moving), ("checkerboard, after", moved)):
        board = np.asarray(shown[name].get_array())
        of_fixed, of_other = (np.isclose(board, turned(volume[cut]), atol=1e-4) for volume in (fixed, other))
        assert (of_fixed | of_other).all()
        assert 0.3 < of_fixed.mean() < 0.8


@pytest.mark.parametrize("shape", [(20, 16), (20, 16, 9)], ids=["2d", "3d"])
def test_a_millimetre_is_as_long_across_as_down_in_every_panel(shape):
    _, figure = panels(registration(shape))
    scales = []
    for axes in figure.axes:
        if axes.get_images():
            box = axes.get_position()
            inches = np.array([box.width, box.height]) * figure.get_size_inches()
            scales += list(inches / np.abs([np.diff(axes.get_xlim())[0], np.diff(axes.get_ylim())[0]]))
    np.testing.assert_allclose(scales, scales[0])


def test_axes_are_named_with_their_unit_and_side():
    for options, across, down in (
        ({}, "x → R (mm)", "y → A (mm)"),
        ({"placed": False}, "axis 1 (voxels)", "axis 0 (voxels)"),
        ({"shape": (20, 16), "placed": False}, "column (voxels)", "row (voxels)"),
    ):
        axes, figure = panels(registration(**options))
        assert axes["fixed"].get_ylabel() == down
        assert across in {one.get_xlabel() for one in figure.axes}
    slices = [
        text.get_text() for one in panels(registration())[1].axes for text in one.texts if " = " in text.get_text()
    ]
    assert [text.split(" = ")[0] for text in slices] == ["z", "y", "x"]
    assert all(text.endswith(" mm") for text in slices)


def test_grid_lines_are_where_the_warp_pulls_from_in_mm():
    found = registration((20, 16))
    axes, _ = panels(found)
    expected = (np.indices((20, 16)) + found.displacement[0].numpy()).reshape(2, -1).T * SPACING[:2]
    drawn = np.concatenate([line.get_xydata() for line in axes["grid x + u(x) on moving"].lines])
    assert len(drawn) > 100
    assert cdist(drawn, expected).min(1).max() < 1e-4


def test_folds_are_marked_and_volume_is_even_around_one():
    found = registration((40, 30), peak=9)
    jacobian = found.jacobian[0].numpy().T
    shown = panels(found)[0]["Jacobian determinant J"].get_images()[0]
    assert 0 < (jacobian <= 0).mean() < 0.5
    np.testing.assert_array_equal(shown.get_array().mask, jacobian <= 0)
    assert shown.norm.vmin * shown.norm.vmax == pytest.approx(1)
    assert shown.norm(1.0) == pytest.approx(0.5)
    np.testing.assert_allclose(shown.cmap.get_bad()[:3], (0.94, 0.894, 0.259), atol=0.01)


def test_each_level_has_its_own_loss_curve():
    curves = [line.get_xydata().T for line in panels(registration())[0]["loss by level"].lines]
    np.testing.assert_array_equal(curves[0], [[1, 2, 3], [3, 2, 1]])
    np.testing.assert_array_equal(curves[1], [[4, 5], [5, 4]])
    alone = panels(registration(losses=(), steps=(), similarity=None, lam=None))[0]["loss by level"]
    assert not alone.lines
    assert "no step was optimised" in alone.texts[0].get_text()


def test_numbers_are_in_mm_and_say_what_came_before():
    found = registration()
    numbers = report_numbers(found)
    u = found.displacement[0].numpy() * np.reshape(SPACING, (3, 1, 1, 1))
    length = np.sqrt((u**2).sum(0))
    assert numbers["Displacement, mean and maximum"] == f"{length.mean():.2f} and {length.max():.2f} mm"
    a, b = (image.data[0, 0].numpy() for image in (found.moving_labels, found.fixed_labels))
    before = 2 * (a & b).sum() / (a.sum() + b.sum())
    after = found.metrics["dice_1"]
    assert numbers["Dice 1, before → after"] == f"{before:.3f} → {after:.3f}"
    assert numbers["Fixed grid"] == "20 × 16 × 9 voxels of 1 × 2 × 4 mm"
    assert numbers["Weight λ of the regulariser"] == "0.5"
    assert numbers["Steps by level"] == "3 + 2"
    assert not any("Dice" in name for name in report_numbers(registration(labels=False)))


def test_every_kind_of_file_is_whole_and_needs_no_other(tmp_path):
    found = registration()
    begins = {"page.png": b"\x89PNG", "page.pdf": b"%PDF", "page.html": b"<!DOCTYPE html>"}
    for name, magic in begins.items():
        assert write_report(found, tmp_path / "new" / name).read_bytes().startswith(magic)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(begins)
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "moving pulled onto fixed" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    picture = re.search(r"data:image/png;base64,([^\"]+)", text)[1]
    assert base64.b64decode(picture) == (tmp_path / "new" / "page.png").read_bytes()
    for name, value in report_numbers(found).items():
        assert f"<th>{name}</th><td>{value}</td>" in text


def test_what_cannot_be_written_is_said_in_one_line_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.html"):
        check_report(tmp_path / "page.txt")
    with pytest.raises(DataError, match="cannot be written"):
        check_report(tmp_path / "taken" / "page.png")
    several = registration()
    object.__setattr__(several, "displacement", several.displacement.repeat(2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="2 pairs"):
        write_report(several, tmp_path / "page.png")

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("deepsimreg.registration.optimise", lambda *_, **__: pytest.fail("the work has begun"))
    for name in ("moving.nii", "fixed.nii"):
        nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((8, 8, 8)), np.eye(4)), tmp_path / name)
    given = [
        "register",
        *(str(tmp_path / name) for name in ("moving.nii", "fixed.nii")),
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(main, [*given, "--report", str(tmp_path / "page.png")])
    assert done.exit_code == 1
    assert done.stderr.strip() == "Error: a report needs matplotlib: pip install deepsimreg[report]"


def test_register_knows_what_the_report_says(tmp_path):
    rng = np.random.default_rng(0)
    images = [gaussian_filter(rng.random((40, 36)), 2) for _ in range(2)]
    found = register(*images, "mse + 0.5 ncc", steps=3, progress=False)
    assert found.similarity == "mse + 0.5 ncc"
    assert sum(found.steps) == len(found.losses)
    assert found.lam == default_lam("mse", 2) + 0.5 * default_lam("ncc", 2)
    for name, image in zip(("moving.tif", "fixed.tif"), images, strict=True):
        tifffile.imwrite(tmp_path / name, image.astype(np.float32))
    given = [
        "register",
        *(str(tmp_path / name) for name in ("moving.tif", "fixed.tif")),
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(main, [*given, "--steps", "2", "--report", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "page.html" in done.stdout
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "moving.tif pulled onto fixed.tif" in text
    assert str(tmp_path) not in text


def test_matplotlib_is_loaded_when_a_page_is_drawn():
    code = "import sys, deepsimreg.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
