"""Warps: finite for any finite field, forward and backward, and the laws of their algebra."""

import numpy as np
import pytest
import torch
from fuzzing import cases, spaces
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from deepsimreg import warps
from deepsimreg.warps.control import averaging

seeds = st.integers(0, 2**32 - 1)
SCALES = [0.0, 1e-42, 0.3, 5.0, 1e6, 1e30, 3e38, float("inf"), float("nan")]
wide = st.one_of(st.tuples(*[st.integers(8, 20)] * 2), st.tuples(*[st.integers(7, 12)] * 3))


def noise(space, seed, channels=1, count=1):
    return torch.rand(count, channels, *space, generator=torch.Generator().manual_seed(seed % 2**32))


def smooth(space, seed, size):
    """A smooth displacement that is 0 on the border, at most `size` voxels long."""
    field = gaussian_filter(noise(space, seed, len(space)).numpy() - 0.5, (0, 0, *[2] * len(space)))
    for axis, side in enumerate(space, start=2):
        window = np.sin(np.linspace(0, np.pi, side)) ** 2
        field = field * window.reshape(-1, *[1] * (len(space) + 1 - axis))
    return torch.from_numpy(field / max(np.abs(field).max(), 1e-12) * size).float()


@cases(40, 6000)
@given(spaces, seeds, st.sampled_from(SCALES), st.sampled_from([1.0, 1e-42, 1e12]), st.sampled_from(["32", "64"]))
def test_any_field_gives_finite_values_and_slopes(space, seed, scale, grey, bits):
    dtype = getattr(torch, f"float{bits}")
    image = (noise(space, seed, 2, 2) * grey).to(dtype)
    u = ((noise(space, seed ^ 1, len(space), 2) - 0.5) * 2).to(dtype) * scale
    u, image = u.requires_grad_(), image.requires_grad_()
    moved = warps.warp_image(image, u)
    assert moved.dtype == dtype
    assert moved.amin() >= image.amin() * (1 - 1e-5)
    assert moved.amax() <= image.amax() * (1 + 1e-5)
    slopes = torch.autograd.grad(moved.sum(), (u, image))
    assert all(torch.isfinite(slope).all() for slope in slopes if np.isfinite(scale))
    if scale < 1e7:
        flow = warps.integrate(u)
        inverse, jacobian = warps.invert(u), warps.jacobian_determinant(u)
        for one in (flow, inverse, jacobian, *torch.autograd.grad(flow.sum(), u)):
            assert torch.isfinite(one).all()


@cases(25, 3000)
@given(spaces, seeds, st.sampled_from(SCALES), st.booleans())
def test_labels_keep_their_values(space, seed, scale, outside):
    labels = (noise(space, seed, 1, 2) * 5).long() - 2
    u = (noise(space, seed ^ 1, len(space), 2) - 0.5) * 2 * scale
    assert set(warps.warp_labels(labels, u).unique().tolist()) <= set(labels.unique().tolist())
    found = warps.sample_labels(labels, u, -7 if outside else None)
    assert set(found.unique().tolist()) <= {*labels.unique().tolist(), -7}
    maps = warps.warp_one_hot(labels + 2, u, 5)
    torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]), atol=1e-5, rtol=0)
    assert maps.min() >= 0


@cases(30, 4000)
@given(spaces, seeds)
def test_no_displacement_changes_nothing(space, seed):
    image, still = noise(space, seed, 2), torch.zeros(1, len(space), *space)
    torch.testing.assert_close(warps.warp_image(image, still), image, atol=5e-6, rtol=0)
    labels = (image * 9).long()
    assert torch.equal(warps.warp_labels(labels, still), labels)
    assert torch.equal(warps.integrate(still), still)
    assert torch.equal(warps.compose(still, still), still)
    assert not warps.invert(still).any()
    assert (warps.jacobian_determinant(still) == (1 if min(space) > 1 else warps.jacobian_determinant(still))).all()


