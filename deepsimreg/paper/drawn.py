"""The paper's figures of a dataset, each with a caption: the published ones, or drawn from a profile's runs."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import PIL.Image
import torch
from matplotlib.figure import Figure

from deepsimreg.data.base import Pair
from deepsimreg.metrics import segmentation_metrics
from deepsimreg.paper import figures
from deepsimreg.paper.evaluate import Entry, Method, evaluate, timed, weights_of
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.figures.style import PAGE, leading, method_name
from deepsimreg.paper.files import read_json
from deepsimreg.paper.landscape import loss_landscape_curves
from deepsimreg.paper.methods import method, profile_method
from deepsimreg.paper.optimisation import optimisation
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import similarity_of
from deepsimreg.paper.reports import Published
from deepsimreg.paper.resolve import family
from deepsimreg.paper.statistics import couple
from deepsimreg.paper.tables import ablations, evaluation, robustness
from deepsimreg.paper.words import counted
from deepsimreg.warps import warp_image, warp_labels

SHOWN = ("greedy", "deepsim-seg", "ncc-seg")  # of one pair, beside the pair before registration
Save = Callable[..., None]


class Drawing(NamedTuple):
    """A figure on disk."""

    png: Path
    caption: str

    def small(self, width: int = 840) -> bytes:
        """The picture for a notebook: PNG of at most that many pixels across, in 256 colours, the rare ones too."""
        buffer, cover = io.BytesIO(), PIL.Image.Quantize.MAXCOVERAGE
        with PIL.Image.open(self.png) as picture:
            picture.thumbnail((width, 10 * width))
            picture.convert("RGB").quantize(256, cover).save(buffer, format="png", optimize=True)
        return buffer.getvalue()


def drawings(plan: Profile, dataset: str) -> dict[str, Drawing]:
    """Every figure by its name; those of a profile are drawn, with what they need, if its run has not ended."""
    if isinstance(plan, Published):
        return {path.stem: _drawing(path) for path in sorted(plan.folder.glob("*.png"))}
    run = plan.chapter(dataset, "figures")
    with run.open():
        if not run.current:
            names: list[str] = []

            def save(figure: Figure, name: str, what: str, pairs: pd.DataFrame | None, stage: str, more: str = ""):
                """pairs: what was drawn, with the column `pair`; more: split and seeds."""
                n = "" if pairs is None else f" {_count(pairs)}{more}."
                caption = f"{what} Data: {dataset}.{n} Profile {plan.name}."
                figures.save_figure(figure, run.folder / name, caption, f"runs/{plan.name}/{dataset}/{stage}")
                names.append(f"{name}.png")

            for draw in (
                _of_networks,
                _of_choices,
                _of_one_pair,
                _of_extractors,
                _of_variants,
                _of_changes,
                _of_methods,
            ):
                draw(plan, dataset, save)
            run.finish(figures=names)
        return {Path(name).stem: _drawing(run.folder / name) for name in run.result()["figures"]}


def _drawing(path: Path) -> Drawing:
    return Drawing(path, (read_json(path.with_suffix(".json")) or {}).get("caption", ""))


def _count(pairs: pd.DataFrame) -> str:
    names = pairs["pair"].unique()
    return f"n = {len(names)} pairs ({len({couple(name) for name in names})} unordered)"


def _seeds(pairs: pd.DataFrame) -> str:
    return f", test set, {counted(pairs.groupby('method')['seed'].nunique().max(), 'seed')} of the networks"


def _of_networks(plan: Profile, dataset: str, save: Save) -> None:
    tables = evaluation(plan, dataset)
    means, more = tables["means"], _seeds(tables["pairs"])
    what = "Foreground Dice of each method, a point per pair; box: quartiles; whiskers: to 1.5 times its length."
    save(figures.dice_boxplot(means), "dice", what, means, "evaluation", more)
    classes = [name for name in plan.data(dataset).classes[1:] if f"dice_{name}" in means]
    what = "Mean Dice of each class but the background."
    save(figures.dice_per_class(means, classes), "dice-per-class", what, means, "evaluation", more)
    registered = means[means["method"] != "unregistered"]
    what = "Mean foreground Dice against the standard deviation of log J over unfolded voxels."
    save(figures.smoothness_against_dice(registered, width=PAGE), "smoothness", what, means, "evaluation", more)
    runs = {name: plan.registration(dataset, name) for name in plan.networks(dataset)}
    histories = {name: pd.read_csv(run.folder / "metrics.csv") for name, run in runs.items()}
    what = (
        "Mean Dice of training batches and of the validation pairs against steps, first seed; dotted: the validation "
    )
    what += "pairs before registration."
    before = evaluate([Entry({}, None)], plan.data(dataset), "validation")["dice"].mean()
    save(figures.convergence(histories, before), "convergence", what, None, "registration")


def leading_curves(plan: Profile, dataset: str) -> pd.DataFrame:
    """Means over the validation pairs along λ of a few methods, one row per method and λ: single pairs and baselines
    where the profile registers single pairs, else networks and baselines.
    """
    curves = evaluation(plan, dataset)["smoothness"]
    if plan.methods(dataset):
        tuned = optimisation(plan, dataset)["tuned"]
        own = curves[~curves["method"].isin([*plan.networks(dataset), *tuned["method"]])]  # of baselines
        curves = pd.concat([tuned, own], ignore_index=True)
    return curves[curves["method"].isin(leading(curves["method"]))]


def _of_choices(plan: Profile, dataset: str, save: Save) -> None:
    curves = evaluation(plan, dataset)["smoothness"]
    if len(curves):
        what = "Foreground Dice against λ of each network, as trained for tuning, and smoothing of each baseline."
        what += " Validation set; ring: chosen."
        save(figures.tuning_curve(curves), "tuning", what, None, "tuning")
    curves = leading_curves(plan, dataset)
    if len(curves):
        what = "Foreground Dice against the SD of log J along λ, validation set; ring: chosen. Compare at equal SD."
        panel = figures.smoothness_against_dice(curves, ringed=True, width=PAGE)
        save(panel, "matched-smoothness", what, None, "optimisation" if plan.methods(dataset) else "tuning")


def _registers(plan: Profile, dataset: str) -> tuple[dict[str, Method], pd.DataFrame]:
    """The methods that one pair is shown under, and Dice of every test pair of all methods."""
    if parts := plan.methods(dataset):
        tables = optimisation(plan, dataset)
        lams = tables["summary"].set_index("method")["lam"].replace(float("nan"), None)
        names = [name for name in SHOWN if name in parts]
        names = names if len(names) > 1 else leading(parts)[:3]
        return {name: profile_method(plan, dataset, parts[name], lams[name]) for name in names}, tables["test"]
    means = evaluation(plan, dataset)["means"]
    names = leading(name for name in means["method"] if name != "unregistered")
    return {name: method(plan, dataset, name) for name in names}, means


def _of_one_pair(plan: Profile, dataset: str, save: Save) -> None:
    """The pair whose foreground Dice is the median under the last of the methods shown."""
    data, (registers, table) = plan.data(dataset), _registers(plan, dataset)
    scores = table[table["method"] == [*registers][-1]].groupby("pair")["dice_foreground"].mean().sort_values()
    pair = next(one for one in data.pairs("test") if one.name == scores.index[len(scores) // 2])
    moving, fixed = pair.moving.image[None], pair.fixed.image[None]
    results, marks = {}, {"before": _score(pair, pair.moving.label[None], data.classes)}
    for name, register in registers.items():
        displacement, _ = timed(register, moving, fixed, weights_of(pair))
        label = warp_labels(pair.moving.label[None], displacement)
        results[name] = (warp_image(moving, displacement), label, displacement)
        marks[name] = _score(pair, label, data.classes)
    labels = (pair.moving.label, pair.fixed.label)
    what = f"Test pair {pair.name}, the median of {len(scores)} under {method_name([*registers][-1])}."
    row = figures.result_row(moving, fixed, results, *labels, data.colors, marks)
    source = "optimisation" if plan.methods(dataset) else "evaluation"
    save(
        row,
        "sample",
        f"{what} Contours: fixed label solid, moved label dashed; mean Dice / foreground; of a large image a detail.",
        None,
        source,
    )
    panel = figures.sample_panel(moving, fixed, results, *labels, data.classes, data.colors)
    save(panel, "sample-detail", f"{what} Own labels; a detail, fixed labels solid; the grid x + u(x).", None, source)


def _score(pair: Pair, label: torch.Tensor, classes: Sequence[str]) -> str:
    found = segmentation_metrics(label, pair.fixed.label[None], classes)
    return f"Dice {found['dice']:.3f} / {found['dice_foreground']:.3f}"


def _of_extractors(plan: Profile, dataset: str, save: Save) -> None:
    sample = plan.data(dataset).pairs("test")[0].fixed
    image, colors = sample.image[None], plan.data(dataset).colors
    for kind in [run.settings.kind for run in plan.extractors(dataset) if run.name == f"extractor-{run.settings.kind}"]:
        with torch.no_grad():
            levels = load_extractor(plan, dataset, kind).features(image)
        what = (
            f"Features of the {kind} extractor on {sample.name}: three principal components of each level as colours."
        )
        picture = figures.feature_maps(image, levels, sample.label, colors)
        save(picture, f"features-{kind}", what, None, f"extractor-{kind}")
    runs = {name: plan.registration(dataset, name) for name in plan.networks(dataset)}
    similarities = {name: similarity_of(plan, run).eval() for name, run in runs.items()}
    similarities = {name: measure for name, measure in similarities.items() if not measure.needs_labels}
    if similarities:
        curves = loss_landscape_curves(image, similarities, max_shift=min(10, image.shape[-1] // 5))
        what = "Loss of one noisy patch against its shifted self; scales of different losses do not compare."
        save(figures.loss_landscape(curves), "landscape", what, None, "registration")


def _of_variants(plan: Profile, dataset: str, save: Save) -> None:
    if plan.part(dataset).ablations.variants:
        found = ablations(plan, dataset)
        what = "Foreground Dice, with its 95 % bootstrap interval, and SD log J of each variant. Dashed: the method "
        what += "that it starts from; dotted: before registration; hollow: has not left it, so has learned nothing."
        pairs, more = found["pairs"], ", test set, one seed"
        dots = figures.ablation_dots(pairs, before_registration(plan, dataset))
        save(dots, "ablations", what, pairs, "ablations", more)
        if found["variants"]["labels"].nunique() > 1:
            what = "Dice of the extractor and of the registration against the fraction of labelled images."
            save(figures.label_fraction(found["variants"]), "labels", what, pairs, "ablations", more)


def before_registration(plan: Profile, dataset: str) -> float:
    """Mean foreground Dice of the test pairs as they are: from the published tables, or measured."""
    if isinstance(plan, Published):
        return evaluation(plan, dataset)["means"].query("method == 'unregistered'")["dice_foreground"].mean()
    return evaluate([Entry({}, None)], plan.data(dataset))["dice_foreground"].mean()


def _of_changes(plan: Profile, dataset: str, save: Save) -> None:
    part = plan.part(dataset).robustness
    tables = robustness(plan, dataset) if part.noise or part.contrast else {}
    if part.noise:
        what = "Mean foreground Dice of the networks against the SD of the noise that is added to both images."
        noise = tables["noise"]
        save(figures.robustness(noise), "robustness", what, noise, "robustness", ", test set, seed 0")
    if part.contrast:
        what = "Foreground Dice as it is, and its change where the moving image alone has another contrast. "
        what += "†: less than .005 above the pairs before registration. Seed 0, the first extractor."
        contrast, before = tables["contrast"], before_registration(plan, dataset)
        save(figures.contrast(contrast, before), "contrast", what, contrast, "robustness", ", test set")


def _of_methods(plan: Profile, dataset: str, save: Save) -> None:
    if parts := plan.methods(dataset):
        tables = optimisation(plan, dataset)
        families = {name: family(part) for name, part in parts.items()}
        what = "Foreground Dice of each method with its 95 % bootstrap interval, SD log J, median seconds."
        what += " Squares: greedy; triangles: SyN; dotted: before registration."
        more = f", test set, {counted(tables['summary']['extractors'].max(), 'seed')} of the extractors"
        overview = figures.methods_overview(tables["summary"], families, before_registration(plan, dataset))
        save(overview, "optimisation", what, tables["test"], "optimisation", more)
        what = "Foreground Dice and SD log J of methods while they are at work, against steps and seconds."
        traces = tables["traces"]
        save(figures.methods_traces(traces), "optimisation-traces", what, traces, "optimisation", ", validation set")
