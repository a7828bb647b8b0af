"""What the evidence hangs on: both directions, grids that are widened, what features were not told, other contrasts."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest_tree import TREE, D, make_inputs
from statsmodels.stats.multitest import multipletests

from deepsimreg.data import load_dataset
from deepsimreg.data.augment import CONTRASTS
from deepsimreg.data.regrouped import Regrouped
from deepsimreg.metrics import dice_per_class
from deepsimreg.paper import drawn, optimisation, publish, readme, registrations, tables
from deepsimreg.paper.evaluate import Entry, choose, evaluate, tune
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.methods import _of_maps, one_hot, profile_method, run_baseline
from deepsimreg.paper.optimisers import convexadam, greedy
from deepsimreg.paper.reports import Published
from deepsimreg.paper.resolve import labels_used
from deepsimreg.paper.settings import MethodPart
from deepsimreg.warps import warp_image, warp_labels

pytestmark = pytest.mark.xdist_group(__name__)  # what they share is made once


@pytest.fixture(scope="module")
def data():
    return load_dataset(D, shape=[48, 48], train=2, validation=3, test=4)


@pytest.fixture(scope="module")
def truth(data):
    """Fixed image → its true displacement."""
    pairs = [pair for split in ("validation", "test") for pair in data.pairs(split)]
    return {pair.fixed.image.sum().item(): pair.displacement[None] for pair in pairs}


def scaled(truth):
    """The true warp times λ."""
    return lambda name, lam: Entry({"method": name, "lam": lam}, lambda moving, fixed: lam * truth[fixed.sum().item()])


def shifted(voxels):
    return lambda moving, fixed: torch.full((1, 2, *fixed.shape[2:]), float(voxels))


def test_inverse_consistency_error_is_what_is_left_of_both_ways(data):
    """A shift by three voxels whatever the direction: a point ends √2 · 6 voxels from its start."""
    rows = evaluate([Entry({"method": "m"}, shifted(3))], data, both_ways=True)
    assert rows["inverse_consistency_error"].to_numpy() == pytest.approx(
        np.hypot(6 * data.spacing[0], 6 * data.spacing[1])
    )
    still = evaluate([Entry({"method": "m"}, shifted(0))], data, both_ways=True)
    assert (still["inverse_consistency_error"] == 0).all()
    assert "inverse_consistency_error" not in evaluate([Entry({"method": "m"}, shifted(0))], data)


class BothWays:
    """The pairs of a dataset, each in both directions."""

    def __init__(self, data):
        self.data, self.classes, self.spacing = data, data.classes, data.spacing

    def pairs(self, split):
        pairs = list(self.data.pairs(split))
        return [*pairs, *(type(pair)(pair.fixed, pair.moving) for pair in pairs)]


def test_pairs_in_both_directions_are_registered_once(data, tmp_path):
    seen = []

    def register(moving, fixed):
        seen.append(moving.sum().item())
        return shifted(moving.mean())(moving, fixed)

    both = BothWays(data)
    rows = evaluate([Entry({"method": "m"}, register)], both, rows=tmp_path / "rows.csv", both_ways=True)
    assert len(seen) == len(rows) == len(set(rows["pair"])) == 2 * len(data.pairs("test"))
    means = {pair.name: (pair.moving.image.mean() + pair.fixed.image.mean()).item() for pair in both.pairs("test")}
    assert rows["inverse_consistency_error"].to_list() == pytest.approx(
        [np.sqrt(2) * means[name] for name in rows["pair"]]
    )
    # One row of a couple is lost: it is registered anew, and no row is doubled.
    (tmp_path / "rows.csv").write_text("".join((tmp_path / "rows.csv").read_text().splitlines(True)[:-1]))
    again = evaluate([Entry({"method": "m"}, register)], both, rows=tmp_path / "rows.csv", both_ways=True)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), rows.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("grid", "widened"),
    [
        ([0.25, 0.5], [0.25, 0.5, 1, 2]),
        ([2.0, 4.0], [0.5, 1, 2, 4]),
        ([1.0, 2.0], [0.5, 1, 2]),
        ([0.5, 1, 2], [0.5, 1, 2]),
    ],
    ids=str,
)
def test_a_grid_is_widened_until_its_best_lies_inside(data, truth, tmp_path, grid, widened):
    """The true warp times λ: overlap is highest at 1."""
    rows = tune(scaled(truth), {"m": grid}, 5, data, tmp_path / "rows.csv", 0)
    assert sorted(set(rows["lam"])) == widened
    found = choose(rows).query("chosen").iloc[0]
    assert (found["lam"], found["mark"]) == (1, "")


def test_a_grid_gets_no_more_values_than_it_may(data, truth):
    rows = tune(scaled(truth), {"m": [0.125, 0.25]}, 1, data)
    assert sorted(set(rows["lam"])) == [0.125, 0.25, 0.5]
    assert choose(rows).query("chosen")["mark"].item() == "edge"


def test_classes_that_an_extractor_is_not_told_are_gone(data):
    first, *others = data.classes[1:]
    merged, alone = Regrouped(data, [data.classes[1:]]), Regrouped(data, [others])
    sample, one, other = (each.samples("test")[0] for each in (data, merged, alone))
    assert torch.equal(one.image, sample.image)
    assert torch.equal(one.label, (sample.label > 0).to(torch.uint8))
    assert torch.equal(other.label, (sample.label > 1).to(torch.uint8))
    assert merged.classes == (data.classes[0], " + ".join(data.classes[1:]))
    assert (other.label[sample.label == data.classes.index(first)] == 0).all()
    pair = merged.pairs("test")[0]
    assert set(pair.fixed.label.unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("name", CONTRASTS)
def test_contrasts_change_the_moving_image_alone(data, name):
    seen = []

    def register(moving, fixed):
        seen.append((moving, fixed))
        return shifted(0)(moving, fixed)

    for _ in range(2):
        evaluate([Entry({"method": "m"}, register)], data, limit=1, contrast=name)
    pair = data.pairs("test")[0]
    (moving, fixed), (again, _) = seen
    assert torch.equal(fixed[0], pair.fixed.image)
    assert torch.equal(moving, again), "the same for every method"
    assert (moving[0] - pair.moving.image).abs().max() > 0.05
    assert 0 <= moving.min() <= moving.max() <= 1


def test_what_contrasts_are():
    image, generator = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0)), torch.Generator()
    assert torch.equal(CONTRASTS["inverted"](image, generator), 1 - image)
    assert torch.allclose(CONTRASTS["gamma 2"](CONTRASTS["gamma 0.5"](image, generator), generator), image)
    grey = torch.full((1, 1, 40, 40), 0.5)
    light = CONTRASTS["uneven light"](grey, generator.manual_seed(1))[0, 0]
    assert light.min() == pytest.approx(0.25)
    assert light.max() == pytest.approx(0.75)
    assert torch.allclose(light.diff(dim=0), light.diff(dim=0)[0, 0], atol=1e-6), "a plane"


def test_the_segmentation_alone_is_that_of_the_extractor(made):
    rows = optimisation.optimisation(made, D)["test"].query("method == 'segmentation'")
    data = made.data(D)
    assert rows[["folds", "sd_log_jacobian", "inverse_consistency_error"]].isna().all(None)
    for extractor in ("seg", "seg-1"):
        network = load_extractor(made, D, extractor)
        for pair in data.pairs("test"):
            found = network(pair.fixed.image[None]).argmax(1, keepdim=True)
            dice = dice_per_class(found, pair.fixed.label[None].long(), data.classes).nanmean().item()
            assert rows.query("extractor == @extractor and pair == @pair.name")["dice"].item() == pytest.approx(dice)


def test_true_labels_register_labels(made):
    """The oracle: what is compared is what is scored."""
    found = optimisation.optimisation(made, D)
    before = evaluate([Entry({}, None)], made.data(D))["dice"].mean()
    oracle = found["summary"].set_index("method").loc["labels"]
    assert oracle["dice"] > before + 0.05
    assert oracle["labels"] == "at test"


def test_an_atlas_brings_the_labels_of_the_moving_image_alone(made):
    seen, data = [], made.data(D)
    part = MethodPart(similarity="mse", maps="atlas", lam=(0.1,), levels=((2, 4, 1),))
    pair, segmenter = data.pairs("test")[0], load_extractor(made, D, "seg")
    maps = one_hot(pair.moving.label[None], len(data.classes))
    _of_maps(lambda *given: seen.extend(given), segmenter, "atlas", maps, pair.fixed.image[None])
    assert torch.equal(seen[0], maps)
    assert torch.equal(seen[1], segmenter(pair.fixed.image[None]).softmax(1))
    found = profile_method(made, D, part, 0.1)(maps, pair.fixed.image[None])
    assert found.shape == (1, 2, *data.shape)


def test_the_family_is_tested_at_both_settings_and_corrected_together(made):
    found = optimisation.optimisation(made, D)
    tests, test, matched = found["tests"], found["test"], found["matched"]
    assert tests.groupby("method")["smoothness"].agg(list).map(lambda each: each[0]).to_dict() == {
        "labels": "chosen",
        "greedy": "chosen",
    }
    reached = matched.groupby("method")["reached"].first()
    again = tests.query("smoothness != 'chosen'").set_index("method")["smoothness"]
    assert again.to_dict() == {name: "matched" if is_reached else "nearest" for name, is_reached in reached.items()}
    assert set(tests["reference"]) == {"ncc"}
    assert set(tests["classes"]) == {TREE[D]["optimisation"]["tests"]["ncc"]["classes"][0]}
    row = tests.query("smoothness != 'chosen' and method == 'labels'").iloc[0]
    ours = test.query("method == 'ncc'").set_index("pair")
    theirs, column = matched.query("method == 'labels'").set_index("pair"), f"dice_{row['classes']}"
    assert row["difference"] == pytest.approx((ours[column] - theirs[column]).mean())
    assert row["sd_log_jacobian"] == pytest.approx(theirs["sd_log_jacobian"].mean())
    assert row["reference_sd_log_jacobian"] == pytest.approx(ours["sd_log_jacobian"].mean())
    assert tests["p_holm"].to_list() == pytest.approx(multipletests(tests["p"], method="holm")[1])
    curve = found["tuned"].query("method == 'labels'")
    assert curve["lam"].min() <= theirs["lam"].iloc[0] <= curve["lam"].max()


def test_a_baseline_widens_its_grid_too(profile):
    plan = profile({D: {"data": TREE[D]["data"], "baselines": {"greedy": {"smoothing": [6, 8], "widen": 3}}}})
    rows = run_baseline(plan, plan.baseline(D, "greedy"), plan.data(D))["validation"]
    assert choose(rows).query("chosen")["mark"].item() == ""
    assert len(rows) == 2 * rows["lam"].nunique() > 2 * 2


def test_a_killed_tuning_chooses_what_an_uninterrupted_one_does(data, truth, tmp_path):
    """What the rows hold of a λ that the grid has not come to, from one pair, decides nothing."""
    rows = tmp_path / "rows.csv"
    whole = tune(scaled(truth), {"m": [0.25, 0.5]}, 5, data, rows, 0)
    killed = pd.read_csv(rows)
    killed[(killed["lam"] < 1) | (killed["pair"] == killed["pair"].iloc[0])].to_csv(rows, index=False)
    again = tune(scaled(truth), {"m": [0.25, 0.5]}, 5, data, rows, 0)
    columns = ["method", "lam", "pair", "dice"]
    order = ["lam", "pair"]
    pd.testing.assert_frame_equal(
        again[columns].sort_values(order, ignore_index=True), whole[columns].sort_values(order, ignore_index=True)
    )


def test_contrast_has_every_method_at_its_lam(made):
    make_inputs(made, made.chapter(D, "robustness"))
    table = tables.robustness(made, D)["contrast"]
    assert set(table["contrast"]) == {"none", "inverted"}
    assert set(table["method"]) == {"greedy", "ncc"}
    ours = optimisation.optimisation(made, D)["test"].query("method == 'ncc'").set_index("pair")["dice"]
    same = table.query("method == 'ncc' and contrast == 'none'").set_index("pair")["dice"]
    pd.testing.assert_series_equal(same, ours[same.index])


def test_how_labels_are_used_is_told(made):
    part = made.part(D)
    assert labels_used(part, ["seg"]) == "by the extractor"
    assert labels_used(part, ["seg-random"]) == labels_used(part, ["ae"]) == labels_used(part, []) == "none"
    assert labels_used(part, [], ["deepsim-seg"]) == "by the extractor"
    assert labels_used(part, [], [], at_test=True) == "at test"


def test_a_network_that_stays_at_the_identity_is_told(made, capsys):
    run = made.registration(D, "mse", "tuning", 0.1)
    before = evaluate([Entry({}, None)], made.data(D), "validation")
    assert registrations._gain(run, before, made.data(D)) == 0
    assert "has learned nothing: validation Dice" in capsys.readouterr().out
    assert registrations._gain(run, before.assign(dice=1), made.data(D)) > 0
    assert not capsys.readouterr().out
    assert "gain" in run.result()


def test_greedy_leaves_equal_maps_where_they_are():
    """A segmentation that found nothing in either image: greedy itself would divide by zero."""
    empty = one_hot(torch.zeros(1, 1, 20, 20, dtype=torch.uint8), 3)
    disc = one_hot((torch.arange(20) > 9).expand(1, 1, 20, 20).to(torch.uint8), 3)
    for moving, fixed in ((empty, empty.clone()), (empty, disc), (disc, disc.clone())):
        assert not greedy(moving, fixed, (1, 1), metric="SSD").any()


def test_greedy_registers_maps(data):
    pair = data.pairs("test")[0]
    maps = [one_hot(one.label[None], len(data.classes)) for one in (pair.moving, pair.fixed)]
    moved = warp_labels(pair.moving.label[None], greedy(*maps, data.spacing, metric="SSD"))
    before, after = (
        dice_per_class(one, pair.fixed.label[None], data.classes).mean() for one in (pair.moving.label[None], moved)
    )
    assert after > before + 0.1


def test_convexadam_finds_a_known_warp():
    """Its displacement is in voxels, along the array's axes, as all of ours."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in (48, 40, 56)), indexing="ij")
    image = sum(torch.sin(k * axis + p) for k, p, axis in zip((9, 11, 7), (0, 1, 2), axes, strict=True))[None, None]
    image = (image - image.min()) / (image.max() - image.min())
    known = torch.zeros(1, 3, 48, 40, 56)
    known[:, 0], known[:, 2] = 2.0, -1.5
    found = convexadam(image, warp_image(image, known), (1, 1, 1), smoothing=0.5)
    inside = (..., slice(12, -12), slice(12, -12), slice(12, -12))
    assert (found - known)[inside].norm(dim=1).mean() < 0.8


