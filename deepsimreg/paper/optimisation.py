"""One pair at a time: networks, optimisation, a network followed by one, and baselines, on the same pairs."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from deepsimreg.data.base import Dataset, Pair
from deepsimreg.paper.evaluate import Entry, choose, chosen_lams, evaluate, measure, timed, weights_of
from deepsimreg.paper.methods import method, place, profile_method
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.settings import MethodPart
from deepsimreg.paper.statistics import summary
from deepsimreg.paper.tables import Tables, tables_of

FRACTIONS = (0.25, 0.5, 1.0)  # of their iterations, at which baselines are looked at on their way
METRICS = ("dice", "dice_foreground", "hd95", "folds", "sd_log_jacobian")


@tables_of("optimisation")
def optimisation(plan: Profile, dataset: str, traced: int = 3, every: int = 5) -> Tables:
    """Every method of the profile's section `optimisation`.

    traced: validation pairs that are watched while they are registered. every: steps between two snapshots. Returns
    `tuned`, one row per method and λ, as `choose` returns; `test`, one row per method and pair at its λ; `summary`, as
    `summarise_methods` returns; `traces`, one row per method, pair and snapshot.
    """
    parts, data, folder = plan.methods(dataset), plan.data(dataset), plan.optimisation(dataset).folder

    def entry(name: str, lam: float | None) -> Entry:
        return Entry({"method": name, "lam": lam}, profile_method(plan, dataset, parts[name], lam), place(parts[name]))

    tuned, lams = pd.DataFrame(columns=["method", "lam", *METRICS, "seconds", "chosen", "mark"]), {}
    candidates = [entry(name, lam) for name, part in parts.items() for lam in part.lam]
    if candidates:
        limit = plan.part(dataset).optimisation.pairs
        rows = evaluate(candidates, data, "validation", folder / "validation.csv", limit)
        tuned, lams = choose(rows), chosen_lams(rows)
    test = evaluate([entry(name, lams.get(name)) for name in parts], data, "test", folder / "test.csv")
    traces = _traces(plan, dataset, lams, traced, every)
    return {"tuned": tuned, "test": test, "summary": summarise_methods(test), "traces": traces}


def _traces(plan: Profile, dataset: str, lams: dict[str, float], pairs: int, every: int) -> pd.DataFrame:
    """What each method has reached while it is at work, on the first validation pairs."""
    data, rows = plan.data(dataset), []
    looks = {name: _look(plan, data, part, lams.get(name), every) for name, part in plan.methods(dataset).items()}
    chosen = data.pairs("validation")
    for number in tqdm(range(min(pairs, len(chosen))), desc="traces", unit="pair", leave=False):
        pair = chosen[number]
        for name, look in looks.items():
            for step, seconds, displacement in look(pair):
                metrics = measure(displacement, pair, data)
                rows.append({"method": name, "pair": pair.name, "step": step, "seconds": seconds, **metrics})
    return pd.DataFrame(rows)


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
        full = plan.baseline(data.name, part.baseline).settings.options["iterations"]
        counts = [tuple(round(fraction * count) for count in full) for fraction in FRACTIONS]
        fractions = {sum(count): method(plan, data.name, part.baseline, iterations=count) for count in counts}
        shortest = method(plan, data.name, part.baseline, iterations=[1] * len(full))
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
    """One row per method of `optimisation`'s test: `lam`, the mean of each metric, `dice_low` and `dice_high` (95 %
    bootstrap interval over unordered pairs), median `seconds`, the `device` that they are of, and `n` pairs.
    """
    groups = test.groupby("method", sort=False)
    means = test.astype({"lam": float}).groupby("method", sort=False)[["lam", *METRICS]].mean()
    means = means.assign(seconds=groups["seconds"].median(), device=groups["device"].first(), n=groups.size())
    dice = summary(test, "method", ["dice"]).set_index("method")
    return means.assign(dice_low=dice["low"], dice_high=dice["high"]).reset_index()


def best_on_validation(tables: Tables) -> str:
    """The optimisation with the highest validation Dice at its λ: what the test pairs may be asked about once."""
    chosen = tables["tuned"].query("chosen")
    return chosen.loc[chosen["dice"].idxmax(), "method"]
