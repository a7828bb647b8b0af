"""Running chapters: parameters, failures, start-up, and processes that outlive their graph."""

import json
import os
import shlex
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from click.testing import CliRunner
from conftest_tree import TREE, D, make_inputs

from deepsimreg.paper import kernels, processes
from deepsimreg.paper import notebook as notebook_module
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.notebook import checked, main, run
from deepsimreg.paper.paths import NOTEBOOKS
from deepsimreg.paper.processes import RECORD, end_all
from deepsimreg.paper.run import IN_GRAPH


@pytest.fixture
def notebook(tmp_path):
    """A notebook of two cells: parameters, and what they came to."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    lines = (
        "lam: float = 0.1  # weight",
        "name: str = ''  # any",
        "steps: int = 3  # how many",
        "on: bool = True  # or off",
    )
    made.cells = [
        nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(repr((lam, name, steps, on)))"),
    ]
    path = tmp_path / "small.ipynb"
    nbformat.write(made, path)
    return path


def call(*arguments):
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


def test_parameters_reach_the_notebook_with_their_types(notebook, tmp_path):
    done = call(notebook, tmp_path / "run", "-p", "lam=1e-05", "name=0.5", "on=false")
    assert done.exit_code == 0, done.output
    executed = nbformat.read(tmp_path / "run" / "notebook.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "(1e-05, '0.5', 3, False)\n"
    assert not (tmp_path / "run" / RECORD).exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lamb=0.5", "unknown parameter of small.ipynb 'lamb'; there is: lam, name, steps, on"),
        ("lam=much", "parameter lam of small.ipynb is 'much', but must be of type float"),
        ("steps=2.5", "parameter steps of small.ipynb is '2.5', but must be of type int"),
        ("on=maybe", "parameter on of small.ipynb is 'maybe', but must be of type bool"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(notebook, tmp_path, value, message):
    done = call(notebook, tmp_path / "run", "-p", value)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "run").exists()


def test_the_kernel_is_this_interpreter_whatever_a_site_calls_python3(notebook, tmp_path, monkeypatch):
    """A cluster's module or JupyterHub sets JUPYTER_PATH; the kernel of that name there is another interpreter."""
    site = tmp_path / "site" / "kernels" / "python3"
    site.mkdir(parents=True)
    spec = {"argv": ["/nonexistent/python", "-f", "{connection_file}"], "display_name": "site", "language": "python"}
    (site / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "site"))
    made = nbformat.read(notebook, 4)
    made.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.executable)"))
    nbformat.write(made, notebook)
    assert run(notebook, tmp_path / "run", {}) == 0
    cells = nbformat.read(tmp_path / "run" / "notebook.ipynb", 4).cells
    assert cells[-1].outputs[0].text.strip() == sys.executable


def test_a_failing_cell_is_reported_and_the_notebook_kept(runs, tmp_path, capsys):
    assert run(NOTEBOOKS / "03_registration.ipynb", tmp_path / "run", {"method": "ssim"}) == 1
    assert "unknown similarity of the profile 'ssim'; there is: mse, deepsim-ae" in capsys.readouterr().err
    assert (tmp_path / "run" / "notebook.ipynb").is_file()


def test_a_registration_network_without_steps_goes_through_its_chapter(runs, tmp_path, capsys, monkeypatch):
    """In the graph, which makes what a run names and no more: a network with a grey-value loss names no extractor."""
    monkeypatch.setenv(IN_GRAPH, "1")
    folder = tmp_path / "run"
    parameters = {"method": "mse", "steps": "0", "folder": str(folder)}
    assert run(NOTEBOOKS / "03_registration.ipynb", folder, parameters) == 0, capsys.readouterr().err
    cells = nbformat.read(folder / "notebook.ipynb", 4).cells
    assert any("initial weights, not trained" in str(cell.get("outputs")) for cell in cells)


def test_the_chapter_of_tuning_needs_the_tunings_alone(profile, tmp_path, capsys, monkeypatch):
    """The graph may come to it before the evaluation or the single pairs: it shows their tables where there are any."""
    plan = profile(TREE)
    chapter = plan.chapter(D, "tuning")
    make_inputs(plan, chapter)
    monkeypatch.setenv(IN_GRAPH, "1")
    monkeypatch.setenv("DEEPSIMREG_EXPERIMENTS", str(tmp_path / "experiments"))
    parameters = {"profile": plan.name, "dataset": D}
    assert run(NOTEBOOKS / "05_tuning.ipynb", chapter.folder, parameters) == 0, capsys.readouterr().err
    assert chapter.current


def test_a_folder_that_cannot_be_written(notebook, tmp_path):
    with pytest.raises(SettingsError, match="cannot be written"):
        run(notebook, notebook / "below-a-file", {})


def test_the_chapters_parameters_are_annotated():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        checked(path, {})


def test_the_parent_of_a_job_stays_light():
    code = "import sys, deepsimreg.paper.notebook as n; import papermill; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "lightning", "matplotlib", "scipy", "snakemake", "SimpleITK"} & {*loaded}


