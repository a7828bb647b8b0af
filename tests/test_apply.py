"""Everything on disk through ITK: field, inverse, affine, velocity, points; several transforms; fields of others."""

import csv
import json
import os
import warnings

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from click.testing import CliRunner
from scipy.spatial.transform import Rotation
from test_geometry import Given, field, saved, smooth

from deepsimreg import register
from deepsimreg.alignment import write_affine
from deepsimreg.apply import apply_to_image, apply_to_points, displacement_of, read_transforms
from deepsimreg.cli import main
from deepsimreg.errors import DataError
from deepsimreg.grid import Grid
from deepsimreg.itk import from_itk, read_field, write_field
from deepsimreg.learn2reg import read_disp
from deepsimreg.models.foreign import TorchScriptFeatures
from deepsimreg.warps import grid_step, integrate, jacobian_determinant, upsample

SHAPE = (30, 34, 28)


def oblique(shift=(0.0, 0.0, 0.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix() @ np.diag([1, 1.5, 2])
    affine[:3, 3] = np.array([20.0, -10, 5]) + shift
    return affine


def itk_field(path):
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def sent(transform, points):
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def write_points(path, points, **further):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["x", "y", "z", *further])
        writer.writeheader()
        writer.writerows(dict(zip("xyz", point, strict=True)) | further for point in points)
    return path


def read_points(path):
    with path.open(newline="") as file:
        return np.array([[float(row[name]) for name in "xyz"] for row in csv.DictReader(file)])


@pytest.fixture(scope="module")
def saved_registration(tmp_path_factory):
    """A registration with an affine and a strong displacement, all of it on disk."""
    folder, rng = tmp_path_factory.mktemp("registration"), np.random.default_rng(0)
    moving = saved(folder / "moving.nii.gz", smooth(rng, SHAPE, 2), oblique((2.0, -3.0, 1.0)))
    fixed = saved(folder / "fixed.nii.gz", smooth(rng, SHAPE, 2), oblique())
    result = register(
        moving, fixed, "mse", affine="rigid", network=Given(field(rng, SHAPE, 3.0)), steps=0, progress=False
    )
    result.save(folder)
    image = sitk.ReadImage(str(fixed))
    voxels = rng.uniform(6, np.array(SHAPE) - 7, (100, 3))
    points = np.array([image.TransformContinuousIndexToPhysicalPoint(x) for x in voxels.tolist()])
    return folder, result, voxels, points


def test_there_and_back_through_itk(saved_registration):
    folder, _, _, points = saved_registration
    there, back = itk_field(folder / "field.nii.gz"), itk_field(folder / "inverse_field.nii.gz")
    size = np.linalg.norm(sent(there, points) - points, axis=1)
    apart = np.linalg.norm(sent(back, sent(there, points)) - points, axis=1)
    again = np.linalg.norm(sent(there, sent(back, points)) - points, axis=1)
    print(f"of {size.mean():.1f} mm: there and back {apart.max():.3f}, back and there {again.max():.3f} mm at most")
    assert size.mean() > 2
    assert max(np.median(apart), np.median(again)) < 0.1
    assert max(apart.max(), again.max()) < 0.3, "between the voxels both fields are interpolated"


def test_the_field_holds_the_affine_which_is_written_alone_as_well(saved_registration):
    folder, result, _, points = saved_registration
    affine = sitk.ReadTransform(str(folder / "affine.mat"))
    still = register(
        folder / "moving.nii.gz",
        folder / "fixed.nii.gz",
        "mse",
        start=folder / "affine.mat",
        steps=0,
        progress=False,
    )
    still.save(folder / "affine", ["moved", "field"])
    np.testing.assert_allclose(
        sent(itk_field(folder / "affine" / "field.nii.gz"), points), sent(affine, points), atol=1e-3
    )
    assert not np.allclose(result.transform, np.eye(4), atol=1e-2)


def test_folds_and_sd_log_jacobian_are_of_the_deformation_alone(tmp_path):
    """The whole warp and the deformation have the same, though the affine part makes volumes a fifth larger."""
    rng = np.random.default_rng(0)
    image, labels = smooth(rng, SHAPE, 2), np.ones(SHAPE, np.uint8)
    moving = saved(tmp_path / "moving.nii.gz", image, np.diag([1.2, 1.5, 2, 1]))
    fixed = saved(tmp_path / "fixed.nii.gz", image, np.diag([1, 1.5, 2, 1]))
    given = {"affine": "affine", "network": Given(field(rng, SHAPE, 3.0)), "steps": 0}
    result = register(moving, fixed, "mse", progress=False, **given)
    result.save(tmp_path, ["field"])
    path = str(saved(tmp_path / "labels.nii.gz", labels, np.diag([1, 1.5, 2, 1])))
    done = CliRunner().invoke(main, ["evaluate", path, path, "--field", f"{tmp_path}/field.nii.gz", "--json"])
    measured = json.loads(done.stdout)
    assert jacobian_determinant(read_disp(tmp_path / "field.nii.gz")[0]).mean() > 1.15 * result.jacobian.mean()
    assert measured["sd_log_jacobian"] == pytest.approx(result.metrics["sd_log_jacobian"], rel=1e-3)
    assert measured["folds"] == result.metrics["folds"]
    assert result.metrics["sd_log_jacobian"] > 0.05


def test_points_and_labels_go_where_itk_sends_them(saved_registration):
    folder, result, voxels, points = saved_registration
    write_points(folder / "points.csv", points, name="landmark")
    assert apply_to_points(folder / "points.csv", [folder / "field.nii.gz"], folder / "sent.csv") == len(points)
    np.testing.assert_allclose(
        read_points(folder / "sent.csv"), sent(itk_field(folder / "field.nii.gz"), points), atol=1e-6
    )
    assert "landmark" in (folder / "sent.csv").read_text()
    write_points(folder / "voxels.csv", voxels)
    command = ["apply", f"{folder}/field.nii.gz", f"{folder}/voxels.csv", "--out", f"{folder}/sent_voxels.csv"]
    done = CliRunner().invoke(main, [*command, "--voxels", f"{folder}/fixed.nii.gz", f"{folder}/moving.nii.gz"])
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(read_points(folder / "sent_voxels.csv"), result.warp_points(voxels).numpy(), atol=1e-3)
    labels = saved(
        folder / "labels.nii.gz",
        np.random.default_rng(1).integers(0, 60000, SHAPE).astype(np.uint16),
        oblique((2.0, -3.0, 1.0)),
    )
    apply_to_image(labels, [folder / "field.nii.gz"], folder / "carried.nii.gz", labels=True)
    carried = nibabel.load(folder / "carried.nii.gz")
    assert carried.get_data_dtype() == np.uint16
    assert (np.asarray(carried.dataobj) != result.warp_labels(labels)[0, 0].numpy()).sum() <= 1


def test_the_first_transform_acts_first_as_in_ants_and_inverse_undoes(saved_registration):
    ants = pytest.importorskip("ants")
    folder, _, _, points = saved_registration
    affine, warp = sitk.ReadTransform(str(folder / "affine.mat")), itk_field(folder / "field.nii.gz")
    both = read_transforms([folder / "field.nii.gz", folder / "affine.mat"], 3)
    np.testing.assert_allclose(sent(both, points), sent(affine, sent(warp, points)), atol=1e-6)
    names = [str(folder / name) for name in ("field.nii.gz", "affine.mat")]
    images = [ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("fixed", "moving")]
    seen = ants.apply_transforms(*images, names).numpy()
    apply_to_image(folder / "moving.nii.gz", names, folder / "both.nii.gz", fill=0)
    np.testing.assert_allclose(nibabel.load(folder / "both.nii.gz").get_fdata(), seen, atol=1e-4)
    undone = read_transforms([f"inverse:{folder / 'affine.mat'}", folder / "affine.mat"], 3)
    np.testing.assert_allclose(sent(undone, points), points, atol=1e-6)
    undone = read_transforms([f"inverse:{folder / 'field.nii.gz'}", folder / "field.nii.gz"], 3)
    assert np.median(np.linalg.norm(sent(undone, points) - points, axis=1)) < 0.05


def test_the_velocity_on_its_grid_integrates_to_the_field(tmp_path):
    rng = np.random.default_rng(2)
    image = smooth(rng, SHAPE, 2)
    moving = saved(tmp_path / "moving.nii.gz", image, oblique())
    fixed = saved(tmp_path / "fixed.nii.gz", np.roll(image, 1, axis=0), oblique())
    result = register(moving, fixed, "mse", progress=False)
    result.save(tmp_path, ["velocity", "field", "jacobian"])
    velocity = from_itk(*read_field(tmp_path / "velocity.nii.gz"))
    torch.testing.assert_close(velocity, result.velocity, atol=1e-4, rtol=0)
    steps = [grid_step(size, points) for size, points in zip(SHAPE, velocity.shape[2:], strict=True)]
    whole = upsample(integrate(velocity, 5), steps)[(..., *map(slice, SHAPE))] * torch.tensor(steps).view(1, 3, 1, 1, 1)
    assert (whole - result.displacement).abs().max() < 1e-3
    stored = nibabel.load(tmp_path / "jacobian.nii.gz").get_fdata()
    np.testing.assert_allclose(stored, result.jacobian[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_a_field_of_another_tool_is_gone_on_from(tmp_path, suffix):
    """A field on a grid of its own, written by SimpleITK: where it leads, the registration starts."""
    rng = np.random.default_rng(3)
    fixed = saved(tmp_path / "fixed.nii.gz", smooth(rng, SHAPE, 2), oblique())
    grid = sitk.ReadImage(
        str(saved(tmp_path / "grid.nii.gz", smooth(rng, (16, 18, 15)), oblique((-3, -3, -3)) * [2, 2, 2, 1]))
    )
    vectors = gentle = np.stack([3 * smooth(rng, (15, 18, 16), 3) for _ in range(3)], axis=-1).astype(np.float64)
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.CopyInformation(grid)
    sitk.WriteImage(image, str(tmp_path / f"other{suffix}"))
    result = register(fixed, fixed, "mse", start=tmp_path / f"other{suffix}", steps=0, progress=False)
    voxels = rng.uniform(4, 20, (20, 3))
    itk = sitk.ReadImage(str(fixed))
    points = np.array([itk.TransformContinuousIndexToPhysicalPoint(x) for x in voxels.round().tolist()])
    there = sent(itk_field(tmp_path / f"other{suffix}"), points)
    expected = np.array([itk.TransformPhysicalPointToContinuousIndex(point) for point in there.tolist()])
    np.testing.assert_allclose(result.warp_points(voxels.round()).numpy(), expected, atol=1e-3)
    assert gentle.std() > 0.1


def test_a_start_that_covers_a_part_of_the_fixed_grid_is_warned_of(tmp_path):
    """Fields on a part of the grid, alone, behind an affine, and inverted; counted voxel by voxel."""
    rng, affine = np.random.default_rng(5), oblique()
    fixed = saved(tmp_path / "fixed.nii.gz", smooth(rng, SHAPE, 2), affine)
    parts = {"whole": SHAPE, "half": (SHAPE[0] // 2, *SHAPE[1:])}
    for name, shape in parts.items():
        write_field(tmp_path / f"{name}.nii.gz", torch.zeros(1, 3, *shape), Grid.of(shape, affine=affine))
    step = np.eye(4)  # three rows on
    step[:3, 3] = affine[:3, 0] * 3
    write_affine(tmp_path / "step.mat", step, 3)
    whole, half, step = (str(tmp_path / name) for name in ("whole.nii.gz", "half.nii.gz", "step.mat"))
    rows = SHAPE[0]
    for names, expected in (
        ([whole], {}),
        ([f"inverse:{whole}"], {}),
        ([half], {"half": rows // 2 / rows}),
        ([f"inverse:{half}"], {"half": rows // 2 / rows}),
        ([step, whole, half], {"whole": (rows - 3) / rows, "half": (rows // 2 - 3) / rows}),
        ([whole, step], {}),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            register(fixed, fixed, "mse", start=names, steps=0, progress=False)
        texts = [str(one.message) for one in told if "covers" in str(one.message)]
        found = [f"{tmp_path / name}.nii.gz covers {share:.1%} of the fixed grid" for name, share in expected.items()]
        assert [text.split(":")[0] for text in texts] == found, names


def test_transforms_that_cannot_be_used_are_named(tmp_path, saved_registration):
    folder = saved_registration[0]
    for names, message in (
        ([folder / "none.mat"], r"none\.mat does not exist"),
        ([folder / "moving.nii.gz"], r"moving\.nii\.gz has shape .* a displacement field has"),
    ):
        with pytest.raises(DataError, match=message):
            read_transforms(names, 3)
    with pytest.raises(DataError, match="is a transform of 3 axes, the image has 2"):
        read_transforms([folder / "field.nii.gz"], 2)
    with pytest.raises(ValueError, match="give reference"):
        apply_to_image(folder / "moving.nii.gz", [folder / "affine.mat"], tmp_path / "moved.nii.gz")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns a, b: give points"):
        apply_to_points(tmp_path / "bad.csv", [folder / "field.nii.gz"], tmp_path / "out.csv")


def test_a_table_of_pairs_is_resumed_and_a_pair_that_fails_does_not_end_it(tmp_path):
    rng = np.random.default_rng(4)
    for name in "ab":
        saved(tmp_path / f"{name}.nii.gz", smooth(rng, (20, 22, 18)), np.eye(4))
    saved(tmp_path / "flat.nii.gz", np.zeros((20, 22, 18), np.float32), np.eye(4))
    (tmp_path / "pairs.csv").write_text("moving,fixed\na.nii.gz,b.nii.gz\nflat.nii.gz,a.nii.gz\nb.nii.gz,a.nii.gz\n")
    command = ["batch", f"{tmp_path}/pairs.csv", "--out", f"{tmp_path}/out", "--steps", "2", "--outputs", "moved"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "1 of 3 pairs failed" in done.output
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert "is constant" in rows["flat--a"]["error"]
    assert float(rows["a--b"]["sd_log_jacobian"]) > 0
    assert [path.name for path in (tmp_path / "out" / "a--b").iterdir()] == ["moved.nii.gz"]
    before = (tmp_path / "out" / "a--b" / "moved.nii.gz").stat().st_mtime_ns
    saved(tmp_path / "flat.nii.gz", smooth(rng, (20, 22, 18)), np.eye(4))
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (tmp_path / "out" / "a--b" / "moved.nii.gz").stat().st_mtime_ns == before
    other = CliRunner().invoke(main, [*command[:-4], "--steps", "3"])
    assert "holds results of other options" in other.output
    (tmp_path / "wrong.csv").write_text("moving,fixed\na.nii.gz,c.nii.gz\n")
    wrong = CliRunner().invoke(main, ["batch", f"{tmp_path}/wrong.csv", "--out", f"{tmp_path}/other"])
    assert "c.nii.gz is no file" in wrong.output


def test_a_table_of_pairs_may_name_landmarks_a_start_and_a_report(tmp_path):
    """Images without structure in common, so that the landmarks alone, or the start alone, say where to go."""
    rng = np.random.default_rng(7)
    names = [saved(tmp_path / f"{name}.nii.gz", smooth(rng, (20, 22, 18), 3), np.eye(4)).name for name in "ab"]
    points = rng.uniform(6, 11, (12, 3))
    for name, shift in (("there", 2.0), ("here", 0.0)):
        write_points(tmp_path / f"{name}.csv", (points + np.array([shift, 0, 0])) * [-1, -1, 1])
    step = np.eye(4)
    step[0, 3] = 2
    write_affine(tmp_path / "step.mat", step, 3)
    rows = [",".join(["name", "moving", "fixed", "moving_landmarks", "fixed_landmarks", "start"])]
    rows += [",".join(["marks", *names, "there.csv", "here.csv", ""]), ",".join(["start", *names, "", "", "step.mat"])]
    table, out = tmp_path / "pairs.csv", tmp_path / "out"
    table.write_text("\n".join(rows))
    command = ["batch", str(table), "--out", str(out), "--similarity", "mse", "--lam", "0.01", "--report", "png"]
    done = CliRunner().invoke(main, [*command, "--landmark-weight", "10", "--outputs", "field"])
    assert done.exit_code == 0, done.output
    for name in ("marks", "start"):
        assert {path.name for path in (out / name).iterdir()} == {"field.nii.gz", "report.png"}
    world = points * [-1, -1, 1]
    moved = sent(itk_field(out / "marks" / "field.nii.gz"), world) - world
    np.testing.assert_allclose(moved, np.tile([-2.0, 0, 0], (12, 1)), atol=0.7)
    start = ["--start", f"{tmp_path}/step.mat", "--similarity", "mse", "--lam", "0.01", "--outputs", "field"]
    single = CliRunner().invoke(main, ["register", *(f"{tmp_path}/{n}" for n in names), "--out", f"{out}/one", *start])
    assert single.exit_code == 0, single.output
    a, b = (nibabel.load(out / name / "field.nii.gz").get_fdata() for name in ("start", "one"))
    np.testing.assert_allclose(a, b, atol=1e-5)
    table.write_text("\n".join([rows[0], rows[1].replace("there.csv", "")]))
    done = CliRunner().invoke(main, [*command[:2], "--out", f"{tmp_path}/other"])
    assert "marks has landmarks of one image: give moving_landmarks and fixed_landmarks" in done.output


class Colours(torch.nn.Module):
    """A network that takes three channels, and sizes that 4 divides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = torch.nn.Conv3d(3, 4, 4, stride=4)

    def forward(self, image):
        assert image.shape[2] % 4 == 0, "4 does not divide it"
        return torch.tanh(self.down(image))


def test_what_a_torchscript_file_takes_is_said_on_the_command_line(tmp_path):
    rng = np.random.default_rng(8)
    pair = [str(saved(tmp_path / f"{name}.nii.gz", smooth(rng, (18, 21, 19), 2), np.eye(4))) for name in "ab"]
    torch.jit.script(Colours().eval()).save(tmp_path / "colours.pt")
    given = ["--similarity", "deepsim-seg", "--lam", "0.1", "--extractor", f"{tmp_path}/colours.pt", "--steps", "2"]
    options = ["--extractor-channels", "3", "--extractor-multiple", "4"]
    command = ["register", *pair, "--out", f"{tmp_path}/out", *given, "--outputs", "field"]
    assert CliRunner().invoke(main, command).exit_code == 1
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 0, done.output
    extractor = TorchScriptFeatures(tmp_path / "colours.pt", channels=3, multiple=4)
    result = register(*pair, "deepsim-seg", lam=0.1, extractor=extractor, steps=2, progress=False)
    result.save(tmp_path / "python", ["field"])
    ours, theirs = (nibabel.load(tmp_path / name / "field.nii.gz").get_fdata() for name in ("out", "python"))
    np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "pairs.csv").write_text("moving,fixed\na.nii.gz,b.nii.gz\n")
    done = CliRunner().invoke(main, ["batch", f"{tmp_path}/pairs.csv", "--out", f"{tmp_path}/all", *given, *options])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["register", *pair, "--out", f"{tmp_path}/out", *options])
    assert "are those of a TorchScript file: give it, too" in done.output


def test_a_result_in_json_has_no_nan(tmp_path):
    rng = np.random.default_rng(5)
    image = saved(tmp_path / "a.nii.gz", smooth(rng, (20, 22, 18)), np.eye(4))
    none = saved(tmp_path / "none.nii.gz", np.zeros((20, 22, 18), np.uint8), np.eye(4))
    one = saved(tmp_path / "one.nii.gz", np.pad(np.ones((4, 4, 4), np.uint8), ((8, 8), (9, 9), (7, 7))), np.eye(4))
    command = ["register", str(image), str(image), "--out", f"{tmp_path}/out", "--steps", "1", "--json"]
    done = CliRunner().invoke(main, [*command, "--labels", str(none), "--fixed-labels", str(one)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["dice_1"] == 0
    done = CliRunner().invoke(main, ["evaluate", str(none), str(one), "--json"])
    assert json.loads(done.output)["hd95_1"] is None


def test_vectors_that_a_nifti_declares_to_be_ras_are_turned(tmp_path):
    """Intent 1006 holds RAS vectors, 1007 LPS ones; ITK turns the first when it reads them."""
    rng = np.random.default_rng(6)
    image = saved(tmp_path / "image.nii.gz", smooth(rng, (16, 18, 20)), np.eye(4))
    vectors = np.zeros((16, 18, 20, 1, 3), np.float32)
    vectors[..., 0], vectors[..., 1] = 2.5, -1.5
    for code, sign in ((1007, 1), (1006, -1)):
        stored = nibabel.Nifti1Image(vectors, np.eye(4))
        stored.header.set_intent(code)
        nibabel.save(stored, tmp_path / "field.nii.gz")
        np.testing.assert_allclose(read_field(tmp_path / "field.nii.gz")[0][0, 0, 0], [2.5 * sign, -1.5 * sign, 0])
        apply_to_image(image, [tmp_path / "field.nii.gz"], tmp_path / "moved.nii.gz", fill=0)
        itk = sitk.ReadImage(str(image))
        seen = sitk.GetArrayFromImage(sitk.Resample(itk, itk, itk_field(tmp_path / "field.nii.gz"))).T
        np.testing.assert_allclose(nibabel.load(tmp_path / "moved.nii.gz").get_fdata(), seen, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 15.0, 60.0])
def test_the_inverse_of_a_field_is_that_of_the_whole_warp_wherever_the_moving_image_lies(tmp_path, shift):
    """A field that carries the world far away, as after an alignment: its inverse brings points of there back."""
    rng = np.random.default_rng(7)
    fixed = saved(tmp_path / "fixed.nii.gz", smooth(rng, SHAPE, 2), oblique())
    turn = np.eye(4)
    turn[:3, 3] = [shift, 0, -shift]
    write_affine(tmp_path / "there.mat", turn, 3)
    warp = register(fixed, fixed, "mse", network=Given(field(rng, SHAPE, 2.0)), steps=0, progress=False)
    warp.save(tmp_path, ["field"])
    names = [tmp_path / "field.nii.gz", tmp_path / "there.mat"]
    itk = sitk.ReadImage(str(fixed))
    voxels = rng.uniform(6, np.array(SHAPE) - 7, (50, 3))
    points = np.array([itk.TransformContinuousIndexToPhysicalPoint(x) for x in voxels.tolist()])
    grid = read_field(tmp_path / "field.nii.gz")[1]
    u = displacement_of(names, grid, grid, np.eye(4))
    write_field(tmp_path / "whole.nii.gz", u, grid, matrix=np.eye(4))
    there = sent(itk_field(tmp_path / "whole.nii.gz"), points)
    assert np.linalg.norm(there - points, axis=1).min() > shift
    back = sent(read_transforms([f"inverse:{tmp_path / 'whole.nii.gz'}"], 3), there)
    assert np.median(np.linalg.norm(back - points, axis=1)) < 0.1
    assert np.linalg.norm(back - points, axis=1).max() < 0.5


def test_integers_of_32_bits_and_planes_of_tiff_pass_unchanged(tmp_path):
    rng = np.random.default_rng(8)
    numbers = rng.integers(-(2**31), 2**31 - 1, (16, 18, 20)).astype(np.int32)
    path = saved(tmp_path / "numbers.nii.gz", numbers, np.eye(4))
    still = register(path, path, "mse", network=Given(torch.zeros(1, 3, 16, 18, 20)), steps=0, progress=False)
    still.save(tmp_path, ["field"])
    apply_to_image(path, [tmp_path / "field.nii.gz"], tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "again.nii.gz").dataobj), numbers)

    plane = rng.integers(0, 60000, (40, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "plane.tif", plane)
    tiff = tmp_path / "plane.tif"
    still = register(tiff, tiff, "mse", network=Given(torch.zeros(1, 2, 40, 30)), steps=0, progress=False)
    still.save(tmp_path / "tiff", ["field"])
    apply_to_image(tiff, [tmp_path / "tiff" / "field.nii.gz"], tmp_path / "again.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "again.tif"), plane)


def test_channels_keep_their_types_and_their_own_background(tmp_path):
    rng, shape = np.random.default_rng(9), (20, 22, 18)
    bright = (100 + 100 * smooth(rng, shape)).astype(np.uint8)
    scanner = (smooth(rng, shape) * 0.9 - 1000).astype(np.float32)
    paths = [saved(tmp_path / f"{k}.nii.gz", array, np.eye(4)) for k, array in enumerate((bright, scanner))]
    away = torch.zeros(1, 3, *shape)
    away[:, 0] = 6
    result = register(paths, paths, "mse", network=Given(away), steps=0, progress=False)
    result.save(tmp_path / "out", ["moved"])
    moved = [nibabel.load(tmp_path / "out" / name) for name in ("moved.nii.gz", "moved1.nii.gz")]
    assert [one.get_data_dtype() for one in moved] == [np.uint8, np.float32]
    for one, source in zip(moved, (bright, scanner), strict=True):
        values = one.get_fdata()
        np.testing.assert_allclose(values[:-6], source[6:].astype(float), atol=1e-4)
        assert (values[-6:] == source.min()).all()


@pytest.mark.parametrize("row", ["4,5", "1,2,3,4", "1,2,x"])
def test_rows_of_points_that_are_no_points_are_named(tmp_path, saved_registration, row):
    (tmp_path / "p.csv").write_text(f"x,y,z\n1,2,3\n{row}\n")
    with pytest.raises(DataError, match=r"p\.csv, row 2"):
        apply_to_points(tmp_path / "p.csv", [saved_registration[0] / "field.nii.gz"], tmp_path / "out.csv")


def test_a_pair_whose_files_have_changed_is_registered_again(tmp_path):
    rng = np.random.default_rng(10)
    for name in "abc":
        saved(tmp_path / f"{name}.nii.gz", smooth(rng, (20, 22, 18)), np.eye(4))
    table, command = tmp_path / "pairs.csv", ["batch", f"{tmp_path}/pairs.csv", "--out", f"{tmp_path}/out"]
    command += ["--steps", "1", "--outputs", "moved"]

    def registered(text):
        table.write_text(text)
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        with (tmp_path / "out" / "results.csv").open() as file:
            return {row["name"]: row["sd_log_jacobian"] for row in csv.DictReader(file)}

    first = registered("name,moving,fixed\none,a.nii.gz,b.nii.gz\ntwo,b.nii.gz,c.nii.gz\n")
    second = registered("name,moving,fixed\none,c.nii.gz,a.nii.gz\n")
    assert set(first) == {"one", "two"}
    assert set(second) == {"one"}
    assert second["one"] != first["one"]
    for text, message in (
        ("moving,fixed,fixed_labels\na.nii.gz,b.nii.gz,c.nii.gz\n", "fixed_labels without labels"),
        ("moving,fixed,lable\na.nii.gz,b.nii.gz,c.nii.gz\n", "has the columns lable"),
        ("name,moving,fixed\n../out,a.nii.gz,b.nii.gz\n", "is no name of a folder"),
    ):
        table.write_text(text)
        assert message in CliRunner().invoke(main, command).output


def test_what_is_no_file_is_not_replaced(tmp_path, saved_registration):
    points = write_points(tmp_path / "points.csv", saved_registration[3])
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.csv", "pipe.csv"):
        with pytest.raises(DataError, match="is no file that could be replaced"):
            apply_to_points(points, [saved_registration[0] / "field.nii.gz"], tmp_path / name)
    assert (tmp_path / "pipe.csv").is_fifo()
