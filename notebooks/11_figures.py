# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · The paper's figures
#
# ← [10 Your own data](10_own_data.ipynb) · takes: seconds, it shows published figures
#
# Every figure of the paper for one data set, with a caption that says data, profile and, where pairs are averaged, their
# number. Nothing is computed here that could change a result: the tables behind the figures come from the chapters before.
# Given a profile, this chapter draws them from its runs; `make publish` then makes them the published ones.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "published"  # the tables of figures/<dataset>; or which experiments/<profile>.yaml
dataset: str = "t98g-phase"  # a data set of it

# %%
from IPython.display import Image, Markdown

from deepsimreg.paper.drawn import drawings
from deepsimreg.paper.reports import reported

drawn = drawings(reported(profile, dataset), dataset)
print("\n".join(drawn))


def show(name: str) -> None:
    """A figure and its caption, if this data set has it."""
    if name in drawn:
        display(Image(drawn[name].small(), alt=drawn[name].caption), Markdown(drawn[name].caption))
    else:
        print(f"{dataset} has no such figure")


# %% [markdown]
# ## One pair
#
# What a registration does, by eye. The pair is the one with the median overlap, so neither the best nor the worst case
# is shown.

# %%
show("sample")

# %%
show("sample-detail")

# %% [markdown]
# ## All methods, one pair at a time
#
# From [chapter 9](09_optimisation.ipynb), with the controls: read the grey rows first. They say what registration is worth
# beside segmentation, and what trained features are worth beside random ones. Bars are 95 % bootstrap intervals; squares are
# greedy, triangles SyN.

# %%
show("optimisation")

# %%
show("matched-smoothness")

# %%
show("optimisation-traces")

# %% [markdown]
# ## Networks and baselines
#
# From [chapter 6](06_evaluation.ipynb).

# %%
show("dice")

# %%
show("dice-per-class")

# %%
show("smoothness")

# %% [markdown]
# ## How they were trained and chosen
#
# Dice of training batches (faint: each; line: running median) and of validation pairs; and the grids of
# [chapter 5](05_tuning.ipynb). A network that stays on the dotted line has learned nothing.

# %%
show("convergence")

# %%
show("tuning")

# %% [markdown]
# ## What the extractors see
#
# What has one colour has similar features. Level 1 still follows grey values and edges; deeper maps are coarser and look
# less like the image. A rim along the border is the padding of the convolutions: there the network sees zeros.

# %%
show("features-seg")

# %%
show("features-ae")

# %% [markdown]
# ## The shape of the losses
#
# A patch with one draw of noise is shifted against itself with another draw. A loss that can be optimised falls steadily
# towards zero shift from far away; one that follows fine detail only has a narrow dip at zero and is flat elsewhere. That is
# no ranking: coarse to fine, as in [chapter 9](09_optimisation.ipynb), a narrow dip is found, too.

# %%
show("landscape")

# %% [markdown]
# ## Ablations, noise, contrast
#
# From chapters [7](07_ablations.ipynb) and [8](08_robustness.ipynb).

# %%
show("ablations")

# %%
show("labels")

# %%
show("robustness")

# %%
show("contrast")

# %% [markdown]
# ## What to take away
#
# - Each figure stands beside its record in `figures/<dataset>`: the same name with `.json` says what it was drawn from.
# - `make stale` tells which of them today's code would draw anew.