@cases(30, 4000)
@given(spaces, seeds, st.data())
def test_whole_steps_are_shifts(space, seed, data):
    image = noise(space, seed)
    steps = [data.draw(st.integers(-side - 1, side + 1)) for side in space]
    u = torch.stack([torch.full(space, float(step)) for step in steps])[None]
    index = np.ix_(*[np.clip(np.arange(side) + step, 0, side - 1) for side, step in zip(space, steps, strict=True)])
    wanted = image[0, 0].numpy()[index]
    np.testing.assert_allclose(warps.warp_image(image, u)[0, 0], wanted, atol=1e-5)
    np.testing.assert_array_equal(warps.warp_labels((image * 99).long(), u)[0, 0], (wanted * 99).astype(int))


@cases(20, 2500)
@given(wide, seeds, st.floats(0, 6))
def test_scipy_pulls_to_the_same_values(space, seed, size):
    image, u = noise(space, seed), (noise(space, seed ^ 1, len(space)) - 0.5) * size
    place = np.indices(space) + u[0].double().numpy()
    wanted = map_coordinates(image[0, 0].double().numpy(), place, order=1, mode="nearest")
    np.testing.assert_allclose(warps.warp_image(image, u)[0, 0], wanted, atol=2e-5)


@cases(15, 1500)
@given(wide, seeds, st.floats(0.05, 0.8))
def test_a_flow_and_its_inverse_undo_each_other(space, seed, size):
    v = smooth(space, seed, size)
    forth, back = warps.integrate(v), warps.integrate(-v)
    assert warps.compose(forth, back).abs().max() < 0.3 * size
    inverse = warps.invert(forth)
    assert warps.compose(forth, inverse).abs().max() < 2e-3
    assert warps.inverse_residual(forth, inverse)[1] < 2e-3
    assert warps.jacobian_determinant(forth).min() > 0


@cases(20, 2500)
@given(wide, seeds, st.booleans())
def test_the_jacobian_of_an_affine_is_its_determinant(space, seed, flipped):
    ndim = len(space)
    linear = np.eye(ndim) + np.random.default_rng(seed).normal(size=(ndim, ndim)) * 0.3
    linear[0] *= -1 if flipped else 1
    matrix = torch.from_numpy(np.column_stack([linear, np.arange(ndim)]))[None]
    u = warps.affine_displacement(matrix, space)
    found = warps.jacobian_determinant(u)
    np.testing.assert_allclose(found, np.linalg.det(linear), rtol=1e-6, atol=1e-6)
    spacing = (0.5, 2.0, 3.0)[:ndim]
    scaled = u * torch.tensor(spacing, dtype=u.dtype).view(1, -1, *[1] * ndim)
    np.testing.assert_allclose(warps.jacobian_determinant(scaled, spacing), found, rtol=1e-6, atol=1e-6)
    x = torch.from_numpy(np.indices(space).astype(float))[None]
    torch.testing.assert_close(warps.affine_positions(matrix, space), x + u)


@cases(20, 2500)
@given(wide, seeds)
def test_a_composition_warps_as_one_and_then_the_other(space, seed):
    """Of affine fields, which linear interpolation holds exactly, where nothing leaves the grid."""
    generator = np.random.default_rng(seed)
    fields, ndim = [], len(space)
    for _ in range(2):
        linear = np.eye(ndim) * 0.8 + generator.uniform(-0.015, 0.015, (ndim, ndim))
        fields.append(
            warps.affine_displacement(torch.from_numpy(np.column_stack([linear, np.zeros(ndim)]))[None], space)
        )
    first, second = fields
    image = torch.from_numpy(np.indices(space).astype(float))[None] @ torch.eye(space[-1], dtype=torch.float64)
    both = warps.warp_image(image, warps.compose(first, second))
    torch.testing.assert_close(both, warps.warp_image(warps.warp_image(image, first), second), atol=1e-6, rtol=0)
    point = torch.from_numpy(generator.random((1, 4, ndim)) * (np.array(space) - 1))
    there = warps.warp_points(warps.warp_points(point, second), first)
    torch.testing.assert_close(warps.warp_points(point, warps.compose(first, second)), there, atol=1e-5, rtol=0)


