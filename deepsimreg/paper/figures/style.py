"""How figures look: names and colours of methods, text sizes, and how a figure is saved with its origin.

Colours are Okabe & Ito's (2008), told apart by colour-blind readers; a method has one colour in every figure.
"""

import base64
import inspect
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepsimreg.files import whole
from deepsimreg.losses.registry import SIMILARITIES
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.files import write_json

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
UNREGISTERED = "unregistered"
IDLE = 0.005  # of foreground Dice: what gains less over the pairs before registration has not registered them
METHODS = {
    UNREGISTERED: ("Unregistered", "#7F7F7F"),
    **{name: (one.label, one.color) for name, one in {**SIMILARITIES, **BASELINES}.items()},
}
ENGINES = {"syn": ("^", (0, (4, 1.5))), "greedy": ("s", (0, (1, 1)))}  # marker and line of methods without training
OTHER_COLORS = (*(OKABE_ITO[name] for name in ("blue", "reddish purple", "black")), "#A68A00")  # dark enough for lines
LEADING = ("greedy", "ncc-25", "mind", "deepsim-ae", "deepsim-seg", "ncc-seg")  # where all would be too many
FAMILIES = {  # how methods come by what they compare → colour
    "grey values": "#0072B2",
    "features": "#D55E00",
    "class maps": "#009E73",
    "networks": "#CC79A7",
    "controls": "#6F6F6F",
}
MARKERS = "oDvPX*<>pd"
AXIS_NAMES = {
    "step": "Training step",
    "loss": "Loss",
    "dice": "Mean Dice",
    "dice_foreground": "Foreground Dice",
    "hd95": "HD95 (mm or px)",
    "folds": "Fraction of folded voxels",
    "sd_log_jacobian": "SD of log J",
    "jacobian_variance_published": "σ²(log|J|) as published",
    "target_registration_error": "Registration error (mm or px)",
    "lam": "Weight λ of the regulariser",
    "inverse_consistency_error": "Inverse consistency error (mm or px)",
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
    """A figure that a notebook shows when it ends a cell, under any backend; pyplot holds no reference to it.

    Its label, the first paragraph of what drew it, stands for it where it cannot be seen.
    """

    def _repr_mimebundle_(self, **_) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, pil_kwargs={"optimize": True}, metadata={"Software": None})
        content = base64.b64encode(buffer.getvalue()).decode("ascii")
        return {"image/png": content}, {"image/png": {"alt": self.get_label()}}


def picture(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Picture, Any]:
    """A figure of that size in inches, and its axes as `Figure.subplots` gives them."""
    figure = Picture(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under `STYLE`, and leave matplotlib's own settings as they were."""

    @wraps(draw)
    def wrapper(*arguments, **options) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*arguments, **options)
            figure.draw_without_rendering()
        figure.set_label(" ".join(inspect.getdoc(draw).split("\n\n")[0].split()))
        return figure

    return wrapper


def method_name(method: str) -> str:
    """The name that a figure shows for a method; in one without a record, those of the records that it names."""
    known = "|".join(map(re.escape, sorted(METHODS, key=len, reverse=True)))
    name = re.sub(rf"(?<![\w-])({known})(?![\w-])", lambda found: METHODS[found[1]][0], str(method))
    return name.replace("ae features", "AE features")


def variant_name(variant: str, group: str, base: str) -> str:
    """The row of a variant in words: "DeepSim (seg), levels: 1 and 2"; of the method that it starts from, its name."""
    if variant == base:
        return method_name(base)
    kind, _, rest = variant.partition("-")
    rest = rest or kind
    if rest.startswith("level"):
        rest = " and ".join(rest.rpartition("-")[2])
    elif rest.startswith("labels-"):
        rest = f"{rest.rpartition('-')[2]} %"
    return f"{method_name(base)}, {group}: {rest.replace('-', ' ')}"


