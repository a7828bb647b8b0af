"""The tables of the chapters that report, made from the runs that they stand on."""

import pandas as pd
from tqdm.auto import tqdm

from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.evaluate import STILL, Entry, choose, evaluate
from deepsimreg.paper.extractors import evaluate_extractor, load_extractor, source_data
from deepsimreg.paper.methods import place, profile_method, run_baseline
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import load_network, validation_rows
from deepsimreg.paper.reports import Tables, tables_of
from deepsimreg.paper.resolve import FIXED_EXTRACTORS, labels_used
from deepsimreg.paper.statistics import compare_methods, summary

SMOOTHNESS = ["method", "lam", "dice", "dice_foreground", "folds", "sd_log_jacobian", "chosen", "mark"]


@tables_of("tuning")
def tuning(plan: Profile, dataset: str) -> Tables:
    """One row per network and λ: means over the validation pairs, seconds of training, `gain` of Dice over the pairs
    before registration, `chosen` and `mark`.
    """
    runs = plan.tunings(dataset)
    table = choose(validation_rows(runs))
    results = {(run.settings.similarity, run.settings.lam): run.result() for run in runs}
    for column in ("seconds", "gain"):
        table[column] = [results[row.method, row.lam][column] for row in table.itertuples()]
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
    intervals; `tests`, the reference against each method; `runs`, λ and its `mark`, seed, run, validation Dice and its
    gain, how labels are used, and the device of each; `smoothness`, mean Dice and SD log J on the validation pairs at
    each λ.
    """
    data = plan.data(dataset)
    tables = [evaluate([Entry({"method": "unregistered", "seed": 0}, None)], data)]
    runs, curves = [], [tuning(plan, dataset).fillna({"mark": ""})] if plan.tunings(dataset) else []
    marks = {row.method: row.mark for row in curves[0].query("chosen").itertuples()} if curves else {}
    for run in tqdm(plan.registrations(dataset), desc="networks", unit="network"):
        network, result, name = load_network(run), run.result(), run.settings.similarity
        columns = {"method": name, "lam": result["lam"], "seed": run.settings.fit.seed}
        folder = plan.chapter(dataset, "evaluation").folder / name / f"seed-{columns['seed']}"
        tables.append(evaluate([Entry(columns, network)], data, images=folder if images else None, both_ways=True))
        dice, labels = pd.read_csv(run.validation)["dice"].mean(), labels_used(plan.part(dataset), [], [name])
        found = {"validation_dice": dice, "gain": result["gain"], "seconds": result["seconds"], "labels": labels}
        found["mark"] = f"{marks.get(name, '')} {'still' * (result['gain'] < STILL)}".strip()
        runs.append(columns | found | {"folder": str(run), "device": tables[-1]["device"].iloc[0]})
    for run in tqdm(plan.baselines(dataset), desc="baselines", unit="method"):
        both = run_baseline(plan, run.need(), data)
        tables.append(both["test"].assign(seed=0))
        values = choose(both["validation"])
        curves.append(values)
        best = values.query("chosen").iloc[0]
        columns = {"method": run.settings.baseline, "lam": best["lam"], "seed": 0, "validation_dice": best["dice"]}
        extractor = BASELINES[run.settings.baseline].extractor
        labels = labels_used(plan.part(dataset), [extractor] if extractor else [])
        found = {"labels": labels, "mark": best["mark"], "folder": str(run)}
        runs.append(columns | found | {"device": tables[-1]["device"].iloc[0]})
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
    """The test on images that have changed.

    Returns `noise`, every network (first seed), one row per method, SD of the noise that both images get, and pair; and
    `contrast`, some methods of the optimisation chapter at their λ, one row per method, what the moving image alone
    went through ("none" for nothing), and pair.
    """
    part, data = plan.part(dataset).robustness, plan.data(dataset)
    networks = {name: load_network(plan.registration(dataset, name)) for name in plan.networks(dataset)}
    tables = []
    for name, register in tqdm({"unregistered": None, **networks}.items(), desc="methods", unit="method"):
        for noise in (0.0, *part.noise):
            entry = Entry({"method": name, "noise": noise}, register)
            tables.append(evaluate([entry], data, noise=noise))
    return {"noise": pd.concat(tables, ignore_index=True), "contrast": _contrast(plan, dataset)}


def _contrast(plan: Profile, dataset: str) -> pd.DataFrame:
    """The table `contrast` of `robustness`; every pair is written as soon as it is done."""
    part, methods = plan.part(dataset).robustness, plan.methods(dataset)
    table = pd.DataFrame(columns=["method", "contrast", "pair", "dice", "dice_foreground", "sd_log_jacobian"])
    if not part.methods:
        return table
    chosen = pd.read_csv(plan.optimisation(dataset).need().folder / "summary.csv").set_index("method")["lam"]
    lams = {name: None if pd.isna(chosen[name]) else chosen[name] for name in part.methods}
    registers = {name: profile_method(plan, dataset, methods[name], lam) for name, lam in lams.items()}
    rows = plan.chapter(dataset, "robustness").folder / "contrast.csv"
    for contrast in tqdm(("none", *part.contrast), desc="contrasts", unit="contrast"):
        entries = [
            Entry({"method": name, "contrast": contrast}, one, place(methods[name])) for name, one in registers.items()
        ]
        table = evaluate(entries, plan.data(dataset), rows=rows, contrast=contrast if contrast != "none" else "")
    return table
