# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · The figures
#
# The paper's main figures, drawn from the files that the runs before wrote, and saved as pdf and png with a caption that
# says where they come from. Nothing is computed here that could change a result.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile: str = "quick"  # which experiments/<profile>.yaml
dataset: str = "phantom-2d"  # a dataset of that profile

# %%
import pandas as pd
import torch

from deepsimreg.paper import figures
from deepsimreg.paper.evaluate import timed, weights_of
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.landscape import loss_landscape_curves
from deepsimreg.paper.methods import method
from deepsimreg.paper.optimisation import optimisation
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import similarity_of
from deepsimreg.paper.tables import ablations, evaluation, robustness
from deepsimreg.warps import warp_image, warp_labels

# %%
plan = Profile(profile)
part, data = plan.part(dataset), plan.data(dataset)
run = plan.chapter(dataset, "figures")

# %% [markdown]
# The evaluation of this profile is the source of everything below. In the quick profile it is made first if it is missing.
# The figures go to the folder of this run; `make publish` makes them the published ones.

# %% tags=["nbval-ignore-output"]
tables = evaluation(plan, dataset)
means, curves = tables["means"], tables["smoothness"]
count = means["pair"].nunique()


def save(figure, name: str, what: str, stage: str = "evaluation", pairs: str = f"{count} test pairs"):
    """Save a figure with a caption that says data, profile, n and source run."""
    caption = f"{what} Data: {dataset}; profile: {profile}; n = {pairs}."
    figures.save_figure(figure, run.folder / name, caption, f"runs/{profile}/{dataset}/{stage}")
    return figure


# %% [markdown]
# ## Overlap
#
# Dice of every test pair, background included as in the paper. *Unregistered* is the floor.

# %% tags=["nbval-ignore-output"]
save(figures.dice_boxplot(means), "dice", "Dice of each method, a point a pair; box: quartiles.")

# %% [markdown]
# ## Smoothness against overlap
#
# SD log J grows with the roughness of the warp; better is up and to the left.

# %% tags=["nbval-ignore-output"]
registered = means[means["method"] != "unregistered"]
save(
    figures.smoothness_against_dice(registered),
    "smoothness",
    "Mean Dice against the standard deviation of log J over unfolded voxels.",
)

# %% [markdown]
# ## Convergence
#
# Dice of training batches and of validation pairs against steps, for the chosen λ of each similarity.

# %% tags=["nbval-ignore-output"]
finished = {name: plan.registration(dataset, name) for name in plan.networks(dataset)}
histories = {name: pd.read_csv(one.folder / "metrics.csv") for name, one in finished.items()}
save(figures.convergence(histories), "convergence", "Training and validation Dice against steps.")

# %% [markdown]
# ## λ against validation Dice
#
# The runs of [06_tuning](06_tuning.ipynb), and the smoothing of the methods without training.

# %% tags=["nbval-ignore-output"]
validation = f"{len(data.pairs('validation'))} validation pairs"
if len(curves):
    what = "Validation Dice against the weight of the regulariser."
    display(save(figures.tuning_curve(curves), "tuning", what, "tuning", validation))

# %% [markdown]
# ## At matched smoothness
#
# Dice of the same runs against SD log J: at one smoothness, which similarity overlaps more? Networks stand as tuning
# trained them, which may be shorter than for the test.

# %% tags=["nbval-ignore-output"]
if len(curves):
    what = (
        "Dice against SD log J on the validation pairs, over the grid of each method, networks as trained for tuning."
    )
    panel = figures.smoothness_against_dice(curves, ringed=True, width=7)
    display(save(panel, "matched-smoothness", what, "tuning", validation))

# %% [markdown]
# ## A sample
#
# The pair whose Dice improves by the median amount with the profile's reference method, so that neither the best nor the
# worst case is shown. Contours: the fixed label, and the moved label of each method; the grid shows the warp.

