"""NCC with labels: the correlation of grey values, and the overlap of the training labels.

loss = NCC + weight · overlap, of the warped one-hot label W and the fixed one F

overlap "mse": mean over batch, voxels and classes of (W - F)^2. The classes are those of the dataset, whatever the pair
shows, so one voxel costs at most 2 / (voxels · classes).
overlap "dice": 1 - mean over batch and classes of 2 Σ W F / (Σ W + Σ F), sums over voxels, background left out; a class
that neither label has is left out, too.
Sources: "NCC_sup" of the DeepSim papers (mse); the auxiliary labels of VoxelMorph (Balakrishnan et al. 2019, IEEE TMI
38:1788, dice). Labels are needed while training, and not to register.
"""

import torch
from torch import Tensor

from deepsimreg.losses.base import Alignment, Similarity, weighted_mean
from deepsimreg.losses.ncc import NCC
from deepsimreg.warps import warp_one_hot


class SupervisedNCC(Similarity):
    """NCC of the images and the overlap of their one-hot labels; `forward`, which has no labels, is plain NCC.

    weight: of the labels' term. overlap: "mse" or "dice". Further options as `NCC`.
    """

    needs_labels = True

    def __init__(self, weight: float = 1.0, overlap: str = "mse", **options):
        super().__init__()
        if overlap not in OVERLAPS:
            raise ValueError(f"overlap is {overlap!r}: choose one of {', '.join(OVERLAPS)}")
        self.weight, self.overlap, self.ncc = weight, overlap, NCC(**options)

    def forward(self, moved: Tensor, fixed: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.ncc(moved, fixed, weights)

    def compare(self, alignment: Alignment) -> Tensor:
        if None in (alignment.moving_label, alignment.fixed_label, alignment.classes):
            raise ValueError("SupervisedNCC also compares labels: give moving_label, fixed_label and classes")
        moved = warp_one_hot(alignment.moving_label, alignment.displacement, alignment.classes)
        still = torch.zeros_like(alignment.displacement)
        fixed = warp_one_hot(alignment.fixed_label, still, alignment.classes)
        return self.ncc.compare(alignment) + self.weight * OVERLAPS[self.overlap](moved, fixed, alignment.weights)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, overlap={self.overlap}"


def _squared(moved: Tensor, fixed: Tensor, weights: Tensor | None) -> Tensor:
    return weighted_mean((moved - fixed).square(), weights)


def _dice(moved: Tensor, fixed: Tensor, weights: Tensor | None) -> Tensor:
    both = [one[:, 1:] if weights is None else one[:, 1:] * weights for one in (moved, fixed)]
    size = sum(one.flatten(2).sum(2) for one in both)
    shared = (both[0] * fixed[:, 1:]).flatten(2).sum(2)
    there = size > 0
    return (there * (1 - 2 * shared / size.clamp(min=1e-6))).sum() / there.sum().clamp(min=1)


OVERLAPS = {"mse": _squared, "dice": _dice}
