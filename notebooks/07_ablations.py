# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 · Taking it apart
#
# Which part of DeepSim does the work? Each variant changes one thing and keeps the rest: same pairs, same steps, same seed,
# same λ as the method it starts from.
#
# | group | question |
# |---|---|
# | levels | does it take all three resolutions? |
# | order | warp the image and extract, or extract and warp the features? |
# | features | must the extractor know this dataset? (trained elsewhere, or not at all; means removed) |
# | network | is it the network, and not the loss? (TransMorph in place of VoxelMorph) |
# | labels | how many labelled images does the segmenting extractor need? |

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile

# %%
from deepsimreg.paper import figures
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.tables import ablations

plan = Profile(profile)
for name, (group, base) in plan.groups(dataset).items():
    print(f"{name:20s} {'the method itself' if name == base else f'{group}, a variant of {base}'}")

# %% [markdown]
# ## Every variant on the test pairs
#
# In the quick profile, networks that are missing are trained first.

# %% tags=["nbval-ignore-output"]
tables = ablations(plan, dataset)
columns = ["method", "group", "base", "lam", "dice", "dice_foreground", "folds", "sd_log_jacobian"]
tables["variants"][columns].round(4)

# %% [markdown]
# ## Against the method they start from
#
# Dice with its interval, and the roughness of the warp. The line is the method without changes.

# %% tags=["nbval-ignore-output"]
figures.ablation_bars(tables["pairs"])

# %% [markdown]
# ### Extract before the warp, or after it?
#
# The usual order warps the image and looks at it with the extractor, so the gradient runs through the whole extractor at
# every step. The other order looks once, and warps the features; it costs nothing but interpolation, and its features
# do not change when the image is bent. (The published code could not reach its own version of this: the runs behind the
# published comparison trained plain DeepSim. See `deepsimreg/losses/deepsim.py` for the displacement at each level.)
#
# ### Random features
#
# An encoder with its initial weights is a bank of random filters: local, and with some contrast. What it reaches is
# the share of the result that owes nothing to learning.
#
# ## What to take away
#
# - A variant that comes out no worse is a simplification waiting to be made.
# - One seed and short trainings: differences smaller than the spread of the seeds mean nothing.
#
# Next: [08_robustness](08_robustness.ipynb) adds noise.
