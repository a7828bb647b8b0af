"""Are two methods different? Intervals, tests and effect sizes over the pairs of a test set.

The unit is the couple, an unordered pair of images: where pairs come in both directions, A to B and B to A, the two are
one couple. Couples that share an image (neighbours of a movie or of a stack, all pairs of a few subjects) are not
independent: there intervals are too narrow and p-values too small, and the number of images says how much is known.

- the bootstrap percentile interval of a mean, couples drawn as wholes (Efron & Tibshirani, 1993; the cluster bootstrap,
  Davison & Hinkley 1997);
- the two-sided Wilcoxon signed-rank test on values paired by couple (Wilcoxon, 1945), with Holm's correction for
  several comparisons (Holm, 1979);
- Cohen's d = (mean a - mean b) / s, s² = ((n_a - 1) s_a² + (n_b - 1) s_b²) / (n_a + n_b - 2) (Cohen, 1988).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests


def couple(pair: str) -> str:
    """The couple of images that a pair `moving--fixed` joins: both directions have the same one."""
    return "--".join(sorted(str(pair).split("--")))


def couples(pairs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Sum and count of a metric (NaN left out) in each couple; columns `sum` and `count`, index the couple."""
    values = pairs.dropna(subset=metric)
    return values[metric].groupby(values["pair"].map(couple), sort=False).agg(["sum", "count"])


def coupled_interval(
    pairs: pd.DataFrame, metric: str, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of a metric over pairs, couples drawn as wholes.

    pairs: columns `pair` (named `moving--fixed`) and the metric. The interval of one couple is its mean; of none, NaN.
    """
    table = couples(pairs, metric)
    if len(table) < 2:
        only = float((table["sum"] / table["count"]).mean())
        return only, only
    drawn = np.random.default_rng(seed).integers(len(table), size=(resamples, len(table)))
    means = table["sum"].to_numpy()[drawn].sum(1) / table["count"].to_numpy()[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_wilcoxon(a: Sequence[float], b: Sequence[float]) -> float:
    """p of the two-sided Wilcoxon signed-rank test that `a` and `b` differ, pair by pair.

    Pairs with a NaN are left out; where no pair differs there is no evidence at all, and p = 1.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b {len(b)}; give both in the order of the pairs")
    difference = _without_nan(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))
    if not np.any(difference):
        return 1.0
    return float(stats.wilcoxon(difference).pvalue)


def cohens_d(a: Sequence[float], b: Sequence[float]) -> float:
    """Cohen's d of two independent samples: difference of the means over the pooled SD; positive if a > b.

    The pairing is not used: d says how far the two clouds of pairs lie apart, not how sure the difference is.
    NaN if a sample has fewer than two values; ±inf if both are constant and differ.
    """
    a, b = _without_nan(a), _without_nan(b)
    if min(a.size, b.size) < 2:
        return float("nan")
    difference = a.mean() - b.mean()
    pooled = ((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / (a.size + b.size - 2)
    if pooled == 0:
        return float(np.sign(difference) * np.inf) if difference else 0.0
    return float(difference / np.sqrt(pooled))


def compare_methods(
    pairs: pd.DataFrame, metric: str = "dice_foreground", reference: str = "deepsim-seg"
) -> pd.DataFrame:
    """Do the reference method and each other one differ? One row per method, paired by couple.

    pairs: a row per method and image pair, columns `method`, `pair` (named `moving--fixed`) and the metric; rows
    that repeat both (seeds), and then the two directions of a couple, are averaged first. Columns of the answer:
    `method`; `pairs` that both have, `couples` (the unordered ones) and `images` in them; `mean`, `reference_mean`,
    `difference` (reference - method), `low` and `high` (its 95 % bootstrap interval over couples), `p` (two-sided
    Wilcoxon), `p_holm`, `d` (Cohen, positive if the reference has the larger values).
    """
    _check_columns(pairs, ["method", "pair", metric])
    by_pair = pairs.pivot_table(index="pair", columns="method", values=metric, aggfunc="mean", sort=False)
    table = by_pair.groupby(by_pair.index.map(couple), sort=False).mean()
    if reference not in table:
        raise ValueError(f"reference {reference!r} is not among the methods {sorted(table.columns)}")
    rows = []
    for other in table.columns.drop(reference):
        common = table[[reference, other]].dropna()
        if common.empty:
            raise ValueError(f"{other!r} and {reference!r} share no pair; name the pairs of both runs alike")
        ours, theirs = common.to_numpy().T
        difference = (common[reference] - common[other]).rename("difference").rename_axis("pair")
        interval = coupled_interval(difference.reset_index(), "difference")
        counts = len(by_pair[[reference, other]].dropna()), len(common), images(common.index)
        means = theirs.mean(), ours.mean(), difference.mean()
        rows.append((other, *counts, *means, *interval, paired_wilcoxon(ours, theirs), cohens_d(ours, theirs)))
    columns = ["method", "pairs", "couples", "images", "mean", "reference_mean", "difference", "low", "high", "p", "d"]
    result = pd.DataFrame(rows, columns=columns)
    result.insert(result.columns.get_loc("d"), "p_holm", holm(result["p"]))
    return result


def images(names: Iterable[str]) -> int:
    """How many images there are in pairs `moving--fixed`."""
    return len({image for name in names for image in str(name).split("--")})


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values of a family, corrected by Holm."""
    return multipletests(p, method="holm")[1] if len(p) else np.array([])


def _check_columns(pairs: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in pairs]
    if missing:
        raise ValueError(f"pairs has no column {missing}; it has {list(pairs.columns)}")


def _without_nan(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float).ravel()
    return values[~np.isnan(values)]


def summary(
    pairs: pd.DataFrame, by: str | Sequence[str] = "method", metrics: Sequence[str] | None = None, **bootstrap: int
) -> pd.DataFrame:
    """Mean of each metric over the pairs of each group, with its 95 % bootstrap interval over couples.

    pairs: one row per pair, column `pair` its name. metrics: columns to summarise; None: all numeric ones that are
    not in `by`. bootstrap: options of `coupled_interval`. Returns a row per group and metric: the `by` columns,
    `metric`, `mean`, `low`, `high`, `n` (pairs without NaN), `couples` (pairs in both directions count once).
    """
    by = [by] if isinstance(by, str) else list(by)
    metrics = list(metrics or pairs.select_dtypes("number").columns.difference(by, sort=False))
    _check_columns(pairs, by + metrics)
    rows = []
    for group, values in pairs.groupby(by, sort=False):
        for metric in metrics:
            interval = coupled_interval(values, metric, **bootstrap)
            counts = values[metric].count(), len(couples(values, metric))
            rows.append((*group, metric, values[metric].mean(), *interval, *counts))
    return pd.DataFrame(rows, columns=[*by, "metric", "mean", "low", "high", "n", "couples"])
