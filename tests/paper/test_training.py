import itertools
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from disturbed import FORKED
from safetensors.torch import load_file
from synchronisations import Synchronisations

from deepsimreg.data import load_dataset
from deepsimreg.data.augment import AUGMENT_2D
from deepsimreg.losses import MSE, DeepSim
from deepsimreg.losses.registry import build_similarity, required_extractors
from deepsimreg.models import Autoencoder, UNet, VoxelMorph, load_model
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.extractors import ReconstructionTraining, SegmentationTraining, extractor_training
from deepsimreg.paper.registrations import RegistrationTraining, train_registration
from deepsimreg.paper.samples import DrawnSamples, EpochSampler, augmented
from deepsimreg.paper.settings import ExtractorPart, Fit, validated
from deepsimreg.paper.training import by_script, fit

SMALL = {"channels": [4, 6, 8], "light": True}
DATA = {"shape": (32, 32), "train": 4, "validation": 2, "test": 1}


@pytest.fixture(scope="module")
def data():
    return load_dataset("phantom-2d", **DATA)


def train(data, folder, settings, kind="registration"):
    folder.mkdir(exist_ok=True)
    if kind == "registration":
        extractor = UNet(2, len(data.classes), **SMALL)

        def module():
            network = VoxelMorph(2, **SMALL)
            return RegistrationTraining(network, DeepSim(extractor), 0.1, data, settings)

        items = data.pairs
    elif kind == "seg":
        module = lambda: SegmentationTraining(UNet(2, len(data.classes), **SMALL), settings)  # noqa: E731
        items = data.samples
    else:
        module = lambda: ReconstructionTraining(Autoencoder(2, 1, **SMALL), settings)  # noqa: E731
        items = data.samples
    return fit(module, settings, items("train"), items("validation"), data, folder)


def test_segmentation_learns(data, tmp_path):
    settings = Fit(steps=60, batch=4, learning_rate=5e-3, validate_every=20)
    history = train(data, tmp_path, settings, "seg")
    losses = history["train_loss"].dropna()
    assert losses.tail(10).mean() < 0.8 * losses.head(5).mean()
    assert len(losses) == 60


def test_reconstruction_learns_and_keeps_its_best(data, tmp_path):
    settings = Fit(steps=60, batch=4, learning_rate=5e-3, validate_every=20)
    history = train(data, tmp_path, settings, "ae")
    network = load_model(tmp_path / "weights.safetensors", Autoencoder)
    images = torch.stack([sample.image for sample in data.samples("validation")])
    error = torch.nn.functional.mse_loss(network(images), images).item()
    assert error == pytest.approx(history["validation_loss"].min(), rel=1e-3)


