"""The phantom: seeded scenes of nested blobs, and pairs whose exact displacement is known.

A scene is a stack of nested level sets phi_k (voxels, positive inside): phi_k is the union of blobs
`radius - |x - centre| + smooth noise`, held inside phi_{k-1}; the class of a voxel is the number of level
sets that are positive there. The fixed scene is the same level sets at x + u(x), with u the flow of a smooth
random velocity that vanishes at the border, so u is invertible, stays on the grid and is the exact answer.

An image is `gain(x) * (level[class] + texture[class]) + offset(x) + noise`. Gain and offset (uneven light),
texture and noise are drawn anew for each image, as between two exposures or two sections: intensity
differences follow the light, local correlation follows the noise, and the tissue is in contrast and texture.
Everything follows from (seed, split, index).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from deepsimreg.data.base import SPLITS, Dataset, LazySequence, Pair, Sample, check_split
from deepsimreg.warps import integrate


@dataclass(frozen=True)
class Layer:
    """The blobs of one class: how many in each blob of the layer outside, and how large.

    Radius is a fraction of the outer blob's radius, for the outermost layer of the shortest image side.
    """

    count: tuple[int, int]
    radius: tuple[float, float]


@dataclass(frozen=True)
class Material:
    """How a class looks: its grey level in steps of `contrast`, and its texture (SD, grain in voxels)."""

    level: float
    texture: float
    grain: float


@dataclass(frozen=True)
class Phantom(Dataset):
    """Scenes of nested blobs; the length of `shape` decides between 2D and 3D.

    `train`, `validation`, `test` count pairs. `noise` is the SD of the white noise, `contrast` the step
    between classes, `illumination` the amplitude of gain and offset, all on the [0, 1] scale of the image;
    `displacement` is the largest speed of the flow as a fraction of the shortest side.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    layers: tuple[Layer, ...]
    materials: tuple[Material, ...]
    shape: tuple[int, ...]
    train: int
    validation: int
    test: int
    seed: int = 0
    noise: float = 0.06
    contrast: float = 0.14
    illumination: float = 0.08
    displacement: float = 0.09
    description: str = "seeded scenes of nested blobs, uneven light and noise, exact displacement known"
    licence: str = "MIT (made by this package)"
    citation: str = "deepsimreg, deepsimreg/data/phantom.py"
    _cache: dict[tuple[str, int], Pair] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.ndim not in (2, 3) or min(self.shape) < 16:
            raise ValueError(f"shape is {self.shape}: give 2 or 3 sides of at least 16 voxels")
        if min(self.noise, self.contrast, self.illumination, self.displacement) < 0:
            raise ValueError("noise, contrast, illumination and displacement must not be negative")
        if self.displacement > 0.15:
            raise ValueError(f"displacement is {self.displacement}: above 0.15 of the side the flow may fold")

    @property
    def spacing(self) -> tuple[float, ...]:
        return (1.0,) * self.ndim

    def __getstate__(self):
        return self.__dict__ | {"_cache": {}}

    def pairs(self, split: str) -> Sequence[Pair]:
        return LazySequence(getattr(self, check_split(split)), partial(self._pair, split))

    def samples(self, split: str) -> Sequence[Sample]:
        return LazySequence(2 * getattr(self, check_split(split)), partial(self._sample, split))

    def _sample(self, split: str, index: int) -> Sample:
        pair = self._pair(split, index // 2)
        return pair.fixed if index % 2 else pair.moving

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self).encode())
        for split in SPLITS:
            for sample in self.samples(split)[:2]:
                digest.update(sample.label.numpy().tobytes())
        return digest.hexdigest()[:16]

    def _pair(self, split: str, index: int) -> Pair:
        if (split, index) not in self._cache:
            random = np.random.default_rng([self.seed, SPLITS.index(split), index])
            scene = self._scene(random)
            displacement = self._flow(random)
            position = np.indices(self.shape) + displacement
            moved = np.stack([map_coordinates(phi, position, order=3, mode="nearest") for phi in scene])
            self._cache[split, index] = Pair(
                moving=self._photograph(scene, f"{split}-{index:03d}-moving", random),
                fixed=self._photograph(moved, f"{split}-{index:03d}-fixed", random),
                displacement=torch.from_numpy(displacement),
            )
        return self._cache[split, index]

    def _scene(self, random: np.random.Generator) -> np.ndarray:
        """Nested level sets (classes - 1, *shape), voxels."""
        grid = np.indices(self.shape, dtype=np.float32)
        side = min(self.shape)
        centres = self._scatter(random, random.integers(*self.layers[0].count, endpoint=True))
        outer = [(centre, side * random.uniform(*self.layers[0].radius)) for centre in centres]
        level_sets = [self._union(grid, outer, random)]
        for layer in self.layers[1:]:
            inner = []
            for centre, radius in outer:
                for _ in range(random.integers(*layer.count, endpoint=True)):
                    size = radius * random.uniform(*layer.radius)
                    direction = random.normal(size=self.ndim)
                    reach = max(radius - size, 0) * random.uniform(0.2, 0.9)
                    inner.append((centre + reach * direction / np.linalg.norm(direction), size))
            level_sets.append(np.minimum(self._union(grid, inner, random), level_sets[-1] - 1.5))
            outer = inner
        return np.stack(level_sets)

    def _scatter(self, random: np.random.Generator, count: int) -> list[np.ndarray]:
        """Centres (voxels) that keep apart: each the farthest of a few draws from those before it."""
        size = np.array(self.shape)
        centres: list[np.ndarray] = []
        for _ in range(count):
            draws = random.uniform(0.12, 0.88, size=(8, self.ndim)) * size
            gaps = [min((np.linalg.norm(draw - c) for c in centres), default=0.0) for draw in draws]
            centres.append(draws[int(np.argmax(gaps))])
        return centres

    def _union(self, grid: np.ndarray, blobs, random: np.random.Generator) -> np.ndarray:
        """Level set of the union of blobs (centre, radius); each radius is modulated by smooth noise."""
        wobble = _smooth_noise(random, self.shape, sigma=max(2, np.mean([radius for _, radius in blobs]) / 3))
        union = np.full(self.shape, -float(max(self.shape)), dtype=np.float32)
        for centre, radius in blobs:
            distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
            union = np.maximum(union, radius * (1 + 0.2 * wobble) - distance)
        return union

    def _flow(self, random: np.random.Generator) -> np.ndarray:
        """Displacement (D, *shape), voxels, float32: exponential of a smooth velocity, zero at the border."""
        side = min(self.shape)
        velocity = np.stack([_smooth_noise(random, self.shape, sigma=side / 7) for _ in self.shape])
        for position, length in zip(np.ogrid[tuple(map(slice, self.shape))], self.shape, strict=True):
            distance = np.minimum(position, length - 1 - position)
            velocity *= np.sin(np.clip(8 * distance / side, 0, 1) * np.pi / 2) ** 2
        speed = side * self.displacement * random.uniform(0.7, 1.0)
        velocity *= speed / np.linalg.norm(velocity, axis=0).max()
        return integrate(torch.from_numpy(velocity.astype(np.float32))[None])[0].numpy()

    def _photograph(self, scene: np.ndarray, name: str, random: np.random.Generator) -> Sample:
        """Image and label of level sets: `clip(phi + 1/2, 0, 1)` is the fraction of a voxel inside."""
        inside = np.clip(scene + 0.5, 0, 1)
        fractions = np.concatenate([1 - inside[:1], inside[:-1] - inside[1:], inside[-1:]])
        middle = np.mean([material.level for material in self.materials])
        image = np.full(self.shape, 0.5)
        for fraction, material in zip(fractions, self.materials, strict=True):
            texture = material.texture * _smooth_noise(random, self.shape, material.grain)
            image += fraction * ((material.level - middle) * self.contrast + texture)
        gain, offset = (_smooth_noise(random, self.shape, sigma=min(self.shape) / 3) for _ in range(2))
        image = image * (1 + self.illumination * np.tanh(gain)) + self.illumination * np.tanh(offset)
        image = np.clip(image + random.normal(scale=self.noise, size=self.shape), 0, 1)
        label = (scene > 0).sum(axis=0, dtype=np.uint8)
        image, label = torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(label)[None]
        return Sample(image, label, name, self.spacing)


