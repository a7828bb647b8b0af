# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: two images, registered and looked at
#
# Two photographs of the same cells: they have moved, the light has changed, and the camera is noisy. **Registration**
# finds, for every pixel of the *fixed* image, where it was in the *moving* image. This notebook does it in a minute, by
# optimising one displacement for one pair, with two ways of saying *similar*:
#
# - **MSE** compares grey values,
# - **DeepSim** compares what a small network sees in the images.
#
# The images are the phantom of this project: drawn by a program, so the true displacement is known and the answer can be
# checked. Results on real data are in the README.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
pair_index: int = 0  # which test pair of the phantom
lam_mse: float = 0.2  # weight of the regulariser beside MSE
lam_deepsim: float = 1.0  # weight of the regulariser beside DeepSim
steps: int = 60  # of the optimiser, on each of three scales

# %%
from deepsimreg.notebook import check_parameters

check_parameters(globals())

# %%
from deepsimreg import plots, register
from deepsimreg.evaluation import evaluate_pair
from deepsimreg.experiment import Profile
from deepsimreg.losses import MSE, DeepSim
from deepsimreg.stages import trained_extractor
from deepsimreg.warps import warp_labels

plan = Profile("quick")
data = plan.load("phantom-2d")
pair = data.pairs("test")[pair_index]
moving, fixed = pair.moving.image[None], pair.fixed.image[None]  # (1, 1, height, width), grey values in [0, 1]

# %% [markdown]
# ## Look first
#
# The contours (cytoplasm and organelles) are shown for you; no registration below sees them.

# %%
plots.image_row(
    [moving[0], fixed[0], moving[0], fixed[0]],
    ["moving", "fixed", "moving, labels", "fixed, labels"],
    labels=[None, None, pair.moving.label, pair.fixed.label],
    classes=data.classes,
    colors=data.colors,
)

# %% [markdown]
# ## Grey values
#
# One call. `register` minimises
#
# $$D(I\circ\Phi, J) + \lambda\,R(u), \qquad \Phi(x) = x + u(x)$$
#
# over a smooth invertible warp, coarse to fine. With $D$ = mean squared error, noise and light are part of what it tries
# to match.

# %% tags=["nbval-ignore-output"]
by_mse = register(moving, fixed, MSE(), lam=lam_mse, steps=steps)

# %% [markdown]
# ## Features
#
# The same call with another $D$. The extractor is a small U-Net that has learned, on other images, to tell background,
# cytoplasm and organelle apart; it is trained here in seconds if it has not been yet
# ([notebook 2](02_feature_extractor.ipynb)). DeepSim is one minus the cosine between its feature vectors at each
# position, averaged over three resolutions.

# %% tags=["nbval-ignore-output"]
extractor = trained_extractor(plan.extractor("phantom-2d", "seg"), data)
by_deepsim = register(moving, fixed, DeepSim(extractor), lam=lam_deepsim, steps=steps)

# %% [markdown]
# ## What came out
#
# First by eye: the moved image should look like the fixed one, its contours should lie on the fixed image's contours,
# and the grid should bend without tearing.

# %% tags=["nbval-ignore-output"]
moved_label = warp_labels(pair.moving.label[None], by_deepsim.displacement)
plots.pair_before_after(
    moving,
    fixed,
    by_deepsim.moved,
    by_deepsim.displacement,
    pair.moving.label,
    pair.fixed.label,
    moved_label,
    data.classes,
    data.colors,
)

# %% [markdown]
# Then in numbers: the overlap of the labels (Dice, 1 is perfect), the distance of each foreground pixel from its true
# place, and the share of pixels where the warp folds.

# %% tags=["nbval-ignore-output"]
import pandas as pd

truth = pair.displacement[None]
results = {"before": None, "MSE": by_mse.displacement, "DeepSim": by_deepsim.displacement}
rows = {
    name: evaluate_pair(u, pair.moving.label[None], pair.fixed.label[None], data.classes, data.spacing, truth)
    for name, u in results.items()
}
pd.DataFrame(rows).T[["dice", "target_registration_error", "folds", "sd_log_jacobian"]].round(3)

# %% [markdown]
# The weights λ are those of the highest Dice on six validation pairs, of 0.05, 0.1 and 0.2 (MSE) and 0.3, 1 and 3
# (DeepSim). Features are one way to look past light and noise, and not the only one: on those pairs local correlation,
# `register(moving, fixed, "ncc")`, reaches a higher Dice than both. One pair proves nothing;
# [notebook 4](04_evaluation.ipynb) has many, with intervals and tests.
#
# ## Where to go
#
# | you want to | open |
# |---|---|
# | see the data | [01_data](01_data.ipynb) |
# | train the network that sees | [02_feature_extractor](02_feature_extractor.ipynb) |
# | train a network that registers in one step | [03_registration](03_registration.ipynb) |
# | compare methods | [04_evaluation](04_evaluation.ipynb) |
# | redraw the paper's figures | [05_figures](05_figures.ipynb) |
