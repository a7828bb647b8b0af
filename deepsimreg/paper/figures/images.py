"""Figures of images: rows, a registration before and after, galleries, features, one pair under every method."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deepsimreg.paper.figures.panels import (
    array_of,
    bare,
    class_legend,
    contours,
    grid,
    image_axes,
    jacobian,
    middle_displacement,
    middle_jacobian,
    middle_slice,
    outline,
    row_names,
    show,
)
from deepsimreg.paper.figures.style import DASHED, PAGE, method_name, narrow, styled


@styled
def image_row(
    images: Sequence,
    titles: Sequence[str],
    labels: Sequence | None = None,
    displacements: Sequence | None = None,
    classes: Sequence[str] = (),
    colors: Sequence[str] = (),
    axis: int = 0,
    index: int | None = None,
    grid_step: int | None = None,
    width: float = PAGE,
) -> Figure:
    """Grey images side by side, each with optional label contours and deformed grid (None for none)."""
    extra = 0.2 + 0.3 * bool(classes)
    figure, axes = image_axes(1, len(images), middle_slice(images[0], axis, index).shape, width, extra)
    labels = labels or [None] * len(images)
    displacements = displacements or [None] * len(images)
    for panel, image, title, label, displacement in zip(axes[0], images, titles, labels, displacements, strict=True):
        show(panel, middle_slice(image, axis, index), title)
        if label is not None:
            contours(panel, middle_slice(label, axis, index), colors)
        if displacement is not None:
            grid(panel, middle_displacement(displacement, axis, index), grid_step)
    class_legend(figure, classes, colors)
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
    axis: int = 0,
    index: int | None = None,
    grid_step: int | None = None,
    width: float = PAGE,
) -> Figure:
    """One registration: moving, fixed and moved with contours, the deformed grid, the Jacobian determinant.

    The fixed labels are solid lines in every image panel; those of the moving and the moved image are dashed.
    """
    fixed_plane = middle_slice(fixed_label, axis, index)
    figure, axes = image_axes(2, 3, fixed_plane.shape, width, 1.1)
    for panel, image, label, title in (
        (axes[0, 0], moving, moving_label, "Moving"),
        (axes[0, 1], fixed, None, "Fixed"),
        (axes[0, 2], moved, moved_label, "Moved"),
    ):
        show(panel, middle_slice(image, axis, index), title)
        contours(panel, fixed_plane, colors)
        if label is not None:
            contours(panel, middle_slice(label, axis, index), colors, DASHED)
    change = middle_slice(moved, axis, index) - middle_slice(fixed, axis, index)
    limit = max(float(np.abs(change).max()), 1e-6)
    shown = axes[1, 0].imshow(change, cmap="PuOr", vmin=-limit, vmax=limit)
    bare(axes[1, 0], "Moved − fixed")
    figure.colorbar(shown, ax=axes[1, 0], location="bottom", shrink=0.9, label="Intensity difference")
    show(axes[1, 1], middle_slice(moving, axis, index), "Grid x + u(x) on moving")
    grid(axes[1, 1], middle_displacement(displacement, axis, index), grid_step)
    jacobian(figure, axes[1, 2], middle_jacobian(displacement, axis, index))
    lines = [
        Line2D([], [], color="0.35", linestyle="solid", label="fixed label"),
        Line2D([], [], color="0.35", linestyle=DASHED, label="moving or moved label"),
    ]
    class_legend(figure, classes, colors, lines)
    return figure


@styled
def segmentation_gallery(
    images: Sequence,
    labels: Sequence,
    predictions: Sequence,
    classes: Sequence[str],
    colors: Sequence[str],
    axis: int = 0,
    index: int | None = None,
    width: float = PAGE,
) -> Figure:
    """Rows: the image, its true labels, the predicted labels; a column an image."""
    shape = middle_slice(images[0], axis, index).shape
    figure, axes = image_axes(3, len(images), shape, width, 0.3)
    palette = ListedColormap(list(colors))
    for column, (image, label, prediction) in enumerate(zip(images, labels, predictions, strict=True)):
        show(axes[0, column], middle_slice(image, axis, index))
        for row, plane in ((1, label), (2, prediction)):
            plane = middle_slice(plane, axis, index)
            axes[row, column].imshow(plane, cmap=palette, vmin=-0.5, vmax=len(colors) - 0.5)
            bare(axes[row, column])
    row_names(axes, ("Image", "True labels", "Prediction"))
    class_legend(figure, classes, colors, background=True)
    return figure


@styled
def reconstruction_gallery(
    images: Sequence, reconstructions: Sequence, axis: int = 0, index: int | None = None, width: float = PAGE
) -> Figure:
    """Rows: the image, the autoencoder's reconstruction, their difference with one scale for all."""
    planes = [middle_slice(image, axis, index) for image in images]
    copies = [middle_slice(image, axis, index) for image in reconstructions]
    figure, axes = image_axes(3, len(planes), planes[0].shape, width, 0.5)
    differences = [copy - plane for plane, copy in zip(planes, copies, strict=True)]
    limit = max(float(np.abs(difference).max()) for difference in differences) or 1e-6
    for column, (plane, copy, difference) in enumerate(zip(planes, copies, differences, strict=True)):
        show(axes[0, column], plane)
        show(axes[1, column], copy)
        shown = axes[2, column].imshow(difference, cmap="PuOr", vmin=-limit, vmax=limit)
        bare(axes[2, column])
    row_names(axes, ("Image", "Reconstruction", "Difference"))
    figure.colorbar(shown, ax=axes[2, :].tolist(), location="bottom", shrink=0.5, aspect=40, label="Intensity")
    return figure


