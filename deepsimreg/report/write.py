"""One page about a registration: before and after, checkerboard, grid, Jacobian, loss and numbers.

A PNG, a PDF, or an HTML file that holds everything it shows. matplotlib is the extra [report], loaded when it is drawn.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np

from deepsimreg.files import check_writable, whole
from deepsimreg.grid import positions
from deepsimreg.image import Image
from deepsimreg.metrics import indexed_labels, segmentation_metrics
from deepsimreg.transform import Registration
from deepsimreg.warps import sample_labels

SUFFIXES = (".png", ".pdf", ".html")
UNDATED = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
HTML = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font-family: sans-serif; margin: 2em auto; max-width: 110em; padding: 0 1em; color: #222; background: #fff }}
img {{ width: 100% }} table {{ border-collapse: collapse }} caption {{ text-align: left; font-weight: bold }}
th, td {{ border-bottom: 1px solid #ccc; padding: .25em 2em .25em 0; text-align: left; font-weight: normal }}
td {{ text-align: right; font-variant-numeric: tabular-nums }}
</style></head><body>
<h1>{title}</h1>
<img alt="Images before and after, checkerboard, grid, difference, Jacobian determinant and loss" src="{picture}">
<table><caption>Numbers</caption>
{rows}
</table></body></html>
"""


def check_report(path: str | Path) -> None:
    """Better before the work than after it: ValueError for another suffix, ImportError without matplotlib, DataError
    for a folder that cannot be written.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} has an unknown suffix: a report is one of {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("a report needs matplotlib: pip install deepsimreg[report]") from error
    check_writable(Path(path).parent)


def write_report(registration: Registration, path: str | Path) -> Path:
    """Write the page of one pair, of its images the first channel; the suffix, .png, .pdf or .html, decides how.

    The file appears whole or not at all. Raises as `check_report`, and ValueError for several pairs.
    """
    check_report(path)
    if len(registration.displacement) > 1:
        raise ValueError(f"{len(registration.displacement)} pairs: a report shows one, register them one by one")
    from deepsimreg.report.page import draw

    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    kind = "png" if suffix == "html" else suffix
    title, numbers, page = report_title(registration), report_numbers(registration), io.BytesIO()
    draw(registration, title, numbers).savefig(page, format=kind, dpi=130, metadata=UNDATED[kind])
    content = page.getvalue()
    if suffix == "html":
        rows = "\n".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in numbers.items())
        picture = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        content = HTML.format(title=html.escape(title), picture=picture, rows=rows).encode()
    with whole(path) as partial:
        partial.write_bytes(content)
    return path


def report_title(registration: Registration) -> str:
    """The names of the two files, without their folders."""
    moving, fixed = (Path(one.name.split(" ", 1)[-1]).name for one in (registration.moving, registration.fixed))
    return f"{moving} pulled onto {fixed}"


def report_numbers(registration: Registration) -> dict[str, str]:
    """The rows of the table: name → value with its unit; those that are not known are left out."""
    fixed, metrics = registration.fixed, registration.metrics
    spacing = np.reshape(fixed.spacing, (-1, *[1] * fixed.ndim))
    length = np.linalg.norm(registration.displacement[0].detach().cpu().numpy() * spacing, axis=0)
    numbers = {"Similarity": registration.similarity or "none, no step was optimised"}
    if registration.lam is not None:
        numbers |= {"Weight λ of the regulariser": f"{registration.lam:g}"}
    if registration.steps:
        numbers |= {"Steps by level": " + ".join(map(str, registration.steps))}
    for name, before in _overlap_before(registration).items():
        numbers[f"Dice {name}, before → after"] = f"{before:.3f} → {metrics[f'dice_{name}']:.3f}"
    seconds = {name: f"{value:.1f}" for name, value in registration.seconds.items()}
    parts = [f"{name} {value}" for name, value in seconds.items() if name != "total" and value != "0.0"]
    return numbers | {
        "Folds (J ≤ 0)": f"{100 * metrics['folds']:.3g} % of the voxels",
        "SD of log J": f"{metrics['sd_log_jacobian']:.3f}",
        "Displacement, mean and maximum": f"{length.mean():.2f} and {length.max():.2f} {fixed.unit}",
        "Seconds": f"{seconds['total']} ({', '.join(parts)})" if parts else seconds["total"],
        "Fixed grid": _grid(fixed),
        "Moving grid": _grid(registration.moving),
    }


def _overlap_before(registration: Registration) -> dict[str, float]:
    """Dice of the mean foreground and of each label, before registration; nothing if a label image is missing."""
    if registration.moving_labels is None or registration.fixed_labels is None:
        return {}
    still = positions(registration.matrix, 0 * registration.displacement)
    labels = sample_labels(registration.moving_labels.data.to(still.device), still)
    found = segmentation_metrics(*indexed_labels(labels, registration.fixed_labels.data))
    names = {name.removeprefix("dice_"): value for name, value in found.items() if name.startswith("dice_")}
    return {name: value for name, value in names.items() if name != "0"}


def _grid(image: Image) -> str:
    size, spacing = (" × ".join(f"{value:.4g}" for value in values) for values in (image.shape, image.spacing))
    return f"{size} voxels" + (f" of {spacing} mm" if image.unit == "mm" else "")
