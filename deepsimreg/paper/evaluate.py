"""The one loop that evaluates methods, and the one rule that chooses their λ.

A method maps (moving, fixed), each (1, 1, *spatial), to a displacement (1, D, *spatial) in voxels: a network, an
optimisation, a network followed by one, or a baseline; None stands for the pair before registration. It works where the
images are, and the metrics are computed there, too: on a GPU if there is one. All but networks also take `weights`, of
the moving and of the fixed voxels, where a pair has masks; metrics are of all voxels. Methods
are interleaved: each pair is registered by all of them before the next one, so load on the machine affects all alike.

The inverse consistency error is the mean distance, mm, that is left when a pair is registered in both directions and
both warps are followed in turn, over the voxels whose way stays inside the image (Christensen & Johnson 2001, IEEE TMI
20:568).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import compress
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from deepsimreg.data.augment import CONTRASTS, add_noise
from deepsimreg.data.base import Dataset, Pair, Sample
from deepsimreg.metrics import evaluate_pair
from deepsimreg.paper.outputs import device, named, write_sample, write_table
from deepsimreg.warps import inverse_residual, warp_image, warp_labels

Method = Callable[..., Tensor]
Weights = tuple[Tensor | None, Tensor | None]  # (1, 1, *spatial), of the moving and of the fixed voxels
MOST_FOLDS = 1e-4  # fraction of voxels; a λ with more folds is not chosen if there is one with fewer
STILL = 0.002  # gain of validation Dice over the pairs before registration, below which a network has learned nothing


@dataclass(frozen=True)
class Entry:
    """A method, the columns that tell it apart, as {"method": "mse", "lam": 0.1, "seed": 0}, where it works, and what
    it is given of the moving and of the fixed sample: (C, *spatial).
    """

    columns: Mapping[str, Any]
    register: Method | None
    device: torch.device = field(default_factory=device)
    given: tuple[Callable[[Sample], Tensor], Callable[[Sample], Tensor]] = (attrgetter("image"), attrgetter("image"))


@torch.no_grad()
def evaluate(
    entries: Sequence[Entry],
    dataset: Dataset,
    split: str = "test",
    rows: Path | None = None,
    limit: int = 0,
    noise: float = 0.0,
    contrast: str = "",
    images: Path | None = None,
    both_ways: bool = False,
) -> pd.DataFrame:
    """Every metric of every pair of a split, for every method.

    Args:
        entries: the methods; all have the same columns.
        rows: a CSV file that keeps the rows pair by pair; what is in it is not registered again.
        limit: the first pairs only; 0: all of them.
        noise: standard deviation of Gaussian noise that is added to both images; the same for every method.
        contrast: one of `CONTRASTS`, that the moving image alone goes through.
        images: folder that receives the warped images and labels; None writes none.
        both_ways: register fixed to moving, too, for the column `inverse_consistency_error`; where the pairs hold both
            directions, each is registered once.

    Returns one row per pair and method: the columns of the entry, `pair`, the metrics of `evaluate_pair`,
    `inverse_consistency_error`, `device`, and `seconds` of the registration alone, there.
    """
    keys = [*entries[0].columns]
    table = _read_rows(rows)
    known = {tuple(None if pd.isna(row[key]) else row[key] for key in (*keys, "pair")) for row in table}
    pairs = dataset.pairs(split)
    count = min(limit or len(pairs), len(pairs))
    groups = _couples(pairs, count) if both_ways else [[number] for number in range(count)]
    for numbers in tqdm(groups, desc=f"{split} pairs", unit="pair", leave=False):
        group = [pairs[number] for number in numbers]
        for entry in entries:
            missing = [(*entry.columns.values(), pair.name) not in known for pair in group]
            if not any(missing):
                continue
            found = [_registered(entry, *pair, noise, contrast) for pair in zip(group, numbers, strict=True)]
            backs = found[::-1] if len(found) > 1 else [(None, 0.0)]
            if both_ways and len(found) == 1:
                backs = [_registered(entry, Pair(group[0].fixed, group[0].moving), numbers[0], noise, contrast)]
            for pair, (displacement, seconds), (back, _) in compress(zip(group, found, backs, strict=True), missing):
                metrics = measure(displacement, pair, dataset)
                if back is not None:
                    metrics["inverse_consistency_error"] = inverse_residual(back, displacement, dataset.spacing)[0]
                more = {"device": named(entry.device), "seconds": seconds}
                table.append({**entry.columns, "pair": pair.name, **metrics, **more})
                if images is not None and displacement is not None:
                    _write_moved(images, pair, displacement)
        if rows is not None:
            write_table(pd.DataFrame(table), rows)
    return pd.DataFrame(table)


def _couples(pairs: Sequence[Pair], count: int) -> list[list[int]]:
    """The numbers of the first pairs; of those in both directions together."""
    groups: dict[frozenset, list[int]] = {}
    for number in range(count):
        groups.setdefault(frozenset((pairs[number].moving.name, pairs[number].fixed.name)), []).append(number)
    return list(groups.values())


def _registered(
    entry: Entry, pair: Pair, number: int, noise: float = 0.0, contrast: str = ""
) -> tuple[Tensor | None, float]:
    """Displacement and seconds of a pair, its images changed as `evaluate` says; its number seeds the changes."""
    where, generator = entry.device, torch.Generator().manual_seed(number)
    both = [given(one)[None] for given, one in zip(entry.given, (pair.moving, pair.fixed), strict=True)]
    both = [add_noise(image, noise, generator) for image in both] if noise else both
    both[0] = CONTRASTS[contrast](both[0], generator) if contrast else both[0]
    return timed(entry.register, *(image.to(where) for image in both), weights_of(pair, where))


def weights_of(pair: Pair, where: torch.device | str = "cpu") -> Weights | None:
    """The masks of a pair as weights on a device; None if it has none."""
    given = [pair.weights.get(name) for name in ("moving_weights", "fixed_weights")]
    return tuple(None if one is None else one[None].to(where) for one in given) if pair.weights else None


def timed(
    register: Method | None, moving: Tensor, fixed: Tensor, weights: Weights | None = None
) -> tuple[Tensor | None, float]:
    """A method's displacement, and the seconds that it took."""
    given = {} if weights is None or isinstance(register, nn.Module) else {"weights": weights}
    if isinstance(register, nn.Module):
        register.to(moving.device)
    started = time.perf_counter()
    displacement = None if register is None else register(moving, fixed, **given)
    if moving.is_cuda:
        torch.cuda.synchronize()
    return displacement, time.perf_counter() - started