@cases(25, 3000)
@given(spaces, seeds, st.data())
def test_a_change_of_grid_keeps_constants_and_bounds(space, seed, data):
    factors = [data.draw(st.sampled_from([1, 2, 4])) for _ in space]
    image, constant = noise(space, seed, 2), torch.full((1, 1, *space), 0.7)
    coarse = [-(-side // factor) for side, factor in zip(space, factors, strict=True)]
    least, mean = warps.pooled_least(image, factors), warps.pooled(image, factors)
    assert list(mean.shape[2:]) == coarse
    assert (least <= mean + 1e-6).all()
    assert torch.equal(warps.crop(warps.pad_to_multiple(image, factors), space), image)
    for change in (warps.pooled, warps.coarsened):
        torch.testing.assert_close(change(constant, factors), torch.full((1, 1, *coarse), 0.7))
    for one in (mean, warps.coarsened(image, factors), warps.coarsened(image, factors, (image[:, :1] > 0.5).float())):
        assert one.min() >= image.min() - 1e-6
        assert one.max() <= image.max() + 1e-6
    finer = warps.upsample(mean, factors)
    assert finer.min() >= mean.min() - 1e-6
    assert finer.max() <= mean.max() + 1e-6
    matrices = [warps.expansion(*axis) for axis in zip(coarse, factors, space, strict=True)]
    torch.testing.assert_close(warps.expand(mean, matrices), warps.crop(finer, space))


@cases(25, 3000)
@given(spaces, seeds, st.data(), st.sampled_from([0.0, 0.4, 3.0, 1e6, float("nan")]))
def test_a_pull_is_a_warp_by_the_expanded_field(space, seed, data, scale):
    factors = [data.draw(st.sampled_from([1, 2, 4])) for _ in space]
    control = [-(-side // factor) for side, factor in zip(space, factors, strict=True)]
    image = noise(space, seed, 2)
    field = ((noise(control, seed ^ 1, len(space)) - 0.5) * scale).requires_grad_()
    matrices = [warps.expansion(*axis) for axis in zip(control, factors, space, strict=True)]
    moved = warps.pull(image, field, matrices, factors)
    u = warps.expand(field * torch.tensor(factors).view(1, -1, *[1] * len(space)), matrices)
    wanted = warps.warp_image(image, u)
    slopes = [torch.autograd.grad(one.square().sum(), field)[0] for one in (moved, wanted)]
    if scale < 10:
        torch.testing.assert_close(moved, wanted, atol=2e-5, rtol=0)
    assert torch.isfinite(moved).all()
    assert np.isnan(scale) or torch.isfinite(slopes[0]).all()
    if scale == 0.4:  # further out a kink of the interpolation may lie between the two roundings
        assert (slopes[0] - slopes[1]).abs().mean() <= 1e-2 * (slopes[1].abs().mean() + 1)


@cases(15, 1500)
@given(st.integers(1, 40), st.integers(1, 9))
def test_averaging_weighs_to_one(size, factor):
    weights = averaging(size, factor)
    torch.testing.assert_close(weights.sum(1), torch.ones(-(-size // factor)))
    assert weights.min() >= 0


@pytest.mark.parametrize("space", [(5, 6), (1, 7), (1, 1), (3, 4, 5)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_diverged_field_reads_inside_the_image(space, value):
    """The gradient of torch's sampling at NaN reads beyond the image, and ended the process."""
    for seed in range(20):
        image = noise(space, seed)
        u = torch.full((1, len(space), *space), value, requires_grad=True)
        moved = warps.warp_image(image, u)
        (slope,) = torch.autograd.grad(moved.sum(), u)
        corner = (0,) * len(space) if not value > 0 else (-1,) * len(space)
        assert (moved == image[(0, 0, *corner)]).all()
        assert not slope.nan_to_num().any()


@pytest.mark.parametrize("space", [(1, 7), (4, 1, 5), (1, 1)])
def test_an_axis_of_one_voxel_has_no_slope(space):
    u = noise(space, 0, len(space))
    wide = torch.cat([u.repeat_interleave(3, dim) for dim in [space.index(1) + 2]], 0) if space != (1, 1) else None
    found = warps.jacobian_determinant(u)
    if wide is None:
        assert (found == 1).all()
    else:
        torch.testing.assert_close(found, warps.jacobian_determinant(wide).narrow(space.index(1) + 1, 1, 1))
