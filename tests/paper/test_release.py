"""Shipping networks: from the runs of a profile to files that load by name; and the files that are shipped."""

import hashlib

import pytest
import yaml

from deepsimreg import load, pretrained
from deepsimreg.models import Autoencoder, Pyramid, UNet, VoxelMorph
from deepsimreg.paper import experiment
from deepsimreg.paper import release as publish
from deepsimreg.paper.experiment import Profile
from deepsimreg.paper.stages import evaluate_method, train_extractor, train_registration, try_extractor
from deepsimreg.pretrained import WEIGHTS

SMALL = {"channels": [4, 6, 8], "light": True}
FIT = {"steps": 2, "batch": 2, "validate_every": 2}
TREE = {
    "phantom-2d": {
        "data": {"shape": [32, 32], "train": 2, "validation": 2, "test": 2},
        "extractors": {"network": SMALL, "fit": FIT},
        "registration": {"network": SMALL, "fit": FIT, "similarities": {"mse": {"lam": 1}}},
    }
}


def test_what_is_published_loads_by_name_with_the_figures_of_its_card(tmp_path, monkeypatch, runs):
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(TREE))
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
    plan = Profile("quick")
    data = plan.load("phantom-2d")
    _, _, run = train_registration(plan.registration("phantom-2d", "mse"), data)
    run.finish(best={"validation_dice": 0.5}, seconds=1.0)
    for kind in ("seg", "ae"):
        _, _, run = train_extractor(plan.extractor("phantom-2d", kind), data)
        run.finish(best={"validation_loss": 0.25}, seconds=1.0)
    folder = tmp_path / "weights"
    with monkeypatch.context() as patch:
        patch.setattr(publish, "MOST", 1000)
        with pytest.raises(ValueError, match="MiB of weights: ship smaller"):
            publish.publish(plan, data, "mse", folder)
    assert not folder.exists(), "refused before anything is written"
    files = publish.publish(plan, data, "mse", folder)
    assert [path.name for path in files] == [f"phantom-2d-{k}.safetensors" for k in ("seg", "ae", "registration")]
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    monkeypatch.setattr(pretrained, "INDEX", folder / "index.json")
    index = pretrained.pretrained()
    network = load("phantom-2d/registration", VoxelMorph)
    dice = evaluate_method(network, data)["dice"].mean()
    assert index["phantom-2d/registration"]["test"]["dice"] == pytest.approx(dice, rel=1e-3)
    found = try_extractor(load("phantom-2d/ae", Autoencoder), data)["mean_squared_error"].mean()
    assert index["phantom-2d/ae"]["test"]["mean_squared_error"] == pytest.approx(found, rel=1e-3)
    card = (folder / "phantom-2d-seg.md").read_text()
    for part in (index["phantom-2d/seg"]["sha256"], data.licence, "channels", 'deepsimreg.load("phantom-2d/seg")'):
        assert part in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("name", "kind"),
    [("hippocampus-mr/seg", UNet), ("hippocampus-mr/ae", Autoencoder), ("hippocampus-mr/registration", Pyramid)],
)
def test_the_shipped_networks_are_whole_and_have_a_card(name, kind):
    entry = pretrained.pretrained()[name]
    assert hashlib.sha256((WEIGHTS / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert sum(weight.numel() for weight in load(name, kind).parameters()) > 1e5
    card = (WEIGHTS / entry["file"]).with_suffix(".md").read_text()
    assert entry["sha256"] in card
    assert "CC BY-SA 4.0" in card


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 8 * 2**20
