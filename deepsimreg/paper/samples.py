"""What a training step sees: it depends on the step's number and the seed alone.

Sample i is drawn by a generator seeded with (seed, i), and an epoch is the stretch of steps between two validations, so
a run that was killed sees what an uninterrupted one would have seen.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from deepsimreg.data.augment import Augmentation, augment_pair
from deepsimreg.data.base import Pair, Sample


@dataclass(eq=False)
class DrawnSamples(Dataset):
    """Item i is drawn by a generator seeded with (seed, i), with the affine map and the window that it is to have.

    An item is the sample's or pair's tensors as they are; `matrix` (D, D + 1) and `corner` (D,) say what `augmented`
    makes of them, where the network is. Without an augmentation the window is cut here.
    """

    items: Sequence[Sample] | Sequence[Pair]
    augmentation: Augmentation | None
    seed: int
    crop: Sequence[int] = ()  # sides of a random window, voxels; empty: the whole image
    spacing: Sequence[float] | None = None  # mm, array axis order: rotations are rigid in mm

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {index}").getrandbits(63))
        choice = int(torch.randint(len(self.items), (), generator=generator))
        item = to_tensors(self.items[choice])
        shape = next(iter(item.values())).shape[1:]
        matrix = self.augmentation and self.augmentation.sample(generator, len(shape), shape, self.spacing)
        sides = window_of(self.crop, shape)
        limits = [size - side + 1 for size, side in zip(shape, sides, strict=True)]
        corner = [int(torch.randint(limit, (), generator=generator)) if self.crop else 0 for limit in limits]
        if matrix is not None:
            return item | {"matrix": matrix[0], "corner": torch.tensor(corner)}
        window = tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        return {name: image[(slice(None), *window)] for name, image in item.items()}


def window_of(crop: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Sides of the window of an image: a side that is longer than the image is cut to it; no crop, no window."""
    return tuple(map(min, crop, shape)) if crop else tuple(shape)


def augmented(batch: dict[str, Tensor], crop: Sequence[int] = ()) -> dict[str, Tensor]:
    """A batch of `DrawnSamples` as they are to be seen, computed where the batch is, of the window alone."""
    batch = dict(batch)
    matrix, corner = batch.pop("matrix", None), batch.pop("corner", None)
    if matrix is None:
        return batch
    labels = [key for key in batch if key.endswith(("label", "weights"))]
    images = [key for key in batch if key not in labels]
    window = window_of(crop, batch[images[0]].shape[2:])
    moved = augment_pair([batch[key] for key in images], [batch[key] for key in labels], matrix, window, corner)
    return dict(zip(images + labels, [*moved[0], *moved[1]], strict=True))


class EpochSampler(Sampler):
    """Indices of one epoch: `length` for each process of a parallel run, in turn, so that no two see the same."""

    def __init__(self, length: int):
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        start = self.epoch * self.length * world
        return iter(range(start + rank, start + self.length * world, world))


def to_tensors(item: Sample | Pair) -> dict[str, Tensor]:
    """Named tensors of a sample or a pair: images (C, *spatial), labels (1, *spatial); of a pair also its `weights`."""
    if isinstance(item, Sample):
        return {"image": item.image, "label": item.label}
    moving, fixed = item.moving, item.fixed
    images = {"moving": moving.image, "fixed": fixed.image, "moving_label": moving.label, "fixed_label": fixed.label}
    return images | item.weights
