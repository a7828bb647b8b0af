"""What the panels of a report show: planes of the fixed grid, drawn in mm, and the images that they cut.

Arrays have the axes of the fixed grid. Grey values are scaled to [0, 1] as `register` scales them.
"""

from dataclasses import dataclass
from functools import cached_property

import nibabel
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from torch import Tensor

from deepsimreg.grid import positions
from deepsimreg.image import Image, unit_range
from deepsimreg.transform import Registration
from deepsimreg.warps import inside, sample_image, sample_labels

IMAGES = ("fixed", "moving, before", "moving, after")
CHECKERS = ("checkerboard, before", "checkerboard, after")
GRID = "grid x + u(x) on moving"
DIFFERENCES = ("moving − fixed, before", "moving − fixed, after")
JACOBIAN = "Jacobian determinant J"
PANELS = (*IMAGES, *CHECKERS, GRID, *DIFFERENCES, JACOBIAN)
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"  # Okabe & Ito (2008)
OUTLINES = {"fixed labels": (ORANGE, "solid"), "moving labels": (SKY, "dashed")}
SQUARES, LINES = (3, 7), (5, 12)  # of a checkerboard and of a grid, at least along the shorter and the longer side
USUAL = 0.99  # fraction of the voxels whose value the colours tell apart


@dataclass(frozen=True)
class View:
    """A plane of the fixed grid: the array axes that lie across and down the panel, and its index into an array."""

    across: int
    down: int
    index: tuple[int | slice, ...]
    fixed: Image

    @property
    def steps(self) -> np.ndarray:
        """mm of a voxel, across and down."""
        return np.array([self.fixed.spacing[axis] for axis in (self.across, self.down)])

    @property
    def size(self) -> np.ndarray:
        """mm, across and down."""
        return self.steps * [self.fixed.shape[axis] for axis in (self.across, self.down)]

    @property
    def place(self) -> str:
        """Where the slice lies; nothing in 2D."""
        cut = [axis for axis, at in enumerate(self.index) if isinstance(at, int)]
        return "".join(f"{self._axis(a)} = {self.index[a] * self.fixed.spacing[a]:.3g} {self.fixed.unit}" for a in cut)

    @property
    def names(self) -> tuple[str, str]:
        """Of the axes, with their unit and, where the image lies in the world, the side that they run to: R, A or S."""
        sides = nibabel.aff2axcodes(self.fixed.grid.affine) if self.fixed.grid.placed else (None,) * 3
        arrows = [
            f" → {side}" if (side := sides[self.fixed.grid.axes[axis]]) else "" for axis in (self.across, self.down)
        ]
        across, down = (self._axis(axis) for axis in (self.across, self.down))
        return f"{across}{arrows[0]} ({self.fixed.unit})", f"{down}{arrows[1]} ({self.fixed.unit})"

    def _axis(self, axis: int) -> str:
        if self.fixed.grid.placed:
            return "xyz"[self.fixed.grid.axes[axis]]
        return ("row", "column")[axis] if self.fixed.ndim == 2 else f"axis {axis}"

    @property
    def _frame(self) -> dict:
        """A grid with a place in the world has its first voxel below, an array above."""
        (left, low), (right, high) = -self.steps / 2, self.size - self.steps / 2
        below = self.fixed.grid.placed
        return {
            "extent": (left, right, *((low, high) if below else (high, low))),
            "origin": "lower" if below else "upper",
        }

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The plane of an array (*spatial), as it is drawn: (down, across)."""
        plane = array[self.index]
        return plane.T if self.across < self.down else plane

    def show(self, axes: Axes, plane: np.ndarray, **options) -> AxesImage:
        return axes.imshow(plane, **self._frame, **options)

    def outlines(self, axes: Axes, labels: np.ndarray, color: str, line: str) -> None:
        """The border of each label but 0 of a plane."""
        for label in np.unique(labels[labels > 0]):
            axes.contour(labels == label, levels=[0.5], colors=color, linestyles=line, linewidths=0.8, **self._frame)

    def grid(self, axes: Axes, displacement: np.ndarray) -> None:
        """A regular grid, each of its points x at x + u(x). displacement: (D, *spatial), voxels."""
        limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
        u = [self.cut(displacement[axis]) for axis in (self.across, self.down)]
        down, across = np.indices(u[0].shape)
        places = (across + u[0]) * self.steps[0], (down + u[1]) * self.steps[1]
        every = np.maximum(1, np.round(self._length(LINES) / self.steps)).astype(int)
        for axis, step in enumerate(every[::-1]):
            axes.plot(*(np.swapaxes(x, 0, axis)[step // 2 :: step].T for x in places), color=ORANGE, linewidth=0.7)
        axes.set(**limits)

    def _length(self, counts: tuple[int, int]) -> float:
        """mm of a part, if that many at least lie along the shorter and the longer side."""
        return min(np.sort(self.size) / counts)

    def checkers(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Two planes in turn, in squares of one size in mm."""
        side = max(self._length(SQUARES), 2 * self.steps.max())
        rows, columns = (np.arange(n) * step // side for n, step in zip(one.shape, self.steps[::-1], strict=True))
        return np.where((rows[:, None] + columns) % 2 == 0, one, other)


def views(registration: Registration) -> list[View]:
    """The plane, or slices through the median voxel of the fixed foreground: its labels, or what is above the mean."""
    fixed, labels = registration.fixed, registration.fixed_labels
    turn = 1 if fixed.grid.placed else -1
    if fixed.ndim == 2:
        return [View(*(0, 1)[::turn], (slice(None), slice(None)), fixed)]
    values, given = _first(fixed.data), None if labels is None else _first(labels.data) > 0
    inside = given if given is not None and given.any() else values > values.mean()
    middle = [int(at) for at in np.median(np.argwhere(inside), axis=0)]
    found = []
    for axis in (2, 1, 0):
        index = tuple(middle[other] if other == axis else slice(None) for other in range(3))
        found.append(View(*[other for other in range(3) if other != axis][::turn], index, fixed))
    return found


class Panels:
    """The panels of a registration of one pair; of its images the first channel."""

    def __init__(self, registration: Registration):
        self.registration = registration
        self.still = positions(registration.matrix, 0 * registration.displacement[:1])
        there = positions(registration.matrix, registration.displacement[:1])
        moving = unit_range(registration.moving)[:1, :1].to(there)
        pulled = [_first(sample_image(moving, place, 0.0)) for place in (self.still, there)]
        shown = [_first(inside(place, registration.moving.shape)) > 0 for place in (self.still, there)]
        self.images = dict(zip(IMAGES, [_first(unit_range(registration.fixed)), *pulled], strict=True))
        pair = np.stack([self.images["fixed"], self.images["moving, before"]])
        self.window = tuple(float(end) for end in np.quantile(pair, (1 - USUAL, USUAL)))
        self.differences = {  # 0 where the moving image shows nothing
            name: np.where(seen, image - self.images["fixed"], 0)
            for name, image, seen in zip(DIFFERENCES, pulled, shown, strict=True)
        }
        self.limit = max(float(np.quantile(np.abs(each), USUAL)) for each in self.differences.values()) or 1.0
        self.displacement = registration.displacement[0].detach().cpu().numpy()
        self.jacobian = registration.jacobian[0].detach().cpu().numpy()

    @cached_property
    def spread(self) -> float:
        """J of the strongest colours: this, and its inverse."""
        logs = np.abs(np.log(self.jacobian[self.jacobian > 0]))
        return float(np.exp(np.clip(np.quantile(logs, USUAL) if logs.size else 0, np.log(1.1), np.log(4))))

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Outlines of each image panel: fixed labels in all, moving ones where they lie before and after."""
        registration = self.registration
        if registration.moving_labels is None or registration.fixed_labels is None:
            return {}
        before = sample_labels(registration.moving_labels.data[:1].to(self.still.device), self.still)
        fixed, after = _first(registration.fixed_labels.data), _first(registration.moved_labels)
        return dict(zip(IMAGES, [[fixed], [fixed, _first(before)], [fixed, after]], strict=True))

    def draw(self, axes: Axes, name: str, view: View) -> AxesImage:
        """One of `PANELS`."""
        cut = {one: view.cut(image) for one, image in self.images.items()}
        grey = {"cmap": "gray", "vmin": self.window[0], "vmax": self.window[1]}
        if name in IMAGES:
            shown = view.show(axes, cut[name], **grey)
            for labels, (color, line) in zip(self.labels.get(name, ()), OUTLINES.values(), strict=False):
                view.outlines(axes, view.cut(labels), color, line)
            return shown
        if name in CHECKERS:
            return view.show(axes, view.checkers(cut["fixed"], cut[IMAGES[1 + CHECKERS.index(name)]]), **grey)
        if name in DIFFERENCES:
            return view.show(axes, view.cut(self.differences[name]), cmap="PuOr", vmin=-self.limit, vmax=self.limit)
        if name == GRID:
            shown = view.show(axes, cut["moving, before"], **grey)
            view.grid(axes, self.displacement)
            return shown
        colors = colormaps["RdBu_r"].with_extremes(bad=YELLOW)
        unfolded = np.ma.masked_less_equal(view.cut(self.jacobian), 0)
        return view.show(axes, unfolded, cmap=colors, norm=LogNorm(1 / self.spread, self.spread))


def _first(data: Tensor) -> np.ndarray:
    return data[0, 0].detach().cpu().float().numpy()
