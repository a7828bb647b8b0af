"""Registration of files into a folder: one pair, or the pairs of a table, with progress, resumed where it was ended."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from deepsimreg.errors import DataError
from deepsimreg.files import OUTPUTS, check_writable, read_rows, whole, write_rows
from deepsimreg.registration import register
from deepsimreg.report import check_report, write_report

# columns that hold paths; the first two must be there
FILES = ("moving", "fixed", "labels", "fixed_labels", "moving_mask", "fixed_mask")
WHAT_CAN_FAIL = (ValueError, OSError, RuntimeError, ArithmeticError)  # of one pair, and the next ones go on


def register_files(
    files: Mapping[str, Any],
    out: str | Path,
    outputs: Sequence[str] = OUTPUTS,
    report: Path | None = None,
    verbose: bool = False,
    **options,
) -> dict[str, Any]:
    """Register one pair and write it to `out`, whose place is checked before the work.

    files: `FILES` by their names. report: a page about it to write. verbose: also the seconds of each step and
    `peak_memory_gib`. options: as `register`. Returns its metrics, seconds, and the files it wrote.
    """
    out = check_writable(out)
    if report is not None:
        check_report(report)
    labels = files.get("labels"), files.get("fixed_labels")
    given = None if labels[0] is None else labels if labels[1] is not None else labels[0]
    masks = {name: files[name] for name in ("moving_mask", "fixed_mask") if files.get(name) is not None}
    result = register(files["moving"], files["fixed"], labels=given, **masks, **options)
    written = result.save(out, outputs) + ([] if report is None else [write_report(result, report)])
    found = dict(result.metrics) | {"seconds": result.seconds["total"]}
    if "inverse_field" in outputs:
        found |= result.inverse_residual
    if verbose:
        found |= {f"seconds_{step}": value for step, value in result.seconds.items() if step != "total"}
        found |= {"peak_memory_gib": peak_memory(result.displacement.device)}
    return found | {"files": [str(path) for path in written]}


def register_pairs(table: str | Path, out: str | Path, outputs: Sequence[str] = OUTPUTS, **options) -> Path:
    """Register the pairs of a CSV table into `out`/<name>/ and write `out`/results.csv, a row for each.

    A pair that fails has its reason in the column `error`, and the others go on. Pairs that are in results.csv without
    an error are not registered again.

    Raises:
        DataError: a column or a file is missing, a name occurs twice, or `out` holds results of other options.
        RuntimeError: at the end, if pairs have failed.
    """
    pairs, out = _read_pairs(Path(table)), check_writable(out)
    _check_options(out / "options.json", {"outputs": list(outputs)} | options)
    results = out / "results.csv"
    rows = {row["name"]: row for row in (read_rows(results) if results.is_file() else ()) if not row.get("error")}
    for name, files in tqdm(pairs.items(), desc="pairs", unit="pair"):
        if name in rows:
            continue
        try:
            found = register_files(files, out / name, outputs, progress=False, **options)
            rows[name] = {"name": name} | {key: value for key, value in found.items() if key != "files"}
        except WHAT_CAN_FAIL as error:
            rows[name] = {"name": name, "error": " ".join(str(error).split())}
        write_rows(results, [rows[done] for done in pairs if done in rows])
    failed = [name for name, row in rows.items() if row.get("error")]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(pairs)} pairs failed, {results} says why; first {failed[0]}")
    return results


def peak_memory(device: torch.device) -> float:
    """GiB: what this process has held at most, or of a GPU what torch has; NaN where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _read_pairs(table: Path) -> dict[str, dict[str, Path | None]]:
    """Name → files."""
    rows, pairs = read_rows(table), {}
    if not rows or not {"moving", "fixed"} <= rows[0].keys():
        raise DataError(f"{table} has no rows, or not the columns moving and fixed: add them")
    for row in rows:
        files = {key: table.parent / row[key] if row.get(key) else None for key in FILES}
        for key, path in files.items():
            if (path is None and key in FILES[:2]) or (path is not None and not path.is_file()):
                raise DataError(f"{table}: {key} {path or 'is empty in a row'} is no file: correct the table")
        name = row.get("name") or "--".join(path.name.split(".")[0] for path in (files["moving"], files["fixed"]))
        if name in pairs:
            raise DataError(f"{table} names two pairs {name}: give each its own in the column name")
        pairs[name] = files
    return pairs


def _check_options(path: Path, options: Mapping[str, Any]) -> None:
    text = json.dumps(options, default=str, indent=1, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise DataError(f"{path.parent} holds results of other options, see {path.name}: choose another folder")
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
