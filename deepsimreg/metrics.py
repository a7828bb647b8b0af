"""How good is a registration? One row of numbers a test pair, and their means with intervals.

Overlap: Dice_k = 2 |A_k ∩ B_k| / (|A_k| + |B_k|) (Dice, 1945), labels warped with nearest neighbours.
Distance: HD95_k = max(q95 d(A_k → B_k), q95 d(B_k → A_k)) in mm, over the surface voxels of class k.
Smoothness: J(x) = det(I + ∇u(x)); the fraction of J ≤ 0 (folds), and the SD of log J over the other voxels.
Truth, where it is known: the target registration error, mean |u - u_true| in mm.

The paper's mean Dice has the background in it; `dice_foreground` leaves it out. The paper's σ²(log|J|) is
computed as its authors published it, named `jacobian_variance_published`, to compare with their tables only.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from deepsimreg.warps import jacobian_determinant, warp_labels


def evaluate_pair(
    displacement: Tensor | None,
    moving_label: Tensor,
    fixed_label: Tensor,
    classes: Sequence[str],
    spacing: Sequence[float],
    truth: Tensor | None = None,
    published: bool = False,
) -> dict[str, float]:
    """Every metric of one registered pair; NaN where one is not defined.

    displacement: (1, D, *spatial), voxels; None for the pair before registration. Labels: (1, 1, *spatial)
    integers below len(classes), class 0 the background. spacing: mm, array axis order. truth: the known
    displacement, (1, D, *spatial), voxels. published: also the papers' own measure of smoothness. All may lie on any
    device.

    Keys: `dice`, `dice_foreground`, `dice_<class>`, `pixel_accuracy`; `hd95`, `hd95_<class>` (mm); `folds`
    (fraction of voxels), `sd_log_jacobian`; `jacobian_variance_published`; `target_registration_error` (mm).
    """
    spatial = fixed_label.shape[2:]
    if len(spacing) != len(spatial):
        raise ValueError(f"spacing has {len(spacing)} values for {len(spatial)} axes; give one in mm each")
    if displacement is None:
        displacement = torch.zeros(1, len(spatial), *spatial, device=fixed_label.device)
    expected = (1, len(spatial), *spatial)
    if displacement.shape != expected:
        raise ValueError(f"displacement is {tuple(displacement.shape)}; on the fixed grid it is {expected}")
    if not torch.isfinite(displacement).all():
        raise ValueError("displacement contains NaN or inf: the registration has diverged")
    displacement = displacement.detach()
    moved_label = warp_labels(moving_label.to(displacement.device), displacement)
    return {
        **label_metrics(moved_label, fixed_label, classes, spacing),
        **smoothness(displacement),
        **({"jacobian_variance_published": jacobian_variance_published(displacement)} if published else {}),
        "target_registration_error": target_registration_error(displacement, truth, fixed_label, spacing),
    }


def label_metrics(
    moved_label: Tensor, fixed_label: Tensor, classes: Sequence[str], spacing: Sequence[float]
) -> dict[str, float]:
    """Overlap and surface distance of two integer label images (1, 1, *spatial): as `segmentation_metrics`, and
    `hd95_<class>`, mm, of all classes but the first, and `hd95`, their mean. spacing: mm, array axis order.
    """
    either = torch.cat([moved_label, fixed_label.to(moved_label.device)])[:, 0].cpu().numpy()
    boxes = ndimage.find_objects(either, len(classes) - 1)
    distances = {}
    for k, (name, box) in enumerate(zip(classes[1:], boxes, strict=True), start=1):
        masks = [torch.from_numpy(one[box[1:]] == k) if box else torch.zeros(1) for one in either]
        distances[f"hd95_{name}"] = hausdorff_distance_95(*(mask[None, None] for mask in masks), spacing)
    overlap = segmentation_metrics(moved_label, fixed_label, classes)
    return overlap | {"hd95": defined_mean(distances.values())} | distances


def indexed_labels(a: Tensor, b: Tensor, background: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Labels of any integers as class indices, of the same shape, and the names of the classes, background first.

    ValueError if their shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"labels have the shapes {tuple(a.shape[2:])} and {tuple(b.shape[2:])}: give them on one grid")
    a, b = a.long(), b.long().to(a.device)
    values = torch.unique(torch.cat([a.flatten(), b.flatten(), a.new_full((1,), background)]))
    order = torch.argsort((values != background).int(), stable=True)
    index = torch.argsort(order)
    ours, theirs = (index[torch.searchsorted(values, labels)] for labels in (a, b))
    return ours, theirs, [str(value) for value in values[order].tolist()]


def segmentation_metrics(prediction: Tensor, label: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Overlap of two integer label images (N, 1, *spatial), voxels of the batch pooled.

    Keys: `dice` (mean over all classes, background included), `dice_foreground`, `dice_<class>`,
    `pixel_accuracy`. A class that is in neither image is NaN and counts in no mean.
    """
    reserved = {"foreground"} & set(classes)
    if reserved:
        raise ValueError("a class named 'foreground' hides the mean dice_foreground; rename the class")
    dice = dice_per_class(prediction, label, classes).tolist()
    return {
        "dice": defined_mean(dice),
        "dice_foreground": defined_mean(dice[1:]),
        **{f"dice_{name}": value for name, value in zip(classes, dice, strict=True)},
        "pixel_accuracy": (prediction == label.to(prediction.device)).double().mean().item(),
    }


