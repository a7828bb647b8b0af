# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · Evaluation: who aligns anatomy best, and at what price?
#
# ← [05 Tuning](05_tuning.ipynb) · [07 Ablations](07_ablations.ipynb) → · takes: seconds, it reads published tables
#
# Every network and baseline on the same test pairs, with the same metrics, each at the λ that
# [chapter 5](05_tuning.ipynb) chose. The tables also have the pairs *before* registration, as the method `unregistered`.
# After this chapter you can read the tables of the paper, and say which differences in them mean something.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "published"  # the tables of figures/<dataset>; or which experiments/<profile>.yaml
dataset: str = "t98g-phase"  # a data set of it
images: bool = True  # write every warped image and label, where the runs are evaluated

# %%
from deepsimreg.paper import figures
from deepsimreg.paper.figures.style import method_name
from deepsimreg.paper.reports import reported
from deepsimreg.paper.tables import evaluation
from deepsimreg.paper.words import probability, unit, verdict

plan = reported(profile, dataset)
tables = evaluation(plan, dataset, images)
pairs = tables["tests"][["pairs", "couples", "images"]].max()
print(f"{dataset}: {pairs['pairs']} test pairs, {pairs['couples']} unordered, of {pairs['images']} images; "
      f"distances in {unit(dataset)}")  # fmt: skip

# %% [markdown]
# ## What is measured
#
# | column | what | better |
# |---|---|---|
# | `dice_foreground` | overlap $2\lvert A\cap B\rvert / (\lvert A\rvert+\lvert B\rvert)$ of the moved and the fixed label, mean over the classes without the background | high |
# | `dice` | the same with the background, as in the paper; the background is large and easy, so all numbers are high and close | high |
# | `hd95` | 95th percentile of the distances between the surfaces | low |
# | `folds` | fraction of voxels with $J \le 0$, where space is folded over itself | low |
# | `sd_log_jacobian` | standard deviation of $\log J$ over the other voxels: how rough the warp is | low |
# | `inverse_consistency_error` | register both ways and follow the two warps: how far from its start a point ends | low |
# | `target_registration_error` | mean $\lvert u - u_\text{true}\rvert$, over the foreground, where the truth is known | low |
# | `seconds` | of the registration alone, median | low |
#
# `labels` says how a method comes to know any: *none*; by the *extractor* whose features it compares; by the *network*'s own
# training. Distances are in mm, or in pixels where the files give no size of a pixel. `mark`: `edge`, λ at an end of its grid; `folds`, every λ folds more than one voxel in ten thousand; `still`, a
# network whose validation Dice is less than .002 above that of the unregistered pairs.

# %%
summary = tables["summary"]
means = summary.pivot_table(index="method", columns="metric", values="mean", sort=False)
columns = ["dice_foreground", "dice", "hd95", "folds", "sd_log_jacobian", "inverse_consistency_error"]
columns += ["target_registration_error", "seconds"]
about = tables["runs"].groupby("method").first()[["labels", "lam", "mark"]]
means["seconds"] = tables["pairs"].groupby("method")["seconds"].median()
about["mark"] = about["mark"].fillna("")
shown = means[[name for name in columns if name in means]].join(about).fillna({"labels": "none", "mark": ""})
shown.rename(index=method_name).round(4)

# %%
best, before = means["dice_foreground"].idxmax(), means["dice_foreground"]["unregistered"]
still = about.index[about["mark"].str.contains("still")]  # one seed of several is enough: its mean is of two kinds
gains = means.drop(still).query("dice_foreground > @before + 0.01")["sd_log_jacobian"]
print(f"Before registration the foreground overlaps by {before:.3f}. Highest here: {method_name(best)} with "
      f"{means['dice_foreground'][best]:.3f}; smoothest of those that gain more than .01: "
      f"{method_name(gains.idxmin()) if len(gains) else 'none'}. Learned nothing, in one of the seeds at least: "
      f"{', '.join(map(method_name, still)) or 'none'}.")  # fmt: skip

# %% [markdown]
# ## The spread behind the means
#
# A mean hides how it came about. Each point is one test pair; the box holds the middle half of them.

# %%
figures.dice_boxplot(tables["means"])

# %% [markdown]
# The boxes overlap although every method registers the same pairs: a hard pair is hard for all of them. That is why methods
# are compared *pair by pair* below, and never by whether their intervals overlap.
#
# Which classes does the mean come from? Small ones are the hard ones: a shift of one voxel costs them more.

# %%
classes = [name.removeprefix("dice_") for name in tables["means"] if name.startswith("dice_")]
classes = [name for name in classes[classes.index("foreground") + 1 :] if name != "background"]
figures.dice_per_class(tables["means"], classes) if len(classes) > 1 else f"{dataset} has one class: {classes[0]}"

# %% [markdown]
# ## Overlap and smoothness together
#
# Any method can buy overlap with a wilder warp. Only up *and* to the left is better.

# %%
figures.smoothness_against_dice(tables["means"].query("method != 'unregistered'"), width=7)

# %% [markdown]
# ## Could it be chance?
#
# For each method: does the reference, DeepSim with a segmenting extractor, differ from it? A two-sided Wilcoxon
# signed-rank test on the foreground Dice of the same pairs, corrected for the number of tests (Holm); `difference` is
# reference minus method with its 95 % bootstrap interval, Cohen's $d$ sets it against the spread of the pairs.
#
# What counts as one observation matters more than the test. Where pairs come in both directions, the two share their
# images: they count as one *couple*, in the intervals and in the tests. Couples that share one image, as neighbours of a
# movie do, are not independent either: `images` says how many there are, and where they are few, p is too small.

# %%
tests = tables["tests"].set_index("method")
columns = ["couples", "images", "difference", "low", "high", "p", "p_holm", "d"]
shown = tests[columns].rename(index=method_name).round({name: 4 for name in columns if not name.startswith("p")})
shown.assign(p=shown["p"].map(probability), p_holm=shown["p_holm"].map(probability))

# %%
print(f"{method_name(plan.reference(dataset))}: {verdict(tables['tests'], still)}")

# %% [markdown]
# ## All data sets
#
# Foreground Dice for whatever has been published: one data set never shows that a similarity is the best.

# %%
import pandas as pd

from deepsimreg.paper.reports import published_datasets

found = {}
for name in published_datasets() if profile == "published" else []:
    one = evaluation(reported(profile, name), name)
    marks = one["runs"].groupby("method")["mark"].first().fillna("")
    rows = one["summary"].query("metric == 'dice_foreground'").set_index("method")["mean"]
    found[name] = {
        method_name(method): f"{value:.3f}{' (still)' * ('still' in marks.get(method, ''))}"
        for method, value in rows.items()
    }
pd.DataFrame(found).fillna("") if found else "shown with profile = published"

# %% [markdown]
# ## What to take away
#
# - Foreground Dice, folds and SD log J belong together; one of them alone can be bought with the others.
# - Know your observations: couples of images, not directions; and fewer images than couples make p too small.
# - These networks were trained on a CPU, briefly. Their order is about this size and length of training, not about the
#   paper's.
#
# The full tables of every data set stand in [the results](../docs/results.md).
#
# **Exercises.** 1. Recompute one row of `tests` from `evaluation/pairs.csv` with `scipy.stats.wilcoxon`; what happens to p
# if you forget that directions form couples? 2. The published code of the paper reports the variance of
# $\log J$ with absolute values of every finite difference (column `jacobian_variance_published` of `pairs.csv`). Which of the methods would look better by
# that number than it is? 3. Which class would you drop to make your favourite method win, and why is that not allowed?
