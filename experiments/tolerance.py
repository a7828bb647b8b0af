"""How closely numbers repeat on a CPU: an extractor, a network and an optimisation, made again, and with two threads.

    python experiments/tolerance.py cpu brain-2d    # writes figures/tolerance.csv

Threads add floats in another order. The sums differ in the last digits, and training carries that on. Every making is a
process of its own.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from deepsimreg.losses.registry import required_extractors
from deepsimreg.models.store import tensor_digest
from deepsimreg.paper.evaluate import Entry, evaluate
from deepsimreg.paper.extractors import evaluate_extractor, source_data, train_extractor
from deepsimreg.paper.methods import optimisation_method
from deepsimreg.paper.outputs import write_table
from deepsimreg.paper.paths import FIGURES
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import train_registration

METRIC = "dice_foreground"
THREADS = (1, 1, 2)  # threads of each making


def made(profile: str, dataset: str, network: str, method: str, folder: Path) -> dict[str, dict]:
    """What → {digest, values}: a digest of the weights or warps, and the metric of each test image or pair."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    plan = Profile(profile)
    data, found = plan.data(dataset), {}

    def keep(what: str, digest: str, table: pd.DataFrame) -> None:
        found[what] = {"digest": digest, "values": table[METRIC].tolist()}

    run = plan.extractor(dataset, "seg", str(folder / "extractor"))
    extractor, _ = train_extractor(run, source_data(plan, run))
    keep("extractor seg", tensor_digest(run.weights), evaluate_extractor(extractor, "seg", data))
    settings = plan.part(dataset).registration.similarities[network]
    lam = settings.lam if settings.lam != "tuned" else settings.grid[len(settings.grid) // 2]
    run = plan.registration(dataset, network, lam=lam, place=str(folder / "network"))
    trained, _ = train_registration(plan, run, data)
    keep(f"network {network}", tensor_digest(run.weights), evaluate([Entry({}, trained)], data))
    part = plan.methods(dataset)[method]
    if required_extractors(part.similarity):
        raise SystemExit(f"{method} compares features: choose a method without an extractor")
    register = optimisation_method(plan, dataset, part, part.lam[len(part.lam) // 2])
    warps = []
    rows = evaluate([Entry({}, lambda *pair: warps.append(register(*pair)) or warps[-1])], data)
    content = b"".join(warp.numpy().tobytes() for warp in warps)
    keep(f"optimisation {method}", hashlib.sha256(content).hexdigest(), rows)
    return found


def compared(makings: list[dict[str, dict]], dataset: str) -> pd.DataFrame:
    """One row per thing: its means with one and two threads, and how far means and single values lie apart."""
    first, again, other = makings
    rows = []
    for what in first:
        one, two = (pd.Series(making[what]["values"]) for making in (first, other))
        row = {"what": what, "dataset": dataset, "n": len(one), "metric": METRIC}
        row |= {"again_equal": first[what]["digest"] == again[what]["digest"]}
        row |= {"one_thread": one.mean(), "two_threads": two.mean(), "difference": two.mean() - one.mean()}
        rows.append(row | {"largest_of_one": (two - one).abs().max()})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile")
    parser.add_argument("dataset")
    parser.add_argument("--network", default="ncc")
    parser.add_argument("--method", default="ncc-25")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    what = (given.profile, given.dataset, given.network, given.method)
    if given.folder:
        (Path(given.folder) / "made.json").write_text(json.dumps(made(*what, Path(given.folder))), encoding="utf-8")
        return
    makings = []
    for threads in THREADS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, given.profile, given.dataset, "--folder", folder]
            command += ["--network", given.network, "--method", given.method]
            subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
            makings.append(json.loads((Path(folder) / "made.json").read_text(encoding="utf-8")))
    table = compared(makings, given.dataset)
    write_table(table, FIGURES / "tolerance.csv")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
