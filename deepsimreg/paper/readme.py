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
    "dice": ("Dice", "{:.3f}"),
    "dice_foreground": ("without background", "{:.3f}"),
    "hd95": ("HD95 (mm)", "{:.2f}"),
    "folds": ("folds", "{:.3%}"),
    "sd_log_jacobian": ("SD log J", "{:.2f}"),
    "target_registration_error": ("TRE (mm)", "{:.2f}"),
    "seconds": ("s a pair", "{:.2f}"),
}


def table(name: str) -> str:
    """Markdown table of a dataset's evaluation or optimisation: means, for Dice with its 95 % bootstrap interval."""
    dataset, _, chapter = name.partition("/")
    folder = FIGURES / dataset
    if chapter:
        means, title, picture = pd.read_csv(folder / "optimisation.csv").set_index("method"), "λ", "optimisation"
        count, words = means["n"].max(), "Dice with its 95 % bootstrap interval; medians of the seconds"
    else:
        means, title, picture = _evaluated(folder), "λ, smoothing", "dice"
        count, seeds = means["n"].max(), pd.read_csv(folder / "runs.csv").groupby("method")["seed"].nunique().max()
        words = f"{int(seeds)} seed(s), for Dice with its 95 % bootstrap interval"
    columns = {key: value for key, value in COLUMNS.items() if key in means}
    lines = [f"| method | {title} | " + " | ".join(head for head, _ in columns.values()) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for method, row in means.iterrows():
        cells = [style.format(row[key]) for key, (_, style) in columns.items()]
        cells[0] += f" [{row['dice_low']:.3f}, {row['dice_high']:.3f}]"
        lam = f"{row['lam']:g}" if row["lam"] > 0 else "–"
        lines.append(f"| {method_name(method)} | {lam} | " + " | ".join(cells) + " |")
    words += f"; time on {', '.join(means['device'].dropna().unique())}" if "device" in means else ""
    source = json.loads((folder / f"{picture}.json").read_text(encoding="utf-8"))["source_runs"][0]
    link = f"[`figures/{dataset}`](figures/{dataset})"
    return "\n".join(
        [*lines, "", f"Means over {count:.0f} test pairs, {words}. Source: `{source}`, files in {link}.", ""]
    )


def _evaluated(folder) -> pd.DataFrame:
    """One row per method of summary.csv: means, `dice_low`, `dice_high`, `lam` and `n`."""
    overview = pd.read_csv(folder / "summary.csv")
    means = overview.pivot_table(index="method", columns="metric", values="mean", sort=False)
    dice = overview[overview["metric"] == "dice"].set_index("method")
    runs = pd.read_csv(folder / "runs.csv").groupby("method").first()
    device = {"device": runs["device"]} if "device" in runs else {}
    return means.assign(dice_low=dice["low"], dice_high=dice["high"], n=dice["n"], lam=runs["lam"], **device)


def filled(text: str) -> str:
    """The README with every block made anew."""
    return BLOCK.sub(lambda match: match[1] + table(match[2]) + match[4], text)


def fill() -> None:
    write_text(README, filled(README.read_text(encoding="utf-8")))


if __name__ == "__main__":
    fill()
