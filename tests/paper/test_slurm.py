"""A profile's runs as jobs: who shares one, what it asks for, its script, and the command that submits and watches.

`sbatch` and `squeue` are stand-ins here that keep a queue in a folder, but for the last test, which takes a real Slurm
where this machine is the only node of one (slurm.conf and two daemons are enough, see its own documentation).
"""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest_tree import FIT, SMALL, TREE, D

from deepsimreg.paper import slurm
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.run import take_lock
from deepsimreg.paper.slurm import HEAD, grouped, key, main, queue, script
from deepsimreg.paths import PROJECT

PAPER = ("phc-u373", "platelet-em", "brain-mri", "neurite-oasis-3d", "neurite-oasis-2d", "hippocampus-mr")
SMALLEST = {
    D: {
        "data": {"shape": [32, 32], "train": 3, "validation": 2, "test": 2},
        "registration": {"network": SMALL, "fit": FIT, "similarities": {"mse": {"lam": 1}}},
        "resources": {"default": {"memory": 2000, "minutes": 30}},
    }
}
SBATCH = """#!/bin/sh
number=$(($(ls "$QUEUE" | wc -l) + 101))
[ "$number" -le "${ROOM:-999}" ] || { echo "too many jobs" >&2; exit 1; }
for word; do case "$word" in
  --comment=*) comment=${word#--comment=};;
  --dependency=*) echo "$number ${word#--dependency=afterany:}" >> "$QUEUE.after";;
esac; done
echo "$number|PENDING|Priority|$comment" > "$QUEUE/$number"
cat > "$QUEUE.script"
echo "$number;cluster"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$QUEUE.updates"
"""
SQUEUE = """#!/bin/sh
echo >> "$QUEUE.calls"
[ "$(wc -l < "$QUEUE.calls")" -ne "${FAILS:-0}" ] || { echo "timed out" >&2; exit 1; }
[ "$(wc -l < "$QUEUE.calls")" -gt "${ENDED:-999}" ] || cat "$QUEUE"/* 2>/dev/null
exit 0
"""


def tree(**resources):
    return {D: TREE[D] | {"resources": resources}}


def paper():
    return Profile("paper", dict.fromkeys(PAPER, "0"))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands, and their queue. ENDED: squeues after which no job is left; FAILS: one of all."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    return tmp_path / "queue"


# which runs share a job, and what it asks for


@pytest.mark.parametrize("make", [paper, None], ids=["paper", "tiny"])
def test_jobs_hold_every_run_once_and_wait_in_one_direction(profile, make):
    plan = make() if make else profile(tree(default={"minutes": 10, "together": 30}))
    runs = plan.all_runs().values()
    groups = grouped(runs)
    place = {key(run): index for index, group in enumerate(groups) for run in group}
    assert len(place) == len(runs) == sum(map(len, groups))
    assert all(place[key(one)] < place[key(run)] for run in runs for one in run.inputs)
    assert len(groups) < len(runs)
    for group in groups:
        (need,) = {run.resources for run in group}
        assert len(group) == 1 or len(group) * need.minutes <= need.together
        assert len(" ".join(map(key, group))) < 1024


def test_runs_that_are_made_already_change_no_direction(profile):
    runs = [*profile(tree(default={"minutes": 10})).all_runs().values()]
    for kept in (runs[::2], runs[5:], runs[:7]):
        place = {key(run): index for index, group in enumerate(grouped(kept)) for run in group}
        assert all(place[key(one)] < place[key(run)] for run in kept for one in run.inputs if key(one) in place)


def test_each_training_asks_for_what_the_profile_says_of_its_stage(profile):
    given = {"registration": {"gpu": 1, "minutes": 600}, "ablations": {"minutes": 60}, "evaluation": {"memory": 9000}}
    runs = profile(tree(default={"minutes": 5}, **given)).all_runs()
    minutes = {name.removeprefix(f"{D}/"): run.resources.minutes for name, run in runs.items()}
    assert minutes["registration/mse/seed-0"] == minutes["tuning/mse/lam-1.0"] == 600
    assert minutes["ablation/level-1/seed-0"] == 60
    assert minutes["tuning"] == minutes["figures"] == minutes["extractor-seg"] == 5
    tests = [runs[f"{D}/{name}"].resources.memory for name in ("evaluation", "ablations", "robustness", "tuning")]
    assert tests == [9000, 9000, 9000, 4000]
    tuned = profile(tree(registration={"minutes": 600}, tuning={"minutes": 9})).all_runs()[f"{D}/tuning/mse/lam-1.0"]
    assert tuned.resources.minutes == 9


