import json
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml

from deepsimreg.data import load_dataset
from deepsimreg.errors import WeightsError
from deepsimreg.models import Autoencoder, UNet, VoxelMorph
from deepsimreg.paper import experiment, stages
from deepsimreg.paper.experiment import Profile, SettingsError
from deepsimreg.paper.training import fit

SMALL = {"channels": [4, 6, 8], "light": True}
FIT = {"steps": 4, "batch": 2, "validate_every": 2}
TREE = {
    "phantom-2d": {
        "data": {"shape": [32, 32], "train": 3, "validation": 2, "test": 2},
        "extractors": {
            "network": SMALL,
            "fit": FIT,
            "seg-random": {"kind": "seg", "fit": {"steps": 0}},
            "seg-few": {"kind": "seg", "labels": 0.4},
        },
        "registration": {
            "network": SMALL,
            "fit": FIT,
            "seeds": [0, 1],
            "tuning": {"steps": 2},
            "similarities": {"mse": {"grid": [0.1, 1]}, "deepsim-ae": {"lam": 1}, "deepsim-seg": {"lam": 1}},
        },
        "ablations": {
            "fit": {"steps": 2},
            "variants": {
                "level-1": {"of": "deepsim-seg", "group": "levels", "options": {"levels": [1]}},
                "random": {"of": "deepsim-seg", "group": "features", "extractor": "seg-random"},
                "few": {"of": "deepsim-seg", "group": "labels", "extractor": "seg-few"},
            },
        },
        "baselines": {"greedy": {"values": [0.7, 1]}},
        "robustness": {"noise": [0.1]},
    }
}


@pytest.fixture
def volumes():
    return load_dataset("phantom-3d", shape=(24, 24, 16), train=1, validation=1, test=1)


@pytest.fixture
def profile(tmp_path, monkeypatch, runs):
    """A small profile; named as the quick one, it makes what it misses."""

    def make(name="quick", tree=TREE):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
        return Profile(name)

    return make


def test_the_paper_from_extractor_to_tables(profile):
    plan = profile()
    data = plan.load("phantom-2d")
    tables, folder = stages.evaluation_tables(plan, data)
    assert set(tables["pairs"]["method"]) == {"unregistered", "mse", "deepsim-ae", "deepsim-seg", "greedy"}
    assert len(tables["pairs"]) == 2 * (1 + 3 * 2 + 1)  # pairs × (unregistered + similarities × seeds + greedy)
    assert len(tables["runs"]) == 3 * 2 + 1
    assert tables["smoothness"].groupby("method").size().to_dict() == {"greedy": 2, "mse": 2}
    again, _ = stages.evaluation_tables(plan, data)
    pd.testing.assert_frame_equal(again["means"], tables["means"], check_dtype=False)
    assert {path.stem for path in folder.glob("*.csv")} == {"pairs", "means", "summary", "tests", "runs", "smoothness"}
    images = list((folder / "mse" / "seed-1").glob("*-label.tif"))
    assert len(images) == 2
    assert tifffile.imread(images[0]).shape == (32, 32)


def test_lam_is_chosen_by_validation_dice(profile):
    plan = profile()
    data = plan.load("phantom-2d")
    stages.tune(plan, data)
    for settings, dice in zip(plan.tunings("phantom-2d"), [0.5, 0.9], strict=True):
        table = pd.read_csv(stages.validation_table(settings.folder)).assign(dice=dice)
        table.to_csv(stages.validation_table(settings.folder), index=False)
    assert stages.tune(plan, data).query("chosen")["lam"].tolist() == [1.0]
    assert plan.registration("phantom-2d", "mse").lam == 1.0
    _, folder = stages.trained_registration(plan.registration("phantom-2d", "mse", seed=1), data)
    assert experiment.settings_of(folder).lam == 1.0
    assert len(pd.read_csv(stages.validation_table(folder))) == 2


