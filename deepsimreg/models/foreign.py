"""Networks from elsewhere as extractors: TorchScript files, modules with weights in safetensors, random weights.

What such a network expects is declared with it: the range or the normalisation of grey values, its channels, the sizes
that it takes, the size of the voxels that it was trained on, and tiles where a whole image does not fit into memory.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from deepsimreg.errors import WeightsError
from deepsimreg.models.registry import EXTRACTORS
from deepsimreg.warps import INTERPOLATION, crop, pad_to_multiple

INTENSITIES = ("unit", "zscore")
RANDOM = "random"  # the extractor of this name has weights that were never trained


class ForeignFeatures(nn.Module):
    """Features of a network that was made elsewhere.

    Args:
        network: image (N, channels, *spatial) -> a tensor, or several of them.
        layers: which of its outputs count, from 0; for a module also names of its parts, whose outputs are taken. None:
            all outputs.
        intensity: "unit", grey values in [0, 1]; "zscore", mean 0 and SD 1 of each image; or (low, high), the values
            that 0 and 1 become.
        channels: of the network's input; a grey image is repeated.
        multiple: sizes are padded by edge values to a multiple of it.
        tile: voxels along each side of a tile that is looked at at once, a multiple of `multiple`; None: all of it.
        overlap: voxels by which tiles overlap at each side, and which do not count.
        voxel_size: mm, of the images that the network was trained on; None: any.

    The maps come back at steps of powers of two, as `DeepSim` needs them: others are interpolated to the nearest.
    ValueError for options that do not go together.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[int | str] | None = None,
        intensity: str | tuple[float, float] = "unit",
        channels: int = 1,
        multiple: int = 1,
        tile: int | None = None,
        overlap: int = 16,
        voxel_size: float | None = None,
    ):
        super().__init__()
        if isinstance(intensity, str) and intensity not in INTENSITIES:
            raise ValueError(f"intensity is {intensity!r}: choose unit, zscore or (low, high)")
        if tile is not None and (tile % multiple or overlap % multiple or 2 * overlap >= tile):
            raise ValueError(f"tile is {tile} and overlap {overlap}: give multiples of {multiple}, tile > 2 overlap")
        self.network = network.eval()
        for weight in network.parameters():  # `requires_grad_` of a module is not offered by TorchScript
            weight.requires_grad_(False)
        self.layers, self.intensity, self.channels = layers, intensity, channels
        self.multiple, self.tile, self.overlap, self.voxel_size = multiple, tile, overlap, voxel_size
        self.spacing: tuple[float, ...] | None = None

    def at_spacing(self, spacing: Sequence[float]) -> Self:
        """Say how large the voxels of the images are (mm, array axis order), for a network with a `voxel_size`."""
        self.spacing = tuple(spacing)
        return self

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps of (N, 1 or channels, *spatial) in [0, 1]: (N, C_l, *⌈spatial / r_l⌉), r_l a power of two."""
        size = image.shape[2:]
        seen = self._scaled(self._normalised(image.expand(-1, self.channels, *size)))
        maps = [one for one, _ in self._outputs(seen)] if self.tile is None else self._tiled(seen)
        return [self._at_power(one, seen.shape[2:], size) for one in maps]

    def _normalised(self, image: Tensor) -> Tensor:
        if self.intensity == "unit":
            return image
        if self.intensity == "zscore":
            axes = tuple(range(1, image.ndim))
            deviation = image.std(axes, keepdim=True, correction=0).clamp(min=1e-6)
            return (image - image.mean(axes, keepdim=True)) / deviation
        low, high = self.intensity
        return low + image * (high - low)

    def _scaled(self, image: Tensor) -> Tensor:
        """The image at the size of voxel that the network knows."""
        if self.voxel_size is None:
            return image
        if self.spacing is None:
            raise ValueError("this extractor has a voxel_size: tell it that of the images by at_spacing(spacing)")
        size = [max(1, round(n * s / self.voxel_size)) for n, s in zip(image.shape[2:], self.spacing, strict=True)]
        return functional.interpolate(image, size, mode=INTERPOLATION[image.ndim - 2], antialias=image.ndim == 4)

    def _outputs(self, image: Tensor) -> list[tuple[Tensor, np.ndarray]]:
        """The maps that count, of an image of any size, each cut to what it shows of it; and its voxels per step."""
        padded = pad_to_multiple(image, self.multiple)
        taken: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in filter(lambda layer: isinstance(layer, str), self.layers or ()):
                note = partial(lambda name, _, __, out: taken.update({name: out}), name)
                hooks.enter_context(self.network.get_submodule(name).register_forward_hook(note))
            try:
                found = self.network(padded)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ValueError(f"the network takes no images of shape {tuple(padded.shape)}: {reason}") from error
        outputs = [found] if isinstance(found, Tensor) else list(found.values() if isinstance(found, dict) else found)
        known = dict(enumerate(outputs)) | taken
        try:
            chosen = [known[layer] for layer in (range(len(outputs)) if self.layers is None else self.layers)]
        except KeyError as error:
            raise ValueError(f"layer {error.args[0]!r} is not there: the network has {len(outputs)} outputs") from error
        steps = [np.divide(padded.shape[2:], one.shape[2:]) for one in chosen]
        return [(crop(one, _positions(image.shape[2:], step)), step) for one, step in zip(chosen, steps, strict=True)]

    def _tiled(self, image: Tensor) -> list[Tensor]:
        """As the maps of `_outputs`. A tile omits its first margins; what comes after it replaces its last ones."""
        size, side = image.shape[2:], self.tile - 2 * self.overlap
        whole: list[Tensor] = []
        for start in map(np.array, itertools.product(*(range(0, n, side) for n in size))):
            margin = np.minimum(start, self.overlap)
            found = self._outputs(image[_window(start - margin, start + side + self.overlap)])
            maps = [(one, np.rint(step).astype(int)) for one, step in found]
            whole = whole or [one.new_zeros(*one.shape[:2], *_positions(size, step)) for one, step in maps]
            for target, (one, step) in zip(whole, maps, strict=True):
                inner = one[_window(margin // step, one.shape[2:])]
                target[_window(start // step, start // step + inner.shape[2:])] = inner
        return whole

    def _at_power(self, one: Tensor, seen: Sequence[int], size: Sequence[int]) -> Tensor:
        """A map brought to the nearest steps that are powers of two of the image."""
        steps = [2 ** max(0, round(math.log2(n / m))) for n, m in zip(size, one.shape[2:], strict=True)]
        wanted = [-(-n // step) for n, step in zip(size, steps, strict=True)]
        if wanted == list(one.shape[2:]) and tuple(seen) == tuple(size):
            return one
        return functional.interpolate(one, wanted, mode=INTERPOLATION[len(wanted)])


def _positions(size: Sequence[int], steps: np.ndarray) -> list[int]:
    """⌈size / steps⌉, of steps that are fractions up to rounding."""
    return np.ceil(np.divide(size, steps) - 1e-6).astype(int).tolist()


def _window(start: Sequence[int], stop: Sequence[int]) -> tuple:
    """The index of a part of (N, C, *spatial)."""
    return (..., *(slice(a, b) for a, b in zip(start, stop, strict=True)))


class TorchScriptFeatures(ForeignFeatures):
    """Features of a network in a TorchScript file (`torch.jit.save`), which needs none of its code.

    path: the file. layers: outputs that count, from 0. Options as `ForeignFeatures`. WeightsError for a file that is
    missing or no TorchScript. A TorchScript file holds code: load only files that you trust.
    """

    def __init__(self, path: str | Path, layers: Sequence[int] | None = None, **options):
        path = Path(path).expanduser()
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; give one that torch.jit.save wrote")
        try:
            network = torch.jit.load(str(path), map_location="cpu").eval()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{path}: no TorchScript ({reason})") from error
        super().__init__(network, layers, **options)


class ModuleFeatures(ForeignFeatures):
    """Features of a module of one's own, with weights from a safetensors file.

    path: its weights, by the module's own keys. layers: outputs from 0, or names of parts of the module. WeightsError
    for a file that is missing, damaged or holds other keys.
    """

    def __init__(self, module: nn.Module, path: str | Path, layers: Sequence[int | str] | None = None, **options):
        try:
            module.load_state_dict(load_file(Path(path).expanduser()))
        except Exception as error:
            raise WeightsError(f"{path}: not the weights of {type(module).__name__} ({error})") from error
        super().__init__(module.eval(), layers, **options)


def random_features(ndim: int, seed: int = 0) -> nn.Module:
    """A segmentation network whose weights were never trained, as control: what its structure alone makes similar."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EXTRACTORS["seg"](ndim=ndim, out_channels=2).eval()
