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
reference: str = "deepsim-seg"  # the method that the others are tested against
images: bool = True  # write every warped image and label

# %%
from deepsimreg.notebook import check_parameters

check_parameters(globals())

# %%
from deepsimreg import plots
from deepsimreg.experiment import Profile
from deepsimreg.stages import choose_lam, evaluate_chosen

plan = Profile(profile)
data = plan.load(dataset)

# %% [markdown]
# ## λ is chosen on validation
#
# Each similarity has its own exchange rate against the regulariser, so each gets the λ that gave *it* the best
# validation Dice (the mean over its seeds). The test pairs play no part in this. A profile may hold a
# single λ for a similarity; then nothing was chosen, and the table says so by its one row. In the quick profile, networks
# that are missing are trained here: six small ones, about two minutes.

# %% tags=["nbval-ignore-output"]
tuning = choose_lam(plan, data)
tuning[["similarity", "lam", "seed", "step", "validation_dice", "validation_folds", "chosen"]].round(4)

# %% [markdown]
# ## All methods on all test pairs
#
# For each pair: labels are warped with nearest neighbours and compared.
#
# - **Dice** per class; the mean with the background (the paper's) and without it,
# - **HD95**: 95th percentile of the distance between the surfaces, in mm,
# - **folds**: share of voxels with $J \le 0$; **SD log J** over the others, the smoothness,
# - **TRE**: mean $|u - u_\text{true}|$ in mm, where the truth is known,
# - seconds of the network alone.
#
# `jacobian_variance_published`, $\sigma^2(\log|J|)$ as the authors' code computes it, is there to compare with their
# tables only: it takes the absolute value of each finite difference and counts folded voxels as valid.

# %% tags=["nbval-ignore-output"]
results = evaluate_chosen(plan, data, tuning, reference, images)

# %% [markdown]
# ## The table
#
# Means over the test pairs (and seeds, averaged pair by pair first), with 95 % bootstrap intervals over pairs.

# %% tags=["nbval-ignore-output"]
overview = results["summary"]
means = overview.pivot_table(index="method", columns="metric", values="mean", sort=False)
columns = ["dice", "dice_foreground", "hd95", "folds", "sd_log_jacobian", "target_registration_error", "seconds"]
means[[name for name in columns if name in means]].round(4)

# %% tags=["nbval-ignore-output"]
dice = overview[overview["metric"] == "dice"].set_index("method")
dice[["mean", "low", "high", "n"]].round(4)

# %% [markdown]
# Dice per class says where the mean comes from. Small classes are the hard ones: a shift of one voxel costs them more.

# %% tags=["nbval-ignore-output"]
means[[f"dice_{name}" for name in data.classes]].round(4)

# %% tags=["nbval-ignore-output"]
plots.dice_boxplot(results["means"])

# %% [markdown]
# ## Overlap and smoothness together
#
# Any method can buy Dice with a wilder warp. Only up and to the left is better: more overlap from a smoother warp.

# %% tags=["nbval-ignore-output"]
registered = results["means"].query("method != 'unregistered'")
plots.smoothness_against_dice(registered)

# %% [markdown]
# ## Could it be chance?
#
# One-sided Wilcoxon signed-rank test on the Dice of the same pairs: is the reference method better than the other?
# p-values are corrected for the number of tests (Holm). Cohen's d says how large the difference is against the spread of
# the pairs. A small p with a tiny d is a sure thing that hardly matters. (Where pairs come in both directions, as in
# hippocampus-mr, two pairs share their images, and p and the intervals are smaller than independent pairs would give.)

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
