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
from deepsimreg.notebook import check_parameters

check_parameters(globals())

# %%
import pandas as pd
import torch

from deepsimreg import plots
from deepsimreg.evaluation import loss_landscape_curves
from deepsimreg.experiment import Profile, configuration, figures_folder, relative, run_folder, write_json
from deepsimreg.models import load_model
from deepsimreg.stages import evaluation_tables, extractor_of, similarity_of
from deepsimreg.warps import warp_image, warp_labels

plan = Profile(profile)
data = plan.load(dataset)
target = figures_folder(profile, dataset)

# %% [markdown]
# The evaluation of this profile is the source of everything below. In the quick profile it is made if it is
# missing: six small networks, about two minutes.

# %% tags=["nbval-ignore-output"]
tables, source = evaluation_tables(plan, data)
tuning, means = tables["tuning"], tables["means"]
first = tuning[tuning["chosen"]].drop_duplicates("similarity").set_index("similarity")
count = means["pair"].nunique()


def save(figure, name: str, what: str):
    """Save a figure with a caption that says data, profile, n and source run."""
    caption = f"{what} Data: {dataset}; profile: {profile}; n = {count} test pairs."
    plots.save_figure(figure, target / name, caption, relative(source))
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

# %% tags=["nbval-ignore-output"]
table = tuning.rename(columns={"similarity": "method", "validation_dice": "dice"})
save(plots.tuning_curve(table), "tuning", "Validation Dice against the weight of the regulariser.")

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
for method, row in first.iterrows():
    with torch.no_grad():
        displacement = load_model(run_folder(row["folder"]) / "weights.safetensors")(moving, fixed)
    moved_label = warp_labels(pair.moving.label[None], displacement)
    results[method] = (warp_image(moving, displacement), moved_label, displacement)
panel = plots.sample_panel(moving, fixed, results, pair.moving.label, pair.fixed.label, data.classes, data.colors)
save(panel, "sample", f"Test pair {pair.name}: moved image with label contours, and the deformed grid.")

# %% [markdown]
# ## What the extractors see

# %% tags=["nbval-ignore-output"]
extractors = {settings.kind: extractor_of(settings, data) for settings in plan.extractors(dataset)}
for kind, network in extractors.items():
    with torch.no_grad():
        figure = plots.feature_maps(network.features(fixed))
    display(save(figure, f"features-{kind}", f"Feature maps of the {kind} extractor on one test image."))

# %% [markdown]
# ## The shape of the losses
#
# A patch with one draw of noise is shifted against itself with another draw. A loss that can be optimised falls steadily
# towards zero shift from far away; one that sees only noise is flat with a needle in the middle. (Scales differ between
# losses and cannot be compared.)

# %% tags=["nbval-ignore-output"]
similarities = {name: similarity_of(plan.registration(dataset, name), data) for name in plan.similarities(dataset)}
curves = loss_landscape_curves(fixed, similarities, max_shift=min(10, data.shape[-1] // 5))
save(plots.loss_landscape(curves), "landscape", "Loss of one noisy patch against its shifted self.")

# %% [markdown]
# ## The tables
#
# The CSV files behind the figures, every mean, and `source.json`: settings, code and data of every run behind them.

# %% tags=["nbval-ignore-output"]
for name in ("pairs", "summary", "tests", "tuning"):
    tables[name].to_csv(target / f"{name}.csv", index=False, float_format="%.6g")
folders = [settings.folder for settings in plan.extractors(dataset)]
folders += [run_folder(name) for name in tuning["folder"]]
write_json(target / "source.json", {relative(folder): configuration(folder) for folder in folders})
columns = ["dice", "dice_foreground", "hd95", "folds", "sd_log_jacobian"]
means.groupby("method", sort=False)[columns].mean().round(4)

# %% tags=["nbval-ignore-output"]
write_json(plan.folder(dataset, "figures") / "done.json", {"figures": sorted(p.name for p in target.glob("*.png"))})
print("\n".join(sorted(path.name for path in target.glob("*.png"))))
