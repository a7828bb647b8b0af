"""One pair at a time: networks, optimisation, a network followed by one, baselines, and controls, on the same pairs."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from deepsimreg.data.base import Dataset, Pair, Sample
from deepsimreg.losses.registry import required_extractors
from deepsimreg.metrics import label_metrics
from deepsimreg.paper.evaluate import Entry, choose, chosen_lams, evaluate, measure, timed, tune, weights_of
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.methods import method, one_hot, place, profile_method
from deepsimreg.paper.outputs import device, named
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.reports import Tables, tables_of
from deepsimreg.paper.resolve import labels_used, method_extractors
from deepsimreg.paper.settings import FamilyPart, MethodPart
from deepsimreg.paper.statistics import compare_methods, holm, images, summary

FRACTIONS = (0.25, 0.5, 1.0)  # of their iterations, at which baselines are looked at on their way
METRICS = (
    "dice_foreground",
    "dice",
    "hd95",
    "folds",
    "sd_log_jacobian",
    "inverse_consistency_error",
    "target_registration_error",
)
DECIDES = "dice_foreground"  # what methods are tested by


@tables_of("optimisation")
def optimisation(plan: Profile, dataset: str, traced: int = 3, every: int = 5) -> Tables:
    """Every method of the profile's section `optimisation`.

    traced: validation pairs that are watched while they are registered. every: steps between two snapshots. Returns
    `tuned`, one row per method and λ, as `choose` returns; `test`, one row per method, extractor and pair at its λ;
    `summary`, as `summarise_methods` returns; `matched`, as `test`, at equal smoothness; `tests`, as `families`
    returns; `traces`, one row per method, pair and snapshot.
    """
    parts, data, folder = plan.methods(dataset), plan.data(dataset), plan.optimisation(dataset).folder
    tuned, lams = pd.DataFrame(columns=["method", "lam", *METRICS, "seconds", "chosen", "mark"]), {}
    grids = {name: part.lam for name, part in parts.items() if part.lam}
    if grids:
        settings = plan.part(dataset).optimisation
        where = (data, folder / "validation.csv", settings.pairs)
        rows = tune(partial(_entry, plan, dataset), grids, settings.widen, *where)
        tuned, lams = choose(rows), chosen_lams(rows)
    own = {name: part.baseline for name, part in parts.items() if part.baseline and not part.lam}
    lams |= {name: plan.baseline(dataset, one).need().result()["smoothing"] for name, one in own.items()}
    registers = {name: part for name, part in parts.items() if not part.segmentation}
    repeated = [(name, one) for name, part in registers.items() for one in _extractors(plan, dataset, part) or [""]]
    entries = [_entry(plan, dataset, name, lams.get(name), one) for name, one in repeated]
    test = evaluate(entries, data, "test", folder / "registered.csv", both_ways=True)
    test = pd.concat([test, *(_segmented(plan, dataset, name) for name, part in parts.items() if part.segmentation)])
    curves = _curves(plan, dataset, tuned)
    matched = _matched(plan, dataset, curves)
    used = {name: _labels(plan, dataset, part) for name, part in parts.items()}
    marks = {name: rows.query("chosen")["mark"].item() for name, rows in curves.items()}
    overview = summarise_methods(test).assign(labels=lambda table: table["method"].map(used))
    return {
        "tuned": tuned,
        "test": test,
        "summary": overview.assign(mark=overview["method"].map(marks).fillna("")),
        "matched": matched,
        "tests": families(plan.part(dataset).optimisation.tests, test, matched),
        "traces": _traces(plan, dataset, lams, traced, every),
    }


def _entry(plan: Profile, dataset: str, name: str, lam: float | None, extractor: str = "") -> Entry:
    """A method at its λ, with the extractor of that name, or else its own."""
    part, classes = plan.methods(dataset)[name], len(plan.data(dataset).classes)
    extractor = extractor or next(iter(_extractors(plan, dataset, part)), "")
    register = profile_method(plan, dataset, part, lam, extractor)
    columns = {"method": name, "lam": lam, "extractor": extractor or None}
    entry = Entry(columns, register, place(part))

    def true_classes(sample: Sample) -> Tensor:
        return one_hot(sample.label[None], classes)[0]

    given = {"labels": (true_classes, true_classes), "atlas": (true_classes, entry.given[1])}
    return replace(entry, given=given.get(part.maps, entry.given))


def _extractors(plan: Profile, dataset: str, part: MethodPart) -> list[str]:
    """The extractors that a method is tested with, one at a time; none for one without, or with two kinds of them."""
    return [] if len(required_extractors(part.similarity)) > 1 else method_extractors(plan.part(dataset), part)


def _labels(plan: Profile, dataset: str, part: MethodPart) -> str:
    networks = [part.network] if part.network else []
    names = _extractors(plan, dataset, part)[:1] or method_extractors(plan.part(dataset), part)
    return labels_used(plan.part(dataset), names, networks, part.maps in ("labels", "atlas"))


@torch.no_grad()
def _segmented(plan: Profile, dataset: str, name: str) -> pd.DataFrame:
    """What the segmentation of the fixed image alone reaches, in place of a warped label: rows as of `evaluate`."""
    data, rows = plan.data(dataset), []
    for extractor in method_extractors(plan.part(dataset), plan.methods(dataset)[name]):
        network = load_extractor(plan, dataset, extractor, "seg").to(device())
        for pair in data.pairs("test"):
            logits, seconds = timed(partial(_second, network), *[pair.fixed.image[None].to(device())] * 2)
            found = logits.argmax(1, keepdim=True).to(torch.uint8)
            metrics = label_metrics(found, pair.fixed.label[None], data.classes, data.spacing)
            columns = {"method": name, "lam": None, "extractor": extractor, "pair": pair.name}
            rows.append({**columns, **metrics, "device": named(device()), "seconds": seconds})
    return pd.DataFrame(rows)


def _second(network: nn.Module, _: Tensor, fixed: Tensor) -> Tensor:
    return network(fixed)


def _matched(plan: Profile, dataset: str, curves: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The test of each method of a family at the λ where its warps are as smooth as those of the family's first.

    The SD log J of the first at its λ, on validation, is where the others' curve of SD log J against log λ is cut;
    `reached` is False where the curve ends before it. Rows as of `evaluate`, with `reference` before them.
    """
    data, methods = plan.data(dataset), plan.methods(dataset)
    tables = [pd.DataFrame(columns=["reference", "reached", "method", "lam", "extractor", "pair", *METRICS])]
    for number, (reference, family) in enumerate(plan.part(dataset).optimisation.tests.items()):
        target = curves[reference].query("chosen")["sd_log_jacobian"].item()
        entries, reached = [], {}
        for name in (one for one in family.against if one in curves):
            curve = curves[name].sort_values("sd_log_jacobian")
            smooth = curve["sd_log_jacobian"].to_numpy()
            lam = float(f"{np.exp(np.interp(target, smooth, np.log(curve['lam'].to_numpy(dtype=float)))):.3g}")
            entries += [
                _entry(plan, dataset, name, lam, one) for one in _extractors(plan, dataset, methods[name]) or [""]
            ]
            reached[name] = smooth[0] <= target <= smooth[-1]
        if entries:
            rows = evaluate(entries, data, "test", plan.optimisation(dataset).folder / f"matched-{number}.csv")
            rows.insert(0, "reference", reference)
            rows.insert(1, "reached", rows["method"].map(reached))
            tables.append(rows)
    return pd.concat(tables[1:] or tables, ignore_index=True)


