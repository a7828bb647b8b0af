"""Masks: voxels outside them neither pull nor push, whatever they hold, in every similarity and in the alignment."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch.nn import functional

from deepsimreg import register
from deepsimreg.losses.base import Alignment
from deepsimreg.losses.mse import MSE
from deepsimreg.losses.registry import build_similarity
from deepsimreg.models.foreign import random_features
from deepsimreg.optimise import Level, optimise
from deepsimreg.warps import invert, warp_image

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


def lesioned(seed=0, shape=(64, 72)):
    """A pair with a known warp, and a bright lesion pasted into the fixed image; the lesion's voxels."""
    moving, truth = smooth(seed, shape), bump(shape)
    fixed = warp_image(moving, truth)
    lesion = torch.zeros(1, 1, *shape)
    lesion[:, :, 20:34, 26:42] = 1
    return moving, fixed, torch.where(lesion > 0, 1.0 - 0.9 * smooth(seed + 9, shape), fixed), lesion, truth


def bump(shape, peak=3.0):
    axes = [torch.linspace(0, torch.pi, side).sin() ** 2 for side in shape]
    height = peak * axes[0].view(-1, 1) * axes[1]
    return torch.stack([height, -0.6 * height])[None]


@pytest.mark.parametrize("name", ["mse", "ncc", "ncc-3", "nmi", "mind"])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_lesion_under_a_mask_leaves_the_warp_around_it(name, side):
    moving, fixed, broken, lesion, truth = lesioned()
    ring = (functional.max_pool2d(lesion, 13, 1, 6) - functional.max_pool2d(lesion, 3, 1, 1))[0, 0] > 0
    images, mask, healthy = (moving, broken), {"fixed_mask": 1 - lesion}, (moving, fixed)
    if side == "moving":  # the same pair the other way round: the lesion lies in what is pulled
        images, mask, healthy, truth = (broken, moving), {"moving_mask": 1 - lesion}, (fixed, moving), invert(truth)
    without, seen, masked = (
        (register(*pair, name, progress=False, **options).displacement - truth)[0].norm(dim=0)[ring].mean().item()
        for pair, options in ((healthy, {}), (images, {}), (images, mask))
    )
    off = f"{without:.2f} voxels off without it, {seen:.2f} with it, {masked:.2f} masked"
    print(f"{name}, lesion in the {side} image: {off}")
    if (
        name == "mind"
    ):  # a descriptor that would see the lesion, up to 4 voxels off, does not count: little is left here
        assert masked < min(without + 0.4, seen + 0.1)
    else:
        assert masked < min(without + 0.2, seen)


def test_the_alignment_does_not_look_under_a_mask():
    moving, fixed, broken, lesion, _ = lesioned()
    shifted = torch.roll(fixed, 3, dims=3)
    still = {"steps": 0, "affine": "rigid", "progress": False, "levels": [(4, 8, 0)]}
    here, masked = (
        register(shifted, image, "mse", **still, **options).transform[:2, 3]
        for image, options in ((fixed, {}), (broken, {"fixed_mask": 1 - lesion}))
    )
    assert abs(masked - here).max() < 0.3
    assert moving.shape == fixed.shape


def test_masks_that_do_not_fit_are_refused():
    image = smooth(0)
    with pytest.raises(ValueError, match="mask of the fixed image is empty"):
        register(image, image, "mse", fixed_mask=torch.zeros(SHAPE), progress=False)
    with pytest.raises(ValueError, match="mask of the moving image has shape"):
        register(image, image, "mse", moving_mask=torch.ones(8, 8), progress=False)


def test_landmarks_meet_where_the_images_say_nothing():
    """A shift of 4 voxels of two images of noise that have nothing in common."""
    flat = [smooth(seed) for seed in (1, 2)]
    here = np.random.default_rng(0).uniform([10, 10], [30, 38], (12, 2))
    spacing = (0.5, 0.5)
    there = here + np.array([4, 0])
    points = there * spacing, here * spacing
    alone, held = (
        register(*flat, "mse", spacing=spacing, progress=False, **options)
        for options in ({}, {"landmarks": points, "landmark_weight": 1.0})
    )
    left = [np.linalg.norm(found.warp_points(here).numpy() - there, axis=1).mean() for found in (alone, held)]
    print(f"landmarks {left[0]:.2f} voxels apart without the term, {left[1]:.2f} with it")
    assert left[1] < 0.5
    assert left[0] > 2
    with pytest.raises(ValueError, match=r"landmarks have the shapes \(12, 2\) and \(3, 2\)"):
        register(*flat, "mse", landmarks=(here, here[:3]), progress=False)


