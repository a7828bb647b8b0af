"""Metrics against their definition in float64, SimpleITK, and displacements whose numbers are known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from deepsimreg.metrics import (
    dice_per_class,
    evaluate_pair,
    hausdorff_distance_95,
    indexed_labels,
    jacobian_variance_published,
    label_metrics,
    segmentation_metrics,
    smoothness,
)
from deepsimreg.paper.landscape import loss_landscape_curves
from deepsimreg.paper.statistics import summary
from deepsimreg.warps import affine_displacement

CLASSES = ("background", "cell", "organelle")
SHAPES = [(17, 22), (9, 12, 10)]


def random_labels(shape, seed=0, classes=3):
    """Smooth blobs of every class, (1, 1, *shape) uint8."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(classes)]
    return torch.from_numpy(np.argmax(fields, axis=0).astype(np.uint8))[None, None]


def random_displacement(shape, amplitude, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(amplitude * rng.normal(size=(1, len(shape), *shape))).float()


def surface_points(mask, spacing):
    """Voxels with a face neighbour outside the mask or the image, in mm, by looking at every one."""
    points = []
    for index in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = index.copy()
            neighbour[axis] += step
            if not (0 <= neighbour[axis] < mask.shape[axis]) or not mask[tuple(neighbour)]:
                points.append(index * np.asarray(spacing))
                break
    return np.array(points)


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_equals_the_definition_and_simpleitk(shape):
    a, b = random_labels(shape, 1), random_labels(shape, 2)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(labels[0, 0].numpy() + 1) for labels in (a, b)))
    x, y = a.numpy(), b.numpy()
    for k, dice in enumerate(dice_per_class(a, b, 3).tolist()):
        assert dice == pytest.approx(2 * np.sum((x == k) & (y == k)) / (np.sum(x == k) + np.sum(y == k)))
        assert dice == pytest.approx(overlap.GetDiceCoefficient(k + 1))


def test_dice_of_a_class_in_neither_image_is_left_out_and_in_one_is_zero():
    a = torch.tensor([[[[0, 0, 1, 1]]]])
    b = torch.tensor([[[[0, 0, 1, 2]]]])
    metrics = segmentation_metrics(a, b, ("background", "cell", "organelle", "absent"))
    assert metrics["dice_background"] == 1
    assert metrics["dice_cell"] == pytest.approx(2 / 3)
    assert metrics["dice_organelle"] == 0
    assert np.isnan(metrics["dice_absent"])
    assert metrics["dice"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert metrics["dice_foreground"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["pixel_accuracy"] == 0.75


def test_dice_refuses_other_grids_and_unknown_labels():
    a = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one grid"):
        dice_per_class(a, a[..., :2], 2)
    with pytest.raises(ValueError, match="label 7"):
        dice_per_class(a, a + 7, CLASSES)


@pytest.mark.parametrize(("shape", "spacing"), [(SHAPES[0], (0.5, 2.0)), (SHAPES[1], (3.0, 1.0, 0.7))])
def test_hd95_equals_all_distances_between_surfaces(shape, spacing):
    a, b = (random_labels(shape, seed) == 1 for seed in (1, 2))
    x, y = (surface_points(mask[0, 0].numpy(), spacing) for mask in (a, b))
    distances = np.linalg.norm(x[:, None] - y[None], axis=-1)
    expected = max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))
    assert hausdorff_distance_95(a, b, spacing) == pytest.approx(expected)
    assert hausdorff_distance_95(b, a, spacing) == hausdorff_distance_95(a, b, spacing)


