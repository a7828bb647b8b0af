"""The runs of a profile as jobs of a Slurm cluster: submitted, then watched.

python -m deepsimreg.paper.slurm paper

A job is a bash script that makes a few runs one after the other. It needs nobody once it is in the queue: it waits for
the jobs that make its inputs, goes back into the queue before its time is up or when its node is lost, and passes over
runs that are finished. The comment of a job holds the keys of its runs, so the queue itself says what has been
submitted: this command may be killed at any moment and called again. Accounting is not asked for anything.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout
from tqdm import tqdm

from deepsimreg.paper.errors import SettingsError, run_main
from deepsimreg.paper.files import writable
from deepsimreg.paper.identity import digest
from deepsimreg.paper.paths import runs_root
from deepsimreg.paper.plan import Profile, command
from deepsimreg.paper.run import Run, take_lock
from deepsimreg.paths import PROJECT

AT_MOST = 50  # runs of a job: a comment holds 1,024 characters
NOTICE = 120  # seconds before its time is up at which a job goes back into the queue
ORDINARY = {"None", "Resources", "Priority", "Dependency", "BeginTime", "Cleaning"}  # reasons to wait that pass
HEAD = r"""#!/bin/bash
failed=0
trap requeue USR1  # sent by Slurm before the time is up
requeue() {
  if [ "${SLURM_RESTART_COUNT:-0}" -ge 20 ]; then echo "=== the time is nearly up; 21 starts are enough"; return; fi
  echo "=== the time is nearly up: back into the queue"
  scontrol requeue "$SLURM_JOB_ID" && sleep infinity
}
make_run() {  # NAME MARK COMMAND INPUT…
  local name=$1 mark=$2 command=$3 input
  shift 3
  [ -e "$mark" ] && return
  echo "=== $name"
  for input; do
    [ -e "$input" ] || { echo "not made, since its input is missing: $input"; failed=1; return; }
  done
  eval "$command" &
  until wait $!; [ $? -le 128 ] || ! kill -0 $! 2>/dev/null; do :; done  # a signal interrupts wait
  [ -e "$mark" ] || { echo "=== failed: $name"; failed=1; }
}
"""


class Job(NamedTuple):
    number: str
    state: str
    reason: str  # for waiting


def key(run: Run) -> str:
    """What names a run in the queue: its folder and identity, in sixteen digits."""
    return digest(str(run.mark))


def call(*words: str, **options) -> str:
    """What one of Slurm's commands prints. SettingsError with what it complains of."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, **options)
    if done.returncode:
        raise SettingsError(f"{words[0]}: {done.stderr.strip()}")
    return done.stdout


def queue() -> dict[str, Job]:
    """The jobs of this user that have not ended, by the keys of their runs."""
    rows = [line.split("|", 3) for line in call("squeue", "--me", "--noheader", "--format=%i|%T|%r|%k").splitlines()]
    return {word: Job(*row[:3]) for row in rows for word in row[3].split()}


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs of each job; a job needs none but those before it.

    Runs share a job if they are of one dataset, ask for the same and are as deep in the graph, so jobs wait in one
    direction alone; and as long as their minutes add up to no more than `together`.
    """
    depth = cache(lambda run: 1 + max(map(depth, run.inputs), default=0))
    shared: dict[tuple, list[list[Run]]] = {}
    for run in sorted(runs, key=depth):
        groups = shared.setdefault((depth(run), run.dataset, run.resources), [])
        if not groups or len(groups[-1]) >= min(AT_MOST, run.resources.together // run.resources.minutes):
            groups.append([])
        groups[-1].append(run)
    return [group for groups in shared.values() for group in groups]


def script(group: list[Run]) -> str:
    """The job: each run with the line that the graph runs, too."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("DEEPSIMREG_")}
    kept["OMP_NUM_THREADS"] = str(group[0].resources.cpus)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in kept.items()]
    for run in group:
        words = (f"{run.dataset}/{run.name}", run.mark, command(run), *(one.mark for one in run.inputs))
        lines.append(f"make_run {shlex.join(map(str, words))}\n")
    return "".join([HEAD, *lines, "exit $failed\n"])


def submit(group: list[Run], inputs: Iterable[Job], logs: Path, lock: int) -> Job:
    """Submit one job that waits for others. lock: a file descriptor that sbatch keeps open if this process is killed.

    Partition, account and the like are sbatch's own variables (SBATCH_PARTITION, …).
    """
    first, need, others = group[0], group[0].resources, len(group) - 1
    options = {
        "job-name": f"{first.profile}/{first.dataset}/{first.name}" + f" +{others}" * bool(others),
        "comment": " ".join(map(key, group)),
        "chdir": PROJECT,
        "output": str(logs).replace("%", "%%") + "/%j.log",
        "open-mode": "append",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": need.cpus,
        "mem": f"{need.memory}M",
        "time": need.minutes * len(group),
        "signal": f"B:USR1@{min(NOTICE, 30 * need.minutes)}",
    }
    options |= {"gres": f"gpu:{need.gpu}"} if need.gpu else {}
    options |= {"dependency": ended(inputs)} if inputs else {}
    words = [f"--{name}={value}" for name, value in options.items()]
    printed = call("sbatch", "--parsable", "--requeue", *words, input=script(group), pass_fds=[lock])
    return Job(printed.strip().partition(";")[0], "PENDING", "None")