@styled
def feature_maps(
    levels: Sequence, channels: int = 6, axis: int = 0, index: int | None = None, width: float = PAGE
) -> Figure:
    """The channels of an extractor that vary most, a row a level. levels: tensors (1, C_l, *spatial_l).

    Each map has its own grey scale: between channels only the pattern compares.
    """
    arrays = [array_of(level)[0] for level in levels]
    columns = min(channels, min(len(array) for array in arrays))
    shape = middle_slice(arrays[0][0], axis, index).shape
    figure, axes = image_axes(len(arrays), columns, shape, width, 0.17 * len(arrays))
    for row, array in enumerate(arrays):
        spread = array.reshape(len(array), -1).std(axis=1)
        for column, channel in enumerate(np.argsort(-spread, kind="stable")[:columns]):
            plane = middle_slice(array[channel], axis, index if row == 0 else None)
            axes[row, column].imshow(plane, cmap="viridis")
            bare(axes[row, column], f"channel {channel}")
            axes[row, column].title.set_size(8)
    row_names(axes, [f"Level {level}" for level in range(1, len(arrays) + 1)])
    return figure


@styled
def blended(moving, moved, fixed, displacement, share: float, width: float = PAGE) -> Figure:
    """A fraction of the way from the moving to the moved image, the fixed one, the deformed grid, and the Jacobian."""
    before, after = middle_slice(moving), middle_slice(moved)
    figure, axes = image_axes(1, 4, before.shape, width, 0.6)
    show(axes[0, 0], (1 - share) * before + share * after, f"Moving → moved, {share:.0%}")
    show(axes[0, 1], middle_slice(fixed), "Fixed")
    show(axes[0, 2], before, "Grid x + u(x)")
    grid(axes[0, 2], middle_displacement(displacement), None)
    jacobian(figure, axes[0, 3], middle_jacobian(displacement))
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
    axis: int = 0,
    index: int | None = None,
    grid_step: int | None = None,
    width: float = PAGE,
) -> Figure:
    """One pair under every method. results: method → (moved image, moved label, displacement).

    Rows: the images with their own labels; the same detail of each, with the fixed labels solid and the image's
    own dashed; the moving image, and the grid x + u(x) on it (under "Fixed": the grid at rest). More than eight
    columns wrap into further triples of rows. crop: (rows, columns) of the detail, the middle third if not given.
    """
    columns = {
        "Moving": (moving, moving_label, None),
        "Fixed": (fixed, fixed_label, None),
        **{narrow(method_name(method)): result for method, result in results.items()},
    }
    moving_plane, fixed_plane = middle_slice(moving, axis, index), middle_slice(fixed_label, axis, index)
    crop = crop or tuple(slice(size // 3, size - size // 3) for size in fixed_plane.shape)
    bands = -(-len(columns) // 8)
    across = -(-len(columns) // bands)
    figure, panels = image_axes(3 * bands, across, fixed_plane.shape, width, 0.5)
    axes = np.concatenate(np.split(panels, bands), axis=1)  # the bands side by side: (3, bands · across)
    for panel in axes[:, len(columns) :].flat:
        panel.remove()
    for column, (title, (image, label, displacement)) in enumerate(columns.items()):
        image, label = middle_slice(image, axis, index), middle_slice(label, axis, index)
        show(axes[0, column], image, title)
        contours(axes[0, column], label, colors)
        outline(axes[0, column], crop)
        show(axes[1, column], image)
        contours(axes[1, column], fixed_plane, colors)
        if title != "Fixed":
            contours(axes[1, column], label, colors, DASHED)
        axes[1, column].set_xlim(crop[1].start - 0.5, crop[1].stop - 0.5)
        axes[1, column].set_ylim(crop[0].stop - 0.5, crop[0].start - 0.5)
        show(axes[2, column], moving_plane)
        if title != "Moving":
            still = np.zeros((2, *moving_plane.shape))
            plane = still if displacement is None else middle_displacement(displacement, axis, index)
            grid(axes[2, column], plane, grid_step or max(1, round(max(fixed_plane.shape) / 12)))
    for panel in axes[0] if across > 6 else ():
        panel.title.set_fontsize(7)  # names of methods, an inch apart
    row_names(panels, ("Labels", "Detail", "Grid x + u(x)") * bands)
    lines = [
        Line2D([], [], color="0.35", linestyle="solid", label="fixed (detail)"),
        Line2D([], [], color="0.35", linestyle=DASHED, label="this image (detail)"),
    ]
    class_legend(figure, classes, colors, lines)
    return figure
