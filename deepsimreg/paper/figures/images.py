"""Figures of images: rows, a registration before and after, galleries, features, one pair under every method.

`view` of each: axis=…, index=… of the slice that is drawn of a volume; the middle one of the first axis, if not given.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from deepsimreg.paper.figures import panels
from deepsimreg.paper.figures.style import OKABE_ITO, PAGE, method_name, narrow, styled
from deepsimreg.warps import warp_image, warp_labels

DETAIL = 150  # pixels: contours of a larger image would hide it


@styled
def image_row(
    images: Sequence,
    titles: Sequence[str],
    labels: Sequence | None = None,
    displacements: Sequence | None = None,
    classes: Sequence[str] = (),
    colors: Sequence[str] = (),
    grid_step: int | None = None,
    width: float = PAGE,
    **view: int,
) -> Figure:
    """Grey images side by side, each with optional label contours and deformed grid (None for none)."""
    extra = 0.2 + 0.3 * bool(classes)
    figure, axes = panels.image_axes(1, len(images), panels.middle_slice(images[0], **view).shape, width, extra)
    none = [None] * len(images)
    drawn = zip(axes[0], images, titles, labels or none, displacements or none, strict=True)
    for panel, image, title, label, u in drawn:
        panels.show(panel, image, title, label, u=u, colors=colors, step=grid_step, **view)
    panels.class_legend(figure, classes[1:], colors[1:])
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
    grid_step: int | None = None,
    width: float = PAGE,
    **view: int,
) -> Figure:
    """One registration: moving, fixed and moved with contours, the deformed grid, the Jacobian determinant.

    The fixed labels are solid lines in every image panel; those of the moving and the moved image are dashed.
    """
    figure, axes = panels.image_axes(2, 3, panels.middle_slice(fixed_label, **view).shape, width, 1.1)
    for panel, image, title, label in (
        (axes[0, 0], moving, "Moving", moving_label),
        (axes[0, 1], fixed, "Fixed", None),
        (axes[0, 2], moved, "Moved", moved_label),
    ):
        panels.show(panel, image, title, fixed_label, label, colors=colors, **view)
    change = panels.middle_slice(moved, **view) - panels.middle_slice(fixed, **view)
    shown = panels.difference(axes[1, 0], change, max(float(np.abs(change).max()), 1e-6), "Moved − fixed")
    figure.colorbar(shown, ax=axes[1, 0], location="bottom", shrink=0.9, label="Intensity difference")
    panels.show(axes[1, 1], moving, "Grid x + u(x) on moving", u=displacement, step=grid_step, **view)
    panels.jacobian(figure, axes[1, 2], panels.middle_jacobian(displacement, **view))
    panels.class_legend(figure, classes[1:], colors[1:], ("fixed label", "moving or moved label"))
    return figure


@styled
def segmentation_gallery(
    images: Sequence,
    labels: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    colors: Sequence[str],
    width: float = PAGE,
    **view: int,
) -> Figure:
    """Rows: the image, its true labels, the predicted labels; a column an image."""
    figure, axes = panels.image_axes(3, len(images), panels.middle_slice(images[0], **view).shape, width, 0.3)
    palette = ListedColormap(list(colors))
    for column, image, *both in zip(axes.T, images, labels, predictions, strict=True):
        panels.show(column[0], image, **view)
        for panel, label in zip(column[1:], both, strict=True):
            panel.imshow(panels.middle_slice(label, **view), cmap=palette, vmin=-0.5, vmax=len(colors) - 0.5)
            panels.bare(panel)
    panels.row_names(axes, ("Image", "True labels", "Prediction"))
    panels.class_legend(figure, classes, colors)
    return figure


@styled
def reconstruction_gallery(images: Sequence, reconstructions: Sequence, width: float = PAGE, **view: int) -> Figure:
    """Rows: the image, the autoencoder's reconstruction, their difference with one scale for all."""
    planes = np.stack([panels.middle_slice(image, **view) for image in images])
    copies = np.stack([panels.middle_slice(image, **view) for image in reconstructions])
    figure, axes = panels.image_axes(3, len(planes), planes[0].shape, width, 0.5)
    limit = float(np.abs(copies - planes).max()) or 1e-6
    for column, plane, copy in zip(axes.T, planes, copies, strict=True):
        panels.show(column[0], plane)
        panels.show(column[1], copy)
        shown = panels.difference(column[2], copy - plane, limit)
    panels.row_names(axes, ("Image", "Reconstruction", "Difference"))
    figure.colorbar(shown, ax=axes[2, :].tolist(), location="bottom", shrink=0.5, aspect=40, label="Intensity")
    return figure


