import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A run root of the test's own."""
    monkeypatch.setenv("DEEPSIMREG_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def denormals():
    """A training flushes them for its whole process; the next test, and Hypothesis, get floats as they are."""
    torch.set_flush_denormal(False)
