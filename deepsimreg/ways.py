"""Ways to register one pair, side by side: a network, optimisation, a network and then optimisation, SyN, greedy.

All ways register a pair before the next pair is looked at, so that a slow moment of the machine strikes them alike.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from deepsimreg.data import Dataset
from deepsimreg.evaluation import evaluate_pair
from deepsimreg.experiment import Profile, WaySettings, write_json
from deepsimreg.losses import WeightedSum, build_similarity, required_extractors
from deepsimreg.optimisation import Level, default_levels, optimise
from deepsimreg.stages import extractor_of, method_of, write_table

MOST_FOLDS = 1e-4  # share of voxels; a λ with more is not chosen, if there is one with fewer

Way = Callable[[Tensor, Tensor], Tensor]


def make_way(profile: Profile, dataset: Dataset, settings: WaySettings, lam: float) -> Way:
    """(moving, fixed) (1, 1, *spatial) → displacement; what it needs is loaded here and not in the call.

    Args:
        profile, dataset: whose networks, extractors and tuned values.
        settings: of the way.
        lam: weight of the regulariser; a way without optimisation does not look at it.
    """
    if not settings.similarity:
        return method_of(profile, dataset, settings.baseline or settings.network)
    network = method_of(profile, dataset, settings.network) if settings.network else None
    kinds = required_extractors(settings.similarity)
    extractors = {kind: extractor_of(profile.extractor(dataset.name, kind), dataset, kind)[0] for kind in kinds}
    parts = [build_similarity(name, extractors, **settings.options.get(name, {})) for name in settings.similarity]
    similarity = WeightedSum(parts, list(settings.similarity.values()))
    levels = [Level(*level) for level in settings.levels]

    def register(moving: Tensor, fixed: Tensor) -> Tensor:
        start = None if network is None else network(moving, fixed)
        return optimise(
            moving,
            fixed,
            similarity,
            lam,
            levels or default_levels(fixed.shape[2:], network is not None),
            dataset.spacing,
            start,
            progress=False,
        ).displacement

    return register


def tune_ways(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """Every λ of every way on the validation pairs; the choice is written for `compare_ways`.

    Returns:
        A row a way and λ: way, lam, the mean of every metric, median seconds, and whether it is chosen: the highest
        Dice of those with folds of at most `MOST_FOLDS`.
    """
    folder = profile.folder(dataset.name, "optimisation")
    ways = [way for way in profile.ways(dataset.name) if way.lams]
    candidates = {(way.name, lam): make_way(profile, dataset, way, lam) for way in ways for lam in way.lams}
    table = _interleaved(candidates, dataset, "validation", profile.way_pairs(dataset.name), folder / "validation.csv")
    if table.empty:
        return table.assign(chosen=[])
    groups = table.groupby(["way", "lam"], sort=False)
    means = groups.mean(numeric_only=True).assign(seconds=groups["seconds"].median()).reset_index()
    means["chosen"] = False
    for _, rows in means.groupby("way", sort=False):
        smooth = rows[rows["folds"] <= MOST_FOLDS]
        means.loc[(smooth if len(smooth) else rows)["dice"].idxmax(), "chosen"] = True
    chosen = means[means["chosen"]]
    write_json(folder / "choice.json", dict(zip(chosen["way"], chosen["lam"], strict=True)))
    return means


def compare_ways(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """Every way on the test pairs, at its λ; a pair that has been registered in an earlier sitting is not again.

    Returns:
        A row a way and pair: way, lam, pair, the metrics of `evaluate_pair`, and seconds of the registration alone.
    """
    folder = profile.folder(dataset.name, "optimisation")
    means = tune_ways(profile, dataset)
    lams = dict(means.loc[means["chosen"], ["way", "lam"]].itertuples(index=False)) if len(means) else {}
    chosen = {
        (way.name, lams.get(way.name, 0.0)): make_way(profile, dataset, way, lams.get(way.name, 0.0))
        for way in profile.ways(dataset.name)
    }
    table = _interleaved(chosen, dataset, "test", 0, folder / "test.csv")
    write_json(folder / "done.json", {"dice": table.groupby("way", sort=False)["dice"].mean().to_dict()})
    return table


def _interleaved(
    ways: dict[tuple[str, float], Way], dataset: Dataset, split: str, limit: int, path: Path
) -> pd.DataFrame:
    """Register the first pairs of a split in every way; the table at `path` grows by a pair at a time."""
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    rows = [row for row in rows if (row["way"], row["lam"]) in ways]
    known = {(row["way"], row["lam"], row["pair"]) for row in rows}
    pairs: Sequence = dataset.pairs(split)
    for number in tqdm(range(min(limit, len(pairs)) or len(pairs)), desc=f"{split} pairs", unit="pair", leave=False):
        pair = pairs[number]
        moving, fixed = pair.moving.image[None], pair.fixed.image[None]
        for (name, lam), register in ways.items():
            if (name, lam, pair.name) in known:
                continue
            started = time.perf_counter()
            displacement = register(moving, fixed)
            seconds = time.perf_counter() - started
            truth = None if pair.displacement is None else pair.displacement[None]
            labels = pair.moving.label[None], pair.fixed.label[None]
            metrics = evaluate_pair(displacement, *labels, dataset.classes, dataset.spacing, truth)
            rows.append({"way": name, "lam": lam, "pair": pair.name, **metrics, "seconds": seconds})
        write_table(pd.DataFrame(rows), path)
    return pd.DataFrame(rows)