def test_same_seed_same_weights_other_seed_other_weights(data, tmp_path):
    settings = Fit(steps=6, batch=2, validate_every=3)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(data, tmp_path / name, settings.model_copy(update={"seed": seed}), "seg")
    a, b, c = (load_file(tmp_path / name / "weights.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_accumulated_batches_make_one_step(data, tmp_path):
    settings = Fit(steps=4, batch=1, accumulate=3, validate_every=2)
    history = train(data, tmp_path, settings, "seg")
    assert history.dropna(subset="train_loss")["step"].tolist() == [1, 2, 3, 4]


def test_early_stopping_ends_a_training_that_cannot_improve(data, tmp_path):
    settings = Fit(steps=50, batch=1, validate_every=1, learning_rate=0.0, early_stopping=3)
    assert train(data, tmp_path, settings, "seg")["step"].max() <= 5


def test_plateau_lowers_the_learning_rate(data, tmp_path):
    settings = Fit(steps=8, batch=1, validate_every=1, learning_rate=1e-6, plateau=2)
    train(data, tmp_path, settings, "seg")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] <= 1.1e-7


def test_bfloat16_trains(data, tmp_path):
    settings = Fit(steps=4, batch=2, validate_every=2, precision="bf16-mixed")
    assert train(data, tmp_path, settings)["train_loss"].notna().sum() == 4


def test_logs_and_files_of_a_run(data, tmp_path):
    train(data, tmp_path, Fit(steps=4, batch=2, validate_every=2))
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert names >= {"metrics", "last", "weights", "events"}
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics.dropna(subset="validation_dice")["step"].tolist() == [2, 4]


def test_checkpoint_does_not_hold_the_frozen_extractor(data, tmp_path):
    train(data, tmp_path, Fit(steps=2, batch=2, validate_every=2))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all(key.startswith("network.") for key in state)


def test_extractor_is_not_trained(data):
    extractor = UNet(2, 3, **SMALL)
    module = RegistrationTraining(VoxelMorph(2, **SMALL), DeepSim(extractor), 0.1, data, Fit())
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert not trained & {id(p) for p in extractor.parameters()}


def test_drawn_samples_depend_on_index_and_seed_alone(data):
    draw = DrawnSamples(data.pairs("train"), AUGMENT_2D, seed=3)
    first, again = draw[7], DrawnSamples(data.pairs("train"), AUGMENT_2D, seed=3)[7]
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = DrawnSamples(data.pairs("train"), AUGMENT_2D, seed=4)[7]
    assert not torch.equal(first["moving"], other["moving"])


def test_a_window_is_the_same_of_every_image_of_a_pair_and_lies_in_it(data):
    whole, cut = (DrawnSamples(data.pairs("train"), None, seed=3, crop=crop)[7] for crop in ((), (12, 999)))
    assert augmented(whole) == whole
    rows, columns = whole["moving"].shape[1:]
    starts = {key: [i for i in range(rows - 11) if torch.equal(whole[key][:, i : i + 12], cut[key])] for key in whole}
    assert cut["fixed"].shape == (1, 12, columns)
    assert set.intersection(*map(set, starts.values())), starts
    windows = {DrawnSamples(data.pairs("train"), None, 3, (12, 12))[i]["moving"].sum().item() for i in range(6)}
    assert len(windows) > 1


def test_sampler_goes_on_where_the_last_epoch_ended():
    sampler = EpochSampler(5)
    assert list(sampler) == [0, 1, 2, 3, 4]
    sampler.set_epoch(2)
    assert list(sampler) == [10, 11, 12, 13, 14]


def test_processes_of_a_parallel_run_share_no_sample(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        for epoch in (0, 1):
            sampler = EpochSampler(3)
            sampler.set_epoch(epoch)
            seen += list(sampler)
    assert sorted(seen) == list(range(12))


def test_number_of_workers_changes_nothing(data, tmp_path):
    settings = Fit(steps=4, batch=2, validate_every=2)
    tables = [
        train(data, tmp_path / str(workers), settings.model_copy(update={"workers": workers}), "seg")
        for workers in (0, 2)
    ]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))


def test_a_training_that_diverges_stops_and_says_what_to_do(data, tmp_path):
    settings = Fit(steps=40, batch=2, validate_every=2, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower learning_rate or set gradient_clip"):
        train(data, tmp_path, settings, "seg")


def test_loss_is_similarity_plus_lam_times_regulariser(data):
    network = VoxelMorph(2, **SMALL)
    torch.nn.init.normal_(network.flow.weight)
    module = RegistrationTraining(network, MSE(), 0.3, data, Fit())
    batch = {key: value[None] for key, value in DrawnSamples(data.pairs("train"), None, 0)[0].items()}
    terms = module.terms(batch)
    torch.testing.assert_close(terms["loss"], terms["similarity"] + 0.3 * terms["regulariser"])


def train_alone(folder, settings):
    torch.manual_seed(5)
    train(load_dataset("phantom-2d", **DATA), folder, settings)


@pytest.mark.parametrize("early_stopping", [0, 4])
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, early_stopping):
    """SIGKILL in the middle of an epoch; dropping learning rate and early stopping included."""
    given = {"steps": 60, "batch": 2, "validate_every": 6, "learning_rate": 3e-3, "plateau": 1}
    settings = Fit(**given, early_stopping=early_stopping)

    def start(name):
        process = FORKED.Process(target=train_alone, args=(tmp_path / name, settings))
        process.start()
        return process, tmp_path / name

    process, whole = start("whole")
    process.join(120)
    assert process.exitcode == 0
    rows_to_reach = len((whole / "metrics.csv").read_text().splitlines()) // 2
    process, cut = start("cut")
    while process.is_alive():
        table = cut / "metrics.csv"
        if table.is_file() and len(table.read_text().splitlines()) > rows_to_reach and (cut / "last.ckpt").is_file():
            process.kill()
        time.sleep(0.005)
    assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    process, cut = start("cut")
    process.join(120)
    assert process.exitcode == 0
    a, b = (load_file(folder / "weights.safetensors") for folder in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)
    a, b = (torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)
    a, b = (pd.read_csv(folder / "metrics.csv") for folder in (whole, cut))
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"))
    assert b["seconds"].dropna().is_monotonic_increasing


