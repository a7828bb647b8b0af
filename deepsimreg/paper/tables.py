"""The tables of the chapters that report: read from the chapter's run if it is current, else made from its inputs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from deepsimreg.paper.evaluate import Entry, choose, evaluate, write_table
from deepsimreg.paper.extractors import evaluate_extractor, load_extractor, source_data
from deepsimreg.paper.methods import run_baseline
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import load_network, validation_rows
from deepsimreg.paper.resolve import FIXED_EXTRACTORS
from deepsimreg.paper.run import Run
from deepsimreg.paper.statistics import compare_methods, summary

Tables = dict[str, pd.DataFrame]
SMOOTHNESS = ["method", "lam", "dice", "folds", "sd_log_jacobian", "chosen", "mark"]


def tables_of(run: Run, make: Callable[[], Tables]) -> Tables:
    """The tables of a chapter's run, by the names of their files; made, written and marked if they are missing."""
    with run.open():
        if not run.current:
            made = make()
            for name, table in made.items():
                write_table(table, run.folder / f"{name}.csv")
            run.finish(tables=list(made))
        return {name: pd.read_csv(run.folder / f"{name}.csv") for name in run.result()["tables"]}


def tuning(plan: Profile, dataset: str) -> pd.DataFrame:
    """One row per network and λ: means over the validation pairs, seconds of training, `chosen`, `mark`."""

    def make() -> Tables:
        runs = plan.tunings(dataset)
        table = choose(validation_rows(runs))
        seconds = {(run.settings.similarity, run.settings.lam): run.result()["seconds"] for run in runs}
        table["seconds"] = [seconds[row.method, row.lam] for row in table.itertuples()]
        given = {run.settings.similarity: run.settings.lam for run in plan.registrations(dataset)}
        for method, lam in given.items():  # a grid beside a λ that the profile gives is for the figures
            if lam != "tuned":
                rows = table["method"] == method
                table.loc[rows, "chosen"], table.loc[rows, "mark"] = table.loc[rows, "lam"] == lam, ""
        return {"tuning": table}

    return tables_of(plan.chapter(dataset, "tuning"), make)["tuning"]


def evaluation(plan: Profile, dataset: str, images: bool = True) -> Tables:
    """The test of every network, baseline, and of the unregistered pairs.

    Args:
        plan, dataset: whose runs.
        images: write every warped image and label of the networks, too.

    Returns:
        By the name of its file: `pairs`, one row per method, seed and pair; `means`, the seeds averaged pair by pair;
        `summary`, means over pairs with bootstrap intervals; `tests`, the reference against each method; `runs`, λ,
        seed, run and validation Dice of each; `smoothness`, mean Dice and SD log J on the validation pairs at each λ.
    """
    run = plan.chapter(dataset, "evaluation")
    return tables_of(run, lambda: _evaluation(plan, dataset, run.folder if images else None))


def _evaluation(plan: Profile, dataset: str, folder: Path | None) -> Tables:
    data = plan.data(dataset)
    tables = [evaluate([Entry({"method": "unregistered", "seed": 0}, None)], data)]
    runs, curves = [], [tuning(plan, dataset)] if plan.tunings(dataset) else []
    for run in tqdm(plan.registrations(dataset), desc="networks", unit="network"):
        network, result, name = load_network(run), run.result(), run.settings.similarity
        columns = {"method": name, "lam": result["lam"], "seed": run.settings.fit.seed}
        images = folder / name / f"seed-{columns['seed']}" if folder else None
        tables.append(evaluate([Entry(columns, network)], data, images=images))
        dice = pd.read_csv(run.validation)["dice"].mean()
        runs.append(columns | {"validation_dice": dice, "seconds": result["seconds"], "folder": str(run)})
    for run in tqdm(plan.baselines(dataset), desc="baselines", unit="method"):
        both = run_baseline(plan, run.need(), data)
        tables.append(both["test"].assign(seed=0))
        values = choose(both["validation"])
        curves.append(values)
        best = values.query("chosen").iloc[0]
        columns = {"method": run.settings.baseline, "lam": best["lam"], "seed": 0, "validation_dice": best["dice"]}
        runs.append(columns | {"folder": str(run)})
    pairs = pd.concat(tables, ignore_index=True)
    means = pairs.groupby(["method", "pair"], sort=False).mean(numeric_only=True).drop(columns="seed").reset_index()
    return {
        "pairs": pairs,
        "means": means,
        "summary": summary(means.drop(columns="lam")),
        "tests": compare_methods(means, reference=plan.reference(dataset)),
        "runs": pd.DataFrame(runs),
        "smoothness": pd.concat([*curves, pd.DataFrame(columns=SMOOTHNESS)], ignore_index=True)[SMOOTHNESS],
    }


def ablations(plan: Profile, dataset: str) -> Tables:
    """The test of every variant of the ablations.

    Returns:
        `pairs`, one row per variant, seed and pair; `variants`, one row per variant: `group`, `base` (the method it is
        a variant of), fraction of the labels of its extractor, the extractor's test Dice, mean of every metric.
    """
    return tables_of(plan.chapter(dataset, "ablations"), lambda: _ablations(plan, dataset))


def _ablations(plan: Profile, dataset: str) -> Tables:
    data, groups, tables, rows = plan.data(dataset), plan.groups(dataset), [], []
    for run in tqdm(plan.ablations(dataset), desc="variants", unit="network"):
        name = run.name.split("/")[1]
        network, (group, base) = load_network(run), groups[name]
        columns = {"method": name, "group": group, "base": base, "lam": run.result()["lam"]}
        table = evaluate([Entry(columns | {"seed": run.settings.fit.seed}, network)], data)
        tables.append(table)
        used = run.settings.extractor
        extractor = plan.extractor(dataset, used) if used and used not in FIXED_EXTRACTORS else None
        if extractor is not None and extractor.settings.kind == "seg" and source_data(plan, extractor) is data:
            dice = evaluate_extractor(load_extractor(plan, dataset, used), "seg", data)["dice"].mean()
            columns |= {"labels": extractor.settings.labels, "extractor_dice": dice}
        rows.append(columns | table.drop(columns="lam").mean(numeric_only=True).to_dict())
    keys = ["method", "group", "base"]
    variants = pd.DataFrame(rows).groupby(keys, sort=False, dropna=False).mean(numeric_only=True).reset_index()
    return {"pairs": pd.concat(tables, ignore_index=True), "variants": variants}


def robustness(plan: Profile, dataset: str) -> pd.DataFrame:
    """The test of every network (first seed) on images with added noise: one row per method, SD of noise and pair."""

    def make() -> Tables:
        networks = {name: load_network(plan.registration(dataset, name)) for name in plan.networks(dataset)}
        levels = [0.0, *plan.part(dataset).robustness.noise]
        tables = []
        for name, register in tqdm({"unregistered": None, **networks}.items(), desc="methods", unit="method"):
            for noise in levels:
                entry = Entry({"method": name, "noise": noise}, register)
                tables.append(evaluate([entry], plan.data(dataset), noise=noise))
        return {"pairs": pd.concat(tables, ignore_index=True)}

    return tables_of(plan.chapter(dataset, "robustness"), make)["pairs"]
