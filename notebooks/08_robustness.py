# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8 · What noise and contrast do
#
# Classic losses compare grey values, and noise changes grey values. The networks are trained; now their test images get
# Gaussian noise, clipped to [0, 1], drawn once for each pair, so that all methods see the same. Labels stay as they are.
# Then the harder question: what if *one* image of the pair was taken with another contrast?

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile

# %%
import torch

from deepsimreg.data.augment import add_noise
from deepsimreg.paper import figures
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.tables import robustness

plan = Profile(profile)
data = plan.data(dataset)

# %% [markdown]
# ## What the methods get to see

# %%
image = data.pairs("test")[0].fixed.image[None]
levels = [0.0, *plan.part(dataset).robustness.noise]
noisy = [add_noise(image, sd, torch.Generator().manual_seed(0)) for sd in levels]
figures.image_row(noisy, [f"SD {sd:g}" for sd in levels])

# %% [markdown]
# ## Every method at every level of noise
#
# In the quick profile, networks that are missing are trained first.

# %% tags=["nbval-ignore-output"]
tables = robustness(plan, dataset)
table = tables["noise"]
table.pivot_table(index="method", columns="noise", values="dice", sort=False).round(4)

# %% tags=["nbval-ignore-output"]
figures.robustness(table)

# %% [markdown]
# ## And the warps?
#
# A network that takes noise for structure bends the grid to follow it: the spread of $\log J$ grows.

# %% tags=["nbval-ignore-output"]
table.pivot_table(index="method", columns="noise", values="sd_log_jacobian", sort=False).round(4)

# %% [markdown]
# ## Another contrast
#
# The moving image alone: a gamma of one half or two, $M^\gamma$; inverted, $1 - M$; brighter to one side; noise. The
# methods are some of [09_optimisation](09_optimisation.ipynb), each at the λ that it has there; their extractors have never
# seen such images. Where the profile names no methods, the table is empty.

# %% tags=["nbval-ignore-output"]
contrast = tables["contrast"]
contrast.pivot_table(index="method", columns="contrast", values="dice_foreground", sort=False).round(4)

# %% tags=["nbval-ignore-output"]
figures.contrast(contrast) if len(contrast) else "no methods"

# %% [markdown]
# ## What to take away
#
# - The question is the slope, not the height: who loses least as noise grows?
# - All networks were trained without the added noise; training with it would be another experiment.
#
# [05_figures](05_figures.ipynb) draws these results beside the others.
