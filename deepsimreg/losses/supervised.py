"""NCC with labels: the correlation of grey values, and the overlap of the training labels.

loss = NCC + weight · mean over voxels and batch of Σ_k (warped one-hot label_k - fixed one-hot label_k)^2

The sum over classes is not divided by their number: a class that no image of the pair shows adds nothing, and a voxel
counts the same whatever other classes exist. One voxel costs at most 2.
Source: "NCC_sup" of the DeepSim papers. Labels are needed while training, and not to register.
"""

import torch
from torch import Tensor

from deepsimreg.losses.base import Alignment, Similarity
from deepsimreg.losses.ncc import NCC
from deepsimreg.warps import warp_one_hot


class SupervisedNCC(Similarity):
    """NCC of the images and squared difference of their labels, summed over classes.

    weight: of the labels' term. Further options as `NCC`. `compare` needs labels; `forward`, which has none, is plain
    NCC.
    """

    needs_labels = True

    def __init__(self, weight: float = 1.0, **options):
        super().__init__()
        self.weight, self.ncc = weight, NCC(**options)

    def forward(self, moved: Tensor, fixed: Tensor) -> Tensor:
        return self.ncc(moved, fixed)

    def compare(self, alignment: Alignment) -> Tensor:
        if None in (alignment.moving_label, alignment.fixed_label, alignment.classes):
            raise ValueError("SupervisedNCC also compares labels: give moving_label, fixed_label and classes")
        moved = warp_one_hot(alignment.moving_label, alignment.displacement, alignment.classes)
        still = torch.zeros_like(alignment.displacement)
        fixed = warp_one_hot(alignment.fixed_label, still, alignment.classes)
        return self.ncc.compare(alignment) + self.weight * (moved - fixed).square().sum(1).mean()

    def extra_repr(self) -> str:
        return f"weight={self.weight}"
