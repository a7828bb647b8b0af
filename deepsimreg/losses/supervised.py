"""NCC with labels: the correlation of grey values, and the overlap of the training labels.

loss = NCC + weight · mean over batch, voxels and classes of (warped one-hot label - fixed one-hot label)^2

The classes are those of the dataset, whatever the pair shows, so one voxel costs at most 2 / (voxels · classes).
Source: "NCC_sup" of the DeepSim papers. Labels are needed while training, and not to register.
"""

import torch
from torch import Tensor

from deepsimreg.losses.base import Alignment, Similarity, weighted_mean
from deepsimreg.losses.ncc import NCC
from deepsimreg.warps import warp_one_hot


class SupervisedNCC(Similarity):
    """NCC of the images and mean squared error of their one-hot labels; `forward`, which has no labels, is plain NCC.

    weight: of the labels' term. Further options as `NCC`.
    """

    needs_labels = True

    def __init__(self, weight: float = 1.0, **options):
        super().__init__()
        self.weight, self.ncc = weight, NCC(**options)

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.ncc(moved, fixed, weights)

    def compare(self, alignment: Alignment) -> Tensor:
        if None in (alignment.moving_label, alignment.fixed_label, alignment.classes):
            raise ValueError("SupervisedNCC also compares labels: give moving_label, fixed_label and classes")
        moved = warp_one_hot(alignment.moving_label, alignment.displacement, alignment.classes)
        still = torch.zeros_like(alignment.displacement)
        fixed = warp_one_hot(alignment.fixed_label, still, alignment.classes)
        return self.ncc.compare(alignment) + self.weight * weighted_mean((moved - fixed).square(), alignment.weights)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"
