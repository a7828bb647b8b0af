# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 0 · Quickstart: two images, registered and looked at
#
# [01 The data](01_data.ipynb) → · takes: half a minute
#
# Imagine two photographs of the same cells: they have moved, the light has changed, and the camera is noisy. **Registration**
# finds, for every pixel of the *fixed* image $F$, where it was in the *moving* image $M$: a displacement $u$, so that
# $M(x + u(x))$ looks like $F(x)$. Grey values are a poor guide to that: noise and light change them. **DeepSim** compares
# what a small network *sees* in both images.
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
# checked. Results on real data are in chapters [5](05_tuning.ipynb) to [9](09_optimisation.ipynb).

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
# tell background, cytoplasm and organelle apart ([chapter 2](02_feature_extractor.ipynb)). Its encoder gives every position
# a feature vector, at three resolutions. Below, their three principal components are shown as red, green and blue: similar
# features get similar colours. (The reverse need not hold, and colours of different maps do not compare.)

# %%
extractor = load("phantom-2d/seg").requires_grad_(False)
figures.feature_maps(fixed, extractor.features(fixed), pair.fixed.label, data.colors)

# %% [markdown]
# DeepSim is one minus the cosine between the feature vectors $f_l$ of both images at each position, averaged over the
# $L = 3$ resolutions:
#
# $$D(M\circ\Phi, F) = 1 - \frac{1}{L} \sum_l \underset{p}{\mathrm{mean}}\, \cos\big(f_l(M\circ\Phi)_p,\, f_l(F)_p\big)$$
#
# Take one point of the fixed image. Where in the moving image does the network see something similar? Yellow means
# similar, blue dissimilar; the circle is the true partner of the point. Level 1 finds many similar places. Coarser levels
# look at a larger neighbourhood and find fewer, but no level alone singles out the right one: the regulariser decides
# between them.

# %% tags=["nbval-ignore-output"]
import torch

point, similar = (48, 62), []
for ours, theirs in zip(extractor.features(fixed), extractor.features(moving), strict=True):
    step = fixed.shape[-1] // ours.shape[-1]
    vector = ours[0, :, point[0] // step, point[1] // step]
    similar.append(torch.cosine_similarity(theirs[0], vector[:, None, None], dim=0))
partner = [p + pair.displacement[axis][point].item() for axis, p in enumerate(point)]
figures.cosine_maps(fixed, moving, similar, point, partner)

# %% [markdown]
# ## Three methods, three calls
#
# `register` minimises
#
# $$\mathcal L(u) = D(M\circ\Phi, F) + \lambda\,R(u), \qquad \Phi(x) = x + u(x)$$
#
# over a smooth invertible warp, coarse to fine; $R$ is the mean squared gradient of $u$, and λ its weight. Here $D$ is the sum
# of DeepSim and of local correlation of the grey values (`ncc`, [chapter 3](03_registration.ipynb)): one knows what belongs
# together, the other sees detail. The network was trained, on other phantoms, with DeepSim alone. A network's
# prediction can initialise the optimisation; with `steps=0` it is the result. To save time, `register` extracts the features
# once and warps them: it compares $f_l(M)\circ\Phi$ with $f_l(F)$, and `extract="always"` follows the formula above, as the
# training of networks does. [Chapter 7](07_ablations.ipynb) compares the two orders.

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
# Then in numbers: the overlap of the labels (Dice, 1 is perfect; with and without the background), the distance of each
# foreground pixel from its true place, the fraction of pixels where the warp folds, the spread of $\log J$, where $J$ is the
# local change of area (0 if nothing bends), and the seconds of the call.

# %% tags=["nbval-ignore-output"]
import pandas as pd

from deepsimreg.metrics import evaluate_pair

fields = {"before": None, **{name: found.displacement for name, found in methods.items()}}
fields["true warp"] = pair.displacement[None]
rows = {
    name: evaluate_pair(u, *labels, data.classes, data.spacing, pair.displacement[None]) for name, u in fields.items()
}
table = pd.DataFrame(rows).T[["dice", "dice_foreground", "target_registration_error", "folds", "sd_log_jacobian"]]
table.assign(seconds=pd.Series({name: found.seconds["total"] for name, found in methods.items()})).round(3)

# %% tags=["nbval-ignore-output"]
best = table["dice_foreground"].drop("true warp").idxmax()
print(f"Before, the foreground overlaps by {table['dice_foreground']['before']:.2f}; the method '{best}' raises it to "
      f"{table['dice_foreground'][best]:.2f}, and the mean error from "
      f"{table['target_registration_error']['before']:.1f} to {table['target_registration_error'][best]:.1f} pixels. "
      f"SD log J of the true warp: {table['sd_log_jacobian']['true warp']:.2f}, of this one "
      f"{table['sd_log_jacobian'][best]:.2f}.")  # fmt: skip

# %% [markdown]
# Overlap rises far more than the error falls: inside a class nothing tells one pixel from the next, so a warp can be wrong
# there and cost no overlap. The last row is the answer itself; even its overlap is below 1, since labels are moved by whole
# pixels.

# %% [markdown]
# ## From moving to moved
#
# The warp is the end of a flow, $\Phi = \exp(v)$, and can be followed part of the way: $\exp(t\,v)$. (The network alone returns
# no velocity here; then $t\,u$ is shown.) Move the slider; contours, grid and determinant follow. Without a kernel it does
# nothing; the strip below shows two moments. Contours of the fixed image are solid, of the moved one dashed.

# %%
import ipywidgets as widgets


def show(method: str, t: float) -> None:
    found = methods[method]
    display(figures.partway(moving, fixed, found.partway(t), t, labels, data.colors, found.displacement))


# %% tags=["nbval-ignore-output"]
controls = {
    "method": widgets.Dropdown(options=list(methods), value="both"),
    "t": widgets.FloatSlider(value=1, min=0, max=1, step=0.1, description="t", continuous_update=False),
}
widgets.VBox([*controls.values(), widgets.interactive_output(show, controls)])

# %% tags=["nbval-ignore-output"]
for t in (0.5, 1.0):
    show("both", t)

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
# One pair proves nothing; [chapter 9](09_optimisation.ipynb) has many, on real images, with intervals and tests.
#
# ## What to take away
#
# - Registration is a similarity, a regulariser, and an exchange rate λ between them.
# - DeepSim replaces grey values by features of a network that was trained on images like these.
# - A result is overlap *and* a warp that does not fold *and*, where the truth is known, the distance to it.
#
# **Exercises.** 1. Set `similarity` to `"mse"` and run all: where do the contours go wrong? 2. Move `point` to the
# background. Which level changes most? 3. Set `lam` to 0.02: which panel shows it first?
#
# ## Where to go
#
# | you want to | open |
# |---|---|
# | see the data | [01_data](01_data.ipynb) |
# | train the network that sees | [02_feature_extractor](02_feature_extractor.ipynb) |
# | train a network that registers in one step | [03_registration](03_registration.ipynb) |
# | know how SyN and greedy do it | [04_baselines](04_baselines.ipynb) |
# | see how λ was chosen | [05_tuning](05_tuning.ipynb) |
# | compare networks and baselines | [06_evaluation](06_evaluation.ipynb) |
# | take DeepSim apart | [07_ablations](07_ablations.ipynb), [08_robustness](08_robustness.ipynb) |
# | optimise pairs, and see the tests | [09_optimisation](09_optimisation.ipynb) |
# | register your own images | [10_own_data](10_own_data.ipynb) |
# | find a figure of the paper | [11_figures](11_figures.ipynb) |