def signed(value: float) -> str:
    """A change to three decimals; none has no sign."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "0.000"


def narrow(name: str) -> str:
    """A name in two lines, where it has two parts, for the title of a narrow panel."""
    return name.replace(" + ", "\n+ ").replace(" features (", " features\n(")


def method_colors(methods: Iterable[str]) -> dict[str, str]:
    """Colour of each method: its own, or, for others in their order, the next of `OTHER_COLORS`."""
    spare = cycle(OTHER_COLORS)
    return {method: METHODS[method][1] if method in METHODS else next(spare) for method in dict.fromkeys(methods)}


def looks(methods: Iterable[str], **more) -> dict[str, dict]:
    """Method → how its curve is drawn: colour, label, one of `MARKERS` or the marker and line of its engine.

    more: what else holds for all of them, or instead.
    """
    found = {}
    for (name, color), spare in zip(method_colors(methods).items(), cycle(MARKERS), strict=False):
        marker, line = ENGINES.get(str(name).split("-")[0], (spare, "-"))
        found[name] = {"marker": marker, "linestyle": line, "color": color, "label": method_name(name)} | more
    return found


def grid_means(table: pd.DataFrame, keys: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Means of the metrics, one row per key; column `chosen`: is this row the choice? False if the table has none."""
    chosen = table["chosen"].eq(True) if "chosen" in table else False
    how = dict.fromkeys(metrics, "mean") | {"chosen": "max"}
    return table.assign(chosen=chosen).groupby(list(keys), sort=False, dropna=False).agg(how).reset_index()


def leading(methods: Iterable[str]) -> list[str]:
    """Those of `LEADING` that are among the methods; the first five of these where fewer than two are."""
    given = list(dict.fromkeys(methods))
    found = [name for name in LEADING if name in given]
    return found if len(found) > 1 else given[:5]


def named_at_the_right(panel: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names beside a panel, each at the height of its point and in its colour, moved apart where they would touch.

    ends: name → (x, y, colour), data coordinates. Call it when the limits are final.
    """
    low, high = panel.get_ylim()
    inches = panel.figure.get_figheight() * 0.75  # of the panel, roughly; the layout is not known yet
    step = (high - low) * 0.135 / inches
    order = sorted(ends.items(), key=lambda item: item[1][1])
    heights: list[float] = []
    for _, (_, y, _) in order:
        heights.append(max(y, heights[-1] + step) if heights else y)
    excess = max(0.0, heights[-1] - high) if heights else 0.0
    for index in reversed(range(len(heights))):  # what would stick out above pushes the others down
        most = high if index == len(heights) - 1 else heights[index + 1] - step
        heights[index] = min(heights[index], most) if excess else heights[index]
    for (name, (x, y, color)), height in zip(order, heights, strict=True):
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        where = {
            "xycoords": "data",
            "textcoords": panel.get_yaxis_transform(),
            "va": "center",
            "annotation_clip": False,
        }
        panel.annotate(name, (x, y), (1.03, height), color=color, arrowprops=line, fontsize=8, **where)


def ring(panel: Axes, points: pd.DataFrame, x: str, y: str, color: str) -> None:
    """A ring around the chosen row of `grid_means`; around the largest y if no row is chosen."""
    best = points.loc[points["chosen"].idxmax() if points["chosen"].any() else points[y].idxmax()]
    panel.plot(best[x], best[y], "o", markersize=10, markerfacecolor="none", color=color)


def save_figure(figure: Figure, stem: Path | str, caption: str, source_run: str | Sequence[str]) -> list[Path]:
    """Write `<stem>.pdf`, `<stem>.png` (150 dpi) and `<stem>.json` (caption and the runs it was drawn from).

    Each file appears whole or not at all; a figure drawn again from the same numbers gives the same files.
    """
    stem = Path(stem)
    pdf, png, record = (stem.with_name(stem.name + suffix) for suffix in (".pdf", ".png", ".json"))
    with mpl.rc_context({"pdf.fonttype": 42}), whole(pdf) as partial:
        figure.savefig(partial, metadata={"CreationDate": None})
    with whole(png) as partial:
        figure.savefig(partial, dpi=150, metadata={"Software": None})
    runs = [source_run] if isinstance(source_run, str) else list(source_run)
    write_json(record, {"caption": caption, "source_runs": runs})
    return [pdf, png, record]


def legend_below(figure: Figure, source: Axes | Sequence[Artist], columns: int = 5) -> None:
    """The legend of a panel, or of artists, below the figure, in as many columns as it is wide enough for."""
    handles = source.get_legend_handles_labels()[0] if isinstance(source, Axes) else source
    for count in range(max(1, min(columns, len(handles))), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=count, columnspacing=1.2)
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def fixed_ticks(panel: Axes, ticks: Iterable[float], form: str) -> None:
    """These ticks of the (logarithmic) x axis and no others, written as `form` says."""
    panel.minorticks_off()
    panel.set_xticks(ticks, [form.format(tick) for tick in ticks])


def axis_labels(panel: Axes, x: str, y: str) -> None:
    panel.set_xlabel(AXIS_NAMES.get(x, x))
    panel.set_ylabel(AXIS_NAMES.get(y, y))
