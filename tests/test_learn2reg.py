"""Learn2Reg's files and numbers, against their definitions in float64 with numpy and scipy."""

import itertools
import json

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.ndimage import correlate1d, gaussian_filter, map_coordinates
from scipy.spatial.distance import cdist

from deepsimreg.cli import main
from deepsimreg.errors import DataError
from deepsimreg.grid import Grid, positions
from deepsimreg.itk import write_field
from deepsimreg.learn2reg import evaluate_fields, learn2reg_metrics, read_disp, write_disp
from deepsimreg.surfaces import hausdorff_distance_95_by_area
from deepsimreg.warps import sample_image

SHAPE = (20, 24, 18)
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 1, 0, -7], [0, 0, 2, 3], [0, 0, 0, 1.0]])
GRID = Grid.of(SHAPE, affine=AFFINE)


def smooth_field(peak, seed=0):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(3, *SHAPE)), (0, 2, 2, 2))
    return torch.from_numpy(noise * (peak / np.abs(noise).max()))[None].float()


def blobs(seed, classes=3):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(classes, *SHAPE)), (0, 2, 2, 2))
    noise[0] += 0.03
    return noise.argmax(0).astype(np.uint8)


MARCHING_CUBES = {  # voxels (x, y, z) of a cube that are in the mask → area of the triangles between them and the rest
    ("000",): 0.216506,
    ("000", "001"): 0.707107,
    ("000", "011"): 0.433013,
    ("000", "111"): 0.433013,
    ("000", "001", "010"): 1.149519,
    ("000", "001", "110"): 0.923613,
    ("001", "010", "100"): 0.649519,
    ("000", "001", "010", "011"): 1.0,
    ("000", "001", "010", "100"): 1.299038,
    ("000", "001", "011", "111"): 1.573132,
    ("001", "000", "010", "111"): 1.366025,
    ("000", "001", "110", "111"): 1.414214,
    ("000", "011", "101", "110"): 0.866025,
}


def areas_by_symmetry():
    """Area of each of the 2^8 cubes, from one of each kind, turned, mirrored and with inside and outside swapped."""
    table = {}
    for corners, area in MARCHING_CUBES.items():
        cube = np.zeros((2, 2, 2), bool)
        for corner in corners:
            cube[tuple(map(int, corner))] = True
        for order in itertools.permutations(range(3)):
            for axes in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
                turned = np.flip(cube.transpose(order), axes)
                table[turned.tobytes()] = table[(~turned).tobytes()] = area
    assert len(table) == 254
    return table


def hd95_by_definition(a, b):
    table, surfaces = areas_by_symmetry(), []
    for mask in (np.pad(a, 1), np.pad(b, 1)):
        found = []
        for corner in itertools.product(*(range(size - 1) for size in mask.shape)):
            cube = mask[tuple(slice(at, at + 2) for at in corner)]
            if cube.any() and not cube.all():
                found.append((*corner, table[cube.tobytes()]))
        surfaces.append(np.array(found))
    distances = cdist(surfaces[0][:, :3], surfaces[1][:, :3])
    answers = []
    for surface, nearest in zip(surfaces, (distances.min(1), distances.min(0)), strict=True):
        order = np.argsort(nearest)
        fraction = np.cumsum(surface[order, 3]) / surface[:, 3].sum()
        answers.append(nearest[order][np.argmax(fraction >= 0.95)])
    return max(answers)


def metrics_by_definition(field, moving, fixed, labels):
    u = field[0].double().numpy()
    moved = map_coordinates(moving, np.indices(SHAPE) + u, order=0, mode="constant", cval=0)
    dice, hd95 = [], []
    for k in labels:
        dice.append(2 * np.sum((fixed == k) & (moved == k)) / (np.sum(fixed == k) + np.sum(moved == k)))
        hd95.append(hd95_by_definition(fixed == k, moved == k))
    matrix = np.empty((3, 3, *SHAPE))
    for component, axis in itertools.product(range(3), repeat=2):
        matrix[component, axis] = correlate1d(u[component], [-0.5, 0, 0.5], axis, mode="constant") + (component == axis)
    jacobian = np.linalg.det(np.moveaxis(matrix, (0, 1), (-2, -1)))[2:-2, 2:-2, 2:-2]
    return np.mean(dice), np.mean(hd95), np.std(np.log(np.clip(jacobian + 3, 1e-9, 1e9))), jacobian.min()


@pytest.mark.parametrize("peak", [2, 6, 14], ids=["smooth", "folded", "clipped"])
def test_the_numbers_are_those_of_the_definition(peak):
    field, moving, fixed = smooth_field(peak), blobs(1), blobs(2)
    found = learn2reg_metrics(field, moving, fixed)
    dice, hd95, sdlogj, lowest = metrics_by_definition(field, moving, fixed, (1, 2))
    assert (lowest < -3) == (peak == 14)
    assert found["dice"] == pytest.approx(dice, abs=1e-12)
    assert found["hd95"] == pytest.approx(hd95, abs=1e-9)
    assert found["sdlogj"] == pytest.approx(sdlogj, abs=1e-9)


def test_hd95_counts_area_not_elements():
    """A cube and the same cube with a thin spike: less than 5 % of the area lies on the spike's last voxels."""
    a = np.zeros((30, 12, 12), bool)
    a[3:11, 2:10, 2:10] = True
    assert hausdorff_distance_95_by_area(a, np.roll(a, 2, axis=0)) == hd95_by_definition(a, np.roll(a, 2, axis=0)) == 2
    spiked = a.copy()
    spiked[11:26, 5, 5] = True
    found = hausdorff_distance_95_by_area(a, spiked)
    assert found == hd95_by_definition(a, spiked) == hausdorff_distance_95_by_area(spiked, a)
    assert 0 < found < 15
    assert hausdorff_distance_95_by_area(a, 0 * a) == np.inf


