"""What keeps the project in one piece: pins, twins, executed notebooks, README."""

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deepsimreg.paper.paths import NOTEBOOKS
from deepsimreg.paper.readme import FILES, filled
from deepsimreg.paths import PROJECT


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


LOCK = {canonical(r.name): r for r in map(Requirement, (PROJECT / "requirements.lock").read_text().split())}
DOCS = PROJECT / "docs"
TWINS = sorted(NOTEBOOKS.glob("*.py"))
NAMES = [twin.stem for twin in TWINS]


def test_lock_pins_exactly():
    assert len(LOCK) > 50
    assert all(str(r.specifier).startswith("==") for r in LOCK.values())


def test_pyproject_asks_for_lower_bounds_that_the_lock_meets():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        if requirement.name == "deepsimreg":
            continue
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        (pin,) = LOCK[canonical(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), requirement
    assert project["requires-python"] == ">=3.11"


def test_the_library_needs_no_more_than_it_says():
    """What its floor imports, at any depth, is a dependency or part of Python."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    declared = {canonical(Requirement(text).name) for text in project["dependencies"]}
    imported = set()
    for path in (PROJECT / "deepsimreg").rglob("*.py"):
        if path.relative_to(PROJECT / "deepsimreg").parts[0] not in ("data", "paper"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.split(".")[0])
    optional = {"monai", "matplotlib"}  # of the extras transmorph and report, with messages that say so
    ours = imported - set(sys.stdlib_module_names) - optional - {"deepsimreg"}
    assert {canonical(name) for name in ours} <= declared


def test_environment_and_makefile_install_the_lock():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    assert "python=3.11" in environment["dependencies"]
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.lock", "-e ."]}
    assert "-r requirements.lock" in (PROJECT / "Makefile").read_text()
    assert (PROJECT / ".ci" / "run").read_text().strip().splitlines()[-1] == "make test"


def test_installed_versions_are_the_locked_ones():
    for name, requirement in LOCK.items():
        assert metadata.version(name).split("+")[0] in requirement.specifier, name


def test_every_pin_takes_every_python_3_11():
    """Debian 12 has 3.11.2; pip would only say that it finds no such version."""
    for name in LOCK:
        asked = metadata.metadata(name)["Requires-Python"]
        assert SpecifierSet(asked or "").contains("3.11.0"), f"{name} asks for Python {asked}"


def cells(notebook):
    return [
        (cell.cell_type, cell.source.strip(), tuple(cell.metadata.get("tags", ())))
        for cell in notebook.cells
        if cell.source.strip()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_twins_agree(name):
    assert cells(jupytext.read(NOTEBOOKS / f"{name}.ipynb")) == cells(jupytext.read(NOTEBOOKS / f"{name}.py"))


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_was_executed_and_shows_no_machine(name):
    text = (NOTEBOOKS / f"{name}.ipynb").read_text()
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert len(text) < 1.5e6
    assert not re.search(r"\d%\|", text), "a progress bar that stands still"
    assert not re.search(r'"[^"]*/(home|root|Users|tmp|work)/', re.sub(r'"image/png": "[^"]*"', "", text))


def test_the_network_of_the_chapter_that_trains_one_registers():
    """Dice of the committed chapter's validation pairs rises by more than a hundredth."""
    outputs = [str(cell.get("outputs")) for cell in jupytext.read(NOTEBOOKS / "03_registration.ipynb").cells]
    (gain,) = re.findall(r"changes the mean Dice of the validation pairs by ([+-]\d\.\d+)", "".join(outputs))
    assert float(gain) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_notebook_reads_well(name):
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
    parameters = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(parameters) == 1
    assert all(re.fullmatch(r"\w+: \w+ = .+  # .+", line) for line in parameters[0].source.splitlines())
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 20, cell.source


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_tables_are_those_of_the_result_files(path):
    text = path.read_text()
    assert filled(text) == text


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in DOCS.glob("*.md"))])
def test_links_of_the_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", (PROJECT / page).read_text()):
        assert (PROJECT / page).parent.joinpath(link).exists(), link


def test_the_chapters_link_to_their_neighbours():
    """In the order of their numbers."""
    for before, after in itertools.pairwise(NAMES):
        first = [jupytext.read(NOTEBOOKS / f"{name}.py").cells[0].source for name in (before, after)]
        assert f"({after}.ipynb) →" in first[0]
        assert f"← [{before[:2]} " in first[1]
        assert f"]({before}.ipynb)" in first[1]


PYTHON = """#!/bin/sh
case "$1" in
-c) exit 0;;
esac
mkdir -p .venv/bin
if [ ! -e tried ]; then touch tried .venv/bin/python; chmod +x .venv/bin/python; exit 130; fi
printf '#!/bin/sh\\necho "$@" >> installed.txt\\n' > .venv/bin/python
chmod +x .venv/bin/python
"""


def test_an_interrupted_installation_starts_anew(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    command = ["make", ".venv/installed", f"PYTHON={python}"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert "-r requirements.lock" in (tmp_path / "installed.txt").read_text()


def test_an_arrow_that_points_up_is_refused(tmp_path):
    """The contract of `make lint`, on the package as it is and with a library module that imports the paper."""
    shutil.copytree(PROJECT / "deepsimreg", tmp_path / "deepsimreg", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    lint = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}, "capture_output": True, "text": True}
    kept = subprocess.run(lint, check=False, **options)
    assert kept.returncode == 0, kept.stdout
    with (tmp_path / "deepsimreg" / "losses" / "mse.py").open("a") as file:
        file.write("\n\ndef wrong():\n    from deepsimreg.paper.run import Run\n\n    return Run\n")
    broken = subprocess.run(lint, check=False, **options)
    assert broken.returncode != 0
    assert "deepsimreg.losses.mse -> deepsimreg.paper.run" in broken.stdout


def test_the_measurement_of_speed_compares_both_methods_on_one_pair():
    command = [sys.executable, str(PROJECT / "experiments" / "speed.py"), "40x44", "--repeats", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in printed.splitlines() if line.endswith(("ncc-25", "greedy"))]
    assert [row[-1] for row in rows] == ["ncc-25", "greedy"]
    assert all(0 < float(row[2]) < 0.5 for row in rows), "doing nothing leaves 1.5 voxels"
