# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Your own data
#
# ← [09 One pair at a time](09_optimisation.ipynb) · [11 The paper's figures](11_figures.ipynb) → · takes: half a minute
#
# You have a folder of images. This chapter takes it to registered images, to a table of a whole study, and to a data set
# that the other chapters can train on. The folder is made here from the phantom, as 8-bit TIFF files, so that everything
# runs. With images of your own, give their folder and adapt the pairing, `classes` and `intensity` below; results are
# written into that folder. `register` reads NIfTI, NRRD, MetaImage, MGH and PNG alike, in 2D and 3D; descriptions of data
# sets read TIFF and NIfTI.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
folder: str = ""  # with images/*.tif and labels/*.tif; empty: a folder of made images
similarity: str = "ncc-25"  # what is compared; needs no network
lam: float = 1.5  # weight of the regulariser: larger is smoother

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch

from deepsimreg import register
from deepsimreg.data import load_dataset
from deepsimreg.paper import figures

place = Path(folder or tempfile.mkdtemp(prefix="my-study-"))

# %%
if not folder:
    for kind in ("images", "labels"):
        (place / kind).mkdir()
    for number, one in enumerate(load_dataset("phantom-2d").pairs("test")[:6]):
        for letter, sample in (("a", one.moving), ("b", one.fixed)):
            grey = (255 * sample.image[0].numpy()).round().astype(np.uint8)
            tifffile.imwrite(place / "images" / f"dish{number}{letter}.tif", grey)
            tifffile.imwrite(place / "labels" / f"dish{number}{letter}.tif", sample.label[0].numpy())
files = sorted(path.name for path in (place / "images").glob("*.tif"))
print(f"{len(files)} images: {', '.join(files[:4])} …")

# %% [markdown]
# ## Two files, one call
#
# `register` takes paths. What the files say of voxel sizes and orientation is used; what they cannot say, as in most TIFF
# files, counts as one pixel. What it returns can be looked at and saved, in files that ITK, ANTs and Slicer read.

# %%
first, second = (place / "images" / name for name in files[:2])
result = register(first, second, similarity, lam, progress=False)
saved = result.save(place / "result")
print(*sorted(path.name for path in saved), sep="\n")

# %%
top = max(result.moving.data.max(), result.fixed.data.max())
figures.partway(result.moving.data / top, result.fixed.data / top, result.displacement, 1.0)

# %% [markdown]
# By eye: does the first panel look like the second, does the grid bend without tearing, and is the determinant near one
# where nothing should grow? `deepsimreg register … --report page.html` writes such a page for each pair. Here the background
# bends, too, although nothing can be seen to move in it: there the warp follows noise. A larger λ makes it smoother. The default is chosen
# on other data; with a few labelled pairs, try a third and three times of it and keep what has the best Dice without folds
# ([chapter 5](05_tuning.ipynb)).
#
# ## A study
#
# Many pairs are a table: one row per pair, with labels if there are any. The same command goes on where it was killed, and a
# pair that fails does not stop the others.

# %%
pairs = pd.DataFrame({"moving": files[0::2], "fixed": files[1::2]})
study = pairs.map(lambda name: str(place / "images" / name))
study = study.assign(
    name=[Path(name).stem for name in files[0::2]], labels=pairs["moving"], fixed_labels=pairs["fixed"]
)
for column in ("labels", "fixed_labels"):
    study[column] = [str(place / "labels" / name) for name in study[column]]
study.to_csv(place / "pairs.csv", index=False)

# %% tags=["nbval-ignore-output"]
import subprocess
import sys

command = ["batch", place / "pairs.csv", "--out", place / "study", "--similarity", similarity, "--lam", lam]
called = [sys.executable, "-m", "deepsimreg.cli", *map(str, command)]
done = subprocess.run(called, capture_output=True, text=True)
print("deepsimreg batch pairs.csv --out study:", "done" if done.returncode == 0 else done.stderr)

# %% tags=["nbval-ignore-output"]
table = pd.read_csv(place / "study" / "results.csv")
from deepsimreg.metrics import segmentation_metrics

classes = ["background", "cytoplasm", "organelle"]


def overlap(moving: str, fixed: str) -> float:
    """Mean Dice of two label files as they are."""
    arrays = [torch.from_numpy(tifffile.imread(path).astype("int64"))[None, None] for path in (moving, fixed)]
    return segmentation_metrics(*arrays, classes)["dice"]