def test_the_readme_shows_how_labels_are_used_spread_and_marks(made, tmp_path, monkeypatch):
    found = tables.evaluation(made, D)
    optimisation.optimisation(made, D)
    drawn.drawings(made, D)
    publish.publish(made, D, tmp_path)
    monkeypatch.setattr(readme, "Published", lambda dataset: Published(dataset, tmp_path))
    head, body = shown(f"{D}/evaluation")
    assert head[:5] == ["method", "labels", "λ, smoothing", "foreground Dice", "mean Dice"]
    assert {"Unregistered", "DeepSim (seg)", "MSE", "greedy"} <= set(body)
    assert (body["DeepSim (seg)"][1], body["MSE"][1]) == ("by the extractor", "none")
    rows = found["pairs"].query("method == 'deepsim-seg'")
    dice = rows.groupby("seed")["dice_foreground"].mean()
    assert body["DeepSim (seg)"][3].startswith(f"{dice.mean():.3f} [")
    assert body["DeepSim (seg)"][3].endswith(f"± {dice.std():.3f}")
    assert body["DeepSim (seg)"][-1] == f"{rows['seconds'].median():.2f}"
    assert "edge" in body["MSE"][2]
    head, body = shown(f"{D}/optimisation")
    assert body["labels"][1] == "at test"
    assert body["segmentation"][head.index("folds")] == "–"
    assert "2 test pairs (2 unordered), foreground Dice before registration 0." in readme.table(f"{D}/optimisation")
    head, body = shown(D)
    assert (head[:3], list(body)) == (["method", "labels", "foreground Dice"], ["greedy"]), "a few methods, without λ"
    head, body = shown(f"{D}/tests")
    assert [head[0], head[-1], list(body)] == ["method", "p after Holm", ["NCC"]]
    block = f"<!-- results: {D}/tests -->\nas it was\n<!-- end -->"
    assert readme.filled(block) == block.replace("as it was\n", readme.table(f"{D}/tests"))


