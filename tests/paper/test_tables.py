"""From extractors to tables, in one process and on a tiny phantom; one set of trainings for all tests."""

import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from conftest_tree import TREE, D, make_inputs

from deepsimreg.data import load_dataset
from deepsimreg.errors import WeightsError
from deepsimreg.models import Autoencoder, UNet, VoxelMorph, load_model
from deepsimreg.paper import optimisation, registrations, tables
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.evaluate import MOST_FOLDS, Entry, choose, evaluate, measure
from deepsimreg.paper.extractors import evaluate_extractor, fraction_of, load_extractor, train_extractor
from deepsimreg.paper.methods import method, profile_method, run_baseline
from deepsimreg.paper.registrations import load_network, similarity_of, train_registration
from deepsimreg.paper.training import fit
from deepsimreg.warps import warp_labels

pytestmark = pytest.mark.xdist_group(__name__)  # what they share is made once

SMALL = {"channels": [4, 6, 8], "light": True}


def test_the_evaluation_has_every_method_seed_and_pair(made):
    found = tables.evaluation(made, D)
    assert set(found["pairs"]["method"]) == {"unregistered", "mse", "deepsim-ae", "deepsim-seg", "greedy"}
    assert len(found["pairs"]) == 2 * (1 + 3 * 2 + 1)  # pairs × (unregistered + similarities × seeds + greedy)
    assert len(found["runs"]) == 3 * 2 + 1
    assert found["smoothness"].groupby("method").size().to_dict() == {"greedy": 2, "mse": 2}
    folder = made.chapter(D, "evaluation").folder
    assert {path.stem for path in folder.glob("*.csv")} == {*found}
    images = list((folder / "mse" / "seed-1").glob("*-label.tif"))
    assert len(images) == 2
    assert tifffile.imread(images[0]).shape == (32, 32)
    again = tables.evaluation(made, D)
    pd.testing.assert_frame_equal(again["means"], found["means"])


def test_the_reference_is_the_profiles(made):
    assert set(tables.evaluation(made, D)["tests"]["method"]) == {"unregistered", "mse", "deepsim-ae", "greedy"}


def test_the_tuned_lam_is_that_of_the_rule(made):
    table = tables.tuning(made, D)
    best = table.query("method == 'mse' and chosen")["lam"].item()
    rows = pd.concat(pd.read_csv(run.validation).assign(lam=run.settings.lam) for run in made.tunings(D))
    means = rows.groupby("lam")[["dice_foreground", "folds"]].mean().query("folds <= @MOST_FOLDS")
    assert best == means["dice_foreground"].idxmax()
    runs = [made.registration(D, "mse", seed=seed) for seed in (0, 1)]
    assert [run.result()["lam"] for run in runs] == [best, best]
    assert all(len(pd.read_csv(run.validation)) == 2 for run in runs)


def table_of(*rows):
    return pd.DataFrame(rows, columns=["method", "lam", "dice_foreground", "folds", "sd_log_jacobian"]).assign(
        seconds=1.0
    )


@pytest.mark.parametrize(
    ("rows", "lam", "mark"),
    [
        ([("a", 1, 0.9, 0, 0.3), ("a", 2, 0.8, 0, 0.2)], 1, "edge"),
        ([("a", 1, 0.9, 0.1, 0.3), ("a", 2, 0.8, 0, 0.2), ("a", 4, 0.7, 0, 0.1)], 2, ""),
        ([("a", 1, 0.9, 0.1, 0.3), ("a", 2, 0.8, 0.05, 0.1), ("a", 4, 0.7, 0.02, 0.2)], 2, "folds"),
        ([("a", 1, 0.9, 0.1, 0.3)], 1, "folds"),
        ([("a", 1, 0.9, 0, 0.3)], 1, ""),
        ([("a", 1, 0.9, MOST_FOLDS, 0.3), ("a", 2, 0.8, 0, 0.2)], 1, "edge"),
    ],
)
def test_one_rule_chooses(rows, lam, mark):
    (row,) = choose(table_of(*rows)).query("chosen").itertuples()
    assert (row.lam, row.mark) == (lam, mark)


