"""Make the pretrained networks of the package from the runs of a profile: weights in half precision, card, index.

python -m deepsimreg.paper.release cpu hippocampus-mr ncc-3
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import yaml
from torch import nn

from deepsimreg.data.base import Dataset
from deepsimreg.models.store import load_model, save_model
from deepsimreg.paper.errors import run_main
from deepsimreg.paper.evaluate import Entry, evaluate
from deepsimreg.paper.extractors import evaluate_extractor
from deepsimreg.paper.files import read_json, write_json, write_text
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.run import Run
from deepsimreg.paper.words import unit
from deepsimreg.pretrained import INDEX, WEIGHTS, load

WHAT = {
    "seg": "U-Net, segments {classes}; its encoder gives the features of DeepSim (seg)",
    "ae": "Autoencoder, reconstructs the image; its encoder gives the features of DeepSim (AE)",
    "registration": "Registration network, trained with {similarity}, λ {lam:g}",
}
TESTED = {"seg": ["dice"], "ae": ["mean_squared_error"], "registration": ["dice", "folds", "sd_log_jacobian"]}
MOST = 8 * 2**20  # bytes of all weights together

CARD = """# {name}

{what}.

| | |
|---|---|
| file | `{file}`, {size} kB, half precision, {parameters:,} weights |
| sha256 | `{sha256}` |
| trained on | {data}: {dataset.description} |
| data from | {dataset.citation} |
| licence | {licence}, as the data it was trained on |
| input | (N, 1, *spatial), grey values in [0, 1], {spacing} {length} |
| run | `{run}`, identity {run.identity}, commit {commit} |

Validation: {validation}.
Test, with this file: {test}.

Use: `deepsimreg.load("{name}")`.

Limits: a small network that has seen one dataset. Do not expect it to know other contents, contrasts or devices; it is
not for clinical use.

Settings:

```yaml
{settings}```
"""


def release(plan: Profile, dataset: str, method: str, folder: Path = WEIGHTS) -> list[Path]:
    """Write both extractors and the registration network of a method (first seed), each with its card, and the index.

    Returns the weight files. SettingsError for a run that has not ended, ValueError for more than 8 MiB of weights;
    nothing has been written then.
    """
    runs = {f"{dataset}/{kind}": plan.extractor(dataset, kind).need() for kind in ("seg", "ae")}
    runs[f"{dataset}/registration"] = plan.registration(dataset, method).need()
    networks = {name: load_model(run.weights).half() for name, run in runs.items()}
    index = read_json(folder / INDEX.name) or {}
    total = sum((folder / card["file"]).stat().st_size for name, card in index.items() if name not in runs)
    total += sum(value.nbytes for network in networks.values() for value in network.state_dict().values())
    if total > MOST:
        raise ValueError(f"{total / 2**20:.1f} MiB of weights: ship smaller networks, {MOST >> 20} MiB at most")
    files = {name: folder / f"{name.replace('/', '-')}.safetensors" for name in runs}
    for name, path in files.items():
        save_model(networks[name], path)
        index[name] = _card(name, path, runs[name], plan.data(dataset))
        write_json(folder / INDEX.name, index)
    return list(files.values())


def _card(name: str, path: Path, run: Run, dataset: Dataset) -> dict:
    """The entry of the index; the card is written beside the weights."""
    network, kind, result = load(path), name.rpartition("/")[2], run.result()
    settings = run.settings.model_dump(mode="json")
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "what": WHAT[kind].format(classes=", ".join(dataset.classes), **settings | {"lam": result.get("lam", 0)}),
        "data": dataset.name,
        "licence": dataset.licence,
        "validation": _rounded(result["best"]),
        "test": _rounded(_tested(network, dataset, kind)),
    }
    more = {
        "size": path.stat().st_size // 1000,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "spacing": " × ".join(f"{step:g}" for step in dataset.spacing),
        "length": unit(dataset.name),
        "commit": yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))["provenance"]["commit"],
        "settings": yaml.safe_dump(settings, sort_keys=False),
        "validation": _listed(entry["validation"]),
        "test": _listed(entry["test"]),
    }
    write_text(path.with_suffix(".md"), CARD.format(name=name, run=run, dataset=dataset, **entry | more))
    return entry


def _tested(network: nn.Module, dataset: Dataset, kind: str) -> Mapping[str, float]:
    if kind == "registration":
        table = evaluate([Entry({}, network)], dataset)
    else:
        table = evaluate_extractor(network, kind, dataset)
    return table[TESTED[kind]].mean()


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in values.items()}


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{key.removeprefix('validation_').replace('_', ' ')} {value:g}" for key, value in values.items())


def main(profile: str, dataset: str, method: str) -> None:
    for path in release(Profile(profile), dataset, method):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_main(main)
