# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · Evaluation
#
# Every method of a dataset on the same test pairs, with the same metrics, in one table. Two questions are answered:
# *which similarity aligns anatomy best*, and *at what price in smoothness*. A third line stands in every table as a
# method of its own: the pair **before** registration.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile
images: bool = True  # write every warped image and label

# %%
from deepsimreg.paper import figures
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.tables import evaluation

plan = Profile(profile)
data = plan.data(dataset)

# %% [markdown]
# ## All methods on all test pairs
#
# For each pair: labels are warped with nearest neighbours and compared.
#
# - **Dice** per class; the mean with the background (the paper's) and without it,
# - **HD95**: 95th percentile of the distance between the surfaces, in mm,
# - **folds**: share of voxels with $J \le 0$; **SD log J** over the others, the smoothness,
# - **inverse consistency error**: register both ways and follow the two warps in turn; how far from its start a point
#   ends, mean in mm over the points that stay inside the image,
# - **TRE**: mean $|u - u_\text{true}|$ in mm, where the truth is known,
# - seconds of the registration alone.
#
# Every method is at *its* λ: the profile's, or the one that [06_tuning](06_tuning.ipynb) chose on the validation pairs (for
# SyN and greedy: the smoothing that [03b_baselines](03b_baselines.ipynb) chose). The test pairs played no part in it. In the
# quick profile, networks that are missing are trained first. `mark` says where λ lies at an `edge` of its grid, and where a
# network is `still`: its validation Dice is hardly above that of the pairs before registration.
#
# `jacobian_variance_published`, $\sigma^2(\log|J|)$ as the authors' code computes it, is there to compare with their
# tables only: it takes the absolute value of each finite difference and counts folded voxels as valid.

# %% tags=["nbval-ignore-output"]
results = evaluation(plan, dataset, images)
results["runs"].round(4)

# %% [markdown]
# ## The table
#
# Means over the test pairs (and seeds, averaged pair by pair first), with 95 % bootstrap intervals over pairs.

# %% tags=["nbval-ignore-output"]
overview = results["summary"]
means = overview.pivot_table(index="method", columns="metric", values="mean", sort=False)
columns = ["dice_foreground", "dice", "hd95", "folds", "sd_log_jacobian", "inverse_consistency_error"]
columns += ["target_registration_error", "seconds"]
means[[name for name in columns if name in means]].round(4)

# %% tags=["nbval-ignore-output"]
dice = overview[overview["metric"] == "dice_foreground"].set_index("method")
dice[["mean", "low", "high", "n", "couples"]].round(4)

# %% [markdown]
# Dice per class says where the mean comes from. Small classes are the hard ones: a shift of one voxel costs them more.

# %% tags=["nbval-ignore-output"]
means[[f"dice_{name}" for name in data.classes]].round(4)

# %% tags=["nbval-ignore-output"]
figures.dice_boxplot(results["means"])

# %% [markdown]
# ## Overlap and smoothness together
#
# Any method can buy Dice with a wilder warp. Only up and to the left is better: more overlap from a smoother warp.

# %% tags=["nbval-ignore-output"]
registered = results["means"].query("method != 'unregistered'")
figures.smoothness_against_dice(registered)

# %% [markdown]
# Where a method was tried with several λ, its validation pairs give a curve, and methods can be compared at *one* smoothness.

# %% tags=["nbval-ignore-output"]
figures.smoothness_against_dice(results["smoothness"], ringed=True, width=7)

# %% [markdown]
# ## Could it be chance?
#
# Two-sided Wilcoxon signed-rank test on the foreground Dice of the same pairs: does the profile's reference method (DeepSim
# with a segmenting extractor, unless it names another) differ from the other? `difference` says in which direction.
# p-values are corrected for the number of tests (Holm). Cohen's d says how large the difference is against the spread of
# the pairs. A small p with a tiny d is a sure thing that hardly matters. Where pairs come in both directions, as in
# hippocampus-mr, the two share their images: they count as one couple, in the intervals and in the test. Couples that share one image, as
# neighbours of a movie do, are not independent either: there `images` says how much is known, and p is too small.

# %% tags=["nbval-ignore-output"]
results["tests"].round(4)

# %% [markdown]
# ## What to take away
#
# - A method is a similarity *and* its λ, chosen on validation; a comparison at one common λ would compare nothing.
# - `pairs.csv` holds a row per pair with every metric; all tables and figures are made from it.
# - In the quick profile the networks are small and short of training: it shows the machinery, not a result.
#
# Next: [05_figures](05_figures.ipynb) draws the paper's figures from these files.
