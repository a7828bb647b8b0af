"""Figures hold what they were given: panels, labels, data in the artists, files on disk."""

import base64
import itertools
import json

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from deepsimreg.paper import figures
from deepsimreg.paper.figures import panels, style
from deepsimreg.warps import jacobian_determinant

CLASSES, COLORS = ("background", "cell", "organelle"), ("#000000", "#56B4E9", "#E69F00")


@pytest.fixture(params=[(16, 20), (8, 16, 20)], ids=["2d", "3d"])
def scene(request):
    """An image, its labels and a displacement of one shape, each a batch of one."""
    shape = request.param
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, *shape, generator=generator)
    label = torch.zeros(1, 1, *shape, dtype=torch.uint8)
    label[..., 4:12, 5:15], label[..., 6:9, 7:11] = 1, 2
    return image, label, torch.randn(1, len(shape), *shape, generator=generator)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    methods = ["unregistered", "mse", "deepsim-seg", "greedy"]
    rows = [(method, f"p{i}") for method in methods for i in range(12)]
    table = pd.DataFrame(rows, columns=["method", "pair"])
    dice, smoothness = rng.uniform(0.6, 0.9, 48), rng.uniform(0.1, 0.5, 48)
    return table.assign(dice=dice, dice_foreground=dice, sd_log_jacobian=smoothness)


