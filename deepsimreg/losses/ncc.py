"""Local normalised cross-correlation: similar if one image is locally linear in the other.

cross = <IJ> - <I><J>,  var_I = <I^2> - <I>^2,  var_J = <J^2> - <J>^2,  < > the mean over a window

squared   1 - mean(cross^2 / (var_I var_J))          in [0, 1], blind to the sign of the contrast
plain     1 - mean(cross / sqrt(var_I var_J))        in [0, 2]

Source: Avants et al. 2008, Medical Image Analysis 12:26; the squared form is the "NCC" of the DeepSim papers.
"""

import torch
from torch import Tensor, nn

from deepsimreg.losses.base import check_pair


class NCC(nn.Module):
    """Local NCC of two images (N, C, *spatial), each channel by itself.

    window: odd width in voxels along every axis; at the border a window is clipped to the image and its mean
    taken over the voxels that remain. eps: the smallest variance, so that flat windows, which have no
    correlation, count as cross = 0 and never divide by zero. Hence 0 for identical images with texture, 1 for
    constant ones.
    """

    def __init__(self, window: int = 9, squared: bool = True, eps: float = 1e-5):
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of at least 3 voxels, not {window}")
        self.window, self.squared, self.eps = window, squared, eps

    def forward(self, moved: Tensor, fixed: Tensor) -> Tensor:
        check_pair(moved, fixed)
        # A difference of means of squares cancels: float64 keeps flat regions of bright images exact.
        precise = torch.float32 if moved.device.type == "mps" else torch.float64
        i, j = moved.to(precise), fixed.to(precise)
        voxels = _box_sum(torch.ones_like(j[:1, :1]), self.window // 2)
        mean_i, mean_j, mean_ii, mean_jj, mean_ij = (
            _BoxSum.apply(image, self.window // 2) / voxels for image in (i, j, i * i, j * j, i * j)
        )
        cross = mean_ij - mean_i * mean_j
        var_i = (mean_ii - mean_i * mean_i).clamp(min=self.eps)
        var_j = (mean_jj - mean_j * mean_j).clamp(min=self.eps)
        ncc = cross.square() / (var_i * var_j) if self.squared else cross * (var_i * var_j).rsqrt()
        return (1 - ncc.mean()).to(torch.promote_types(moved.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f"window={self.window}, squared={self.squared}, eps={self.eps}"


class _BoxSum(torch.autograd.Function):
    """Sum over the clipped window around each voxel: a symmetric linear map, so its gradient is itself."""

    @staticmethod
    def forward(ctx, image: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        return _box_sum(image, radius)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _BoxSum.apply(gradient, ctx.radius), None


def _box_sum(image: Tensor, radius: int) -> Tensor:
    """Sums of (N, C, *spatial) over 2 radius + 1 voxels along each axis in turn, by adding shifted copies.

    Faster than a cumulative sum (which crosses the memory with a stride) and free of its cancellation.
    """
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        total = image.clone()
        for shift in range(1, min(radius, size - 1) + 1):
            overlap = size - shift
            total.narrow(axis, 0, overlap).add_(image.narrow(axis, shift, overlap))
            total.narrow(axis, shift, overlap).add_(image.narrow(axis, 0, overlap))
        image = total
    return image