def test_what_outlives_its_graph_is_ended_with_its_kernel_and_nothing_else(runs, notebook, tmp_path):
    slow = nbformat.read(notebook, 4)
    slow.cells.append(nbformat.v4.new_code_cell("import time\ntime.sleep(600)"))
    nbformat.write(slow, notebook)
    folder, other = runs / "a.b" / "data" / "run", runs / "a-b" / "data" / "run"
    command = [sys.executable, "-m", "deepsimreg.paper.notebook", "run", str(notebook)]
    graph = os.environ | {processes.IN_GRAPH: "1"}
    ours, theirs = (subprocess.Popen([*command, str(place)], env=graph) for place in (folder, other))
    try:
        deadline = time.time() + 60
        started = ((folder, ours), (other, theirs))
        while not all((place / RECORD).is_file() and psutil.Process(p.pid).children() for place, p in started):
            assert time.time() < deadline
            time.sleep(0.2)
        kernels = psutil.Process(ours.pid).children(recursive=True)
        assert end_all("a.b") == 1 + len(kernels)
        ours.wait(10)
        assert not any(kernel.is_running() and kernel.status() != psutil.STATUS_ZOMBIE for kernel in kernels)
        assert theirs.poll() is None
        assert end_all("a.b") == 0
    finally:
        end_all("a-b")
        theirs.wait(10)


def written(folder, pid, **changes):
    """The record of a process, as that process would write it."""
    (folder / RECORD).write_text(json.dumps(processes.record(psutil.Process(pid)) | changes))


def test_a_record_of_another_process_ends_nothing(runs):
    folder = runs / "mine"
    folder.mkdir(parents=True)
    written(folder, os.getpid(), started=99.0)
    assert end_all("mine") == 0
    assert not (folder / RECORD).exists()


LOSES = """
from pathlib import Path
mark = Path({mark!r})
if not mark.exists():
    mark.touch()
    session = get_ipython().kernel.session
    send = session.send
    session.send = lambda stream, what, *more, **options: (
        None if what == "execute_reply" else send(stream, what, *more, **options)
    )
"""


def test_a_kernel_whose_answer_was_lost_is_ended_and_the_notebook_run_once_more(
    notebook, tmp_path, monkeypatch, capsys
):
    """The cell drops its own answer: the kernel is idle, and the client would wait for ever."""
    monkeypatch.setattr(kernels, "PATIENCE", 2.0)
    made = nbformat.read(notebook, 4)
    made.cells.append(nbformat.v4.new_code_cell(LOSES.format(mark=str(tmp_path / "mark"))))
    made.cells.append(nbformat.v4.new_code_cell("import time\ntime.sleep(4)\nprint('to the end')"))
    nbformat.write(made, notebook)
    assert run(notebook, tmp_path / "run", {}) == 0
    assert "small: an answer of the kernel was lost; once more, from what is on disk" in capsys.readouterr().out
    assert nbformat.read(tmp_path / "run" / "notebook.ipynb", 4).cells[-1].outputs[0].text == "to the end\n"


def test_a_kernel_that_dies_is_said_with_the_remedy(notebook, tmp_path, capsys):
    made = nbformat.read(notebook, 4)
    made.cells.append(nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    nbformat.write(made, notebook)
    assert run(notebook, tmp_path / "run", {}) == 1
    assert "small: the kernel died; was there enough memory? The same command goes on" in capsys.readouterr().err


def test_a_kernel_that_does_not_start_is_one_line(notebook, tmp_path, monkeypatch, capfd):
    slow = "import sys, time\nif 'ipykernel_launcher' in sys.orig_argv:\n    time.sleep(60)\n"
    (tmp_path / "sitecustomize.py").write_text(slow)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(notebook_module, "START", 1)
    assert run(notebook, tmp_path / "run", {}) == 1
    assert "small: Kernel didn't respond in 1 seconds. The same command goes on" in capfd.readouterr().err


def test_a_notebook_that_cannot_be_written_is_one_line(notebook, tmp_path, capsys):
    (tmp_path / "run" / "notebook.ipynb").mkdir(parents=True)
    assert run(notebook, tmp_path / "run", {}) == 1
    assert "notebook.ipynb'; if the disk is full, make room: the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"pid": "x", "started": 1}'])
def test_a_damaged_record_ends_nothing(runs, content):
    (runs / "mine").mkdir(parents=True)
    (runs / "mine" / RECORD).write_text(content)
    assert end_all("mine") == 0


def test_a_record_of_another_machine_is_left_alone(runs):
    """A file system that several machines see: the same process id is another process there."""
    folder = runs / "mine"
    folder.mkdir(parents=True)
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    for elsewhere in ({"host": "elsewhere"}, {"job": "17"}):
        written(folder, own.pid, **elsewhere)
        assert end_all("mine") == 0
        assert own.poll() is None
    written(folder, own.pid)
    assert end_all("mine") == 1
    own.wait(10)


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m deepsimreg.paper.stale | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 1, "")
