"""Figures that compare methods: overlap, smoothness, time, variants, classes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepsimreg.paper.figures import style
from deepsimreg.paper.statistics import coupled_interval


@style.styled
def dice_boxplot(
    pairs: pd.DataFrame,
    metric: str = "dice_foreground",
    order: Sequence[str] | None = None,
    width: float = style.COLUMN,
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
    table: pd.DataFrame,
    x: str = "sd_log_jacobian",
    y: str = "dice_foreground",
    ringed: bool = False,
    width: float = style.COLUMN,
) -> Figure:
    """One point per method; with a column `lam`, one per method and λ, joined by a line along λ.

    table: rows with the columns `method`, x and y; means are drawn. ringed: mark the λ of each method that its column
    `chosen` names, else the best. At one x, the upper line is the better method.
    """
    keys = [key for key in ("method", "lam") if key in table]
    means = style.grid_means(table, keys, [x, y]).dropna(subset=[x, y])
    names = means["method"].unique()
    figure, panel = style.picture(width, max(3.0, 0.8 + 0.16 * len(names)))
    edge, ends = {"markeredgecolor": "white", "markeredgewidth": 0.5, "markersize": 6, "linewidth": 1}, {}
    for method, look in style.looks(names, **edge).items():
        points = means[means["method"] == method].sort_values(keys)
        panel.plot(points[x], points[y], **look | ({} if len(points) > 1 else {"linestyle": "none"}))
        last = points.loc[points[x].idxmax()]
        ends[look["label"]] = (last[x], last[y], look["color"])
        if ringed:
            style.ring(panel, points, x, y, look["color"])
    style.axis_labels(panel, x, y)
    panel.margins(0.06)
    style.named_at_the_right(panel, ends)
    return figure


@style.styled
def methods_overview(
    summary: pd.DataFrame, families: Mapping[str, str], before: float | None = None, width: float = style.PAGE
) -> Figure:
    """Mean foreground Dice with its interval, roughness and seconds of each method: a row each, grouped by family.

    summary: one row per method, columns `method`, `dice_foreground`, `dice_foreground_low`, `dice_foreground_high`,
    `sd_log_jacobian`, `seconds`; what a method does not have is left out. Dice of a method whose `labels` are given "at
    test" is an arrow with its number where it lies beyond all others. families: method → one of `style.FAMILIES`.
    before: the Dice before registration, a dotted line.
    """
    told = summary["labels"].fillna("").str.contains("at test") if "labels" in summary else False
    rows = summary.assign(family=summary["method"].map(families), told=told)
    most = rows.loc[~rows["told"], "dice_foreground_high"].max() + 0.005
    order = [rows[rows["family"] == family] for family in style.FAMILIES]
    figure, axes = style.picture(
        width,
        0.7 + 0.158 * (len(rows) + 1.3 * sum(map(bool, map(len, order)))),
        1,
        3,
        sharey=True,
        width_ratios=[2, 1, 1],
    )
    place, ticks, names = 0.0, [], []
    for family, members in zip(style.FAMILIES, order, strict=True):
        if not len(members):
            continue
        axes[0].text(0.01, place, family, transform=axes[0].get_yaxis_transform(), va="center", weight="bold", size=8)
        for row in members.sort_values("dice_foreground", ascending=False).itertuples():
            place += 1
            _method_row(axes, place, row, style.FAMILIES[family], most)
            ticks.append(place)
            names.append(style.method_name(row.method))
        place += 1.3
    axes[0].set_yticks(ticks, names)
    axes[0].set_ylim(place - 0.7, -0.7)
    for panel, metric in zip(axes, ("dice_foreground", "sd_log_jacobian", "seconds"), strict=True):
        panel.set_xlabel(style.AXIS_NAMES[metric])
        panel.tick_params(axis="y", length=0)
        panel.grid(True, axis="y", linewidth=0.4)
    axes[2].set_xscale("log")
    low, high = axes[2].get_xlim()
    style.fixed_ticks(axes[2], [tick for tick in (0.01, 0.1, 1, 10, 100) if low <= tick <= high], "{:g}")
    if before is not None:
        axes[0].axvline(before, color="0.4", linewidth=0.8, linestyle=":")
        above = axes[0].get_xaxis_transform()
        axes[0].text(before, 1.005, "before registration", transform=above, size=7, color="0.3", ha="left")
    return figure


def _method_row(axes: Sequence[Axes], place: float, row, color: str, most: float) -> None:
    marker = style.ENGINES.get(row.method.split(" ")[0], ("o",))[0]
    dot = {"color": color, "marker": marker, "markersize": 4.5, "linestyle": "none"}
    if row.told and row.dice_foreground > most:
        axes[0].plot(most, place, **dot | {"marker": ">"})
        axes[0].text(most, place, f"{row.dice_foreground:.3f}   ", va="center", ha="right", size=7, color=color)
    else:
        axes[0].plot([row.dice_foreground_low, row.dice_foreground_high], [place, place], color=color, linewidth=1)
        axes[0].plot(row.dice_foreground, place, **dot)
    axes[1].plot(row.sd_log_jacobian, place, **dot)
    axes[2].plot(row.seconds if row.seconds > 0 else np.nan, place, **dot)


@style.styled
def methods_traces(traces: pd.DataFrame, width: float = style.PAGE) -> Figure:
    """Foreground Dice and SD log J of a few methods while they are at work, against their steps and against seconds.

    traces: one row per method, pair and snapshot: `method`, `step`, `seconds` and the metrics; pairs are averaged.
    """
    metrics = {name: style.AXIS_NAMES[name] for name in ("dice_foreground", "sd_log_jacobian")}
    methods = style.looks(style.leading(traces["method"]), markersize=4)
    figure, axes = style.picture(width, 4.6, 2, 2, sharex="col", sharey="row")
    for method, rows in traces.groupby("method", sort=False):
        if method in methods:
            # A pair that has ended stays where it ended.
            wide = rows.pivot_table(index="step", columns="pair", values=["seconds", *metrics]).sort_index().ffill()
            means = wide.T.groupby(level=0).mean().T.reset_index()
            means["seconds"] = means["seconds"].where(means["seconds"] > 0)  # the start has no place on a log axis
            for row, metric in zip(axes, metrics, strict=True):
                for panel, x in zip(row, ("step", "seconds"), strict=True):
                    panel.plot(means[x], means[metric], **methods[method])
    axes[0, 1].set_xscale("log")
    for panel, x in zip(axes[1], ("Steps", style.AXIS_NAMES["seconds"]), strict=True):
        panel.set_xlabel(x)
    for panel, name in zip(axes[:, 0], metrics.values(), strict=True):
        panel.set_ylabel(name)
    style.legend_below(figure, axes[0, 0], columns=6)
    return figure


@style.styled
def ablation_dots(
    pairs: pd.DataFrame, before: float | None = None, below: float = 0.05, width: float = style.PAGE
) -> Figure:
    """Mean foreground Dice (with its 95 % bootstrap interval) and SD log J of each variant; a dashed line marks the
    method that it starts from, a dotted one the pairs before registration; what has not left them is hollow.

    pairs: one row per variant and pair, columns `method` (the variant), `group`, `base`, `pair`, `dice_foreground`,
    `sd_log_jacobian`; a method that variants start from has an empty group. before: foreground Dice. below: what lies
    further than this below its base is an arrow with its number, so that it does not squash the rest.
    """
    order = pairs.drop_duplicates("method").sort_values(["base", "group"], key=lambda c: c.fillna(""), kind="stable")
    variants = list(order[["method", "group", "base"]].itertuples(index=False))
    metrics = ["dice_foreground", "sd_log_jacobian"]
    means = pairs.groupby(["method", "pair"])[metrics].mean()
    colors = style.method_colors(order["base"])
    bases = {one.base: means.loc[one.base][metrics].mean() for one in variants if one.method == one.base}
    floor = min(base["dice_foreground"] for base in bases.values()) - below
    figure, axes = style.picture(width, 0.8 + 0.2 * len(variants), 1, 2, sharey=True, width_ratios=[1.6, 1])
    for panel, metric in zip(axes, metrics, strict=True):
        for base, values in bases.items():
            panel.axvline(values[metric], color=colors[base], linewidth=0.8, linestyle=style.DASHED)
        if before is not None and metric == "dice_foreground":
            panel.axvline(before, color="0.4", linewidth=0.8, linestyle=":")
        for row, (method, _, base) in enumerate(variants):
            values, dot = means.loc[method][metric], "D" if method == base else "o"
            idle = before is not None and means.loc[method]["dice_foreground"].mean() < before + style.IDLE
            if metric == "dice_foreground" and values.mean() < floor:
                panel.plot(floor, row, "<", color=colors[base], markersize=5)
                panel.text(floor, row, f"   {values.mean():.3f}", va="center", size=7, color=colors[base])
                continue
            interval = coupled_interval(values.reset_index(), metric, resamples=2000)
            panel.plot(interval, [row, row], color=colors[base], linewidth=1.2)
            face = "white" if idle else colors[base]
            panel.plot(values.mean(), row, dot, color=colors[base], markerfacecolor=face, markersize=5)
        panel.set_xlabel(style.AXIS_NAMES[metric])
        panel.grid(False, axis="y")
    _rows(axes[0], [style.variant_name(*one) for one in variants])
    return figure


@style.styled
def dice_per_class(pairs: pd.DataFrame, classes: Sequence[str], width: float = style.PAGE) -> Figure:
    """Mean Dice of some classes under each method, as a table of shades with its numbers.

    pairs: one row per method and pair, with columns `dice_<class>`.
    """
    means = pairs.groupby("method", sort=False)[[f"dice_{name}" for name in classes]].mean()
    return _shaded(means.set_axis(classes, axis=1).T, style.AXIS_NAMES["dice"], width)


@style.styled
def contrast(
    table: pd.DataFrame, before: float | None = None, metric: str = "dice_foreground", width: float = style.PAGE
) -> Figure:
    """Mean of a metric of each method, and how much each change of the moving image changes it: numbers, and shades up
    to a tenth; a dagger marks what no longer registers the pairs.

    table: one row per method, `contrast` ("none" for the images as they are) and pair. before: the metric of the pairs
    before registration.
    """
    means = table.pivot_table(index="contrast", columns="method", values=metric, sort=False)
    changes = means - means.loc["none"]
    texts = changes.map(style.signed)
    texts.loc["none"] = means.loc["none"].map("{:.3f}".format)
    if before is not None:
        texts = texts.where(means >= before + style.IDLE, texts + " †")
    name = f"{style.AXIS_NAMES[metric]}, change"
    return _shaded(changes, name, width, texts, cmap="RdBu", vmin=-0.1, vmax=0.1)


def _shaded(values: pd.DataFrame, name: str, width: float, texts: pd.DataFrame | None = None, **shade) -> Figure:
    """Rows of things, columns of methods; texts: what is written, if not the values."""
    texts = (
        values.map(lambda value: f"{value:.2f}".lstrip("0") if np.isfinite(value) else "–") if texts is None else texts
    )
    figure, panel = style.picture(width, max(2.9, 1.3 + 0.24 * len(values)))  # the colour bar's name needs that
    shades = panel.imshow(values.to_numpy(), aspect="auto", **{"cmap": "viridis", **shade})
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        dark = sum(shades.to_rgba(value)[:3]) < 1.5
        shown = texts.iat[row, column]
        panel.text(column, row, shown, ha="center", va="center", color="white" if dark else "black", size=8)
    names = [style.method_name(method) for method in values.columns]
    panel.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(values)), values.index)
    panel.grid(False)
    figure.colorbar(shades, ax=panel, label=name, extend="both" if "vmin" in shade else "neither")
    return figure


def _rows(panel: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel, the first at the top."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(False, axis="y")