def _curves(plan: Profile, dataset: str, tuned: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method → its rows of `choose`; those of a baseline that its own run has tuned are read there."""
    curves = {name: rows for name, rows in tuned.groupby("method", sort=False) if len(rows) > 1}
    for name, part in plan.methods(dataset).items():
        if part.baseline and not part.lam:
            rows = choose(pd.read_csv(plan.baseline(dataset, part.baseline).need().validation))
            curves |= {name: rows} if len(rows) > 1 else {}
    return curves


def families(tests: dict[str, FamilyPart], test: pd.DataFrame, matched: pd.DataFrame) -> pd.DataFrame:
    """Has the first method of a family another Dice than each of the others? Two-sided, paired by couple.

    Repeats with other extractors are averaged. One row per method and `smoothness`: "chosen", each at its own λ, or
    "matched", or "nearest" where the curve of a method ends before it is as smooth; `classes`, whose mean Dice it is
    ("foreground" for all but the background); the columns of `compare_methods`; `sd_log_jacobian` of both on the test
    pairs; `p_holm` is corrected over the whole family of a `reference`.
    """
    tables = []
    for reference, family in tests.items():
        own = matched[matched["reference"] == reference]
        reached = own["reached"].eq(True)
        settings = {"chosen": test[test["method"].isin(family.against)], "matched": own[reached]}
        settings["nearest"], found = own[~reached], []
        for smoothness, rows in settings.items():
            if len(rows):
                pairs = pd.concat([test[test["method"] == reference], rows])
                columns = [f"dice_{name}" for name in family.classes] or [DECIDES]
                compared = pairs.assign(score=pairs[columns].mean(axis=1))
                table = compare_methods(compared, "score", reference).assign(smoothness=smoothness)
                smooth = compared.groupby("method")["sd_log_jacobian"].mean()
                table = table.assign(reference_sd_log_jacobian=smooth[reference])
                found.append(table.assign(sd_log_jacobian=table["method"].map(smooth)))
        if found:
            table = pd.concat(found, ignore_index=True).assign(reference=reference)
            classes = ", ".join(family.classes) or "foreground"
            tables.append(table.assign(classes=classes, p_holm=holm(table["p"])))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["reference", "method", "p"])


def _traces(plan: Profile, dataset: str, lams: dict[str, float], pairs: int, every: int) -> pd.DataFrame:
    """What each method but the controls has reached while it is at work, on the first validation pairs."""
    data, rows, methods = plan.data(dataset), [], plan.methods(dataset)
    watched = {name: part for name, part in methods.items() if not (part.maps or part.segmentation or part.extractor)}
    looks = {name: _look(plan, data, part, lams.get(name), every) for name, part in watched.items()}
    chosen = data.pairs("validation")
    for number in tqdm(range(min(pairs, len(chosen))), desc="traces", unit="pair", leave=False):
        pair = chosen[number]
        for name, look in looks.items():
            for step, seconds, displacement in look(pair):
                metrics = measure(displacement, pair, data)
                rows.append({"method": name, "pair": pair.name, "step": step, "seconds": seconds, **metrics})
    return pd.DataFrame(rows or None, columns=None if rows else ["method", "pair", "step", "seconds", *METRICS])


def _look(
    plan: Profile, data: Dataset, part: MethodPart, lam: float | None, every: int
) -> Callable[[Pair], Iterator[tuple[int, float, Tensor | None]]]:
    """(step, seconds, displacement) of one method on a pair, from before its first step to its last.

    An optimisation is looked at after every few steps, and the looking is not timed; a baseline is run with fractions
    of its iterations; a network is one point.
    """
    where, network, shortest, fractions = place(part), None, None, {}
    if part.network:
        network = method(plan, data.name, part.network)
    if part.baseline:
        run = partial(method, plan, data.name, part.baseline, smoothing=lam, **part.options.get(part.baseline, {}))
        full = plan.baseline(data.name, part.baseline).settings.options["iterations"]
        counts = [tuple(round(fraction * count) for count in full) for fraction in FRACTIONS]
        fractions = {sum(count): run(iterations=count) for count in counts}
        shortest = run(iterations=[1] * len(full))
    register = profile_method(plan, data.name, part, lam) if part.similarity else None

    def look(pair: Pair) -> Iterator[tuple[int, float, Tensor | None]]:
        images = [image[None].to(where) for image in (pair.moving.image, pair.fixed.image)]
        weights = weights_of(pair, where)
        yield (0, *reversed(timed(network, *images))) if network else (0, 0.0, None)
        if shortest:
            timed(shortest, *images)  # imports are not timed
        for steps, baseline in fractions.items():
            yield (steps, *reversed(timed(baseline, *images, weights)))
        if register:
            yield from _watched(partial(register, **({} if weights is None else {"weights": weights})), images, every)

    return look


def _watched(register: Callable, images: list[Tensor], every: int) -> list[tuple[int, float, Tensor]]:
    """Snapshots of an optimisation."""
    seen, paused, last = [], 0.0, 0
    started = time.perf_counter()

    def look(step: int, displacement: Callable[[], Tensor]) -> None:
        nonlocal paused, last
        now, last = time.perf_counter(), step
        if step % every == 0:
            seen.append((step, now - started - paused, displacement()))
        paused += time.perf_counter() - now

    final = register(*images, observe=look)
    seconds = time.perf_counter() - started - paused
    # The best of the last level may be an earlier step's: it takes the place of the last snapshot.
    return [*(one for one in seen if one[0] < last), (last, seconds, final)]


def summarise_methods(test: pd.DataFrame) -> pd.DataFrame:
    """One row per method of `optimisation`'s test: `lam`; the mean of each metric; of both Dice the 95 % bootstrap
    interval over couples (`…_low`, `…_high`); `extractors`, how many there are, and `sd_extractors`, the SD of their
    mean foreground Dice; median `seconds`, the `device` that they are of; `pairs`, `couples` and `images`.

    Extractors that differ in the seed are averaged pair by pair first.
    """
    groups = test.groupby("method", sort=False)
    pairs = test.groupby(["method", "pair"], sort=False)[["dice", DECIDES]].mean().reset_index()
    means = test.reindex(columns=["method", *METRICS]).groupby("method", sort=False).mean()
    means.insert(0, "lam", groups["lam"].first().astype(float))
    by_extractor = test.groupby(["method", "extractor"], sort=False, dropna=False)[DECIDES].mean()
    by_extractor = by_extractor.groupby("method", sort=False)
    means = means.assign(extractors=by_extractor.size(), sd_extractors=by_extractor.std())
    means = means.assign(seconds=groups["seconds"].median(), device=groups["device"].first())
    for metric in (DECIDES, "dice"):
        found = summary(pairs, "method", [metric]).set_index("method")
        means = means.assign(**{f"{metric}_low": found["low"], f"{metric}_high": found["high"]})
    return means.assign(pairs=found["n"], couples=found["couples"], images=images(test["pair"])).reset_index()


def best_on_validation(tables: Tables) -> tuple[str, pd.DataFrame]:
    """The method with the highest foreground Dice on the validation pairs at its λ, and its comparison with every other
    one on the test pairs (`compare_methods`): what they may be asked about once. Methods that are given labels at test
    do not count.
    """
    labelled = tables["summary"].query("labels.str.contains('at test')")["method"]
    tuned, test = (tables[name][~tables[name]["method"].isin(labelled)] for name in ("tuned", "test"))
    best = tuned.loc[tuned.query("chosen")[DECIDES].idxmax(), "method"]
    return best, compare_methods(test, DECIDES, best)
