"""Every picture of the chapters: arrays and tables in, a matplotlib Figure out, no files read."""

from deepsimreg.paper.figures.comparison import ablation_dots as ablation_dots
from deepsimreg.paper.figures.comparison import contrast as contrast
from deepsimreg.paper.figures.comparison import dice_boxplot as dice_boxplot
from deepsimreg.paper.figures.comparison import dice_per_class as dice_per_class
from deepsimreg.paper.figures.comparison import methods_overview as methods_overview
from deepsimreg.paper.figures.comparison import methods_traces as methods_traces
from deepsimreg.paper.figures.comparison import smoothness_against_dice as smoothness_against_dice
from deepsimreg.paper.figures.curves import class_histogram as class_histogram
from deepsimreg.paper.figures.curves import convergence as convergence
from deepsimreg.paper.figures.curves import label_fraction as label_fraction
from deepsimreg.paper.figures.curves import learning_curve as learning_curve
from deepsimreg.paper.figures.curves import loss_landscape as loss_landscape
from deepsimreg.paper.figures.curves import robustness as robustness
from deepsimreg.paper.figures.curves import tuning_curve as tuning_curve
from deepsimreg.paper.figures.images import cosine_maps as cosine_maps
from deepsimreg.paper.figures.images import feature_maps as feature_maps
from deepsimreg.paper.figures.images import image_row as image_row
from deepsimreg.paper.figures.images import pair_before_after as pair_before_after
from deepsimreg.paper.figures.images import partway as partway
from deepsimreg.paper.figures.images import reconstruction_gallery as reconstruction_gallery
from deepsimreg.paper.figures.images import result_row as result_row
from deepsimreg.paper.figures.images import sample_panel as sample_panel
from deepsimreg.paper.figures.images import segmentation_gallery as segmentation_gallery
from deepsimreg.paper.figures.schematic import training_schematic as training_schematic
from deepsimreg.paper.figures.style import save_figure as save_figure