def test_the_claim_asks_for_both_rivals_at_equal_smoothness(tmp_path, monkeypatch):
    """Held where both p are small and both differences positive; tests at the chosen λ, and of others, do not count."""
    rows = [
        ("cells", "deepsim-seg", "ncc", "matched", 0.02, 0.001),
        ("cells", "deepsim-seg", "mind", "nearest", 0.03, 0.001),
        ("cells", "deepsim-seg", "greedy", "matched", -0.03, 0.001),
        ("cells", "deepsim-seg, withheld", "ncc", "matched", -0.02, 0.001),
        ("cells", "deepsim-seg, withheld", "mind", "matched", 0.02, 0.001),
        ("brains", "deepsim-seg", "ncc", "matched", 0.02, 0.2),
        ("brains", "deepsim-seg", "mind", "matched", 0.02, 0.001),
        ("brains", "deepsim-seg", "ncc", "chosen", 0.02, 0.001),
        ("phantom-2d", "deepsim-seg", "ncc", "matched", 0.02, 0.001),
        ("phantom-2d", "deepsim-seg", "mind", "matched", 0.02, 0.001),
    ]
    table = pd.DataFrame(rows, columns=["data", "reference", "method", "smoothness", "difference", "p_holm"])
    table = table.assign(low=table["difference"] - 0.01, high=table["difference"] + 0.01)
    found = {name: SimpleNamespace(tables=lambda _, of=of: {"tests": of}) for name, of in table.groupby("data")}
    monkeypatch.setattr(readme, "Published", found.get)
    monkeypatch.setattr(readme, "published_datasets", lambda _: list(found))
    text = readme.table("claim")
    assert "| cells | all classes taught | +0.0200 [+0.0100, +0.0300], p 0.0010 | +0.0300" in text
    assert "p 0.0010 (nearest) |" in text
    assert "phantom" not in text
    assert "all classes taught: on 1 of 2 data sets; scored classes withheld: on 0 of 1 data set." in text


def shown(name):
    """Head and rows of a block, the rows by their first cell."""
    rows = [line.strip("| ").split(" | ") for line in readme.table(name).splitlines() if line.startswith("| ")]
    return rows[0], {row[0]: row for row in rows[1:]}
