"""Every picture of the notebooks and the paper: arrays and tables in, a matplotlib Figure out, no files read.

Colours are Okabe & Ito's (2008), told apart by colour-blind readers; a method has one colour in every figure.
Grey images and label images come with any number of leading axes of length one, so that a sample (1, *spatial),
a batch of one (1, 1, *spatial) and a slice (H, W) are all taken; of a volume the middle slice is drawn. A
displacement is (D, *spatial) or (1, D, *spatial), voxels, components in array axis order, and pulls:
moved(x) = moving(x + u(x)); its grid is drawn at x + u(x), which are places in the moving image.
"""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from deepsimreg.paper.statistics import coupled_interval
from deepsimreg.warps import jacobian_determinant

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "bluish green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "reddish purple": "#CC79A7",
}
METHOD_COLORS = {
    "unregistered": "#7F7F7F",
    "mse": OKABE_ITO["orange"],
    "ncc": OKABE_ITO["sky blue"],
    "ncc-3": "#00305E",
    "ncc-sup": OKABE_ITO["blue"],
    "nmi": OKABE_ITO["yellow"],
    "mind": OKABE_ITO["reddish purple"],
    "vgg": OKABE_ITO["black"],
    "deepsim-ae": OKABE_ITO["bluish green"],
    "deepsim-seg": OKABE_ITO["vermillion"],
    "classes-seg": "#8B5A2B",
    "syn": "#4D4D4D",
    "syn-deepsim-ae": OKABE_ITO["bluish green"],
    "syn-deepsim-seg": OKABE_ITO["vermillion"],
    "greedy": "#4D4D4D",
    "greedy-deepsim-ae": OKABE_ITO["bluish green"],
    "greedy-deepsim-seg": OKABE_ITO["vermillion"],
}
METHOD_NAMES = {
    "unregistered": "Unregistered",
    "mse": "MSE",
    "ncc": "NCC",
    "ncc-3": "NCC (window 3)",
    "ncc-sup": "NCC + labels",
    "nmi": "NMI",
    "mind": "MIND",
    "vgg": "VGG",
    "deepsim-ae": "DeepSim (AE)",
    "deepsim-seg": "DeepSim (seg)",
    "classes-seg": "Classes (seg)",
    "syn": "SyN",
    "syn-deepsim-ae": "SyN + AE features",
    "syn-deepsim-seg": "SyN + seg features",
    "greedy": "greedy",
    "greedy-deepsim-ae": "greedy + AE features",
    "greedy-deepsim-seg": "greedy + seg features",
}
ENGINES = {"syn": ("^", (0, (4, 1.5))), "greedy": ("s", (0, (1, 1)))}  # marker and line of methods without training
OTHER_COLORS = tuple(OKABE_ITO[name] for name in ("blue", "reddish purple", "black", "yellow"))
MARKERS = "oDvPX*<>pd"
AXIS_NAMES = {
    "step": "Training step",
    "loss": "Loss",
    "dice": "Mean Dice",
    "dice_foreground": "Mean Dice, foreground",
    "hd95": "HD95 (mm)",
    "folds": "Share of folded voxels",
    "sd_log_jacobian": "SD of log J",
    "jacobian_variance_published": "σ²(log|J|) as published",
    "target_registration_error": "Registration error (mm)",
    "lam": "Weight λ of the regulariser",
    "seconds": "Time per pair (s)",
    "similarity": "Similarity loss",
    "regulariser": "Regulariser",
}
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}
DASHED = (0, (2.5, 1.5))
COLUMN, PAGE = 3.5, 7.0  # widths of one text column and of the page, inches


class Picture(Figure):
    """A figure that a notebook shows when it ends a cell, under any backend; pyplot holds no reference to it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return buffer.getvalue()


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under `STYLE`, and leave matplotlib's own settings as they were."""

    @wraps(draw)
    def wrapper(*arguments, **options) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*arguments, **options)
            figure.draw_without_rendering()
        return figure

    return wrapper


def method_name(method: str) -> str:
    """The name that a figure shows for a method; one that is not in `METHOD_NAMES` shows as it is."""
    return METHOD_NAMES.get(method, str(method))


def narrow(name: str) -> str:
    """A name in two lines, where it has two parts, for the title of a narrow panel."""
    return name.replace(" + ", "\n+ ")


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """Colour of each method: its own, or, for others in their order, the next of `OTHER_COLORS`."""
    others = [method for method in dict.fromkeys(methods) if method not in METHOD_COLORS]
    spare = {method: OTHER_COLORS[i % len(OTHER_COLORS)] for i, method in enumerate(others)}
    return {method: {**spare, **METHOD_COLORS}[method] for method in methods}


def _look(method: str, number: int) -> dict:
    """Marker and line of a method: one of `MARKERS` and a solid line for a network, else those of its engine."""
    marker, line = ENGINES.get(str(method).split("-")[0], (MARKERS[number % len(MARKERS)], "-"))
    return {"marker": marker, "linestyle": line}