def measure(displacement: Tensor | None, pair: Pair, dataset: Dataset) -> dict[str, float]:
    """Every metric of one registered pair."""
    truth = None if pair.displacement is None else pair.displacement[None]
    labels = pair.moving.label[None], pair.fixed.label[None]
    return evaluate_pair(displacement, *labels, dataset.classes, dataset.spacing, truth, published=True)


def choose(table: pd.DataFrame) -> pd.DataFrame:
    """Which λ (or smoothing) each method takes: of its validation means, the highest foreground Dice among those that
    fold at most `MOST_FOLDS`; if all fold more, the smoothest.

    table: rows of `evaluate`, columns `method` and `lam` among them. Returns one row per method and λ: means of the
    metrics, median `seconds`, `chosen`, and for the chosen row `mark`: "edge" if λ lies at an edge of its grid, "folds"
    if it folds more than `MOST_FOLDS`.
    """
    groups = table.groupby(["method", "lam"], sort=False)
    means = groups.mean(numeric_only=True).assign(seconds=groups["seconds"].median()).reset_index()
    means["chosen"], means["mark"] = False, ""
    for _, rows in means.groupby("method", sort=False):
        smooth = rows[rows["folds"] <= MOST_FOLDS]
        best = smooth["dice_foreground"].idxmax() if len(smooth) else rows["sd_log_jacobian"].idxmin()
        at_edge = len(rows) > 1 and rows.loc[best, "lam"] in (rows["lam"].min(), rows["lam"].max())
        marks = ["edge"] * at_edge + ["folds"] * (not len(smooth))
        means.loc[best, ["chosen", "mark"]] = True, " ".join(marks)
    return means


def tune(
    entries: Callable[[str, float], Entry],
    grids: Mapping[str, Sequence[float]],
    widen: int,
    dataset: Dataset,
    rows: Path | None = None,
    limit: int = 0,
) -> pd.DataFrame:
    """Validation rows of every method at every λ of its grid, which is widened where its best lies at an edge.

    entries: (method, λ) → the entry, its columns `method` and `lam`. widen: how many values a grid gets at most, each
    by the ratio of the two before it. dataset, rows, limit: as for `evaluate`. What `rows` holds of other λ, begun by
    a process that was killed, counts only when the grid has come to it.
    """
    grids = {name: list(grid) for name, grid in grids.items()}
    for again in range(widen, -1, -1):
        asked = [entries(name, lam) for name, grid in grids.items() for lam in grid]
        table = evaluate(asked, dataset, "validation", rows, limit)
        table = table[[row.lam in grids[row.method] for row in table.itertuples()]]
        best = choose(table).query("chosen and mark.str.contains('edge')")
        if best.empty or not again:
            break
        for row in best.itertuples():
            near = sorted(grids[row.method], key=lambda lam: abs(math.log(lam / row.lam)))
            grids[row.method].append(float(f"{near[0] ** 2 / near[1]:.3g}"))
    return table


def chosen_lams(table: pd.DataFrame) -> dict[str, float]:
    """Method → the λ that `choose` takes."""
    return dict(choose(table).query("chosen")[["method", "lam"]].itertuples(index=False)) if len(table) else {}


def _read_rows(path: Path | None) -> list[dict[str, Any]]:
    """The whole rows of an unfinished table: a number that was cut is still a number."""
    try:
        text = path.read_text(encoding="utf-8") if path else ""
        return pd.read_csv(StringIO(text[: text.rfind("\n") + 1])).dropna(subset="seconds").to_dict("records")
    except (OSError, ValueError, KeyError):  # a damaged table: all pairs are registered again
        return []


def _write_moved(folder: Path, pair: Pair, displacement: Tensor) -> None:
    for name, warp, values in (("image", warp_image, pair.moving.image), ("label", warp_labels, pair.moving.label)):
        moved = warp(values[None].to(displacement.device), displacement)
        write_sample(folder / f"{pair.name}-{name}", moved[0, 0], pair.fixed)
