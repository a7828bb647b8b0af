"""Register one pair by optimisation: the displacement that makes this pair most similar, coarse to fine.

    u = argmin  D(M ∘ Φ, F) + λ·R(u),    Φ(x) = x + u(x)

M and F are what the similarity compares: grey values, descriptors or features, extracted once and pulled through Φ, or
extracted anew from the pulled image after every step. u is exp(v), v a stationary velocity that is integrated by
scaling and squaring (Arsigny et al., MICCAI 2006), or v itself. v starts at rest, or at a network's displacement,
brought to the grid of the first level. It lives on a grid of `grid` voxels, the comparison on one of `resolution`
voxels: position i of a grid of r voxels is the centre of the voxels r·i … r·i + r − 1. Adam does the steps; the best of
each level is kept, and a level ends early when it no longer improves.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from deepsimreg.losses.base import Similarity
from deepsimreg.losses.regularisers import diffusion
from deepsimreg.warps import crop, displacement_at, grid_step, integrate, pooled, upsample, warp_image

MODELS = ("velocity", "displacement")
LEARNING_RATE = 0.15  # of Adam, in control points
CONTROL_POINTS = 5  # at least, along the sides of the coarsest level: fewer mislead the levels that follow
CORRECTIONS = 5  # of the velocity of a displacement that is started from
START_GRID = 8  # voxels of a control point, at most, on the level that begins at a start: a coarser one would blur it
PATIENCE = 10  # steps without an improvement of more than `tolerance` that end a level


@dataclass(frozen=True)
class Level:
    """One level of the optimisation: voxels of a position that is compared, voxels of a control point, and steps."""

    resolution: int
    grid: int
    steps: int

    def __post_init__(self):
        if not all(isinstance(value, int) for value in (self.resolution, self.grid, self.steps)):
            raise ValueError(f"{self}: give whole numbers")
        powers = all(value > 0 and value & (value - 1) == 0 for value in (self.resolution, self.grid))
        if not powers or self.grid < self.resolution or self.steps < 0:
            raise ValueError(f"{self}: resolution and grid must be powers of two, grid the larger, steps not negative")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode: nothing in it is drawn at random; afterwards it is in the mode that it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def default_levels(shape: Sequence[int], started: bool = False) -> list[Level]:
    """Coarse to fine, for a pair of that many voxels a side: at most 8, 4, 2 and 1 voxels a position, a control point
    every four positions, and on the coarsest at least `CONTROL_POINTS` of them along each side; in a volume along all
    but the shortest, which may be that of a few thick slices.

    started: there is a displacement to start from; then no control grid is coarser than `START_GRID`.
    """
    side = sorted(shape)[-2]
    coarse = [r for r in (8, 4, 2) if -(-side // (4 * r)) >= CONTROL_POINTS]
    return [*(Level(r, 4 * r, 30) for r in coarse if not started or 4 * r <= START_GRID), Level(1, 4, 20)]


@dataclass(frozen=True)
class Optimised:
    """What `optimise` found.

    displacement: (N, D, *spatial), voxels. velocity: (N, D, *⌈spatial / grid⌉) of the last level, in steps of its grid:
    the displacement is its flow, interpolated; None for the model "displacement".
    losses: before every step.
    """

    displacement: Tensor
    velocity: Tensor | None
    losses: tuple[float, ...]


def optimise(
    moving: Tensor,
    fixed: Tensor,
    similarity: Similarity,
    lam: float,
    levels: Sequence[Level],
    spacing: Sequence[float] | None = None,
    start: Tensor | None = None,
    model: str = "velocity",
    extract: str = "once",
    symmetric: bool = False,
    learning_rate: float = LEARNING_RATE,
    squarings: int = 5,
    tolerance: float = 1e-4,
    progress: bool = True,
    observe: Callable[[int, Callable[[], Tensor]], None] | None = None,
) -> Optimised:
    """Optimise the displacement of a batch of pairs.

    Args:
        moving, fixed: (N, C, *spatial), the same shape.
        similarity: what is compared.
        lam: weight λ of the diffusion regulariser.
        levels: coarse to fine.
        spacing: mm, array axis order, for the regulariser; None: the same along all axes.
        start: displacement (N, D, *spatial), voxels, to start from; None: from rest.
        model: "velocity", which is invertible, or "displacement".
        extract: "once", then warp what was extracted; or "always", from the warped image.
        symmetric: also pull the fixed image onto the moving one, by exp(−v).
        learning_rate: of Adam, in control points.
        squarings: of the velocity's integration.
        tolerance: a level ends when `PATIENCE` steps have not lowered the loss by that share.
        progress: show a bar.
        observe: called after each step with its number and a function that gives the displacement so far.

    Raises:
        FloatingPointError: the loss is not finite.
        ValueError: an option that is not offered, or two that exclude each other.
    """
    if model not in MODELS:
        raise ValueError(f"model is {model!r}: choose one of {', '.join(MODELS)}")
    if extract not in ("once", "always"):
        raise ValueError(f"extract is {extract!r}: choose once or always")
    if symmetric and model != "velocity":
        raise ValueError("symmetric needs the model velocity: only then the inverse is known at each step")
    if not levels or any(fine.grid > coarse.grid for coarse, fine in itertools.pairwise(levels)):
        raise ValueError(f"levels {tuple(levels)}: give at least one, their grids from coarse to fine")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam is {lam}: give a weight of 0 or more")
    shape, ndim = fixed.shape[2:], fixed.ndim - 2
    with torch.no_grad(), evaluating(similarity):
        maps = _halves(similarity.maps(torch.cat([moving, fixed]))) if extract == "once" else None

    @torch.no_grad()
    def displacement_of(velocity: Tensor, grid: int) -> Tensor:
        return _finer(_flow(velocity, model, squarings), grid, 1, shape)

    velocity, grid, losses = None, None, []
    total = sum(level.steps for level in levels)
    bar = tqdm(total=total, desc="register", unit="step", leave=False, disable=not progress)
    with bar, evaluating(similarity):
        for level in levels:
            coarse = [-(-size // level.grid) for size in shape]
            if velocity is None and start is None:
                velocity = torch.zeros(len(fixed), ndim, *coarse, device=fixed.device)
            elif velocity is None:
                velocity = _velocity(pooled(start, level.grid) / level.grid, model, squarings)
            else:
                velocity = _finer(velocity, grid, level.grid, coarse)
            grid = level.grid
            pair = _Pair(moving, fixed, similarity, maps, level, model, squarings, symmetric)
            watch = None if observe is None else lambda v, g=grid: observe(len(losses), partial(displacement_of, v, g))
            velocity = _descend(velocity, pair, lam, spacing, learning_rate, tolerance, losses, bar, watch)
    displacement = displacement_of(velocity, grid)
    return Optimised(displacement, velocity if model == "velocity" else None, tuple(losses))


class _Pair:
    """What is compared on one level: at its resolution, or at that of the finest map if all are coarser."""

    def __init__(self, moving, fixed, similarity, maps, level, model, squarings, symmetric):
        self.similarity, self.level, self.model, self.squarings = similarity, level, model, squarings
        self.symmetric = symmetric
        resolution = level.resolution if maps is None else max(level.resolution, min(_steps(maps, fixed.shape[2:])))
        self.resolution = min(resolution, level.grid)
        self.shape = [-(-size // self.resolution) for size in fixed.shape[2:]]
        self.images = [pooled(image, self.resolution) for image in (moving, fixed)]
        self.maps = None if maps is None else [_at(one, self.shape) for one in maps]
        if maps is not None:
            with torch.no_grad():
                self.measures = [similarity.against(one) for one in self.maps]

    def terms(self, velocity: Tensor, spacing: Sequence[float] | None) -> tuple[Tensor, Tensor]:
        """Similarity and regulariser of a velocity on the level's grid."""
        flow = _flow(velocity, self.model, self.squarings)
        displacement = self._finer(flow)
        regulariser = diffusion(flow, spacing)
        loss = self._compare(displacement, 0, 1)
        if self.symmetric:
            back = self._finer(_flow(-velocity, self.model, self.squarings))
            loss = (loss + self._compare(back, 1, 0)) / 2
        return loss, regulariser

    def _finer(self, flow: Tensor) -> Tensor:
        return _finer(flow, self.level.grid, self.resolution, self.shape)

    def _compare(self, displacement: Tensor, moving: int, fixed: int) -> Tensor:
        if self.maps is None:
            return self.similarity(warp_image(self.images[moving], displacement), self.images[fixed])
        return self.measures[fixed](_warped(self.maps[moving], displacement))


