"""Masks: voxels outside them neither pull nor push, whatever they hold, in every similarity and in the alignment."""

import pytest
import torch
from torch.nn import functional

from deepsimreg.losses.base import Alignment
from deepsimreg.losses.mse import MSE
from deepsimreg.losses.registry import build_similarity
from deepsimreg.models.foreign import random_features

CASES = ["mse", "ncc", "ncc-3", "nmi", "mind", "vgg", "deepsim-seg", "classes-seg", "ncc-seg"]
LOCAL = ["mse", "ncc", "ncc-3", "nmi", "mind"]  # look no further than a few voxels
SHAPE = (40, 48)


def smooth(seed, shape=SHAPE):
    noise = torch.randn(1, 1, *[side // 4 for side in shape], generator=torch.Generator().manual_seed(seed))
    image = functional.interpolate(noise, shape, mode="bicubic" if len(shape) == 2 else "trilinear")
    return (image - image.amin()) / (image.amax() - image.amin())


def built(name, ndim=2):
    kinds = {"seg": random_features(ndim), "vgg": random_features(ndim)}
    similarity = build_similarity(name, kinds)
    return similarity.eval()


def half(shape=SHAPE):
    """1 in the first half along the first axis."""
    weights = torch.zeros(1, 1, *shape)
    weights[:, :, : shape[0] // 2] = 1
    return weights


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("shape", [SHAPE, (16, 20, 18)], ids=["2d", "3d"])
def test_what_is_masked_does_not_matter(name, shape):
    similarity, weights = built(name, len(shape)), half(shape)
    moved, fixed, other = smooth(1, shape), smooth(2, shape), smooth(3, shape)
    changed = torch.where(weights > 0, moved, 0.8 * other)
    image = moved.clone().requires_grad_()
    loss = similarity(image, fixed, weights)
    torch.testing.assert_close(similarity(changed, fixed, weights), loss.detach(), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        similarity(moved, torch.where(weights > 0, fixed, other), weights), loss.detach(), atol=2e-6, rtol=1e-5
    )
    assert (similarity(changed, fixed) - similarity(moved, fixed)).abs() > 1e-4, "it does without the mask"
    loss.backward()
    assert image.grad[weights == 0].abs().max() < 1e-7
    assert image.grad[weights > 0].abs().max() > 1e-7


@pytest.mark.parametrize("name", CASES)
def test_weights_of_one_change_nothing(name):
    similarity, moved, fixed = built(name), smooth(1), smooth(2)
    torch.testing.assert_close(
        similarity(moved, fixed, torch.ones(1, 1, *SHAPE)), similarity(moved, fixed), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", CASES)
def test_the_prepared_comparison_agrees(name):
    similarity, moved, fixed, weights = built(name), smooth(1), smooth(2), half()
    maps, other = (similarity.maps(torch.cat([moved, fixed])) for _ in range(2))
    ours, theirs = [m[:1] for m in maps], [m[1:] for m in other]
    torch.testing.assert_close(
        similarity.against(theirs, weights)(ours), similarity(moved, fixed, weights), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["mse", "nmi"])
def test_a_half_counts_as_the_half_alone(name):
    similarity, moved, fixed = built(name), smooth(1), smooth(2)
    if name == "nmi":
        similarity.fraction = 1.0
    cut = slice(0, SHAPE[0] // 2)
    torch.testing.assert_close(
        similarity(moved, fixed, half()), similarity(moved[:, :, cut], fixed[:, :, cut]), rtol=1e-4, atol=1e-6
    )


def test_masks_of_both_images_meet_on_the_fixed_grid():
    moving, fixed, displacement = smooth(1), smooth(2), torch.zeros(1, 2, *SHAPE)
    displacement[:, 0] = 4
    seen = Alignment(moving, fixed, displacement, moving_weights=half(), fixed_weights=1 - half().flip(3) * 0)
    expected = half()
    expected[:, :, SHAPE[0] // 2 - 4 :] = 0
    torch.testing.assert_close(seen.weights, expected)
    error = (seen.moved - fixed).square()[expected > 0].mean()
    torch.testing.assert_close(MSE().compare(seen), error)
