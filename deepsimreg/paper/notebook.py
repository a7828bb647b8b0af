"""Running a notebook with checked parameters, and with progress on the terminal.

python -m deepsimreg.paper.notebook run notebooks/03_registration.ipynb runs/mine -p method=mse lam=0.02
python -m deepsimreg.paper.notebook refresh [notebooks/03_registration.py …]
"""

import csv
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from deepsimreg.paper.errors import SettingsError, check_choice
from deepsimreg.paper.files import writable
from deepsimreg.paper.kernels import lost_answers, this_interpreter
from deepsimreg.paper.paths import NOTEBOOKS
from deepsimreg.paper.processes import recorded

# jsonschema would compile a grammar of IRIs in .6 s, at every start, which no notebook needs.
sys.modules.setdefault("rfc3987_syntax", None)

REMOVED = "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version"
SCRUB = ("--keep-output", "--keep-count", "--keep-metadata-keys", "metadata.widgets", "--extra-keys", REMOVED)
KERNEL = ["--log-level=50"]  # a kernel would print that it is not encrypted, and that it was ended
START = 600  # seconds that a kernel may take to start: on a busy machine, from a slow file system
TYPES = {"str": str, "int": int, "float": float, "bool": bool}
QUIET = {"TQDM_DISABLE": "1"}  # committed notebooks hold no progress bars; those of notebooks do not listen to it
BAR = "%|"  # of a progress bar as text


def checked(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as the types that a notebook declares; text is read as the type says.

    SettingsError for a name that it does not have or a value of another type.
    """
    import papermill
    from pydantic import TypeAdapter, ValidationError

    declared, values = papermill.inspect_notebook(str(notebook)), {}
    for name, value in parameters.items():
        check_choice(f"parameter of {notebook.name}", name, declared)
        kind, what = declared[name]["inferred_type_name"], f"parameter {name} of {notebook.name}"
        try:
            values[name] = TypeAdapter(TYPES[kind]).validate_python(str(value))
        except ValidationError:
            raise SettingsError(f"{what} is {value!r}, but must be of type {kind}") from None
    return values


def run(notebook: Path, folder: Path, parameters: Mapping[str, Any]) -> int:
    """Execute a notebook into `folder/notebook.ipynb`; returns 0, or 1 if a cell failed.

    The notebook itself writes what it makes; the newest row of its log of steps (metrics.csv) is shown now and then.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    parameters = checked(notebook, parameters)
    writable(folder)
    label = " ".join([notebook.stem, *(f"{name}={value}" for name, value in parameters.items())])
    logging.getLogger("papermill").setLevel(logging.WARNING)
    started, ended = time.monotonic(), threading.Event()
    threading.Thread(target=_watch, args=(folder / "metrics.csv", label, ended), daemon=True).start()
    print(f"{label}: started", flush=True)
    target = folder / "notebook.ipynb"
    options = {"progress_bar": False, "extra_arguments": KERNEL, "start_timeout": START}
    try:
        for last in (False, True):
            with recorded(folder), this_interpreter(), lost_answers() as lost:
                try:
                    papermill.execute_notebook(str(notebook), str(target), parameters, **options)
                    break
                except DeadKernelError:
                    if last or not lost:
                        raise
                    print(f"{label}: an answer of the kernel was lost; once more, from what is on disk", flush=True)
    except papermill.PapermillExecutionError as error:
        print(f"{label}: failed in cell {error.exec_count}: {error.ename}: {error.evalue}", file=sys.stderr)
        print(f"  the notebook as far as it came: {target}", file=sys.stderr, flush=True)
        return 1
    except RuntimeError as error:  # of nbclient
        why = "the kernel died; was there enough memory?" if isinstance(error, DeadKernelError) else f"{error}."
        print(f"{label}: {why} The same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        print(
            f"{label}: {error}; if the disk is full, make room: the same command goes on", file=sys.stderr, flush=True
        )
        return 1
    finally:
        ended.set()
    print(f"{label}: done in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _watch(metrics: Path, label: str, ended: threading.Event) -> None:
    """Print the newest step of a training every few seconds."""
    shown, before = None, metrics.stat().st_mtime_ns if metrics.is_file() else 0
    while not ended.wait(10):
        if metrics.is_file() and metrics.stat().st_mtime_ns != before:
            rows = list(csv.DictReader(metrics.read_text(encoding="utf-8").splitlines()))
            if rows and rows[-1] != shown:
                shown = rows[-1]
                values = [f"{name} {value}" for name, value in shown.items() if value]
                print(f"{label}: {', '.join(values)}", flush=True)


def refresh(twin: Path) -> None:
    """Make the committed notebook of a .py twin: convert, execute in place, scrub what differs by machine."""
    import jupytext
    import papermill

    notebook = twin.with_suffix(".ipynb")
    jupytext.write(jupytext.read(twin), notebook)
    os.environ |= QUIET
    with this_interpreter():
        papermill.execute_notebook(str(notebook), str(notebook), cwd=str(NOTEBOOKS), kernel_name="python3")
    _remove_bars(notebook)
    subprocess.run([Path(sys.executable).with_name("nbstripout"), *SCRUB, notebook], check=True)


def _remove_bars(notebook: Path) -> None:
    """Remove progress bars from the outputs: stored, they would stand still at their first step."""
    import nbformat

    content = nbformat.read(notebook, nbformat.NO_CONVERT)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if BAR not in one.get("data", {}).get("text/plain", "")]
    nbformat.write(content, notebook)


@click.group()
def main() -> None:
    """Execute the chapters."""


@main.command("run")
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("-p", "--parameters", is_flag=True, help="NAME=VALUE … follow; an unknown name is an error.")
@click.argument("values", nargs=-1)
def run_command(notebook: Path, folder: Path, parameters: bool, values: tuple[str, ...]) -> None:
    """Execute NOTEBOOK into FOLDER."""
    pairs = [text.partition("=") for text in values]
    try:
        sys.exit(run(notebook, folder, {name: value for name, _, value in pairs}))
    except SettingsError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


@main.command("refresh")
@click.argument("twins", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def refresh_command(twins: tuple[Path, ...]) -> None:
    """Make the committed notebooks anew from their twins (all of them by default)."""
    for twin in twins or sorted(NOTEBOOKS.glob("*.py")):
        click.echo(twin.stem)
        refresh(twin)


if __name__ == "__main__":
    main()
