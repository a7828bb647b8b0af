"""Make figures and tables of a profile the published ones of `figures/<dataset>`; nothing else writes there.

python -m deepsimreg.paper.publish cpu [hippocampus-mr …]
"""

from pathlib import Path

from deepsimreg.files import check_writable
from deepsimreg.paper.errors import run_main
from deepsimreg.paper.files import copy_file, read_json, write_json
from deepsimreg.paper.paths import FIGURES
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.run import Run
from deepsimreg.paper.stale import SOURCE

TABLES = {  # published table → the chapter's run and its file
    "pairs": ("evaluation", "pairs"),
    "summary": ("evaluation", "summary"),
    "tests": ("evaluation", "tests"),
    "runs": ("evaluation", "runs"),
    "smoothness": ("evaluation", "smoothness"),
    "tuning": ("tuning", "tuning"),
    "ablations": ("ablations", "variants"),
    "robustness": ("robustness", "pairs"),
    "optimisation": ("optimisation", "summary"),
    "optimisation-test": ("optimisation", "test"),
    "optimisation-validation": ("optimisation", "tuned"),
    "optimisation-traces": ("optimisation", "traces"),
}


def publish(plan: Profile, dataset: str, figures: Path = FIGURES) -> list[Path]:
    """Copy the figures and tables of a dataset's finished runs; `source.json` says which run each comes from.

    Raises:
        SettingsError: a run is missing or stale; nothing is published then.
    """
    reports = {run.name: run for run in [*plan.reports(dataset), *plan.figures(dataset)]}
    for run in reports.values():
        run.result()
    copies = {name: (reports[stage], f"{file}.csv") for name, (stage, file) in TABLES.items() if stage in reports}
    target = check_writable(figures / dataset)
    files, written = {}, []
    for name, (run, file) in copies.items():
        written.append(target / f"{name}.csv")
        copy_file(run.folder / file, written[-1])
        files[written[-1].name] = _origin(run)
    drawn = reports.get("figures")
    for path in sorted(drawn.folder.glob("*.p[dn][fg]")) if drawn else ():
        record = read_json(path.with_suffix(".json")) or {}
        for source in {path, path.with_suffix(".json")}:
            written.append(target / source.name)
            copy_file(source, written[-1])
        files[path.name] = _origin(drawn) | {"caption": record.get("caption", "")}
    runs = plan.runs(dataset)
    fingerprints = {name: value for run in runs for name, value in run.data.items()}
    content = {"profile": plan.name, "fingerprints": fingerprints, "files": files}
    write_json(target / SOURCE, content | {"settings": {run.name: _settings(run) for run in runs}})
    return written


def _origin(run: Run) -> dict[str, str]:
    return {"run": run.name, "identity": run.identity}


def _settings(run: Run) -> dict:
    return {"identity": run.identity, "settings": run.settings.model_dump(mode="json")}


def main(profile: str, *datasets: str) -> None:
    plan = Profile(profile)
    for dataset in datasets or plan.datasets:
        print(f"{dataset}: {len(publish(plan, dataset))} files published")


if __name__ == "__main__":
    run_main(main)
