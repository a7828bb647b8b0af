# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · The feature extractor
#
# ← [01 The data](01_data.ipynb) · [03 Registration](03_registration.ipynb) → · takes: a minute in the quick profile
#
# DeepSim compares what a small network *sees*. Which network? One that was trained on the images at hand, for one of
# two tasks:
#
# - **seg**: a U-Net that segments. Its features are trained to tell the classes apart, and need labels for that.
# - **ae**: an autoencoder that squeezes an image through a narrow code and rebuilds it. It needs no labels.
#
# DeepSim uses the **encoder** alone: its outputs at 1/2, 1/4 and 1/8 of the resolution are the features $f_1, f_2, f_3$. (One
# similarity of this project, `classes-seg`, compares the classes that the whole U-Net predicts.) In this notebook the network is trained, tested on images it has never seen, and its features are looked at.

# %% [markdown]
# ## Parameters
#
# `experiments/<profile>.yaml` holds the sizes and lengths. What is given here replaces them.

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile
extractor: str = "seg"  # seg: U-Net, cross-entropy; ae: autoencoder, mean squared error; or another of the profile
seed: str = "profile"  # of initial weights, samples and augmentation; a number needs a folder
steps: str = "profile"  # optimiser steps; a number needs a folder
folder: str = ""  # of a run with settings of your own; empty: runs/<profile>/<dataset>/extractor-<name>

# %%
import torch

from deepsimreg.paper import figures
from deepsimreg.models import UNet, count_parameters
from deepsimreg.paper.extractors import evaluate_extractor, extractor_training, source_data, train_extractor
from deepsimreg.paper.plan import Profile

given = {"seed": seed, "steps": steps}
changes = {name: value for name, value in given.items() if value != "profile"}
plan = Profile(profile)
run = plan.extractor(dataset, extractor, folder, **changes)
data = source_data(plan, run)

# %% [markdown]
# ## The network
#
# An encoder stage halves the resolution with a strided convolution and looks once more with a 3-wide one:
#
# > conv 4, stride 2 → LeakyReLU → conv 3 → LeakyReLU
#
# with a batch norm after each convolution where the profile says so.
# The decoder mirrors it with linear upsampling. The U-Net passes the encoder's maps across (skip connections); the
# autoencoder must not, or it would copy the image instead of understanding it. The *light* variant of the profiles for
# CPUs works at half resolution in its last layers, where most of the time would go.

# %%
network = extractor_training(run.settings, data).network
print(f"{type(network).__name__}, {count_parameters(network):,} weights")
for level, features in enumerate(network.features(data.samples("train")[0].image[None]), start=1):
    print(f"level {level}: {tuple(features.shape)}")

# %% [markdown]
# ## Training
#
# The U-Net minimises the cross-entropy, the autoencoder the squared error, both as means over the voxels $p$; $\hat y_{p,k}$ is
# the predicted probability of class $k$, $y_p$ the true class:
#
# $$L_\text{seg} = -\frac{1}{P}\sum_p \log \hat y_{p, y_p} \qquad L_\text{ae} = \frac{1}{P}\sum_p (\hat I_p - I_p)^2$$
#
# Adam does the steps. The learning rate falls to a tenth when the validation loss stays where it is, or follows a cosine
# down to zero, as the profile says. The weights of the best validation are kept. If the run's folder already holds a finished training, it is loaded; if it holds one that was
# cut off, it goes on from its last checkpoint and ends with the weights that an uninterrupted run would have.

# %% tags=["nbval-ignore-output"]
network, history = train_extractor(run, data)

# %% tags=["nbval-ignore-output"]
figures.learning_curve(history.dropna(axis=1, how="all")) if run.settings.fit.steps else "initial weights, not trained"

# %% [markdown]
# A training curve that still falls while validation rises is a network that learns its images by heart. Where both have
# flattened, more steps would change little.

# %% tags=["nbval-ignore-output"]
step, steps_asked = run.result()["best"].get("step", 0), run.settings.fit.steps
said = (
    "validation still improved at the end: a longer training would help" if step == steps_asked else "it ended in time"
)
print(f"Best validation at step {step:.0f} of {steps_asked}: {said}.")

# %% [markdown]
#
# ## Test
#
# Now the images that no step and no choice has touched. The results are written to the run's folder as images
# (`test/`), with the spacing and position of the originals, and as a table.

# %% tags=["nbval-ignore-output"]
table = evaluate_extractor(network, run.settings.kind, data, run.folder / "test")
table.describe().loc[["mean", "std", "min", "max"]].round(4)

# %%
samples = data.samples("test")[:4]
if "dice_foreground" in table:
    worst = table[[f"dice_{name}" for name in data.classes]].mean()
    print(f"Hardest class: {worst.idxmin().removeprefix('dice_')}, Dice {worst.min():.2f}. What the network misses or invents "
          "in the pictures below, DeepSim inherits.")  # fmt: skip
with torch.no_grad():
    outputs = [network(sample.image[None]) for sample in samples]
images = [sample.image for sample in samples]
if isinstance(network, UNet):
    predictions = [output.argmax(1)[0] for output in outputs]
    labels = [sample.label for sample in samples]
    gallery = figures.segmentation_gallery(images, labels, predictions, data.classes, data.colors)
else:
    gallery = figures.reconstruction_gallery(images, [output[0, 0] for output in outputs])
gallery

# %% [markdown]
# ## What the network sees
#
# An image, and its features at each level: three principal components as red, green and blue, so that similar features get
# similar colours; the reverse need not hold, and colours of two maps do not compare. Level 1 still resembles the image: edges and texture. Deeper maps are coarser and look less like it.
# Whether they follow the classes, colours alone do not show; the Dice of a registration does. These maps, and not the
# pixels, are what DeepSim will compare.

# %%
with torch.no_grad():
    levels = network.features(samples[0].image[None])
image = samples[0].image[None]
figures.feature_maps(image, levels, samples[0].label if samples[0].label is not None else None, data.colors)

# %% [markdown]
# What the run's folder records:

# %% tags=["nbval-ignore-output"]
best = ", ".join(f"{name} {value:.4g}" for name, value in run.result()["best"].items())
print(f"{run}: best {best}")

# %% [markdown]
# ## What to take away
#
# - The extractor is a small network that is trained in minutes, and frozen from here on.
# - Its run folder holds `weights.safetensors`, the configuration that re-creates it, every metric by step and the test.
# - A registration names this run; nothing is copied by hand.
#
# **Exercises.** 1. Run with `extractor="ae"`: which level still shows the noise? 2. Why must the autoencoder not have skip
# connections, while the U-Net may? 3. Train `seg` for 50 steps (`steps`, with a `folder`): how much do its maps differ?
