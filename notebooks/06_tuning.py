# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · How λ is chosen
#
# $L = D + \lambda R$: the scale of $D$ differs from similarity to similarity by orders of magnitude, so a λ that suits one
# says nothing about another. Each similarity gets a grid of its own. A short training with each value, the same seed, the
# same pairs; then the validation pairs decide. The test pairs are not looked at.
#
# The rule, for every method of this project: the highest Dice without the background among the values that fold at most one voxel in ten thousand;
# if all fold more, the smoothest, and the table marks it.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile

# %%
from deepsimreg.paper import figures
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.tables import tuning

plan = Profile(profile)
for name, network in plan.part(dataset).registration.similarities.items():
    grid = "the best λ of " + ", ".join(f"{lam:g}" for lam in network.grid)
    print(f"{name:12s} {grid if network.lam == 'tuned' else f'λ = {network.lam:g}, from the profile'}")

# %% [markdown]
# ## Every λ of every similarity
#
# In the quick profile, networks that are missing are trained first.

# %% tags=["nbval-ignore-output"]
table = tuning(plan, dataset)
columns = ["method", "lam", "dice", "dice_foreground", "folds", "sd_log_jacobian", "seconds", "chosen", "mark"]
table[columns].fillna({"mark": ""}).round(4)

# %% [markdown]
# ## λ against Dice
#
# A good grid has its best value inside: Dice falls on both sides, with too free a warp to the left and too stiff a warp to
# the right. A best value at the edge of the grid is a hint that a wider grid would find a better one.

# %% tags=["nbval-ignore-output"]
figures.tuning_curve(table)

# %% [markdown]
# ## What Dice costs in smoothness
#
# The same runs, Dice against the spread of $\log J$. Two similarities should be compared where their curves have the same
# smoothness, not where each happens to be best: the upper curve is the better similarity.

# %% tags=["nbval-ignore-output"]
figures.smoothness_against_dice(table, ringed=True, width=7)

# %% [markdown]
# ## The choice

# %% tags=["nbval-ignore-output"]
marks = {"edge": "at the edge of its grid", "folds": "every value folds too much", "edge folds": "edge, and folds"}
for row in table[table["chosen"]].itertuples():
    print(f"{row.method:12s} λ = {row.lam:g} {marks.get(row.mark, '')}")

# %% [markdown]
# ## What to take away
#
# - λ belongs to a similarity and a dataset. It is chosen on validation pairs, and the final training takes it from there.
# - Short trainings rank the values only where they have learned something: compare with the unregistered Dice.
#
# Next: [07_ablations](07_ablations.ipynb) takes the method apart.
