"""Make the pretrained networks of the package from the runs of a profile: weights in half precision, card, index.

python -m deepsimreg.paper.release cpu hippocampus-mr ncc-3
"""

import hashlib
from pathlib import Path

import torch
import yaml
from torch import nn

from deepsimreg.data.base import Dataset
from deepsimreg.models.store import save_model
from deepsimreg.paper.errors import run_main
from deepsimreg.paper.evaluate import Entry, evaluate
from deepsimreg.paper.extractors import evaluate_extractor, load_extractor
from deepsimreg.paper.files import read_json, write_json, write_text
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.registrations import load_network
from deepsimreg.paper.run import Run
from deepsimreg.pretrained import INDEX, WEIGHTS, load

WHAT = {
    "seg": "U-Net, segments {classes}; its encoder gives the features of DeepSim (seg)",
    "ae": "Autoencoder, reconstructs the image; its encoder gives the features of DeepSim (AE)",
    "registration": "Registration network, trained with {similarity}, λ {lam:g}",
}
MOST = 8 * 2**20  # bytes of all weights together

CARD = """# {name}

{what}.

| | |
|---|---|
| file | `{file}`, {size} kB, half precision, {parameters:,} weights |
| sha256 | `{sha256}` |
| trained on | {data}: {description} |
| data from | {citation} |
| licence | {licence}, as the data it was trained on |
| input | (N, 1, *spatial), grey values in [0, 1], {spacing} mm |
| run | `{run}`, identity {identity}, commit {commit} |

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
    """Write both extractors and the registration network of a method, each with its card, and the index.

    Args:
        plan, dataset: whose runs.
        method: of the profile, the first seed.
        folder: of the package.

    Returns:
        The weight files.

    Raises:
        SettingsError: a run that has not ended.
        ValueError: more than 8 MiB of weights; nothing has been written then.
    """
    runs = {kind: plan.extractor(dataset, kind).need() for kind in ("seg", "ae")}
    runs["registration"] = plan.registration(dataset, method).need()
    networks = {kind: load_extractor(plan, dataset, kind) for kind in ("seg", "ae")}
    networks["registration"] = load_network(runs["registration"])
    index = read_json(folder / INDEX.name) or {}
    files = {f"{dataset}/{kind}": folder / f"{dataset}-{kind}.safetensors" for kind in networks}
    kept = sum((folder / card["file"]).stat().st_size for name, card in index.items() if name not in files)
    total = kept + sum(value.numel() * 2 for network in networks.values() for value in network.state_dict().values())
    if total > MOST:
        raise ValueError(f"{total / 2**20:.1f} MiB of weights: ship smaller networks, {MOST >> 20} MiB at most")
    folder.mkdir(parents=True, exist_ok=True)
    for (name, path), (kind, network) in zip(files.items(), networks.items(), strict=True):
        save_model(network.half(), path)
        index[name] = _card(name, path, runs[kind], plan.data(dataset))
        write_json(folder / INDEX.name, index)
    return list(files.values())


def _card(name: str, path: Path, run: Run, dataset: Dataset) -> dict:
    """The entry of the index; the card is written beside the weights."""
    network, kind, result = load(path), name.rpartition("/")[2], run.result()
    settings = run.settings.model_dump(mode="json")
    test = _tested(network, dataset, kind)
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "what": WHAT[kind].format(classes=", ".join(dataset.classes), **settings | {"lam": result.get("lam", 0)}),
        "data": dataset.name,
        "licence": dataset.licence,
        "validation": {key: float(f"{value:.4g}") for key, value in result["best"].items()},
        "test": test,
    }
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    more = {
        "name": name,
        "size": path.stat().st_size // 1000,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "description": dataset.description,
        "citation": dataset.citation,
        "spacing": " × ".join(f"{step:g}" for step in dataset.spacing),
        "run": str(run),
        "identity": run.identity,
        "commit": config["provenance"]["commit"],
        "validation": _listed(entry["validation"]),
        "test": _listed(test),
        "settings": yaml.safe_dump(settings, sort_keys=False),
    }
    write_text(path.with_suffix(".md"), CARD.format(**entry | more))
    return entry


def _tested(network: nn.Module, dataset: Dataset, kind: str) -> dict[str, float]:
    if kind == "registration":
        table = evaluate([Entry({}, torch.no_grad()(network.forward))], dataset)
        columns = ["dice", "folds", "sd_log_jacobian"]
    else:
        table = evaluate_extractor(network, kind, dataset)
        columns = ["dice"] if kind == "seg" else ["mean_squared_error"]
    return {key: float(f"{value:.4g}") for key, value in table[columns].mean().items()}


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{key.removeprefix('validation_').replace('_', ' ')} {value:g}" for key, value in values.items())


def main(profile: str, dataset: str, method: str) -> None:
    for path in release(Profile(profile), dataset, method):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_main(main)