# %% tags=["nbval-ignore-output"]
gain = means.pivot(index="pair", columns="method", values="dice")
gain = (gain[plan.reference(dataset)] - gain["unregistered"]).sort_values()
pair = next(p for p in data.pairs("test") if p.name == gain.index[len(gain) // 2])
moving, fixed = pair.moving.image[None], pair.fixed.image[None]
results = {}
for name in means["method"].unique()[1:]:
    displacement, _ = timed(method(plan, dataset, name), moving, fixed, weights_of(pair))
    moved_label = warp_labels(pair.moving.label[None], displacement)
    results[name] = (warp_image(moving, displacement), moved_label, displacement)
panel = figures.sample_panel(moving, fixed, results, pair.moving.label, pair.fixed.label, data.classes, data.colors)
save(panel, "sample", f"Test pair {pair.name}: moved image with label contours, and the deformed grid.")

# %% [markdown]
# ## What the extractors see

# %% tags=["nbval-ignore-output"]
for one in plan.extractors(dataset):
    kind = one.settings.kind
    if one.name == f"extractor-{kind}":
        with torch.no_grad():
            figure = figures.feature_maps(load_extractor(plan, dataset, kind).features(fixed))
        display(save(figure, f"features-{kind}", f"Feature maps of the {kind} extractor on one test image."))

# %% [markdown]
# ## The shape of the losses
#
# A patch with one draw of noise is shifted against itself with another draw. A loss that can be optimised falls steadily
# towards zero shift from far away; one that sees only noise is flat with a needle in the middle. (Scales differ between
# losses and cannot be compared.)

# %% tags=["nbval-ignore-output"]
similarities = {name: similarity_of(plan, one).eval() for name, one in finished.items()}
similarities = {name: measure for name, measure in similarities.items() if not measure.needs_labels}
landscape = loss_landscape_curves(fixed, similarities, max_shift=min(10, data.shape[-1] // 5))
save(figures.loss_landscape(landscape), "landscape", "Loss of one noisy patch against its shifted self.")

# %% [markdown]
# ## Dice per class

# %% tags=["nbval-ignore-output"]
save(figures.dice_per_class(means, data.classes), "dice-per-class", "Mean Dice of each class.")

# %% [markdown]
# ## Ablations and noise
#
# From [07_ablations](07_ablations.ipynb) and [08_robustness](08_robustness.ipynb), where the profile asks for them.

# %% tags=["nbval-ignore-output"]
if part.ablations.variants:
    found = ablations(plan, dataset)
    what = "Dice and SD log J of each variant; the line is the method it starts from."
    display(save(figures.ablation_bars(found["pairs"]), "ablations", what, "ablations"))
    if found["variants"]["labels"].nunique() > 1:
        what = "Dice of the extractor and of the registration against the fraction of labelled images."
        display(save(figures.label_fraction(found["variants"]), "labels", what, "ablations"))

# %% tags=["nbval-ignore-output"]
changed = robustness(plan, dataset) if part.robustness.noise or part.robustness.contrast else {}
if part.robustness.noise:
    what = "Mean Dice against the standard deviation of the noise that is added to both images."
    display(save(figures.robustness(changed["noise"]), "robustness", what, "robustness"))
if part.robustness.contrast:
    what = "Mean foreground Dice where the moving image alone has another contrast."
    display(save(figures.contrast(changed["contrast"]), "contrast", what, "robustness"))

# %% [markdown]
# ## One pair at a time
#
# From [09_optimisation](09_optimisation.ipynb): networks, optimisation of the pair itself, both, and baselines.

# %% tags=["nbval-ignore-output"]
if part.optimisation.methods:
    found = optimisation(plan, dataset)
    what = "Mean foreground Dice of each method, with 95 % bootstrap intervals, against time and SD log J."
    display(save(figures.methods_overview(found["summary"]), "optimisation", what, "optimisation"))
    what = "Dice, folds and SD log J of the methods at work, against steps and seconds."
    watched = f"{found['traces']['pair'].nunique()} validation pairs"
    display(save(figures.methods_traces(found["traces"]), "optimisation-traces", what, "optimisation", watched))

# %% [markdown]
# ## What was drawn

# %% tags=["nbval-ignore-output"]
columns = ["dice", "dice_foreground", "hd95", "folds", "sd_log_jacobian"]
means.groupby("method", sort=False)[columns].mean().round(4)

# %% tags=["nbval-ignore-output"]
names = sorted(path.name for path in run.folder.glob("*.png"))
with run.open():
    run.finish(figures=names)
print("\n".join(names))