@styled
def feature_maps(image, levels: Sequence, label=None, colors: Sequence[str] = (), width: float = PAGE) -> Figure:
    """An image, with the contours of its labels, and the features of each level: three principal components as colours.

    image: (1, 1, *spatial). levels: tensors (1, C_l, *spatial_l). Colours compare inside a level and not between them:
    what has one colour has similar features. The middle slice of a volume is drawn.
    """
    figure, axes = panels.image_axes(1, 1 + len(levels), panels.middle_slice(image).shape, width, 0.25)
    panels.show(axes[0, 0], image, "Image", label, colors=colors)
    for panel, (number, level) in zip(axes[0, 1:], enumerate(levels, start=1), strict=True):
        array = panels.array_of(level)[0]
        panel.imshow(panels.principal_colors(array))
        panels.bare(panel, f"Level {number}: {len(array)} channels")
    return figure


@styled
def cosine_maps(
    fixed, moving, similar: Sequence, point: Sequence[int], partner: Sequence[float], width: float = PAGE
) -> Figure:
    """What DeepSim sees of one point of the fixed image: the cosine with every position of the moving one, level by
    level.

    similar: of each level, (H_l, W_l). point: (row, column) in the fixed image, pixels; partner: where it lies in the
    moving one.
    """
    figure, axes = panels.image_axes(1, 2 + len(similar), panels.middle_slice(fixed).shape, width, 0.75)
    shape = panels.middle_slice(fixed).shape
    cross = {"marker": "+", "color": OKABE_ITO["vermillion"], "markersize": 10, "markeredgewidth": 1.5}
    ring = cross | {"marker": "o", "markerfacecolor": "none"}
    panels.show(axes[0, 0], fixed, "Fixed, one point")
    axes[0, 0].plot(point[1], point[0], **cross)
    panels.show(axes[0, 1], moving, "Moving, its partner")
    axes[0, 1].plot(partner[1], partner[0], **ring)
    for panel, (number, level) in zip(axes[0, 2:], enumerate(similar, start=1), strict=True):
        extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
        shown = panel.imshow(panels.array_of(level), cmap="cividis", vmin=-1, vmax=1, extent=extent)
        panel.plot(partner[1], partner[0], **ring)
        panels.bare(panel, f"Level {number}")
    bar = {"location": "bottom", "shrink": 0.4, "aspect": 40, "ticks": [-1, 0, 1], "label": "Cosine with the point"}
    figure.colorbar(shown, ax=axes[0].tolist(), **bar)
    return figure


@styled
def partway(
    moving,
    fixed,
    displacement,
    fraction: float,
    labels=(None, None),
    colors: Sequence[str] = (),
    whole=None,
    width: float = PAGE,
) -> Figure:
    """The moving image a fraction of the way along its warp, the fixed one, the deformed grid, and the Jacobian.

    displacement: of that fraction, as `Registration.partway` gives it. labels: moving and fixed; the fixed contours are
    solid in every image, those of the moved one dashed. whole: the displacement of the whole way, whose determinant
    gives the range of the colours.
    """
    moving, fixed = torch.as_tensor(moving), torch.as_tensor(fixed)
    moved = warp_image(moving, displacement)
    label = None if labels[0] is None else warp_labels(labels[0], displacement)
    figure, axes = panels.image_axes(1, 4, panels.middle_slice(moving).shape, width, 0.6)
    panels.show(axes[0, 0], moved, f"Moving, {fraction:.0%} of the way", labels[1], label, colors=colors)
    panels.show(axes[0, 1], fixed, "Fixed", labels[1], colors=colors)
    panels.show(axes[0, 2], moving, "Grid x + u(x)", u=displacement)
    ranged = None if whole is None else panels.middle_jacobian(whole)
    panels.jacobian(figure, axes[0, 3], panels.middle_jacobian(displacement), ranged)
    return figure


