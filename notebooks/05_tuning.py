# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · How strong should the regulariser be?
#
# ← [04 Methods without training](04_baselines.ipynb) · [06 Evaluation](06_evaluation.ipynb) → · takes: seconds, it reads
# published tables
#
# Every method of this book has one number that says how much the warp may bend: λ, or for SyN and greedy a smoothing.
#
# $$\mathcal L(u) = D(M\circ\Phi,\, F) + \lambda\,R(u), \qquad \Phi(x) = x + u(x)$$
#
# Too small, and the warp follows noise; too large, and nothing moves. The scales of two similarities $D$ differ by orders
# of magnitude, so a λ that suits one says nothing about another: a comparison at one common λ compares nothing. After this
# chapter you know how λ was chosen for every number that follows, and where to distrust the choice.

# %% [markdown]
# ## Parameters
#
# `published` shows the results in `figures/<dataset>`; the name of a profile (`quick`, `cpu`) those of its runs.

# %% tags=["parameters"]
profile: str = "published"  # the tables of figures/<dataset>; or which experiments/<profile>.yaml
dataset: str = "t98g-phase"  # a data set of it

# %%
from deepsimreg.paper import figures
from deepsimreg.paper.drawn import leading_curves
from deepsimreg.paper.figures.style import leading, method_name
from deepsimreg.paper.optimisation import optimisation
from deepsimreg.paper.reports import at_hand, reported
from deepsimreg.paper.tables import evaluation, tuning

plan = reported(profile, dataset)
print(f"{dataset}, from the runs of profile {plan.name}")

# %% [markdown]
# ## The rule
#
# One rule for networks, optimisation and baselines alike:
#
# 1. Each value of a grid registers the *validation* pairs. The test pairs are not looked at.
# 2. Of the values that fold at most one voxel in ten thousand, the one with the highest **foreground Dice** is taken. If
#    all of them fold more, the smoothest is taken, and the mark `folds` says so.
# 3. Where the best value lies at an end of its grid, a better one may lie beyond. Grids of single pairs and baselines are
#    widened, up to the limit in the profile (`widen`); what still lies at an end is marked `edge`. Grids of networks are
#    not widened. A value that folds too much is no end: where Dice still rises towards it, folds decide, and no mark says so.
#
# ## Networks and baselines
#
# A network has to be trained for every value, so tuning trains short ones; the value that is chosen is trained in full.

# %%
table = tuning(plan, dataset) if plan.tunings(dataset) else evaluation(plan, dataset)["smoothness"]
evaluated, optimised = (at_hand(plan, dataset, chapter) for chapter in ("evaluation", "optimisation"))
columns = ["method", "lam", "dice_foreground", "folds", "sd_log_jacobian", "chosen", "mark"]
table[columns].fillna({"mark": ""}).assign(method=table["method"].map(method_name)).round(4)

# %% [markdown]
# A good grid has its best value inside: Dice falls on both sides, with too free a warp to the left and too stiff a warp
# to the right. Each panel has its own range, so look at the shape, and at the range: short trainings of one seed scatter by
# about a hundredth, and a ring that wins by less is chance. The ring is the choice.

# %%
curves = evaluation(plan, dataset)["smoothness"] if evaluated else table  # with the baselines, when they are tested
figures.tuning_curve(curves)

# %%
several = curves["method"].map(curves.groupby("method").size()) > 1
chosen = curves[curves["chosen"] & several].fillna({"mark": ""})
for what, rows in chosen.groupby(
    chosen["method"].isin(plan.networks(dataset)).map({True: "networks", False: "baselines"})
):
    edge = [method_name(row.method) for row in rows.itertuples() if "edge" in row.mark]
    print(f"{what}: {len(rows) - len(edge)} of {len(rows)} choices lie inside their grid; at an end: "
          f"{', '.join(edge) or 'none'}")  # fmt: skip

# %% [markdown]
# Short trainings can rank the values only where they have learned something. `gain` is the rise of the mean validation
# Dice, background included, over the pairs before registration: where it is near zero for all values, the choice between them is arbitrary.

# %%
if plan.tunings(dataset):
    gains = table.groupby("method", sort=False)["gain"].max()
    still = [method_name(name) for name, gain in gains.items() if gain < 0.002]
    print(f"Highest gain: {', '.join(f'{method_name(name)} {gain:+.3f}' for name, gain in gains.items())}.")
    print(f"Networks that have learned nothing at any λ of their grid: {', '.join(still) or 'none'}.")

# %% [markdown]
# ## Single pairs
#
# An optimisation of a single pair takes a second, so whole grids are affordable; where the profile allows it they are
# widened. Here are a few methods; all of them stand in `figures/<dataset>/optimisation/tuned.csv`.

# %%
if optimised:
    tuned = optimisation(plan, dataset)["tuned"]
    display(figures.tuning_curve(tuned[tuned["method"].isin(leading(tuned["method"]))]))
    marks = tuned[tuned["chosen"]].fillna({"mark": ""}).set_index("method")["mark"]
    edge = [method_name(name) for name in marks.index[marks.str.contains("edge")]]
    print(f"{len(marks) - len(edge)} of {len(marks)} methods have their λ inside the grid; where widening stopped, at an end: "
          f"{', '.join(edge) or 'none'}.")  # fmt: skip

# %% [markdown]
# ## What overlap costs in smoothness
#
# The same values once more, overlap against the spread of $\log J$. Two methods should be compared where their
# warps are equally smooth, not where each happens to be best: at equal SD of $\log J$ the upper curve is the better method.

# %%
if evaluated and optimised:
    display(figures.smoothness_against_dice(leading_curves(plan, dataset), ringed=True, width=7))

# %% [markdown]
# Means over the validation pairs; whether a distance between two curves is more than chance,
# [chapter 9](09_optimisation.ipynb) tests on the test pairs. A curve that runs flat is good news: there the choice of λ hardly
# matters. A curve that falls to the right means that a freer
# warp overlaps *less*: the similarity follows noise, and only the regulariser prevents it.
#
# ## What to take away
#
# - λ belongs to a similarity *and* a data set; it is chosen on validation pairs, by one rule for all.
# - A choice at the end of a grid, or between trainings that have learned nothing, is a warning, and tables carry the mark.
# - Compare methods at equal smoothness. [Chapter 9](09_optimisation.ipynb) does so with tests.
#
# **Exercises.** 1. The diffusion regulariser counts squared differences per voxel. By which factor does λ change when an
# image is sampled twice as finely, if the warp in mm is to stay the same? 2. Find in `tuned.csv` a method whose folds, and
# not its Dice, decided its λ. 3. Give a grid of your own in `experiments/quick.yaml` and run
# `make paper`: which runs are made anew, and why those?