def test_a_grid_does_not_overrule_the_lam_that_the_profile_gives(profile):
    tree = {D: {**TREE[D], "ablations": {}, "optimisation": {}, "robustness": {}}}
    networks = {"mse": {"lam": 1, "grid": [0.1, 1]}, "ncc": {"grid": [0.3]}}
    tree[D]["registration"] = TREE[D]["registration"] | {"similarities": networks}
    plan = profile(tree)
    make_inputs(plan, plan.chapter(D, "tuning"))
    table = tables.tuning(plan, D).set_index(["method", "lam"])["chosen"]
    assert table.to_dict() == {("mse", 0.1): False, ("mse", 1.0): True, ("ncc", 0.3): True}
    assert plan.registration(D, "mse").settings.lam == 1


def test_a_tuning_run_of_full_length_is_the_final_run_of_its_lam(profile, monkeypatch, tmp_path):
    tree = {D: {"data": TREE[D]["data"], "registration": TREE[D]["registration"] | {"tuning": {}}}}
    tree[D]["registration"]["similarities"] = {"mse": {"grid": [0.1, 1]}}
    plan = profile(tree)
    make_inputs(plan, plan.chapter(D, "tuning"))
    trained = []
    monkeypatch.setattr("deepsimreg.paper.training.fit", lambda *a: trained.append(a[-1]) or fit(*a))
    for run in plan.registrations(D):
        train_registration(plan, run, plan.data(D))
        twin = plan.registration(D, "mse", "tuning", run.result()["lam"])
        assert (run.weights.read_bytes() == twin.weights.read_bytes()) == (run.settings.fit.seed == 0)
    assert trained == ["registration/mse/seed-1"]
    own = plan.registration(D, "mse", lam=0.5, place=str(tmp_path / "own"))
    train_registration(plan, own, plan.data(D))
    assert trained[1:] == ["registration/mse/seed-0"], "with another λ nothing is taken from tuning"


def test_the_baselines_are_tuned_on_the_pairs_asked_for_and_tested_on_all(profile):
    plan = profile({D: {"data": TREE[D]["data"], "baselines": {"greedy": {"smoothing": [0.7, 1], "pairs": 1}}}})
    run = plan.baseline(D, "greedy")
    found = run_baseline(plan, run, plan.data(D))
    assert found["validation"].groupby("lam").size().to_dict() == {0.7: 1, 1.0: 1}
    assert len(found["test"]) == 2
    assert len(list((run.folder / "test").glob("*-label.tif"))) == 2


def test_a_baseline_that_was_cut_off_goes_on(profile):
    plan = profile({D: {"data": TREE[D]["data"], "baselines": {"greedy": {"smoothing": [0.7, 1]}}}})
    run = plan.baseline(D, "greedy")
    found = run_baseline(plan, run, plan.data(D))
    run.mark.unlink()
    found["test"].iloc[:1].assign(dice=0.123).to_csv(run.folder / "test.csv", index=False)  # killed after one pair
    again = run_baseline(plan, run, plan.data(D))
    assert again["test"]["dice"].iloc[0] == 0.123, "not registered again"
    assert again["test"]["dice"].iloc[1] == found["test"]["dice"].iloc[1]


def test_ablations(made):
    found = tables.ablations(made, D)
    variants = found["variants"].set_index("method")
    assert list(variants.index) == ["deepsim-seg", "level-1", "random", "few"]
    assert variants.loc["few", "labels"] == 0.4
    assert variants["extractor_dice"].notna().all()
    trained, initial = (load_model(made.extractor(D, name).weights) for name in ("seg-few", "seg-random"))
    assert not torch.equal(trained.head[-1].bias, initial.head[-1].bias)


def test_noise_is_in_the_images_and_not_in_the_labels(made):
    optimisation.optimisation(made, D)
    table = tables.robustness(made, D)["noise"]
    assert set(table["noise"]) == {0.0, 0.1}
    assert set(table["method"]) == {"unregistered", "mse", "deepsim-ae", "deepsim-seg"}
    still = table.query("method == 'unregistered'").groupby("noise")["dice"].mean()
    assert still[0.0] == still[0.1]
    moved = table.query("method == 'deepsim-seg'").groupby("noise")["sd_log_jacobian"].mean()
    assert moved[0.0] != moved[0.1]


def test_a_smaller_fraction_of_the_labels_is_part_of_a_larger_one():
    samples = list(range(20))
    few, more = (list(fraction_of(samples, fraction)) for fraction in (0.1, 0.5))
    assert len(few) == 2
    assert set(few) < set(more)
    assert fraction_of(samples, 1.0) is samples


