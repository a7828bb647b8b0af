"""Intervals, tests and effect sizes against scipy, hand-made examples and simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from deepsimreg.paper.paths import FIGURES
from deepsimreg.paper.reports import Published
from deepsimreg.paper.statistics import (
    cohens_d,
    compare_methods,
    couple,
    coupled_interval,
    paired_wilcoxon,
)
from deepsimreg.paper.words import counted, probability, verdict


def scipy_interval(values):
    found = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return found.low, found.high


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_paired_wilcoxon_is_scipys_two_sided_test(rng):
    b = rng.normal(size=52)
    a = b + rng.normal(0.1, 0.5, 52)
    assert paired_wilcoxon(a, b) == stats.wilcoxon(a, b).pvalue
    assert paired_wilcoxon(a, b) == paired_wilcoxon(b, a)
    assert paired_wilcoxon([*a, np.nan], [*b, 5.0]) == paired_wilcoxon(a, b)


def test_paired_wilcoxon_by_counting_the_signs():
    """Five pairs, all greater: of the 2⁵ sign patterns only it and its mirror are as extreme."""
    assert paired_wilcoxon([2, 4, 6, 8, 10], [1, 2, 3, 4, 5]) == pytest.approx(2 / 32)


def test_equal_pairs_are_no_evidence():
    assert paired_wilcoxon([0.5, 0.7], [0.5, 0.7]) == 1


def test_paired_wilcoxon_wants_pairs():
    with pytest.raises(ValueError, match="order of the pairs"):
        paired_wilcoxon([1, 2, 3], [1, 2])


def test_cohens_d_by_hand_and_its_sign():
    """Means 4 and 2, variances 4 and 1 of 3 values each: pooled SD = √2.5."""
    assert cohens_d([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / np.sqrt(2.5))
    assert cohens_d([1, 2, 3], [2, 4, 6]) == pytest.approx(-2 / np.sqrt(2.5))
    assert cohens_d([1, 1], [1, 1]) == 0
    assert cohens_d([2, 2], [1, 1]) == np.inf
    assert np.isnan(cohens_d([2], [1, 1]))


def test_cohens_d_with_unequal_sizes_follows_from_students_t(rng):
    a, b = rng.normal(1, 2, 12), rng.normal(0, 1, 30)
    assert cohens_d(a, b) == pytest.approx(stats.ttest_ind(a, b).statistic * np.sqrt(1 / 12 + 1 / 30))


def test_the_correction_is_holms_by_hand():
    """The smallest of three p counts three times, the next twice, and never less than the one before."""
    values = {"r": [1.0, 2, 3, 4, 5, 6], "a": [0.0] * 6, "b": [1.5, 1, 2, 3, 4, 5], "c": [1.5, 2.5, 2, 3, 4, 5]}
    rows = [(m, f"x{i}--y{i}", v) for m, vs in values.items() for i, v in enumerate(vs)]
    found = compare_methods(pd.DataFrame(rows, columns=["method", "pair", "dice"]), "dice", "r").set_index("method")
    p = found["p"].sort_values()
    expected = np.minimum(np.maximum.accumulate(p.to_numpy() * [3, 2, 1]), 1)
    assert list(found.loc[p.index, "p_holm"]) == pytest.approx(list(expected))


def test_compare_methods_pairs_by_name_not_by_row(rng):
    names = [f"p{i}" for i in range(20)]
    ours, theirs = rng.uniform(0.7, 0.9, 20), rng.uniform(0.7, 0.9, 20)
    order = rng.permutation(20)
    pairs = pd.concat(
        [
            pd.DataFrame({"method": "deepsim-seg", "pair": names, "dice": ours}),
            pd.DataFrame({"method": "ncc", "pair": np.array(names)[order], "dice": theirs[order]}),
            pd.DataFrame({"method": "mse", "pair": names, "dice": ours - np.linspace(0.01, 0.2, 20)}),
        ]
    )
    table = compare_methods(pairs, "dice").set_index("method")
    assert list(table.index) == ["ncc", "mse"]
    assert table.loc["ncc", "p"] == stats.wilcoxon(ours, theirs).pvalue
    assert table.loc["ncc", "d"] == pytest.approx(cohens_d(ours, theirs))
    assert table.loc["ncc", "difference"] == pytest.approx(np.mean(ours - theirs))
    assert table.loc["mse", "p_holm"] == pytest.approx(2 * 2 * 0.5**20)
    assert table["images"].to_list() == [20, 20], "names without a partner count as images"


def test_compare_methods_averages_seeds_and_uses_common_pairs_only():
    pairs = pd.DataFrame(
        {
            "method": ["deepsim-seg"] * 4 + ["ncc"] * 3,
            "pair": ["a", "a", "b", "c", "a", "b", "d"],
            "dice": [0.6, 0.8, 0.5, 0.1, 0.6, 0.6, 0.9],
        }
    )
    row = compare_methods(pairs, "dice").iloc[0]
    assert (row["pairs"], row["couples"]) == (2, 2)
    assert row["reference_mean"] == pytest.approx(0.6)


def test_compare_methods_names_what_is_missing():
    pairs = pd.DataFrame({"method": ["ncc"], "pair": ["a"], "dice": [0.5]})
    with pytest.raises(ValueError, match="deepsim-seg"):
        compare_methods(pairs, "dice")
    with pytest.raises(ValueError, match="hd95"):
        compare_methods(pairs, metric="hd95")


def both_ways(rng, couples=60, noise=0.0):
    """Values of pairs in both directions: what a couple shares, and noise of each direction's own."""
    shared = np.repeat(rng.normal(0.8, 0.05, couples), 2)
    names = [name for i in range(couples) for name in (f"a{i}--b{i}", f"b{i}--a{i}")]
    return pd.DataFrame({"pair": names, "dice": shared + rng.normal(0, noise, 2 * couples)})