def test_a_job_has_a_cpu_for_each_process_unless_the_profile_says_otherwise(profile):
    registration = TREE[D]["registration"] | {"fit": FIT | {"workers": 4}}
    runs = profile({D: TREE[D] | {"registration": registration}}).all_runs()
    assert runs[f"{D}/registration/mse/seed-0"].resources.cpus == 5
    assert runs[f"{D}/extractor-seg"].resources.cpus == runs[f"{D}/evaluation"].resources.cpus == 1
    named = {D: TREE[D] | {"registration": registration, "resources": {"registration": {"cpus": 2}}}}
    assert profile(named).all_runs()[f"{D}/registration/mse/seed-0"].resources.cpus == 2


def test_the_page_on_clusters_says_how_many_jobs_the_paper_comes_to():
    runs = paper().all_runs().values()
    assert f"{len(runs)} runs in {len(grouped(runs))} jobs" in (PROJECT / "docs" / "cluster.md").read_text()


# the script


def test_the_script_makes_what_is_missing_passes_over_the_rest_and_names_a_missing_input(
    profile, tmp_path, monkeypatch
):
    monkeypatch.setenv("DEEPSIMREG_RUNS", str(tmp_path / "it's a folder"))
    runs = profile(SMALLEST).all_runs()
    monkeypatch.setenv("DEEPSIMREG_EXPERIMENTS", str(tmp_path / "experiments"))
    text = script([runs[f"{D}/evaluation"], runs[f"{D}/data"]])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSIMREG_")}

    def job():
        return subprocess.run(["bash"], input=text, env=clean, cwd=PROJECT, capture_output=True, text=True, check=False)

    first, again = job(), job()
    assert runs[f"{D}/data"].current, first.stdout + first.stderr
    missing = f"=== {D}/evaluation\nnot made, since its input is missing: {runs[f'{D}/registration/mse/seed-0'].mark}\n"
    assert first.stdout.startswith(f"{missing}=== {D}/data\n01_data")
    assert again.stdout == missing
    assert first.returncode == again.returncode == 1


