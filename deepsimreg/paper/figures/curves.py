"""Figures of training and of choices: curves against steps, λ, noise, shifts and labels."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.figures import style

BLUE, RED = style.OKABE_ITO["blue"], style.OKABE_ITO["vermillion"]


@style.styled
def learning_curve(
    metrics: pd.DataFrame, columns: Mapping[str, str] | Sequence[str] | None = None, width: float = style.PAGE
) -> Figure:
    """Metrics against steps: a panel per quantity, training (faint, with its running median) and validation.

    metrics: column `step` and `train_…`, `validation_…` columns, in which NaN is "not measured at
    this step". columns: those to draw, with their labels if a mapping; all of them if not given.
    """
    columns = columns or [name for name in metrics if _split(name)[0]]
    labels = dict(columns) if isinstance(columns, Mapping) else {name: _split(name)[0] or name for name in columns}
    missing = [name for name in ["step", *labels] if name not in metrics]
    if missing:
        raise ValueError(f"metrics has no column {missing}; it has {list(metrics.columns)}")
    quantities = list(dict.fromkeys(_split(name)[1] for name in labels))
    figure, axes = style.picture(min(width, style.COLUMN * len(quantities)), 2.5, 1, len(quantities), squeeze=False)
    for panel, quantity in zip(axes[0], quantities, strict=True):
        shown = [name for name in labels if _split(name)[1] == quantity]
        for name, color in zip(shown, (BLUE, RED, *style.OTHER_COLORS), strict=False):
            _curve(panel, metrics, name, color, labels[name])
        style.axis_labels(panel, "step", quantity)
        if quantity == "folds":
            panel.set_ylim(0, max(panel.get_ylim()[1], 1e-4))  # where nothing folds, a line at zero
        panel.legend()
    return figure


@style.styled
def convergence(runs: Mapping[str, pd.DataFrame], before: float | None = None, width: float = style.PAGE) -> Figure:
    """Training and validation Dice against steps, a line per method.

    runs: method → its metrics table. before: Dice before registration, a dotted line.
    """
    figure, axes = style.picture(width, 2.8, 1, 2, sharey=True)
    colors = style.method_colors(runs)
    for panel, column, title in zip(axes, ("train_dice", "validation_dice"), ("Training", "Validation"), strict=True):
        for method, metrics in runs.items():
            if column in metrics:
                _curve(panel, metrics, column, colors[method], style.method_name(method))
        panel.set_title(title)
        style.axis_labels(panel, "step", "dice")
        if before is not None:
            panel.axhline(before, color="0.4", linewidth=0.8, linestyle=":")
    axes[1].set_ylabel("")
    lines = [line for panel in axes for line in panel.lines if line.get_alpha() is None]
    curves = [line.get_ydata() for line in lines if line.get_linestyle() != ":"]
    if not curves:  # networks that are their initial weights
        axes[0].text(0.5, 0.5, "nothing was trained", transform=axes[0].transAxes, ha="center")
        return figure
    drawn = np.concatenate(curves)
    margin = 0.05 * np.ptp(drawn) or 0.01
    axes[0].set_ylim(drawn.min() - margin, drawn.max() + margin)  # the faint single batches may leave the panel
    style.legend_below(figure, axes[1] if axes[1].lines else axes[0])
    return figure


@style.styled
def tuning_curve(table: pd.DataFrame, metric: str = "dice_foreground", width: float = style.PAGE) -> Figure:
    """Validation metric against λ (log₂ axis), one panel per method, each with its range; rows of one λ are averaged.

    The chosen row is ringed if the table has a column `chosen`, else the best value. Rows without a λ are left out.
    """
    means = style.grid_means(table.dropna(subset="lam"), ["method", "lam"], [metric])
    colors = style.method_colors(means["method"])
    columns = min(5, len(colors))
    rows = -(-len(colors) // columns)
    size = min(width, 0.4 + 1.75 * columns), 0.3 + 1.7 * rows
    figure, axes = style.picture(*size, rows, columns, squeeze=False)
    for panel, (method, color) in zip(axes.flat, colors.items(), strict=False):
        points = means[means["method"] == method].sort_values("lam")
        panel.set_xscale("log", base=2)
        panel.plot(points["lam"], points[metric], marker="o", markersize=4, color=color)
        style.ring(panel, points, "lam", metric, color)
        ticks = points["lam"].iloc[[0, -1]] if len(points) > 5 else points["lam"][:: -(-len(points) // 3)]
        style.fixed_ticks(panel, ticks, "{:.2g}")
        panel.margins(0.15)
        panel.yaxis.set_major_locator(MaxNLocator(3))
        panel.set_title(style.narrow(style.method_name(method)), fontsize=8)
        panel.set_xlabel("Smoothing" if method in BASELINES else "λ")
    label = style.AXIS_NAMES.get(metric, metric)
    _finish(axes, len(colors), f"{label},\nvalidation")
    return figure


@style.styled
def loss_landscape(curves: Mapping[str, tuple], width: float = style.PAGE) -> Figure:
    """Loss of one noisy patch against its shifted self, a panel for each metric (their scales do not compare).

    curves: name → (shifts in voxels, values), as `landscape.loss_landscape_curves` returns.
    """
    rows = -(-len(curves) // 5)
    columns = -(-len(curves) // rows)
    figure, axes = style.picture(min(width, 1.8 * columns + 0.2), 1.9 * rows, rows, columns, squeeze=False)
    for panel, (name, color) in zip(axes.flat, style.method_colors(curves).items(), strict=False):
        panel.axvline(0, color="0.6", linewidth=0.8, linestyle=":")
        panel.plot(*curves[name], color=color, marker="o", markersize=2.5)
        panel.set_title(style.method_name(name))
        panel.set_xlabel("Shift (voxels)")
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    _finish(axes, len(curves), "Loss")
    return figure


@style.styled
def robustness(table: pd.DataFrame, metric: str = "dice_foreground", width: float = style.PAGE) -> Figure:
    """Mean of a metric against the SD of the added noise, a line for each method; right: what noise takes away.

    table: one row per method, `noise` and pair.
    """
    means = table.groupby(["method", "noise"], sort=False)[metric].mean().unstack("noise")
    figure, axes = style.picture(width, 2.9, 1, 2)
    for method, look in style.looks(means.index, markersize=4).items():
        values = means.loc[method].sort_index()
        axes[0].plot(values.index, values, **look)
        axes[1].plot(values.index, values - values.iloc[0], **look)
    label = style.AXIS_NAMES.get(metric, metric)
    for panel, name in zip(axes, (label, f"{label}, change"), strict=True):
        panel.set(xlabel="SD of the added noise", ylabel=name)
    style.legend_below(figure, axes[0])
    return figure


@style.styled
def label_fraction(variants: pd.DataFrame, width: float = style.COLUMN) -> Figure:
    """Dice of the extractor and of the registration against the fraction of the labelled training images.

    variants: one row per variant, columns `group`, `labels` (fraction), `extractor_dice` and `dice`; the rows without a
    group (the methods themselves) and those of the group `labels` are drawn.
    """
    shown = variants[variants["group"].fillna("").isin(["", "labels"])].dropna(subset="labels").sort_values("labels")
    figure, panel = style.picture(width, 2.6)
    for column, name, color in (("extractor_dice", "extractor", BLUE), ("dice", "registration", RED)):
        panel.plot(shown["labels"], shown[column], "o-", color=color, label=name, markersize=4)
    panel.set_xscale("log")
    style.fixed_ticks(panel, shown["labels"].unique(), "{:.0%}")
    panel.set(xlabel="Fraction of labelled training images", ylabel=style.AXIS_NAMES["dice"])
    panel.legend()
    return figure


@style.styled
def class_histogram(
    images, labels, classes: Sequence[str], colors: Sequence[str], width: float = style.COLUMN
) -> Figure:
    """Distribution of the grey values of each class. images and labels: arrays of one shape, any rank."""
    images, labels = np.asarray(images), np.asarray(labels)
    figure, panel = style.picture(width, 2.4)
    edges = np.linspace(images.min(), images.max(), 65)
    for index, (name, color) in enumerate(zip(classes, colors, strict=True)):
        density, _ = np.histogram(images[labels == index], edges, density=True)
        panel.stairs(density, edges, color=color, linewidth=1.5, label=name)
    panel.set(xlabel="Grey value", ylabel="Density")
    panel.legend()
    return figure


def _finish(axes: np.ndarray, count: int, ylabel: str) -> None:
    """Small multiples: only the first `count` panels stay, and each row is labelled once."""
    for panel in axes.flat[count:]:
        panel.remove()
    for panel in axes[:, 0]:
        panel.set_ylabel(ylabel)


def _curve(panel: Axes, metrics: pd.DataFrame, column: str, color: str, label: str) -> None:
    """A measured series; one of more than 40 points shows faint, with its running median over a 20th of it."""
    series = metrics[["step", column]].dropna().sort_values("step")
    values, points = series[column], {"marker": "o", "markersize": 3}
    if len(series) > 40:
        panel.plot(series["step"], values, color=color, alpha=0.12, linewidth=0.5)
        window = max(3, len(series) // 20)
        values, points = values.rolling(window, center=True, min_periods=1).median(), {}
    panel.plot(series["step"], values, color=color, label=label, **points)


def _split(column: str) -> tuple[str, str]:
    """`train_dice` → ("training", "dice"); a column of neither split → ("", its name)."""
    for prefix, split in (("train_", "training"), ("validation_", "validation")):
        if column.startswith(prefix):
            return split, column.removeprefix(prefix)
    return "", column
