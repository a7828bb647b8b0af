# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8 · What noise does
#
# Classic losses compare grey values, and noise changes grey values. The networks are trained; now their test images get
# Gaussian noise, clipped to [0, 1], drawn once for each pair, so that all methods see the same. Labels stay as they are.

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
table = robustness(plan, dataset)
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
# ## What to take away
#
# - The question is the slope, not the height: who loses least as noise grows?
# - All networks were trained without the added noise; training with it would be another experiment.
#
# [05_figures](05_figures.ipynb) draws these results beside the others.