def test_the_warp_of_a_pair_is_that_of_the_evaluation(made):
    found, data = tables.evaluation(made, D)["pairs"], made.data(D)
    pair = data.pairs("test")[0]
    for name in ("mse", "greedy"):
        displacement = method(made, D, name)(pair.moving.image[None], pair.fixed.image[None])
        label = warp_labels(pair.moving.label[None], displacement)
        row = found.query("method == @name and pair == @pair.name").iloc[0]
        assert (label == pair.fixed.label[None]).double().mean() == pytest.approx(row["pixel_accuracy"])


def test_a_finished_training_is_loaded_and_not_repeated(made):
    run = made.registration(D, "mse")
    stamp = run.weights.stat().st_mtime_ns
    network, history = train_registration(made, run, made.data(D))
    assert isinstance(network, VoxelMorph)
    assert network.config["channels"] == [4, 6, 8]
    assert history["step"].max() == 4
    assert run.weights.stat().st_mtime_ns == stamp


def test_what_follows_a_training_is_repeated_without_it(profile, monkeypatch):
    plan = profile(
        {D: {"data": TREE[D]["data"], "registration": TREE[D]["registration"] | {"similarities": {"mse": {"lam": 1}}}}}
    )
    run = plan.registration(D, "mse")
    evaluated = registrations.evaluate

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(registrations, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train_registration(plan, run, plan.data(D))
    assert not run.current, "the end is written after the validation"
    stamp = run.weights.stat().st_mtime_ns
    monkeypatch.setattr(registrations, "evaluate", evaluated)
    train_registration(plan, run, plan.data(D))
    assert run.current
    assert len(pd.read_csv(run.validation)) == 2
    assert run.weights.stat().st_mtime_ns == stamp


def test_missing_runs_are_named(profile):
    plan = profile()
    for call in (
        lambda: train_registration(plan, plan.registration(D, "deepsim-seg"), plan.data(D)),
        lambda: train_registration(plan, plan.registration(D, "mse"), plan.data(D)),
        lambda: tables.evaluation(plan, D),
        lambda: tables.ablations(plan, D),
        lambda: load_extractor(plan, D, "seg"),
    ):
        with pytest.raises(SettingsError, match=r"there is no finished run .* make paper PROFILE=mine"):
            call()


def test_a_registration_takes_the_extractor_run_it_is_given(made, tmp_path):
    mine = made.extractor(D, "seg", str(tmp_path / "mine"), seed=5)
    train_extractor(mine, made.data(D))
    run = made.registration(D, "deepsim-seg", place=str(tmp_path / "other"), extractor=str(mine.folder))
    found = similarity_of(made, run)
    assert torch.equal(found.extractor.head[-1].bias, load_model(mine.weights).head[-1].bias)
    wrong = made.registration(D, "deepsim-ae", place=str(tmp_path / "other"), extractor=str(mine.folder))
    with pytest.raises(WeightsError, match="holds weights of UNet, but Autoencoder is needed"):
        similarity_of(made, wrong)


# the optimisation chapter


def test_every_method_registers_every_pair_at_the_lam_that_validation_chose(made):
    found = optimisation.optimisation(made, D)
    methods = TREE[D]["optimisation"]["methods"]
    names = [name for name in methods if name != "segmentation"]
    twice = [name for name in names for _ in range(1 + (name in ("maps", "both")))]  # with each extractor
    assert list(found["test"]["method"]) == twice * 2 + ["segmentation"] * 4, "interleaved"
    best = found["tuned"].query("method == 'ncc' and chosen")["lam"].item()
    test = found["test"].set_index("method")["lam"]
    assert (test["ncc"] == best).all()
    assert test["network"].isna().all()
    assert (found["test"]["seconds"] > 0).all()
    honest = found["tuned"].query("chosen and method != 'labels'").set_index("method")["dice_foreground"]
    best, tests = optimisation.best_on_validation(found)
    assert best == honest.idxmax(), "an oracle does not count"
    assert set(tests["method"]) == {*methods} - {best, "labels"}


def test_traces_look_at_every_method_from_its_start_to_its_end(made):
    found = optimisation.optimisation(made, D)
    traces = found["traces"].query("pair == pair.iloc[0]")
    steps = traces.groupby("method", sort=False)["step"].agg(list)
    assert steps["network"] == [0]
    assert (steps["ncc"], steps["both"], steps["greedy"]) == ([0, 5, 10], [0, 5], [0, 45, 90, 180])
    start = traces.query("method == 'ncc' and step == 0")
    assert start["folds"].item() == start["sd_log_jacobian"].item() == 0
    final, data = traces.query("method == 'ncc'").iloc[-1], made.data(D)
    lam = found["tuned"].query("method == 'ncc' and chosen")["lam"].item()
    pair = data.pairs("validation")[0]
    register = profile_method(made, D, made.methods(D)["ncc"], lam)
    displacement = register(pair.moving.image[None], pair.fixed.image[None])
    assert measure(displacement, pair, data)["dice"] == pytest.approx(final["dice"])


def test_methods_without_a_lam_are_compared(profile):
    tree = {
        D: {
            "data": TREE[D]["data"],
            "baselines": {"greedy": {}},
            "optimisation": {"methods": {"g": {"baseline": "greedy"}}},
        }
    }
    plan = profile(tree)
    make_inputs(plan, plan.optimisation(D))
    found = optimisation.optimisation(plan, D)
    assert list(found["test"]["method"]) == ["g"] * 2
    assert not len(found["tuned"])


def test_the_summary_has_means_over_pairs_and_median_seconds():
    rows = [("a", 1, f"p{i}--q{i}", i / 10, i) for i in range(3)]
    table = pd.DataFrame(rows, columns=["method", "lam", "pair", "dice", "seconds"])
    table = table.assign(dice_foreground=0, hd95=1, folds=0, sd_log_jacobian=0.2, device="cpu", extractor=None)
    table.loc[2, "seconds"] = 100
    (row,) = optimisation.summarise_methods(table).itertuples()
    assert (row.dice, row.seconds, row.device) == (pytest.approx(0.1), 1, "cpu")
    assert (row.pairs, row.couples, row.extractors) == (3, 3, 1)
    assert row.dice_low < 0.1 < row.dice_high


# evaluation of single methods


@pytest.fixture
def volumes():
    return load_dataset("phantom-3d", shape=(24, 24, 16), train=1, validation=1, test=1)


def test_the_extractors_test_writes_segmentations_with_the_right_affine(volumes, tmp_path):
    table = evaluate_extractor(UNet(3, len(volumes.classes), **SMALL).eval(), "seg", volumes, tmp_path)
    assert {"image", "dice", *[f"dice_{name}" for name in volumes.classes]} <= set(table)
    sample = volumes.samples("test")[0]
    image = nibabel.load(tmp_path / f"{sample.name}.nii.gz")
    assert image.shape == volumes.shape
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.header.get_zooms(), volumes.spacing)
    errors = evaluate_extractor(Autoencoder(3, 1, **SMALL).eval(), "ae", volumes, tmp_path / "ae")
    assert (errors["mean_squared_error"] > 0).all()


