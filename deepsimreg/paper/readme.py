"""Fill the tables of README.md and docs/results.md from the published ones of `figures/<dataset>`, between
`<!-- results: NAME -->` and `<!-- end -->`.

NAME is a dataset, for a few methods, or dataset/evaluation, dataset/optimisation or dataset/tests, for all of them; or
claim: what would decide the claim of the paper, over all real datasets.
python -m deepsimreg.paper.readme
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from deepsimreg.paper.figures.style import method_name
from deepsimreg.paper.files import write_text
from deepsimreg.paper.reports import Published, published_datasets
from deepsimreg.paper.words import LEVEL, counted, probability, unit
from deepsimreg.paths import PROJECT

FILES = (PROJECT / "README.md", PROJECT / "docs" / "results.md")
BLOCK = re.compile(r"(<!-- results: ([\w/-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "dice_foreground": ("foreground Dice", "{:.3f}"),
    "dice": ("mean Dice", "{:.3f}"),
    "hd95": ("HD95", "{:.2f}"),
    "folds": ("folds", "{:.3%}"),
    "sd_log_jacobian": ("SD log J", "{:.2f}"),
    "inverse_consistency_error": ("ICE", "{:.2f}"),
    "target_registration_error": ("TRE", "{:.2f}"),
    "seconds": ("s a pair", "{:.2f}"),
}
LEADS = "dice_foreground"
DISTANCES = ("hd95", "inverse_consistency_error", "target_registration_error")
FEW = ("greedy", "ncc-25", "mind", "deepsim-ae", "deepsim-seg", "ncc-seg", "segmentation alone")  # of the README
CLAIMED = {"deepsim-seg": "all classes taught", "deepsim-seg, withheld": "scored classes withheld"}
RIVALS = ("ncc", "mind")  # whom the claim of the paper names
FEW_COLUMNS = (LEADS, "hd95", "sd_log_jacobian", "seconds")


def table(name: str) -> str:
    """Markdown of one block. SettingsError for a dataset without published results."""
    if name == "claim":
        real = [dataset for dataset in published_datasets("optimisation") if not dataset.startswith("phantom")]
        return _claim({dataset: Published(dataset).tables("optimisation")["tests"] for dataset in real})
    dataset, _, chapter = name.partition("/")
    published = Published(dataset)
    if chapter == "tests":
        return _tests(published.tables("optimisation")["tests"])
    if chapter == "evaluation":
        tables = published.tables("evaluation")
        means, what = _evaluated(tables), counted(tables["runs"].groupby("method")["seed"].nunique().max(), "network")
    else:
        means = published.tables("optimisation")["summary"].set_index("method").rename(columns={"sd_extractors": "sd"})
        what = counted(means["extractors"].max(), "extractor")
    few = [method for method in FEW if method in means.index]
    whole = chapter or not few
    wanted = COLUMNS if whole else FEW_COLUMNS
    rows = _rows(means if whole else means.loc[few], wanted, unit(dataset), marked=bool(chapter))
    return "\n".join([*rows, "", _caption(published, means, what, chapter), ""])


def _rows(means: pd.DataFrame, wanted, length: str, marked: bool) -> list[str]:
    """The table: means; for what leads its 95 % bootstrap interval and the SD over seeds. marked: with λ, and where it
    lies at an edge of its grid or all its warps fold too much.
    """
    columns = {key: COLUMNS[key] for key in wanted if key in means and means[key].notna().any()}
    names = [f"{head} ({length})" if key in DISTANCES else head for key, (head, _) in columns.items()]
    heads = ["method", "labels", *(["λ, smoothing"] * marked), *names]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for method, row in means.iterrows():
        cells = ["–" if pd.isna(row[key]) else style.format(row[key]) for key, (_, style) in columns.items()]
        spread = "" if pd.isna(row["sd"]) else f" ± {row['sd']:.3f}"
        cells[0] += f" [{row[f'{LEADS}_low']:.3f}, {row[f'{LEADS}_high']:.3f}]{spread}"
        mark = "" if pd.isna(row["mark"]) or not row["mark"] else f" ({row['mark']})"
        lam = [f"{row['lam']:.3g}{mark}" if row["lam"] > 0 else "–"] * marked
        labels = "none" if pd.isna(row["labels"]) else row["labels"]
        lines.append("| " + " | ".join([method_name(method), labels, *lam, *cells]) + " |")
    return lines


def _caption(published: Published, means: pd.DataFrame, what: str, chapter: str) -> str:
    dataset, chapter = published.folder.name, chapter or "optimisation"
    words = f"{means['pairs'].max():.0f} test pairs ({means['couples'].max():.0f} unordered)"
    spread = f" ± SD over {what}" if means["sd"].notna().any() else f"; {what}"
    tables = published.tables("evaluation")["summary"].query("method == 'unregistered' and metric == @LEADS")
    before = f"foreground Dice before registration {tables['mean'].item():.3f}" if len(tables) else ""
    return (
        f"Means over {words}, {before}; [95 % bootstrap interval]{spread}; median seconds on "
        f"{', '.join(means['device'].dropna().unique())}. Source: `runs/{published.name}/{dataset}/{chapter}`; files: "
        f"`figures/{dataset}/{chapter}`."
    )


def _tests(tests: pd.DataFrame) -> str:
    """The hypotheses that the profile wrote down: who against whom, on which classes, how smooth; and what came out."""
    heads = ["method", "against", "Dice of", "λ", "SD log J", "difference [95 %]", "couples (images)", "p after Holm"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in tests.itertuples():
        smooth = f"{row.reference_sd_log_jacobian:.2f}, {row.sd_log_jacobian:.2f}"
        names = [method_name(row.reference), method_name(row.method), row.classes, row.smoothness, smooth, _gain(row)]
        lines.append("| " + " | ".join([*names, f"{row.couples} ({row.images})", probability(row.p_holm)]) + " |")
    return "\n".join([*lines, ""])


def _gain(row) -> str:
    """The difference of a test with its interval."""
    return f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"


def _claim(tests: Mapping[str, pd.DataFrame]) -> str:
    """DeepSim (seg) against its rivals at equal smoothness, features that know the classes and features that do not:
    a line for each dataset, and how often it is ahead of all rivals.
    """
    lines = ["| data | features | " + " | ".join(map(method_name, RIVALS)) + " |", "|---|---|" + "---|" * len(RIVALS)]
    ahead: dict[str, list[bool]] = {}
    for dataset, table in tests.items():
        equal = table[(table["smoothness"] != "chosen") & table["method"].isin(RIVALS)]
        for reference, rows in equal[equal["reference"].isin(CLAIMED)].groupby("reference", sort=False):
            cells = {
                row.method: f"{_gain(row)}, p {probability(row.p_holm)}{' (nearest)' * (row.smoothness == 'nearest')}"
                for row in rows.itertuples()
            }
            lines.append("| " + " | ".join([dataset, CLAIMED[reference], *(cells[name] for name in RIVALS)]) + " |")
            sure = (rows["difference"] > 0) & (rows["p_holm"] < LEVEL)
            ahead.setdefault(CLAIMED[reference], []).append(bool(sure.all()))
    counts = "; ".join(f"{what}: on {sum(held)} of {counted(len(held), 'data set')}" for what, held in ahead.items())
    return "\n".join([*lines, "", f"Ahead of both beyond chance (p < {LEVEL:g} after Holm): {counts}.", ""])


def _evaluated(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per method of the evaluation: means; interval and SD over seeds of what leads; what `runs` says of it."""
    means = tables["summary"].pivot_table(index="method", columns="metric", values="mean", sort=False)
    leads = tables["summary"].query("metric == @LEADS").set_index("method")
    runs = tables["runs"].groupby("method").first()[["lam", "mark", "labels", "device"]]
    by_seed = tables["pairs"].groupby(["method", "seed"])[LEADS].mean().groupby("method")
    means = means.assign(**{f"{LEADS}_low": leads["low"], f"{LEADS}_high": leads["high"], "sd": by_seed.std()})
    seconds = tables["pairs"].groupby("method")["seconds"].median()
    return means.assign(pairs=leads["n"], couples=leads["couples"], seconds=seconds).join(runs)


def filled(text: str) -> str:
    """A text with every block made anew."""
    return BLOCK.sub(lambda match: match[1] + table(match[2]) + match[4], text)


def fill(files: tuple[Path, ...] = FILES) -> None:
    for path in files:
        write_text(path, filled(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    fill()