def _descend(velocity, pair, lam, spacing, learning_rate, tolerance, losses, bar, watch) -> Tensor:
    """The best velocity of a level."""
    velocity = velocity.detach().requires_grad_()
    optimizer = torch.optim.Adam([velocity], lr=learning_rate)
    best, lowest, mark, waited = velocity.detach().clone(), math.inf, math.inf, 0
    for step in range(pair.level.steps + 1):
        last = step == pair.level.steps  # is measured, and not followed by another
        with torch.set_grad_enabled(not last):
            similarity, regulariser = pair.terms(velocity, spacing)
        loss = similarity + lam * regulariser
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {len(losses) + 1}: lower learning_rate")
        if value < lowest:
            best, lowest = velocity.detach().clone(), value
        if last:
            break
        losses.append(value)
        waited += 1
        if value < mark - tolerance * abs(mark) or not math.isfinite(mark):
            mark, waited = value, 0
        if waited >= PATIENCE:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
        if watch is not None:
            watch(velocity)
    return best


def _halves(maps):
    """Maps of a batch that holds all moving and then all fixed images, as those of either."""
    if isinstance(maps, Tensor):
        return maps.chunk(2)
    return list(zip(*(_halves(one) for one in maps), strict=True))


def _steps(maps, shape: Sequence[int]) -> list[int]:
    """Voxels of a position of each map."""
    if isinstance(maps, Tensor):
        return [max(grid_step(size, own) for size, own in zip(shape, maps.shape[2:], strict=True))]
    return [step for one in maps for step in _steps(one, shape)]


