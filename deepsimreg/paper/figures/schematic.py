"""How the parts of the method hang together, drawn from boxes and arrows."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from deepsimreg.paper.figures import style

LEARNS, FROZEN, GIVEN = "#CDE4F3", "#E3E3E3", "#FFFFFF"  # what a box is: trained here, trained before, no weights


@style.styled
def training_schematic(channels: Sequence[int] = (16, 32, 64), width: float = style.PAGE) -> Figure:
    """One step of training with DeepSim: from the two images to the loss, and which part learns.

    channels: of the extractor's levels.
    """
    figure, panel = style.picture(width, 2.9)
    panel.set(xlim=(-1, 100), ylim=(0, 44), xticks=[], yticks=[])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    for y, name in ((31, "moving $M$"), (7, "fixed $F$")):
        _box(panel, 0, y, 11, 7, name, GIVEN)
    _box(panel, 17, 17, 16, 9, "registration\nnetwork", LEARNS)
    _box(panel, 38, 18, 12, 7, "warp $u$", GIVEN)
    _box(panel, 38, 31, 15, 7, "moved $M\\circ\\Phi$", GIVEN)
    for y in (29, 5):
        _encoder(panel, 59, y, channels)
    _box(panel, 84, 17, 15, 9, "$D = 1 -$ mean\ncosine", GIVEN)
    _box(panel, 59, 17.5, 14, 7.5, "$R$: smooth?", GIVEN)
    for start, end in (
        ((11, 34.5), (38, 34.5)),
        ((6, 31), (17, 24)),
        ((6, 14), (17, 19)),
        ((33, 21.5), (38, 21.5)),
        ((44, 25), (44, 31)),
        ((53, 34.5), (59, 34.5)),
        ((11, 10.5), (59, 10.5)),
        ((50, 21.5), (59, 21.5)),
        ((76, 34.5), (90, 26)),
        ((76, 10.5), (90, 17)),
    ):
        arrow = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1, "color": "0.25"}
        panel.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **arrow))
    panel.text(67, 41.5, "extractor, at three resolutions", ha="center", va="bottom", size=8, color="0.35")
    panel.text(0, 0.5, "blue: learns from the loss $D + \\lambda R$; grey: was trained before, stays as it is", size=8)
    return figure


def _box(panel: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=1", facecolor=color, linewidth=0.8
    )
    panel.add_patch(shape)
    panel.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=8)


def _encoder(panel: Axes, x: float, y: float, channels: Sequence[int]) -> None:
    """A bar for each level: half as high as the one before, wider with more channels."""
    for level, count in enumerate(channels):
        height, wide = 11 / 1.45**level, 3 + 1.2 * level
        panel.add_patch(
            Rectangle((x, y + (11 - height) / 2), wide, height, facecolor=FROZEN, edgecolor="0.3", linewidth=0.8)
        )
        panel.text(x + wide / 2, y + 5.5, f"{count}", ha="center", va="center", size=8)
        x += wide + 1.6