def test_a_tuning_run_of_full_length_is_the_final_run_of_its_lam(profile, monkeypatch):
    tree = json.loads(json.dumps(TREE))
    tree["phantom-2d"]["registration"]["tuning"] = {}
    plan = profile(tree=tree)
    data = plan.load("phantom-2d")
    stages.tune(plan, data)
    trained = []
    monkeypatch.setattr(stages, "fit", lambda *arguments: trained.append(arguments[-1]) or fit(*arguments))
    for settings in [settings for settings in plan.registrations("phantom-2d") if settings.method == "mse"]:
        _, history, run = stages.train_registration(settings, data)
        twin = plan.registration("phantom-2d", "mse", settings.lam, "tuning").folder
        same = (run.folder / "weights.safetensors").read_bytes() == (twin / "weights.safetensors").read_bytes()
        assert same == (settings.fit.seed == 0)
        assert len(history) > 0
    assert len(trained) == 1, "the second seed alone"


def test_the_optimisers_are_tuned_on_the_pairs_asked_for_and_tested_on_all(profile):
    tree = json.loads(json.dumps(TREE))
    tree["phantom-2d"]["baselines"]["greedy"]["pairs"] = 1
    plan = profile(tree=tree)
    tables, _ = stages.run_baseline(plan.baseline("phantom-2d", "greedy"), plan.load("phantom-2d"))
    assert tables["validation"].groupby("lam").size().to_dict() == {0.7: 1, 1.0: 1}
    assert len(tables["test"]) == 2


def test_a_grid_does_not_overrule_the_lam_that_the_profile_gives(profile):
    tree = json.loads(json.dumps(TREE))
    tree["phantom-2d"]["registration"]["similarities"] = {"mse": {"lam": 1, "grid": [0.1, 1]}, "ncc": {"grid": [0.3]}}
    del tree["phantom-2d"]["ablations"]
    plan = profile(tree=tree)
    table = stages.tune(plan, plan.load("phantom-2d")).set_index(["method", "lam"])["chosen"]
    assert table.to_dict() == {("mse", 0.1): False, ("mse", 1.0): True, ("ncc", 0.3): True}
    assert json.loads(plan.choice("phantom-2d").read_text()) == {"ncc": 0.3}
    assert plan.lam("phantom-2d", "mse") == 1


def test_ablations_and_noise(profile):
    plan = profile()
    data = plan.load("phantom-2d")
    variants = stages.ablation_tables(plan, data)["variants"].set_index("method")
    assert list(variants.index) == ["deepsim-seg", "few", "level-1", "random"]
    assert variants.loc["few", "labels"] == 0.4
    assert variants["extractor_dice"].notna().all()
    trained = stages.load_model(plan.extractor("phantom-2d", "seg-few").folder / "weights.safetensors")
    initial = stages.load_model(plan.extractor("phantom-2d", "seg-random").folder / "weights.safetensors")
    assert not torch.equal(trained.head[-1].bias, initial.head[-1].bias)
    noise = stages.robustness_table(plan, data)
    assert set(noise["noise"]) == {0.0, 0.1}
    assert set(noise["method"]) == {"unregistered", "mse", "deepsim-ae", "deepsim-seg"}
    still = noise.query("method == 'unregistered'").groupby("noise")["dice"].mean()
    assert still[0.0] == still[0.1]  # noise is in the images, not in the labels


def test_a_smaller_share_of_the_labels_is_part_of_a_larger_one():
    samples = list(range(20))
    few, more = (list(stages._share(samples, share)) for share in (0.1, 0.5))
    assert len(few) == 2
    assert set(few) < set(more)
    assert stages._share(samples, 1.0) is samples
    with pytest.raises(SettingsError, match="labels is 0: give a share"):
        stages._share(samples, 0)


