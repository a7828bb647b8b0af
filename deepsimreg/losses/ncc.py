"""Local normalised cross-correlation: similar if one image is locally linear in the other.

cross = <IJ> - <I><J>,  var_I = <I^2> - <I>^2,  var_J = <J^2> - <J>^2,  < > the mean over a window

squared   1 - mean(cross^2 / (var_I var_J))          in [0, 1], blind to the sign of the contrast
plain     1 - mean(cross / sqrt(var_I var_J))        in [0, 2]

Source: Avants et al. 2008, Medical Image Analysis 12:26; the squared form is the "NCC" of the DeepSim papers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from deepsimreg.losses.base import Similarity, check_pair
from deepsimreg.losses.box import box_mean


class NCC(Similarity):
    """Local NCC of two images (N, C, *spatial), each channel by itself.

    window: odd width in voxels along every axis, clipped to the image at the border. eps: the smallest variance; flat
    windows have cross = 0. The loss is 0 for identical images with texture, and 1 for constant ones.
    """

    def __init__(self, window: int = 9, squared: bool = True, eps: float = 1e-5):
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be an odd number of at least 3 voxels, not {window}")
        self.window, self.squared, self.eps = window, squared, eps

    def forward(self, moved: Tensor, fixed: Tensor) -> Tensor:
        check_pair(moved, fixed)
        return self.against([fixed])([moved])

    def against(self, fixed: list[Tensor]) -> Callable[[list[Tensor]], Tensor]:
        # A difference of means of squares cancels: float64 keeps flat regions of bright images exact.
        precise, radius = torch.float32 if fixed[0].device.type == "mps" else torch.float64, self.window // 2
        j = fixed[0].to(precise)
        mean_j = box_mean(j, radius)
        var_j = (box_mean(j * j, radius) - mean_j * mean_j).clamp(min=self.eps)

        def distance(moved: list[Tensor]) -> Tensor:
            i = moved[0].to(precise)
            mean_i, mean_ii, mean_ij = (box_mean(image, radius) for image in (i, i * i, i * j))
            cross = mean_ij - mean_i * mean_j
            var_i = (mean_ii - mean_i * mean_i).clamp(min=self.eps)
            ncc = cross.square() / (var_i * var_j) if self.squared else cross * (var_i * var_j).rsqrt()
            return (1 - ncc.mean()).to(torch.promote_types(moved[0].dtype, torch.float32))

        return distance

    def extra_repr(self) -> str:
        return f"window={self.window}, squared={self.squared}, eps={self.eps}"