@styled
def result_row(
    moving,
    fixed,
    results: Mapping[str, tuple],
    moving_label,
    fixed_label,
    colors: Sequence[str],
    scores: Mapping[str, str] | None = None,
    width: float = PAGE,
    **view: int,
) -> Figure:
    """One pair in a row: before, and under a few methods; the fixed contours solid, those of the image dashed.

    results: method → (moved image, moved label, displacement). scores: second line of a title, "before" of the first.
    Of an image of more than `DETAIL` pixels, the third of its sides where the labels of the pair differ most is shown.
    """
    both = [panels.middle_slice(label, **view) for label in (moving_label, fixed_label)]
    shape = both[1].shape
    crop = panels.most_different(*both) if max(shape) > DETAIL else tuple(slice(0, size) for size in shape)
    size = (crop[0].stop - crop[0].start, crop[1].stop - crop[1].start)
    figure, axes = panels.image_axes(1, 1 + len(results), size, width, 0.55)
    shown = {"before": (moving, moving_label)} | {name: one[:2] for name, one in results.items()}
    for panel, (name, (image, label)) in zip(axes[0], shown.items(), strict=True):
        title = "\n".join(filter(None, ["Before" if name == "before" else method_name(name), (scores or {}).get(name)]))
        panels.show(panel, image, title, fixed_label, label, colors=colors, **view)
        panels.window(panel, *crop)
    panels.class_legend(figure, (), (), ("fixed", "moved"))
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
    grid_step: int | None = None,
    width: float = PAGE,
    **view: int,
) -> Figure:
    """One pair under every method. results: method → (moved image, moved label, displacement).

    Rows: the images with their own labels; the same detail of each, with the fixed labels solid and the image's
    own dashed; the moving image, and the grid x + u(x) on it (under "Fixed": the grid at rest). More than eight
    columns wrap into further triples of rows. crop: (rows, columns) of the detail; if not given, a third of the image
    where the labels of both differ most.
    """
    shape = panels.middle_slice(fixed_label, **view).shape
    columns = {
        "Moving": (moving, moving_label, None),
        "Fixed": (fixed, fixed_label, np.zeros((2, *shape))),
        **{narrow(method_name(method)): result for method, result in results.items()},
    }
    crop = crop or panels.most_different(*(panels.middle_slice(one, **view) for one in (moving_label, fixed_label)))
    step = grid_step or max(1, round(max(shape) / 12))
    bands = -(-len(columns) // 8)
    across = -(-len(columns) // bands)
    figure, cells = panels.image_axes(3 * bands, across, shape, width, 0.5)
    axes = np.concatenate(np.split(cells, bands), axis=1)  # the bands side by side: (3, bands · across)
    for panel in axes[:, len(columns) :].flat:
        panel.remove()
    for (whole, detail, warp), (title, (image, label, u)) in zip(axes.T, columns.items(), strict=False):
        panels.show(whole, image, title, label, colors=colors, **view)
        if across > 6:
            whole.title.set_fontsize(7)  # names of methods, an inch apart
        panels.outline(whole, crop)
        panels.show(detail, image, "", fixed_label, None if title == "Fixed" else label, colors=colors, **view)
        panels.window(detail, *crop)
        panels.show(warp, moving, u=u, step=step, **view)
    panels.row_names(cells, ("Labels", "Detail", "Grid x + u(x)") * bands)
    panels.class_legend(figure, classes[1:], colors[1:], ("fixed (detail)", "this image (detail)"))
    return figure