def test_a_perfect_method_is_perfect(volumes, tmp_path):
    answers = iter([pair.displacement[None] for pair in volumes.pairs("test")])
    table = evaluate([Entry({}, lambda moving, fixed: next(answers))], volumes, images=tmp_path)
    assert table["target_registration_error"].max() == 0
    assert (table["dice"] > evaluate([Entry({}, None)], volumes)["dice"]).all()
    pair = volumes.pairs("test")[0]
    written = np.asarray(nibabel.load(tmp_path / f"{pair.name}-label.nii.gz").dataobj)
    assert (written == pair.fixed.label[0].numpy()).mean() > 0.9


def test_rows_that_are_there_are_not_made_again_even_without_a_lam(volumes, tmp_path):
    calls = []

    def register(moving, fixed):
        calls.append(1)
        return torch.zeros(1, 3, *fixed.shape[2:])

    entries = [Entry({"method": "a", "lam": None}, register), Entry({"method": "a", "lam": 0.1}, register)]
    first = evaluate(entries, volumes, rows=tmp_path / "rows.csv")
    again = evaluate(entries, volumes, rows=tmp_path / "rows.csv")
    assert len(calls) == 2
    pd.testing.assert_frame_equal(again, first, check_dtype=False)
    text = (tmp_path / "rows.csv").read_text()
    for cut in (40, 3):  # the disk was full; what is left of the seconds would be a number
        (tmp_path / "rows.csv").write_text(text[:-cut])
        calls.clear()
        evaluate(entries, volumes, rows=tmp_path / "rows.csv")
        assert len(calls) == 1


def test_load_network_is_in_evaluation_mode(made):
    assert not load_network(made.registration(D, "mse")).training