def dice_per_class(a: Tensor, b: Tensor, classes: int | Sequence[str]) -> Tensor:
    """Dice of each class, (classes,) float64; NaN for a class that is in neither label image.

    a, b: integer labels of one shape, voxels pooled. classes: their number or their names.
    """
    count = classes if isinstance(classes, int) else len(classes)
    if a.shape != b.shape:
        raise ValueError(f"labels of shapes {tuple(a.shape)} and {tuple(b.shape)}; bring both onto one grid")
    b = b.to(a.device)
    for value in (int(min(a.min(), b.min())), int(max(a.max(), b.max()))):
        if not 0 <= value < count:
            raise ValueError(f"label {value} found, but there are {count} classes, 0…{count - 1}; name them all")
    return overlap(a, b, count)


def overlap(a: Tensor, b: Tensor, count: int) -> Tensor:
    """`dice_per_class` of labels that are known to be below `count`: no value is looked at, and no GPU waited for."""
    cells = a.flatten().long() * count + b.flatten().long()
    joint = torch.zeros(count**2, dtype=torch.long, device=a.device).scatter_add_(0, cells, torch.ones_like(cells))
    joint = joint.reshape(count, count).double()
    return 2 * joint.diagonal() / (joint.sum(0) + joint.sum(1))


def hausdorff_distance_95(a: Tensor, b: Tensor, spacing: Sequence[float]) -> float:
    """Robust Hausdorff distance of two masks (1, 1, *spatial), mm; NaN if either is empty.

    The surface is the mask's voxels with a face neighbour outside (the image's border is outside). The 95th
    percentile is taken of each directed distance, the greater of the two is the answer, so that swapping the
    masks changes nothing and a large surface does not drown a small one, as it would in pooled distances.
    """
    a, b = (mask.squeeze(0).squeeze(0).cpu().numpy() for mask in (a, b))
    if not (a.any() and b.any()):
        return float("nan")
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    a, b = _surface(a[box]), _surface(b[box])
    to_a, to_b = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in (a, b))
    return float(max(np.percentile(to_b[a], 95), np.percentile(to_a[b], 95)))


def smoothness(displacement: Tensor) -> dict[str, float]:
    """`folds`: fraction of J ≤ 0; `sd_log_jacobian` over the rest.

    displacement: (1, D, *spatial), voxels. J is the same in mm: an axis-wise scale cancels in det(I + ∇u). Both are of
    the deformation alone: an affine part of the warp multiplies J by a constant, which changes neither.
    """
    jacobian = jacobian_determinant(displacement.double())
    unfolded = jacobian[jacobian > 0]
    return {
        "folds": (~(jacobian > 0)).double().mean().item(),
        "sd_log_jacobian": unfolded.log().std(correction=0).item() if unfolded.numel() else float("nan"),
    }


def jacobian_variance_published(displacement: Tensor, eps: float = 1e-6) -> float:
    """σ²(log|J|) as the authors published it: to compare with their tables, **not** to judge smoothness.

    Forward differences of the map x + u(x), the absolute value of *each* taken before the determinant is
    built, so that a reversed axis looks regular; then the variance of log|det|, folded voxels among the valid
    ones. |det| is kept above `eps`. displacement: (1, D, *spatial), voxels.
    """
    ndim = displacement.shape[1]
    spatial = displacement.shape[2:]
    axes = [torch.arange(size, dtype=torch.float64, device=displacement.device) for size in spatial]
    mapped = displacement[0].double() + torch.stack(torch.meshgrid(*axes, indexing="ij"))
    inner = (slice(None), *[slice(size - 1) for size in spatial])
    columns = [mapped.diff(dim=1 + axis)[inner] for axis in range(ndim)]  # d(x + u) / dx_axis: (D, *inner)
    matrices = torch.stack(columns, dim=1).abs().movedim((0, 1), (-2, -1))  # (*inner, D, D)
    return torch.linalg.det(matrices).abs().clamp(min=eps).log().var().item()


def target_registration_error(
    displacement: Tensor, truth: Tensor | None, fixed_label: Tensor, spacing: Sequence[float]
) -> float:
    """Mean |u - u_true| in mm over the fixed image's foreground, or over all voxels if it has none.

    displacement, truth: (1, D, *spatial), voxels. NaN without a truth.
    """
    if truth is None:
        return float("nan")
    if truth.shape != displacement.shape:
        raise ValueError(f"truth is {tuple(truth.shape)}; give it as {tuple(displacement.shape)}")
    scale = torch.as_tensor(spacing, dtype=torch.float64, device=displacement.device)
    difference = (displacement.double() - truth.to(displacement).double())[0].movedim(0, -1) * scale
    error = difference.norm(dim=-1)
    foreground = (fixed_label[0, 0] > 0).to(error.device)
    return (error[foreground] if foreground.any() else error).mean().item()


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def defined_mean(values: Iterable[float]) -> float:
    """The mean without NaN; NaN if there is no other value."""
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")
