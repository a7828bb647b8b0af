"""Ways to register one pair, side by side: a network, optimisation, a network and then optimisation, SyN, greedy.

All ways register a pair before the next pair is looked at, so that a slow moment of the machine strikes them alike.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from deepsimreg.data import Dataset, Pair
from deepsimreg.losses import WeightedSum, build_similarity, required_extractors
from deepsimreg.metrics import evaluate_pair
from deepsimreg.optimise import LEARNING_RATE, Level, default_levels, optimise
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.experiment import QUICK, Profile, Run, SettingsError, WaySettings
from deepsimreg.paper.stages import extractor_of, method_of, write_table
from deepsimreg.paper.statistics import summary

MOST_FOLDS = 1e-4  # share of voxels; a λ with more is not chosen, if there is one with fewer

SHARES = (0.25, 0.5, 1.0)  # of their iterations, at which SyN and greedy are looked at on their way
METRICS = ("dice", "dice_foreground", "hd95", "folds", "sd_log_jacobian")

Way = Callable[..., Tensor]


def make_way(profile: Profile, dataset: Dataset, settings: WaySettings, lam: float) -> Way:
    """(moving, fixed) (1, 1, *spatial) → displacement; what it needs is loaded here and not in the call.

    A way that optimises can be watched: its call takes `observe`, as `optimise` does.

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
    levels = _levels(settings, dataset)

    def register(moving: Tensor, fixed: Tensor, observe=None) -> Tensor:
        start = None if network is None else network(moving, fixed)
        pair = (moving, fixed, similarity, lam, levels, dataset.spacing, start)
        return optimise(*pair, progress=False, observe=observe).displacement

    return register


def _levels(settings: WaySettings, dataset: Dataset) -> list[Level]:
    return list(settings.levels) or default_levels(dataset.shape, started=bool(settings.network))


