import pytest
import yaml
from conftest_tree import TREE

from deepsimreg.paper import settings
from deepsimreg.paper.plan import Profile


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