@pytest.fixture
def metrics():
    step = np.arange(1, 101)
    return pd.DataFrame(
        {
            "step": step,
            "train_loss": 1 / step,
            "validation_loss": np.where(step % 20 == 0, 2 / step, np.nan),
            "train_dice": 1 - 1 / step,
            "validation_dice": np.where(step % 20 == 0, 1 - 2 / step, np.nan),
        }
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def panels_of(figure):
    return [axes for axes in figure.axes if not any(isinstance(c, QuadMesh) for c in axes.collections)]


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def plane(image):
    array = image[0, 0].numpy()
    return array if array.ndim == 2 else array[4]


def test_middle_slice_takes_samples_batches_and_planes():
    volume = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    np.testing.assert_array_equal(panels.middle_slice(torch.from_numpy(volume)[None, None]), volume[2])
    np.testing.assert_array_equal(panels.middle_slice(volume[None], axis=-1, index=1), volume[..., 1])
    np.testing.assert_array_equal(panels.middle_slice(volume[:1]), volume[0])
    with pytest.raises(ValueError, match="not a batch"):
        panels.middle_slice(np.zeros((2, 1, 4, 4, 4)))


@pytest.mark.parametrize(("axis", "components"), [(0, [1, 2]), (1, [0, 2]), (-1, [0, 1])])
def test_middle_displacement_keeps_the_components_in_the_plane(axis, components):
    field = np.random.default_rng(0).normal(size=(3, 4, 6, 8))
    expected = np.stack([field[c].take(field.shape[1:][axis] // 2, axis=axis) for c in components])
    np.testing.assert_array_equal(panels.middle_displacement(field, axis), expected)
    with pytest.raises(ValueError, match=r"\(D, \*spatial\)"):
        panels.middle_displacement(field[0])


def test_image_row_shows_each_image_with_its_title(scene):
    image, label, displacement = scene
    figure = figures.image_row([image, 1 - image], ["a", "b"], [label, None], [None, displacement], CLASSES, COLORS)
    first, second = panels_of(figure)
    assert [first.get_title(), second.get_title()] == ["a", "b"]
    np.testing.assert_array_equal(first.images[0].get_array(), plane(image))
    np.testing.assert_array_equal(second.images[0].get_array(), plane(1 - image))
    assert len(first.collections) == 2, "one contour a foreground class"
    assert texts(figure) == ["cell", "organelle"]


def test_contours_run_around_the_label(scene):
    image, label, _ = scene
    figure = figures.image_row([image], ["a"], [label], classes=CLASSES, colors=COLORS)
    outline = np.concatenate([path.vertices for path in panels_of(figure)[0].collections[0].get_paths()])
    assert [outline[:, 0].min(), outline[:, 0].max()] == [4.5, 14.5]
    assert [outline[:, 1].min(), outline[:, 1].max()] == [3.5, 11.5]


def test_grid_lines_pass_through_x_plus_u(scene):
    image, _, displacement = scene
    figure = figures.image_row([image], ["a"], displacements=[displacement], grid_step=4)
    u = panels.middle_displacement(displacement)
    lines = panels_of(figure)[0].lines
    assert len(lines) == 4 + 5
    np.testing.assert_allclose(lines[1].get_xdata(), np.arange(20) + u[1, 4])
    np.testing.assert_allclose(lines[1].get_ydata(), 4 + u[0, 4])


def test_pair_before_after_shows_the_true_jacobian_and_its_folds(scene):
    image, label, displacement = scene
    figure = figures.pair_before_after(image, image, 1 - image, displacement, label, label, label, CLASSES, COLORS)
    by_title = {axes.get_title().split(" (")[0]: axes for axes in figure.axes}
    jacobian = plane(jacobian_determinant(displacement)[None])
    shown, marked = by_title["Jacobian"].images
    np.testing.assert_allclose(shown.get_array(), jacobian, rtol=1e-6)
    np.testing.assert_array_equal(~np.ma.getmaskarray(marked.get_array()), jacobian <= 0)
    assert f"{(jacobian <= 0).sum()} folds" in by_title["Jacobian"].get_title()
    np.testing.assert_allclose(by_title["Moved − fixed"].images[0].get_array(), plane(1 - 2 * image), atol=1e-6)
    assert {"Moving", "Fixed", "Moved", "Grid x + u(x) on moving"} <= set(by_title)
    bars = {axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()}
    assert bars == {"Intensity difference", "Determinant |∇Φ|"}


def test_learning_curve_has_a_panel_per_quantity_and_the_median_of_noise(metrics):
    figure = figures.learning_curve(metrics)
    loss, dice = figure.axes
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("Training step", "Loss")
    assert dice.get_ylabel() == "Mean Dice"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    raw, smooth, validation = loss.lines
    np.testing.assert_array_equal(raw.get_ydata(), metrics["train_loss"])
    assert smooth.get_ydata()[50] == np.median(metrics["train_loss"][48:53])
    np.testing.assert_array_equal(validation.get_xdata(), [20, 40, 60, 80, 100])
    assert len(figures.learning_curve(metrics, {"validation_dice": "Dice"}).axes) == 1
    with pytest.raises(ValueError, match="train_hd95"):
        figures.learning_curve(metrics, ["train_hd95"])


def test_convergence_draws_both_splits_in_the_methods_colour(metrics):
    figure = figures.convergence({"mse": metrics, "ncc": metrics})
    train, validation = figure.axes
    assert [len(train.lines), len(validation.lines)] == [4, 2]
    assert validation.lines[1].get_color() == style.METHODS["ncc"][1]
    np.testing.assert_array_equal(validation.lines[0].get_ydata(), metrics["validation_dice"].dropna())
    assert texts(figure) == ["MSE", "NCC"]


def test_convergence_of_networks_without_a_step_says_so():
    figure = figures.convergence({"mse": pd.DataFrame({"step": [0]})})
    assert [text.get_text() for text in figure.axes[0].texts] == ["nothing was trained"]


def test_galleries_show_their_inputs(scene):
    image, label, _ = scene
    segmentation = figures.segmentation_gallery([image] * 3, [label] * 3, [2 - label] * 3, CLASSES, COLORS)
    assert len(segmentation.axes) == 9
    np.testing.assert_array_equal(segmentation.axes[3].images[0].get_array(), plane(label))
    np.testing.assert_array_equal(segmentation.axes[6].images[0].get_array(), plane(2 - label))
    assert texts(segmentation) == list(CLASSES)

    reconstruction = figures.reconstruction_gallery([image] * 2, [image / 2] * 2)
    assert [axes.get_ylabel() for axes in reconstruction.axes[:5:2]] == ["Image", "Reconstruction", "Difference"]
    np.testing.assert_allclose(reconstruction.axes[4].images[0].get_array(), -plane(image) / 2)


def test_feature_maps_colour_alike_what_has_like_features(rng):
    image, kinds = torch.rand(1, 1, 16, 16), rng.integers(0, 3, (8, 8))
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    level = vectors[torch.from_numpy(kinds)].permute(2, 0, 1)[None]
    figure = figures.feature_maps(image, [level, torch.randn(1, 2, 4, 4)])
    assert [axes.get_title() for axes in figure.axes] == ["Image", "Level 1: 5 channels", "Level 2: 2 channels"]
    shown = np.asarray(figure.axes[1].images[0].get_array())
    colors = {tuple(color) for color in shown.reshape(-1, 3).round(6)}
    assert len(colors) == 3
    assert all(len(np.unique(shown[kinds == kind].round(6), axis=0)) == 1 for kind in range(3))
    assert figure.axes[2].images[0].get_array().shape == (4, 4, 3)


def test_cosine_maps_mark_the_point_and_lie_on_the_image():
    image = torch.rand(1, 1, 16, 20)
    figure = figures.cosine_maps(image, image, [torch.zeros(8, 10), torch.ones(4, 5)], (3, 7), (4.5, 8))
    places = [(axes.lines[0].get_xdata()[0], axes.lines[0].get_ydata()[0]) for axes in figure.axes[:4]]
    assert places == [(7, 3), *[(8, 4.5)] * 3]
    assert figure.axes[3].images[0].get_extent() == [-0.5, 19.5, 15.5, -0.5]
    assert figure.axes[2].images[0].get_clim() == (-1, 1)


def test_dice_boxplot_shows_every_pair_and_the_median(pairs):
    figure = figures.dice_boxplot(pairs)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Foreground Dice"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Unregistered", "MSE", "DeepSim (seg)", "greedy"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    for method, line in zip(pairs["method"].unique(), dots, strict=True):
        dice = pairs.loc[pairs.method == method, "dice_foreground"]
        np.testing.assert_array_equal(line.get_xdata(), dice)
        medians = [other.get_xdata()[0] for other in axes.lines if other.get_color() == "black"]
        assert any(np.isclose(medians, dice.median()))


def test_smoothness_against_dice_of_pairs_and_along_lambda(pairs):
    means = pairs.groupby("method")[["sd_log_jacobian", "dice_foreground"]].mean()
    (axes,) = figures.smoothness_against_dice(pairs).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("SD of log J", "Foreground Dice")
    points = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert points["MSE"] == pytest.approx(tuple(means.loc["mse"]))
    assert len(points) == 4
    (axes,) = figures.smoothness_against_dice(pairs.assign(lam=[4, 1, 2] * 16)).axes
    assert [len(line.get_xdata()) for line in axes.lines] == [3] * 4


def test_names_beside_a_panel_do_not_touch_and_keep_their_order():
    table = pd.DataFrame({"method": list("abcdef"), "dice_foreground": 0.8, "sd_log_jacobian": 0.2})
    table.loc[5, "dice_foreground"] = 0.81
    figure = figures.smoothness_against_dice(table)
    figure.draw_without_rendering()
    boxes = sorted(mpl.text.Text.get_window_extent(text).bounds[1:4:2] for text in figure.axes[0].texts)
    assert len(boxes) == 6
    assert all(upper[0] >= lower[0] + 0.8 * lower[1] for lower, upper in itertools.pairwise(boxes))
    highest = max(figure.axes[0].texts, key=lambda text: text.get_position()[1])
    assert highest.get_text() == "f"


def test_tuning_curve_rings_the_best_lambda():
    table = pd.DataFrame({"method": "ncc", "lam": [0.25, 1, 0.5, 0.5], "dice_foreground": [0.7, 0.75, 0.8, 0.9]})
    (axes,) = figures.tuning_curve(table).axes
    curve, ring = axes.lines
    assert axes.get_xscale() == "log"
    np.testing.assert_allclose(curve.get_xdata(), [0.25, 0.5, 1])
    np.testing.assert_allclose(curve.get_ydata(), [0.7, 0.85, 0.75])
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((0.5, 0.85))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.25", "0.5", "1"]
    assert axes.get_ylabel() == "Foreground Dice,\nvalidation"


def test_sample_panel_has_a_column_per_method_and_the_detail_asked_for(scene):
    image, label, displacement = scene
    results = {"mse": (1 - image, label, displacement), "deepsim-seg": (image, label, 0 * displacement)}
    crop = (slice(3, 9), slice(4, 12))
    figure = figures.sample_panel(image, image, results, label, label, CLASSES, COLORS, crop=crop)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["Moving", "Fixed", "MSE", "DeepSim (seg)"]
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), plane(1 - image))
    assert figure.axes[6].get_xlim() == (3.5, 11.5)
    assert figure.axes[6].get_ylim() == (8.5, 2.5)
    still, moved = (np.concatenate([line.get_xdata() for line in figure.axes[i].lines]) for i in (11, 10))
    assert np.allclose(still, still.round())
    assert not np.allclose(moved, moved.round())


def test_loss_landscape_has_a_panel_per_metric():
    shifts = np.arange(-3, 4)
    figure = figures.loss_landscape({name: (shifts, shifts**2 * 1.0) for name in ("mse", "ncc", "other")})
    assert [axes.get_title() for axes in figure.axes] == ["MSE", "NCC", "other"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"Shift (voxels)"}
    assert figure.axes[0].get_ylabel() == "Loss"
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), shifts**2)


