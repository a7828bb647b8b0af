"""What is stale: the folder, the graph and the command agree, after every kind of change, in a checkout of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest_tree import SMALL
from safetensors.torch import load_file

from deepsimreg.paths import PROJECT

pytestmark = pytest.mark.xdist_group(__name__)  # what they share is made once

FIT = {"steps": 2, "batch": 2, "validate_every": 2}
PLAN = {
    "phantom-2d": {
        "data": {"shape": [32, 32], "train": 4, "validation": 2, "test": 2},
        "registration": {
            "network": SMALL,
            "fit": FIT,
            "similarities": {"mse": {"lam": 1}, "ncc": {"lam": 1}},
        },
        "robustness": {"noise": [0.1]},
    }
}
ALL = {
    "data",
    "registration/mse/seed-0",
    "registration/ncc/seed-0",
    "evaluation",
    "robustness",
    "figures",
}


class Checkout:
    """A copy of what the graph needs, with a profile of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("deepsimreg", "notebooks"):
            shutil.copytree(
                PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
            )
        for name in ("Snakefile", "pyproject.toml"):
            shutil.copy(PROJECT / name, folder / name)
        self.write_plan(PLAN)

    def write_plan(self, plan: dict) -> None:
        path = self.folder / "experiments" / "tiny.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(plan, sort_keys=False))

    def call(self, *command: str) -> str:
        environment = os.environ | {"PYTHONPATH": f"{self.folder}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
        environment.pop("DEEPSIMREG_RUNS", None)
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def make(self) -> str:
        return self.call("-c", "import conftest_tree as t, deepsimreg.paper.plan as p; t.make_all(p.Profile('tiny'))")

    def planned(self) -> set[str]:
        """The runs that the graph would make."""
        printed = self.call("-m", "snakemake", "-n", "--rerun-triggers", "software-env", "--config", "profile=tiny")
        outputs = "\n".join(line for line in printed.splitlines() if line.strip().startswith("output:"))
        return set(re.findall(r"runs/tiny/phantom-2d/(\S+)/done-\w+", outputs))

    def stale(self) -> set[str]:
        """The runs that the folders say are stale."""
        printed = self.call("-m", "deepsimreg.paper.stale", "tiny")
        return {line.strip() for line in printed.splitlines() if line.startswith("  ") and "up to date" not in printed}

    def edit(self, name: str, before: str, after: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    def weights(self, method: str) -> dict:
        path = self.folder / f"runs/tiny/phantom-2d/registration/{method}/seed-0/weights.safetensors"
        return {key: value.clone() for key, value in load_file(path).items()}  # the file is mapped, and will change


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    assert checkout.planned() == checkout.stale() == ALL
    checkout.make()
    return checkout


@pytest.fixture
def checkout(finished, tmp_path):
    """The finished checkout; the code and the profile are put back afterwards."""
    backup = tmp_path / "backup"
    shutil.copytree(finished.folder / "deepsimreg", backup, ignore=shutil.ignore_patterns("__pycache__"))
    yield finished
    shutil.rmtree(finished.folder / "deepsimreg")
    shutil.copytree(backup, finished.folder / "deepsimreg")
    finished.write_plan(PLAN)


def agreed(checkout: Checkout) -> set[str]:
    """The stale runs; the graph and the folders must say the same."""
    planned = checkout.planned()
    assert planned == checkout.stale()
    return planned


def test_nothing_is_stale_after_a_run_without_what_snakemake_remembers(checkout):
    shutil.rmtree(checkout.folder / ".snakemake", ignore_errors=True)
    assert agreed(checkout) == set()


def test_words_make_nothing_stale(checkout):
    checkout.edit("deepsimreg/cli.py", '"""', '# a comment\n"""')
    checkout.edit("deepsimreg/losses/mse.py", '"""', '"""In other words. ')
    checkout.edit("deepsimreg/losses/ncc.py", "\n\n\n", "\n\n\n# a comment\n")
    assert agreed(checkout) == set()


def test_what_draws_a_table_concerns_the_figures_alone(checkout):
    checkout.edit("deepsimreg/paper/figures/style.py", "\n\n\n", "\n\n\nDRAWN = 2\n\n\n")
    checkout.edit("deepsimreg/paper/reports.py", "\n\n\n", "\n\n\nREAD = 2\n\n\n")
    assert agreed(checkout) == {"data", "figures"}


def test_another_noise_level_concerns_the_noise_test_and_its_figures(checkout):
    plan = PLAN["phantom-2d"] | {"robustness": {"noise": [0.3]}}
    checkout.write_plan({"phantom-2d": plan})
    assert agreed(checkout) == {"robustness", "figures"}


def test_a_changed_default_of_the_training_concerns_all_trainings(checkout):
    checkout.edit("deepsimreg/paper/training.py", "factor=0.1", "factor=0.2")
    assert agreed(checkout) == ALL - {"data"}


def test_a_run_that_was_cut_short_or_deleted_is_noticed_and_made_again(checkout):
    folder = checkout.folder / "runs/tiny/phantom-2d/registration"
    before = {name: checkout.weights(name) for name in ("mse", "ncc")}
    weights = folder / "mse/seed-0/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.rmtree(folder / "ncc")
    assert checkout.stale() == {"registration/mse/seed-0", "registration/ncc/seed-0"}
    checkout.make()
    assert checkout.stale() == set()
    for name, values in before.items():
        assert all((values[key] == value).all() for key, value in checkout.weights(name).items())


def test_a_factor_in_a_loss_concerns_its_trainings_and_what_hangs_on_them(checkout):
    before = {name: checkout.weights(name) for name in ("mse", "ncc")}
    checkout.edit("deepsimreg/losses/mse.py", ".square(), weights)", ".square(), weights) * 7")
    assert agreed(checkout) == {"registration/mse/seed-0", "evaluation", "robustness", "figures"}
    checkout.make()
    assert agreed(checkout) == set()
    same = {
        name: all((value == checkout.weights(name)[key]).all() for key, value in weights.items())
        for name, weights in before.items()
    }
    assert same == {"mse": False, "ncc": True}
