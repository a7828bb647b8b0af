"""Damaged files are read right, or refused by an error of deepsimreg's own that names the file; nothing hangs."""

import faulthandler
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from click.testing import CliRunner
from fuzzing import HANGING, LONG, cases, damaged
from hypothesis import given
from hypothesis import strategies as st

from deepsimreg.alignment import write_affine
from deepsimreg.apply import read_points, read_transforms
from deepsimreg.batch import _read_pairs
from deepsimreg.cli import main
from deepsimreg.data.own import OwnData
from deepsimreg.errors import DataError, UnreadableError, WeightsError
from deepsimreg.grid import Grid
from deepsimreg.image import as_image
from deepsimreg.io import image_affine, image_shape, read_page, write_image
from deepsimreg.itk import write_field
from deepsimreg.learn2reg import read_disp, write_disp
from deepsimreg.models.image_networks import UNet
from deepsimreg.models.store import load_model, save_model

VOLUME = np.random.default_rng(0).integers(0, 200, (3, 4, 5)).astype(np.uint8)
GRID = Grid.of(VOLUME.shape, (1, 2, 3))
FIELD = torch.rand(1, 3, *VOLUME.shape, generator=torch.Generator().manual_seed(0))
AFFINE = np.array([[1.0, 0.1, 0, 3], [-0.1, 1, 0, 2], [0, 0, 1, 1], [0, 0, 0, 1]])
MEMORY = 6 * 2**30  # bytes of address space above what the process has: a header's absurd size fails at once


def image(path: Path):
    """The voxels; the header alone says the same shape."""
    stored = as_image(path, "image")
    shape, affine = image_shape(path), image_affine(path)
    assert len(shape) >= 2
    assert affine is None or np.isfinite(affine).all()
    assert torch.isfinite(stored.data.double()).all()
    return stored.data


def pages(path: Path):
    return image(path), read_page(path, 1)


def field(path: Path):
    transforms = [read_transforms([name], 3) for name in (path, f"inverse:{path}")]
    return read_disp(path)[0], [one.TransformPoint([1.0, 2, 3]) for one in transforms]


def transform(path: Path):
    return [read_transforms([name], 3).TransformPoint([1.0, 2, 3]) for name in (path, f"inverse:{path}")]


def by_itk(path: Path) -> None:
    write_image(path.parent / "made.nii", VOLUME, GRID)
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path.parent / "made.nii")), str(path))


def stack(**options):
    return lambda path: tifffile.imwrite(path, VOLUME, photometric="minisblack", **options)


def weights(path: Path) -> None:
    save_model(UNet(ndim=2, out_channels=2, channels=(2, 2)), path)


def description(path: Path) -> None:
    for name in "abcdef":
        write_image(path.parent / f"image-{name}.nii", VOLUME, GRID)
        write_image(path.parent / f"label-{name}.nii", VOLUME % 2, GRID)
    path.write_text(
        "name: mine\nkind: volumes\nimages: 'image-{subject}.nii'\n"
        "labels: 'label-{subject}.nii'\nclasses: [none, all]\n"
        "intensity: {range: [0, 255]}\nsplit: {train: [a, b], validation: [c, d], test: [e, f], seed: 3}\n"
        "pairs: all\nspacing: [1, 2, 3]\ncolors: ['#000000', '#ffffff']\nlicence: free\n",
        encoding="utf-8",
    )


def pair_table(path: Path) -> None:
    write_image(path.parent / "m.nii", VOLUME, GRID)
    path.write_text("name,moving,fixed,labels\na,m.nii,m.nii,\nb,m.nii,m.nii,m.nii\n", encoding="utf-8")


