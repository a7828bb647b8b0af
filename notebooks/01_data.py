# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 · The data
#
# ← [00 Quickstart](00_quickstart.ipynb) · [02 The feature extractor](02_feature_extractor.ipynb) → · takes: seconds
#
# Registration needs two things from a data set: **pairs** of images that show the same kind of object, and, to train a
# segmentation network and to judge the result, a **label** for every pixel. This notebook looks at both before any
# network does. After it you know what a moving and a fixed image are, how hard the pairs are, and which classes the
# Dice score will be taken over.
#
# Every dataset of `deepsimreg` looks the same from outside:
#
# | what | shape | meaning |
# |---|---|---|
# | image | (1, \*spatial) | grey values in [0, 1] |
# | label | (1, \*spatial) | a class index per pixel |
# | displacement | (d, \*spatial) | $u$, where it is known: $M(x + u(x))$ shows the same point as $F(x)$; in voxels, array axis order |
#
# The rank of the arrays says whether there are $d = 2$ or 3 axes; nothing else does. One notation holds in all chapters:
#
# | | |
# |---|---|
# | $M$, $F$ | the moving and the fixed image |
# | $u$, $\Phi(x) = x + u(x)$ | the displacement, and the warp; $M\circ\Phi$ is the moved image |
# | $v$, $\Phi = \exp(v)$ | a velocity, and the warp at the end of its flow |
# | $D$, $R$, λ | similarity (low is similar), regulariser, and its weight |
# | $J = \lvert\nabla\Phi\rvert$ | determinant of the Jacobian: the local change of area or volume; 0 or less where the warp folds |
# | $f_l$ | features of level $l$ of an extractor |

# %% [markdown]
# ## Parameters
#
# The default is the **phantom**: scenes that are drawn by a program, with noise and uneven light drawn anew for every
# image. Nothing has to be fetched for it. The other data sets need their files, see [their page](../data/README.md). The quick profile draws phantoms
# of 64 × 64 pixels; chapters 0, 9 and 10 use 96 × 96, so their numbers differ.

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile

# %%
import numpy as np

from deepsimreg.paper import figures
from deepsimreg.data.augment import AUGMENTATIONS, augment_pair
from deepsimreg.metrics import evaluate_pair
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.words import unit

plan = Profile(profile)
data = plan.data(dataset)
print(data.description)
print(f"\n{data.ndim}D, {data.shape} voxels of {data.spacing} {unit(dataset)}, classes: {', '.join(data.classes)}")
print(f"Licence: {data.licence}\nCite: {data.citation}")

# %% [markdown]
# ## Splits
#
# Images of the *training* split teach the extractors and the registration networks, *validation* chooses λ and the
# moment to stop, and *test* is used only to report results: nothing is chosen by it. No image is in two
# splits.

# %%
for split in ("train", "validation", "test"):
    print(f"{split:10s} {len(data.samples(split)):4d} images {len(data.pairs(split)):6d} pairs")

# %% [markdown]
# ## Images and their labels
#
# Look at the images first and at the contours second: could you draw these contours from the grey values alone? Where
# you hesitate, a loss that compares grey values has nothing to hold on to either.

# %%
samples = data.samples("train")[:4]
figures.image_row([s.image for s in samples], [s.name for s in samples])

# %%
figures.image_row(
    [s.image for s in samples],
    ["with labels"] * len(samples),
    labels=[s.label for s in samples],
    classes=data.classes,
    colors=data.colors,
)

# %% [markdown]
# How often a class occurs matters twice: cross-entropy sees frequent classes more, and mean Dice counts every class
# once, however small.

# %%
labels = np.stack([sample.label.numpy() for sample in data.samples("train")])
for index, name in enumerate(data.classes):
    print(f"{name:12s} {np.mean(labels == index):6.1%} of the voxels")

# %% [markdown]
# ## Grey values
#
# If classes had their own grey values, thresholds would segment the image and a squared difference would register it.
# The histograms show how far they overlap; how far thresholds would come is printed below them.

# %%
images = np.stack([sample.image.numpy() for sample in data.samples("train")])
figures.class_histogram(images, labels, data.classes, data.colors)