def test_hd95_of_a_shifted_box_is_the_shift_in_mm():
    a = torch.zeros(1, 1, 12, 12, 12, dtype=torch.bool)
    a[..., 2:6, 3:7, 3:7] = True
    assert hausdorff_distance_95(a, a.roll(3, dims=2), (2.0, 1.0, 1.0)) == pytest.approx(6)
    assert hausdorff_distance_95(a, a, (2.0, 1.0, 1.0)) == 0
    assert np.isnan(hausdorff_distance_95(a, torch.zeros_like(a), (2.0, 1.0, 1.0)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_identity_is_smooth(shape):
    still = torch.zeros(1, len(shape), *shape)
    assert smoothness(still) == {"folds": 0, "sd_log_jacobian": 0}
    assert jacobian_variance_published(still) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_an_affine_map_has_one_determinant_so_no_spread(shape):
    ndim = len(shape)
    matrix = torch.eye(ndim + 1)[None, :ndim]
    matrix[0, 0, 0], matrix[0, 1, 0] = 1.3, 0.2
    result = smoothness(affine_displacement(matrix, shape))
    assert result["folds"] == 0
    assert result["sd_log_jacobian"] == pytest.approx(0, abs=1e-5)


def test_sd_log_jacobian_of_a_map_with_two_known_halves():
    """x + u(x) runs at 2 voxels a voxel in one half and at 1/2 in the other: log J = ±log 2 off the seam."""
    rate = torch.cat([torch.full((200,), 2.0), torch.full((200,), 0.5)])
    displacement = torch.zeros(1, 2, 400, 3)
    displacement[0, 0] = (rate.cumsum(0) - torch.arange(400))[:, None]
    assert smoothness(displacement)["sd_log_jacobian"] == pytest.approx(np.log(2), rel=5e-3)


def test_folds_of_a_mirrored_band_and_how_the_published_number_misses_them():
    """u = -2x on 10 of 40 rows turns the axis around: J = -1 there, and J = 0 at each of the two seams."""
    rate = torch.ones(40)
    rate[15:25] = -1
    displacement = torch.zeros(1, 2, 40, 6)
    displacement[0, 0] = (torch.cat([torch.zeros(1), rate.cumsum(0)[:-1]]) - torch.arange(40))[:, None]
    result = smoothness(displacement)
    central = np.gradient(np.concatenate([[0], np.cumsum(rate.numpy())[:-1]]))
    assert result["folds"] == pytest.approx(np.mean(central <= 0)) == 11 / 40
    assert result["sd_log_jacobian"] == pytest.approx(0, abs=1e-6)
    assert jacobian_variance_published(displacement) == pytest.approx(0, abs=1e-12)


def test_the_published_number_is_computed_only_where_it_is_asked_for(monkeypatch):
    def asked(*_):
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr("deepsimreg.metrics.jacobian_variance_published", asked)
    label = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    found = evaluate_pair(torch.zeros(1, 2, 8, 8), label, label, ("background", "cell"), (1.0, 1.0))
    assert "jacobian_variance_published" not in found
    with pytest.raises(AssertionError, match="nobody asked"):
        evaluate_pair(torch.zeros(1, 2, 8, 8), label, label, ("background", "cell"), (1.0, 1.0), published=True)


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])
def test_published_variance_equals_a_loop_over_voxels(shape):
    displacement = random_displacement(shape, 0.8)
    ndim, u = len(shape), displacement[0].double().numpy()
    logs = []
    for voxel in itertools.product(*(range(size - 1) for size in shape)):
        matrix = np.zeros((ndim, ndim))
        for component, axis in itertools.product(range(ndim), range(ndim)):
            ahead = tuple(index + (other == axis) for other, index in enumerate(voxel))
            step = u[(component, *ahead)] - u[(component, *voxel)] + (component == axis)
            matrix[component, axis] = abs(step)
        logs.append(np.log(max(abs(np.linalg.det(matrix)), 1e-6)))
    assert jacobian_variance_published(displacement) == pytest.approx(np.var(logs, ddof=1))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_true_displacement_gives_perfect_metrics(shape):
    """Labels shifted by two voxels, and the displacement that shifts them back, away from the border."""
    moving = torch.zeros(1, 1, *shape, dtype=torch.uint8)
    moving[(0, 0, *[slice(3, size - 3) for size in shape])] = 1
    moving[(0, 0, *[slice(4, size - 4) for size in shape])] = 2
    fixed = moving.roll(-2, dims=2)
    truth = torch.zeros(1, len(shape), *shape)
    truth[:, 0] = 2
    spacing = (1.5, *[1.0] * (len(shape) - 1))
    registered = evaluate_pair(truth, moving, fixed, CLASSES, spacing, truth)
    assert registered["dice"] == registered["dice_foreground"] == registered["pixel_accuracy"] == 1
    assert registered["hd95"] == registered["folds"] == registered["target_registration_error"] == 0

    before = evaluate_pair(None, moving, fixed, CLASSES, spacing, truth)
    assert before["target_registration_error"] == pytest.approx(3)
    assert before["hd95_cell"] == pytest.approx(3)
    assert before["hd95"] == pytest.approx((before["hd95_cell"] + before["hd95_organelle"]) / 2)
    assert before["dice"] < 1
    assert before["sd_log_jacobian"] == 0
    assert "hd95_background" not in before


def test_registration_error_is_measured_on_the_foreground_in_mm():
    fixed = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    fixed[..., :2, :] = 1
    truth = torch.zeros(1, 2, 4, 4)
    truth[0, 0, :2], truth[0, 1, :2], truth[:, :, 2:] = 3, 4, 100
    metrics = evaluate_pair(None, fixed, fixed, ("background", "cell"), (2.0, 0.5), truth)
    assert metrics["target_registration_error"] == pytest.approx(np.hypot(6, 2))
    everywhere = evaluate_pair(None, 0 * fixed, 0 * fixed, ("background", "cell"), (2.0, 0.5), truth)
    error_below = np.hypot(200, 50)
    assert everywhere["target_registration_error"] == pytest.approx((np.hypot(6, 2) + error_below) / 2)
    assert np.isnan(everywhere["dice_cell"])
    assert np.isnan(everywhere["hd95"])
    assert np.isnan(evaluate_pair(None, fixed, fixed, CLASSES, (1.0, 1.0))["target_registration_error"])


