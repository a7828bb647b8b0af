"""Networks, and the one way to keep them: safetensors with their configuration in the header."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from deepsimreg.errors import WeightsError
from deepsimreg.models.autoencoder import Autoencoder
from deepsimreg.models.pyramid import Pyramid
from deepsimreg.models.transmorph import TransMorph
from deepsimreg.models.unet import UNet
from deepsimreg.models.vgg import VGG16Features, load_vgg, vgg_path
from deepsimreg.models.voxelmorph import VoxelMorph

__all__ = [
    "ARCHITECTURES",
    "EXTRACTORS",
    "MODELS",
    "Autoencoder",
    "Pyramid",
    "TransMorph",
    "UNet",
    "VGG16Features",
    "VoxelMorph",
    "count_parameters",
    "load_model",
    "load_vgg",
    "save_model",
    "vgg_path",
]

ARCHITECTURES = {"voxelmorph": VoxelMorph, "pyramid": Pyramid, "transmorph": TransMorph}  # of registration networks
EXTRACTORS = {"seg": UNet, "ae": Autoencoder}  # of features, by what they are trained for
MODELS = {"unet": UNet, "autoencoder": Autoencoder} | ARCHITECTURES


def save_model(model: nn.Module, path: Path) -> Path:
    """Write weights and configuration to `path` (.safetensors), under a temporary name first."""
    name = next(name for name, cls in MODELS.items() if type(model) is cls)
    temporary = path.with_suffix(".tmp")
    tensors = {key: value.detach().contiguous().cpu() for key, value in model.state_dict().items()}
    temporary.write_bytes(save(tensors, metadata={"model": name, "config": json.dumps(model.config)}))
    os.replace(temporary, path)
    return path


def load_model(path: Path, kind: type[nn.Module] | None = None) -> nn.Module:
    """Rebuild the network that `save_model` wrote, in evaluation mode.

    Args:
        path: the .safetensors file.
        kind: the class that is expected.

    Raises:
        WeightsError: no such file, damaged, or another network than `kind`.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file; train it or name a run that holds weights.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged or not safetensors ({error}); train or fetch it again") from error
    if metadata.get("model") not in MODELS:
        raise WeightsError(f"{path}: not a network of deepsimreg (known: {', '.join(MODELS)})")
    cls = MODELS[metadata["model"]]
    if kind is not None and cls is not kind:
        raise WeightsError(f"{path}: holds weights of {cls.__name__}, but {kind.__name__} is needed; name another run")
    model = cls(**json.loads(metadata["config"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path}: weights do not fit their own configuration: {error}") from error
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