def middle_slice(image, axis: int = 0, index: int | None = None) -> np.ndarray:
    """One grey or label image as (H, W): itself in 2D, slice `index` (the middle) along `axis` in 3D."""
    array = _array(image)
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ValueError(f"image of shape {np.shape(image)}; give one image, (H, W) or (D, H, W), not a batch")
    return array if array.ndim == 2 else array.take(_slice_index(array.shape[axis], index), axis=axis)


def middle_displacement(displacement, axis: int = 0, index: int | None = None) -> np.ndarray:
    """The in-plane components of a displacement on the slice `middle_slice` takes: (2, H, W), voxels."""
    array = _field(displacement)
    if len(array) == 2:
        return array
    plane = [component for component in range(3) if component != axis % 3]
    return array[plane].take(_slice_index(array.shape[1 + axis % 3], index), axis=1 + axis % 3)


def middle_jacobian(displacement, axis: int = 0, index: int | None = None) -> np.ndarray:
    """The (whole, not in-plane) Jacobian determinant on that slice: (H, W)."""
    return middle_slice(jacobian_determinant(torch.from_numpy(_field(displacement))[None]), axis, index)


@styled
def image_row(
    images: Sequence,
    titles: Sequence[str],
    labels: Sequence | None = None,
    displacements: Sequence | None = None,
    classes: Sequence[str] = (),
    colors: Sequence[str] = (),
    axis: int = 0,
    index: int | None = None,
    grid_step: int | None = None,
    width: float = PAGE,
) -> Figure:
    """Grey images side by side, each with optional label contours and deformed grid (None for none)."""
    extra = 0.2 + 0.3 * bool(classes)
    figure, axes = _image_axes(1, len(images), middle_slice(images[0], axis, index).shape, width, extra)
    labels = labels or [None] * len(images)
    displacements = displacements or [None] * len(images)
    for panel, image, title, label, displacement in zip(axes[0], images, titles, labels, displacements, strict=True):
        _show(panel, middle_slice(image, axis, index), title)
        if label is not None:
            _contours(panel, middle_slice(label, axis, index), colors)
        if displacement is not None:
            _grid(panel, middle_displacement(displacement, axis, index), grid_step)
    _class_legend(figure, classes, colors)
    return figure


@styled
def pair_before_after(
    moving,
    fixed,
    moved,
    displacement,
    moving_label,
    fixed_label,
    moved_label,
    classes: Sequence[str],
    colors: Sequence[str],
    axis: int = 0,
    index: int | None = None,
    grid_step: int | None = None,
    width: float = PAGE,
) -> Figure:
    """One registration: moving, fixed and moved with contours, the deformed grid, the Jacobian determinant.

    The fixed labels are solid lines in every image panel; those of the moving and the moved image are dashed.
    """
    fixed_plane = middle_slice(fixed_label, axis, index)
    figure, axes = _image_axes(2, 3, fixed_plane.shape, width, 1.1)
    for panel, image, label, title in (
        (axes[0, 0], moving, moving_label, "Moving"),
        (axes[0, 1], fixed, None, "Fixed"),
        (axes[0, 2], moved, moved_label, "Moved"),
    ):
        _show(panel, middle_slice(image, axis, index), title)
        _contours(panel, fixed_plane, colors)
        if label is not None:
            _contours(panel, middle_slice(label, axis, index), colors, DASHED)
    change = middle_slice(moved, axis, index) - middle_slice(fixed, axis, index)
    limit = max(float(np.abs(change).max()), 1e-6)
    shown = axes[1, 0].imshow(change, cmap="PuOr", vmin=-limit, vmax=limit)
    _bare(axes[1, 0], "Moved − fixed")
    figure.colorbar(shown, ax=axes[1, 0], location="bottom", shrink=0.9, label="Intensity difference")
    _show(axes[1, 1], middle_slice(moving, axis, index), "Grid x + u(x) on moving")
    _grid(axes[1, 1], middle_displacement(displacement, axis, index), grid_step)
    _jacobian(figure, axes[1, 2], middle_jacobian(displacement, axis, index))
    lines = [
        Line2D([], [], color="0.35", linestyle="solid", label="fixed label"),
        Line2D([], [], color="0.35", linestyle=DASHED, label="moving or moved label"),
    ]
    _class_legend(figure, classes, colors, lines)
    return figure


@styled
def learning_curve(
    metrics: pd.DataFrame, columns: Mapping[str, str] | Sequence[str] | None = None, width: float = PAGE
) -> Figure:
    """Metrics against steps: a panel per quantity, training (faint, with its running median) and validation.

    metrics: column `step` and `train_…`, `validation_…` (or `val_…`) columns, in which NaN is "not measured at
    this step". columns: those to draw, with their labels if a mapping; all of them if not given.
    """
    columns = columns or [name for name in metrics if _split(name)[0]]
    labels = dict(columns) if isinstance(columns, Mapping) else {name: _split(name)[0] or name for name in columns}
    missing = [name for name in ["step", *labels] if name not in metrics]
    if missing:
        raise ValueError(f"metrics has no column {missing}; it has {list(metrics.columns)}")
    quantities = list(dict.fromkeys(_split(name)[1] for name in labels))
    figure = Picture(figsize=(min(width, COLUMN * len(quantities)), 2.5), layout="constrained")
    axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    for panel, quantity in zip(axes, quantities, strict=True):
        shown = [name for name in labels if _split(name)[1] == quantity]
        for name, color in zip(shown, (OKABE_ITO["blue"], OKABE_ITO["vermillion"], *OTHER_COLORS), strict=False):
            _curve(panel, metrics, name, color, labels[name])
        _axis_labels(panel, "step", quantity)
        if quantity == "folds":
            panel.set_ylim(bottom=0)
        panel.legend()
    return figure


