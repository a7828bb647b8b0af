"""Shipping networks: from the runs of a profile to files that load by name; and the files that are shipped."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from conftest_tree import FIT, SMALL, D, make_inputs

from deepsimreg import load, pretrained
from deepsimreg.models import Autoencoder, Pyramid, UNet, VoxelMorph
from deepsimreg.paper import publish, release, run
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.evaluate import Entry, evaluate
from deepsimreg.paper.extractors import evaluate_extractor, train_extractor
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import train_registration
from deepsimreg.paper.reports import Published, at_hand
from deepsimreg.paper.stale import stale_files
from deepsimreg.paper.tables import evaluation
from deepsimreg.pretrained import WEIGHTS

TREE = {
    D: {
        "data": {"shape": [32, 32], "train": 2, "validation": 2, "test": 2},
        "extractors": {"network": SMALL, "fit": FIT},
        "registration": {"network": SMALL, "fit": FIT, "similarities": {"mse": {"lam": 1}}},
    }
}


def test_what_is_released_loads_by_name_with_the_figures_of_its_card(profile, tmp_path, monkeypatch):
    plan = profile(TREE)
    data = plan.data(D)
    train_registration(plan, plan.registration(D, "mse"), data)
    for kind in ("seg", "ae"):
        train_extractor(plan.extractor(D, kind), data)
    folder = tmp_path / "weights"
    with monkeypatch.context() as patch:
        patch.setattr(release, "MOST", 1000)
        with pytest.raises(ValueError, match="MiB of weights: ship smaller"):
            release.release(plan, D, "mse", folder)
    assert not folder.exists(), "refused before anything is written"
    files = release.release(plan, D, "mse", folder)
    assert [path.name for path in files] == [f"phantom-2d-{k}.safetensors" for k in ("seg", "ae", "registration")]
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    monkeypatch.setattr(pretrained, "INDEX", folder / "index.json")
    index = pretrained.pretrained()
    dice = evaluate([Entry({}, load("phantom-2d/registration", VoxelMorph))], data)["dice"].mean()
    assert index["phantom-2d/registration"]["test"]["dice"] == pytest.approx(dice, rel=1e-3)
    found = evaluate_extractor(load("phantom-2d/ae", Autoencoder), "ae", data)["mean_squared_error"].mean()
    assert index["phantom-2d/ae"]["test"]["mean_squared_error"] == pytest.approx(found, rel=1e-3)
    card = (folder / "phantom-2d-seg.md").read_text()
    for part in (index["phantom-2d/seg"]["sha256"], data.licence, "channels", 'deepsimreg.load("phantom-2d/seg")'):
        assert part in card
    assert str(tmp_path) not in card


def test_only_a_named_act_publishes_and_what_it_publishes_says_where_it_is_from(profile, tmp_path, monkeypatch):
    plan, figures = profile(TREE), tmp_path / "figures"
    with pytest.raises(SettingsError, match="evaluation: there is no finished run"):
        publish.publish(plan, D, figures)
    assert not figures.exists()
    make_inputs(plan, plan.chapter(D, "figures"))
    evaluation(plan, D)
    drawn = plan.chapter(D, "figures")
    with drawn.open():
        (drawn.folder / "dice.png").write_bytes(b"a picture")
        (drawn.folder / "dice.pdf").write_bytes(b"a picture")
        (drawn.folder / "dice.json").write_text('{"caption": "Dice"}')
        drawn.finish(figures=["dice.png"])
    (figures / D).mkdir(parents=True)
    (figures / D / "old.csv").write_text("published by an earlier version")
    publish.publish(plan, D, figures)
    source = figures / D / "source.json"
    record = json.loads(source.read_text())
    assert record["files"]["evaluation/pairs.csv"]["identity"] == plan.chapter(D, "evaluation").identity
    assert record["files"]["dice.png"] == {"run": "figures", "identity": drawn.identity}
    made = evaluation(plan, D)
    assert [at_hand(one, D, "evaluation") for one in (plan, Published(D, figures))] == [True, True]
    assert [at_hand(one, D, "robustness") for one in (plan, Published(D, figures))] == [False, False]
    with monkeypatch.context() as patch:
        patch.setattr(Profile, "data", lambda *_: pytest.fail("a reader has no data"))
        for name, table in evaluation(Published(D, figures), D).items():
            pd.testing.assert_frame_equal(table, made[name])
    found = {str(path.relative_to(figures / D)) for path in (figures / D).rglob("*") if path.is_file()}
    assert found == {*record["files"], "source.json"}
    listed = {Path(entry["file"]).relative_to(f"figures/{D}") for entry in publish.manifest(figures)["manifest"]}
    assert listed == {Path(name) for name in record["files"] if not name.endswith((".pdf", ".json"))}
    with pytest.raises(SettingsError, match="unknown published dataset 'moon'; there is: phantom-2d"):
        Published("moon", figures)
    assert record["fingerprints"] == {D: plan.fingerprint(D)}
    assert stale_files(source) == []
    with monkeypatch.context() as patch:
        patch.setattr(publish, "copy_file", lambda *_: pytest.fail("killed", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            publish.publish(plan, D, figures)
    assert len(stale_files(source)) == len(record["files"])
    publish.publish(plan, D, figures)
    assert stale_files(source) == []
    with monkeypatch.context() as patch:
        digest = run.code_digest
        patch.setattr(run, "code_digest", lambda code: "drawn otherwise" if "11_figures" in str(code) else digest(code))
        assert Profile(plan.name).chapter(D, "figures").identity != drawn.identity
        assert stale_files(source) == [], "how a figure is drawn decides none of its numbers"
    changed = TREE[D] | {"registration": TREE[D]["registration"] | {"similarities": {"mse": {"lam": 2}}}}
    profile({D: changed})
    found = stale_files(source)
    assert any(line.startswith("evaluation/pairs.csv: evaluation has another identity") for line in found)
    assert any(line.startswith("dice.png: figures has another identity") for line in found)


def test_what_is_stale_is_told_without_the_data(profile, tmp_path, monkeypatch):
    """An extractor of another dataset needs that one's fingerprint, too."""
    similarities = {"deepsim-seg": {"lam": 1}}
    tree = {
        D: {"extractors": {"seg": {"source": "phantom-3d"}}, "registration": {"similarities": similarities}},
        "phantom-3d": {},
    }
    fingerprints = {D: "a" * 16, "phantom-3d": "b" * 16}
    profile(tree)
    runs = {run.name: run.identity for run in Profile("mine", fingerprints).runs(D)}
    files = {f"{name}.csv": {"run": name, "identity": runs[name]} for name in ("extractor-seg", "evaluation")}
    source = tmp_path / D / "source.json"
    source.parent.mkdir()
    monkeypatch.setattr(Profile, "data", lambda *_: pytest.fail("no data here"))
    source.write_text(json.dumps({"profile": "mine", "fingerprints": fingerprints, "files": files}))
    assert stale_files(source) == []
    other = fingerprints | {"phantom-3d": "c" * 16}
    source.write_text(json.dumps({"profile": "mine", "fingerprints": other, "files": files}))
    assert [line.split(":")[0] for line in stale_files(source)] == ["extractor-seg.csv", "evaluation.csv"]


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