def test_methods_have_one_colour_each_and_strangers_get_their_own():
    methods = ["greedy", "mse", "ants-syn", "deepsim-seg"]
    colors = style.method_colors(methods)
    assert len(set(colors.values())) == 4
    assert colors["mse"] == style.METHODS["mse"][1]
    looks = {(look["color"], look["linestyle"]) for look in style.looks(style.METHODS).values()}
    assert len(looks) == len(style.METHODS)
    assert style.method_name("greedy") == "greedy"
    assert style.method_name("ncc-25 + 20 classes-seg, fine") == "NCC (25 voxels) + 20 Classes (seg), fine"
    assert style.method_name("network, then deepsim-seg") == "network, then DeepSim (seg)"


def test_text_is_legible_in_print_and_the_settings_of_the_caller_stay(pairs, metrics):
    mpl.use("agg")  # until a backend is chosen, its entry is no value that a copy keeps
    before = mpl.rcParams.copy()
    for figure in (figures.dice_boxplot(pairs), figures.learning_curve(metrics)):
        sizes = [text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()]
        assert min(sizes) >= 8
    assert mpl.rcParams == before


def test_a_figure_shows_itself_in_a_notebook(pairs):
    from IPython.core.formatters import DisplayFormatter

    shown, about = DisplayFormatter().format(figures.dice_boxplot(pairs))
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"].startswith("A box for each method, quartiles")