# %%
shade = np.digitize(images, np.linspace(0, 1, 65))
right = sum(np.bincount(labels[shade == one]).max() for one in np.unique(shade)) / labels.size
print(f"The best class for each grey value is right for {right:.0%} of the voxels; the most frequent class, for all of them "
      f"alike, for {np.bincount(labels.ravel()).max() / labels.size:.0%}.")  # fmt: skip

# %% [markdown]
# ## A pair
#
# The **moving** image is to be pulled onto the **fixed** one. Contours in both panels are the labels of the image
# below them.

# %%
pair = data.pairs("test")[0]
figures.image_row(
    [pair.moving.image, pair.fixed.image],
    ["moving", "fixed"],
    labels=[pair.moving.label, pair.fixed.label],
    classes=data.classes,
    colors=data.colors,
)

# %% [markdown]
# Before anything is registered the labels already overlap to some degree. This is the number that every method has to
# beat, and it stays in every table as a method of its own, *unregistered*:
#
# $$\mathrm{Dice}_k = \frac{2\,|A_k \cap B_k|}{|A_k| + |B_k|}$$
#
# with the voxels $A_k$ and $B_k$ of class $k$ in the moved and the fixed label. `dice_foreground` is the mean without the
# background; `hd95` the 95th percentile of the distances between the outlines, in the unit printed above.

# %%
before = [
    evaluate_pair(None, p.moving.label[None], p.fixed.label[None], data.classes, data.spacing)
    for p in data.pairs("test")
]
for name in ("dice", "dice_foreground", "hd95"):
    print(f"{name:16s} {np.mean([row[name] for row in before]):.3f}")

# %% [markdown]
# ## The true displacement
#
# A phantom knows its answer. Its pairs are made by a smooth, invertible displacement, so besides the overlap of labels
# the **registration error** of every voxel can be measured. Real data have no such field, and nothing is drawn then.

# %%
if pair.displacement is not None:
    display(
        figures.image_row(
            [pair.moving.image], ["moving, true grid x + u(x)"], displacements=[pair.displacement], width=3.5
        )
    )
    both = pair.moving.label[None], pair.fixed.label[None]
    known = evaluate_pair(pair.displacement[None], *both, data.classes, data.spacing)
    print(f"It moves voxels by up to {pair.displacement.norm(dim=0).max():.1f}, with SD log J "
          f"{known['sd_log_jacobian']:.2f}: this is what a method should find.")  # fmt: skip

# %% [markdown]
# ## Augmentation
#
# A network that has seen an image upside down can handle it later. In training one random affine map is drawn for each
# pair and applied to **both** images and their labels alike, so the displacement between them stays learnable.

# %%
import torch

generator = torch.Generator().manual_seed(0)
matrix = AUGMENTATIONS[data.ndim].sample(generator, data.ndim, data.shape, data.spacing)
(moving, fixed), (moving_label, fixed_label) = augment_pair(
    [pair.moving.image[None], pair.fixed.image[None]], [pair.moving.label[None], pair.fixed.label[None]], matrix
)
figures.image_row(
    [moving[0], fixed[0]],
    ["moving, augmented", "fixed, augmented"],
    labels=[moving_label[0], fixed_label[0]],
    classes=data.classes,
    colors=data.colors,
)

# %% [markdown]
# This closes the run of the chapter, so that `make paper` knows that it is finished.

# %%
with plan.chapter(dataset, "data").open() as run:
    run.finish()

# %% [markdown]
# ## What to take away
#
# - A data set gives images, labels and pairs in one form, whatever its files look like.
# - Grey values of the classes overlap; that is what makes the choice of the similarity matter.
# - The unregistered overlap is what every result has to beat; a registration can also be worse.
#
# **Exercises.** 1. Which class costs most mean Dice when every contour is off by one pixel, and why? 2. Change `dataset` and
# `profile` to a data set that you have fetched (`deepsimreg fetch`): do its classes have grey values of their own?
# 3. Which augmentations would be wrong for a brain, and which for cells?
