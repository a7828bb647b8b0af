"""Figures that compare methods: overlap, smoothness, time, variants, classes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepsimreg.paper.figures import style
from deepsimreg.paper.statistics import coupled_interval


@style.styled
def dice_boxplot(
    pairs: pd.DataFrame, metric: str = "dice", order: Sequence[str] | None = None, width: float = style.COLUMN
) -> Figure:
    """A box for each method, quartiles and 1.5 IQR whiskers, every pair as a dot (jittered across, seeded).

    pairs: columns `method` and the metric. order: the methods from top to bottom; as they come, if not given.
    """
    order = list(order or pairs["method"].unique())
    figure, panel = style.picture(width, 0.7 + 0.38 * len(order))
    rng = np.random.default_rng(0)
    for row, (method, color) in enumerate(style.method_colors(order).items()):
        values = pairs.loc[pairs["method"] == method, metric].dropna().to_numpy()
        heights = row + rng.uniform(-0.22, 0.22, len(values))
        panel.plot(values, heights, "o", color=color, alpha=0.45, markersize=2.5, markeredgewidth=0)
        lines = {
            "boxprops": {"color": color, "linewidth": 1.2},
            "whiskerprops": {"color": color},
            "capprops": {"color": color},
            "medianprops": {"color": "black", "linewidth": 1.5},
        }
        panel.boxplot(values, positions=[row], orientation="horizontal", widths=0.6, showfliers=False, **lines)
    _rows(panel, [style.method_name(method) for method in order])
    panel.set_xlabel(style.AXIS_NAMES.get(metric, metric))
    return figure


@style.styled
def smoothness_against_dice(
    table: pd.DataFrame, x: str = "sd_log_jacobian", y: str = "dice", ringed: bool = False, width: float = style.COLUMN
) -> Figure:
    """One point per method; with a column `lam`, one per method and λ, joined by a line along λ.

    table: rows with the columns `method`, x and y; means are drawn. ringed: mark the λ of
    each method that its column `chosen` names, else the best. At one x, the upper line is the better method.
    """
    keys = [key for key in ("method", "lam") if key in table]
    means = style.grid_means(table, keys, [x, y])
    figure, panel = style.picture(width, 3.2)
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.5, "markersize": 6.5, "linewidth": 1}
    for method, look in style.looks(means["method"].unique(), **edge).items():
        points = means[means["method"] == method].sort_values(keys)
        panel.plot(points[x], points[y], **look | ({} if len(points) > 1 else {"linestyle": "none"}))
        if ringed:
            style.ring(panel, points, x, y, look["color"])
    style.axis_labels(panel, x, y)
    panel.margins(0.08)
    style.legend_below(figure, panel, columns=2 if width < 5 else 5)
    return figure


@style.styled
def methods_overview(summary: pd.DataFrame, width: float = style.PAGE) -> Figure:
    """Mean foreground Dice of each method, against the seconds it takes and against the roughness of its warp.

    summary: one row per method, columns `method`, `dice_foreground`, `dice_foreground_low`, `dice_foreground_high`,
    `seconds`, `sd_log_jacobian`; a method without a warp stands on the left only.
    """
    figure, axes = style.picture(width, 3.6, 1, 2, sharey=True)
    methods = style.looks(summary["method"], markersize=6, linestyle="none", elinewidth=0.8)
    for panel, x in zip(axes, ("seconds", "sd_log_jacobian"), strict=True):
        for row in summary.itertuples():
            mean = row.dice_foreground
            interval = [[mean - row.dice_foreground_low], [row.dice_foreground_high - mean]]
            panel.errorbar(getattr(row, x), mean, yerr=interval, **methods[row.method])
        panel.set_xlabel(style.AXIS_NAMES[x])
    axes[0].set_xscale("log")
    low, high = axes[0].get_xlim()
    style.fixed_ticks(axes[0], [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30) if low <= tick <= high], "{:g}")
    axes[0].set_ylabel(style.AXIS_NAMES["dice_foreground"])
    style.legend_below(figure, axes[0], columns=3)
    return figure


@style.styled
def methods_traces(traces: pd.DataFrame, width: float = style.PAGE) -> Figure:
    """Dice, folds and SD log J of each method while it is at work, against its steps and against seconds.

    traces: one row per method, pair and snapshot: `method`, `step`, `seconds` and the metrics; pairs are averaged.
    """
    metrics = {"dice": "Mean Dice", "folds": "Folds (% of voxels)", "sd_log_jacobian": "SD of log J"}
    methods = style.looks(traces["method"].unique(), markersize=4)
    figure, axes = style.picture(width, 5.4, 2, 3, sharex="row", sharey="col")
    for method, rows in traces.assign(folds=100 * traces["folds"]).groupby("method", sort=False):
        # A pair that has ended stays where it ended.
        wide = rows.pivot_table(index="step", columns="pair", values=["seconds", *metrics]).sort_index().ffill()
        means = wide.T.groupby(level=0).mean().T.reset_index()
        for row, x in zip(axes, ("step", "seconds"), strict=True):
            for panel, metric in zip(row, metrics, strict=True):
                panel.plot(means[x], means[metric], **methods[method])
    for row, x in zip(axes, ("Step", "Seconds"), strict=True):
        for panel, title in zip(row, metrics.values(), strict=True):
            panel.set(xlabel=x, ylabel=title)
    folds = [line.get_ydata().max() for line in axes[0, 1].lines]
    axes[0, 1].set_ylim(0, max(0.01, 1.05 * max(folds)))
    style.legend_below(figure, axes[0, 0], columns=4)
    return figure


@style.styled
def ablation_bars(pairs: pd.DataFrame, width: float = style.PAGE) -> Figure:
    """Mean Dice (with its 95 % bootstrap interval) and SD log J of each variant; lines mark the method it starts from.

    pairs: one row per variant and pair, columns `method` (the variant), `group`, `base`, `pair`, `dice`,
    `sd_log_jacobian`; a method that variants start from has an empty group.
    """
    order = pairs.drop_duplicates("method").sort_values(["base", "group"], key=lambda c: c.fillna(""), kind="stable")
    variants = list(order[["method", "group", "base"]].itertuples(index=False))
    means = pairs.groupby(["method", "pair"])[["dice", "sd_log_jacobian"]].mean()
    colors = style.method_colors(order["base"])
    figure, axes = style.picture(width, 0.8 + 0.24 * len(variants), 1, 2, sharey=True, width_ratios=[1.6, 1])
    for panel, metric in zip(axes, ("dice", "sd_log_jacobian"), strict=True):
        for base in [one.base for one in variants if one.method == one.base]:
            panel.axvline(means.loc[base][metric].mean(), color=colors[base], linewidth=0.8, linestyle=style.DASHED)
        for row, (method, _, base) in enumerate(variants):
            values = means.loc[method][metric]
            interval = coupled_interval(values.reset_index(), metric, resamples=2000)
            panel.plot(interval, [row, row], color=colors[base], linewidth=1.2)
            panel.plot(values.mean(), row, "D" if method == base else "o", color=colors[base], markersize=5)
        panel.set_xlabel(style.AXIS_NAMES[metric])
        panel.grid(False, axis="y")
    _rows(
        axes[0],
        [style.method_name(one.method) if one.method == one.base else f"{one.group}: {one.method}" for one in variants],
    )
    return figure


@style.styled
def dice_per_class(pairs: pd.DataFrame, classes: Sequence[str], width: float = style.PAGE) -> Figure:
    """Mean Dice of each class under each method, as a table of shades with its numbers.

    pairs: one row per method and pair, with columns `dice_<class>`.
    """
    means = pairs.groupby("method", sort=False)[[f"dice_{name}" for name in classes]].mean()
    return _shaded(means.set_axis(classes, axis=1).T, style.AXIS_NAMES["dice"], width)


@style.styled
def contrast(table: pd.DataFrame, metric: str = "dice_foreground", width: float = style.PAGE) -> Figure:
    """Mean of a metric of each method, for each change of the moving image, as a table of shades with its numbers.

    table: one row per method, `contrast` and pair.
    """
    means = table.pivot_table(index="contrast", columns="method", values=metric, sort=False)
    return _shaded(means, style.AXIS_NAMES[metric], width)


def _shaded(means: pd.DataFrame, name: str, width: float) -> Figure:
    """Rows of things, columns of methods."""
    values = means.to_numpy()
    figure, panel = style.picture(width, max(2.9, 1.3 + 0.24 * len(means)))  # the colour bar's name needs that
    shades = panel.imshow(values, cmap="viridis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        shown = f"{value:.2f}".lstrip("0") if np.isfinite(value) else "–"
        panel.text(column, row, shown, ha="center", va="center", color="white" if value < middle else "black", size=7)
    names = [style.method_name(method) for method in means.columns]
    panel.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(means)), means.index)
    panel.grid(False)
    figure.colorbar(shades, ax=panel, label=name)
    return figure


def _rows(panel: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel, the first at the top."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(False, axis="y")
