# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8 · What noise and contrast do
#
# ← [07 Ablations](07_ablations.ipynb) · [09 One pair at a time](09_optimisation.ipynb) → · takes: seconds, it reads
# published tables
#
# Losses that compare grey values should suffer when grey values change; features that know *what* is there should suffer
# less. That is the promise of a semantic similarity, and it can be tested without training anything anew: the methods stay
# as they are, and the test images change. Labels stay where they were.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "published"  # the tables of figures/<dataset>; or which experiments/<profile>.yaml
dataset: str = "t98g-phase"  # a data set of it

# %%
import torch

from deepsimreg.data import load_dataset
from deepsimreg.data.augment import CONTRASTS, add_noise
from deepsimreg.paper import figures
from deepsimreg.paper.figures.style import IDLE, method_name, signed
from deepsimreg.paper.reports import reported
from deepsimreg.paper.tables import robustness

plan = reported(profile, dataset)
asked = plan.part(dataset).robustness

# %% [markdown]
# ## What the methods get to see
#
# First noise in *both* images, Gaussian, clipped to [0, 1], drawn once for each pair so that all methods see the same.
# Shown on the phantom:

# %%
image = load_dataset("phantom-2d").pairs("test")[0].fixed.image[None]
levels = [0.0, *asked.noise]
noisy = [add_noise(image, sd, torch.Generator().manual_seed(0)) for sd in levels]
figures.image_row(noisy, [f"SD {sd:g}" for sd in levels])

# %% [markdown]
# ## Networks under noise
#
# The networks were trained without the added noise. The question is the slope, not the height: who loses least?

# %%
tables = robustness(plan, dataset)
noise = tables["noise"]
by_level = noise.pivot_table(index="method", columns="noise", values="dice_foreground", sort=False)
by_level.rename(index=method_name).round(4)

# %%
figures.robustness(noise)

# %% [markdown]
# Left, means over the test pairs of the first seed; right, what the noise takes away.

# %%
most, gained = by_level.columns[-1], by_level[0.0] - by_level.loc["unregistered", 0.0] > 0.01
lost = (by_level[most] - by_level[0.0])[gained].sort_values()
idle = [method_name(name) for name in by_level.index[~gained] if name != "unregistered"]
if len(lost):
    print(f"From SD 0 to SD {most:g}: from {signed(lost.iloc[0])} ({method_name(lost.index[0])}) to {signed(lost.iloc[-1])} "
          f"({method_name(lost.index[-1])}) of foreground Dice.")  # fmt: skip
print(f"Not counted, since they gain less than .01 without noise: {', '.join(idle) or 'none'}.")

# %% [markdown]
# And the warps? A network that takes noise for structure bends the grid to follow it: the SD of $\log J$ grows.

# %%
rough = noise.pivot_table(index="method", columns="noise", values="sd_log_jacobian", sort=False)
rough.rename(index=method_name).round(4)

# %% [markdown]
# ## Another contrast
#
# Now the harder question: *one* image of the pair was taken differently. The moving image alone is changed, by a gamma of
# one half or two, inversion, light that grows to one side, noise:

# %%
changes = ["none", *asked.contrast]
drawn = [image if name == "none" else CONTRASTS[name](image, torch.Generator().manual_seed(0)) for name in changes]
figures.image_row(drawn, changes)

# %% [markdown]
# The methods are some of [chapter 9](09_optimisation.ipynb), each at the λ that it has there and, where it has features, with
# the first of its extractors. No extractor was trained with these changes, except that the phantom's own images have noise
# and uneven light. The picture shows foreground Dice as it is and, below, its change; †: less than .005 above the pairs before
# registration, so the method no longer registers them.

# %%
contrast = tables["contrast"]
table = contrast.pivot_table(index="contrast", columns="method", values="dice_foreground", sort=False)
before = by_level.loc["unregistered", 0.0]
figures.contrast(contrast, before) if len(contrast) else "the profile names no methods for this"

# %%
print(f"Foreground Dice before registration: {before:.3f}")
for name, row in (table - table.loc["none"]).drop("none").iterrows() if len(contrast) else ():
    lost = [method_name(method) for method in row.index if table.loc[name, method] < before + IDLE]
    print(f"{name:13s} from {signed(row.min())} ({method_name(row.idxmin())}) to {signed(row.max())} "
          f"({method_name(row.idxmax())}); no longer registered by: {', '.join(lost) or 'none'}")  # fmt: skip

# %%
if {"deepsim-seg", "ncc"} <= set(table.columns):
    changed = (table - table.loc["none"]).drop("none")
    worse = [name for name, row in changed.iterrows() if row["deepsim-seg"] < row["ncc"] - IDLE]
    print(f"{method_name('deepsim-seg')} loses more than {method_name('ncc')} (by over {IDLE:g}) under {len(worse)} of "
          f"{len(changed)} changes: {', '.join(worse) or 'none'}.")  # fmt: skip

# %% [markdown]
# So is the promise kept? Not by construction: features are invariant to nothing that their network was not trained to
# ignore, and the numbers above say what that costs. `ncc` and `ncc-3` are squared and ignore an inverted contrast; the
# correlation of greedy, and in planes `ncc-25`, keeps the sign, and fails under inversion. A squared difference needs equal
# grey values.
#
# ## What to take away
#
# - Deep features are not invariant by themselves: training here augments geometry only, so what they survive has to be
#   measured.
# - How much noise costs, and whether it costs features less, differs between methods and data sets: read the numbers.
#
# **Exercises.** 1. Which similarity of [chapter 3](03_registration.ipynb) is invariant to $M \mapsto aM + b$, and which to any
# monotone change? 2. Train an extractor with a random gamma (`deepsimreg/data/augment.py`) and repeat the second table.
