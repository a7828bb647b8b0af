"""Warps against geometry, scipy.ndimage and SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from deepsimreg.warps import (
    affine_displacement,
    coarsened,
    compose,
    control,
    crop,
    displacement_at,
    integrate,
    inverse_residual,
    invert,
    jacobian_determinant,
    upsample,
    warp_image,
    warp_labels,
    warp_one_hot,
    warp_points,
)

SHAPES = [(21, 26), (13, 17, 15)]
each_rank = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


def random_image(shape, seed=0, batch=2, channels=1, sigma=0.0):
    noise = np.random.default_rng(seed).random((batch, channels, *shape))
    return torch.from_numpy(gaussian_filter(noise, (0, 0, *[sigma] * len(shape)))).float()


def smooth_field(shape, peak, seed=0, batch=2, sigma=4.0):
    """Smooth random displacement, its largest component `peak` voxels."""
    field = random_image(shape, seed, batch, len(shape), sigma)
    field = field - field.mean()
    return field * (peak / field.abs().max())


def inside(field, margin=4):
    return field[(..., *[slice(margin, -margin)] * (field.ndim - 2))]


def index_grid(shape):
    return torch.from_numpy(np.indices(shape)).float()


def sitk_resample(image, displacement, interpolator):
    """SimpleITK's pull of one (*spatial) array by a (D, *spatial) field: its axes run x first."""
    vectors = np.moveaxis(displacement[::-1], 0, -1).astype(np.float64)
    transform = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(vectors, isVector=True))
    filter_ = sitk.ResampleImageFilter()
    filter_.SetReferenceImage(sitk.GetImageFromArray(image))
    filter_.SetTransform(transform)
    filter_.SetInterpolator(interpolator)
    filter_.UseNearestNeighborExtrapolatorOn()
    return sitk.GetArrayFromImage(filter_.Execute(sitk.GetImageFromArray(image)))


@each_rank
def test_zero_displacement_changes_nothing(shape):
    zero = torch.zeros(2, len(shape), *shape)
    image = random_image(shape, channels=2)
    labels = torch.randint(0, 5, (2, 1, *shape), dtype=torch.uint8)
    torch.testing.assert_close(warp_image(image, zero), image, atol=1e-5, rtol=0)
    assert torch.equal(warp_labels(labels, zero), labels)
    assert torch.equal(compose(zero, zero), zero)
    assert torch.equal(jacobian_determinant(zero), torch.ones(2, *shape))


@each_rank
def test_integer_shift_is_slicing(shape):
    image = random_image(shape)
    displacement = torch.zeros(2, len(shape), *shape)
    displacement[:, 0], displacement[:, -1] = 3, -2
    moved, expected = warp_image(image, displacement), image[:, :, 3:, ..., :-2]
    torch.testing.assert_close(moved[:, :, :-3, ..., 2:], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[:, :, -1, ..., 2:], image[:, :, -1, ..., :-2], atol=1e-5, rtol=0)


@each_rank
def test_warp_image_equals_scipy_also_outside(shape):
    image, displacement = random_image(shape), smooth_field(shape, peak=6, sigma=2)
    moved = warp_image(image, displacement)
    coordinates = (displacement + index_grid(shape)).double().numpy()
    for n in range(2):
        reference = map_coordinates(image[n, 0].double().numpy(), coordinates[n], order=1, mode="nearest")
        np.testing.assert_allclose(moved[n, 0], reference, atol=1e-5)


@each_rank
def test_warp_image_and_labels_equal_simpleitk(shape):
    image, displacement = random_image(shape), smooth_field(shape, peak=3, sigma=2)
    labels = (image * 5).to(torch.uint8)
    moved, moved_labels = warp_image(image, displacement), warp_labels(labels, displacement)
    assert moved_labels.dtype == torch.uint8
    for n in range(2):
        field = displacement[n].numpy()
        reference = sitk_resample(image[n, 0].numpy(), field, sitk.sitkLinear)
        np.testing.assert_allclose(
            inside(moved)[n, 0], inside(torch.from_numpy(reference)[None, None])[0, 0], atol=1e-5
        )
        reference = sitk_resample(labels[n, 0].numpy(), field, sitk.sitkNearestNeighbor)
        agree = inside(moved_labels)[n, 0].numpy() == inside(torch.from_numpy(reference)[None, None])[0, 0].numpy()
        assert agree.all()


