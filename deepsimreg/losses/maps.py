"""What a similarity extracts from images: tensors (N, C, *⌈spatial / r⌉), r a power of two, or nested lists of them."""

from collections.abc import Sequence

from torch import Tensor

from deepsimreg.warps import coarsened, grid_step


def halves(maps):
    """Maps of a batch that holds all moving and then all fixed images, as those of either."""
    if isinstance(maps, Tensor):
        return maps.chunk(2)
    return list(zip(*(halves(one) for one in maps), strict=True))


def steps_of(maps, shape: Sequence[int]) -> list[list[int]]:
    """Voxels of a position along each axis, of each map."""
    if isinstance(maps, Tensor):
        return [[grid_step(size, own) for size, own in zip(shape, maps.shape[2:], strict=True)]]
    return [step for one in maps for step in steps_of(one, shape)]


def on_grid(maps, target: Sequence[int], weights: Tensor | None):
    """Maps that are finer than the comparison, on its grid; coarser ones as they are. weights: of the voxels."""
    if not isinstance(maps, Tensor):
        return [on_grid(one, target, weights) for one in maps]
    own = maps.shape[2:]
    if weights is not None:
        weights = coarsened(weights, [grid_step(*sizes) for sizes in zip(weights.shape[2:], own, strict=True)])
    factors = [grid_step(size, min(size, wanted)) for size, wanted in zip(own, target, strict=True)]
    return coarsened(maps, factors, weights)
