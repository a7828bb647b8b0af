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
from deepsimreg.paper.landscape import loss_landscape_curves
from deepsimreg.paper.notebook import check_parameters

check_parameters(globals())

# %%
import pandas as pd
import torch

from deepsimreg.paper import plots
from deepsimreg.paper.experiment import Profile, configuration, figures_folder, relative, run_folder, write_json
from deepsimreg.paper.stages import (
    ablation_tables,
    evaluation_tables,
    method_of,
    robustness_table,
    similarity_of,
    trained_extractor,
    tuning_table,
)
from deepsimreg.warps import warp_image, warp_labels
from deepsimreg.paper.ways import summarise_ways, ways_tables

# %%
plan = Profile(profile)
data = plan.load(dataset)
target = figures_folder(profile, dataset)

# %% [markdown]
# The evaluation of this profile is the source of everything below. In the quick profile it is made if it is
# missing: small networks, about two minutes.

# %% tags=["nbval-ignore-output"]
tables, source = evaluation_tables(plan, data)
runs, means, curves = tables["runs"], tables["means"], tables["smoothness"]
networks = runs[runs["method"].isin(plan.methods(dataset))]
first = networks.drop_duplicates("method").set_index("method")
count = means["pair"].nunique()


def save(figure, name: str, what: str, stage: str = "evaluation", pairs: str = f"{count} test pairs"):
    """Save a figure with a caption that says data, profile, n and source run."""
    caption = f"{what} Data: {dataset}; profile: {profile}; n = {pairs}."
    plots.save_figure(figure, target / name, caption, relative(source.with_name(stage)))
    return figure


# %% [markdown]
# ## Overlap
#
# Dice of every test pair, background included as in the paper. *Unregistered* is the floor.

# %% tags=["nbval-ignore-output"]
save(plots.dice_boxplot(means), "dice", "Dice of each method, a point a pair; box: quartiles.")

# %% [markdown]
# ## Smoothness against overlap
#
# SD log J grows with the roughness of the warp; better is up and to the left.

# %% tags=["nbval-ignore-output"]
registered = means[means["method"] != "unregistered"]
save(
    plots.smoothness_against_dice(registered),
    "smoothness",
    "Mean Dice against the standard deviation of log J over unfolded voxels.",
)

# %% [markdown]
# ## Convergence
#
# Dice of training batches and of validation pairs against steps, for the chosen λ of each similarity.

# %% tags=["nbval-ignore-output"]
histories = {row.Index: pd.read_csv(run_folder(row.folder) / "metrics.csv") for row in first.itertuples()}
save(plots.convergence(histories), "convergence", "Training and validation Dice against steps.")

# %% [markdown]
# ## λ against validation Dice
#
# The runs of [06_tuning](06_tuning.ipynb), and the smoothing of the methods without training.

# %% tags=["nbval-ignore-output"]
save(plots.tuning_curve(curves), "tuning", "Validation Dice against the weight of the regulariser.")

# %% [markdown]
# ## At matched smoothness
#
# Dice of the same runs against SD log J: at one smoothness, which similarity overlaps more? Networks stand as tuning
# trained them, which may be shorter than for the test.

# %% tags=["nbval-ignore-output"]
what = "Dice against SD log J on the validation pairs, over the grid of each method; networks as trained for tuning."
save(plots.matched_smoothness(curves), "matched-smoothness", what)

# %% [markdown]
# ## A sample
#
# The pair whose Dice improves by the median amount with the last method of the table, so that neither the best nor the
# worst case is shown. Contours: the fixed label, and the moved label of each method; the grid shows the warp.