def ended(jobs: Iterable[Job]) -> str:
    """The dependency of a job on others, however they end: it looks itself for what it needs."""
    return ":".join(["afterany", *sorted({job.number for job in jobs})])


def submit_all(runs: dict[str, Run], waiting: list[list[Run]], live: dict[str, Job], logs: Path, lock: int) -> None:
    """Submit jobs and move them from `waiting` to `live`, as many as the cluster takes. runs: all of them, by key.

    A job that an earlier call submitted, and that has not started, waits for inputs that are submitted only now, too.
    """
    waiting[:] = [group for group in waiting if not any(key(run) in live for run in group)]
    while waiting:
        group, needed = waiting[0], {key(one) for run in waiting[0] for one in run.inputs}
        job = submit(group, [live[one] for one in needed & live.keys()], logs, lock)
        live |= {key(run): job for run in waiting.pop(0)}
        users = {live.get(word) for word, run in runs.items() if {*run.inputs} & {*group}}
        for user in (one for one in users if one and one.state == "PENDING"):
            needed = {key(one) for word, run in runs.items() if live.get(word) == user for one in run.inputs}
            with suppress(SettingsError):  # it has started meanwhile
                dependency = ended(live[one] for one in needed & live.keys())
                call("scontrol", "update", f"JobId={user.number}", f"Dependency={dependency}")


def watch(runs: dict[str, Run], waiting: list[list[Run]], live: dict[str, Job], every: float, *place) -> None:
    """Show how many runs are finished until none is in the queue; submit what the cluster did not take before."""
    told: set[str] = set()
    with tqdm(total=len(runs), unit="run", desc="finished") as bar:
        while waiting or runs.keys() & live.keys():
            said = set()
            try:
                live = queue()
                submit_all(runs, waiting, live, *place)
            except SettingsError as error:
                if not runs.keys() & live.keys():
                    raise
                said.add(f"{error}; tried again while other jobs run")
            jobs = {live[one] for one in runs.keys() & live.keys()}
            said |= {f"jobs wait: {job.reason}" for job in jobs if job.reason not in ORDINARY}
            for line in said - told:
                bar.write(line)
            told |= said
            states = Counter(job.state.lower() for job in jobs)
            bar.set_postfix_str(", ".join(f"{count} jobs {state}" for state, count in states.items()), refresh=False)
            bar.update(sum(run.mark.is_file() for run in runs.values()) - bar.n)
            bar.refresh()
            time.sleep(every if jobs or waiting else 0)


def missing(runs: Iterable[Run], logs: Path) -> list[str]:
    """A line for each run that is not finished: what the newest log says last of it."""
    newest = sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    texts, lines = {path: path.read_text(encoding="utf-8", errors="replace") for path in newest}, []
    for run in (one for one in runs if not one.current):
        head = f"=== {run.dataset}/{run.name}\n"
        path = next((path for path, text in texts.items() if head in text), None)
        said = texts[path].rpartition(head)[2].partition("\n===")[0].strip().splitlines() if path else []
        last = next((line for line in said if ": failed in cell" in line), said[-1] if said else "")
        lines.append(f"  {run.dataset}/{run.name}: " + (f"{last.strip()} ({path})" if path else "not started"))
    return lines


def main(profile: str, every: float = 30.0) -> None:
    """Submit the runs of a profile that are missing, and watch. every: seconds between two looks at the queue."""
    if not shutil.which("sbatch"):
        raise SettingsError("this machine has no sbatch: call this on a cluster's login node, or leave out SLURM=1")
    runs, seconds = {key(run): run for run in Profile(profile).all_runs().values()}, float(every)
    logs, descriptors = writable(runs_root() / profile / "logs"), []
    try:
        lock = take_lock(logs.parent / ".submit.lock", 5, on_acquired=descriptors.append)
    except Timeout:
        raise SettingsError(f"another process submits and watches profile {profile}: let it, or end it first") from None
    try:
        live = queue()  # before the folders: what ends in between is seen there
        free = [run for word, run in runs.items() if word not in live]
        for run in free:
            run.repair()
        waiting = grouped([run for run in free if not run.current])
        print(
            f"{len(runs)} runs: {len(runs) - len(free)} in the queue, {sum(map(len, waiting))} to be submitted", end=" "
        )
        print(f"in {len(waiting)} jobs; their logs: {logs}", flush=True)
        watch(runs, waiting, live, seconds, logs, *descriptors)
        if missing(runs.values(), logs):
            time.sleep(2 * seconds)  # until files that other machines wrote are seen here
        if lines := missing(runs.values(), logs):
            lines.append("Mend what is said there, or stop here: the same command submits what is missing.")
            raise SettingsError("\n".join([f"{len(lines) - 1} runs are not finished:", *lines]))
    finally:
        lock.release()


if __name__ == "__main__":
    try:
        run_main(main)
    except KeyboardInterrupt:
        print("\nthe jobs go on (squeue --me); the same command watches again, and submits what is missing")
        sys.exit(130)
