"""Ways to register a pair, side by side, from a profile."""

import pandas as pd
import pytest
import yaml

from deepsimreg.paper import experiment, ways
from deepsimreg.paper.experiment import Profile, SettingsError

SMALL = {"channels": [4, 6, 8], "light": True}
FIT = {"steps": 2, "batch": 2, "validate_every": 2}
LEVELS = [[4, 8, 5], [2, 4, 5]]
TREE = {
    "phantom-2d": {
        "data": {"shape": [32, 32], "train": 2, "validation": 2, "test": 2},
        "extractors": {"network": SMALL, "fit": FIT},
        "registration": {"network": SMALL, "fit": FIT, "similarities": {"mse": {"lam": 1}}},
        "baselines": {"greedy": {"values": [1]}},
        "optimisation": {
            "ways": {
                "greedy": {"baseline": "greedy"},
                "network": {"network": "mse"},
                "ncc": {"similarity": "ncc", "options": {"ncc": {"window": 5}}, "lam": [0.3, 1], "levels": LEVELS},
                "both": {
                    "network": "mse",
                    "similarity": "ncc + deepsim-seg + classes-seg",
                    "lam": [1],
                    "levels": LEVELS[1:],
                },
            }
        },
    }
}
WAYS = TREE["phantom-2d"]["optimisation"]["ways"]


@pytest.fixture
def profile(tmp_path, monkeypatch, runs):
    def make(tree=TREE):
        (tmp_path / "quick.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
        return Profile("quick")

    return make


def test_every_way_registers_every_pair_at_the_lam_that_validation_chose(profile):
    plan = profile()
    data = plan.load("phantom-2d")
    table = ways.compare_ways(plan, data)
    assert list(table["way"]) == [*WAYS] * 2, "interleaved"
    tuned = ways.tune_ways(plan, data)
    best = tuned[tuned["way"] == "ncc"].sort_values("dice").iloc[-1]
    assert tuned.loc[tuned["chosen"] & (tuned["way"] == "ncc"), "lam"].item() == best["lam"]
    assert (table.loc[table["way"] == "ncc", "lam"] == best["lam"]).all()
    assert (table["seconds"] > 0).all()


def test_what_was_registered_is_not_registered_again(profile, monkeypatch):
    plan = profile()
    data = plan.load("phantom-2d")
    table = ways.compare_ways(plan, data)
    path = plan.folder("phantom-2d", "optimisation") / "test.csv"
    pd.read_csv(path).iloc[:5].to_csv(path, index=False)
    calls = []
    evaluate = ways.evaluate_pair
    monkeypatch.setattr(ways, "evaluate_pair", lambda *a: calls.append(1) or evaluate(*a))
    again = ways.compare_ways(plan, data)
    assert len(calls) == 2 * len(WAYS) - 5
    columns = ["way", "lam", "pair", "dice", "folds"]
    pd.testing.assert_frame_equal(again[columns], table[columns], check_dtype=False)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"baseline": "syn"}, "baseline of the way x .* 'syn'"),
        ({"network": "ncc"}, "network of the way x .* 'ncc'"),
        ({"similarity": "ncc"}, "the way x of .* lam"),
        ({}, "the way x of"),
        ({"baseline": "greedy", "network": "mse"}, "the way x of .* has a baseline: give nothing beside it"),
        ({"similarity": "nc", "lam": [1], "levels": LEVELS}, "the way x: unknown similarity 'nc'"),
        ({"similarity": "ncc", "lam": [1], "levels": [[4, 2, 5]]}, "the way x: .* grid the larger"),
        ({"similarity": "ncc", "lam": [1], "levels": [[4, 8]]}, "the way x: .* 'steps'"),
        ({"similarity": "ncc-sup", "lam": [1]}, "the way x of .* compares labels by ncc-sup"),
        ({"similarity": "ncc", "lam": [1], "options": {"mind": {}}}, "the way x of .* 'mind'"),
    ],
    ids=str,
)
def test_ways_that_cannot_be_are_refused_at_the_start(profile, way, message):
    tree = {"phantom-2d": TREE["phantom-2d"] | {"optimisation": {"ways": {"x": way}}}}
    with pytest.raises(SettingsError, match=message):
        profile(tree)


def test_traces_look_at_every_way_from_its_start_to_its_end(profile):
    plan = profile()
    data = plan.load("phantom-2d")
    traces = ways.trace_ways(plan, data, pairs=1, every=5)
    steps = traces.groupby("way", sort=False)["step"].agg(list)
    assert steps["network"] == [0]
    assert steps["ncc"] == [0, 5, 10]
    assert steps["both"] == [0, 5]
    assert steps["greedy"] == [0, 45, 90, 180]
    assert (traces.groupby("way")["seconds"].diff().dropna()[traces["way"] != "greedy"] > 0).all()
    start = traces[(traces["way"] == "ncc") & (traces["step"] == 0)]
    assert start["folds"].item() == start["sd_log_jacobian"].item() == 0
    final = traces[traces["way"] == "ncc"].iloc[-1]
    lam = ways.tune_ways(plan, data).query("way == 'ncc' and chosen")["lam"].item()
    pair = data.pairs("validation")[0]
    way = next(way for way in plan.ways("phantom-2d") if way.name == "ncc")
    displacement = ways.make_way(plan, data, way, lam)(pair.moving.image[None], pair.fixed.image[None])
    assert ways._measured(displacement, pair, data)["dice"] == pytest.approx(final["dice"])


def test_ways_without_a_lam_are_compared(profile):
    own = {name: WAYS[name] for name in ("greedy", "network")}
    plan = profile({"phantom-2d": TREE["phantom-2d"] | {"optimisation": {"ways": own}}})
    table = ways.compare_ways(plan, plan.load("phantom-2d"))
    assert list(table["way"]) == ["greedy", "network"] * 2
    assert not len(ways.tune_ways(plan, plan.load("phantom-2d")))
    traces = ways.trace_ways(plan, plan.load("phantom-2d"), pairs=1)
    assert list(traces["way"].unique()) == ["greedy", "network"]


def test_a_way_with_other_settings_is_registered_anew(profile, monkeypatch):
    plan = profile()
    data = plan.load("phantom-2d")
    ways.compare_ways(plan, data)
    changed = WAYS | {"ncc": WAYS["ncc"] | {"levels": LEVELS[1:]}}
    plan = profile({"phantom-2d": TREE["phantom-2d"] | {"optimisation": {"ways": changed}}})
    calls, evaluate = [], ways.evaluate_pair
    monkeypatch.setattr(ways, "evaluate_pair", lambda *a: calls.append(1) or evaluate(*a))
    ways.compare_ways(plan, data)
    assert len(calls) == 2 * 2 + 2, "two λ on the validation pairs, one on the test pairs"


def test_the_summary_has_means_over_pairs_and_median_seconds():
    rows = [("a", 1, f"p{i}--q{i}", i / 10, i) for i in range(3)]
    table = pd.DataFrame(rows, columns=["way", "lam", "pair", "dice", "seconds"])
    table = table.assign(dice_foreground=0, hd95=1, folds=0, sd_log_jacobian=0.2)
    table.loc[2, "seconds"] = 100
    (row,) = ways.summarise_ways(table).itertuples()
    assert (row.dice, row.seconds, row.n) == (pytest.approx(0.1), 1, 3)
    assert row.dice_low < 0.1 < row.dice_high
