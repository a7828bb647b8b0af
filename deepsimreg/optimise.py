"""Register one pair by optimisation: the displacement that makes this pair most similar, coarse to fine.

    u = argmin  D(M ∘ Φ, F) + λ·R(u),    Φ(x) = x + u(x)

M and F are what the similarity compares: grey values, descriptors or features, extracted once and pulled through Φ, or
extracted anew from the pulled image after every step. u is exp(v), v a stationary velocity that is integrated by
scaling and squaring (Arsigny et al., MICCAI 2006), or v itself. v starts at zero, or at a network's displacement,
brought to the grid of the first level. It lives on a grid of `grid` voxels, the comparison on one of `resolution`
voxels: position i of a grid of r voxels is the centre of the voxels r·i … r·i + r − 1. Both are counted in the finest
spacing, so that an axis of thick slices is pooled less. Adam does the steps (descent.py); the best of each level is
kept, and a level ends early when it no longer improves. Where a level, from what the coarser one has found, does not
become better than the start is, as may be if the pair is nearly aligned, it begins again from the start.
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

from deepsimreg.descent import Adam, descend
from deepsimreg.losses.base import Similarity, joint_weights, whole_weights
from deepsimreg.losses.maps import halves, on_grid, steps_of
from deepsimreg.losses.regularisers import diffusion
from deepsimreg.warps import expand, expansion, grid_step, integrate, pooled, pooled_least, pull, sample_image

MODELS = ("velocity", "displacement")
EXTRACT = ("once", "always")
LEARNING_RATE = 0.15  # of Adam, in control points
CONTROL_POINTS = 5  # at least, along the sides of the coarsest level: fewer mislead the levels that follow
CORRECTIONS = 5  # of the velocity of a displacement that is started from
START_GRID = 8  # voxels of a control point, at most, on the level that begins at a start: a coarser one would blur it
KEPT, LOST = 0.5, 100.0  # of the voxels that count at the start, those that must; what it costs to lose them all
SQUARINGS = 5  # of the velocity's integration


@dataclass(frozen=True)
class Level:
    """One level: size of a position that is compared, and of a control point, both in voxels of the finest spacing;
    and steps.
    """

    resolution: int
    grid: int
    steps: int

    def __post_init__(self):
        if not all(isinstance(value, int) for value in (self.resolution, self.grid, self.steps)):
            raise ValueError(f"{self}: give whole numbers")
        powers = all(value > 0 and value & (value - 1) == 0 for value in (self.resolution, self.grid))
        if not powers or self.grid < self.resolution or self.steps < 0:
            raise ValueError(f"{self}: resolution and grid must be powers of two, grid the larger, steps not negative")

    def factors(self, ndim: int, spacing: Sequence[float] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Voxels of a position and of a control point along each axis: powers of two whose size in mm is nearest."""
        ratios = [1.0] * ndim if spacing is None else [step / min(spacing) for step in spacing]
        return tuple(tuple(_nearest_power(size / ratio) for ratio in ratios) for size in (self.resolution, self.grid))


