"""Images on coarser grids; displacements on a control grid, brought to a finer one, and images pulled through them.

Each of these changes of grid is a matrix for each axis, so it is one product after the other: on a CPU several times
faster than `interpolate`, its gradient more so. `pull` never holds the fine displacement: it warps a
few rows of the image at a time, and again for the gradient.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from deepsimreg.warps.displacement import on_numbers

ROWS = 2**18  # positions that `pull` holds at a time on a CPU: they fit its cache
BAND = 512  # largest matrix that is multiplied as a whole; of larger ones only the band that is not zero
SIGMA, REACH = 0.5, 3  # of the Gaussian that makes an image coarser: in positions; and how many of it are looked at
LINEAR, BORDER = 0, 1  # modes of `grid_sample`, as its gradient takes them


def expansion(control: int, factor: int, size: int, pool: int = 1) -> Tensor:
    """(⌈size / pool⌉, control): from control points to positions, by what it does to one axis.

    Linear, aligned by areas, to a grid that is `factor` times finer, whose first `size` positions are kept; then the
    mean of every `pool` of them, the last repeated to fill the last group.
    """
    axis = functional.interpolate(torch.eye(control)[None], scale_factor=float(factor), mode="linear")
    axis = functional.pad(axis[..., :size], [0, -size % pool], mode="replicate")
    return functional.avg_pool1d(axis, pool)[0].mT.contiguous()


def expand(field: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """A field (N, D, *control) on a finer grid: a matrix (size, control) for each axis; (N, D, *size)."""
    for axis, matrix in reversed(list(enumerate(matrices))):  # the last first: the arrays stay small for longest
        field = _along(field, matrix, axis)
    return field


def _along(field: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """The product of a banded matrix with one spatial axis."""
    if max(matrix.shape) <= BAND:
        return _product(field, matrix, axis)
    first = field.movedim(axis + 2, 0)
    parts = [_product(first[near].movedim(0, axis + 2), matrix[rows, near], axis) for rows, near in _bands(matrix, 128)]
    return torch.cat(parts, axis + 2)


def _product(field: Tensor, matrix: Tensor, axis: int) -> Tensor:
    if axis == field.ndim - 3:
        return field @ matrix.mT
    return (matrix @ field.flatten(axis + 3)).unflatten(-1, field.shape[axis + 3 :])


def averaging(size: int, factor: int) -> Tensor:
    """(⌈size / factor⌉, size): a mean around the centre of every `factor` voxels, weighted by a Gaussian."""
    centres = (torch.arange(-(-size // factor)) + 0.5) * factor - 0.5
    distance = (torch.arange(size) - centres[:, None]) / (SIGMA * factor)
    weights = torch.exp(-distance.square() / 2).where(distance.abs() <= REACH, 0)
    return weights / weights.sum(1, keepdim=True)


def coarsened(image: Tensor, factors: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """(N, C, *spatial), smoothed, at every `factor`-th place: (N, C, *⌈spatial / factor⌉), the grid of `pooled`.

    Means over blocks would alias: texture and noise that a coarser grid cannot hold would mislead what compares them.
    weights: (N or 1, 1, *spatial), of the voxels in the means; where all are 0 they are not looked at.
    """
    if weights is not None and max(factors) > 1:
        total = coarsened(weights, factors)
        found = coarsened(image * weights, factors) / total.where(total > 0, 1)
        return found.where(total > 0, coarsened(image, factors))
    for axis, factor in reversed(list(enumerate(factors))):
        if factor > 1:
            image = _along(image, averaging(image.shape[axis + 2], factor).to(image), axis)
    return image


def pull(image: Tensor, field: Tensor, matrices: Sequence[Tensor], steps: Sequence[float]) -> Tensor:
    """`warp_image` of (N, C, *size) by the displacement `expand(field, matrices)`; the image gets no gradient.

    steps: of the image's grid in one of the field, along each axis.
    """
    return _Pull.apply(field, image.to(field.dtype), matrices, steps)


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx, field: Tensor, image: Tensor, matrices: Sequence[Tensor], steps: Sequence[float]) -> Tensor:
        # Components in the order and unit of `grid_sample`: the last axis first, from -1 to 1.
        scale = [2 * step / max(size - 1, 1) for step, size in zip(steps, image.shape[2:], strict=True)]
        scale = field.new_tensor(scale).view(1, -1, *[1] * len(scale))
        part = (field * scale).flip(1)
        for axis in reversed(range(1, len(matrices))):
            part = _along(part, matrices[axis], axis)
        ctx.matrices, ctx.scale = matrices, scale
        ctx.save_for_backward(part, image)
        moved = torch.empty_like(image)
        for rows, near in _blocks(image, matrices[0]):
            grid, images = _shared(_positions(part, matrices[0], image.shape[2:], rows, near), image)
            found = functional.grid_sample(images, grid, padding_mode="border", align_corners=True)
            moved[:, :, rows] = found if len(found) == len(image) else found.movedim(0, 1).flatten(1, 2)[None]
        return moved

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        (part, image), (first, *others) = ctx.saved_tensors, ctx.matrices
        sample = (torch.ops.aten.grid_sampler_2d_backward, torch.ops.aten.grid_sampler_3d_backward)[image.ndim - 4]
        gradient = torch.zeros_like(part)
        for rows, near in _blocks(image, first):
            grid, images = _shared(_positions(part, first, image.shape[2:], rows, near), image)
            above = upstream[:, :, rows]
            if len(images) > len(image):
                above = above[0].unflatten(1, (len(images), -1)).movedim(1, 0)
            _, by_grid = sample(above, images, grid, LINEAR, BORDER, True, (False, True))
            by_grid = by_grid.reshape(len(image), -1, *by_grid.shape[2:]).movedim(-1, 1)
            gradient[:, :, near] += _along(by_grid, first[rows, near].mT, 0)
        for axis, matrix in enumerate(others, start=1):
            gradient = _along(gradient, matrix.mT, axis)
        return gradient.flip(1) * ctx.scale, None, None, None


def _shared(grid: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of one image as the grids of a batch: on a CPU, sampling shares out the images of a batch to the threads."""
    threads = torch.get_num_threads()
    if image.device.type != "cpu" or len(grid) > 1 or grid.shape[1] % threads:
        return grid, image
    return grid[0].unflatten(0, (threads, -1)), image.expand(threads, *image.shape[1:])


