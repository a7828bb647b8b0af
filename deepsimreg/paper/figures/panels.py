"""What the image figures are drawn from: slices of volumes, grey panels, contours, grids, Jacobians.

Grey and label images come with any number of leading axes of length one: a sample (1, *spatial), a batch of one and a
slice (H, W) are all taken; of a volume the middle slice is drawn, or slice `index` along `axis`. A displacement is
(D, *spatial) or (1, D, *spatial), voxels, components in array axis order, and pulls: moved(x) = moving(x + u(x)); its
grid is drawn at x + u(x), which are places in the moving image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy.ndimage import uniform_filter

from deepsimreg.paper.figures.style import DASHED, OKABE_ITO, legend_below, picture
from deepsimreg.warps import jacobian_determinant


def array_of(values) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def field_of(displacement) -> np.ndarray:
    array = array_of(displacement)
    array = array[0] if array.ndim in (4, 5) and len(array) == 1 else array
    if len(array) != array.ndim - 1 or array.ndim not in (3, 4):
        raise ValueError(f"displacement of shape {array.shape}; give one, (D, *spatial) with D = 2 or 3")
    return array


def sliced(array: np.ndarray, axis: int, index: int | None) -> np.ndarray:
    """Slice `index` along an axis, the middle one if it is not given."""
    return array.take(array.shape[axis] // 2 if index is None else index, axis=axis)


def middle_slice(image, axis: int = 0, index: int | None = None) -> np.ndarray:
    """One grey or label image as (H, W): itself in 2D, slice `index` (the middle) along `axis` in 3D."""
    array = array_of(image)
    while array.ndim > 2 and len(array) == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ValueError(f"image of shape {np.shape(image)}; give one image, (H, W) or (D, H, W), not a batch")
    return array if array.ndim == 2 else sliced(array, axis, index)


def middle_displacement(displacement, axis: int = 0, index: int | None = None) -> np.ndarray:
    """The in-plane components of a displacement on the slice `middle_slice` takes: (2, H, W), voxels."""
    array = field_of(displacement)
    if len(array) == 2:
        return array
    return sliced(np.delete(array, axis, axis=0), 1 + axis % 3, index)


def middle_jacobian(displacement, axis: int = 0, index: int | None = None) -> np.ndarray:
    """The (whole, not in-plane) Jacobian determinant on that slice: (H, W)."""
    return middle_slice(jacobian_determinant(torch.from_numpy(field_of(displacement))[None]), axis, index)


def principal_colors(features: np.ndarray) -> np.ndarray:
    """Features (C, *spatial) as colours (H, W, 3) of the middle slice: their first three principal components, each
    from its 2nd to its 98th percentile.
    """
    vectors = features.reshape(len(features), -1).T
    centred = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])  # the same colours on every machine
    scores = (centred @ (axes * signs[:, None])[:3].T).T.reshape(-1, *features.shape[1:])
    planes = np.stack([middle_slice(one) for one in scores], axis=-1)
    low, high = np.percentile(planes, [2, 98], axis=(0, 1))
    planes = np.clip((planes - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.pad(planes, ((0, 0), (0, 0), (0, 3 - planes.shape[-1])), constant_values=0.5)


def image_axes(rows: int, columns: int, shape: tuple[int, int], width: float, extra: float):
    """Axes for images of `shape` that fill the width; extra: height for titles, bars and a legend, inches."""
    panel = (width - 0.25) / columns
    height = rows * (min(panel * shape[0] / shape[1], 2.6) + 0.05) + extra
    figure, axes = picture(width, height, rows, columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return figure, axes


def window(panel: Axes, rows: slice, columns: slice) -> None:
    """Show these rows and columns of the image, whole pixels."""
    panel.set_xlim(columns.start - 0.5, columns.stop - 0.5)
    panel.set_ylim(rows.stop - 0.5, rows.start - 0.5)


def most_different(first: np.ndarray, second: np.ndarray) -> tuple[slice, slice]:
    """The third of the rows and of the columns where two label images differ in most pixels."""
    sizes = [-(-size // 3) for size in first.shape]
    counts = uniform_filter((first != second).astype(float), sizes, mode="constant")
    inside = tuple(
        slice(size // 2, size // 2 + whole - size + 1) for size, whole in zip(sizes, first.shape, strict=True)
    )
    starts = np.unravel_index(counts[inside].argmax(), counts[inside].shape)
    return tuple(slice(int(start), int(start) + size) for start, size in zip(starts, sizes, strict=True))


def bare(panel: Axes, title: str = "") -> None:
    panel.set(xticks=[], yticks=[])
    panel.grid(False)
    panel.spines[:].set_visible(False)
    if title:
        panel.set_title(title, pad=3)


def show(
    panel: Axes, image, title: str = "", solid=None, dashed=None, u=None, colors=(), step: int | None = None, **view
) -> None:
    """A grey image with the contours of up to two label images and the grid of a displacement u (None for none).

    colors: of the classes. step: between the lines of the grid, voxels. view: `axis` and `index` of the slice.
    """
    plane = middle_slice(image, **view)
    panel.imshow(plane, cmap="gray", vmin=min(0.0, float(plane.min())), vmax=max(1.0, float(plane.max())))
    bare(panel, title)
    for label, style in ((solid, "solid"), (dashed, DASHED)):
        if label is not None:
            contours(panel, middle_slice(label, **view), colors, style)
    if u is not None:
        grid(panel, middle_displacement(u, **view), step)


def contours(panel: Axes, label: np.ndarray, colors: Sequence[str], style="solid") -> None:
    """The outline of every foreground class in its colour; the labels are padded so that it closes at the edge."""
    palette = list(colors) or [None, *OKABE_ITO.values()]
    for k in np.unique(label[label > 0]):
        mask = np.pad(label == k, 1).astype(float)
        rows, columns = (np.arange(-1, size + 1) for size in label.shape)
        color = palette[k % len(palette)]
        panel.contour(columns, rows, mask, levels=[0.5], colors=[color], linewidths=1, linestyles=[style])
    window(panel, *(slice(0, size) for size in label.shape))


def grid(panel: Axes, displacement: np.ndarray, step: int | None) -> None:
    """Lines of the regular grid, each point x drawn at x + u(x). displacement: (2, H, W), voxels."""
    height, width = displacement.shape[1:]
    step = step or max(1, round(max(height, width) / 20))
    rows, columns = np.mgrid[:height, :width] + displacement
    yellow = {"color": OKABE_ITO["yellow"], "linewidth": 0.7}
    panel.plot(columns[::step].T, rows[::step].T, **yellow)
    panel.plot(columns[:, ::step], rows[:, ::step], **yellow)
    window(panel, slice(0, height), slice(0, width))


def jacobian(figure: Figure, panel: Axes, jacobian: np.ndarray, ranged: np.ndarray | None = None) -> None:
    """|∇Φ| in blue below 1 and red above, the same length on either side of it; folds in yellow. The range of the
    colours is that of `ranged`, of the determinant itself if not given.
    """
    ranged = jacobian if ranged is None else ranged
    spread = next((one for one in (0.1, 0.25, 0.5) if np.abs(ranged - 1).max() <= one), 1.0)
    top = next((one for one in (1 + spread, 2, 3) if one >= max(1 + spread, ranged.max())), 3)
    norm = TwoSlopeNorm(1.0, 1 - spread, top)
    shown = panel.imshow(jacobian, cmap="RdBu_r", norm=norm)
    folds = jacobian <= 0
    marked = ListedColormap([OKABE_ITO["yellow"]])
    panel.imshow(np.where(folds, 1.0, np.nan), cmap=marked, vmin=0, vmax=1)
    bare(panel, f"Jacobian ({folds.sum()} folds, yellow)" if folds.any() else "Jacobian (no folds)")
    extend = "max" if jacobian.max() > top else "neither"
    bar = figure.colorbar(shown, ax=panel, location="bottom", shrink=0.9, extend=extend, label="Determinant |∇Φ|")
    bar.set_ticks([1 - spread, 1, top], labels=[f"{value:g}" for value in (1 - spread, 1, top)])


def outline(panel: Axes, crop: tuple[slice, slice]) -> None:
    rows, columns = crop
    height, width = rows.stop - rows.start, columns.stop - columns.start
    corner = (columns.start - 0.5, rows.start - 0.5)
    panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=0.9))


def difference(panel: Axes, values: np.ndarray, limit: float, title: str = ""):
    """Signed differences of grey values, zero in white; returns the picture, for a colour bar."""
    shown = panel.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
    bare(panel, title)
    return shown


def row_names(axes: np.ndarray, names: Sequence[str]) -> None:
    for panel, name in zip(axes[:, 0], names, strict=True):
        panel.set_ylabel(name)


def class_legend(figure: Figure, classes: Sequence[str], colors: Sequence[str], lines: Sequence[str] = ()) -> None:
    """The colours of the classes, and what solid and dashed contours mean, if there are such."""
    square = {"marker": "s", "markersize": 7, "linestyle": "none", "markeredgecolor": "0.6"}
    handles = [Line2D([], [], color=color, label=name, **square) for name, color in zip(classes, colors, strict=True)]
    styles = zip(lines, ("solid", DASHED), strict=False)
    handles += [Line2D([], [], color="0.35", linestyle=style, label=name) for name, style in styles]
    if handles:
        legend_below(figure, handles, columns=6)
