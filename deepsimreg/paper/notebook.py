"""Running a notebook with parameters that are checked, and with progress on the terminal.

python -m deepsimreg.paper.notebook run notebooks/03_registration.ipynb runs/mine -p similarity=mse lam=0.02
python -m deepsimreg.paper.notebook refresh [notebooks/03_registration.py …]
"""

import argparse
import itertools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jupytext
import papermill
import yaml
from IPython import get_ipython
from nbclient.exceptions import DeadKernelError

from deepsimreg.paper.experiment import SettingsError, known, writable
from deepsimreg.paper.paths import NOTEBOOKS

SCRUB = (
    "--keep-output",
    "--keep-count",
    "--keep-metadata-keys",
    "metadata.widgets",
    "--extra-keys",
    "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version",
)
STATE, VIEW = (f"application/vnd.jupyter.widget-{what}+json" for what in ("state", "view"))
REFERENCE = "IPY_MODEL_"  # of one widget to another
KERNEL = ["--log-level=50"]  # a kernel prints on the terminal that it was not encrypted, and that it was ended
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


def check_parameters(namespace: Mapping[str, Any]) -> None:
    """Check a notebook's parameters from inside, in the cell below them: names on the first run, types always.

    The parameters cell annotates each name; papermill injects values for names that the notebook may not have.

    Raises:
        SettingsError: a name that is not annotated, or a value of another type.
    """
    declared = namespace["__annotations__"]
    shell = get_ipython()
    if shell is not None and shell.execution_count <= 4:
        ours = {"In", "Out", "exit", "quit", "open", "get_ipython", check_parameters.__name__}
        for name in namespace:
            if not name.startswith("_") and name not in ours:
                known("parameter", name, declared)
    for name, annotation in declared.items():
        kind = annotation if isinstance(annotation, str) else annotation.__name__
        value = namespace[name]
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise SettingsError(f"parameter {name} is {value!r}, but must be of type {kind}")


def run(notebook: Path, folder: Path, parameters: Mapping[str, Any]) -> int:
    """Execute a notebook into `folder/notebook.ipynb`; the notebook itself writes what it makes.

    Args:
        notebook: the .ipynb file.
        folder: the run's folder; its log of steps (metrics.csv) is what the terminal shows.
        parameters: by name; a name that the notebook does not have is an error before anything runs.

    Returns:
        0, or 1 if a cell failed.
    """
    declared = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        known(f"parameter of {notebook.name}", name, declared)
    writable(folder)
    label = " ".join([notebook.stem, *(f"{name}={value}" for name, value in parameters.items())])
    if "folder" in declared:
        parameters = {"folder": str(folder.resolve()), **parameters}
    logging.getLogger("papermill").setLevel(logging.WARNING)
    started, ended = time.time(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder / "metrics.csv", label, started, ended), daemon=True)
    watcher.start()
    print(f"{label}: started", flush=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(folder / "notebook.ipynb"),
            dict(parameters),
            progress_bar=False,
            extra_arguments=KERNEL,
        )
    except papermill.PapermillExecutionError as error:
        print(
            f"{label}: failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"  the notebook as far as it came: {folder / 'notebook.ipynb'}",
            file=sys.stderr,
            flush=True,
        )
        return 1
    except DeadKernelError:
        print(f"{label}: the kernel died; was there enough memory? `make resume` goes on from the last checkpoint")
        return 1
    finally:
        ended.set()
    print(f"{label}: done in {time.time() - started:.0f} s", flush=True)
    return 0


def _watch(metrics: Path, label: str, started: float, ended: threading.Event) -> None:
    """Print the newest step of a training every few seconds."""
    shown = None
    while not ended.wait(10):
        if metrics.is_file() and metrics.stat().st_mtime > started:
            header, *rows = metrics.read_text().splitlines()
            if rows and rows[-1] != shown:
                shown = rows[-1]
                cells = dict(zip(header.split(","), shown.split(","), strict=False))
                values = [f"{name} {value}" for name, value in cells.items() if value]
                print(f"{label}: {', '.join(values)}", flush=True)


def refresh(twin: Path) -> None:
    """Make the committed notebook of a .py twin: convert, execute in place, scrub what differs by machine."""
    notebook = twin.with_suffix(".ipynb")
    jupytext.write(jupytext.read(twin), notebook)
    papermill.execute_notebook(str(notebook), str(notebook), cwd=str(NOTEBOOKS), kernel_name="python3")
    content = jupytext.read(notebook)
    without_closed_bars(content)
    jupytext.write(content, notebook)
    subprocess.run([Path(sys.executable).with_name("nbstripout"), *SCRUB, notebook], check=True)


def without_closed_bars(notebook) -> None:
    """Take out of a notebook node, in place, progress bars that were closed: they show nothing, and weigh much."""
    widgets = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    parts = {name: _parts(model["state"]) for name, model in widgets.items()}
    closed = set()
    for name, model in widgets.items():
        layout = model["state"].get("layout", "").removeprefix(REFERENCE)
        if widgets.get(layout, {}).get("state", {}).get("visibility") == "hidden":
            waiting = [name]
            while waiting:
                closed.add(one := waiting.pop())
                waiting += [part for part in parts.get(one, ()) if part not in closed]
    for name in closed:
        widgets.pop(name, None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("data", {}).get(VIEW, {}).get("model_id") not in closed]


def _parts(state: Mapping[str, Any]) -> list[str]:
    """The models that the state of a widget refers to."""
    values = itertools.chain.from_iterable(v if isinstance(v, list) else [v] for v in state.values())
    return [value.removeprefix(REFERENCE) for value in values if isinstance(value, str) and value.startswith(REFERENCE)]


def _value(text: str) -> Any:
    """A value as YAML reads it; and 1e-05, which YAML takes for text, as a number."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deepsimreg.paper.notebook", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="execute a notebook into a folder")
    runner.add_argument("notebook", type=Path)
    runner.add_argument("folder", type=Path)
    runner.add_argument("-p", "--parameters", nargs="*", default=[], metavar="NAME=VALUE")
    refresher = commands.add_parser("refresh", help="re-make the committed notebooks from their twins")
    refresher.add_argument("twins", type=Path, nargs="*")
    options = parser.parse_args(arguments)
    if options.command == "refresh":
        for twin in options.twins or sorted(NOTEBOOKS.glob("*.py")):
            print(twin.stem, flush=True)
            refresh(twin)
        return 0
    pairs = [text.partition("=") for text in options.parameters]
    parameters = {name: _value(value) for name, _, value in pairs}
    try:
        return run(options.notebook, options.folder, parameters)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
