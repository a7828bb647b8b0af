"""Ways to register a pair, side by side, from a profile."""

import pandas as pd
import pytest
import yaml

from deepsimreg import experiment, ways
from deepsimreg.experiment import Profile, SettingsError

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
                "both": {"network": "mse", "similarity": "ncc + deepsim-seg", "lam": [1], "levels": LEVELS[1:]},
            }
        },
    }
}


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
    assert list(table["way"]) == ["greedy", "network", "ncc", "both"] * 2, "interleaved"
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
    assert len(calls) == 3
    columns = ["way", "lam", "pair", "dice", "folds"]
    pd.testing.assert_frame_equal(again[columns], table[columns], check_dtype=False)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"baseline": "syn"}, "baseline of the way x .* 'syn'"),
        ({"network": "ncc"}, "network of the way x .* 'ncc'"),
        ({"similarity": "ncc"}, "the way x of .* lam"),
        ({}, "the way x of"),
        ({"similarity": "nc", "lam": [1], "levels": LEVELS}, "unknown similarity 'nc'"),
    ],
    ids=str,
)
def test_ways_that_cannot_be_are_refused_at_the_start(profile, way, message):
    tree = {"phantom-2d": TREE["phantom-2d"] | {"optimisation": {"ways": {"x": way}}}}
    with pytest.raises((SettingsError, ValueError), match=message):
        profile(tree)