@each_rank
def test_labels_outside_take_the_edge_and_large_values_survive(shape):
    labels = torch.randint(0, 2**40, (1, 1, *shape))
    displacement = torch.zeros(1, len(shape), *shape)
    displacement[:, 0] = 1000.0
    assert torch.equal(warp_labels(labels, displacement), labels[:, :, -1:].expand_as(labels))


@each_rank
def test_one_hot_is_the_linear_warp_of_each_membership(shape):
    labels = torch.randint(0, 3, (2, 1, *shape), dtype=torch.uint8)
    displacement = smooth_field(shape, peak=2)
    maps = warp_one_hot(labels, displacement, classes=3)
    assert maps.shape == (2, 3, *shape)
    for value in range(3):
        expected = warp_image((labels == value).float(), displacement)
        torch.testing.assert_close(maps[:, value : value + 1], expected)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, *shape))


@each_rank
def test_points_follow_the_field(shape):
    displacement = smooth_field(shape, peak=2)
    points = torch.rand(2, 7, len(shape)) * (torch.tensor(shape) - 1)
    moved = warp_points(points, displacement)
    for n in range(2):
        for component in range(len(shape)):
            u = map_coordinates(displacement[n, component].numpy(), points[n].numpy().T, order=1, mode="nearest")
            np.testing.assert_allclose(moved[n, :, component], points[n, :, component].numpy() + u, atol=1e-5)