def test_save_figure_writes_pictures_and_their_origin_and_nothing_else(tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    stem = tmp_path / "new" / "lam-0.5"
    written = figures.save_figure(figure, stem, "Dice of σ", "runs/quick/a")
    first = {path.name: path.read_bytes() for path in written}
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(first)
    assert sorted(first) == ["lam-0.5.json", "lam-0.5.pdf", "lam-0.5.png"]
    assert first["lam-0.5.pdf"].startswith(b"%PDF")
    assert first["lam-0.5.png"].startswith(b"\x89PNG")
    assert json.loads(first["lam-0.5.json"]) == {"caption": "Dice of σ", "source_runs": ["runs/quick/a"]}
    again = figures.save_figure(figure, stem, "Dice of σ", ["runs/quick/a"])
    assert {path.name: path.read_bytes() for path in again} == first


def test_tuning_curve_has_one_panel_per_method_and_calls_the_optimisers_number_smoothing():
    methods = ["mse", "ncc", "nmi", "mind", "deepsim-seg", "greedy"]
    table = pd.DataFrame([(m, lam, 0.8 - abs(lam - 1)) for m in methods for lam in (0.5, 1, 2)])
    figure = figures.tuning_curve(table.set_axis(["method", "lam", "dice_foreground"], axis=1))
    assert [axes.get_title() for axes in figure.axes] == [style.method_name(method) for method in methods]
    assert [axes.get_xlabel() for axes in figure.axes] == ["λ"] * 5 + ["Smoothing"]


def test_matched_smoothness_follows_lambda_and_rings_the_best():
    table = pd.DataFrame(
        {
            "method": ["ncc"] * 3,
            "lam": [2, 0.5, 1],
            "dice_foreground": [0.7, 0.75, 0.8],
            "sd_log_jacobian": [0.1, 0.4, 0.2],
        }
    )
    (axes,) = figures.smoothness_against_dice(table, ringed=True).axes
    curve, ring = axes.lines
    np.testing.assert_allclose(curve.get_xdata(), [0.4, 0.2, 0.1])
    np.testing.assert_allclose(curve.get_ydata(), [0.75, 0.8, 0.7])
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.2, 0.8)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("SD of log J", "Foreground Dice")


