"""The page of a report: its panels, the loss by level and a table, laid out in inches."""

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from deepsimreg.report.views import DIFFERENCES, JACOBIAN, OUTLINES, PANELS, Panels, View, views
from deepsimreg.transform import Registration

STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.edgecolor": "0.5",
    "axes.linewidth": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
LEFT, TOP, GAP, ROW_GAP, LINE = 0.75, 0.85, 0.15, 0.55, 0.21  # inches
LEVELS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe & Ito (2008)


def draw(registration: Registration, title: str, numbers: Mapping[str, str]) -> Figure:
    """The page of the first channel: rows of three panels in 2D, one row a slice in 3D. numbers: its table.

    One scale, in inches per mm, holds for all panels.
    """
    planes = views(registration)
    flat = len(planes) == 1
    columns, side, rows, parts = (3, 3.2, planes * 3, 1) if flat else (9, 1.7, planes, 2)
    scale = side / max(plane.size.max() for plane in planes)
    width = max(0.88 * side, *(plane.size[0] * scale for plane in planes))  # at least that of a title
    heights = [plane.size[1] * scale for plane in rows]
    lefts = LEFT + (width + GAP) * np.arange(columns)
    tops = TOP + np.cumsum([0, *heights[:-1]]) + ROW_GAP * np.arange(len(rows))
    right, bars = lefts[-1] + width, tops[-1] + heights[-1] + 0.48
    below, middle, lines = bars + 1.0, 0.34 * right, LINE * -(-len(numbers) // parts)
    size = (right + 0.3, below + max(lines, 2.5) + 0.15)
    with rc_context(STYLE):
        figure, panels = Figure(figsize=size), Panels(registration)
        points = min(12, 72 * (size[0] - LEFT - 2.8) / (0.65 * len(title)))  # a letter is about .65 of them wide
        figure.text(LEFT / size[0], 1 - 0.3 / size[1], title, size=points, weight="bold", va="center")
        for k, name in enumerate(PANELS):
            cells = [(k // 3, k % 3, planes[0])] if flat else [(row, k, plane) for row, plane in enumerate(planes)]
            for row, column, plane in cells:
                axes = _axes(figure, lefts[column], tops[row], plane.size[0] * scale, heights[row])
                shown = panels.draw(axes, name, plane)
                axes.set_title(name if flat or row == 0 else "", pad=4)
                _label(axes, plane, column == 0, column == 0 and not (flat and row < 2))
            if name in (DIFFERENCES[1], JACOBIAN):
                span = 1 if name == JACOBIAN else 2
                left = lefts[column - span + 1]
                _bar(_axes(figure, left, bars, span * (width + GAP) - GAP, 0.1), shown, name)
        if panels.labels:
            _legend(figure, 1 - 0.3 / size[0], 1 - 0.3 / size[1])
        _loss(_axes(figure, LEFT, below, middle, 2.0), registration)
        _table(_axes(figure, middle + 1.4, below, right - middle - 1.4, lines), numbers, parts)
    return figure


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Inches from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _label(axes: Axes, plane: View, left: bool, below: bool) -> None:
    """Names and mm of the axes, where they are wanted; in the first column also where a slice lies."""
    axes.locator_params(nbins=4)
    axes.tick_params(labelleft=left, labelbottom=below)
    axes.set(xlabel=plane.names[0] if below else "", ylabel=plane.names[1] if left else "")
    if left and plane.place:
        box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "edgecolor": "none"}
        axes.text(0.03, 0.96, plane.place, transform=axes.transAxes, color="white", va="top", size=7, bbox=box)


def _bar(axes: Axes, shown: AxesImage, name: str) -> None:
    label = "difference of grey values" if name != JACOBIAN else "J; yellow: folds (J ≤ 0)"
    bar = axes.figure.colorbar(shown, cax=axes, orientation="horizontal", extend="both", label=label)
    if name == JACOBIAN:
        ticks = shown.norm.vmin, 1, shown.norm.vmax
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
        bar.minorticks_off()


def _legend(figure: Figure, right: float, middle: float) -> None:
    lines = [Line2D([], [], color=color, linestyle=line, label=name) for name, (color, line) in OUTLINES.items()]
    figure.legend(handles=lines, loc="center right", bbox_to_anchor=(right, middle), ncols=2, borderaxespad=0)


def _loss(axes: Axes, registration: Registration) -> None:
    """The loss before every step; levels compare at other resolutions, so each has its own line."""
    losses, steps = registration.losses, registration.steps or (len(registration.losses),)
    axes.set(title="loss by level", xlabel="step", ylabel="similarity + λ · regulariser")
    axes.spines[["top", "right"]].set_visible(False)
    if not losses:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no step was optimised", ha="center", transform=axes.transAxes)
        return
    for level, (end, count) in enumerate(zip(np.cumsum(steps), steps, strict=True)):
        color, label = LEVELS[level % len(LEVELS)], f"level {level + 1}" if len(steps) > 1 else None
        axes.plot(range(end - count + 1, end + 1), losses[end - count : end], color=color, label=label)
    if len(steps) > 1:
        axes.legend()


def _table(axes: Axes, numbers: Mapping[str, str], columns: int) -> None:
    rows = -(-len(numbers) // columns)
    axes.set_axis_off()
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    for k, (name, value) in enumerate(numbers.items()):
        column, row = divmod(k, rows)
        axes.text(column, row + 0.5, name, va="center")
        axes.text(column + 0.94, row + 0.5, value, va="center", ha="right")
        axes.plot([column, column + 0.94], [row + 1] * 2, color="0.85", linewidth=0.5, clip_on=False)