def _blocks(image: Tensor, matrix: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of the image's first axis that are held at a time, and the control points they depend on."""
    voxels, threads, size = image[:, 0, 0].numel(), torch.get_num_threads(), len(matrix)
    count = max(1, ROWS // voxels) * threads if image.device.type == "cpu" else size
    even = size - size % threads  # what is left over is one block, that the others can be shared out
    for start, stop in ((0, even), (even, size)):
        for rows, near in _bands(matrix[start:stop], count):
            yield slice(start + rows.start, start + rows.stop), near


def _bands(matrix: Tensor, count: int) -> Iterator[tuple[slice, slice]]:
    """`count` rows at a time, and the columns in which they are not zero."""
    for start in range(0, len(matrix), count):
        rows = slice(start, min(start + count, len(matrix)))
        near = matrix[rows].any(0).nonzero()
        yield rows, slice(int(near.min()), int(near.max()) + 1)


def _positions(part: Tensor, matrix: Tensor, sizes: Sequence[int], rows: slice, near: slice) -> Tensor:
    """Where rows of the image are read, as `grid_sample` takes it: (N, rows, *others, D); part: in its unit."""
    positions, ndim = _along(part[:, :, near], matrix[rows, near], 0), len(sizes)
    for axis, size in enumerate(sizes):
        line = torch.linspace(-1, 1, size, dtype=part.dtype, device=part.device)
        line = (line[rows] if axis == 0 else line).view(-1, *[1] * (ndim - 1 - axis))
        positions[:, ndim - 1 - axis] += line
    return on_numbers(positions.movedim(1, -1))
