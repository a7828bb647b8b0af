"""The tables of the chapters that report: read from the chapter's run if it is current, else made from its inputs."""

from collections.abc import Callable
from functools import wraps

import pandas as pd
from tqdm.auto import tqdm

from deepsimreg.paper.evaluate import Entry, choose, evaluate, write_table
from deepsimreg.paper.extractors import evaluate_extractor, load_extractor, source_data
from deepsimreg.paper.methods import run_baseline
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import load_network, validation_rows
from deepsimreg.paper.resolve import FIXED_EXTRACTORS
from deepsimreg.paper.statistics import compare_methods, summary

Tables = dict[str, pd.DataFrame]
SMOOTHNESS = ["method", "lam", "dice", "folds", "sd_log_jacobian", "chosen", "mark"]


def tables_of(stage: str) -> Callable[[Callable[..., Tables]], Callable]:
    """Decorator: read the tables of a chapter's run; make, write and mark them if they are missing.

    The function that is decorated takes a profile and a dataset, and returns tables by the names of their files. What
    the caller gets are these tables, or the table itself if there is only one.
    """

    def decorate(make: Callable[..., Tables]) -> Callable:
        @wraps(make)
        def read(plan: Profile, dataset: str, *options, **more) -> Tables | pd.DataFrame:
            run = plan.chapter(dataset, stage)
            with run.open():
                if not run.current:
                    made = make(plan, dataset, *options, **more)
                    for name, table in made.items():
                        write_table(table, run.folder / f"{name}.csv")
                    run.finish(tables=list(made))
                tables = {name: pd.read_csv(run.folder / f"{name}.csv") for name in run.result()["tables"]}
            return tables if len(tables) > 1 else tables.popitem()[1]

        return read

    return decorate


@tables_of("tuning")
def tuning(plan: Profile, dataset: str) -> Tables:
    """One row per network and λ: means over the validation pairs, seconds of training, `chosen`, `mark`."""
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


@tables_of("evaluation")
def evaluation(plan: Profile, dataset: str, images: bool = True) -> Tables:
    """The test of every network, baseline, and of the unregistered pairs.

    images: write every warped image and label of the networks, too. Returns by the name of its file: `pairs`, one row
    per method, seed and pair; `means`, the seeds averaged pair by pair; `summary`, means over pairs with bootstrap
    intervals; `tests`, the reference against each method; `runs`, λ, seed, run, validation Dice and device of each;
    `smoothness`, mean Dice and SD log J on the validation pairs at each λ.
    """
    data = plan.data(dataset)
    tables = [evaluate([Entry({"method": "unregistered", "seed": 0}, None)], data)]
    runs, curves = [], [tuning(plan, dataset)] if plan.tunings(dataset) else []
    for run in tqdm(plan.registrations(dataset), desc="networks", unit="network"):
        network, result, name = load_network(run), run.result(), run.settings.similarity
        columns = {"method": name, "lam": result["lam"], "seed": run.settings.fit.seed}
        folder = plan.chapter(dataset, "evaluation").folder / name / f"seed-{columns['seed']}"
        tables.append(evaluate([Entry(columns, network)], data, images=folder if images else None))
        dice = pd.read_csv(run.validation)["dice"].mean()
        runs.append(columns | {"validation_dice": dice, "seconds": result["seconds"], "folder": str(run)})
        runs[-1]["device"] = tables[-1]["device"].iloc[0]
    for run in tqdm(plan.baselines(dataset), desc="baselines", unit="method"):
        both = run_baseline(plan, run.need(), data)
        tables.append(both["test"].assign(seed=0))
        values = choose(both["validation"])
        curves.append(values)
        best = values.query("chosen").iloc[0]
        columns = {"method": run.settings.baseline, "lam": best["lam"], "seed": 0, "validation_dice": best["dice"]}
        runs.append(columns | {"folder": str(run), "device": tables[-1]["device"].iloc[0]})
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


@tables_of("ablations")
def ablations(plan: Profile, dataset: str) -> Tables:
    """The test of every variant of the ablations.

    Returns `pairs`, one row per variant, seed and pair, and `variants`, one row per variant: `group`, `base` (the
    method it is a variant of), fraction of its extractor's labels, the extractor's test Dice, mean of every metric.
    """
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


@tables_of("robustness")
def robustness(plan: Profile, dataset: str) -> Tables:
    """The test of every network (first seed) on images with added noise: one row per method, SD of noise and pair."""
    networks = {name: load_network(plan.registration(dataset, name)) for name in plan.networks(dataset)}
    tables = []
    for name, register in tqdm({"unregistered": None, **networks}.items(), desc="methods", unit="method"):
        for noise in (0.0, *plan.part(dataset).robustness.noise):
            entry = Entry({"method": name, "noise": noise}, register)
            tables.append(evaluate([entry], plan.data(dataset), noise=noise))
    return {"pairs": pd.concat(tables, ignore_index=True)}
