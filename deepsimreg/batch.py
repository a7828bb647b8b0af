"""Registration of files into a folder: one pair, or the pairs of a table, with progress, resumed where it was ended."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from deepsimreg.apply import file_of, read_points
from deepsimreg.errors import DataError
from deepsimreg.files import OUTPUTS, check_writable, read_rows, remove_outputs, whole, write_rows
from deepsimreg.image import as_image, as_labels
from deepsimreg.models.foreign import TorchScriptFeatures
from deepsimreg.registration import register
from deepsimreg.report import check_report, write_report

# columns that hold paths of images; the first two must be there
FILES = ("moving", "fixed", "labels", "fixed_labels", "moving_mask", "fixed_mask")
LANDMARKS = ("moving_landmarks", "fixed_landmarks")
COLUMNS = (*FILES, *LANDMARKS, "start")
WHAT_CAN_FAIL = (ValueError, OSError, RuntimeError, ArithmeticError)  # of one pair, and the next ones go on


def register_files(
    files: Mapping[str, Any],
    out: str | Path,
    outputs: Sequence[str] = OUTPUTS,
    report: Path | None = None,
    verbose: bool = False,
    channel: int | None = None,
    page: int | None = None,
    extractor_channels: int = 1,
    extractor_multiple: int = 1,
    **options,
) -> dict[str, Any]:
    """Register one pair and write it to `out`, whose place is checked before the work; the files of an earlier
    registration that it does not write anew are removed, but for what it was made from.

    files: `COLUMNS` by their names; start may be several. report: a page about it to write. verbose: also the seconds
    of each step and `peak_memory_gib`. channel, page: of every file that holds several (`as_image`).
    extractor_channels, extractor_multiple: what the network of a TorchScript file takes. options: as `register`.
    Returns its metrics, seconds, and the files it wrote.
    """
    out = check_writable(out)
    if report is not None:
        check_report(report)
    read = {
        key: None if files.get(key) is None else _read(key, files[key], channel, page, options.get("spacing"))
        for key in FILES
    }
    labels = None if read["labels"] is None else (read["labels"], read["fixed_labels"])
    masks = {"moving_mask": read["moving_mask"], "fixed_mask": read["fixed_mask"]}
    marks = tuple(read_points(files[key])[1] for key in LANDMARKS if files.get(key) is not None) or None
    options |= {key: one for key, one in (("landmarks", marks), ("start", files.get("start"))) if one}
    expected = {"channels": extractor_channels, "multiple": extractor_multiple}
    if set(expected.values()) != {1}:
        if options.get("extractor") is None:
            raise ValueError("channels and multiple of an extractor are those of a TorchScript file: give it, too")
        options["extractor"] = TorchScriptFeatures(options["extractor"], **expected)
    result = register(read["moving"], read["fixed"], labels=labels, **masks, **options)
    written = result.save(out, outputs) + ([] if report is None else [write_report(result, report)])
    remove_outputs(out, but=[*written, *_sources(files)])
    found = dict(result.metrics) | {"seconds": result.seconds["total"]}
    if "inverse_field" in outputs:
        found |= result.inverse_residual
    if verbose:
        found |= {f"seconds_{step}": value for step, value in result.seconds.items() if step != "total"}
        found |= {"peak_memory_gib": peak_memory(result.displacement.device)}
    return found | {"files": [str(path) for path in written]}


def _sources(files: Mapping[str, Any]) -> list[Path]:
    """The files that a registration is made from."""
    given = [one if isinstance(one, list | tuple) else [one] for one in files.values() if one is not None]
    return [file_of(name) for names in given for name in names]


def _read(key: str, source: Any, channel: int | None, page: int | None, spacing: Sequence[float] | None) -> Any:
    """An image, labels or a mask of a file; images of several files as a list."""
    if isinstance(source, list):
        return [_read(key, one, channel, page, spacing) for one in source]
    read, what = (as_labels, key.replace("_", " ")) if "label" in key else (as_image, key.replace("_", " "))
    return read(source, "moving labels" if key == "labels" else what, spacing=spacing, channel=channel, page=page)


def register_pairs(
    table: str | Path, out: str | Path, outputs: Sequence[str] = OUTPUTS, report: str | None = None, **options
) -> Path:
    """Register the pairs of a CSV table into `out`/<name>/ and write `out`/results.csv, a row for each.

    report: suffix of a page about each, `out`/<name>/report.<suffix>. Columns: `name` and `COLUMNS`.

    A pair that fails has its reason in the column `error`, and the others go on. A pair that is in results.csv without
    an error is registered again only if its files have changed: their names, sizes or times, in the column `inputs`.

    Raises:
        DataError: a column or a file is missing, a name occurs twice, or `out` holds results of other options.
        RuntimeError: at the end, if pairs have failed.
    """
    pairs, out = _read_pairs(Path(table)), check_writable(out)
    _check_options(out / "options.json", {"outputs": list(outputs), "report": report} | options)
    results = out / "results.csv"
    before = read_rows(results) if results.is_file() else []
    rows = {row["name"]: row for row in before if not row.get("error") and row.get("name") in pairs}
    for name, files in tqdm(pairs.items(), desc="pairs", unit="pair"):
        inputs = _inputs(files)
        if rows.get(name, {}).get("inputs") == inputs:
            continue
        rows[name] = {"name": name, "inputs": inputs}
        try:
            page = out / name / f"report.{report}" if report else None
            found = register_files(files, out / name, outputs, page, progress=False, **options)
            rows[name] |= {key: value for key, value in found.items() if key != "files"}
        except WHAT_CAN_FAIL as error:
            rows[name]["error"] = " ".join(str(error).split())
        write_rows(results, [rows[done] for done in pairs if done in rows])
    write_rows(results, [rows[name] for name in pairs])
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


def _inputs(files: Mapping[str, Path | None]) -> str:
    """What would show that files have changed."""
    there = {key: path for key, path in files.items() if path is not None}
    return " ".join(f"{key}={p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for key, p in there.items())


def _read_pairs(table: Path) -> dict[str, dict[str, Path | None]]:
    """Name → files."""
    if not table.is_file():
        raise DataError(f"{table} does not exist: give a CSV file with the columns moving and fixed")
    rows, pairs = read_rows(table), {}
    if not rows or not {"moving", "fixed"} <= rows[0].keys():
        raise DataError(f"{table} has no rows, or not the columns moving and fixed: add them")
    unknown = {*rows[0]} - {*COLUMNS, "name"}
    if unknown:
        raise DataError(f"{table} has the columns {', '.join(map(str, unknown))}: there is name, {', '.join(COLUMNS)}")
    for row in rows:
        files = {key: table.parent / row[key] if row.get(key) else None for key in COLUMNS}
        for key, path in files.items():
            if (path is None and key in FILES[:2]) or (path is not None and not path.is_file()):
                raise DataError(f"{table}: {key} {path or 'is empty in a row'} is no file: correct the table")
        name = row.get("name") or "--".join(path.name.split(".")[0] for path in (files["moving"], files["fixed"]))
        if name in pairs:
            raise DataError(f"{table} names two pairs {name}: give each its own in the column name")
        if Path(name).name != name:
            raise DataError(f"{table}: the name {name!r} is no name of a folder: leave out / and ..")
        if files["fixed_labels"] and not files["labels"]:
            raise DataError(f"{table}: {name} has fixed_labels without labels, those of the moving image: add them")
        if (files[LANDMARKS[0]] is None) != (files[LANDMARKS[1]] is None):
            raise DataError(f"{table}: {name} has landmarks of one image: give {' and '.join(LANDMARKS)}")
        pairs[name] = files
    return pairs


def _check_options(path: Path, options: Mapping[str, Any]) -> None:
    text = json.dumps(options, default=str, indent=1, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise DataError(f"{path.parent} holds results of other options, see {path.name}: choose another folder")
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