def test_ablation_dots_have_one_row_per_variant_beside_the_line_of_their_base(rng):
    names = {"deepsim-seg": "", "seg-level-1": "levels", "seg-random": "features", "transmorph": "network"}
    rows = [(m, g, "deepsim-seg", f"a{i}--b{i}") for m, g in names.items() for i in range(12)]
    pairs = pd.DataFrame(rows, columns=["method", "group", "base", "pair"])
    pairs = pairs.assign(dice_foreground=rng.uniform(0.79, 0.81, 48), sd_log_jacobian=rng.uniform(0.1, 0.4, 48))
    pairs.loc[pairs["method"] == "transmorph", "dice_foreground"] = 0.3
    still = pairs.loc[pairs["method"] == "seg-random", "dice_foreground"].mean() - 0.004
    dice, smoothness = figures.ablation_dots(pairs, before=still).axes
    assert next(line for line in dice.lines if line.get_linestyle() == ":").get_xdata()[0] == still
    faces = {line.get_ydata()[0]: line.get_markerfacecolor() for line in dice.lines if line.get_marker() in ("o", "D")}
    means = pairs.groupby("method")["dice_foreground"].mean()
    idle = {row for row, name in enumerate(["deepsim-seg", "seg-random", "seg-level-1"]) if means[name] < still + 0.005}
    assert {row for row, face in faces.items() if face == "white"} == idle >= {1}
    names = [label.get_text() for label in dice.get_yticklabels()]
    variants = ["features: random", "levels: 1", "network: transmorph"]
    assert names == ["DeepSim (seg)", *(f"DeepSim (seg), {name}" for name in variants)]
    means = pairs.groupby("method")[["dice_foreground", "sd_log_jacobian"]].mean()
    for axes, metric in ((dice, "dice_foreground"), (smoothness, "sd_log_jacobian")):
        dots = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("o", "D")}
        order = ["deepsim-seg", "seg-random", "seg-level-1"]
        assert [dots[row] for row in range(3)] == pytest.approx(list(means.loc[order, metric]))
        assert axes.lines[0].get_xdata()[0] == pytest.approx(means.loc["deepsim-seg", metric])
    assert [text.get_text().strip() for text in dice.texts] == ["0.300"], "far below: an arrow and its number"
    assert dice.get_xlim()[0] > 0.7


@pytest.mark.parametrize(
    ("variant", "group", "name"),
    [
        ("deepsim-seg", "", "DeepSim (seg)"),
        ("seg-levels-13", "levels", "DeepSim (seg), levels: 1 and 3"),
        ("seg-labels-20", "labels", "DeepSim (seg), labels: 20 %"),
        ("seg-extract-before-warp", "order", "DeepSim (seg), order: extract before warp"),
        ("voxelmorph", "network", "DeepSim (seg), network: voxelmorph"),
    ],
)
def test_variants_are_called_by_words(variant, group, name):
    assert style.variant_name(variant, group, "deepsim-seg") == name


def test_label_fraction_draws_extractor_and_registration_over_the_fraction():
    variants = pd.DataFrame(
        {
            "method": ["deepsim-seg", "seg-50", "seg-5", "level-1"],
            "group": ["", "labels", "labels", "levels"],
            "labels": [1, 0.5, 0.05, 1],
            "extractor_dice": [0.9, 0.85, 0.6, 0.9],
            "dice": [0.82, 0.81, 0.7, 0.1],
        }
    )
    (axes,) = figures.label_fraction(variants).axes
    extractor, registration = axes.lines
    np.testing.assert_array_equal(extractor.get_xdata(), [0.05, 0.5, 1])
    np.testing.assert_array_equal(registration.get_ydata(), [0.7, 0.81, 0.82])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5%", "50%", "100%"]