@pytest.mark.parametrize(("restarts", "requeued"), [("0", True), ("20", False)])
def test_a_job_whose_time_is_nearly_up_goes_back_into_the_queue_but_not_for_ever(tmp_path, restarts, requeued):
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    text = f"{HEAD}make_run slow {tmp_path}/mark 'sleep 3; touch {tmp_path}/mark'\necho \"end $failed\"\n"
    (tmp_path / "job.sh").write_text(text)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": restarts}
    options = {"env": environment, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(["bash", str(tmp_path / "job.sh")], **options) as job:
        assert job.stdout.readline() == "=== slow\n"
        job.send_signal(signal.SIGUSR1)  # to the script alone, as `--signal=B:` says
        assert "nearly up" in job.stdout.readline()
        if requeued:
            deadline = time.time() + 20
            while not (tmp_path / "asked").is_file() and time.time() < deadline:
                time.sleep(0.05)
            os.killpg(job.pid, signal.SIGKILL)  # what Slurm does with a job that it requeues
            assert (tmp_path / "asked").read_text() == "requeue 17\n"
            assert not (tmp_path / "mark").exists()
        else:
            assert job.stdout.read() == "end 0\n"
            assert (tmp_path / "mark").exists()
            assert not (tmp_path / "asked").exists()


# the command


def comments(cluster):
    return Counter(word for path in cluster.iterdir() for word in path.read_text().strip().split("|")[3].split())


def test_jobs_wait_for_the_jobs_of_their_inputs_and_none_is_submitted_twice(profile, cluster, monkeypatch):
    runs = profile(tree(default={"together": 0})).all_runs()
    monkeypatch.setenv("FAILS", "3")  # a queue that does not answer is not an empty one
    monkeypatch.setenv("ENDED", "4")
    for _ in range(2):
        with pytest.raises(SettingsError, match=rf"{len(runs)} runs are not finished:\n  {D}/data: not started"):
            main("mine", 0)
        assert len(cluster.with_suffix(".calls").read_text()) == 5
        cluster.with_suffix(".calls").unlink()
    assert comments(cluster) == Counter(map(key, runs.values()))
    numbers = {path.read_text().split("|")[3].strip(): path.name for path in cluster.iterdir()}
    after = dict(line.split() for line in cluster.with_suffix(".after").read_text().splitlines())
    for run in runs.values():
        wanted = {numbers[key(one)] for one in run.inputs}
        assert {*after.get(numbers[key(run)], "").split(":")} - {""} == wanted


def test_what_has_left_the_queue_is_submitted_again_and_waited_for(profile, cluster, monkeypatch):
    runs = profile(tree(default={"together": 0})).all_runs()
    monkeypatch.setenv("ENDED", "3")
    with pytest.raises(SettingsError, match="not finished"):
        main("mine", 0)
    cluster.with_suffix(".calls").unlink()
    cluster.with_suffix(".after").unlink()
    numbers = {path.read_text().split("|")[3].strip(): path.name for path in cluster.iterdir()}
    gone, extractor = (runs[f"{D}/{name}"] for name in ("registration/deepsim-ae/seed-1", "extractor-ae"))
    (cluster / numbers[key(gone)]).write_text("900|RUNNING|None|of someone else\n")
    with pytest.raises(SettingsError, match="not finished"):
        main("mine", 0)
    assert comments(cluster) == Counter([*map(key, runs.values()), "of", "someone", "else"])
    numbers[key(gone)] = str(101 + len(runs))
    assert cluster.with_suffix(".after").read_text() == f"{numbers[key(gone)]} {numbers[key(extractor)]}\n"
    updates = [re.findall(r"\d+", line) for line in cluster.with_suffix(".updates").read_text().splitlines()]
    assert {(user, *sorted(after)) for user, *after in updates} == {
        (numbers[key(run)], *sorted(numbers[key(one)] for one in run.inputs))
        for run in runs.values()
        if gone in run.inputs
    }


def test_what_the_cluster_does_not_take_at_once_is_submitted_later(profile, cluster, monkeypatch, capsys):
    runs = profile(tree(default={"together": 0})).all_runs()
    monkeypatch.setenv("ROOM", "105")
    monkeypatch.setenv("ENDED", "4")
    with pytest.raises(SettingsError, match="sbatch: too many jobs"):
        main("mine", 0)
    assert "sbatch: too many jobs; tried again while other jobs run" in capsys.readouterr().out
    assert len([*cluster.iterdir()]) == 5
    cluster.with_suffix(".calls").unlink()
    monkeypatch.setenv("ROOM", "999")
    with pytest.raises(SettingsError, match="not finished"):
        main("mine", 0)
    assert comments(cluster) == Counter(map(key, runs.values()))


def test_a_run_that_failed_is_named_with_the_last_words_of_its_newest_log(profile, cluster, monkeypatch, runs):
    planned = profile(SMALLEST).all_runs()
    logs = runs / "mine" / "logs"
    logs.mkdir(parents=True)
    said = f"=== {D}/data\n01_data: started\n01_data: failed in cell 2: OSError: no space\n  the notebook: here\n"
    (logs / "7.log").write_text(f"{said}=== failed: {D}/data\n=== {D}/evaluation\nslurmstepd: error: oom_kill\n")
    (logs / "6.log").write_text(f"=== {D}/data\nolder words\n")
    os.utime(logs / "6.log", (1, 1))
    monkeypatch.setenv("ENDED", "0")
    with pytest.raises(SettingsError) as error:
        main("mine", 0)
    assert f"\n  {D}/data: 01_data: failed in cell 2: OSError: no space ({logs}/7.log)\n" in str(error.value)
    assert f"\n  {D}/evaluation: slurmstepd: error: oom_kill ({logs}/7.log)\n" in str(error.value)
    assert f"{len(planned)} runs are not finished" in str(error.value)
    assert "the same command submits what is missing" in str(error.value)


def test_two_heads_and_a_machine_without_slurm_are_refused(profile, cluster, runs, monkeypatch):
    profile(SMALLEST)
    (runs / "mine").mkdir(parents=True)
    with take_lock(runs / "mine" / ".submit.lock"), pytest.raises(SettingsError, match="another process submits"):
        main("mine", 0)
    assert not [*cluster.iterdir()]
    monkeypatch.setattr(slurm.shutil, "which", lambda _: None)
    with pytest.raises(SettingsError, match=r"no sbatch: call this on a cluster's login node"):
        main("mine", 0)


def test_sbatch_holds_the_lock_if_its_head_is_killed(profile, cluster, tmp_path, monkeypatch, runs):
    """Else a second head could ask for the queue before the job of the first is in it."""
    profile(SMALLEST)
    monkeypatch.setenv("DEEPSIMREG_EXPERIMENTS", str(tmp_path / "experiments"))
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/sbatch.pid\nexec sleep 60\n")
    with subprocess.Popen([sys.executable, "-m", "deepsimreg.paper.slurm", "mine"]) as head:
        deadline = time.time() + 60
        while not (tmp_path / "sbatch.pid").is_file() and time.time() < deadline:
            time.sleep(0.05)
        head.kill()
    with pytest.raises(SettingsError, match="another process submits"):
        main("mine", 0)
    os.kill(int((tmp_path / "sbatch.pid").read_text()), signal.SIGKILL)
    take_lock(runs / "mine" / ".submit.lock", timeout=5).release()


def test_an_interrupted_watch_says_that_the_jobs_go_on(profile, cluster, tmp_path, monkeypatch):
    profile(SMALLEST)
    monkeypatch.setenv("DEEPSIMREG_EXPERIMENTS", str(tmp_path / "experiments"))
    words, pipes = [sys.executable, "-m", "deepsimreg.paper.slurm", "mine"], {"stdout": subprocess.PIPE, "text": True}
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background shell ignores it
    with subprocess.Popen(words, **pipes, **default) as head:
        deadline = time.time() + 60
        while not [*cluster.iterdir()] and time.time() < deadline:
            time.sleep(0.05)
        head.send_signal(signal.SIGINT)
        assert "the jobs go on (squeue --me); the same command watches again" in head.communicate(timeout=30)[0]
    assert head.returncode == 130


def local_slurm() -> bool:
    """Whether jobs run on this machine, so that they see the folder of a test."""
    if not shutil.which("sbatch"):
        return False
    nodes = subprocess.run(["sinfo", "-h", "-o", "%n %T"], capture_output=True, text=True, check=False).stdout.split()
    return (
        nodes[:1] == [platform.node().split(".")[0]] and len(nodes) == 2 and nodes[1] in ("idle", "mixed", "allocated")
    )


@pytest.mark.skipif(not local_slurm(), reason="no Slurm whose only node is this machine")
def test_a_real_slurm_makes_each_run_once_though_the_head_is_killed(profile, tmp_path, monkeypatch, runs):
    planned = profile(SMALLEST).all_runs()
    monkeypatch.setenv("DEEPSIMREG_EXPERIMENTS", str(tmp_path / "experiments"))
    with subprocess.Popen([sys.executable, "-m", "deepsimreg.paper.slurm", "mine"]) as head:
        deadline = time.time() + 60
        while key(planned[f"{D}/data"]) not in queue() and time.time() < deadline:
            time.sleep(0.05)
        head.kill()
    main("mine", 2)
    assert all(run.current for run in planned.values())
    texts = "".join(path.read_text() for path in (runs / "mine" / "logs").glob("*.log"))
    assert Counter(re.findall(r"^=== (.*)$", texts, re.MULTILINE)) == Counter([*planned])