READERS = {
    "a.nii": (lambda path: write_image(path, VOLUME, GRID), image),
    "a.nii.gz": (lambda path: write_image(path, VOLUME, GRID), image),
    "a.hdr": (lambda path: nibabel.save(nibabel.Nifti1Pair(VOLUME, AFFINE), path.with_suffix(".img")), image),
    "a.mgh": (lambda path: nibabel.save(nibabel.MGHImage(VOLUME, AFFINE), path), image),
    "a.mgz": (lambda path: nibabel.save(nibabel.MGHImage(VOLUME, AFFINE), path), image),
    "a.nrrd": (lambda path: write_image(path, VOLUME, GRID), image),
    "a.mha": (lambda path: write_image(path, VOLUME, GRID), image),
    "plain.mha": (by_itk, image),
    "a.mhd": (by_itk, image),
    "a.nhdr": (by_itk, image),
    "a.png": (lambda path: write_image(path, VOLUME[0]), image),
    "a.tif": (stack(), pages),
    "ome.tif": (stack(ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5}), image),
    "imagej.tif": (stack(imagej=True, metadata={"axes": "ZYX", "spacing": 2, "unit": "um"}), image),
    "zlib.tif": (stack(compression="zlib"), image),
    "field.nii": (lambda path: write_field(path, FIELD, GRID), field),
    "field.nii.gz": (lambda path: write_field(path, FIELD, GRID), field),
    "field.nrrd": (lambda path: write_field(path, FIELD, GRID), field),
    "field.mha": (lambda path: write_field(path, FIELD, GRID), field),
    "disp.nii.gz": (lambda path: write_disp(path, FIELD, GRID), lambda path: read_disp(path)[0]),
    "disp.nii": (lambda path: write_disp(path, FIELD, GRID), lambda path: read_disp(path)[0]),
    "a.mat": (lambda path: write_affine(path, AFFINE, 3), transform),
    "a.tfm": (lambda path: write_affine(path, AFFINE, 3), transform),
    "points.csv": (
        lambda path: path.write_text("x,y,z,name\n1,2,3,a\n4.5,6,7e1,b\n", "utf-8"),
        lambda path: read_points(path)[1],
    ),
    "pairs.csv": (pair_table, lambda path: _read_pairs(path)),
    "weights.safetensors": (weights, lambda path: load_model(path).state_dict()),
    "own.yaml": (description, lambda path: OwnData(path).fingerprint()),
}
LISTS = ("pairs.csv", "own.yaml")  # name other files, which may be those that are wrong
CHECKED = ("a.nii.gz", "a.mgz", "a.png", "field.nii.gz", "disp.nii.gz")  # have a checksum


@pytest.fixture(autouse=True)
def bounded():
    """Memory and time are bounded, and warnings of the libraries are not shown."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    faulthandler.cancel_dump_traceback_later()


def outcome(read, path: Path):
    """What was read, or None; and the message of the error of ours that refused it, or None."""
    try:
        return read(path), None
    except ValueError as error:
        if type(error) not in (DataError, UnreadableError, WeightsError, ValueError):
            raise  # a library's
        return None, str(error)


def same(a, b) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b if isinstance(a, str | Path | None) else np.array_equal(a, b, equal_nan=False)


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes_are_refused_by_name_or_read_right(name, tmp_path):
    make, read = READERS[name]
    path = tmp_path / name
    make(path)
    whole, wanted = path.read_bytes(), read(path)

    @cases(12, 500)
    @given(damaged(whole))
    def damage(content):
        path.write_bytes(content)
        if LONG:
            faulthandler.dump_traceback_later(HANGING, exit=True)
        found, refusal = outcome(read, path)
        if refusal is not None:
            assert (str(tmp_path) if name in LISTS else name) in refusal
        elif name in CHECKED:
            assert same(found, wanted)

    damage()


@pytest.mark.parametrize("name", [name for name in READERS if not name.endswith(("csv", "yaml", "mat", "tfm"))])
@cases(6, 200)
@given(st.data())
def test_a_file_that_was_cut_short_is_refused_or_whole(name, tmp_path_factory, data):
    make, read = READERS[name]
    path = tmp_path_factory.mktemp("cut") / name
    make(path)
    whole, wanted = path.read_bytes(), read(path)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    found, refusal = outcome(read, path)
    assert name in refusal if refusal is not None else same(found, wanted)


def test_a_damaged_file_ends_a_command_with_one_line(tmp_path):
    """Of a process of its own, in which the libraries print."""
    write_image(tmp_path / "a.nii", VOLUME, GRID)
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(whole[:40] + b"\xff" * 16 + whole[56:])
    command = [sys.executable, "-m", "deepsimreg.cli", "evaluate", "a.nii", "a.nii"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 1
    assert re.fullmatch(r"Error: a\.nii is truncated .*\n", ended.stderr)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.tif", "field.nii", "points.csv", "a.tfm"])
@cases(2, 100)
@given(st.data())
def test_a_command_ends_with_one_line(name, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("command")
    path, whole, out = folder / name, folder / "whole.nii", folder / "out.nii"
    READERS[name][0](path)
    write_image(whole, VOLUME, GRID)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    if name == "points.csv":
        READERS["a.tfm"][0](folder / "a.tfm")
        words = ["apply", folder / "a.tfm", path, "--out", folder / "out.csv"]
    elif name in ("field.nii", "a.tfm"):
        words = ["apply", path, whole, "--out", out, "--reference", whole]
    elif data.draw(st.booleans()):
        words = ["evaluate", path, path]
    else:
        words = ["register", path, path, "--out", folder / "out", "--steps", 1, "--json"]
    ended = CliRunner().invoke(main, list(map(str, words)))
    assert ended.exit_code in (0, 1)
    if ended.exit_code:
        assert isinstance(ended.exception, SystemExit), ended.exception
        last = ended.output.strip().splitlines()[-1]
        assert last.startswith("Error: ")
        assert str(folder) in last
