# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9 · One pair, as well as it can be done
#
# A network sees a pair once and predicts its warp. It has learned to be right on average. Given a second or two, we can
# optimise the warp for this pair instead: start from the identity, or from the network's prediction, and follow the
# gradient of
#
# $$L(u) = D(M\circ\Phi, F) + \lambda\,R(u), \qquad \Phi(x) = x + u(x)$$
#
# for this pair alone. $D$ is any similarity of this project, or a sum of several. That is what SyN and greedy have always
# done with local correlation, so they are the bar here.
#
# | | |
# |---|---|
# | what is optimised | a stationary velocity $v$ on a coarse grid, $\Phi = \exp(v)$: invertible, and smooth between control points |
# | coarse to fine | from a fraction of the resolution to all of it, with a control point every four positions, at the end two (in volumes four) |
# | features | extracted once from both images; after that only interpolated |
# | the steps | Adam, in voxels of the control grid |

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile
pair_index: int = 0  # test pair that is looked at

# %%
from deepsimreg.paper import figures
from deepsimreg import register
from deepsimreg.paper.evaluate import weights_of
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.optimisation import best_on_validation, optimisation
from deepsimreg.paper.plan import Profile
from deepsimreg.warps import compose, warp_image

plan = Profile(profile)
data = plan.data(dataset)
for name, part in plan.methods(dataset).items():
    what = part.baseline or " + ".join(f"{weight:g} {term}" for term, weight in part.similarity.items())
    start = f"network {part.network}" + (", then " if what else "") if part.network else ""
    control = f" of {part.maps}" if part.maps else f"segmentation by {part.segmentation}" if part.segmentation else ""
    print(f"{name:38s} {start}{what}{control}{part.extractor and f', features of {part.extractor}'}")

# %% [markdown]
# ## One call
#
# The extractor is that of [notebook 2](02_feature_extractor.ipynb). Local correlation looks at detail, DeepSim at what the
# detail belongs to. A third, *classes-seg*, takes the same network to its end and compares the class probabilities $s_k$
# that it gives to each position:
#
# $$D_\mathrm{classes}(I\circ\Phi, J) = \sum_k \mathrm{mean}_p \big(s_k(I)_{\Phi(p)} - s_k(J)_p\big)^2$$
#
# It is as good as the segmentation, and silent inside a class.

# %% tags=["nbval-ignore-output"]
pair = data.pairs("test")[pair_index]
moving, fixed = pair.moving.image[None], pair.fixed.image[None]
labels = pair.moving.label[None], pair.fixed.label[None]
sees = "extractor-seg" in [run.name for run in plan.extractors(dataset)]  # a method of the profile uses it
extractor, terms = (load_extractor(plan, dataset, "seg"), "ncc + deepsim-seg") if sees else (None, "ncc")
masks = dict(zip(("moving_mask", "fixed_mask"), weights_of(pair) or (), strict=False))
options = {"spacing": data.spacing, "labels": labels, **masks, "progress": False}
result = register(moving, fixed, terms, lam=1, extractor=extractor, **options)
print(f"Dice {result.metrics['dice']:.3f}, folds {result.metrics['folds']:.3%}")

# %% tags=["nbval-ignore-output"]
figures.pair_before_after(
    moving, fixed, result.moved, result.displacement, *labels, result.moved_labels, data.classes, data.colors
)

# %% [markdown]
# ## Can it be trusted?
#
# Three checks that need no label. An image and itself: nothing should move. A known warp: it should come back. And the
# inverse: going there and back should end where it began, but near the border, where points leave the image.

# %% tags=["nbval-ignore-output"]
still = register(fixed, fixed, "ncc", spacing=data.spacing, progress=False)
print(f"an image with itself: largest displacement {still.displacement.abs().max():.4f} voxels")

inside = (..., *[slice(4, -4)] * data.ndim)
known = result.displacement.cpu()
back = register(moving, warp_image(moving, known), "mse", lam=1e-3, spacing=data.spacing, progress=False)
error = (back.displacement.cpu() - known)[inside].norm(dim=1).mean()
print(f"a known warp of {known[inside].norm(dim=1).mean():.2f} voxels: mean error {error:.2f} voxels")

loop = compose(result.displacement, result.inverse)[inside].norm(dim=1)
print(f"there and back: mean {loop.mean():.4f} voxels, largest {loop.max():.4f}")

# %% [markdown]
# ## At work
#
# The first validation pairs, looked at after every few steps: overlap, folds and roughness against steps, and against
# seconds of this machine (the looking is not counted). A network is a single point; SyN and greedy are run with a
# quarter, a half and all of their iterations.

# %% tags=["nbval-ignore-output"]
tables = optimisation(plan, dataset)
figures.methods_traces(tables["traces"])

# %% [markdown]
# ## λ is tuned on validation
#
# Of the λ of each method, the one with the highest Dice without the background among those that fold at most one voxel in ten thousand. Where all
# of them fold more, the smoothest is taken and marked `folds`; a λ at an edge of its grid is marked `edge`.