def test_the_two_directions_of_a_pair_are_one_couple():
    assert couple("s1--s2") == couple("s2--s1") != couple("s1--s3")


def test_coupled_interval_is_that_of_the_couples_where_directions_agree(rng):
    pairs = both_ways(rng)
    low, high = coupled_interval(pairs, "dice")
    assert (low, high) == pytest.approx(scipy_interval(pairs["dice"][::2]), abs=6e-4)
    naive = np.diff(scipy_interval(pairs["dice"]))[0]
    assert (high - low) / naive == pytest.approx(np.sqrt(2), rel=0.06)


def test_coupled_interval_of_single_pairs_is_the_bootstrap_interval(rng):
    values = rng.normal(0.8, 0.05, 100)
    pairs = pd.DataFrame({"pair": [f"a{i}--b{i}" for i in range(100)], "dice": values})
    assert coupled_interval(pairs, "dice") == pytest.approx(scipy_interval(values), abs=6e-4)
    assert coupled_interval(pairs[:1], "dice") == (values[0], values[0])


def test_coupled_interval_covers_the_true_mean_at_its_level(rng):
    inside = 0
    for trial in range(200):
        low, high = coupled_interval(both_ways(rng, 25, 0.02), "dice", resamples=300, seed=trial, level=0.8)
        inside += low <= 0.8 <= high
    assert 0.70 < inside / 200 < 0.88


def test_compare_methods_tests_couples(rng):
    ours, theirs = both_ways(rng, 30, 0.02), both_ways(rng, 30, 0.02)
    table = compare_methods(pd.concat([ours.assign(method="deepsim-seg"), theirs.assign(method="ncc")]), "dice")
    halves = [values["dice"].to_numpy().reshape(-1, 2).mean(1) for values in (ours, theirs)]
    assert (table.loc[0, "pairs"], table.loc[0, "couples"], table.loc[0, "images"]) == (60, 30, 60)
    assert table.loc[0, "p"] == stats.wilcoxon(*halves).pvalue
    low, high = table.loc[0, ["low", "high"]]
    wald = np.mean(halves[0] - halves[1]) + np.array([-1.96, 1.96]) * stats.sem(halves[0] - halves[1])
    assert [low, high] == pytest.approx(wald, abs=0.2 * (wald[1] - wald[0]))


@pytest.mark.parametrize(
    "dataset", [path.parent.parent.name for path in sorted(FIGURES.glob("*/evaluation/tests.csv"))]
)
def test_the_published_tests_follow_from_the_published_pairs(dataset):
    tables = Published(dataset).tables("evaluation")
    found, published = compare_methods(tables["pairs"]), tables["tests"]
    pd.testing.assert_frame_equal(found, published[list(found)], rtol=1e-4, atol=1e-6)


def test_no_probability_is_shown_as_zero():
    assert [probability(p) for p in (2e-6, 1e-4, 0.03)] == ["< .0001", "0.0001", "0.0300"]


def test_a_verdict_sorts_by_sign_and_by_the_corrected_p():
    rows = [("mse", 0.1, 0.01), ("mind", -0.1, 0.01), ("greedy", 0.1, 0.05), ("syn", -0.1, np.nan), ("ncc", 0.2, 0.001)]
    tests = pd.DataFrame(rows, columns=["method", "difference", "p_holm"])
    assert verdict(tests) == "ahead of MSE; NCC. behind MIND. not distinguished from greedy; SyN"
    assert verdict(tests[:1]) == "ahead of MSE"
    assert verdict(tests[:2], still=["mse"]) == "behind MIND. not counted, as they learned nothing: MSE"
    assert (counted(1, "seed"), counted(3, "seed")) == ("1 seed", "3 seeds")