# %% tags=["nbval-ignore-output"]
gain = means.pivot(index="pair", columns="method", values="dice")
gain = (gain[first.index[-1]] - gain["unregistered"]).sort_values()
pair = next(p for p in data.pairs("test") if p.name == gain.index[len(gain) // 2])
moving, fixed = pair.moving.image[None], pair.fixed.image[None]
results = {}
for method in means["method"].unique()[1:]:
    displacement = method_of(plan, data, method)(moving, fixed)
    moved_label = warp_labels(pair.moving.label[None], displacement)
    results[method] = (warp_image(moving, displacement), moved_label, displacement)
panel = plots.sample_panel(moving, fixed, results, pair.moving.label, pair.fixed.label, data.classes, data.colors)
save(panel, "sample", f"Test pair {pair.name}: moved image with label contours, and the deformed grid.")

# %% [markdown]
# ## What the extractors see

# %% tags=["nbval-ignore-output"]
for settings in plan.extractors(dataset):
    if settings.name == settings.kind:
        with torch.no_grad():
            figure = plots.feature_maps(trained_extractor(settings, data).features(fixed))
        what = f"Feature maps of the {settings.kind} extractor on one test image."
        display(save(figure, f"features-{settings.kind}", what))

# %% [markdown]
# ## The shape of the losses
#
# A patch with one draw of noise is shifted against itself with another draw. A loss that can be optimised falls steadily
# towards zero shift from far away; one that sees only noise is flat with a needle in the middle. (Scales differ between
# losses and cannot be compared.)

# %% tags=["nbval-ignore-output"]
similarities = {name: similarity_of(plan.registration(dataset, name), data)[0].eval() for name in plan.methods(dataset)}
similarities = {name: measure for name, measure in similarities.items() if not measure.needs_labels}
landscape = loss_landscape_curves(fixed, similarities, max_shift=min(10, data.shape[-1] // 5))
save(plots.loss_landscape(landscape), "landscape", "Loss of one noisy patch against its shifted self.")

# %% [markdown]
# ## Dice per class

# %% tags=["nbval-ignore-output"]
save(plots.dice_per_class(means, data.classes), "dice-per-class", "Mean Dice of each class.")

# %% [markdown]
# ## Ablations and noise
#
# From [07_ablations](07_ablations.ipynb) and [08_robustness](08_robustness.ipynb), where the profile asks for them.

# %% tags=["nbval-ignore-output"]
if plan.variants(dataset):
    ablations = ablation_tables(plan, data)
    what = "Dice and SD log J of each variant; the line is the method it starts from."
    display(save(plots.ablation_bars(ablations["pairs"]), "ablations", what))
    if ablations["variants"]["labels"].nunique() > 1:
        what = "Dice of the extractor and of the registration against the share of labelled images."
        display(save(plots.label_fraction(ablations["variants"]), "labels", what))

# %% tags=["nbval-ignore-output"]
if plan.noise(dataset):
    noise = robustness_table(plan, data)
    what = "Mean Dice against the standard deviation of the noise that is added to both images."
    display(save(plots.robustness(noise), "robustness", what))

# %% [markdown]
# ## One pair at a time
#
# From [09_optimisation](09_optimisation.ipynb): networks, optimisation of the pair itself, both, SyN and greedy.

# %% tags=["nbval-ignore-output"]
if plan.ways(dataset):
    ways = ways_tables(plan, data)
    overview = summarise_ways(ways["test"])
    what = "Mean Dice of each way to register a pair, with 95 % bootstrap intervals, against time and SD log J."
    display(save(plots.ways_overview(overview), "optimisation", what, "optimisation"))
    what = "Dice, folds and SD log J of the ways at work, against steps and seconds."
    watched = f"{ways['traces']['pair'].nunique()} validation pairs"
    display(save(plots.ways_traces(ways["traces"]), "optimisation-traces", what, "optimisation", watched))

# %% [markdown]
# ## The tables
#
# The CSV files behind the figures, every mean, and `source.json`: settings, code and data of every run behind them.

# %% tags=["nbval-ignore-output"]
for name in ("pairs", "summary", "tests", "runs", "smoothness"):
    tables[name].to_csv(target / f"{name}.csv", index=False, float_format="%.6g")
if plan.tunings(dataset):
    tuning = tuning_table(plan, data)
    tuning.to_csv(target / "tuning.csv", index=False, float_format="%.6g")
if plan.variants(dataset):
    ablations["variants"].to_csv(target / "ablations.csv", index=False, float_format="%.6g")
if plan.noise(dataset):
    noise.to_csv(target / "robustness.csv", index=False, float_format="%.6g")
if plan.ways(dataset):
    overview.to_csv(target / "optimisation.csv", index=False, float_format="%.6g")
    for part, table in ways.items():
        table.to_csv(target / f"optimisation-{part}.csv", index=False, float_format="%.6g")

# %% tags=["nbval-ignore-output"]
folders = [settings.folder for settings in plan.extractors(dataset)] + [run_folder(name) for name in runs["folder"]]
write_json(target / "source.json", {relative(folder): configuration(folder) for folder in folders})
columns = ["dice", "dice_foreground", "hd95", "folds", "sd_log_jacobian"]
means.groupby("method", sort=False)[columns].mean().round(4)

# %% tags=["nbval-ignore-output"]
write_json(plan.folder(dataset, "figures") / "done.json", {"figures": sorted(p.name for p in target.glob("*.png"))})
print("\n".join(sorted(path.name for path in target.glob("*.png"))))