def test_a_baseline_that_was_cut_off_goes_on(profile):
    plan = profile()
    data = plan.load("phantom-2d")
    tables, run = stages.run_baseline(plan.baseline("phantom-2d", "greedy"), data)
    for path in run.folder.glob("*.csv"):
        table = pd.read_csv(path)
        if path.name.startswith("test"):
            table.iloc[:1].assign(dice=0.123).to_csv(path, index=False)  # one pair was done when it was killed
    again, _ = stages.run_baseline(plan.baseline("phantom-2d", "greedy"), data)
    assert again["test"]["dice"].iloc[0] == 0.123  # not registered again
    assert again["test"]["dice"].iloc[1] == tables["test"]["dice"].iloc[1]
    images = list((run.folder / "test").glob("*-label.tif"))
    assert len(images) == 2


def test_the_warp_of_a_pair_is_that_of_the_evaluation(profile):
    plan = profile()
    data = plan.load("phantom-2d")
    tables, _ = stages.evaluation_tables(plan, data)
    pair = data.pairs("test")[0]
    for method in ("mse", "greedy"):
        displacement = stages.method_of(plan, data, method)(pair.moving.image[None], pair.fixed.image[None])
        label = stages.warp_labels(pair.moving.label[None], displacement)
        row = tables["pairs"].query("method == @method and pair == @pair.name").iloc[0]
        assert (label == pair.fixed.label[None]).double().mean() == pytest.approx(row["pixel_accuracy"])


def test_other_profiles_say_what_is_missing(profile):
    plan = profile("lab")
    data = plan.load("phantom-2d")
    with pytest.raises(SettingsError, match=r"extractor-seg: no finished run; make paper PROFILE=lab"):
        stages.train_registration(plan.registration("phantom-2d", "deepsim-seg"), data)
    with pytest.raises(SettingsError, match="λ of mse on phantom-2d has not been chosen: make paper PROFILE=lab"):
        stages.train_registration(plan.registration("phantom-2d", "mse"), data)
    with pytest.raises(SettingsError, match="no finished run"):
        stages.tune(plan, data)
    with pytest.raises(SettingsError, match=r"no tuning.csv; make paper PROFILE=lab makes it"):
        stages.tuning_table(plan, data)
    with pytest.raises(SettingsError, match="no finished run"):
        stages.evaluation_tables(plan, data)
    with pytest.raises(SettingsError, match=r"no variants.csv|no pairs.csv"):
        stages.ablation_tables(plan, data)


def test_a_finished_training_is_loaded_and_not_repeated(profile):
    plan = profile()
    data, settings = plan.load("phantom-2d"), plan.registration("phantom-2d", "mse")
    network, history, run = stages.train_registration(settings, data)
    stamp = run.weights.stat().st_mtime_ns
    again, same, _ = stages.train_registration(settings, data)
    assert run.weights.stat().st_mtime_ns == stamp
    pd.testing.assert_frame_equal(history, same)
    images = torch.rand(2, 1, 1, 32, 32)
    assert torch.equal(network(*images), again(*images))


def test_a_new_extractor_means_a_new_registration(profile):
    plan = profile()
    data, settings = plan.load("phantom-2d"), plan.registration("phantom-2d", "deepsim-seg")
    _, _, run = stages.train_registration(settings, data)
    stages.train_extractor(
        plan.extractor("phantom-2d", "seg", seed=9), data, str(plan.folder("phantom-2d", "extractor-seg"))
    )
    tree = TREE["phantom-2d"]["extractors"] | {"fit": FIT | {"seed": 9}}
    again = profile(tree={"phantom-2d": TREE["phantom-2d"] | {"extractors": tree}})
    stages.train_registration(again.registration("phantom-2d", "deepsim-seg"), data)
    assert len(list(run.folder.parent.glob("seed-0*"))) == 2


def test_settings_that_are_not_the_profiles_need_a_folder(profile):
    plan = profile()
    with pytest.raises(SettingsError, match="give the run a folder of its own"):
        stages.train_registration(plan.registration("phantom-2d", "mse", steps=2), plan.load("phantom-2d"))


