"""Datasets from their files to the table of an evaluation, two training steps each."""

import archives
import numpy as np
import pytest
from conftest_tree import FIT, make_inputs
from test_datasets import OPTIONS, fetched
from test_own import changed, nuclei  # noqa: F401

from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.tables import evaluation

SMALL = {"channels": [4, 4, 4], "light": True}


def evaluated(profile, name, options):
    fit = FIT | {"steps": 2}
    tree = {
        "data": options,
        "extractors": {"network": SMALL, "fit": fit},
        "registration": {"network": SMALL, "fit": fit, "similarities": {"deepsim-seg": {"lam": 1}}},
    }
    plan = profile({name: tree})
    make_inputs(plan, plan.chapter(name, "evaluation"))
    return plan, evaluation(plan, name)


@pytest.mark.parametrize("name", ["phc-u373", "platelet-em", "brain-mri", "neurite-oasis-3d", "neurite-oasis-2d"])
def test_from_the_archive_to_the_table(name, tmp_path, monkeypatch, profile):
    root = fetched(name, tmp_path, monkeypatch)
    plan, tables = evaluated(profile, name, {"root": str(root)} | OPTIONS.get(name, {}))
    pairs = tables["pairs"].query("method == 'deepsim-seg'")
    assert len(pairs) == len(plan.data(name).pairs("test")) > 0
    assert np.isfinite(pairs[["dice", "folds", "sd_log_jacobian"]]).all(axis=None)
    images = plan.chapter(name, "evaluation").folder / "deepsim-seg" / "seed-0"
    assert len(list(images.glob("*-label*"))) == len(pairs)


def test_the_example_of_the_readme_from_yaml_to_table(nuclei, profile):  # noqa: F811
    _, tables = evaluated(profile, "nuclei", {"description": str(nuclei)})
    assert set(tables["means"]["method"]) == {"unregistered", "deepsim-seg"}
    assert "dice_nucleus" in tables["means"]
    changed(nuclei, name="cells")
    with pytest.raises(SettingsError, match=r"describes 'cells', but mine.yaml says 'nuclei'"):
        evaluated(profile, "nuclei", {"description": str(nuclei)})


def test_the_scene_that_stands_in_for_data_is_seeded():
    assert (archives.scene((8, 8), 3, 1)[0] == archives.scene((8, 8), 3, 1)[0]).all()
