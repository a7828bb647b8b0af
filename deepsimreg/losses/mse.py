"""Mean squared error, the mean over voxels of (moved - fixed)^2: right where intensities mean the same."""

from torch import Tensor

from deepsimreg.losses.base import Similarity, at_least_float32, check_pair, weighted_mean


class MSE(Similarity):
    """Mean squared difference of two images (N, C, *spatial); 0 for identical images."""

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        check_pair(moved, fixed)
        return weighted_mean((at_least_float32(moved) - at_least_float32(fixed)).square(), weights)
