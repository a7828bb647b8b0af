"""Make the pretrained networks of the package from the runs of a profile: weights in half precision, card, index.

python -m deepsimreg.paper.release cpu hippocampus-mr ncc-3
"""

import hashlib
import os
import sys
from pathlib import Path

import torch
import yaml
from torch import nn

from deepsimreg.data import Dataset
from deepsimreg.models import save_model
from deepsimreg.paper.experiment import Profile, RegistrationSettings, Run, configuration, relative, write_json
from deepsimreg.paper.stages import evaluate_method, trained_extractor, trained_registration, try_extractor
from deepsimreg.pretrained import INDEX, WEIGHTS, load, pretrained

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
| run | `{run}`, commit {commit} |

Validation: {validation}.
Test, with this file: {test}.

Use: `deepsimreg.load("{name}")`.

Limits: a small network that has seen one dataset. Do not expect it to know other contents, contrasts or devices; it is
not for clinical use.

Settings:

```yaml
{settings}```
"""


def publish(profile: Profile, dataset: Dataset, method: str, folder: Path = WEIGHTS) -> list[Path]:
    """Write both extractors and the registration network of a method, each with its card, and the index.

    Args:
        profile, dataset: whose runs.
        method: of the profile, the first seed.
        folder: of the package.

    Returns:
        The weight files.

    Raises:
        SettingsError: a run that has not ended.
        ValueError: more than 8 MiB of weights; nothing has been written then.
    """
    settings = {kind: profile.extractor(dataset.name, kind) for kind in ("seg", "ae")}
    settings["registration"] = profile.registration(dataset.name, method)
    networks = {}
    for kind, one in settings.items():
        if isinstance(one, RegistrationSettings):
            networks[kind] = trained_registration(one, dataset)
        else:
            networks[kind] = trained_extractor(one, dataset), one.folder
    index = pretrained(folder / INDEX.name)
    files = {f"{dataset.name}/{kind}": folder / f"{dataset.name}-{kind}.safetensors" for kind in networks}
    kept = sum((folder / card["file"]).stat().st_size for name, card in index.items() if name not in files)
    total = kept + sum(value.numel() * 2 for network, _ in networks.values() for value in network.state_dict().values())
    if total > MOST:
        raise ValueError(f"{total / 2**20:.1f} MiB of weights: ship smaller networks, {MOST >> 20} MiB at most")
    folder.mkdir(parents=True, exist_ok=True)
    for (name, path), (network, run) in zip(files.items(), networks.values(), strict=True):
        save_model(network.half(), path)
        index[name] = _card(name, path, run, dataset)
        write_json(folder / INDEX.name, index)
    return list(files.values())


def _card(name: str, path: Path, run: Path, dataset: Dataset) -> dict:
    """The entry of the index; the card is written beside the weights."""
    config, network, kind = configuration(run), load(path), name.rpartition("/")[2]
    best = Run.result_of(run)["best"]
    what = WHAT[kind].format(classes=", ".join(dataset.classes), **config["settings"])
    test = _tested(network, dataset, kind)
    entry = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "what": what,
        "data": dataset.name,
        "licence": dataset.licence,
        "validation": {key: float(f"{value:.4g}") for key, value in best.items()},
        "test": test,
    }
    text = CARD.format(
        **entry
        | {
            "name": name,
            "size": path.stat().st_size // 1000,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "description": dataset.description,
            "citation": dataset.citation,
            "spacing": " × ".join(f"{step:g}" for step in dataset.spacing),
            "run": relative(run),
            "commit": config["provenance"]["commit"],
            "validation": _listed(entry["validation"]),
            "test": _listed(test),
            "settings": yaml.safe_dump(config["settings"], sort_keys=False),
        }
    )
    temporary = path.with_suffix(".md.tmp")
    temporary.write_text(text)
    os.replace(temporary, path.with_suffix(".md"))
    return entry


@torch.no_grad()
def _tested(network: nn.Module, dataset: Dataset, kind: str) -> dict[str, float]:
    if kind == "registration":
        means = evaluate_method(network, dataset)[["dice", "folds", "sd_log_jacobian"]].mean()
    else:
        columns = ["dice"] if kind == "seg" else ["mean_squared_error"]
        means = try_extractor(network, dataset)[columns].mean()
    return {key: float(f"{value:.4g}") for key, value in means.items()}


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{key.removeprefix('validation_').replace('_', ' ')} {value:g}" for key, value in values.items())


def main(profile: str, dataset: str, method: str) -> None:
    plan = Profile(profile)
    for path in publish(plan, plan.load(dataset), method):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