def test_two_processes_train_as_one_with_the_same_samples(profile, runs, monkeypatch):
    """Each takes every other sample; their gradients are averaged. Sums in another order are all that differs."""
    monkeypatch.setenv("DEEPSIMREG_EXPERIMENTS", str(runs.parent / "experiments"))
    fit = {"steps": 12, "validate_every": 4, "learning_rate": 1e-3}
    found = {}
    for name, parts in {"one": {"batch": 4}, "two": {"batch": 2, "devices": 2}}.items():
        registration = {"network": SMALL, "fit": fit | parts, "similarities": {"ncc": {"lam": 0.5}}}
        plan = profile({"phantom-2d": {"data": DATA, "registration": registration}}, name)
        run = plan.registration("phantom-2d", "ncc")
        found[name] = train_registration(plan, run, plan.data("phantom-2d"))
    one, two = (network.state_dict() for network, _ in found.values())
    moved = max((one[key] - VoxelMorph(2, **SMALL).state_dict()[key]).abs().max().item() for key in one)
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-5 < 1e-2 < moved
    ours, theirs = (history.dropna(subset="validation_loss") for _, history in found.values())
    assert theirs["step"].tolist() == [4, 8, 12]
    np.testing.assert_allclose(ours["validation_loss"], theirs["validation_loss"], atol=1e-5)


def test_initial_weights_need_no_devices(profile):
    """`steps: 0` beside `devices: 2` of all trainings, as a random extractor has it."""
    fit = {"steps": 0, "devices": 2}
    registration = {"network": SMALL, "fit": fit, "similarities": {"mse": {"lam": 0.5}}}
    plan = profile({"phantom-2d": {"data": DATA, "registration": registration}})
    run = plan.registration("phantom-2d", "mse")
    train_registration(plan, run, plan.data("phantom-2d"))
    assert run.current


def test_rows_of_lost_weights_are_not_those_of_new_ones(profile):
    """The weights and the checkpoint of a training that had ended are gone, its validation is not."""
    fit = {"steps": 4, "batch": 2, "validate_every": 2}
    registration = {"network": SMALL, "fit": fit, "similarities": {"mse": {"lam": 0.5}}}
    plan = profile({"phantom-2d": {"data": DATA, "registration": registration}})
    run, data = plan.registration("phantom-2d", "mse"), plan.data("phantom-2d")
    train_registration(plan, run, data)
    expected = pd.read_csv(run.validation)
    expected.assign(dice=0.123).to_csv(run.validation, index=False)
    for path in (run.mark, run.weights, run.folder / "last.ckpt"):
        path.unlink()
    train_registration(plan, run, data)
    pd.testing.assert_series_equal(pd.read_csv(run.validation)["dice"], expected["dice"])


def test_several_devices_need_a_run_of_a_profile(profile):
    tree = {"phantom-2d": {"data": DATA, "registration": {"similarities": {"mse": {"lam": 1}}}}}
    plan = profile(tree)
    run = plan.registration("phantom-2d", "mse", place="runs/mine", devices=2)
    with pytest.raises(SettingsError, match="mine: devices is 2, which takes a run that a profile plans"):
        by_script(run)


def test_no_step_waits_for_the_host(data, tmp_path):
    """All that is read in a step are the draws of the samples and Adam's count of steps, which are on the host, and on
    a CPU alone whether a warp has diverged.
    """
    on_the_host = (
        "samples.py",
        "augment.py",
        "precision.py: return optimizer.step",
        "displacement.py: if grid.device.type",
    )
    for name in ("mse", "ncc", "ncc-sup", "nmi", "mind", "deepsim-seg"):

        def module(settings, name=name):
            extractors = {kind: UNet(2, len(data.classes), **SMALL) for kind in required_extractors([name])}
            return RegistrationTraining(VoxelMorph(2, **SMALL), build_similarity(name, extractors), 0.1, data, settings)

        counts = []
        for steps in (3, 5):
            settings = Fit(steps=steps, batch=2, validate_every=steps)
            pairs = data.pairs("train"), data.pairs("validation")
            with Synchronisations() as found:
                fit(partial(module, settings), settings, *pairs, data, tmp_path / f"{name}-{steps}")
            counts.append(found)
        more = counts[1] - counts[0]
        assert any(place.startswith("samples.py") for place in more), "the witness sees what is read"
        assert not [place for place in more if not place.startswith(on_the_host)], name