def _nearest_power(value: float) -> int:
    return 2 ** max(0, round(math.log2(value)))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode: nothing in it is drawn at random; afterwards it is in the mode that it was in."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def default_levels(shape: Sequence[int], spacing: Sequence[float] | None = None, started: bool = False) -> list[Level]:
    """Coarse to fine: at most 8, 4, 2 and 1 voxels of the finest spacing per position, a control point every four
    positions, or every two on the finest level of a plane. The coarsest has at least `CONTROL_POINTS` of them along
    each side; in a volume along all but the shortest, which may be that of a few thick slices.

    shape: voxels. spacing: mm, array axis order; None: the same along all axes. started: there is a displacement to
    start from; then no control grid is coarser than `START_GRID`.
    """
    levels = [Level(r, 4 * r, 30) for r in (8, 4, 2) if not started or 4 * r <= START_GRID]

    def points(level: Level) -> int:
        grid = level.factors(len(shape), spacing)[1]
        return sorted(-(-size // step) for size, step in zip(shape, grid, strict=True))[-2]

    return [*(level for level in levels if points(level) >= CONTROL_POINTS), Level(1, 2 if len(shape) == 2 else 4, 16)]


@dataclass(frozen=True)
class Optimised:
    """What `optimise` found.

    displacement: (N, D, *spatial), voxels. velocity: (N, D, *⌈spatial / grid⌉) of the last level, in steps of its grid:
    the displacement is its flow, interpolated; None for the model "displacement".
    losses: before every step. steps: how many each level took.
    """

    displacement: Tensor
    velocity: Tensor | None
    losses: tuple[float, ...]
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Landmarks:
    """Points of the fixed image that have a partner in the moving one; a term of the loss.

    points: (P, D), voxels. displacements: (P, D), voxels, that bring them to their partners. weight: of the mean
    squared distance that is left, in units of the finest spacing.
    """

    points: Tensor
    displacements: Tensor
    weight: float


@torch.inference_mode(False)  # gradients are needed whatever the caller's mode
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
    learning_rate: float = LEARNING_RATE,
    progress: bool = True,
    observe: Callable[[int, Callable[[], Tensor]], None] | None = None,
    weights: tuple[Tensor | None, Tensor | None] = (None, None),
    landmarks: Landmarks | None = None,
) -> Optimised:
    """Optimise the displacement of a batch of pairs.

    Args:
        moving, fixed: (N, C, *spatial), the same shape.
        similarity: what is compared.
        lam: weight λ of the diffusion regulariser, whose derivatives are in mm per mm.
        levels: coarse to fine.
        spacing: mm, array axis order; None: the same along all axes.
        start: displacement (N, D, *spatial), voxels, to start from; None: from the identity.
        model: "velocity", which is invertible, or "displacement".
        extract: "once", then warp what was extracted (MIND, unless beside features, on all levels but the finest); or
            "always", from the warped image.
        learning_rate: of Adam, in control points.
        progress: show a bar.
        observe: called after each step with its number and a function that gives the displacement so far.
        weights: (N or 1, 1, *spatial), of the moving image's voxels, 0 or 1, pulled along, and of the fixed one's.
        landmarks: points that should meet.

    Raises FloatingPointError if the loss is not finite, ValueError for an option that is not offered.
    """
    _check_options(lam, levels, model, extract)
    weights = [None if one is None else one.to(fixed.dtype).expand(len(fixed), *one.shape[1:]) for one in weights]
    shape, ndim = fixed.shape[2:], fixed.ndim - 2
    steps = sum(level.steps for level in levels)
    bar = tqdm(total=steps, desc="register", unit="step", disable=not progress, leave=False)
    field, pair, losses, taken, adam = None, None, [], [], Adam(learning_rate)
    with bar, evaluating(similarity):
        with torch.no_grad():
            maps = halves(similarity.maps(torch.cat([moving, fixed]))) if extract == "once" else None
        for level in levels:
            resolution, grid = level.factors(ndim, spacing)
            control = [-(-size // step) for size, step in zip(shape, grid, strict=True)]
            origin = fixed.new_zeros(len(fixed), ndim, *control) if start is None else _field_of(start, grid, model)
            begun = origin if pair is None else _finer(field, pair.grid, grid, control)
            kept = None if similarity.anew and max(resolution) == 1 else maps
            pair = _Pair(moving, fixed, similarity, kept, resolution, grid, model, spacing, weights, landmarks, origin)
            after = partial(_after, pair, bar, losses, observe)
            field = descend(begun, partial(pair.loss, lam), level.steps, adam, losses, after)
            if begun is not origin and not pair.better(field, origin, lam):
                field = descend(origin, partial(pair.loss, lam), level.steps, adam, losses, after)
            taken.append(len(losses) - sum(taken))
    velocity = field if model == "velocity" else None
    return Optimised(pair.displacement(field), velocity, tuple(losses), tuple(taken))


def _after(pair: "_Pair", bar: tqdm, losses: list[float], observe, field: Tensor) -> None:
    """What follows a step."""
    bar.update()
    if observe is not None:
        observe(len(losses), partial(pair.displacement, field))


def _check_options(lam: float, levels: Sequence[Level], model: str, extract: str) -> None:
    if model not in MODELS:
        raise ValueError(f"model is {model!r}: choose one of {', '.join(MODELS)}")
    if extract not in EXTRACT:
        raise ValueError(f"extract is {extract!r}: choose once or always")
    if not levels or any(fine.grid > coarse.grid for coarse, fine in itertools.pairwise(levels)):
        raise ValueError(f"levels {tuple(levels)}: give at least one, their grids from coarse to fine")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam is {lam}: give a weight of 0 or more")


def _flow(field: Tensor, model: str) -> Tensor:
    """The displacement of a field, in steps of its grid."""
    return integrate(field, SQUARINGS) if model == "velocity" else field


@torch.no_grad()
def _field_of(displacement: Tensor, grid: Sequence[int], model: str) -> Tensor:
    """The field on a grid whose flow is a displacement, corrected step by step by what its flow lacks."""
    field = start = pooled(displacement, grid) / _column(grid, displacement)
    for _ in range(CORRECTIONS if model == "velocity" else 0):
        field = field + start - _flow(field, model)
    return field


class _Pair:
    """What is compared on one level: at its resolution, or at that of the finest map if all are coarser."""

    def __init__(self, moving, fixed, similarity, maps, resolution, grid, model, spacing, weights, landmarks, origin):
        self.grid, self.model, self.landmarks = grid, model, landmarks
        self.full = shape = fixed.shape[2:]
        if maps is not None:
            finest = [min(steps) for steps in zip(*steps_of(maps, shape), strict=True)]
            resolution = [max(wanted, there) for wanted, there in zip(resolution, finest, strict=True)]
        self.resolution = [min(position, point) for position, point in zip(resolution, grid, strict=True)]
        self.shape = [-(-size // step) for size, step in zip(shape, self.resolution, strict=True)]
        both = ([moving], [fixed]) if maps is None else maps
        with torch.no_grad():
            self.maps, still = (on_grid(one, self.shape, own) for one, own in zip(both, weights, strict=True))
            self.moving_weights, fixed_weights = (
                None if w is None else pooled_least(w, self.resolution) for w in weights
            )
            self.fixed_weights = fixed_weights
            if self.moving_weights is not None:
                self.counted = self._kept(self._pulled(_flow(origin, model))).clamp(min=1)
        if maps is None:
            self.measure = lambda moved, pulled: similarity.weighted(
                moved[0], still[0], joint_weights(pulled, fixed_weights)
            )
        elif self.moving_weights is not None:
            self.measure = lambda moved, pulled: similarity.distance(moved, still, joint_weights(pulled, fixed_weights))
        else:
            prepared = similarity.against(still, fixed_weights)
            self.measure = lambda moved, pulled: prepared(moved)
        ratios = [step / min(grid) for step in grid]  # the field counts in steps of the grid
        uneven = spacing is not None or max(ratios) > 1
        self.spacing = [r * s for r, s in zip(ratios, spacing or [1.0] * len(grid), strict=True)] if uneven else None

    def loss(self, lam: float, field: Tensor) -> Tensor:
        """Similarity, landmarks and regulariser of a field on the level's grid."""
        flow, pulled = _flow(field, self.model), None
        if self.moving_weights is not None:
            with torch.no_grad():
                pulled = self._pulled(flow)
        loss = self.measure(self._warped(self.maps, flow), pulled) + lam * diffusion(flow, self.spacing)
        if pulled is not None:  # no answer: a warp that moves what disagrees out of the image
            loss = loss + LOST * (KEPT - self._kept(pulled) / self.counted).clamp(min=0).mean()
        return loss if self.landmarks is None else loss + self._apart(flow)

    def _pulled(self, flow: Tensor) -> Tensor:
        """The moving image's weights, pulled through a flow."""
        return whole_weights(self._warped(self.moving_weights, flow))

    def _kept(self, pulled: Tensor) -> Tensor:
        """How many voxels count, of each pair (N,)."""
        return joint_weights(pulled, self.fixed_weights).flatten(1).sum(1)

    def _apart(self, flow: Tensor) -> Tensor:
        """The landmarks' term."""
        grid, (points, wanted) = flow.new_tensor(self.grid), (self.landmarks.points, self.landmarks.displacements)
        places = ((points.to(flow) + 0.5) / grid - 0.5).mT[None].unflatten(2, (-1, *[1] * (len(grid) - 1)))
        found = sample_image(flow[:1], places).flatten(2)[0].mT * grid
        steps = flow.new_tensor(self.spacing or [1.0] * len(grid)) / grid * min(self.grid)
        return self.landmarks.weight * ((found - wanted.to(flow)) * steps / steps.min()).square().sum(1).mean()

    @torch.no_grad()
    def better(self, field: Tensor, other: Tensor, lam: float) -> bool:
        """Whether the loss of the one field is lower."""
        return self.loss(lam, field).item() < self.loss(lam, other).item()

    def _warped(self, maps, flow: Tensor):
        """Maps at the resolution of the comparison or a coarser one, pulled through a flow on the level's grid."""
        if not isinstance(maps, Tensor):
            return [self._warped(one, flow) for one in maps]
        pools = [grid_step(size, own) for size, own in zip(self.shape, maps.shape[2:], strict=True)]
        factors = [step // other for step, other in zip(self.grid, self.resolution, strict=True)]
        axes = zip(flow.shape[2:], factors, self.shape, pools, strict=True)
        matrices = [expansion(*axis).to(flow) for axis in axes]
        return pull(maps, flow, matrices, [f / p for f, p in zip(factors, pools, strict=True)])

    @torch.no_grad()
    def displacement(self, field: Tensor) -> Tensor:
        """The displacement of a field, on the images' own grid."""
        return _finer(_flow(field, self.model), self.grid, [1] * len(self.grid), self.full)


def _finer(field: Tensor, grid: Sequence[int], target: Sequence[int], shape: Sequence[int]) -> Tensor:
    """A field in steps of its grid, on a finer grid of that shape, in steps of it."""
    factors = [step // other for step, other in zip(grid, target, strict=True)]
    matrices = [expansion(*axis).to(field) for axis in zip(field.shape[2:], factors, shape, strict=True)]
    return expand(field * _column(factors, field), matrices)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value per axis, shaped to multiply the components of (N, D, *spatial)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *[1] * len(values))
