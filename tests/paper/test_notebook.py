import subprocess
import sys

import nbformat
import pytest

from deepsimreg.paper.experiment import SettingsError
from deepsimreg.paper.notebook import STATE, VIEW, check_parameters, main, run, without_closed_bars
from deepsimreg.paper.paths import NOTEBOOKS


@pytest.fixture
def notebook(tmp_path):
    """A notebook of three cells: parameters, their check, and what they came to."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made.cells = [
        nbformat.v4.new_code_cell(
            "lam: float = 0.1  # weight\nname: str = ''  # any", metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(
            "from deepsimreg.paper.notebook import check_parameters as check\n\ncheck(globals())"
        ),
        nbformat.v4.new_code_cell("print(lam, name)"),
    ]
    path = tmp_path / "small.ipynb"
    nbformat.write(made, path)
    return path


def test_parameters_reach_the_notebook(notebook, tmp_path):
    assert main(["run", str(notebook), str(tmp_path / "run"), "-p", "lam=1e-05", "name=a"]) == 0
    executed = nbformat.read(tmp_path / "run" / "notebook.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "1e-05 a\n"


def test_unknown_parameter_is_refused_before_anything_runs(notebook, tmp_path, capsys):
    assert main(["run", str(notebook), str(tmp_path / "run"), "-p", "lamb=0.5"]) == 2
    assert "unknown parameter of small.ipynb 'lamb'; there is: lam, name" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_parameter_is_refused_by_the_notebook_itself(notebook, tmp_path):
    command = [sys.executable, "-m", "papermill", notebook, tmp_path / "out.ipynb", "-p", "lamb", "0.5"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "unknown parameter 'lamb'; there is: lam, name" in result.stderr


def test_value_of_another_type_fails_the_run_with_its_message(notebook, tmp_path, capsys):
    assert main(["run", str(notebook), str(tmp_path / "run"), "-p", "lam=much"]) == 1
    assert "parameter lam is 'much', but must be of type float" in capsys.readouterr().err


def test_types_are_checked_outside_a_notebook_too():
    namespace = {"__annotations__": {"steps": int, "on": bool}, "steps": 3, "on": True}
    check_parameters(namespace)
    with pytest.raises(SettingsError, match="parameter steps is True, but must be of type int"):
        check_parameters(namespace | {"steps": True})


def test_run_into_a_folder_that_cannot_be_written(notebook, tmp_path):
    with pytest.raises(SettingsError, match="cannot be written"):
        run(notebook, notebook / "below-a-file", {})


def test_unknown_similarity_fails_at_the_start(runs, tmp_path, capsys):
    arguments = ["run", str(NOTEBOOKS / "03_registration.ipynb"), str(tmp_path / "run"), "-p", "method=ssim"]
    assert main(arguments) == 1
    assert "unknown similarity 'ssim'; there is: mse, ncc" in capsys.readouterr().err


def test_closed_progress_bars_leave_nothing_and_open_ones_stay():
    def bar(name, visibility):
        layout = {"state": {"visibility": visibility}}
        box = {"state": {"layout": f"IPY_MODEL_{name}-layout", "children": [f"IPY_MODEL_{name}-text"]}}
        return {name: box, f"{name}-layout": layout, f"{name}-text": {"state": {"value": "3/3"}}}

    def view(name):
        return nbformat.v4.new_output("display_data", {VIEW: {"model_id": name}, "text/plain": name})

    outputs = [view("done"), view("open"), nbformat.v4.new_output("stream", text="a line")]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell("work()", outputs=outputs)],
        metadata={"widgets": {STATE: {"state": bar("done", "hidden") | bar("open", None)}}},
    )
    without_closed_bars(notebook)
    assert set(notebook.metadata.widgets[STATE].state) == {"open", "open-layout", "open-text"}
    assert notebook.cells[1].outputs == outputs[1:]
    plain = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs[2:])])
    without_closed_bars(plain)
    assert plain.cells[0].outputs == outputs[2:]
