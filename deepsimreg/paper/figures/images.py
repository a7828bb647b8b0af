"""Figures of images: rows, a registration before and after, galleries, features, one pair under every method.

`view` of each: axis=…, index=… of the slice that is drawn of a volume; the middle one of the first axis, if not given.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from deepsimreg.paper.figures import panels
from deepsimreg.paper.figures.style import PAGE, method_name, narrow, styled


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
def feature_maps(
    levels: Sequence, channels: int = 6, axis: int = 0, index: int | None = None, width: float = PAGE
) -> Figure:
    """The channels of an extractor that vary most, a row a level. levels: tensors (1, C_l, *spatial_l).

    Each map has its own grey scale: between channels only the pattern compares. index: of the first level; of the
    others the middle slice is drawn.
    """
    arrays = [panels.array_of(level)[0] for level in levels]
    columns = min(channels, min(len(array) for array in arrays))
    shape = panels.middle_slice(arrays[0][0], axis, index).shape
    figure, axes = panels.image_axes(len(arrays), columns, shape, width, 0.17 * len(arrays))
    for row, array in enumerate(arrays):
        spread = array.reshape(len(array), -1).std(axis=1)
        for panel, channel in zip(axes[row], np.argsort(-spread, kind="stable"), strict=False):
            panel.imshow(panels.middle_slice(array[channel], axis, index if row == 0 else None), cmap="viridis")
            panels.bare(panel, f"channel {channel}")
            panel.title.set_size(8)
    panels.row_names(axes, [f"Level {level}" for level in range(1, len(arrays) + 1)])
    return figure


@styled
def blended(moving, moved, fixed, displacement, share: float, width: float = PAGE) -> Figure:
    """A fraction of the way from the moving to the moved image, the fixed one, the deformed grid, and the Jacobian."""
    before, after = panels.middle_slice(moving), panels.middle_slice(moved)
    figure, axes = panels.image_axes(1, 4, before.shape, width, 0.6)
    panels.show(axes[0, 0], (1 - share) * before + share * after, f"Moving → moved, {share:.0%}")
    panels.show(axes[0, 1], fixed, "Fixed")
    panels.show(axes[0, 2], moving, "Grid x + u(x)", u=displacement)
    panels.jacobian(figure, axes[0, 3], panels.middle_jacobian(displacement))
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
    columns wrap into further triples of rows. crop: (rows, columns) of the detail, the middle third if not given.
    """
    shape = panels.middle_slice(fixed_label, **view).shape
    columns = {
        "Moving": (moving, moving_label, None),
        "Fixed": (fixed, fixed_label, np.zeros((2, *shape))),
        **{narrow(method_name(method)): result for method, result in results.items()},
    }
    crop = crop or tuple(slice(size // 3, size - size // 3) for size in shape)
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
