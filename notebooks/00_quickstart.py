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
# finds, for every pixel of the *fixed* image, where it was in the *moving* image. Grey values are a poor guide to that:
# noise and light change them. **DeepSim** compares what a small network *sees* in both images.
#
# This notebook registers one pair by three methods, each a single call, with networks that come with the package:
#
# | method | what happens |
# |---|---|
# | a network | a trained network predicts the warp at once |
# | optimisation | the warp of this pair is searched, step by step |
# | both | the optimisation starts at the network's prediction |
#
# The images are the phantom of this project: drawn by a program, so the true displacement is known and the answer can be
# checked. Results on real data are in the README.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
pair_index: int = 0  # which test pair of the phantom
similarity: str = "ncc + deepsim-seg"  # what the optimisation compares
lam: float = 2.0  # weight of the regulariser

# %%
from deepsimreg import load, register
from deepsimreg.paper import figures
from deepsimreg.data import load_dataset

data = load_dataset("phantom-2d")
pair = data.pairs("test")[pair_index]
moving, fixed = pair.moving.image[None], pair.fixed.image[None]  # (1, 1, height, width), grey values in [0, 1]
labels = pair.moving.label[None], pair.fixed.label[None]

# %% [markdown]
# ## Look first
#
# The contours (cytoplasm and organelles) are shown for you; no registration below sees them.

# %%
figures.image_row(
    [moving[0], fixed[0], moving[0], fixed[0]],
    ["moving", "fixed", "moving, labels", "fixed, labels"],
    labels=[None, None, pair.moving.label, pair.fixed.label],
    classes=data.classes,
    colors=data.colors,
)

# %% [markdown]
# ## What the network sees
#
# `load` finds a pretrained network by its name, offline. This one is a small U-Net that has learned, on other images, to
# tell background, cytoplasm and organelle apart ([notebook 2](02_feature_extractor.ipynb)). DeepSim is one minus the
# cosine between its feature vectors $F_l$ at each position, averaged over three resolutions:
#
# $$D(I\circ\Phi, J) = 1 - \frac{1}{L} \sum_l \mathrm{mean}_p \cos\big(F_l(I\circ\Phi)_p,\, F_l(J)_p\big)$$

# %% tags=["nbval-ignore-output"]
extractor = load("phantom-2d/seg")
figures.feature_maps(extractor.features(fixed))

# %% [markdown]
# ## Three methods, three calls
#
# `register` minimises
#
# $$D(I\circ\Phi, J) + \lambda\,R(u), \qquad \Phi(x) = x + u(x)$$
#
# over a smooth invertible warp, coarse to fine. A network's prediction can initialise the optimisation; with `steps=0`
# it is the result.

# %% tags=["nbval-ignore-output"]
given = {"extractor": extractor, "labels": labels, "progress": False}
methods = {
    "network": register(moving, fixed, similarity, lam, network="phantom-2d/registration", steps=0, **given),
    "optimisation": register(moving, fixed, similarity, lam, **given),
    "both": register(moving, fixed, similarity, lam, network="phantom-2d/registration", **given),
}

# %% [markdown]
# ## What came out
#
# First by eye: the contours of the moved image should lie on those of the fixed one, and the grid should bend without
# tearing.

# %% tags=["nbval-ignore-output"]
results = {name: (found.moved, found.moved_labels, found.displacement) for name, found in methods.items()}
figures.sample_panel(moving, fixed, results, pair.moving.label, pair.fixed.label, data.classes, data.colors)

# %% [markdown]
# Then in numbers: the overlap of the labels (Dice, 1 is perfect), the distance of each foreground pixel from its true
# place, the share of pixels where the warp folds, and the seconds of the call.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from deepsimreg.metrics import evaluate_pair

fields = {"before": None, **{name: found.displacement for name, found in methods.items()}}
rows = {
    name: evaluate_pair(u, *labels, data.classes, data.spacing, pair.displacement[None]) for name, u in fields.items()
}
table = pd.DataFrame(rows).T[["dice", "target_registration_error", "folds", "sd_log_jacobian"]]
table.assign(seconds=pd.Series({name: found.seconds["total"] for name, found in methods.items()})).round(3)

# %% [markdown]
# ## From moving to moved
#
# Pull the slider. (Without a kernel it does nothing: the figure below shows its end.)

# %%
import ipywidgets as widgets


def show(method: str, share: float) -> None:
    display(figures.blended(moving, methods[method].moved, fixed, methods[method].displacement, share))


# %% tags=["nbval-ignore-output"]
controls = {
    "method": widgets.Dropdown(options=list(methods), value="both"),
    "share": widgets.FloatSlider(value=1, min=0, max=1, step=0.1, description="share", continuous_update=False),
}
widgets.VBox([*controls.values(), widgets.interactive_output(show, controls)])

# %% tags=["nbval-ignore-output"]
show("both", 1.0)

# %% [markdown]
# ## Your own images
#
# Paths of NIfTI or TIFF files work like arrays. For MR images of the hippocampus the package has networks, too:
#
# ```python
# similarity = "0.2 deepsim-seg + 20 classes-seg"  # features, and the classes that the network sees
# result = register("moving.nii.gz", "fixed.nii.gz", similarity, extractor="hippocampus-mr")
# result.save("result")  # moved.nii.gz, and field.nii.gz for ITK, ANTs and Slicer
# ```
#
# For anything else, `"ncc-3"` needs no network at all, and a U-Net of your own is a notebook away.
#
# One pair proves nothing; [notebook 4](04_evaluation.ipynb) and [notebook 9](09_optimisation.ipynb) have many, with
# intervals and tests.
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
# | optimise pairs, and compare methods that do it | [09_optimisation](09_optimisation.ipynb) |