@each_rank
def test_a_point_and_its_voxel_move_together(shape):
    """The voxel of the moved image that shows a landmark is the point that is sent onto the landmark."""
    landmark = [n // 2 for n in shape]
    image = torch.zeros(1, 1, *shape)
    image[(0, 0, *landmark)] = 1
    displacement = torch.zeros(1, len(shape), *shape)
    displacement[:, 0], displacement[:, 1] = 2, -3
    shown = warp_image(image, displacement)[0, 0].round().nonzero().float()[None]
    assert warp_points(shown, displacement)[0, 0].tolist() == pytest.approx(landmark, abs=1e-5)


@each_rank
def test_compose_is_warping_twice(shape):
    """Where interpolation is exact: a linear ramp through two different affine maps, away from the border."""
    ndim = len(shape)
    eye = torch.eye(ndim)
    shear = torch.zeros(ndim, ndim)
    shear[0, -1] = 0.15
    shift = torch.full((ndim, 1), 0.7)
    first = affine_displacement(torch.cat([eye + shear, shift], 1)[None], shape)
    second = affine_displacement(torch.cat([0.8 * eye - shear.T, -shift], 1)[None], shape)
    ramp = (index_grid(shape) * torch.arange(1, ndim + 1).view(-1, *[1] * ndim)).sum(0)[None, None]
    one, two = warp_image(ramp, compose(first, second)), warp_image(warp_image(ramp, first), second)
    torch.testing.assert_close(inside(one), inside(two), atol=1e-3, rtol=0)
    other = warp_image(ramp, compose(second, first))
    assert (inside(other) - inside(two)).abs().max() > 0.1


@each_rank
def test_compose_of_smooth_fields_is_warping_twice(shape):
    first, second = smooth_field(shape, 1.5, seed=1), smooth_field(shape, 1.5, seed=2)
    image = random_image(shape, sigma=3)
    error = warp_image(image, compose(first, second)) - warp_image(warp_image(image, first), second)
    assert inside(error).abs().max() < 0.03 * (image.max() - image.min())


@each_rank
def test_inverse_undoes_the_field_in_both_orders(shape):
    displacement = smooth_field(shape, peak=1.5, sigma=3)
    inverse = invert(displacement)
    assert inside(compose(displacement, inverse)).abs().max() < 1e-3
    assert inside(compose(inverse, displacement)).abs().max() < 0.05


def twisted(shape, turn, dtype=torch.float32):
    """x about the centre, turned by turn·exp(−r²/2σ²) radians in the first two axes: r is kept, so −turn undoes it."""
    x = index_grid(shape).to(dtype) - (torch.tensor(shape, dtype=dtype).view(-1, *[1] * len(shape)) - 1) / 2
    angle = turn * torch.exp(-x.square().sum(0) / (2 * (min(shape) / 8) ** 2))
    turned = x.clone()
    turned[0] = angle.cos() * x[0] - angle.sin() * x[1]
    turned[1] = angle.sin() * x[0] + angle.cos() * x[1]
    return (turned - x)[None]


def squeezed(shape):
    """x in each axis as sinh(3x)/sinh(3), from −1 to 1, whose slopes are .3 to 3, and its inverse asinh(sinh(3)x)/3."""
    maps = []
    for bend in (lambda x: np.sinh(3 * x) / np.sinh(3), lambda x: np.arcsinh(np.sinh(3) * x) / 3):
        axes = [(bend(x) - x) * (size - 1) / 2 for size in shape for x in [np.linspace(-1, 1, size)]]
        maps.append(torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij")))[None].float())
    return maps


@pytest.mark.parametrize("shape", [(128, 140), (72, 80, 64)], ids=["2d", "3d"])
@pytest.mark.parametrize("kind", ["twisted", "squeezed", "unsqueezed"])
def test_inverse_of_strong_warps_is_the_analytic_one(shape, kind):
    """Derivatives of up to 2 and no folds: interpolation between voxels is what is left of the error."""
    if kind == "twisted":
        displacement, expected = twisted(shape, 2.5), twisted(shape, -2.5)
    else:
        displacement, expected = squeezed(shape)[:: 1 if kind == "squeezed" else -1]
    gradients = torch.stack(torch.gradient(displacement, dim=list(range(2, displacement.ndim))))
    assert gradients.abs().max() > 1.2
    assert jacobian_determinant(displacement).min() > 0
    inverse = invert(displacement)
    mean, worst = inverse_residual(displacement, inverse)
    assert mean < 1e-4
    assert worst < 2e-4
    assert (inverse - expected).norm(dim=1).mean() < 0.02
    assert (inverse - expected).abs().max() < 0.2
    fixed_point = -displacement
    for _ in range(40):
        fixed_point = -warp_image(displacement, fixed_point)
    assert inverse_residual(displacement, fixed_point)[1] > 1, "fixed-point iteration does not get there"


def test_inverse_of_each_field_of_a_batch_is_its_own_in_its_dtype():
    fields = torch.cat([twisted((48, 48), turn, torch.float64) for turn in (0.0, 0.3, 2.5)])
    inverse = invert(fields.requires_grad_())
    assert inverse.dtype == torch.float64
    assert not inverse.requires_grad
    for one, together in zip(fields.detach().split(1), inverse, strict=True):
        torch.testing.assert_close(invert(one)[0], together, atol=2e-4, rtol=0)
    assert not inverse[0].any()


@each_rank
def test_the_residual_says_where_a_field_that_folds_has_no_inverse(shape):
    displacement = smooth_field([3 * size for size in shape], peak=9, sigma=3, batch=1)
    assert (jacobian_determinant(displacement) <= 0).float().mean() > 0.005
    inverse = invert(displacement)
    assert torch.isfinite(inverse).all()
    mean, worst = inverse_residual(displacement, inverse)
    assert mean < 0.1, "voxels outside the folds have one"
    assert worst > 1


@each_rank
def test_the_residual_of_an_inverse_counts_voxels_that_stay_inside(shape):
    shift = torch.zeros(1, len(shape), *shape)
    shift[:, 0] = 3
    assert inverse_residual(shift, -shift) == pytest.approx((0, 0), abs=1e-5)
    mean, worst = inverse_residual(shift, -shift - 0.5)
    assert mean == pytest.approx(0.5 * len(shape) ** 0.5, rel=1e-5)
    assert worst == pytest.approx(mean)
    assert np.isnan(inverse_residual(shift, shift + 1000)).all()


@each_rank
def test_integrating_backwards_is_the_inverse(shape):
    velocity = smooth_field(shape, peak=2)
    forth, back = integrate(velocity), integrate(-velocity)
    assert inside(forth).abs().max() > 1
    assert inside(compose(forth, back)).abs().max() < 0.05
    assert inside(compose(back, forth)).abs().max() < 0.05


@each_rank
def test_integrate_equals_many_small_euler_steps(shape):
    velocity = smooth_field(shape, peak=2)
    points = index_grid(shape).flatten(1).T.expand(2, -1, -1)
    end = points
    for _ in range(200):
        end = end + (warp_points(end, velocity) - end) / 200
    expected = (end - points).transpose(1, 2).view_as(velocity)
    assert inside(integrate(velocity, steps=7) - expected).abs().max() < 0.05


@each_rank
def test_affine_displacement_maps_about_the_centre(shape):
    ndim = len(shape)
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(2, ndim, ndim + 1)))
    displacement = affine_displacement(matrix, shape)
    centre = (np.array(shape) - 1) / 2
    x = np.random.default_rng(1).integers(0, shape, size=(5, ndim))
    for n in range(2):
        a, t = matrix[n, :, :ndim].numpy(), matrix[n, :, ndim].numpy()
        for point in x:
            expected = a @ (point - centre) + centre + t
            np.testing.assert_allclose(point + displacement[(n, slice(None), *point)].numpy(), expected)
    with pytest.raises(ValueError, match=r"matrix .* must be"):
        affine_displacement(matrix[:, :, :-1], shape)


