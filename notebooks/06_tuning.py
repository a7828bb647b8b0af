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
# same pairs; then the validation Dice decides. The test pairs are not looked at.
#
# The choice is written to a file, and the long trainings read it from there.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile

# %%
from deepsimreg.paper.notebook import check_parameters

check_parameters(globals())

# %%
from deepsimreg.paper import plots
from deepsimreg.paper.experiment import Profile, write_json
from deepsimreg.paper.stages import tune

plan = Profile(profile)
data = plan.load(dataset)
for method in plan.methods(dataset):
    grid = "λ of " + ", ".join(f"{lam:g}" for lam in plan.grid(dataset, method))
    print(f"{method:12s} {grid}" if plan.chosen_by_tuning(dataset, method) else f"{method:12s} λ from the profile")

# %% [markdown]
# ## Every λ of every similarity
#
# In the quick profile, networks that are missing are trained here.

# %% tags=["nbval-ignore-output"]
table = tune(plan, data)
table[["method", "lam", "dice", "dice_foreground", "folds", "sd_log_jacobian", "seconds", "chosen"]].round(4)

# %% [markdown]
# ## λ against Dice
#
# A good grid has its best value inside: Dice falls on both sides, with too free a warp to the left and too stiff a warp to
# the right. A best value at the edge of the grid is a hint that a wider grid would find a better one.

# %% tags=["nbval-ignore-output"]
plots.tuning_curve(table)

# %% [markdown]
# ## What Dice costs in smoothness
#
# The same runs, Dice against the spread of $\log J$. Two similarities should be compared where their curves have the same
# smoothness, not where each happens to be best: the upper curve is the better similarity.

# %% tags=["nbval-ignore-output"]
plots.matched_smoothness(table)

# %% [markdown]
# ## The choice

# %% tags=["nbval-ignore-output"]
for method in plan.methods(dataset):
    grid, lam = plan.grid(dataset, method), plan.lam(dataset, method)
    edge = " (at the edge of its grid)" if len(grid) > 1 and lam in (min(grid), max(grid)) else ""
    print(f"{method:12s} λ = {lam:g}{edge}")

# %% [markdown]
# ## What to take away
#
# - λ belongs to a similarity and a dataset. It is chosen on validation pairs, by a file that the next stage reads.
# - Short trainings are enough to rank the values, and too short to rank the similarities.
#
# Next: [07_ablations](07_ablations.ipynb) takes the method apart.

# %% tags=["nbval-ignore-output"]
write_json(
    plan.folder(dataset, "tuning") / "done.json", {"dice": dict(zip(table["folder"], table["dice"], strict=True))}
)
