"""Saving and loading networks: safetensors with its class and configuration in the header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from deepsimreg.errors import WeightsError
from deepsimreg.files import whole
from deepsimreg.lazy import Registry
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS

_NAMES = {"seg": "unet", "ae": "autoencoder"}  # in files, since the first version
RETIRED = {"stages": 1}  # options of older files, with the value that equals today's network


def known_models() -> Registry:
    """Networks by the names that files have for them."""
    extractors = {_NAMES.get(kind, kind): place for kind, place in EXTRACTORS.places.items()}
    return Registry(extractors | ARCHITECTURES.places)


def save_model(model: nn.Module, path: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write weights and configuration to `path` (.safetensors), under a temporary name first.

    weights: a state of the model, as `state_dict` gives it; None: its present one. WeightsError for a class that is not
    in the registry, such as a subclass of one that is.
    """
    name = next((name for name, kind in known_models().items() if type(model) is kind), None)
    if name is None:
        raise WeightsError(
            f"{path}: {type(model).__name__} is not registered, so it could not be loaded again: add its class to "
            "deepsimreg.models.registry"
        )
    tensors = {key: value.detach().contiguous().cpu() for key, value in (weights or model.state_dict()).items()}
    with whole(path) as partial:
        partial.write_bytes(save(tensors, metadata={"model": name, "config": json.dumps(model.config)}))
    return path


def load_model(path: Path, kind: type[nn.Module] | None = None) -> nn.Module:
    """Rebuild the network that `save_model` wrote, in evaluation mode.

    kind: the expected class. WeightsError for a missing or damaged file, or another network than `kind`.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; train it or name a run that holds weights.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except Exception as error:  # also of a type or a size that torch does not have
        raise WeightsError(f"{path}: damaged or not safetensors ({error}); train or fetch it again") from error
    known = known_models()
    if metadata.get("model") not in known:
        raise WeightsError(f"{path}: not a network of deepsimreg (known: {', '.join(known)})")
    cls = known[metadata["model"]]
    if kind is not None and cls is not kind:
        raise WeightsError(f"{path}: holds weights of {cls.__name__}, but {kind.__name__} is needed; name another run")
    try:
        config = dict(json.loads(metadata["config"]))
        model = cls(**{key: value for key, value in config.items() if RETIRED.get(key) != value})
    except Exception as error:  # whatever a damaged number makes a layer raise
        raise WeightsError(
            f"{path}: {cls.__name__} cannot be built from its configuration ({error}): the file is damaged, or of "
            "another version of deepsimreg"
        ) from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path}: weights do not fit their own configuration: {error}") from error
    return model.eval()


def tensor_digest(path: Path) -> str:
    """Sixteen hex digits of the tensors in a .safetensors file, whatever order the file holds them in."""
    found = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        for key in sorted(file.keys()):
            found.update(key.encode() + file.get_tensor(key).tobytes())
    return found.hexdigest()[:16]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
