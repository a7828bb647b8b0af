"""Fill the README's tables from the result files, between `<!-- results: NAME -->` and `<!-- end -->`.

python -m deepsimreg.paper.readme
"""

import json
import re
import sys

import pandas as pd

from deepsimreg.paper.paths import FIGURES
from deepsimreg.paper.plots import method_name
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


def table(dataset: str) -> str:
    """Markdown table of `figures/<dataset>/summary.csv`: mean and, for Dice, its 95 % bootstrap interval."""
    overview = pd.read_csv(FIGURES / dataset / "summary.csv")
    runs = pd.read_csv(FIGURES / dataset / "runs.csv").groupby("method")
    lams, seeds = runs["lam"].first(), runs["seed"].nunique()
    source = json.loads((FIGURES / dataset / "dice.json").read_text())
    values = overview.pivot_table(index="method", columns="metric", values=["mean", "low", "high"], sort=False)
    columns = {key: value for key, value in COLUMNS.items() if key in values["mean"]}
    lines = [
        "| method | λ, smoothing | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for method, row in values.iterrows():
        cells = [style.format(row["mean", key]) for key, (_, style) in columns.items()]
        cells[0] += f" [{row['low', 'dice']:.3f}, {row['high', 'dice']:.3f}]"
        lam = f"{lams[method]:g}" if method in lams else "–"
        lines.append(f"| {method_name(method)} | {lam} | " + " | ".join(cells) + " |")
    count = int(overview["n"].max())
    return "\n".join(
        [
            *lines,
            "",
            f"Means over {count} test pairs, {int(seeds.max())} seed(s), for Dice with its 95 % bootstrap interval. "
            f"Source: `{source['source_runs'][0]}`, files in [`figures/{dataset}`](figures/{dataset}).",
            "",
        ]
    )


def ways_table(dataset: str) -> str:
    """Markdown table of `figures/<dataset>/optimisation.csv`: one pair at a time, means and median seconds."""
    overview = pd.read_csv(FIGURES / dataset / "optimisation.csv")
    source = json.loads((FIGURES / dataset / "optimisation.json").read_text())
    columns = {key: value for key, value in COLUMNS.items() if key in overview}
    lines = [
        "| way | λ | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for row in overview.to_dict("records"):
        cells = [style.format(row[key]) for key, (_, style) in columns.items()]
        cells[0] += f" [{row['dice_low']:.3f}, {row['dice_high']:.3f}]"
        lam = f"{row['lam']:g}" if row["lam"] else "–"
        lines.append(f"| {method_name(row['way'])} | {lam} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"Means over {overview.n.max():.0f} test pairs, Dice with its 95 % bootstrap interval; medians of the "
            f"seconds. Source: `{source['source_runs'][0]}`, files in [`figures/{dataset}`](figures/{dataset}).",
            "",
        ]
    )


def filled(text: str) -> str:
    """The README with every block made anew."""

    def block(match: re.Match) -> str:
        dataset, _, stage = match[2].partition("/")
        return match[1] + (ways_table if stage == "optimisation" else table)(dataset) + match[4]

    return BLOCK.sub(block, text)


def main() -> int:
    README.write_text(filled(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
