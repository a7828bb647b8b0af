"""Networks from elsewhere as extractors: TorchScript files, modules with weights in safetensors, random weights.

What such a network expects is declared with it: the range or the normalisation of grey values, its channels, the sizes
that it takes, the size of the voxels that it was trained on, and tiles where a whole image does not fit into memory.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
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
        maps = self._outputs(seen) if self.tile is None else self._tiled(seen)
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

    def _outputs(self, image: Tensor) -> list[Tensor]:
        """The maps that count, of an image of any size, each cut to what it shows of it."""
        padded = pad_to_multiple(image, self.multiple)
        names = [layer for layer in self.layers or () if isinstance(layer, str)]
        taken: dict[str, Tensor] = {}
        hooks = [
            self.network.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: taken.update({name: out})
            )
            for name in names
        ]
        try:
            found = self.network(padded)
        finally:
            for hook in hooks:
                hook.remove()
        outputs = [found] if isinstance(found, Tensor) else list(found.values() if isinstance(found, dict) else found)
        layers = range(len(outputs)) if self.layers is None else self.layers
        try:
            chosen = [taken[layer] if isinstance(layer, str) else outputs[layer] for layer in layers]
        except (IndexError, KeyError) as error:
            raise ValueError(f"layer {error.args[0]!r} is not there: the network has {len(outputs)} outputs") from error
        ratios = [[whole / part for whole, part in zip(padded.shape[2:], one.shape[2:], strict=True)] for one in chosen]
        shown = [
            [math.ceil(n / ratio - 1e-6) for n, ratio in zip(image.shape[2:], steps, strict=True)] for steps in ratios
        ]
        return [crop(one, size) for one, size in zip(chosen, shown, strict=True)]

    def _tiled(self, image: Tensor) -> list[Tensor]:
        """As `_outputs`, of tiles whose margins are cut off."""
        whole: list[Tensor] = []
        for place in self._tiles(image.shape[2:]):
            window = [slice(max(0, start - self.overlap), stop + self.overlap) for start, stop in place]
            maps = self._outputs(image[(..., *window)])
            for number, one in enumerate(maps):
                steps = [
                    round(len(range(*w.indices(n))) / m)
                    for w, n, m in zip(window, image.shape[2:], one.shape[2:], strict=True)
                ]
                if len(whole) <= number:
                    size = [-(-n // step) for n, step in zip(image.shape[2:], steps, strict=True)]
                    whole.append(one.new_zeros(*one.shape[:2], *size))
                inner = [
                    slice((s - w.start) // r, -(-(e - w.start) // r))
                    for (s, e), w, r in zip(place, window, steps, strict=True)
                ]
                target = [slice(s // r, -(-e // r)) for (s, e), r in zip(place, steps, strict=True)]
                whole[number][(..., *target)] = one[(..., *inner)]
        return whole

    def _tiles(self, shape: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
        """Start and end of the part of each tile that counts, along each axis."""
        step = self.tile - 2 * self.overlap
        return itertools.product(*([(s, min(s + step, n)) for s in range(0, n, step)] for n in shape))

    def _at_power(self, one: Tensor, seen: Sequence[int], size: Sequence[int]) -> Tensor:
        """A map brought to the nearest steps that are powers of two of the image."""
        steps = [2 ** max(0, round(math.log2(n / m))) for n, m in zip(size, one.shape[2:], strict=True)]
        wanted = [-(-n // step) for n, step in zip(size, steps, strict=True)]
        if wanted == list(one.shape[2:]) and tuple(seen) == tuple(size):
            return one
        return functional.interpolate(one, wanted, mode=INTERPOLATION[len(wanted)])


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
        except RuntimeError as error:
            raise WeightsError(f"{path}: no TorchScript ({str(error).strip().splitlines()[0]})") from error
        super().__init__(network, layers, **options)


class ModuleFeatures(ForeignFeatures):
    """Features of a module of one's own, with weights from a safetensors file.

    path: its weights, by the module's own keys. layers: outputs from 0, or names of parts of the module. WeightsError
    for a file that is missing, damaged or holds other keys.
    """

    def __init__(self, module: nn.Module, path: str | Path, layers: Sequence[int | str] | None = None, **options):
        try:
            module.load_state_dict(load_file(Path(path).expanduser()))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise WeightsError(f"{path}: not the weights of {type(module).__name__} ({error})") from error
        super().__init__(module.eval(), layers, **options)


def random_features(ndim: int, seed: int = 0) -> nn.Module:
    """A segmentation network whose weights were never trained, as control: what its structure alone makes similar."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EXTRACTORS["seg"](ndim=ndim, out_channels=2).eval()
