"""The graph as `make paper` calls it: whoever reads it may leave, and one call at a time works on a profile's runs."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import yaml

from deepsimreg.paper.run import take_lock
from deepsimreg.paths import PROJECT


@pytest.fixture
def graph(tmp_path, runs):
    """Starts the graph of a profile that has data alone."""
    tree = {"phantom-2d": {"data": {"shape": [32, 32], "train": 1, "validation": 1, "test": 1}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    options = {"cwd": PROJECT, "env": os.environ | {"DEEPSIMREG_EXPERIMENTS": str(tmp_path)}, "text": True}
    command = [sys.executable, "-m", "deepsimreg.paper.graph", "mine", "1"]
    started = []

    def start(**given):
        started.append(subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, **options, **given))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the jobs, too
        process.wait()


def test_the_graph_ends_when_its_reader_has_left(graph):
    """As `make paper | head` does: Snakemake by itself waits for ever for the job that runs then."""
    process = graph(stderr=subprocess.STDOUT)
    assert any(": started" in line for line in process.stdout)
    process.stdout.close()
    assert process.wait(120) == -signal.SIGPIPE


def test_a_second_call_says_in_one_line_who_works_on_the_runs(graph, runs):
    (runs / "mine").mkdir(parents=True)
    lock = take_lock(runs / "mine" / ".graph.lock", 0)
    process = graph(stderr=subprocess.PIPE)
    told = process.communicate(timeout=60)[1]
    lock.release()
    assert process.returncode == 1
    assert told.startswith("error: another `make paper` works on runs/mine")
    assert told.count("\n") == 1