def test_labels_that_leave_the_image_are_background_and_lost_ones_are_infinitely_far():
    moving, fixed = np.zeros((2, 10, 10, 10), np.uint8)
    moving[7:, 2:8, 2:8], fixed[:3, 2:8, 2:8], fixed[5, 5, 5] = 1, 1, 7
    found = learn2reg_metrics(torch.full((1, 3, 10, 10, 10), 50.0), moving, fixed)
    assert found["dice_1"] == found["dice"] == 0
    assert found["hd95_1"] == np.inf
    assert np.isnan(found["dice_7"]), "a label that the moving image lacks is not scored"
    assert found["sdlogj"] == pytest.approx(0, abs=1e-12)
    assert "dice_7" not in learn2reg_metrics(torch.zeros(1, 3, 10, 10, 10), moving, fixed, labels=[1])
    with pytest.raises(ValueError, match="does not fit"):
        learn2reg_metrics(torch.zeros(1, 3, 10, 10, 9), moving, fixed)


def test_a_written_file_is_what_the_challenge_reads(tmp_path):
    field = smooth_field(3)
    write_disp(tmp_path / "disp_0001_0002.nii.gz", field, GRID)
    image = nibabel.load(tmp_path / "disp_0001_0002.nii.gz")
    assert image.shape == (*SHAPE, 3)
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_array_equal(image.get_fdata().transpose(3, 0, 1, 2), field[0].numpy())
    again, grid = read_disp(tmp_path / "disp_0001_0002.nii.gz")
    assert torch.equal(again, field)
    np.testing.assert_allclose(grid.affine, AFFINE, atol=1e-6)

    itk = field.clone()
    write_field(tmp_path / "field.nii.gz", itk, GRID)
    torch.testing.assert_close(read_disp(tmp_path / "field.nii.gz")[0], field, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="one volume"):
        write_disp(tmp_path / "flat.nii.gz", torch.zeros(1, 2, 4, 4), Grid.of((4, 4)))
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "field.nii.gz").read_bytes()[:300])
    with pytest.raises(DataError, match="truncated"):
        read_disp(tmp_path / "cut.nii.gz")


@pytest.fixture
def task(tmp_path):
    """Three pairs: labels in one folder, fields in another."""
    for folder in ("labelsTr", "fields"):
        (tmp_path / folder).mkdir()
    for number in range(1, 5):
        labels = nibabel.Nifti1Image(blobs(number), AFFINE)
        nibabel.save(labels, tmp_path / "labelsTr" / f"Task_{number:04}_0000.nii.gz")
    for fixed, moving in ((1, 2), (2, 3), (3, 4)):
        field = smooth_field(fixed, seed=moving)
        write_disp(tmp_path / "fields" / f"disp_{fixed:04}_{moving:04}.nii.gz", field, GRID)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_task_is_the_mean_of_its_pairs_and_dsc30_their_quantile(task):
    labels, fields = task / "labelsTr", task / "fields"
    done = call("evaluate", labels, labels, "--field", fields, "--learn2reg", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    pairs = [learn2reg_metrics(smooth_field(i, seed=i + 1), blobs(i + 1), blobs(i)) for i in (1, 2, 3)]
    for name in ("dice", "dice_2", "hd95", "sdlogj"):
        assert found[name] == pytest.approx(np.mean([pair[name] for pair in pairs]))
    low, middle, _ = sorted(pair["dice"] for pair in pairs)
    assert found["dsc30"] == pytest.approx(low + 0.6 * (middle - low))
    assert found["pairs"] == 3

    (task / "fields" / "disp_0001_0009.nii.gz").write_bytes((fields / "disp_0001_0002.nii.gz").read_bytes())
    with pytest.raises(DataError, match="_0009_0000"):
        evaluate_fields(fields, labels, labels)
    with pytest.raises(DataError, match="holds no disp_"):
        evaluate_fields(labels, labels, labels)


def test_the_command_line_writes_applies_and_scores_a_field(task):
    field, moving = smooth_field(2), nibabel.Nifti1Image(blobs(2).astype(np.float32), AFFINE)
    nibabel.save(moving, task / "moving.nii.gz")
    write_field(task / "field.nii.gz", field, GRID)
    disp = task / "disp_0001_0002.nii.gz"
    done = call("apply", task / "field.nii.gz", task / "moving.nii.gz", "--learn2reg", "--out", disp)
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(nibabel.load(disp).get_fdata(), field[0].movedim(0, -1).numpy(), atol=1e-4)

    done = call("apply", disp, task / "moving.nii.gz", "--out", task / "moved.nii.gz")
    assert done.exit_code == 0, done.output
    image = torch.from_numpy(moving.get_fdata(dtype=np.float32))[None, None]
    expected = sample_image(image, positions(np.eye(4), field), 0.0)[0, 0]
    np.testing.assert_allclose(nibabel.load(task / "moved.nii.gz").get_fdata(), expected, atol=1e-3)

    labels = [task / "labelsTr" / f"Task_{number:04}_0000.nii.gz" for number in (2, 1)]
    done = call("evaluate", *labels, "--field", disp, "--learn2reg", "--json")
    assert json.loads(done.stdout) == pytest.approx(learn2reg_metrics(read_disp(disp)[0], blobs(2), blobs(1)))
    assert call("evaluate", *labels, "--learn2reg").exit_code == 2