@pytest.mark.parametrize("name", ["last.ckpt", "metrics.csv"])
@pytest.mark.parametrize("part", [0, 0.5])
def test_a_training_whose_checkpoint_or_table_was_cut_begins_anew_and_says_so(data, tmp_path, name, part, capsys):
    settings = Fit(steps=8, batch=2, validate_every=2)
    expected = train(data, tmp_path / "whole", settings, "seg")
    train(data, tmp_path / "cut", settings.model_copy(update={"steps": 4}), "seg")
    path = tmp_path / "cut" / name
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    capsys.readouterr()
    found = train(data, tmp_path / "cut", settings, "seg")
    assert "last.ckpt is not gone on from, since" in capsys.readouterr().out
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"))
    a, b = (load_file(tmp_path / folder / "weights.safetensors") for folder in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_best_weights_come_back_from_the_checkpoint(data, tmp_path):
    """The file of the best weights was cut, and no later validation is better."""
    settings = Fit(steps=4, batch=2, validate_every=2, learning_rate=1e-3, schedule="cosine")
    train(data, tmp_path, settings, "seg")
    path = tmp_path / "weights.safetensors"
    before = {key: value.clone() for key, value in load_file(path).items()}  # the file is a map of the memory
    path.write_bytes(path.read_bytes()[:100])
    train(data, tmp_path, settings.model_copy(update={"steps": 6, "learning_rate": 0.0}), "seg")
    assert all(torch.equal(value, before[key]) for key, value in load_file(path).items())


def test_a_full_disk_ends_a_training_with_one_line_and_keeps_the_last_checkpoint(data, tmp_path, monkeypatch):
    train(data, tmp_path, Fit(steps=2, batch=2, validate_every=2), "seg")
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(checkpoint, path):
        Path(path).write_bytes(b"cut")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SettingsError, match=r"last.ckpt cannot be written, is the disk full\? .*No space left"):
        train(data, tmp_path, Fit(steps=4, batch=2, validate_every=2), "seg")
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not list(tmp_path.glob(".*partial*"))


def test_nothing_to_train_on_is_told_before_the_training(data, tmp_path):
    module = lambda: SegmentationTraining(UNet(2, len(data.classes), **SMALL), Fit())  # noqa: E731
    with pytest.raises(SettingsError, match="phantom-2d has no training pairs or images: give its split train"):
        fit(module, Fit(steps=2), [], data.samples("validation"), data, tmp_path)


def test_the_regulariser_counts_in_mm_as_register_does():
    data = load_dataset("phantom-3d", shape=(16, 16, 16), train=1, validation=1, test=1)
    object.__setattr__(data, "__class__", type("Thick", (type(data),), {"spacing": (1.0, 1.0, 5.0)}))
    network = VoxelMorph(3, **SMALL)
    torch.nn.init.normal_(network.flow.weight)
    module = RegistrationTraining(network, MSE(), 0.3, data, Fit())
    batch = {key: value[None] for key, value in DrawnSamples(data.pairs("train"), None, 0)[0].items()}
    with torch.no_grad():
        found = module.terms(batch)["regulariser"]
        u = network(batch["moving"], batch["fixed"])[0]
    steps, expected = (1.0, 1.0, 5.0), 0.0
    for a, c in itertools.product(range(3), range(3)):
        expected += (u[c].diff(dim=a) * steps[c] / steps[a]).square().mean().item() / 9
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_the_ranges_of_the_augmentation_are_the_profiles(monkeypatch, tmp_path):
    """A shift of up to a quarter of a side, and nothing else: the matrices that the samples draw."""
    data, drawn = load_dataset("phantom-2d", shape=[32, 32], train=2, validation=1, test=1), []
    ranges = {"rotation": 0, "scale": [1, 1], "shear": 0, "translation": 0.25}
    settings = validated(Fit, {"steps": 2, "batch": 2, "validate_every": 2, "flips": False, "ranges": ranges}, "fit")
    see = DrawnSamples.__getitem__
    monkeypatch.setattr(DrawnSamples, "__getitem__", lambda self, i: drawn.append(see(self, i)) or drawn[-1])
    part = ExtractorPart(kind="ae", network={"channels": [4, 6, 8]}, fit=settings)
    fit(
        partial(extractor_training, part, data),
        settings,
        data.samples("train"),
        data.samples("validation"),
        data,
        tmp_path,
    )
    matrices = torch.stack([item["matrix"] for item in drawn])
    assert torch.allclose(matrices[..., :2], torch.eye(2).expand(len(matrices), 2, 2))
    assert 2 < matrices[..., 2].abs().max() <= 8
    with pytest.raises(SettingsError, match="fit: ranges: unknown key 'rotations'"):
        validated(Fit, {"ranges": {"rotations": 3}}, "fit")
