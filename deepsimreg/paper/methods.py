"""Methods by their names in a profile: a network, an optimisation, a network followed by one, a baseline."""

from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepsimreg.data.base import Dataset
from deepsimreg.losses.base import WeightedSum
from deepsimreg.losses.registry import build_similarity, required_extractors
from deepsimreg.optimise import Level, default_levels, optimise
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.evaluate import Entry, Method, chosen_lams, evaluate, tune
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.outputs import device, write_table
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import load_network
from deepsimreg.paper.resolve import BaselineSettings
from deepsimreg.paper.run import Run
from deepsimreg.paper.settings import MethodPart

CPU = torch.device("cpu")  # where baselines work


def method(plan: Profile, dataset: str, name: str, smoothing: float | None = None, **options) -> Method:
    """A network (first seed, its λ) or a baseline of the evaluation.

    smoothing: of a baseline; None: that which its run chose. options: of a baseline, in place of the profile's.
    """
    if name in plan.networks(dataset):
        return load_network(plan.registration(dataset, name)).requires_grad_(False)
    run = plan.baseline(dataset, name)
    chosen = run.need().result()["smoothing"] if smoothing is None else smoothing
    return baseline_method(plan, run, chosen, **options)


def baseline_method(plan: Profile, run: Run, smoothing: float, **options) -> Method:
    """A baseline at one smoothing."""
    settings: BaselineSettings = run.settings
    record, data = BASELINES[settings.baseline], plan.data(run.dataset)
    given = {"extractor": record.extractor, "smoothing": smoothing, **settings.options, **options}
    given["extractor"] = load_extractor(plan, run.dataset, given["extractor"]) if given["extractor"] else None
    return partial(record.register, spacing=data.spacing, **given)


def optimisation_method(plan: Profile, dataset: str, part: MethodPart, lam: float, extractor: str = "") -> Method:
    """An optimisation at one λ, from rest or from a network; the method also takes `weights` and `observe`, as
    `optimise` does. extractor: in place of the part's.
    """
    data = plan.data(dataset)
    network = method(plan, dataset, part.network) if part.network else None
    kinds = required_extractors(part.similarity)
    extractors = {kind: load_extractor(plan, dataset, extractor or part.extractor or kind, kind) for kind in kinds}
    parts = [build_similarity(name, extractors, **part.options.get(name, {})) for name in part.similarity]
    similarity = WeightedSum(parts, list(part.similarity.values()))
    levels = [Level(*level) for level in part.levels]
    levels = levels or default_levels(data.shape, data.spacing, started=network is not None)

    def register(moving: Tensor, fixed: Tensor, **given) -> Tensor:
        start = None if network is None else network.to(fixed.device)(moving, fixed)
        what = (moving, fixed, similarity.to(fixed.device), lam, levels, data.spacing, start)
        return optimise(*what, progress=False, **given).displacement

    return register


def place(part: MethodPart) -> torch.device:
    """Where a method of the optimisation chapter works: baselines on a CPU."""
    return CPU if part.baseline else device()


def profile_method(plan: Profile, dataset: str, part: MethodPart, lam: float | None, extractor: str = "") -> Method:
    """One of the methods of the optimisation chapter, at its λ if it has one; extractor: in place of the part's."""
    if part.similarity:
        register = optimisation_method(plan, dataset, part, lam, extractor)
    elif part.baseline:
        options = dict(part.options.get(part.baseline, {}))
        if BASELINES[part.baseline].extractor and (extractor or part.extractor):
            options["extractor"] = extractor or part.extractor
        register = method(plan, dataset, part.baseline, smoothing=lam, **options)
    else:
        register = method(plan, dataset, part.network)
    if part.maps in ("", "labels"):
        return register
    segmenter = load_extractor(plan, dataset, extractor or part.extractor or "seg", "seg")
    return partial(_of_maps, register, segmenter.requires_grad_(False), part.maps)


def _of_maps(register: Method, segmenter: nn.Module, kind: str, moving: Tensor, fixed: Tensor, **given) -> Tensor:
    """Register the classes that a network gives the voxels, in place of the images; an atlas has maps of its own."""
    segmenter.to(fixed.device)
    maps = [segmenter(image).softmax(1) for image in ([fixed] if kind == "atlas" else [moving, fixed])]
    maps = [one_hot(one.argmax(1, keepdim=True), one.shape[1]) for one in maps] if kind == "segmentation" else maps
    return register(*([moving, *maps] if kind == "atlas" else maps), **given)


def one_hot(label: Tensor, classes: int) -> Tensor:
    """A label image (N, 1, *spatial) as maps of its classes (N, classes, *spatial), 0 and 1."""
    return functional.one_hot(label[:, 0].long(), classes).movedim(-1, 1).float()


def run_baseline(plan: Profile, run: Run, dataset: Dataset) -> dict[str, pd.DataFrame]:
    """Choose the smoothing of a baseline on the validation pairs, then register the test pairs.

    Every pair is written as soon as it is done, so a run that was killed goes on from there. Returns `validation`, one
    row per smoothing and pair, and `test`, one row per pair at the chosen smoothing, which is the column `lam`.
    """
    settings = run.settings
    paths = {split: run.folder / f"{split}.csv" for split in ("validation", "test")}

    def entry(name: str, smoothing: float) -> Entry:
        return Entry({"method": name, "lam": smoothing}, baseline_method(plan, run, smoothing), CPU)

    with run.open():
        if not run.current:
            grids, where = {settings.baseline: settings.smoothing}, (dataset, paths["validation"], settings.pairs)
            validation = tune(entry, grids, settings.widen, *where)
            write_table(validation, paths["validation"])
            ((name, chosen),) = chosen_lams(validation).items()
            test = evaluate(
                [entry(name, chosen)], dataset, "test", paths["test"], images=run.folder / "test", both_ways=True
            )
            write_table(test, paths["test"])
            run.finish(smoothing=chosen, dice=test["dice"].mean())
    return {split: pd.read_csv(path) for split, path in paths.items()}