@each_rank
def test_jacobian_of_an_affine_map_is_its_determinant(shape):
    ndim = len(shape)
    matrix = torch.from_numpy(np.random.default_rng(3).normal(size=(2, ndim, ndim + 1)))
    determinant = jacobian_determinant(affine_displacement(matrix, shape))
    expected = np.linalg.det(matrix[:, :, :ndim].numpy())
    for n in range(2):
        np.testing.assert_allclose(determinant[n], expected[n], rtol=1e-9)


@each_rank
def test_jacobian_of_a_fold_is_negative_and_of_a_half_turn_positive(shape):
    ndim = len(shape)
    mirror = torch.eye(ndim)
    mirror[0, 0] = -1
    half_turn = mirror.clone()
    half_turn[1, 1] = -1
    matrix = torch.cat([torch.stack([mirror, half_turn]), torch.zeros(2, ndim, 1)], 2)
    determinant = jacobian_determinant(affine_displacement(matrix, shape))
    torch.testing.assert_close(determinant[0], torch.full(shape, -1.0))
    torch.testing.assert_close(determinant[1], torch.full(shape, 1.0))


@each_rank
def test_jacobian_equals_simpleitk_and_np_gradient(shape):
    displacement = smooth_field(shape, peak=8, batch=1, sigma=1).double()
    determinant = jacobian_determinant(displacement)[0].numpy()
    assert determinant.min() < 0
    vectors = sitk.GetImageFromArray(np.moveaxis(displacement[0].numpy()[::-1], 0, -1), isVector=True)
    reference = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(vectors))
    core = (slice(1, -1),) * len(shape)
    np.testing.assert_allclose(determinant[core], reference[core], atol=1e-4)
    rows = [np.stack(np.gradient(component)) for component in displacement[0].numpy()]
    jacobian = np.moveaxis(np.stack(rows), (0, 1), (-2, -1)) + np.eye(len(shape))
    np.testing.assert_allclose(determinant, np.linalg.det(jacobian), atol=1e-9)


@each_rank
def test_jacobian_of_a_field_in_mm_needs_the_spacing(shape):
    spacing = (0.5, 2.0, 3.0)[: len(shape)]
    voxels = smooth_field(shape, peak=3).double()
    millimetres = voxels * torch.tensor(spacing).view(1, -1, *[1] * len(shape))
    torch.testing.assert_close(jacobian_determinant(millimetres, spacing), jacobian_determinant(voxels))
    with pytest.raises(ValueError, match="spacing"):
        jacobian_determinant(voxels, spacing=(1.0,))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=["2d", "3d"])
def test_gradients(shape):
    generator = torch.Generator().manual_seed(0)
    ndim, options = len(shape), {"generator": generator, "dtype": torch.float64}
    image = torch.rand(1, 2, *shape, **options).requires_grad_()
    # Kept off the integers, where linear interpolation has a kink.
    u = (0.2 + 0.3 * torch.rand(1, ndim, *shape, **options)).requires_grad_()
    points = (0.3 + torch.rand(1, 3, ndim, **options) * 0.5).requires_grad_()
    labels = torch.randint(0, 3, (1, 1, *shape), generator=generator)
    assert torch.autograd.gradcheck(warp_image, (image, u))
    assert torch.autograd.gradcheck(lambda field: warp_one_hot(labels, field, 3), (u,))
    assert torch.autograd.gradcheck(warp_points, (points, u))
    assert torch.autograd.gradcheck(jacobian_determinant, (u,))
    assert torch.autograd.gradcheck(lambda field: integrate(field, steps=2), (u,))


def test_half_precision_fields_keep_their_coordinates():
    """bfloat16 has 8 bits: a coordinate near 500 rounded to it would be two voxels off."""
    image = torch.linspace(0, 1, 512).view(1, 1, 512, 1).expand(1, 1, 512, 2)
    field = torch.full((1, 2, 512, 2), 0.5, dtype=torch.bfloat16)
    field[:, 1] = 0
    moved = warp_image(image, field)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved[0, 0, 500, 0].item(), 500.5 / 511, atol=1e-5, rtol=0)