phantom_2d = partial(  # cells with organelles on a background
    Phantom,
    "phantom-2d",
    classes=("background", "cytoplasm", "organelle"),
    colors=("#000000", "#56b4e9", "#e69f00"),
    layers=(Layer((5, 7), (0.12, 0.18)), Layer((2, 3), (0.22, 0.42))),
    materials=(Material(0, 0.02, 2.0), Material(1, 0.06, 1.0), Material(2, 0.04, 2.0)),
    shape=(96, 96),
    train=60,
    validation=12,
    test=24,
)
phantom_3d = partial(  # nested tissue: cortex around medulla around nodules
    Phantom,
    "phantom-3d",
    classes=("background", "cortex", "medulla", "nodule"),
    colors=("#000000", "#0072b2", "#e69f00", "#009e73"),
    layers=(Layer((3, 4), (0.28, 0.36)), Layer((1, 1), (0.65, 0.75)), Layer((1, 2), (0.45, 0.6))),
    materials=(Material(0, 0.02, 2.0), Material(1, 0.05, 1.0), Material(2, 0.03, 2.0), Material(0, 0.05, 0.7)),
    shape=(48, 48, 40),
    train=24,
    validation=6,
    test=12,
    displacement=0.12,
)


def _smooth_noise(random: np.random.Generator, shape: Sequence[int], sigma: float) -> np.ndarray:
    """Gaussian random field of mean 0, SD 1 over the image; `sigma` voxels."""
    field_ = gaussian_filter(random.normal(size=shape).astype(np.float32), sigma, mode="wrap", truncate=3)
    return (field_ - field_.mean()) / field_.std()