def tune_ways(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """Every λ of every way on the validation pairs; the table is written.

    Returns:
        A row a way and λ: way, lam, the mean of every metric, median seconds, and whether it is chosen: the highest
        Dice of those with folds of at most `MOST_FOLDS`.

    Raises:
        SettingsError: the profile has no ways for this dataset.
    """
    if not profile.ways(dataset.name):
        raise SettingsError(f"{dataset.name} in profile {profile.name} has no ways to compare: add optimisation to it")
    folder = profile.folder(dataset.name, "optimisation")
    ways = [way for way in profile.ways(dataset.name) if way.lams]
    candidates = {(way.name, lam): make_way(profile, dataset, way, lam) for way in ways for lam in way.lams}
    if not candidates:
        means = pd.DataFrame(columns=["way", "lam", *METRICS, "seconds", "chosen"]).astype({"chosen": bool})
        write_table(means, folder / "tuned.csv")
        return means
    table = _interleaved(
        candidates, profile, dataset, "validation", profile.way_pairs(dataset.name), folder / "validation.csv"
    )
    groups = table.groupby(["way", "lam"], sort=False)
    means = groups.mean(numeric_only=True).assign(seconds=groups["seconds"].median()).reset_index()
    means["chosen"] = False
    for _, rows in means.groupby("way", sort=False):
        smooth = rows[rows["folds"] <= MOST_FOLDS]
        means.loc[(smooth if len(smooth) else rows)["dice"].idxmax(), "chosen"] = True
    write_table(means, folder / "tuned.csv")
    return means


def _chosen(profile: Profile, dataset: Dataset) -> dict[str, float]:
    """λ of each way that has any."""
    return dict(tune_ways(profile, dataset).query("chosen")[["way", "lam"]].itertuples(index=False))


def compare_ways(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """Every way on the test pairs, at its λ; a pair that has been registered in an earlier sitting is not again.

    Returns:
        A row a way and pair: way, lam, pair, the metrics of `evaluate_pair`, and seconds of the registration alone.
    """
    folder = profile.folder(dataset.name, "optimisation")
    lams = _chosen(profile, dataset)
    chosen = {
        (way.name, lams.get(way.name, 0.0)): make_way(profile, dataset, way, lams.get(way.name, 0.0))
        for way in profile.ways(dataset.name)
    }
    return _interleaved(chosen, profile, dataset, "test", 0, folder / "test.csv")


def trace_ways(profile: Profile, dataset: Dataset, pairs: int = 3, every: int = 5) -> pd.DataFrame:
    """What each way has reached while it is at work, on the first validation pairs; the table is written.

    A way that optimises is looked at after every few steps, with its chosen λ, and the looking is not timed. SyN and
    greedy are run with a share of their iterations. A network is one point.

    Returns:
        A row a way, pair and look: way, pair, step, seconds so far, and the metrics of `evaluate_pair`.
    """
    lams = _chosen(profile, dataset)
    rows = []
    chosen = dataset.pairs("validation")
    for pair in tqdm([chosen[i] for i in range(min(pairs, len(chosen)))], desc="traces", unit="pair", leave=False):
        for way in profile.ways(dataset.name):
            looks = _looks(profile, dataset, way, lams.get(way.name, 0.0), pair, every)
            for step, seconds, displacement in looks:
                metrics = _measured(displacement, pair, dataset)
                rows.append({"way": way.name, "pair": pair.name, "step": step, "seconds": seconds, **metrics})
    table = pd.DataFrame(rows)
    write_table(table, profile.folder(dataset.name, "optimisation") / "traces.csv")
    return table


def _looks(profile: Profile, dataset: Dataset, way: WaySettings, lam: float, pair: Pair, every: int) -> list[tuple]:
    """(step, seconds, displacement) of one way on one pair, from before its first step to its last."""
    moving, fixed = pair.moving.image[None], pair.fixed.image[None]
    looks = [] if way.network else [(0, 0.0, None)]
    if way.baseline:
        options = profile.baseline(dataset.name, way.baseline).options
        full = options.get("iterations", BASELINES[way.baseline].iterations)
        method_of(profile, dataset, way.baseline, iterations=[1] * len(full))(moving, fixed)  # imports are not timed
        for share in SHARES:
            iterations = tuple(round(share * count) for count in full)
            register = method_of(profile, dataset, way.baseline, iterations=iterations)
            started = time.perf_counter()
            displacement = register(moving, fixed)
            looks.append((sum(iterations), time.perf_counter() - started, displacement))
        return looks
    if way.network:
        network = method_of(profile, dataset, way.network)
        started = time.perf_counter()
        displacement = network(moving, fixed)
        looks.append((0, time.perf_counter() - started, displacement))
    if way.similarity:
        register, paused, last = make_way(profile, dataset, way, lam), 0.0, 0
        started = time.perf_counter()

        def look(step: int, displacement: Callable[[], Tensor]) -> None:
            nonlocal paused, last
            now, last = time.perf_counter(), step
            if step % every == 0:
                looks.append((step, now - started - paused, displacement()))
            paused += time.perf_counter() - now

        displacement = register(moving, fixed, observe=look)
        seconds = time.perf_counter() - started - paused
        looks = [seen for seen in looks if seen[0] < last]
        looks.append((last, seconds, displacement))  # the best of the last level, which may be an earlier step's
    return looks


def summarise_ways(table: pd.DataFrame) -> pd.DataFrame:
    """A row a way of what `compare_ways` returns: `lam`, the mean of each metric, `dice_low` and `dice_high` (95 %
    bootstrap interval over couples), median `seconds`, and `n` pairs.
    """
    groups = table.groupby("way", sort=False)
    means = groups[["lam", *METRICS]].mean().assign(seconds=groups["seconds"].median(), n=groups.size())
    dice = summary(table, "way", ["dice"]).set_index("way")
    return means.assign(dice_low=dice["low"], dice_high=dice["high"]).reset_index()


def ways_tables(profile: Profile, dataset: Dataset) -> dict[str, pd.DataFrame]:
    """`test`, `validation` and `traces`: what `compare_ways`, `tune_ways` and `trace_ways` return; in the quick profile
    they are made if they are missing.

    Raises:
        SettingsError: 09_optimisation has not been run.
    """
    folder = profile.folder(dataset.name, "optimisation")
    if profile.name != QUICK:
        Run.result_of(folder)
        names = {"test": "test", "validation": "tuned", "traces": "traces"}
        return {key: pd.read_csv(folder / f"{name}.csv") for key, name in names.items()}
    missing = not (folder / "traces.csv").is_file()
    traces = trace_ways(profile, dataset) if missing else pd.read_csv(folder / "traces.csv")
    return {"test": compare_ways(profile, dataset), "validation": tune_ways(profile, dataset), "traces": traces}


def _digest(profile: Profile, dataset: Dataset, way: WaySettings) -> str:
    """Of all that a way's result follows from, but for its λ: rows of anything else are not reused."""
    kinds = required_extractors(way.similarity)
    files = [profile.extractor(dataset.name, kind).folder / "weights.safetensors" for kind in kinds]
    if way.network:
        files.append(profile.registration(dataset.name, way.network).folder / "weights.safetensors")
    if way.baseline:
        files.append(profile.baseline(dataset.name, way.baseline).folder / "done.json")
    settings = (replace(way, lams=()), _levels(way, dataset), LEARNING_RATE, dataset.fingerprint())
    digest = hashlib.sha256(repr(settings).encode())
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()[:8]


def _interleaved(
    ways: dict[tuple[str, float], Way], profile: Profile, dataset: Dataset, split: str, limit: int, path: Path
) -> pd.DataFrame:
    """Register the first pairs of a split in every way; the table at `path` grows by a pair at a time."""
    digests = {way.name: _digest(profile, dataset, way) for way in profile.ways(dataset.name)}
    pairs = dataset.pairs(split)
    pairs = [pairs[number] for number in range(min(limit, len(pairs)) or len(pairs))]
    names = {pair.name for pair in pairs}
    rows = pd.read_csv(path, dtype={"settings": str}).to_dict("records") if path.is_file() else []
    rows = [row for row in rows if (row["way"], row["lam"]) in ways and row["pair"] in names]
    rows = [row for row in rows if row.get("settings") == digests[row["way"]]]
    known = {(row["way"], row["lam"], row["pair"]) for row in rows}
    for pair in tqdm(pairs, desc=f"{split} pairs", unit="pair", leave=False):
        moving, fixed = pair.moving.image[None], pair.fixed.image[None]
        for (name, lam), register in ways.items():
            if (name, lam, pair.name) in known:
                continue
            started = time.perf_counter()
            displacement = register(moving, fixed)
            seconds = time.perf_counter() - started
            metrics = _measured(displacement, pair, dataset)
            rows.append(
                {"way": name, "lam": lam, "pair": pair.name, **metrics, "seconds": seconds, "settings": digests[name]}
            )
        write_table(pd.DataFrame(rows), path)
    return pd.DataFrame(rows)


def _measured(displacement: Tensor | None, pair: Pair, dataset: Dataset) -> dict[str, float]:
    truth = None if pair.displacement is None else pair.displacement[None]
    labels = pair.moving.label[None], pair.fixed.label[None]
    return evaluate_pair(displacement, *labels, dataset.classes, dataset.spacing, truth)