def test_robustness_shows_the_mean_and_what_noise_takes_away():
    table = pd.DataFrame([("ncc", sd, p, 0.8 - sd - p) for sd in (0.1, 0.0, 0.2) for p in (0, 0.1)])
    values, change = figures.robustness(table.set_axis(["method", "noise", "pair", "dice_foreground"], axis=1)).axes
    np.testing.assert_allclose(values.lines[0].get_xdata(), [0, 0.1, 0.2])
    np.testing.assert_allclose(values.lines[0].get_ydata(), [0.75, 0.65, 0.55])
    np.testing.assert_allclose(change.lines[0].get_ydata(), [0, -0.1, -0.2], atol=1e-12)


def test_methods_stand_in_rows_by_family_the_best_first():
    rows = [
        ("greedy", 0.83, 1.2, 0.3),
        ("mse", 0.84, 0.5, 0.2),
        ("network", 0.82, 0.05, 0.4),
        ("alone", 0.9, 0.01, None),
    ]
    summary = pd.DataFrame(rows, columns=["method", "dice_foreground", "seconds", "sd_log_jacobian"])
    families = {"greedy": "grey values", "mse": "grey values", "network": "networks", "alone": "controls"}
    summary = summary.assign(dice_foreground_low=0.8, dice_foreground_high=0.85)
    figure = figures.methods_overview(summary, families, before=0.6)
    dice, smoothness, time = figure.axes
    assert [label.get_text() for label in dice.get_yticklabels()] == ["MSE", "greedy", "network", "alone"]
    places = dict(zip(["mse", "greedy", "network", "alone"], dice.get_yticks(), strict=True))
    for axes, column in ((dice, "dice_foreground"), (smoothness, "sd_log_jacobian"), (time, "seconds")):
        points = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
        for row in summary.itertuples():
            assert points[places[row.method]] == pytest.approx(getattr(row, column), nan_ok=True)
    assert time.get_xscale() == "log"
    told = summary.assign(labels=["at test" if name == "alone" else None for name in summary["method"]])
    dice = figures.methods_overview(told, families, before=0.6).axes[0]
    assert dice.get_xlim()[1] < 0.88
    assert "0.900" in [text.get_text().strip() for text in dice.texts]
    dice = figure.axes[0]
    assert [text.get_text() for text in dice.texts] == ["grey values", "networks", "controls", "before registration"]


def test_traces_average_the_pairs():
    rows = [("ncc", pair, step, step / 10, 0.8 + step / 100 + pair, 0.1) for pair in (0, 0.1) for step in (0, 5)]
    rows += [("mse", 0, 0, 0.0, 0.5, 0), ("mse", 0, 5, 0.5, 0.6, 0), ("mse", 1, 3, 0.3, 0.8, 0)]
    rows += [("mse", 1, 0, 0.0, 0.5, 0)]
    names = ["method", "pair", "step", "seconds", "dice_foreground", "sd_log_jacobian"]
    axes = figures.methods_traces(pd.DataFrame(rows, columns=names)).axes
    np.testing.assert_allclose(axes[0].lines[1].get_xydata(), [(0, 0.5), (3, 0.65), (5, 0.7)])
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["Foreground Dice", "SD of log J"]
    np.testing.assert_allclose(axes[0].lines[0].get_xydata(), [(0, 0.85), (5, 0.9)])
    np.testing.assert_allclose(axes[1].lines[0].get_xydata()[1], (0.5, 0.9))


def test_of_many_methods_the_leading_ones_are_traced():
    given = ["nmi", "deepsim-seg", "x", "greedy", "ncc-25"]
    assert style.leading(given) == ["greedy", "ncc-25", "deepsim-seg"]
    assert style.leading(list("abcdefg")) == list("abcde")


def test_a_legend_of_long_names_is_not_wider_than_its_figure():
    metrics = pd.DataFrame({"step": [0, 1], "train_dice": [0.5, 0.6], "validation_dice": [0.5, 0.6]})
    figure = figures.convergence({f"network, then deepsim-seg + classes-seg {i}": metrics for i in range(9)})
    (legend,) = figure.legends
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert len(legend.get_texts()) == 9


def test_partway_pulls_the_moving_image(scene):
    image, label, _ = scene
    shift = torch.zeros(1, image.ndim - 2, *image.shape[2:])
    shift[:, -1] = 2
    figure = figures.partway(image, image, shift, 0.25, (label, label), COLORS)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(shown[:, :-2], plane(image)[:, 2:], atol=1e-5)
    assert figure.axes[0].get_title() == "Moving, 25% of the way"
    assert figure.axes[3].get_title() == "Jacobian (no folds)"


