import pytest
import yaml
from conftest_tree import TREE, D, make_inputs

from deepsimreg.paper import settings
from deepsimreg.paper.plan import Profile


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A profile of which every network is trained."""
    root = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPSIMREG_RUNS", str(root / "runs"))
        patch.setattr(settings, "EXPERIMENTS", root)
        (root / "mine.yaml").write_text(yaml.safe_dump(TREE, sort_keys=False))
        plan = Profile("mine")
        make_inputs(plan, plan.chapter(D, "figures"))
        yield plan


@pytest.fixture
def profile(tmp_path, monkeypatch, runs):
    """A profile made from a tree."""

    def make(tree=TREE, name="mine"):
        folder = tmp_path / "experiments"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        monkeypatch.setattr(settings, "EXPERIMENTS", folder)
        return Profile(name)

    return make