def test_a_run_that_the_profile_does_not_describe_is_refused(profile):
    plan = profile("lab")
    data = plan.load("phantom-2d")
    other = plan.extractor("phantom-2d", "seg", steps=2)
    stages.train_extractor(other, data, str(other.folder))
    with pytest.raises(SettingsError, match="was made with other settings than profile lab has"):
        stages.trained_extractor(plan.extractor("phantom-2d", "seg"), data)


def test_unknown_reference_method_is_refused_before_the_work(profile):
    plan = profile()
    with pytest.raises(SettingsError, match=r"unknown reference method 'sny'; there is: .*, unregistered"):
        stages.evaluate_all(plan, plan.load("phantom-2d"), reference="sny")


def test_a_training_whose_end_mark_is_lost_is_not_repeated(profile):
    plan = profile()
    data, settings = plan.load("phantom-2d"), plan.registration("phantom-2d", "mse")
    _, history, run = stages.train_registration(settings, data)
    before, stamp = run.result_of(run.folder), run.weights.stat().st_mtime_ns
    (run.folder / "done.json").unlink()
    _, same, _ = stages.train_registration(settings, data)
    assert run.weights.stat().st_mtime_ns == stamp
    assert run.result_of(run.folder) == before
    pd.testing.assert_frame_equal(history, same)


def test_a_registration_takes_the_extractor_run_it_is_given(profile, tmp_path):
    plan = profile()
    data = plan.load("phantom-2d")
    _, _, run = stages.train_extractor(plan.extractor("phantom-2d", "seg", seed=5), data, tmp_path / "mine")
    settings = plan.registration("phantom-2d", "deepsim-seg")
    similarity, inputs = stages.similarity_of(replace(settings, extractor=str(run.folder)), data)
    assert len(inputs["extractor"]) == 16
    assert torch.equal(similarity.extractor.head[-1].bias, stages.load_model(run.weights).head[-1].bias)
    wrong = plan.registration("phantom-2d", "deepsim-ae")
    with pytest.raises(WeightsError, match="holds weights of UNet, but Autoencoder is needed"):
        stages.similarity_of(replace(wrong, extractor=str(run.folder)), data)


def test_an_extractor_for_a_similarity_that_has_none_is_refused(profile):
    plan = profile()
    settings = replace(plan.registration("phantom-2d", "mse"), extractor="runs/any")
    with pytest.raises(SettingsError, match="mse compares no features: leave extractor empty"):
        stages.similarity_of(settings, plan.load("phantom-2d"))


def test_extractor_test_writes_segmentations_with_the_right_affine(volumes, tmp_path):
    data = volumes
    table = stages.try_extractor(UNet(3, len(data.classes), **SMALL).eval(), data, tmp_path)
    assert {"image", "dice", *[f"dice_{name}" for name in data.classes]} <= set(table)
    sample = data.samples("test")[0]
    image = nibabel.load(tmp_path / f"{sample.name}.nii.gz")
    assert image.shape == data.shape
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.header.get_zooms(), data.spacing)
    errors = stages.try_extractor(Autoencoder(3, 1, **SMALL).eval(), data, tmp_path / "ae")
    assert (errors["mean_squared_error"] > 0).all()


def test_evaluation_of_a_perfect_method(volumes, tmp_path):
    data = volumes
    answers = iter([pair.displacement[None] for pair in data.pairs("test")])
    table = stages.evaluate_method(lambda moving, fixed: next(answers), data, tmp_path)
    assert table["target_registration_error"].max() == 0
    assert (table["dice"] > stages.evaluate_method(None, data)["dice"]).all()
    pair = data.pairs("test")[0]
    written = np.asarray(nibabel.load(tmp_path / f"{pair.name}-label.nii.gz").dataobj)
    assert (written == pair.fixed.label[0].numpy()).mean() > 0.9


def test_registration_network_of_the_settings(profile):
    network, _, _ = stages.train_registration(profile().registration("phantom-2d", "mse"), profile().load("phantom-2d"))
    assert isinstance(network, VoxelMorph)
    assert network.config["channels"] == [4, 6, 8]