def test_landmarks_of_files_are_in_the_world_of_itk(tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])
    array = smooth(1, (20, 24, 16))[0, 0].numpy()
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    voxels = np.random.default_rng(0).uniform(4, 11, (10, 3))
    itk = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    moving, fixed = (
        np.array([itk.TransformContinuousIndexToPhysicalPoint(x) for x in (voxels + step).tolist()])
        for step in ((2, 0, 0), (0, 0, 0))
    )
    path = tmp_path / "a.nii.gz"
    result = register(path, path, "mse", landmarks=(moving, fixed), landmark_weight=10.0, progress=False)
    np.testing.assert_allclose(result.warp_points(voxels).numpy(), voxels + np.array([2, 0, 0]), atol=0.6)


def test_several_channels_decide_together():
    """One channel is empty of structure where the other has it."""
    left, right = half() * 0 + (torch.arange(48) < 24).float(), 1 - (torch.arange(48) < 24).float()
    moving, truth = smooth(4), bump(SHAPE, 2.5)
    fixed = warp_image(moving, truth)
    channels = [[(image * part)[0, 0] for part in (left, right)] for image in (moving, fixed)]
    both = register(*channels, "mse", lam=1e-3, progress=False)
    one = register(*channels, "mse", lam=1e-3, channel_weights=[1, 0], progress=False)
    errors = [(found.displacement - truth).norm(dim=1)[0, 5:-5, 30:-5].mean().item() for found in (both, one)]
    assert errors[0] < 0.5 * errors[1]
    assert both.moved.shape == (1, 2, *SHAPE)
    mind = register(*channels, "mind", progress=False)
    assert torch.isfinite(mind.displacement).all()
    with pytest.raises(ValueError, match="2 channels and 3 weights"):
        register(*channels, "mse", channel_weights=[1, 1, 1], progress=False)


def test_voxels_without_a_counterpart_do_not_count(tmp_path):
    """The moving image shows half of the scene: what lies outside it does not pull at the rest."""
    scene, truth = smooth(3, (64, 72)), bump((64, 72), 2.5)
    fixed = warp_image(scene, truth)
    affine = np.eye(4)
    affine[0, 3] = 24
    nibabel.save(nibabel.Nifti1Image(scene[0, 0, 24:].numpy(), affine), tmp_path / "moving.nii.gz")
    nibabel.save(nibabel.Nifti1Image(fixed[0, 0].numpy(), np.eye(4)), tmp_path / "fixed.nii.gz")
    result = register(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", "mse", lam=1e-3, progress=False)
    error = (result.displacement - truth).norm(dim=1)[0, 30:-6, 6:-6].mean()
    assert error < 0.4
    assert truth.norm(dim=1)[0, 30:-6, 6:-6].mean() > 1


def test_masks_without_anything_in_common_are_refused():
    image = smooth(0)
    with pytest.raises(ValueError, match="have nothing in common"):
        register(image, image, "mse", moving_mask=half(), fixed_mask=1 - half(), progress=False)


def test_classes_of_a_random_network_are_refused():
    with pytest.raises(ValueError, match="knows no classes"):
        register(smooth(0), smooth(1), "classes-seg", extractor="random", progress=False)


@pytest.mark.parametrize("name", ["mse", "mind"])
@pytest.mark.parametrize("extract", ["once", "always"])
def test_a_warp_does_not_win_by_moving_what_disagrees_out_of_the_image(name, extract):
    """Unrelated images: a start that has pushed the masked part out has nothing left to disagree, and costs more."""
    moving, fixed, weights = smooth(1), smooth(2), torch.zeros(1, 1, *SHAPE)
    weights[:, :, 24:40] = 1
    away = torch.zeros(1, 2, *SHAPE)
    away[:, 0] = -30
    options = {"extract": extract, "progress": False, "weights": (weights, None)}
    here, there = (
        optimise(moving, fixed, built(name), 0.0, [Level(1, 4, 1)], start=start, **options).losses[0]
        for start in (torch.zeros_like(away), away)
    )
    assert there > here > 0
