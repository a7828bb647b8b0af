"""Going on from a start: with masks, in batches, and where the images meet only through it."""

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from deepsimreg import register
from deepsimreg.alignment import write_affine
from deepsimreg.losses.registry import build_similarity, parse_similarity
from deepsimreg.models.foreign import random_features
from deepsimreg.optimise import default_levels, optimise

QUIET = {"progress": False}


def texture(shape):
    values = gaussian_filter(np.random.default_rng(0).normal(size=shape), 2)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def planes(*parts):
    return torch.from_numpy(np.stack(parts)[:, None].copy())


@pytest.fixture
def volume(tmp_path):
    """Writes rows of a texture, or an array, as an image that begins so many mm along the first axis."""
    whole = texture((70, 24, 20))

    def write(name, rows, offset=0.0):
        affine = np.eye(4)
        affine[0, 3] = offset
        nibabel.save(nibabel.Nifti1Image(whole[rows] if isinstance(rows, slice) else rows, affine), tmp_path / name)
        return tmp_path / name

    return write


def shift(path, rows):
    """An affine that takes a point of the fixed image `rows` mm along the first axis, to the moving one."""
    transform = np.eye(4)
    transform[0, 3] = rows
    write_affine(path, transform, 3)
    return path


@pytest.mark.parametrize("name", ["mse", "ncc-25"])
def test_a_start_that_leaves_much_of_the_mask_behind_is_gone_on_from(name):
    whole, mask = texture((200, 96)), torch.zeros(1, 1, 96, 96)
    mask[..., 4:92, 4:92] = 1
    start = torch.zeros(1, 2, 96, 96)
    start[:, 0] = 47
    pair = planes(whole[:96]), planes(whole[50:146])
    options = {"start": start, "weights": (mask, None), **QUIET}
    found = optimise(*pair, build_similarity(name), 0.1, default_levels((96, 96), None, True), **options)
    assert (found.displacement[0, 0, 5:40, 20:-20] - 50).abs().mean() < 0.1


@pytest.mark.parametrize("name", ["mse", "ncc-25"])
def test_each_pair_of_a_batch_has_its_own_weights(name):
    """The moving images are shorter than the fixed ones, so some of the fixed rows have no counterpart."""
    whole = texture((120, 60))
    moving, fixed = planes(whole[30:80], whole[30:80]), planes(whole[26:86], whole[34:94])
    found = register(moving, fixed, name, **QUIET).displacement[:, 0, 8:40, 10:-10]
    assert (found - torch.tensor([-4.0, 4.0]).view(2, 1, 1)).abs().mean((1, 2)).max() < 0.2


def test_a_batch_goes_on_from_one_start_and_takes_no_landmarks(volume, tmp_path):
    pair = torch.from_numpy(texture((2, 1, 20, 24, 20)))
    start = shift(tmp_path / "start.mat", 1.0)
    found = register(pair, pair, "mse", start=start, steps=0, **QUIET)
    assert torch.equal(found.displacement[0], found.displacement[1])
    assert found.moved.shape == pair.shape
    with pytest.raises(ValueError, match="landmarks of a batch: register its pairs one by one"):
        register(pair, pair, "mse", landmarks=(np.ones((1, 3)), np.ones((1, 3))), **QUIET)


def test_images_and_masks_need_only_meet_through_the_start(volume, tmp_path):
    moving, fixed = volume("moving.nii.gz", slice(0, 40)), volume("fixed.nii.gz", slice(0, 40), 1000.0)
    with pytest.raises(ValueError, match="do not overlap in the world"):
        register(moving, fixed, "mse", **QUIET)
    apart = shift(tmp_path / "apart.mat", -1000.0)
    assert (
        np.abs(
            register(moving, fixed, "mse", start=apart, steps=0, **QUIET).moved[0, 0] - texture((70, 24, 20))[:40]
        ).max()
        < 1e-4
    )
    seen = np.zeros((2, 40, 24, 20), np.uint8)
    seen[0, 25:], seen[1, :15] = 1, 1
    masks = [volume(f"{name}.nii.gz", one) for name, one in zip(("moving_mask", "fixed_mask"), seen, strict=True)]
    moving, fixed = volume("moving.nii.gz", slice(0, 40)), volume("fixed.nii.gz", slice(25, 65))
    options = {"moving_mask": masks[0], "fixed_mask": masks[1], **QUIET}
    with pytest.raises(ValueError, match="have nothing in common"):
        register(moving, fixed, "mse", **options)
    found = register(moving, fixed, "mse", start=shift(tmp_path / "near.mat", 24.0), **options)
    assert (found.displacement[0, 0, 2:13] - 25).abs().mean() < 0.2


def test_a_start_beyond_the_fixed_grid_is_warned_of(volume, tmp_path):
    moving, fixed = volume("moving.nii.gz", slice(0, 70)), volume("fixed.nii.gz", slice(30, 60))
    start = shift(tmp_path / "start.mat", 30.0)
    with pytest.warns(UserWarning, match=r"the start takes 100% of fixed .*fixed\.nii\.gz to where moving"):
        register(moving, fixed, "mse", start=start, steps=0, **QUIET)


def test_descriptors_are_extracted_anew_in_sums_too_but_not_beside_features():
    assert parse_similarity("0.9 mind").anew
    assert parse_similarity("ncc + 0.5 mind").anew
    assert not parse_similarity("ncc").anew
    assert not parse_similarity("deepsim-seg + mind", {"seg": random_features(2)}).anew
    whole = texture((60, 64))
    moved = np.roll(whole, 1, axis=0)
    alone, sum_of_one = (
        register(whole, moved, name, lam=0.2, **QUIET).displacement for name in ("mind", "1.0001 mind")
    )
    assert (alone - sum_of_one).abs().mean() < 0.01
