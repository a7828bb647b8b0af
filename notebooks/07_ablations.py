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
# ← [06 Evaluation](06_evaluation.ipynb) · [08 Robustness](08_robustness.ipynb) → · takes: seconds, it reads published tables
#
# Which part of DeepSim does the work? Each variant changes one thing and keeps the rest: same pairs, same steps, same
# seed, same λ as the method it starts from. One exception: variants of the group *network* may be trained longer, since they
# learn more slowly, so their rows are no fair comparison with the base. A network that has learned nothing in its few steps
# leaves the pairs as they were: such a row says that this variant takes longer to learn, and no more. The other chapters show
# the cells (t98g-phase); here it is the nerve cord (vnc-em), where all variants were trained until they had learned.
#
# | group | question |
# |---|---|
# | levels | are all three resolutions needed? |
# | order | warp the image and extract, or extract once and warp the features? |
# | features | must the extractor know this data set? (trained elsewhere; or random, never trained) |
# | mean | does it help to remove the mean of the features before their cosine is taken? |
# | labels | how many labelled images does the segmenting extractor need? |
# | network | is it the loss, or the network that is trained with it? |

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "published"  # the tables of figures/<dataset>; or which experiments/<profile>.yaml
dataset: str = "vnc-em"  # a data set of it

# %%
from deepsimreg.paper import figures
from deepsimreg.paper.drawn import before_registration
from deepsimreg.paper.figures.style import IDLE, signed, variant_name
from deepsimreg.paper.reports import published_datasets, reported
from deepsimreg.paper.tables import ablations

plan = reported(profile, dataset)
tables = ablations(plan, dataset)
table = tables["variants"].fillna({"group": ""})
print(f"{dataset}: {len(table) - table['group'].eq('').sum()} variants of {', '.join(table['base'].unique())}")

# %% [markdown]
# ## Every variant on the test pairs
#
# The trainings are shorter than those of [chapter 6](06_evaluation.ipynb), and of one seed: they are about the order of
# the variants, not about their height.

# %%
named = table.assign(variant=[variant_name(*row) for row in table[["method", "group", "base"]].itertuples(index=False)])
before = before_registration(plan, dataset)
named["learned"] = named["dice_foreground"] > before + IDLE
named.set_index("variant")[["lam", "learned", "dice_foreground", "dice", "folds", "sd_log_jacobian"]].round(4)

# %%
figures.ablation_dots(tables["pairs"], before)

# %% [markdown]
# Means over the test pairs, one seed, with their 95 % bootstrap intervals; dashed, the method that a variant starts from;
# dotted, the pairs before registration. A hollow mark has not left that line.

# %%
bases = table[table["group"] == ""].set_index("method")["dice_foreground"]
same = named["group"].ne("") & named["group"].ne("network")
change = (named["dice_foreground"] - named["base"].map(bases)).set_axis(named["variant"])
moved = change[(same & named["learned"]).values]
print(
    f"Before registration: {before:.3f}. {(same & ~named['learned']).sum()} of {same.sum()} variants have learned nothing."
)
if len(moved):
    print(f"The others: from {moved.min():+.3f} ({moved.idxmin()}) to {moved.max():+.3f} ({moved.idxmax()}) of foreground "
          f"Dice; {(moved.abs() < 0.005).sum()} differ from their base by less than .005, and with one seed no order should "
          "be read into such differences.")  # fmt: skip

# %% [markdown]
# ## Reading the groups
#
# **Extract before the warp, or after it?** The usual order warps the image and looks at it with the extractor, so the
# gradient runs through the whole extractor at every step. The other order looks once and warps the features; it costs
# nothing but interpolation, and its features do not change when the image is bent. (The published code could not reach
# its own version of this: the runs behind the published comparison trained plain DeepSim.)
#
# **Random features.** An encoder with its initial weights is a bank of random filters: local, with some contrast. What it
# reaches shows how much is reached without learning.

# %%
for name in ("random", "elsewhere"):
    for row in named[named["group"].eq("features") & named["method"].str.endswith(name)].itertuples():
        print(f"Features {name}: foreground Dice {row.dice_foreground:.3f}, of its base {bases[row.base]:.3f}, before "
              f"registration {before:.3f}.")  # fmt: skip

# %% [markdown]
# Where random features come out beside the trained ones, a training this short cannot tell what was learned from what any
# filters give: [chapter 9](09_optimisation.ipynb) asks again, one pair at a time, where no network has to learn first.
#
# **Fewer labels.** If features of a segmenter that has seen a twentieth of the labels do as well, the labels' cost is no
# objection to DeepSim (seg).

# %%
if table["labels"].nunique() > 1:
    display(figures.label_fraction(tables["variants"]))
    least = table.dropna(subset="labels").sort_values("labels").iloc[0]
    idle = "" if least["dice_foreground"] > before + IDLE else ": it has learned nothing, so nothing follows from it"
    print(f"With {least['labels']:.0%} of the labels the extractor reaches Dice {least['extractor_dice']:.3f} on its "
          f"validation images, the registration {least['dice']:.3f} on the test pairs{idle}.")  # fmt: skip

# %% [markdown]
# ## All data sets
#
# Change of foreground Dice against the base, variant by variant, wherever the variants were run and have learned; empty:
# not run, or learned nothing.

# %%
import pandas as pd

found = {}
for name in published_datasets("ablations") if profile == "published" else []:
    one = ablations(reported(profile, name), name)["variants"].fillna({"group": ""})
    base = one[one["group"] == ""].set_index("method")["dice_foreground"]
    level = before_registration(reported(profile, name), name)
    rows = one[(one["group"] != "") & (one["dice_foreground"] > level + IDLE)]
    names = [variant_name(*row) for row in rows[["method", "group", "base"]].itertuples(index=False)]
    found[name] = (rows["dice_foreground"] - rows["base"].map(base)).set_axis(names)
pd.DataFrame(found).map(lambda one: "" if pd.isna(one) else signed(one)) if found else "shown with profile = published"

# %% [markdown]
# ## What to take away
#
# - A variant that has learned and comes out no worse, on several data sets, could replace the original.
# - One seed and short trainings: differences smaller than the spread of the seeds mean nothing.
# - An untrained encoder is the control that every claim about *learned* features has to beat.
# - A variant that has learned nothing, or whose base has hardly learned, says nothing of the features.
#
# **Exercises.** 1. Level 3 sees an eighth of the resolution. Which displacements can it not tell apart? 2. Add a variant to
# `experiments/quick.yaml` (two lines) and run `make paper`. 3. Why must the variants share λ with their base, and whom does
# that favour?
