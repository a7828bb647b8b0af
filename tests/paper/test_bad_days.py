"""A fixed few of the bad days of tests/soak.py, with fewer runs: `make paper` is disturbed, and given again."""

import random
import time

import pytest
import soak

PLAN = {
    "phantom-2d": {
        "data": {"shape": [32, 32], "train": 4, "validation": 2, "test": 2},
        "registration": {"network": soak.SMALL, "fit": soak.FIT, "similarities": {"mse": {"lam": 0.1}}},
    }
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A copy of the project, its runs, the seconds that they took, and what they left."""
    before, soak.PLAN = soak.PLAN, PLAN
    folder = tmp_path_factory.mktemp("bad-days")
    place, started = soak.Place(folder / "project"), time.time()
    status, said = place.make(folder / "runs")
    soak.PLAN = before
    assert status == 0, said
    return place, folder / "runs", time.time() - started, soak.results(folder / "runs")


@pytest.mark.parametrize(("kind", "seed"), [("kill", 0)])
def test_a_disturbed_run_ends_where_an_undisturbed_one_does(undisturbed, kind, seed, tmp_path):
    *given, expected = undisturbed
    what, status, said = getattr(soak.Days(*given, random.Random(seed)), kind)(tmp_path / "runs")
    assert status == 0, f"{what}: {said}"
    assert soak.difference(soak.results(tmp_path / "runs"), expected) == "0", what


def test_the_witness_sees_a_difference(undisturbed):
    expected = undisturbed[-1]
    name = next(name for name in expected if "weights.safetensors" in name)
    assert soak.difference(expected | {name: expected[name] + 1e-7}, expected) != "0"
    assert "not the same files" in soak.difference({}, expected)
