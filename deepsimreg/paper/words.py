"""Results in words: how many, and what tests say."""

from collections.abc import Collection

import pandas as pd

from deepsimreg.paper.figures.style import method_name

LEVEL = 0.05  # of the family-wise error
IN_PIXELS = ("phantom", "t98g-phase", "vnc-em")  # data sets, or how their names begin, whose files give no voxel size


def unit(dataset: str) -> str:
    """The unit of the distances of a dataset: mm, or pixels of its images at `downsample: 1`."""
    return "px" if dataset.startswith(IN_PIXELS) else "mm"


def counted(number: int, what: str) -> str:
    """A number and its noun: 1 seed, 3 seeds."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def probability(p: float) -> str:
    """A p value as a table shows it: below 1e-4 that it is; no p is 0."""
    return "< .0001" if p < 1e-4 else f"{p:.4f}"


def verdict(tests: pd.DataFrame, still: Collection[str] = ()) -> str:
    """The methods that a reference is ahead of, behind, and not distinguished from; those in `still` do not count.

    tests: one row per method, columns `method`, `difference` (reference minus method) and `p_holm`; NaN is no evidence.
    """
    idle, sure, more = tests["method"].isin(still), tests["p_holm"] < LEVEL, tests["difference"] > 0
    said = {"ahead of": sure & more, "behind": sure & ~more, "not distinguished from": ~sure}
    said = {word: which & ~idle for word, which in said.items()} | {"not counted, as they learned nothing:": idle}
    names = {word: "; ".join(map(method_name, tests["method"][which])) for word, which in said.items() if which.any()}
    return ". ".join(f"{word} {methods}" for word, methods in names.items())
