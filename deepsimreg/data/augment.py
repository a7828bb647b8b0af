"""Random affine augmentation: `sample` draws a matrix, `augment_pair` applies it to all images of a pair.

The matrix [A | t] (1, D, D + 1) pulls about the centre of the array, voxels, array axis order:
augmented(x) = image(A (x - c) + c + t), with A = S⁻¹ · rotation · scale · shear · flip · S and S = diag(spacing), so
that a rotation is rigid in mm. Ranges of the paper: 2D rotation ±180°, scale 0.8 to 1.2, shear ±0.03, translation,
flips; 3D rotation ±5°, flips.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from deepsimreg.warps import affine_positions, sample_image, sample_labels


@dataclass(frozen=True)
class Augmentation:
    """Ranges to draw from, uniformly.

    rotation: largest angle in degrees, in each plane of two axes; scale: smallest and largest, the same for all axes;
    shear: largest off-diagonal entry; translation: largest shift as a fraction of each side; flips: mirror each axis
    with probability 1/2.
    """

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    translation: float = 0.0
    flips: bool = False

    def __post_init__(self):
        if min(self.rotation, self.shear, self.translation) < 0:
            raise ValueError("rotation, shear and translation are largest amounts: they must not be negative")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}: give (smallest, largest) with 0 < smallest <= largest")

    def sample(
        self, generator: torch.Generator, ndim: int, shape: Sequence[int], spacing: Sequence[float] | None = None
    ) -> Tensor:
        """An affine matrix (1, ndim, ndim + 1), float32, voxels, for images of spatial `shape`.

        spacing: mm, array axis order; None: the same along all axes. ValueError unless shape and spacing fit ndim.
        """

        def uniform(low: float, high: float, *size: int) -> Tensor:
            return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

        steps = torch.tensor([1.0] * ndim if spacing is None else list(spacing), dtype=torch.float64)
        if len(shape) != ndim or len(steps) != ndim or steps.min() <= 0:
            raise ValueError(f"shape {tuple(shape)} and spacing {spacing} need {ndim} positive values each")
        linear = torch.eye(ndim, dtype=torch.float64)
        for first, second in combinations(range(ndim), 2):
            angle = math.radians(uniform(-self.rotation, self.rotation).item())
            plane = torch.eye(ndim, dtype=torch.float64)
            plane[first, first] = plane[second, second] = math.cos(angle)
            plane[first, second], plane[second, first] = -math.sin(angle), math.sin(angle)
            linear = linear @ plane
        shear = uniform(-self.shear, self.shear, ndim, ndim)
        signs = torch.where(uniform(0, 1, ndim) < 0.5 * self.flips, -1.0, 1.0).double()
        linear = linear * uniform(*self.scale) @ shear.fill_diagonal_(1) @ torch.diag(signs)
        ratios = steps / steps[0]  # exactly 1 for equal spacing
        linear = linear * ratios / ratios[:, None]
        shift = uniform(-self.translation, self.translation, ndim) * torch.tensor(shape, dtype=torch.float64)
        return torch.cat([linear, shift[:, None]], dim=1)[None].float()


AUGMENT_2D = Augmentation(rotation=180, scale=(0.8, 1.2), shear=0.03, translation=0.1, flips=True)
AUGMENT_3D = Augmentation(rotation=5, flips=True)
AUGMENTATIONS = {2: AUGMENT_2D, 3: AUGMENT_3D}  # by the number of axes


def augment_pair(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    matrix: Tensor,
    window: Sequence[int] = (),
    corner: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Warp images (N, C, *spatial) linearly and labels (N, 1, *spatial) to the nearest class by the matrices (N, D,
    D + 1), one for each pair of the batch.

    window, corner (N, D): the sides and the first voxel of what is wanted of the result, and computed; empty: all of
    it. All must have one spatial size, else ValueError. Lists keep their order, labels their integer dtype.
    """
    shapes = {tuple(tensor.shape[2:]) for tensor in (*images, *labels)}
    if len(shapes) != 1:
        raise ValueError(f"images and labels have the spatial sizes {sorted(shapes)}: pad them to one size")
    positions = affine_positions(matrix, shapes.pop(), window, corner)
    moved = [sample_image(image, positions) for image in images]
    return moved, [sample_labels(label, positions) for label in labels]


def add_noise(image: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Image (N, C, *spatial) in [0, 1] plus Gaussian noise of that standard deviation, clipped to [0, 1].

    The noise is drawn on the generator's device, so it does not depend on the image's device or dtype.
    """
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    return (image + std * noise.to(image)).clamp(0, 1)


def uneven_light(image: Tensor, generator: torch.Generator) -> Tensor:
    """Image (N, C, *spatial) in [0, 1], brighter to one side: times .5 at one end of a random direction, 1.5 at the
    other, clipped to [0, 1].
    """
    shape = image.shape[2:]
    direction = torch.randn(len(shape), generator=generator)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in shape), indexing="ij")
    ramp = sum(part * axis for part, axis in zip(direction, axes, strict=True))
    return (image * (1 + 0.5 * ramp / ramp.abs().max()).to(image)).clamp(0, 1)


CONTRASTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {  # what one image of a pair may go through
    "gamma 0.5": lambda image, _: image.sqrt(),
    "gamma 2": lambda image, _: image.square(),
    "inverted": lambda image, _: 1 - image,
    "uneven light": uneven_light,
    "noise": lambda image, generator: add_noise(image, 0.1, generator),
}