@styled
def convergence(
    runs: Mapping[str, pd.DataFrame],
    train: str = "train_dice",
    validation: str = "validation_dice",
    width: float = PAGE,
) -> Figure:
    """Training and validation Dice against steps, a line per method. runs: method → its metrics table."""
    figure = Picture(figsize=(width, 2.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    colors = method_colors(list(runs))
    for panel, column, title in zip(axes, (train, validation), ("Training", "Validation"), strict=True):
        for method, metrics in runs.items():
            if column in metrics:
                _curve(panel, metrics, column, colors[method], method_name(method))
        panel.set_title(title)
        _axis_labels(panel, "step", "dice")
    axes[1].set_ylabel("")
    curves = np.concatenate([line.get_ydata() for panel in axes for line in panel.lines if line.get_alpha() is None])
    margin = 0.05 * np.ptp(curves) or 0.01
    axes[0].set_ylim(curves.min() - margin, curves.max() + margin)  # the faint single batches may leave the panel
    _legend_below(figure, axes[1].get_legend_handles_labels()[0] or axes[0].get_legend_handles_labels()[0])
    return figure


@styled
def segmentation_gallery(
    images: Sequence,
    labels: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    colors: Sequence[str],
    axis: int = 0,
    index: int | None = None,
    width: float = PAGE,
) -> Figure:
    """Rows: the image, its true labels, the predicted labels; a column an image."""
    shape = middle_slice(images[0], axis, index).shape
    figure, axes = _image_axes(3, len(images), shape, width, 0.3)
    palette = ListedColormap(list(colors))
    for column, (image, label, prediction) in enumerate(zip(images, labels, predictions, strict=True)):
        _show(axes[0, column], middle_slice(image, axis, index))
        for row, plane in ((1, label), (2, prediction)):
            plane = middle_slice(plane, axis, index)
            axes[row, column].imshow(plane, cmap=palette, vmin=-0.5, vmax=len(colors) - 0.5)
            _bare(axes[row, column])
    _row_names(axes, ("Image", "True labels", "Prediction"))
    _class_legend(figure, classes, colors, background=True)
    return figure


@styled
def reconstruction_gallery(
    images: Sequence, reconstructions: Sequence, axis: int = 0, index: int | None = None, width: float = PAGE
) -> Figure:
    """Rows: the image, the autoencoder's reconstruction, their difference with one scale for all."""
    planes = [middle_slice(image, axis, index) for image in images]
    copies = [middle_slice(image, axis, index) for image in reconstructions]
    figure, axes = _image_axes(3, len(planes), planes[0].shape, width, 0.5)
    differences = [copy - plane for plane, copy in zip(planes, copies, strict=True)]
    limit = max(float(np.abs(difference).max()) for difference in differences) or 1e-6
    for column, (plane, copy, difference) in enumerate(zip(planes, copies, differences, strict=True)):
        _show(axes[0, column], plane)
        _show(axes[1, column], copy)
        shown = axes[2, column].imshow(difference, cmap="PuOr", vmin=-limit, vmax=limit)
        _bare(axes[2, column])
    _row_names(axes, ("Image", "Reconstruction", "Difference"))
    figure.colorbar(shown, ax=axes[2, :].tolist(), location="bottom", shrink=0.5, aspect=40, label="Intensity")
    return figure


@styled
def feature_maps(
    levels: Sequence, channels: int = 6, axis: int = 0, index: int | None = None, width: float = PAGE
) -> Figure:
    """The channels of an extractor that vary most, a row a level. levels: tensors (1, C_l, *spatial_l).

    Each map has its own grey scale: between channels only the pattern compares.
    """
    arrays = [_array(level)[0] for level in levels]
    columns = min(channels, min(len(array) for array in arrays))
    shape = middle_slice(arrays[0][0], axis, index).shape
    figure, axes = _image_axes(len(arrays), columns, shape, width, 0.17 * len(arrays))
    for row, array in enumerate(arrays):
        spread = array.reshape(len(array), -1).std(axis=1)
        for column, channel in enumerate(np.argsort(-spread, kind="stable")[:columns]):
            plane = middle_slice(array[channel], axis, index if row == 0 else None)
            axes[row, column].imshow(plane, cmap="viridis")
            _bare(axes[row, column], f"channel {channel}")
            axes[row, column].title.set_size(8)
    _row_names(axes, [f"Level {level}" for level in range(1, len(arrays) + 1)])
    return figure


@styled
def class_histogram(images, labels, classes: Sequence[str], colors: Sequence[str], width: float = COLUMN) -> Figure:
    """Distribution of the grey values of each class. images and labels: arrays of one shape, any rank."""
    images, labels = np.asarray(images), np.asarray(labels)
    figure = Picture(figsize=(width, 2.4), layout="constrained")
    panel = figure.subplots()
    edges = np.linspace(images.min(), images.max(), 65)
    for index, (name, color) in enumerate(zip(classes, colors, strict=True)):
        density, _ = np.histogram(images[labels == index], edges, density=True)
        panel.stairs(density, edges, color=color, linewidth=1.5, label=name)
    panel.set_xlabel("Grey value")
    panel.set_ylabel("Density")
    panel.legend()
    return figure


@styled
def dice_boxplot(
    pairs: pd.DataFrame, metric: str = "dice", order: Sequence[str] | None = None, width: float = COLUMN
) -> Figure:
    """A box a method, quartiles and 1.5 IQR whiskers, every pair as a dot (jittered across, seeded).

    pairs: columns `method` and the metric. order: the methods from top to bottom; as they come, if not given.
    """
    order = list(order or pairs["method"].unique())
    colors = method_colors(order)
    figure = Picture(figsize=(width, 0.7 + 0.38 * len(order)), layout="constrained")
    panel = figure.subplots()
    rng = np.random.default_rng(0)
    for row, method in enumerate(order):
        values = pairs.loc[pairs["method"] == method, metric].dropna().to_numpy()
        heights = row + rng.uniform(-0.22, 0.22, len(values))
        panel.plot(values, heights, "o", color=colors[method], alpha=0.45, markersize=2.5, markeredgewidth=0)
        panel.boxplot(
            values,
            positions=[row],
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            boxprops={"color": colors[method], "linewidth": 1.2},
            whiskerprops={"color": colors[method]},
            capprops={"color": colors[method]},
            medianprops={"color": "black", "linewidth": 1.5},
        )
    panel.set_yticks(range(len(order)), [method_name(method) for method in order])
    panel.set_ylim(len(order) - 0.5, -0.5)
    panel.grid(False, axis="y")
    panel.set_xlabel(AXIS_NAMES.get(metric, metric))
    return figure


@styled
def smoothness_against_dice(
    table: pd.DataFrame, x: str = "sd_log_jacobian", y: str = "dice", width: float = COLUMN
) -> Figure:
    """One point a method; with a column `lam`, one a method and λ, joined by a line along λ.

    table: one row a pair (columns `method`, x and y; means are drawn), or what `evaluation.summary` returns.
    """
    keys = [key for key in ("method", "lam") if key in table]
    if "metric" in table:
        table = table.pivot_table(index=keys, columns="metric", values="mean", sort=False).reset_index()
    means = table.groupby(keys, sort=False)[[x, y]].mean().reset_index()
    methods = list(means["method"].unique())
    colors = method_colors(methods)
    figure = Picture(figsize=(width, 2.9), layout="constrained")
    panel = figure.subplots()
    for i, method in enumerate(methods):
        points = means[means["method"] == method].sort_values(keys)
        panel.plot(
            points[x],
            points[y],
            **_look(method, i) | ({} if len(points) > 1 else {"linestyle": "none"}),
            color=colors[method],
            markeredgecolor="white",
            markeredgewidth=0.5,
            markersize=6.5,
            linewidth=1,
            label=method_name(method),
        )
    _axis_labels(panel, x, y)
    panel.margins(0.08)
    _legend_below(figure, panel.get_legend_handles_labels()[0], columns=2 if width < 5 else 5)
    return figure


@styled
def tuning_curve(table: pd.DataFrame, metric: str = "dice", width: float = PAGE) -> Figure:
    """Validation metric against λ (log₂ axis), a panel a method, its best value ringed; rows of one λ are averaged."""
    means = table.groupby(["method", "lam"], sort=False)[metric].mean().reset_index().sort_values("lam")
    methods = list(table["method"].unique())
    colors = method_colors(methods)
    columns = min(5, len(methods))
    rows = -(-len(methods) // columns)
    figure = Picture(figsize=(min(width, 0.4 + 1.75 * columns), 0.3 + 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel, method in zip(axes.flat, methods, strict=False):
        points = means[means["method"] == method]
        panel.set_xscale("log", base=2)
        panel.plot(points["lam"], points[metric], marker="o", markersize=4, color=colors[method])
        best = points.loc[points[metric].idxmax()]
        panel.plot(best["lam"], best[metric], "o", markersize=10, markerfacecolor="none", color=colors[method])
        ticks = sorted(points["lam"])
        ticks = ticks[:: -(-len(ticks) // 3)]
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(ticks, [f"{value:.2g}" for value in ticks])
        panel.margins(0.15)
        panel.set_title(narrow(method_name(method)))
        panel.set_xlabel("Smoothing" if str(method).split("-")[0] in ENGINES else "λ")
    for panel in axes.flat[len(methods) :]:
        panel.remove()
    label = AXIS_NAMES.get(metric, metric)
    for panel in axes[:, 0]:
        panel.set_ylabel(f"Validation {label[0].lower()}{label[1:]}")
    return figure


@styled
def matched_smoothness(table: pd.DataFrame, x: str = "sd_log_jacobian", y: str = "dice", width: float = PAGE) -> Figure:
    """Dice against smoothness, a line a method through its λ, the best ringed: the upper line at one x is the better.

    table: columns `method`, `lam`, x and y; rows of one method and λ are averaged.
    """
    means = table.groupby(["method", "lam"], sort=False)[[x, y]].mean().reset_index().sort_values("lam")
    methods = list(table["method"].unique())
    colors = method_colors(methods)
    figure = Picture(figsize=(width, 3.4), layout="constrained")
    panel = figure.subplots()
    for i, method in enumerate(methods):
        points = means[means["method"] == method]
        panel.plot(
            points[x], points[y], **_look(method, i), color=colors[method], markersize=5, label=method_name(method)
        )
        best = points.loc[points[y].idxmax()]
        panel.plot(best[x], best[y], "o", markersize=11, markerfacecolor="none", color=colors[method])
    _axis_labels(panel, x, y)
    panel.margins(0.05)
    _legend_below(figure, panel.get_legend_handles_labels()[0], columns=5)
    return figure


@styled
def blended(moving, moved, fixed, displacement, share: float, width: float = PAGE) -> Figure:
    """A share of the way from the moving to the moved image, the fixed one, the deformed grid, and the Jacobian."""
    before, after = middle_slice(moving), middle_slice(moved)
    figure, axes = _image_axes(1, 4, before.shape, width, 0.6)
    _show(axes[0, 0], (1 - share) * before + share * after, f"Moving → moved, {share:.0%}")
    _show(axes[0, 1], middle_slice(fixed), "Fixed")
    _show(axes[0, 2], before, "Grid x + u(x)")
    _grid(axes[0, 2], middle_displacement(displacement), None)
    _jacobian(figure, axes[0, 3], middle_jacobian(displacement))
    return figure


@styled
def ways_overview(summary: pd.DataFrame, width: float = PAGE) -> Figure:
    """Mean Dice of each way to register a pair, against the seconds it takes and against the roughness of its warp.

    summary: a row a way, columns `way`, `dice`, `dice_low`, `dice_high`, `seconds`, `sd_log_jacobian`.
    """
    colors = method_colors(list(summary["way"]))
    figure = Picture(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, x in zip(axes, ("seconds", "sd_log_jacobian"), strict=True):
        for i, row in enumerate(summary.itertuples()):
            look = _look(row.way, i) | {"linestyle": "none", "color": colors[row.way], "markersize": 6}
            panel.errorbar(
                getattr(row, x),
                row.dice,
                yerr=[[row.dice - row.dice_low], [row.dice_high - row.dice]],
                label=method_name(row.way),
                elinewidth=0.8,
                **look,
            )
        panel.set_xlabel(AXIS_NAMES[x])
    axes[0].set_xscale("log")
    low, high = axes[0].get_xlim()
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if low <= tick <= high]
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].set_ylabel(AXIS_NAMES["dice"])
    _legend_below(figure, axes[0].get_legend_handles_labels()[0], columns=3)
    return figure


@styled
def ways_traces(traces: pd.DataFrame, width: float = PAGE) -> Figure:
    """Dice, folds and SD log J of each way while it is at work, against its steps and against seconds.

    traces: a row a way, pair and look, columns `way`, `step`, `seconds` and the metrics; pairs are averaged.
    """
    metrics = {"dice": "Mean Dice", "folds": "Folds (% of voxels)", "sd_log_jacobian": "SD of log J"}
    ways = list(traces["way"].unique())
    columns, means = ["seconds", *metrics], []
    for way, rows in traces.groupby("way", sort=False):
        # A pair that has ended stays where it ended.
        wide = rows.pivot_table(index="step", columns="pair", values=columns).sort_index().ffill()
        means.append(wide.T.groupby(level=0).mean().T.reset_index().assign(way=way))
    means = pd.concat(means)
    means["folds"] *= 100
    colors = method_colors(ways)
    figure = Picture(figsize=(width, 5.4), layout="constrained")
    axes = figure.subplots(2, 3, sharex="row", sharey="col")
    for row, x in zip(axes, ("step", "seconds"), strict=True):
        for panel, (metric, title) in zip(row, metrics.items(), strict=True):
            for i, way in enumerate(ways):
                points = means[means["way"] == way]
                look = _look(way, i) | {"color": colors[way], "markersize": 4}
                panel.plot(points[x], points[metric], **look, label=method_name(way))
            panel.set_xlabel("Step" if x == "step" else "Seconds")
            panel.set_ylabel(title)
    axes[0, 1].set_ylim(0, max(0.01, 1.05 * means["folds"].max()))
    _legend_below(figure, axes[0, 0].get_legend_handles_labels()[0], columns=4)
    return figure


@styled
def ablation_bars(pairs: pd.DataFrame, width: float = PAGE) -> Figure:
    """Mean Dice (with its 95 % bootstrap interval) and SD log J of each variant; lines mark the method it starts from.

    pairs: a row a variant and pair, columns `method` (the variant), `group`, `base`, `pair`, `dice`,
    `sd_log_jacobian`; a method that variants start from has an empty group.
    """
    order = pairs.drop_duplicates("method").sort_values(["base", "group"], key=lambda c: c.fillna(""), kind="stable")
    methods = list(order["method"])
    means = pairs.groupby(["method", "pair"])[["dice", "sd_log_jacobian"]].mean()
    colors = method_colors([str(base) for base in order["base"]])
    figure = Picture(figsize=(width, 0.8 + 0.24 * len(methods)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    for panel, metric in zip(axes, ("dice", "sd_log_jacobian"), strict=True):
        for base in order["base"].unique():
            if base in methods:
                panel.axvline(means.loc[base][metric].mean(), color=colors[base], linewidth=0.8, linestyle=DASHED)
        for row, (method, base) in enumerate(zip(methods, order["base"], strict=True)):
            values = means.loc[method][metric]
            low, high = coupled_interval(values.reset_index(), metric, resamples=2000)
            marker = "D" if method == base else "o"
            panel.plot([low, high], [row, row], color=colors[base], linewidth=1.2)
            panel.plot(values.mean(), row, marker, color=colors[base], markersize=5)
        panel.set_xlabel(AXIS_NAMES[metric])
        panel.grid(False, axis="y")
    names = [
        method_name(method) if method == base else f"{group}: {method}"
        for method, base, group in zip(methods, order["base"], order["group"], strict=True)
    ]
    axes[0].set_yticks(range(len(methods)), names)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


@styled
def label_fraction(variants: pd.DataFrame, width: float = COLUMN) -> Figure:
    """Dice of the extractor and of the registration against the share of the labelled training images.

    variants: a row a variant, columns `group`, `labels` (share), `extractor_dice` and `dice`; the rows without a group
    (the methods themselves) and those of the group `labels` are drawn.
    """
    shown = variants[variants["group"].fillna("").isin(["", "labels"])].dropna(subset="labels").sort_values("labels")
    figure = Picture(figsize=(width, 2.6), layout="constrained")
    panel = figure.subplots()
    for column, name, color in (
        ("extractor_dice", "extractor", OKABE_ITO["blue"]),
        ("dice", "registration", OKABE_ITO["vermillion"]),
    ):
        panel.plot(shown["labels"], shown[column], "o-", color=color, label=name, markersize=4)
    panel.set_xscale("log")
    ticks = sorted(shown["labels"].unique())
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(ticks, [f"{share:.0%}" for share in ticks])
    panel.set_xlabel("Share of labelled training images")
    panel.set_ylabel(AXIS_NAMES["dice"])
    panel.legend()
    return figure


@styled
def robustness(table: pd.DataFrame, metric: str = "dice", width: float = PAGE) -> Figure:
    """Mean of a metric against the SD of the added noise, a line a method; the right panel shows what noise takes away.

    table: a row a method, `noise` and pair.
    """
    means = table.groupby(["method", "noise"], sort=False)[metric].mean().unstack("noise")
    colors = method_colors(list(means.index))
    figure = Picture(figsize=(width, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for i, method in enumerate(means.index):
        values = means.loc[method].sort_index()
        style = _look(method, i) | {"color": colors[method], "markersize": 4}
        axes[0].plot(values.index, values, **style, label=method_name(method))
        axes[1].plot(values.index, values - values.iloc[0], **style)
    label = AXIS_NAMES.get(metric, metric)
    axes[0].set_ylabel(label)
    axes[1].set_ylabel(f"{label}, change")
    for panel in axes:
        panel.set_xlabel("SD of the added noise")
    _legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


@styled
def dice_per_class(pairs: pd.DataFrame, classes: Sequence[str], width: float = PAGE) -> Figure:
    """Mean Dice of each class under each method, as a table of shades with its numbers.

    pairs: a row a method and pair, with columns `dice_<class>`.
    """
    means = pairs.groupby("method", sort=False)[[f"dice_{name}" for name in classes]].mean()
    values = means.to_numpy().T  # (classes, methods)
    figure = Picture(figsize=(width, 1.3 + 0.24 * len(classes)), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(values, cmap="viridis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        shown = f"{value:.2f}".lstrip("0") if np.isfinite(value) else "–"
        panel.text(column, row, shown, ha="center", va="center", color="white" if value < middle else "black", size=7)
    names = [method_name(method) for method in means.index]
    panel.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(classes)), classes)
    panel.grid(False)
    figure.colorbar(picture, ax=panel, label=AXIS_NAMES["dice"])
    return figure


@styled
def sample_panel(
    moving,
    fixed,
    results: Mapping[str, tuple],
    moving_label,
    fixed_label,
    classes: Sequence[str],
    colors: Sequence[str],
    crop: tuple[slice, slice] | None = None,
    axis: int = 0,
    index: int | None = None,
    grid_step: int | None = None,
    width: float = PAGE,
) -> Figure:
    """One pair under every method. results: method → (moved image, moved label, displacement).

    Rows: the images with their own labels; the same detail of each, with the fixed labels solid and the image's
    own dashed; the moving image, and the grid x + u(x) on it (under "Fixed": the grid at rest). More than eight
    columns wrap into further triples of rows. crop: (rows, columns) of the detail, the middle third if not given.
    """
    columns = {
        "Moving": (moving, moving_label, None),
        "Fixed": (fixed, fixed_label, None),
        **{narrow(method_name(method)): result for method, result in results.items()},
    }
    moving_plane, fixed_plane = middle_slice(moving, axis, index), middle_slice(fixed_label, axis, index)
    crop = crop or tuple(slice(size // 3, size - size // 3) for size in fixed_plane.shape)
    bands = -(-len(columns) // 8)
    across = -(-len(columns) // bands)
    figure, panels = _image_axes(3 * bands, across, fixed_plane.shape, width, 0.5)
    axes = np.concatenate(np.split(panels, bands), axis=1)  # the bands side by side: (3, bands · across)
    for panel in axes[:, len(columns) :].flat:
        panel.remove()
    for column, (title, (image, label, displacement)) in enumerate(columns.items()):
        image, label = middle_slice(image, axis, index), middle_slice(label, axis, index)
        _show(axes[0, column], image, title)
        _contours(axes[0, column], label, colors)
        _outline(axes[0, column], crop)
        _show(axes[1, column], image)
        _contours(axes[1, column], fixed_plane, colors)
        if title != "Fixed":
            _contours(axes[1, column], label, colors, DASHED)
        axes[1, column].set_xlim(crop[1].start - 0.5, crop[1].stop - 0.5)
        axes[1, column].set_ylim(crop[0].stop - 0.5, crop[0].start - 0.5)
        _show(axes[2, column], moving_plane)
        if title != "Moving":
            still = np.zeros((2, *moving_plane.shape))
            plane = still if displacement is None else middle_displacement(displacement, axis, index)
            _grid(axes[2, column], plane, grid_step or max(1, round(max(fixed_plane.shape) / 12)))
    for panel in axes[0] if across > 6 else ():
        panel.title.set_fontsize(7)  # names of methods, an inch apart
    _row_names(panels, ("Labels", "Detail", "Grid x + u(x)") * bands)
    lines = [
        Line2D([], [], color="0.35", linestyle="solid", label="fixed (detail)"),
        Line2D([], [], color="0.35", linestyle=DASHED, label="this image (detail)"),
    ]
    _class_legend(figure, classes, colors, lines)
    return figure


@styled
def loss_landscape(curves: Mapping[str, tuple], width: float = PAGE) -> Figure:
    """Loss of one noisy patch against its shifted self, a panel a metric (their scales do not compare).

    curves: name → (shifts in voxels, values), as `evaluation.loss_landscape_curves` returns.
    """
    rows = -(-len(curves) // 5)
    columns = -(-len(curves) // rows)
    figure = Picture(figsize=(min(width, 1.8 * columns + 0.2), 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    colors = method_colors(list(curves))
    for panel, (name, (shifts, values)) in zip(axes.flat, curves.items(), strict=False):
        panel.axvline(0, color="0.6", linewidth=0.8, linestyle=":")
        panel.plot(shifts, values, color=colors[name], marker="o", markersize=2.5)
        panel.set_title(method_name(name))
        panel.set_xlabel("Shift (voxels)")
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    for panel in axes.flat[len(curves) :]:
        panel.remove()
    for panel in axes[:, 0]:
        panel.set_ylabel("Loss")
    return figure


def save_figure(figure: Figure, stem: Path | str, caption: str, source_run: str | Sequence[str]) -> list[Path]:
    """Write `<stem>.pdf`, `<stem>.png` (150 dpi) and `<stem>.json` (caption and the runs it was drawn from).

    Each file appears whole or not at all; a figure drawn again from the same numbers gives the same files.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    runs = [source_run] if isinstance(source_run, str) else list(source_run)
    record = json.dumps({"caption": caption, "source_runs": runs}, indent=2, ensure_ascii=False) + "\n"
    undated = {"CreationDate": None}

    def picture(target: Path) -> None:
        with mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(target, format="pdf", metadata=undated)

    writers = {
        ".pdf": picture,
        ".png": lambda target: figure.savefig(target, format="png", dpi=150, metadata={"Software": None}),
        ".json": lambda target: target.write_text(record, encoding="utf-8"),
    }
    written = []
    for suffix, write in writers.items():
        path = stem.with_name(stem.name + suffix)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        written.append(path)
    return written


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _field(displacement) -> np.ndarray:
    array = _array(displacement)
    array = array[0] if array.ndim in (4, 5) and len(array) == 1 else array
    if len(array) != array.ndim - 1 or array.ndim not in (3, 4):
        raise ValueError(f"displacement of shape {array.shape}; give one, (D, *spatial) with D = 2 or 3")
    return array


def _slice_index(size: int, index: int | None) -> int:
    return size // 2 if index is None else index


def _image_axes(rows: int, columns: int, shape: tuple[int, int], width: float, extra: float):
    """Axes for images of `shape` that fill the width; extra: height for titles, bars and a legend, inches."""
    panel = (width - 0.25) / columns
    height = rows * (min(panel * shape[0] / shape[1], 2.6) + 0.05) + extra
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _bare(panel: Axes, title: str = "") -> None:
    panel.set(xticks=[], yticks=[])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    if title:
        panel.set_title(title, pad=3)


def _show(panel: Axes, plane: np.ndarray, title: str = "") -> None:
    panel.imshow(plane, cmap="gray", vmin=min(0.0, float(plane.min())), vmax=max(1.0, float(plane.max())))
    _bare(panel, title)


def _contours(panel: Axes, label: np.ndarray, colors: Sequence[str], style="solid") -> None:
    """The outline of every foreground class in its colour; the labels are padded so that it closes at the edge."""
    palette = list(colors) or [None, *OKABE_ITO.values()]
    for k in np.unique(label[label > 0]):
        mask = np.pad(label == k, 1).astype(float)
        rows, columns = (np.arange(-1, size + 1) for size in label.shape)
        color = palette[k % len(palette)]
        panel.contour(columns, rows, mask, levels=[0.5], colors=[color], linewidths=1, linestyles=[style])
    panel.set_xlim(-0.5, label.shape[1] - 0.5)
    panel.set_ylim(label.shape[0] - 0.5, -0.5)


def _grid(panel: Axes, displacement: np.ndarray, step: int | None) -> None:
    """Lines of the regular grid, each point x drawn at x + u(x). displacement: (2, H, W), voxels."""
    height, width = displacement.shape[1:]
    step = step or max(1, round(max(height, width) / 20))
    rows, columns = np.mgrid[:height, :width] + displacement
    lines = [(columns[i], rows[i]) for i in range(0, height, step)]
    lines += [(columns[:, j], rows[:, j]) for j in range(0, width, step)]
    for x, y in lines:
        panel.plot(x, y, color=OKABE_ITO["yellow"], linewidth=0.7)
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)


def _jacobian(figure: Figure, panel: Axes, jacobian: np.ndarray) -> None:
    """J in blue below 1 and red above, the same length on either side of it; folds in yellow."""
    spread = float(np.clip(np.abs(jacobian - 1).max(), 0.1, 1))
    norm = TwoSlopeNorm(1.0, 1 - spread, float(np.clip(jacobian.max(), 1 + spread, 3)))
    shown = panel.imshow(jacobian, cmap="RdBu_r", norm=norm)
    folds = jacobian <= 0
    marked = ListedColormap([OKABE_ITO["yellow"]])
    panel.imshow(np.where(folds, 1.0, np.nan), cmap=marked, vmin=0, vmax=1)
    _bare(panel, f"Jacobian ({folds.sum()} folds, yellow)" if folds.any() else "Jacobian (no folds)")
    bar = figure.colorbar(shown, ax=panel, location="bottom", shrink=0.9, extend="max", label="Determinant J")
    ticks = [norm.vmin, (1 + norm.vmin) / 2, 1, (1 + norm.vmax) / 2, norm.vmax]
    bar.set_ticks(ticks, labels=[f"{value:.3g}" for value in ticks])


def _outline(panel: Axes, crop: tuple[slice, slice]) -> None:
    rows, columns = crop
    corner = (columns.start - 0.5, rows.start - 0.5)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    panel.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=0.9))


def _row_names(axes: np.ndarray, names: Sequence[str]) -> None:
    for panel, name in zip(axes[:, 0], names, strict=True):
        panel.set_ylabel(name)


def _class_legend(
    figure: Figure,
    classes: Sequence[str],
    colors: Sequence[str],
    lines: Sequence[Line2D] = (),
    background: bool = False,
) -> None:
    first = 0 if background else 1
    patches = [
        Line2D([], [], marker="s", markersize=7, linestyle="none", color=color, markeredgecolor="0.6", label=name)
        for name, color in list(zip(classes, colors, strict=True))[first:]
    ]
    if patches or lines:
        _legend_below(figure, [*patches, *lines], columns=6)


def _legend_below(figure: Figure, handles: Sequence, columns: int = 5) -> None:
    """In as many columns as the figure is wide enough for."""
    for count in range(max(1, min(columns, len(handles))), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=count, columnspacing=1.2)
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _curve(panel: Axes, metrics: pd.DataFrame, column: str, color: str, label: str) -> None:
    """A measured series; one of more than 40 points shows faint, with its running median over a 20th of it."""
    series = metrics[["step", column]].dropna().sort_values("step")
    noisy = len(series) > 40
    if noisy:
        panel.plot(series["step"], series[column], color=color, alpha=0.25, linewidth=0.6)
        window = max(3, len(series) // 20)
        smooth = series[column].rolling(window, center=True, min_periods=1).median()
        panel.plot(series["step"], smooth, color=color, label=label)
    else:
        panel.plot(series["step"], series[column], color=color, marker="o", markersize=3, label=label)


def _split(column: str) -> tuple[str, str]:
    """`train_dice` → ("training", "dice"); a column of neither split → ("", its name)."""
    prefixes = {"train_": "training", "validation_": "validation", "val_": "validation"}
    prefix = next((prefix for prefix in prefixes if column.startswith(prefix)), "")
    return prefixes.get(prefix, ""), column.removeprefix(prefix)


def _axis_labels(panel: Axes, x: str, y: str) -> None:
    panel.set_xlabel(AXIS_NAMES.get(x, x))
    panel.set_ylabel(AXIS_NAMES.get(y, y))
