# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Methods without training
#
# ← [03 Registration](03_registration.ipynb) · [05 Tuning](05_tuning.ipynb) → · takes: seconds in the quick profile
#
# A registration network guesses the warp in one look. The classical methods search it for every pair anew, step by step, and
# no network that registers is trained; those on deep features need the extractor of [chapter 2](02_feature_extractor.ipynb).
# A learned method should come close to them to justify its training.
#
# | name | what |
# |---|---|
# | `syn` | ANTs SyN: symmetric diffeomorphic steps along the gradient of a local correlation (Avants et al. 2008) |
# | `syn-deepsim-…` | the same, with the deep features of both images as further channels, compared by mean squares |
# | `greedy` | composed, Gaussian-smoothed gradient steps of a local correlation (Yushkevich et al. 2016) |
# | `greedy-deepsim-…` | the same, with deep features as further components |
# | `convexadam` | MIND, a discrete search, then Adam (Siebert et al. 2025); volumes only |

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile
method: str = "greedy"  # a baseline of that profile

# %%
import pandas as pd

from deepsimreg.paper import figures
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.evaluate import Entry, choose, evaluate
from deepsimreg.paper.methods import run_baseline
from deepsimreg.paper.plan import Profile

plan = Profile(profile)
data = plan.data(dataset)
run = plan.baseline(dataset, method)
values = ", ".join(f"{value:g}" for value in run.settings.smoothing)
print(f"{method}: {BASELINES[method].tuned}; values {values}")

# %% [markdown]
# ## One number is tuned
#
# What λ is to a network, a smoothing is to these methods: it says how much the warp may bend. Each value registers the
# validation pairs (the first `pairs` of them, if the profile says so); the one with the highest foreground Dice among those that fold at most one voxel in ten thousand is
# taken to the test pairs. Every pair is written as soon as it is done, so a run that is cut off goes on from there.

# %% tags=["nbval-ignore-output"]
tables = run_baseline(plan, run, data)
columns = ["dice", "dice_foreground", "folds", "sd_log_jacobian", "seconds"]
choose(tables["validation"]).set_index("lam")[[*columns, "chosen", "mark"]].rename_axis("smoothing").round(4)

# %% [markdown]
# `edge`: the best value lies at an end of the grid, so a better one may lie beyond.

# %% [markdown]
# ## The test pairs

# %% tags=["nbval-ignore-output"]
before = evaluate([Entry({}, None)], data)
tables["test"][columns].mean().to_frame(method).assign(unregistered=before[columns].mean()).T.round(4)

# %% tags=["nbval-ignore-output"]
both = [before.assign(method="unregistered"), tables["test"].assign(method=method)]
figures.dice_boxplot(pd.concat(both))

# %% [markdown]
# What the run's folder records:

# %% tags=["nbval-ignore-output"]
print(f"smoothing {run.result()['smoothing']:g}, test Dice {tables['test']['dice'].mean():.3f}")

# %% [markdown]
# ## What to take away
#
# - On grey values, an optimiser sees only the pair in front of it: nothing it learned can mislead it, and nothing can help.
# - Its seconds per pair are the price; what a network takes stands beside them in [chapter 6](06_evaluation.ipynb).
#
# **Exercises.** 1. Run with `method="syn"`: what does its symmetry buy, and what does it cost in seconds? 2. Why is smoothing
# compared on several validation pairs and not on one?
