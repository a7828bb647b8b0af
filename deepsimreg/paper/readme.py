"""Fill the README's tables from the result files, between `<!-- results: NAME -->` and `<!-- end -->`.

NAME is a dataset, for its evaluation, or dataset/optimisation. python -m deepsimreg.paper.readme
"""

import json
import re

import pandas as pd

from deepsimreg.paper.figures.style import method_name
from deepsimreg.paper.files import write_text
from deepsimreg.paper.paths import FIGURES
from deepsimreg.paths import PROJECT

README = PROJECT / "README.md"
BLOCK = re.compile(r"(<!-- results: ([\w/-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "dice_foreground": ("Dice without background", "{:.3f}"),
    "dice": ("mean Dice", "{:.3f}"),
    "hd95": ("HD95 (mm)", "{:.2f}"),
    "folds": ("folds", "{:.3%}"),
    "sd_log_jacobian": ("SD log J", "{:.2f}"),
    "inverse_consistency_error": ("ICE (mm)", "{:.2f}"),
    "target_registration_error": ("TRE (mm)", "{:.2f}"),
    "seconds": ("s a pair", "{:.2f}"),
}
LEADS = "dice_foreground"


def table(name: str) -> str:
    """Markdown table of a dataset's evaluation or optimisation: means, for the first with its 95 % bootstrap interval
    and the SD over seeds; λ at an edge of its grid, and one whose warps all fold too much, is marked.
    """
    dataset, _, chapter = name.partition("/")
    folder = FIGURES / dataset
    if chapter:
        means, picture = pd.read_csv(folder / "optimisation.csv").set_index("method"), "optimisation"
        means, seeds = means.rename(columns={"sd_extractors": "sd"}), f"{means['extractors'].max()} extractor(s)"
    else:
        means, picture = _evaluated(folder), "dice"
        seeds = f"{pd.read_csv(folder / 'runs.csv').groupby('method')['seed'].nunique().max()} network(s)"
    columns = {key: value for key, value in COLUMNS.items() if key in means and means[key].notna().any()}
    lines = ["| method | labels | λ, smoothing | " + " | ".join(head for head, _ in columns.values()) + " |"]
    lines.append("|" + "---|" * (len(columns) + 3))
    for method, row in means.iterrows():
        cells = ["–" if pd.isna(row[key]) else style.format(row[key]) for key, (_, style) in columns.items()]
        spread = "" if pd.isna(row["sd"]) else f" ± {row['sd']:.3f}"
        cells[0] += f" [{row[f'{LEADS}_low']:.3f}, {row[f'{LEADS}_high']:.3f}]{spread}"
        mark = "" if pd.isna(row["mark"]) or not row["mark"] else f" ({row['mark']})"
        lam = f"{row['lam']:g}{mark}" if row["lam"] > 0 else "–"
        labels = "none" if pd.isna(row["labels"]) else row["labels"]
        lines.append(f"| {method_name(method)} | {labels} | {lam} | " + " | ".join(cells) + " |")
    counts = f"{means['pairs'].max():.0f} test pairs ({means['couples'].max():.0f} unordered)"
    words = f"first with its 95 % bootstrap interval and ± the SD over {seeds}; medians of the seconds"
    words += f", on {', '.join(means['device'].dropna().unique())}"
    source = json.loads((folder / f"{picture}.json").read_text(encoding="utf-8"))["source_runs"][0]
    link = f"[`figures/{dataset}`](figures/{dataset})"
    return "\n".join([*lines, "", f"Means over {counts}; {words}. Source: `{source}`, files in {link}.", ""])


def _evaluated(folder) -> pd.DataFrame:
    """One row per method of summary.csv: means; interval and SD over seeds of what leads; what runs.csv says of it."""
    overview = pd.read_csv(folder / "summary.csv")
    means = overview.pivot_table(index="method", columns="metric", values="mean", sort=False)
    leads = overview[overview["metric"] == LEADS].set_index("method")
    runs = pd.read_csv(folder / "runs.csv").groupby("method").first()[["lam", "mark", "labels", "device"]]
    by_seed = pd.read_csv(folder / "pairs.csv").groupby(["method", "seed"])[LEADS].mean().groupby("method")
    means = means.assign(**{f"{LEADS}_low": leads["low"], f"{LEADS}_high": leads["high"], "sd": by_seed.std()})
    return means.assign(pairs=leads["n"], couples=leads["couples"]).join(runs)


def filled(text: str) -> str:
    """The README with every block made anew; one whose files an earlier version published, without what a table shows
    now, stays as it is (`make stale` names them).
    """
    return BLOCK.sub(lambda match: match[1] + (table(match[2]) if _readable(match[2]) else match[3]) + match[4], text)


def _readable(name: str) -> bool:
    dataset, _, chapter = name.partition("/")
    return "labels" in pd.read_csv(FIGURES / dataset / ("optimisation.csv" if chapter else "runs.csv"), nrows=0)


def fill() -> None:
    write_text(README, filled(README.read_text(encoding="utf-8")))


if __name__ == "__main__":
    fill()
