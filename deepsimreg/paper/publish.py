"""Make figures and tables of a profile the published ones of `figures/<dataset>`, its networks those of the package,
and the README's tables those of these results; nothing else writes there.

python -m deepsimreg.paper.publish cpu [hippocampus-mr …]
"""

from pathlib import Path

from deepsimreg.files import check_writable, remove_partial
from deepsimreg.paper.errors import run_main
from deepsimreg.paper.files import copy_file, read_json, write_json
from deepsimreg.paper.paths import FIGURES
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.readme import fill
from deepsimreg.paper.release import release
from deepsimreg.paper.stale import SOURCE

TABLES = {  # published table → the chapter's run and its file
    "pairs": ("evaluation", "pairs"),
    "summary": ("evaluation", "summary"),
    "tests": ("evaluation", "tests"),
    "runs": ("evaluation", "runs"),
    "smoothness": ("evaluation", "smoothness"),
    "tuning": ("tuning", "tuning"),
    "ablations": ("ablations", "variants"),
    "robustness": ("robustness", "noise"),
    "contrast": ("robustness", "contrast"),
    "optimisation": ("optimisation", "summary"),
    "optimisation-test": ("optimisation", "test"),
    "optimisation-tests": ("optimisation", "tests"),
    "optimisation-matched": ("optimisation", "matched"),
    "optimisation-validation": ("optimisation", "tuned"),
    "optimisation-traces": ("optimisation", "traces"),
}


def publish(plan: Profile, dataset: str, figures: Path = FIGURES) -> list[Path]:
    """Copy the figures and tables of a dataset's finished runs; `source.json` says which run each comes from.

    Returns the copies. SettingsError if a run is missing or stale; nothing is published then.
    """
    reports = {run.name: run for run in [*plan.reports(dataset), *plan.figures(dataset)]}
    for run in reports.values():
        run.result()
    target, files, copies = check_writable(figures / dataset), {}, {}
    remove_partial(target)
    for name, (stage, file) in TABLES.items():
        if stage in reports:
            copies[target / f"{name}.csv"] = reports[stage].folder / f"{file}.csv"
            files[f"{name}.csv"] = {"run": stage, "identity": reports[stage].identity}
    drawn = reports.get("figures")
    for path in sorted(drawn.folder.glob("*.p[dn][fg]")) if drawn else ():
        record = path.with_suffix(".json")
        copies |= {target / path.name: path, target / record.name: record}
        caption = (read_json(record) or {}).get("caption", "")
        files[path.name] = {"run": "figures", "identity": drawn.identity, "caption": caption}
    runs = plan.runs(dataset)
    fingerprints = {name: value for run in runs for name, value in run.data.items()}
    settings = {run.name: {"identity": run.identity, "settings": run.settings.model_dump(mode="json")} for run in runs}
    content = {"profile": plan.name, "fingerprints": fingerprints, "files": files, "settings": settings}
    unfinished = {name: origin | {"identity": "unfinished"} for name, origin in files.items()}
    write_json(target / SOURCE, content | {"files": unfinished})  # what is killed from here on is told to be stale
    for copy, source in copies.items():
        copy_file(source, copy)
    write_json(target / SOURCE, content)
    return list(copies)


def main(profile: str, *datasets: str) -> None:
    plan = Profile(profile)
    for dataset in datasets or plan.datasets:
        print(f"{dataset}: {len(publish(plan, dataset))} files published")
        if method := plan.part(dataset).release:
            print("\n".join(f"  {path.name}: shipped" for path in release(plan, dataset, method)))
    fill()


if __name__ == "__main__":
    run_main(main)