def test_result_row_says_what_each_panel_scores(scene):
    image, label, displacement = scene
    results = {"mse": (1 - image, label, displacement)}
    figure = figures.result_row(image, image, results, label, label, COLORS, {"before": "Dice 0.5", "mse": "Dice 0.9"})
    assert [axes.get_title() for axes in figure.axes] == ["Before\nDice 0.5", "MSE\nDice 0.9"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), plane(1 - image))
    assert texts(figure) == ["fixed", "moved"]


def test_result_row_of_a_large_image_is_a_detail():
    image, label = torch.rand(1, 1, 160, 90), torch.zeros(1, 1, 160, 90, dtype=torch.uint8)
    moved = label.clone()
    moved[..., 120:130, 50:60] = 1
    figure = figures.result_row(image, image, {"mse": (image, label, None)}, moved, label, COLORS)
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert (right - left, bottom - top) == (30, 54)
    assert left < 50 < 60 < right + 1


def test_dice_per_class_prints_each_mean(pairs):
    pairs = pairs.assign(dice_background=0.99, dice_cell=pairs["dice"])
    axes = figures.dice_per_class(pairs, ("background", "cell")).axes[0]
    values = np.asarray(axes.images[0].get_array())
    means = pairs.groupby("method", sort=False)["dice"].mean()
    np.testing.assert_allclose(values, [[0.99] * 4, list(means)])
    assert axes.texts[-1].get_text() == f"{means.iloc[-1]:.2f}".lstrip("0")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["background", "cell"]


@pytest.mark.parametrize(
    ("draw", "place"),
    [
        (figures.tuning_curve, (1, 0.75)),
        (lambda table: figures.smoothness_against_dice(table, ringed=True), (0.2, 0.75)),
    ],
)
def test_the_chosen_lambda_is_ringed_even_if_another_has_the_higher_dice(draw, place):
    columns = {"lam": [0.5, 1, 2], "dice_foreground": [0.8, 0.75, 0.7], "sd_log_jacobian": [0.4, 0.2, 0.1]}
    table = pd.DataFrame({"method": "ncc", **columns, "chosen": [False, True, False]})
    ring = draw(table).axes[0].lines[1]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == place


def test_tuning_curve_leaves_out_methods_without_lambda():
    table = pd.DataFrame({"method": ["ncc", "ncc", "unregistered"], "lam": [0.5, 1, None]})
    table["dice_foreground"] = [0.7, 0.8, 0.6]
    assert [axes.get_title() for axes in figures.tuning_curve(table).axes] == ["NCC"]


def test_the_schematic_names_what_learns_and_the_channels():
    (axes,) = figures.training_schematic((4, 8)).axes
    said = [text.get_text() for text in axes.texts]
    assert said.count("4") == said.count("8") == 2, "the extractor looks at both images"
    assert "registration\nnetwork" in said


def test_the_detail_is_where_the_labels_differ_most():
    first = np.zeros((30, 60), int)
    second = first.copy()
    second[18:26, 40:55] = 1
    rows, columns = panels.most_different(first, second)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (10, 20)
    assert second[rows, columns].sum() == second.sum()
    assert 0 <= rows.start
    assert rows.stop <= 30


def test_contrast_shows_the_change_against_the_images_as_they_are():
    table = pd.DataFrame([("a", "none", 0.8), ("a", "inverted", 0.3), ("b", "none", 0.7), ("b", "inverted", 0.72)])
    axes = figures.contrast(table.set_axis(["method", "contrast", "dice_foreground"], axis=1)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.800", "0.700", "-0.500", "+0.020"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0, 0], [-0.5, 0.02]])
    lost = figures.contrast(table.set_axis(["method", "contrast", "dice_foreground"], axis=1), before=0.7).axes[0]
    assert [text.get_text() for text in lost.texts] == ["0.800", "0.700 †", "-0.500 †", "+0.020"]


def test_no_change_has_no_sign():
    assert [style.signed(value) for value in (-0.0004, 0.0005, -0.01)] == ["0.000", "+0.001", "-0.010"]
