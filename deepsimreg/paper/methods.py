"""Methods by their names in a profile: a network, an optimisation, a network followed by one, a baseline."""

from functools import partial

import pandas as pd
import torch
from torch import Tensor

from deepsimreg.data.base import Dataset
from deepsimreg.losses.base import WeightedSum
from deepsimreg.losses.registry import build_similarity, required_extractors
from deepsimreg.optimise import Level, default_levels, optimise
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.evaluate import Entry, Method, chosen_lams, device, evaluate, write_table
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import load_network
from deepsimreg.paper.resolve import BaselineSettings
from deepsimreg.paper.run import Run
from deepsimreg.paper.settings import MethodPart

CPU = torch.device("cpu")  # where baselines work


def method(plan: Profile, dataset: str, name: str, **options) -> Method:
    """A network (first seed, its λ) or a baseline (at the smoothing that its run chose) of the evaluation.

    options: of a baseline, in place of the profile's.
    """
    if name in plan.networks(dataset):
        return load_network(plan.registration(dataset, name)).requires_grad_(False)
    run = plan.baseline(dataset, name).need()
    return baseline_method(plan, run, run.result()["smoothing"], **options)


def baseline_method(plan: Profile, run: Run, smoothing: float, **options) -> Method:
    """A baseline at one smoothing."""
    settings: BaselineSettings = run.settings
    record, data = BASELINES[settings.baseline], plan.data(run.dataset)
    extractor = load_extractor(plan, run.dataset, record.extractor) if record.extractor else None
    given = {"extractor": extractor, "smoothing": smoothing, **settings.options, **options}
    return partial(record.register, spacing=data.spacing, **given)


def optimisation_method(plan: Profile, dataset: str, part: MethodPart, lam: float) -> Method:
    """An optimisation at one λ, from rest or from a network; the method also takes `weights` and `observe`, as
    `optimise` does.
    """
    data = plan.data(dataset)
    network = method(plan, dataset, part.network) if part.network else None
    kinds = required_extractors(part.similarity)
    extractors = {kind: load_extractor(plan, dataset, kind) for kind in kinds}
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


def profile_method(plan: Profile, dataset: str, part: MethodPart, lam: float | None) -> Method:
    """One of the methods of the optimisation chapter, at its λ if it has one."""
    if part.similarity:
        return optimisation_method(plan, dataset, part, lam)
    return method(plan, dataset, part.baseline or part.network)


def run_baseline(plan: Profile, run: Run, dataset: Dataset) -> dict[str, pd.DataFrame]:
    """Choose the smoothing of a baseline on the validation pairs, then register the test pairs.

    Every pair is written as soon as it is done, so a run that was killed goes on from there. Returns `validation`, one
    row per smoothing and pair, and `test`, one row per pair at the chosen smoothing, which is the column `lam`.
    """
    name = run.settings.baseline
    paths = {split: run.folder / f"{split}.csv" for split in ("validation", "test")}
    with run.open():
        if not run.current:
            registers = {value: baseline_method(plan, run, value) for value in run.settings.smoothing}
            entries = [Entry({"method": name, "lam": value}, one, CPU) for value, one in registers.items()]
            validation = evaluate(entries, dataset, "validation", paths["validation"], limit=run.settings.pairs)
            chosen = chosen_lams(validation)[name]
            best = Entry({"method": name, "lam": chosen}, registers[chosen], CPU)
            test = evaluate([best], dataset, "test", paths["test"], images=run.folder / "test")
            write_table(test, paths["test"])
            run.finish(smoothing=chosen, dice=test["dice"].mean())
    return {split: pd.read_csv(path) for split, path in paths.items()}
