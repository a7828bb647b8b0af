"""Where data lie."""

import os
import shutil
import subprocess
import sys

from deepsimreg.paths import PROJECT


def test_the_data_root_outside_of_a_checkout_is_the_callers_folder(tmp_path):
    shutil.copytree(PROJECT / "deepsimreg", tmp_path / "site" / "deepsimreg", ignore=shutil.ignore_patterns("weights"))
    work = tmp_path / "work"
    work.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "DEEPSIMREG_DATA"}
    code = "from deepsimreg.paths import data_root; print(data_root())"
    options = {"cwd": work, "env": environment | {"PYTHONPATH": str(tmp_path / "site")}, "text": True}
    assert subprocess.check_output([sys.executable, "-c", code], **options).strip() == str(work / "data")
