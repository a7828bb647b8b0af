"""Every picture of the chapters: arrays and tables in, a matplotlib Figure out, no files read."""

from deepsimreg.paper.figures.comparison import (
    ablation_bars,
    dice_boxplot,
    dice_per_class,
    methods_overview,
    methods_traces,
    smoothness_against_dice,
)
from deepsimreg.paper.figures.curves import (
    class_histogram,
    convergence,
    label_fraction,
    learning_curve,
    loss_landscape,
    robustness,
    tuning_curve,
)
from deepsimreg.paper.figures.images import (
    blended,
    feature_maps,
    image_row,
    pair_before_after,
    reconstruction_gallery,
    sample_panel,
    segmentation_gallery,
)
from deepsimreg.paper.figures.style import save_figure

__all__ = [
    "ablation_bars",
    "blended",
    "class_histogram",
    "convergence",
    "dice_boxplot",
    "dice_per_class",
    "feature_maps",
    "image_row",
    "label_fraction",
    "learning_curve",
    "loss_landscape",
    "methods_overview",
    "methods_traces",
    "pair_before_after",
    "reconstruction_gallery",
    "robustness",
    "sample_panel",
    "save_figure",
    "segmentation_gallery",
    "smoothness_against_dice",
    "tuning_curve",
]