# %% tags=["nbval-ignore-output"]
columns = ["method", "lam", "dice", "folds", "sd_log_jacobian", "seconds", "chosen", "mark"]
tables["tuned"][columns].fillna({"mark": ""}).round(4)

# %% [markdown]
# ## The test pairs
#
# Methods are interleaved: each pair is registered by all of them before the next one, so load on the machine affects all
# of them equally. Seconds are medians. `labels` says how a method comes to know any: by the network whose features it
# compares, by its own training, or at test; where several extractors differ in the seed alone, their means are averaged, and
# `sd_extractors` is their spread. The *inverse consistency error* is the distance that is left when both directions are
# registered and the two warps are followed in turn: mean in mm over the points that stay inside the image.

# %% tags=["nbval-ignore-output"]
overview = tables["summary"]
columns = ["method", "labels", "lam", "mark", "dice_foreground", "sd_extractors", "dice", "hd95", "folds"]
columns += ["sd_log_jacobian", "inverse_consistency_error", "seconds"]
overview[columns].fillna({"mark": ""}).set_index("method").round(4)

# %% tags=["nbval-ignore-output"]
figures.methods_overview(overview)

# %% [markdown]
# The optimisation with the highest overlap on the *validation* pairs is tested against each other method on the test
# pairs: choosing it on the test pairs as well would find a winner by chance alone. Two-sided Wilcoxon test over unordered
# pairs of images, corrected by Holm for the number of methods. Where these share images (`images` is less than two times
# `couples`), they are not independent, and p is too small.

# %% tags=["nbval-ignore-output"]
best, tests = best_on_validation(tables)
print(f"{best}, compared with")
columns = ["method", "pairs", "couples", "images", "difference", "low", "high", "p", "p_holm"]
tests[columns].set_index("method").round(4)

# %% [markdown]
# ## At equal smoothness
#
# Overlap can be bought with a rougher warp. So the hypotheses that the profile wrote down beforehand, a method against its
# rivals, are tested twice: each at the λ that it has chosen, and each rival at the λ where its warps are as smooth as
# the method's, read off its validation curve of SD log J against log λ (`nearest`: the curve ends before). Two-sided
# Wilcoxon tests on Dice without the background, or, where features were learned without some structures, on these; Holm
# over the whole family.

# %% tags=["nbval-ignore-output"]
columns = ["reference", "classes", "smoothness", "method", "couples", "images", "sd_log_jacobian", "difference"]
columns += ["low", "high", "p", "p_holm"]
tables["tests"].reindex(columns=columns).round(4)

# %% [markdown]
# ## Try it
#
# Another similarity, another λ, more or fewer steps; the last slider goes from the moving to the moved image. A change of
# the first three registers the pair again, which takes a second. (Without a kernel the sliders do nothing: the figure
# below them shows one setting.)

# %%
from functools import lru_cache

import ipywidgets as widgets


@lru_cache(maxsize=32)
def registered(similarity: str, lam: float, steps: int):
    given = extractor if "-seg" in similarity else None
    return register(moving, fixed, similarity, lam, extractor=given, steps=steps, **options)


def explore(similarity: str, lam: float, steps: int, share: float) -> None:
    found = registered(similarity, lam, steps)
    display(figures.blended(moving, found.moved, fixed, found.displacement, share))
    print(f"Dice {found.metrics['dice']:.3f}, folds {found.metrics['folds']:.3%}")


# %% tags=["nbval-ignore-output"]
names = ["ncc", "ncc-3", "mse", "mind"]
names += ["deepsim-seg", "ncc + deepsim-seg", "0.2 deepsim-seg + 20 classes-seg"] if sees else []
slow = {"continuous_update": False, "style": {"description_width": "6em"}}
controls = {
    "similarity": widgets.Dropdown(options=names),
    "lam": widgets.FloatLogSlider(value=1, base=10, min=-2, max=1, step=0.25, description="λ", **slow),
    "steps": widgets.IntSlider(value=20, min=0, max=60, step=5, description="steps", **slow),
    "share": widgets.FloatSlider(value=1, min=0, max=1, step=0.1, description="before/after", **slow),
}
widgets.VBox([*controls.values(), widgets.interactive_output(explore, controls)])

# %% [markdown]
# The same view, for the first setting:

# %% tags=["nbval-ignore-output"]
explore("ncc", 1.0, 20, 1.0)

# %% [markdown]
# ## What to take away
#
# - Seconds of optimisation for one pair and hours of training for all pairs are two ways to spend the same time. What is
#   worth it depends on how many pairs there are.
# - Compare at equal smoothness: overlap that is bought with a rough warp is no merit of the similarity.
# - A network's answer is a start: from there fewer steps lead as far. For some pairs it starts a search by grey values
#   in the wrong place, where the loss is low and the overlap poor.
