"""Metrics beside their definitions, written out in numpy: overlap, distances of surfaces, folds."""

import itertools

import numpy as np
import pytest
import torch
from fuzzing import cases, spaces
from hypothesis import given
from hypothesis import strategies as st

from deepsimreg.metrics import (
    dice_per_class,
    hausdorff_distance_95,
    indexed_labels,
    jacobian_variance_published,
    label_metrics,
    smoothness,
    target_registration_error,
)
from deepsimreg.surfaces import hausdorff_distance_95_by_area

seeds = st.integers(0, 2**32 - 1)
fill = st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])


def mask(space, seed, part):
    return np.random.default_rng(seed).random(space) < part


def surface(mask):
    """Voxels with a face neighbour outside, the border of the image among these."""
    found = []
    for x in np.argwhere(mask):
        steps = [x + sign * np.eye(mask.ndim, dtype=int)[axis] for axis in range(mask.ndim) for sign in (-1, 1)]
        inside = [(y >= 0).all() and (y < mask.shape).all() and mask[tuple(y)] for y in steps]
        found += [] if all(inside) else [x]
    return np.array(found)


@cases(30, 4000)
@given(spaces, seeds, seeds, fill, fill, st.booleans())
def test_hd95_is_what_its_definition_says(space, one, other, here, there, scaled):
    a, b = mask(space, one, here), mask(space, other, there)
    spacing = [0.5, 1.0, 2.0][: len(space)] if scaled else [1.0] * len(space)
    tensors = [torch.from_numpy(each)[None, None] for each in (a, b)]
    found = hausdorff_distance_95(*tensors, spacing)
    assert hausdorff_distance_95(*tensors[::-1], spacing) == pytest.approx(found, nan_ok=True)
    if not (a.any() and b.any()):
        assert np.isnan(found)
        return
    assert hausdorff_distance_95(tensors[0], tensors[0], spacing) == 0
    apart = np.linalg.norm((surface(a)[:, None] - surface(b)[None]) * spacing, axis=-1)
    assert found == pytest.approx(max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95)))


@cases(20, 2000)
@given(st.tuples(*[st.integers(1, 7)] * 3), seeds, seeds, fill, fill)
def test_hd95_by_area_is_symmetric_and_bounded(space, one, other, here, there):
    a, b = mask(space, one, here), mask(space, other, there)
    found = hausdorff_distance_95_by_area(a, b)
    assert found == hausdorff_distance_95_by_area(b, a)
    if not (a.any() and b.any()):
        assert found == np.inf
        return
    assert hausdorff_distance_95_by_area(a, a) == 0
    shifts = itertools.product((0, 1), repeat=3)  # corners that a surface passes: some of their 8 voxels are in it
    corners = {}
    for name, each in (("a", a), ("b", b)):
        padded = np.pad(each, 1).astype(int)
        size = np.array(padded.shape) - 1
        around = sum(padded[tuple(slice(s, s + n) for s, n in zip(shift, size, strict=True))] for shift in shifts)
        corners[name] = np.argwhere((around > 0) & (around < 8))
        shifts = itertools.product((0, 1), repeat=3)
    apart = np.linalg.norm(corners["a"][:, None] - corners["b"][None], axis=-1)
    assert found <= max(apart.min(1).max(), apart.min(0).max()) + 1e-9


@cases(30, 4000)
@given(spaces, seeds, st.integers(1, 5), st.integers(-3, 3))
def test_overlap_is_what_its_definition_says(space, seed, classes, lowest):
    generator = np.random.default_rng(seed)
    a, b = (torch.from_numpy(generator.integers(lowest, lowest + classes, (1, 1, *space))) for _ in range(2))
    ours, theirs, names = indexed_labels(a, b)
    assert names[0] == "0"
    found = label_metrics(ours, theirs, names, [1.0] * len(space))
    for name in names:
        one, other = (each.numpy() == int(name) for each in (a, b))
        total = one.sum() + other.sum()
        wanted = 2 * (one & other).sum() / total if total else np.nan
        assert found[f"dice_{name}"] == pytest.approx(wanted, nan_ok=True)
    assert found["pixel_accuracy"] == pytest.approx((a == b).double().mean().item())
    dice = dice_per_class(ours, theirs, len(names))
    assert torch.equal(dice.nan_to_num(-1), dice_per_class(theirs, ours, len(names)).nan_to_num(-1))
    assert ((0 <= dice) & (dice <= 1) | dice.isnan()).all()
    itself = label_metrics(ours, ours, names, [1.0] * len(space))
    assert {v for k, v in itself.items() if not np.isnan(v)} <= {0.0, 1.0}
    assert itself["pixel_accuracy"] == itself["dice"] == 1


@cases(20, 2000)
@given(st.one_of(st.tuples(*[st.integers(2, 7)] * 2), st.tuples(*[st.integers(2, 5)] * 3)), seeds, st.booleans())
def test_a_flip_folds_everywhere_and_an_affine_is_smooth(space, seed, flipped):
    ndim = len(space)
    linear = np.eye(ndim) + np.random.default_rng(seed).uniform(-0.2, 0.2, (ndim, ndim))
    linear[:, 0] *= -1 if flipped else 1
    x = np.indices(space).astype(float)
    u = torch.from_numpy(np.tensordot(linear - np.eye(ndim), x, 1))[None]
    found = smoothness(u)
    folds = np.linalg.det(linear) < 0
    assert found["folds"] == folds
    assert np.isnan(found["sd_log_jacobian"]) if folds else found["sd_log_jacobian"] < 1e-6
    if min(space) > 2:
        assert jacobian_variance_published(u) < 1e-6
    label = torch.ones(1, 1, *space, dtype=torch.long)
    spacing = [0.5, 1.0, 2.0][:ndim]
    error = target_registration_error(u, torch.zeros_like(u), label, spacing)
    wanted = np.linalg.norm(u[0].numpy() * np.reshape(spacing, (-1, *[1] * ndim)), axis=0).mean()
    assert error == pytest.approx(wanted)


@cases(20, 2000)
@given(spaces, seeds, st.sampled_from([0.0, 1e-42, 1.0, 1e6, 1e30]))
def test_smoothness_is_a_number_for_any_field(space, seed, scale):
    u = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, len(space), *space)) * scale)
    found = smoothness(u)
    assert 0 <= found["folds"] <= 1
    assert np.isfinite(found["sd_log_jacobian"]) or found["folds"] == 1