def test_evaluate_pair_says_what_is_wrong():
    labels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="spacing"):
        evaluate_pair(None, labels, labels, CLASSES, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\)"):
        evaluate_pair(torch.zeros(1, 2, 4, 5), labels, labels, CLASSES, (1.0, 1.0))
    with pytest.raises(ValueError, match="truth"):
        evaluate_pair(None, labels, labels, CLASSES, (1.0, 1.0), truth=torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="foreground"):
        segmentation_metrics(labels, labels, ("background", "foreground"))


def test_summary_has_a_row_per_method_and_metric():
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame(
        {
            "method": ["mse"] * 30 + ["ncc"] * 30,
            "pair": [f"p{i}" for i in range(30)] * 2,
            "dice": rng.uniform(0.6, 0.9, 60),
            "hd95": [np.nan, *rng.uniform(1, 5, 59)],
        }
    )
    table = summary(pairs, resamples=500).set_index(["method", "metric"])
    dice = pairs.loc[pairs.method == "ncc", "dice"]
    row = table.loc[("ncc", "dice")]
    assert row["mean"] == pytest.approx(dice.mean())
    assert row["low"] < row["mean"] < row["high"]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * dice.std() / np.sqrt(30), rel=0.25)
    assert table.loc[("mse", "hd95"), "n"] == 29
    assert len(table) == 4
    assert list(summary(pairs, by=["method"], metrics=["dice"], resamples=10)["metric"]) == ["dice", "dice"]
    with pytest.raises(ValueError, match="folds"):
        summary(pairs, metrics=["folds"])


def test_loss_landscape_is_the_loss_between_shifted_noisy_patches():
    rows = torch.arange(12.0).view(1, 1, 12, 1).expand(1, 1, 12, 5)

    def mean_square(moved, fixed):
        return (moved - fixed).square().mean()

    shifts, values = loss_landscape_curves(rows, {"mse": mean_square}, 3, axis=-2, noise=0)["mse"]
    assert shifts.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert values == pytest.approx(shifts**2)

    noisy = loss_landscape_curves(torch.zeros(1, 1, 200, 200), {"mse": mean_square}, 2, noise=0.1)["mse"][1]
    assert noisy == pytest.approx(np.full(5, 2 * 0.1**2), rel=0.05)
    with pytest.raises(ValueError, match="max_shift"):
        loss_landscape_curves(rows, {"mse": mean_square}, 6, axis=-2)


def test_labels_of_any_integers_become_classes_with_the_background_first():
    a, b = torch.tensor([[[[7, 7, 300, 5]]]]), torch.tensor([[[[7, 5, 300, 5]]]])
    ours, theirs, classes = indexed_labels(a, b)
    assert classes == ["0", "5", "7", "300"]
    assert (ours.flatten().tolist(), theirs.flatten().tolist()) == ([2, 2, 3, 1], [2, 1, 3, 1])
    metrics = label_metrics(ours, theirs, classes, (1.0, 1.0))
    assert metrics["dice_foreground"] == metrics["dice"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert metrics["hd95_300"] == 0


def test_labels_are_any_integers_and_the_background_can_be_named():
    a = torch.zeros(1, 1, 30, 20, 20, dtype=torch.int16)
    a[:, :, 8:20], a[:, :, 25:] = 1, -1
    b = a.clone()
    b[:, :, 18:20] = 0
    found = label_metrics(*indexed_labels(a, b), (1.0, 1.0, 1.0))
    assert found["dice_foreground"] == pytest.approx((1 + 20 / 22) / 2)
    assert (found["hd95_-1"], found["hd95_1"]) == (0, 2)
    named = label_metrics(*indexed_labels(a, b, background=1), (1.0, 1.0, 1.0))
    assert named["dice_foreground"] == pytest.approx((1 + 2 * 13 / 28) / 2)
    assert "hd95_1" not in named


def test_four_hundred_instances_are_as_one_by_one():
    labels = torch.zeros(1, 1, 60, 60, dtype=torch.int64)
    for k in range(400):
        row, column = divmod(k, 20)
        labels[..., 3 * row : 3 * row + 2, 3 * column : 3 * column + 2] = 7 * k + 1
    moved = labels.roll(1, 2)
    ours, theirs, classes = indexed_labels(moved, labels)
    found = label_metrics(ours, theirs, classes, (1.0, 1.0))
    assert len(classes) == 401
    for k in (1, 77, 400):
        alone = hausdorff_distance_95(ours == k, theirs == k, (1.0, 1.0))
        assert found[f"hd95_{classes[k]}"] == alone == 1


@pytest.mark.parametrize("value", [-1, 2])
def test_a_label_that_is_no_class_is_refused(value):
    label = torch.tensor([[[[0, 1], [1, value]]]])
    with pytest.raises(ValueError, match=f"label {value} found, but there are 2 classes, 0…1; name them all"):
        dice_per_class(label, label.clamp(0, 1), 2)