def _at(maps, target: Sequence[int]):
    """Maps that are finer than the comparison, pooled to it; coarser ones as they are."""
    if isinstance(maps, Tensor):
        factors = [grid_step(own, min(own, size)) for own, size in zip(maps.shape[2:], target, strict=True)]
        return pooled(maps, factors) if max(factors) > 1 else maps
    return [_at(one, target) for one in maps]


def _warped(maps, displacement: Tensor):
    """Maps at the resolution of the displacement or a coarser one, pulled through it."""
    if isinstance(maps, Tensor):
        same = maps.shape[2:] == displacement.shape[2:]
        return warp_image(maps, displacement if same else displacement_at(displacement, maps.shape[2:]))
    return [_warped(one, displacement) for one in maps]


@torch.no_grad()
def _velocity(displacement: Tensor, model: str, squarings: int) -> Tensor:
    """The velocity whose flow is a displacement, in steps of its grid, by correcting it with what its flow lacks."""
    velocity = displacement
    for _ in range(CORRECTIONS if model == "velocity" else 0):
        velocity = velocity + displacement - integrate(velocity, squarings)
    return velocity


def _flow(velocity: Tensor, model: str, squarings: int) -> Tensor:
    return integrate(velocity, squarings) if model == "velocity" else velocity


def _finer(field: Tensor, grid: int, target: int, shape: Sequence[int]) -> Tensor:
    """A field in steps of its grid, on a finer grid of that shape, in steps of it."""
    factor = grid // target
    return crop(upsample(field, factor) * factor, shape) if factor > 1 else field