def test_a_diverged_field_does_not_read_outside_the_labels():
    labels = torch.randint(0, 3, (1, 1, 4, 5))
    moved = warp_labels(labels, torch.full((1, 2, 4, 5), float("nan")))
    assert torch.equal(moved, labels[:, :, :1, :1].expand_as(labels))


@pytest.mark.parametrize("warp", [warp_image, warp_labels, lambda image, u: warp_one_hot(image, u, 2)])
@pytest.mark.parametrize(
    ("image", "displacement"),
    [
        ((1, 1, 4, 5), (1, 2, 4, 6)),
        ((1, 1, 4, 5), (1, 3, 4, 5, 6)),
        ((1, 1, 4, 5), (1, 3, 4, 5)),
        ((2, 1, 4, 5), (1, 2, 4, 5)),
    ],
    ids=["size", "rank", "components", "batch"],
)
def test_shapes_that_differ_are_named(warp, image, displacement):
    with pytest.raises(ValueError, match="displacement") as error:
        warp(torch.zeros(image).long(), torch.zeros(displacement))
    assert str(tuple(displacement)) in str(error.value)


def test_points_of_another_rank_are_an_error():
    with pytest.raises(ValueError, match=r"\(1, 7, 3\)"):
        warp_points(torch.zeros(1, 7, 3), torch.zeros(1, 2, 4, 5))


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("shape", [(37, 41), (21, 18, 26)], ids=["2d", "3d"])
def test_an_image_pulled_through_a_control_grid_is_warped_by_its_displacement(shape, pool, batch, threads, monkeypatch):
    """A few rows at a time, with the gradient of `warp_image`; pool: the image is coarser than the displacement."""
    monkeypatch.setattr(control, "ROWS", 500)
    monkeypatch.setattr(control, "BAND", 16)
    generator = torch.Generator().manual_seed(0)
    points, size = [-(-side // 4) for side in shape], [-(-side // pool) for side in shape]
    field = torch.randn(batch, len(shape), *points, dtype=torch.float64, generator=generator).requires_grad_()
    image, weight = torch.rand(2, batch, 3, *size, dtype=torch.float64, generator=generator)
    matrices = [control.expansion(*axis, pool).double() for axis in zip(points, [4] * len(shape), shape, strict=True)]
    displacement = displacement_at(crop(upsample(field, 4) * 4, shape), size)
    torch.testing.assert_close(control.expand(field, matrices) * 4 / pool, displacement)
    moved = [warp_image(image, displacement), control.pull(image, field, matrices, [4 / pool] * len(shape))]
    torch.testing.assert_close(*moved)
    torch.testing.assert_close(*[torch.autograd.grad((one * weight).sum(), field)[0] for one in moved])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_coarsening_is_a_gaussian_at_the_centres_of_blocks(factor):
    voxels, ends = np.arange(8 * 40.0), np.arange(40) * factor + (factor - 1) / 2
    wave = 2 * np.pi / (5 * factor)
    image = torch.from_numpy(np.cos(wave * voxels[: 40 * factor])[:, None] + np.zeros(6))[None, None]
    found = coarsened(image, (factor, 1))[0, 0, 2:-2, 0].numpy()
    damped = np.exp(-((wave * factor / 2) ** 2) / 2)  # what a Gaussian with σ of half a block leaves of this wave
    np.testing.assert_allclose(found, damped * np.cos(wave * ends)[2:-2], atol=0.02)
    finest = coarsened(torch.from_numpy((-1.0) ** voxels)[None, None, :, None], (factor, 1))
    assert finest.abs()[..., 2:-2, :].max() < 0.02, "texture of one voxel is left, and not as a pattern"


def test_coarsening_with_weights_leaves_out_what_has_none():
    image = torch.linspace(0, 1, 40, dtype=torch.float64).expand(1, 2, 40, 40).clone()
    weights = torch.ones(1, 1, 40, 40, dtype=torch.float64)
    weights[..., 10:20, 10:20] = 0
    image[..., 10:20, 10:20] = 100.0
    found = coarsened(image, (4, 4), weights)
    assert found.max() <= 1
    torch.testing.assert_close(coarsened(torch.ones_like(image), (4, 4), weights), torch.ones(1, 2, 10, 10).double())
    torch.testing.assert_close(coarsened(image, (4, 4), torch.zeros_like(weights)), coarsened(image, (4, 4)))
    assert torch.equal(coarsened(image, (1, 1), weights), image)
