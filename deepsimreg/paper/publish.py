"""Make figures and tables of a profile the published ones of `figures/<dataset>`, its networks those of the package,
and the tables of README and docs/results.md those of these results; codecheck.yml lists them. Nothing else does.

python -m deepsimreg.paper.publish cpu [hippocampus-mr …]
"""

from pathlib import Path

import yaml

from deepsimreg.files import check_writable, remove_partial
from deepsimreg.paper.errors import run_main
from deepsimreg.paper.files import copy_file, read_json, write_json, write_text
from deepsimreg.paper.paths import FIGURES
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.readme import fill
from deepsimreg.paper.release import release
from deepsimreg.paper.reports import SOURCE
from deepsimreg.paths import PROJECT

KINDS = (".png", ".pdf", ".json")  # of a figure; the last holds its caption


def publish(plan: Profile, dataset: str, figures: Path = FIGURES) -> list[Path]:
    """Copy the figures and tables of a dataset's finished runs, `<chapter>/<table>.csv` and `<figure>.png`;
    `source.json` says which run each comes from.

    Returns the copies. SettingsError if a run is missing or stale; nothing is published then.
    """
    origins = {f"{run.name}/{name}.csv": run for run in plan.reports(dataset) for name in run.result()["tables"]}
    for run in plan.figures(dataset):
        names = [Path(picture).with_suffix(suffix).name for picture in run.result()["figures"] for suffix in KINDS]
        origins |= dict.fromkeys(names, run)
    target = check_writable(figures / dataset)
    remove_partial(target)
    copies = {target / name: run.folder / Path(name).name for name, run in origins.items()}
    files = {name: {"run": run.name, "identity": run.identity} for name, run in origins.items()}
    runs = plan.runs(dataset)
    fingerprints = {name: value for run in runs for name, value in run.data.items()}
    settings = {run.name: {"identity": run.identity, "settings": run.settings.model_dump(mode="json")} for run in runs}
    content = {"profile": plan.name, "fingerprints": fingerprints, "files": files, "settings": settings}
    unfinished = {name: origin | {"identity": "unfinished"} for name, origin in files.items()}
    write_json(target / SOURCE, content | {"files": unfinished})  # what is killed from here on is told to be stale
    for copy, source in copies.items():
        copy.parent.mkdir(exist_ok=True)
        copy_file(source, copy)
    for path in target.rglob("*"):  # what an earlier version published
        if path.is_file() and path not in copies and path.name != SOURCE:
            path.unlink()
    write_json(target / SOURCE, content)
    return list(copies)


def manifest(figures: Path = FIGURES) -> dict:
    """What a CODECHECK asks for (codecheck.org.uk): every published figure and table, and the command that makes it."""
    files = []
    for source in sorted(figures.glob(f"*/{SOURCE}")):
        record, dataset = read_json(source) or {}, source.parent.name
        for name, origin in record.get("files", {}).items():
            if not name.endswith((".csv", ".png")):
                continue
            run = f"runs/{record['profile']}/{dataset}/{origin['run']}"
            command = f"make paper PROFILE={record['profile']} && make publish PROFILE={record['profile']}"
            files.append({"file": f"figures/{dataset}/{name}", "comment": f"{command} (from {run})"})
    title = "deepsimreg: learned image registration with semantic similarity"
    return {
        "version": "https://codecheck.org.uk/spec/config/1.0/",
        "paper": {"title": title, "reference": "https://doi.org/10.1016/j.media.2023.102830"},
        "manifest": files,
    }


def main(profile: str, *datasets: str) -> None:
    plan = Profile(profile)
    for dataset in datasets or plan.datasets:
        print(f"{dataset}: {len(publish(plan, dataset))} files published")
        if method := plan.part(dataset).release:
            print("\n".join(f"  {path.name}: shipped" for path in release(plan, dataset, method)))
    fill()
    write_text(PROJECT / "codecheck.yml", yaml.safe_dump(manifest(), sort_keys=False, width=120))


if __name__ == "__main__":
    run_main(main)
