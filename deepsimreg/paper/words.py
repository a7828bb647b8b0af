"""Results in words: how many, and what tests say."""

import pandas as pd

from deepsimreg.paper.figures.style import method_name

LEVEL = 0.05  # of the family-wise error


def counted(number: int, what: str) -> str:
    """A number and its noun: 1 seed, 3 seeds."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def probability(p: float) -> str:
    """A p value as a table shows it: below 1e-4 that it is; no p is 0."""
    return "< .0001" if p < 1e-4 else f"{p:.4f}"


def verdict(tests: pd.DataFrame) -> str:
    """The methods that a reference is ahead of, behind, and not distinguished from.

    tests: one row per method, columns `method`, `difference` (reference minus method) and `p_holm`; NaN is no evidence.
    """
    sure, more = tests["p_holm"] < LEVEL, tests["difference"] > 0
    said = {"ahead of": sure & more, "behind": sure & ~more, "not distinguished from": ~sure}
    names = {word: "; ".join(map(method_name, tests["method"][which])) for word, which in said.items() if which.any()}
    return ". ".join(f"{word} {methods}" for word, methods in names.items())
