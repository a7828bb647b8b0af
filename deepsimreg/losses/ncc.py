"""Local normalised cross-correlation: similar if one image is locally linear in the other.

cross = <IJ> - <I><J>,  var_I = <I^2> - <I>^2,  var_J = <J^2> - <J>^2,  < > the mean over a window

squared   1 - mean(cross^2 / (var_I var_J))          in [0, 1], blind to the sign of the contrast
signed    1 - mean(cross |cross| / (var_I var_J))    in [0, 2], as greedy's: noise that is opposite is not alike
plain     1 - mean(cross / sqrt(var_I var_J))        in [0, 2]

Each term is a sum over windows, so the gradient has a closed form. With c the derivative of the loss by cross, v that
by var_I, each divided by the number of voxels in its window, and [ ] the sum over a window:

gradient = J [c] + 2 I [v] - [c <J> + 2 v <I>]

Source: Avants et al. 2008, Medical Image Analysis 12:26; the squared form is the "NCC" of the DeepSim papers.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepsimreg.losses.base import Alignment, Similarity, at_least_float32, check_pair
from deepsimreg.losses.box import box_count, box_sum

SLAB = 2**19  # values that are worked on at a time on a CPU: they fit its cache
FLOAT32_RANGE = 1e5  # largest square of a grey value, from the mean and in units of eps, that float32 is used for


class NCC(Similarity):
    """Local NCC of two images (N, C, *spatial), each channel by itself.

    window: odd width in voxels along every axis, clipped to the image at the border. squared, signed: which form (the
    plain one has a sign anyway). Window and signed may be pairs, one for planes and one for volumes. eps: the smallest
    variance; flat windows have cross = 0. The loss is 0 for identical images with texture, and 1 for constant ones.
    """

    def __init__(
        self,
        window: int | tuple[int, int] = 9,
        squared: bool = True,
        eps: float = 1e-5,
        signed: bool | tuple[bool, bool] = False,
    ):
        super().__init__()
        if any(width < 3 or width % 2 == 0 for width in ([window] if isinstance(window, int) else window)):
            raise ValueError(f"window must be an odd number of at least 3 voxels, not {window}")
        self.window, self.squared, self.eps, self.signed = window, squared, eps, signed

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        """weights: as in `against`."""
        check_pair(moved, fixed)
        loss = self.against([fixed.detach()], weights)([moved])
        if fixed.requires_grad:  # the loss is symmetric
            swapped = self.against([moved.detach()], weights)([fixed])
            loss = loss + (swapped - swapped.detach())
        return loss

    def compare(self, alignment: Alignment) -> Tensor:
        """Its images are in [0, 1], so nothing is asked about their range: a GPU would have to be waited for."""
        check_pair(alignment.moved, alignment.fixed)
        return self.against([alignment.fixed], alignment.weights, bounded=True)([alignment.moved])

    def against(
        self, fixed: list[Tensor], weights: Tensor | None = None, bounded: bool = False
    ) -> Callable[[list[Tensor]], Tensor]:
        """weights: (N or 1, 1, *spatial), not negative: how much a voxel counts, in the windows and in the mean.

        bounded: all grey values are in [0, 1]; False: whether they are is looked at.
        """
        j = self._centred(fixed[0], bounded)

        @cache
        def statistics(dtype: torch.dtype) -> _Statistics:
            return _Statistics(j.to(dtype), self, None if weights is None else weights.to(dtype))

        def distance(moved: list[Tensor]) -> Tensor:
            i = self._centred(moved[0], bounded)
            dtype = torch.promote_types(i.dtype, j.dtype)
            loss = _Correlation.apply(i.to(dtype), statistics(dtype))
            return loss.to(torch.promote_types(moved[0].dtype, torch.float32))

        return distance

    def _centred(self, image: Tensor, bounded: bool) -> Tensor:
        """The image less its mean, which changes nothing, in the precision in which <I^2> - <I>^2 is exact enough."""
        image = at_least_float32(image)
        image = image - image.detach().mean(dim=tuple(range(2, image.ndim)), keepdim=True)
        if bounded and FLOAT32_RANGE * self.eps >= 1:
            return image
        wide = image.detach().abs().max() ** 2 > FLOAT32_RANGE * self.eps
        return image.double() if wide and image.device.type != "mps" else image

    def extra_repr(self) -> str:
        return f"window={self.window}, squared={self.squared}, eps={self.eps}, signed={self.signed}"


class _Statistics:
    """What follows from the fixed image J and the weights: `mean_j`, `var_j`, `share` (a voxel's part of the loss)."""

    def __init__(self, j: Tensor, options: NCC, weights: Tensor | None):
        window, self.signed = (
            one[j.ndim - 4] if isinstance(one, tuple | list) else one for one in (options.window, options.signed)
        )
        self.j, self.weights, self.radius = j, weights, window // 2
        self.squared, self.eps = options.squared, options.eps
        total = box_count(j, self.radius) if weights is None else box_sum(weights, self.radius)
        self.inverse = total.reciprocal() if weights is None else (1 / total).where(total > 0, 0)
        self.share = 1 / j.numel() if weights is None else weights / weights.expand_as(j).sum().clamp(min=1e-12)
        self.mean_j = self.mean(j)
        self.var_j = (self.mean(j * j) - self.mean_j.square()).clamp_(min=self.eps)

    def rows(self, part: slice) -> "_Statistics":
        """Those of a slab of the first axis; right but for its outermost `radius` rows, whose windows are cut."""
        found = copy.copy(self)
        for name in ("j", "weights", "inverse", "share", "mean_j", "var_j"):
            value = getattr(self, name)
            setattr(found, name, value[:, :, part] if isinstance(value, Tensor) else value)
        return found

    def weighted(self, image: Tensor) -> Tensor:
        return image if self.weights is None else image * self.weights

    def mean(self, image: Tensor) -> Tensor:
        return box_sum(self.weighted(image), self.radius).mul_(self.inverse)


class _Correlation(torch.autograd.Function):
    """The loss of an image I (N, C, *spatial), with its gradient in closed form, once differentiable."""

    @staticmethod
    def forward(ctx, i: Tensor, fixed: _Statistics) -> Tensor:
        gradient = torch.empty_like(i) if ctx.needs_input_grad[0] else None
        total = 0
        for rows, outer in _slabs(i, 2 * fixed.radius):
            inner = slice(rows.start - outer.start, rows.stop - outer.start)
            part, slope = _correlated(i[:, :, outer], fixed.rows(outer), inner, gradient is not None)
            total = total + part
            if gradient is not None:
                gradient[:, :, rows] = slope[:, :, inner]
        ctx.save_for_backward(gradient)
        return 1 - total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        return ctx.saved_tensors[0] * upstream, None


def _slabs(image: Tensor, halo: int) -> Iterator[tuple[slice, slice]]:
    """Rows of the first axis that are worked on together, and the same with `halo` more of them on either side."""
    size = image.shape[2]
    step = max(4 * halo, SLAB * size // image.numel()) if image.device.type == "cpu" else size
    for start in range(0, size, step):
        stop = min(start + step, size)
        yield slice(start, stop), slice(max(0, start - halo), min(size, stop + halo))


def _correlated(i: Tensor, fixed: _Statistics, inner: slice, slope_too: bool) -> tuple[Tensor, Tensor | None]:
    """Sum of the weighted correlations of the inner rows, and the gradient of the loss, right there."""
    mean_i = fixed.mean(i)
    cross = fixed.mean(i * fixed.j).addcmul_(mean_i, fixed.mean_j, value=-1)
    var_i = fixed.mean(i * i).addcmul_(mean_i, mean_i, value=-1)
    textured = var_i >= fixed.eps
    var_i.clamp_(min=fixed.eps)
    slope = var_i * fixed.var_j  # from here on: the derivative of a voxel's correlation by cross
    slope = torch.div(cross, slope, out=slope) if fixed.squared else slope.rsqrt_()
    if fixed.squared and fixed.signed:
        slope.abs_()
    ncc = cross.mul_(slope)
    total = (ncc * fixed.share)[:, :, inner].sum()
    if not slope_too:
        return total, None
    by_var = ncc.div_(var_i).mul_(textured).mul_(-1 if fixed.squared else -0.5)
    return total, _gradient(i, mean_i, slope.mul_(2 if fixed.squared else 1), by_var, fixed)


def _gradient(i: Tensor, mean_i: Tensor, by_cross: Tensor, by_var: Tensor, fixed: _Statistics) -> Tensor:
    """Of the loss by I; by_cross, by_var: derivatives of each voxel's correlation, overwritten."""
    scale = -fixed.share * fixed.inverse
    by_cross, by_var = by_cross.mul_(scale), by_var.mul_(scale).mul_(2)
    means = (by_cross * fixed.mean_j).addcmul_(by_var, mean_i)
    gradient = box_sum(means, fixed.radius).neg_()
    gradient.addcmul_(fixed.j, box_sum(by_cross, fixed.radius)).addcmul_(i, box_sum(by_var, fixed.radius))
    return fixed.weighted(gradient)
