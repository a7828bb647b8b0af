"""What today's code would make anew.

python -m deepsimreg.paper.stale            the published tables and figures of figures/<dataset>
python -m deepsimreg.paper.stale quick      the runs of a profile, and where its results lie

A published folder holds `source.json`: the profile, the fingerprints of the data, and the identity of the run behind
each file. A file is stale if the profile, with this code and those data, would give that run another identity. How a
figure is drawn decides none of its numbers: a figure is stale if a run that it is drawn from is.
"""

from pathlib import Path

from deepsimreg.paper.errors import SettingsError, run_main
from deepsimreg.paper.files import read_json
from deepsimreg.paper.paths import FIGURES, runs_root
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.reports import SOURCE


def stale_files(source: Path) -> list[str]:
    """The stale files beside a source.json, each with the reason."""
    record, dataset = read_json(source) or {}, source.parent.name
    if "files" not in record:
        names = sorted(path.name for path in source.parent.glob("*.csv"))
        return [f"{name}: published before identities were recorded" for name in names]
    try:
        plan = Profile(record["profile"], record["fingerprints"])
        runs = {run.name: run for run in plan.runs(dataset)}
    except SettingsError as error:
        return [f"{name}: profile {record['profile']} is not what it was: {error}" for name in record["files"]]
    published = {name: entry["identity"] for name, entry in record.get("settings", {}).items()}
    now = {name: run.identity for name, run in runs.items()}
    if figures := runs.get("figures"):
        same = all(published.get(one.name) == one.identity for one in figures.inputs)
        now["figures"] = published.get("figures") if same else figures.identity
    return [
        f"{name}: {origin['run']} has another {'identity' if origin['run'] in runs else 'plan'}"
        for name, origin in record["files"].items()
        if now.get(origin["run"]) != origin["identity"]
    ]


def main(profile: str = "") -> None:
    """Print what is stale: of the published files, or of the runs of a profile."""
    if not profile:
        for source in sorted(FIGURES.glob(f"*/{SOURCE}")):
            files = stale_files(source)
            print(f"{source.parent.name}: {f'{len(files)} stale files' if files else 'up to date'}")
            print("".join(f"  {line}\n" for line in files), end="")
        return
    plan = Profile(profile)
    for dataset in plan.datasets:
        runs, folder = plan.runs(dataset), runs_root() / profile / dataset
        missing = [run.name for run in runs if not run.current]
        if missing:
            print(f"{dataset}: {len(missing)} of {len(runs)} runs would be made", *missing, sep="\n  ")
            continue
        print(f"{dataset}: all {len(runs)} runs are up to date")
        print(f"  notebooks with results  {folder}/*/notebook.ipynb")
        for run in [*plan.reports(dataset), *plan.figures(dataset)]:
            print(f"  {run.name:22s}  {run.folder}")


if __name__ == "__main__":
    run_main(main)