table["before"] = [overlap(row.labels, row.fixed_labels) for row in study.itertuples()]
table[["name", "before", "dice", "folds", "sd_log_jacobian", "seconds"]].round(4)

# %% tags=["nbval-ignore-output"]
worst = table.loc[table["dice"].idxmin()]
print(
    f"mean Dice {table['before'].mean():.3f} before, {table['dice'].mean():.3f} after; look at {worst['name']} first: {worst['dice']:.3f}"
)

# %% [markdown]
# ## A data set
#
# To train an extractor or a registration network on your images, describe the folder in a few lines of YAML. Error
# messages name the file, the key and the allowed values. Pairs may be all images of a part with all others, as between subjects, or
# neighbours in a stack; here, where each image has one partner, a file lists the pairs of all three splits.

# %%
names = [Path(name).stem for name in files]
rows = [("train", *names[i : i + 2]) for i in range(0, len(names) - 4, 2)]
rows += [("validation", *names[-4:-2]), ("test", *names[-2:])]
pd.DataFrame(rows, columns=["split", "moving", "fixed"]).to_csv(place / "partners.csv", index=False)
description = f"""
name: dishes
kind: planes
images: {place}/images/{{subject}}.tif
labels: {place}/labels/{{subject}}.tif
classes: [{", ".join(classes)}]
intensity: {{range: [0, 255]}}
split: {{train: [{", ".join(names[:-4])}], validation: [{", ".join(names[-4:-2])}], test: [{", ".join(names[-2:])}]}}
pairs: {{file: {place}/partners.csv}}
"""

# %%
(place / "dishes.yaml").write_text(description)
data = load_dataset(str(place / "dishes.yaml"))
for split in ("train", "validation", "test"):
    print(f"{split:10s} {len(data.samples(split))} images, {len(data.pairs(split))} pairs")

# %%
sample = data.pairs("test")[0]
figures.image_row(
    [sample.moving.image, sample.fixed.image],
    ["moving", "fixed"],
    labels=[sample.moving.label, sample.fixed.label],
    classes=data.classes,
    colors=data.colors,
    width=4,
)

# %% [markdown]
# A profile that names the description then trains and tests everything on it, extractor, networks, baselines, figures:
#
# ```yaml
# # experiments/dishes.yaml
# dishes:
#   data: {description: my-study/dishes.yaml}
#   extractors: {network: {channels: [16, 32, 64], light: true}, fit: {steps: 800}}
#   registration:
#     network: {channels: [16, 32, 64], light: true, diffeomorphic: 5}
#     fit: {steps: 800, learning_rate: 1.0e-3, gradient_clip: 1.0}
#     tuning: {steps: 200}
#     similarities: {ncc: {lam: 1}, deepsim-seg: {grid: [0.3, 1, 3]}}
#   baselines: {greedy: {smoothing: [1, 1.5, 2]}}
# ```
#
# ```sh
# make paper PROFILE=dishes
# ```
#
# ## Which similarity, when?
#
# | your images | start with | because |
# |---|---|---|
# | one modality, decent contrast | `ncc-25` | local correlation needs no training and minds neither brightness nor slow changes of light |
# | unequal contrast between the two | `mind`, `nmi` | they compare structure, or predict one grey value from the other |
# | repetitive or noisy texture, and a few labels | `ncc-seg`, `deepsim-seg` with an extractor of your own | features say what a texture belongs to |
# | no labels at all | `ncc-ae` | an autoencoder needs none; check that it beats `ncc-25` on your validation pairs |
#
# None of these is a law: [chapter 9](09_optimisation.ipynb) shows that the order changes with the data. Keep some labelled
# pairs aside, choose on them, and test once on others.
#
# ## What to take away
#
# - Paths in, a warp out; the output files keep position and spacing.
# - A study is a table, and a table is what you should look at, from its worst row on.
# - What you describe once in YAML, every chapter can use.
#
# **Exercises** (before the last cell, which removes the made folder). 1. Give one of the TIFF files another size and run
# the study again: what is reported, and what happens to the
# other pairs? 2. Apply `result/field.nii.gz` to the labels with `deepsimreg apply … --labels` and compare with
# `result.warp_labels`.

# %%
import shutil

if not folder:
    shutil.rmtree(place)
