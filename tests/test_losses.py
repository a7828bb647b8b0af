"""Losses against their definitions, written as loops in float64."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deepsimreg.losses import (
    MIND,
    MSE,
    NCC,
    NMI,
    SIMILARITIES,
    Alignment,
    ClassProbabilities,
    DeepSim,
    SupervisedNCC,
    WeightedSum,
    build_similarity,
    diffusion,
    required_extractors,
    similarity_terms,
)
from deepsimreg.metrics import dice_per_class
from deepsimreg.models import UNet
from deepsimreg.warps import displacement_at, warp_image, warp_one_hot

SHAPES = [(11, 14), (7, 8, 9)]
each_rank = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


class TinyEncoder(nn.Module):
    """Random three-level encoder with dropout, so that a forgotten evaluation mode shows."""

    def __init__(self, ndim, channels=(4, 6, 8)):
        super().__init__()
        torch.manual_seed(0)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        sizes = itertools.pairwise((1, *channels))
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, 3, 2, 1), nn.LeakyReLU(0.2), nn.Dropout(0.5)) for a, b in sizes
        )

    def features(self, image):
        levels = []
        for stage in self.stages:
            image = stage(image)
            levels.append(image)
        return levels


def pair(shape, channels=1, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    moved = torch.rand(2, channels, *shape, generator=generator)
    fixed = 0.5 * moved + 0.5 * torch.rand(2, channels, *shape, generator=generator)
    return moved * scale, fixed * scale


def all_losses(ndim):
    return [
        MSE(),
        NCC(),
        NCC(squared=False),
        DeepSim(TinyEncoder(ndim)),
        DeepSim(TinyEncoder(ndim), zero_mean=True),
    ]


FORMS = {"squared": {}, "signed": {"signed": True}, "plain": {"squared": False}}
each_form = pytest.mark.parametrize("form", FORMS)


def ncc_by_definition(moved, fixed, window, form, eps=1e-5):
    values, radius = [], window // 2
    for i, j in zip(moved.double().flatten(0, 1).numpy(), fixed.double().flatten(0, 1).numpy(), strict=True):
        for voxel in np.ndindex(i.shape):
            patch = tuple(slice(max(x - radius, 0), x + radius + 1) for x in voxel)
            a, b = i[patch] - i[patch].mean(), j[patch] - j[patch].mean()
            cross = (a * b).mean()
            variances = max((a * a).mean(), eps) * max((b * b).mean(), eps)
            forms = {"squared": cross**2 / variances, "signed": cross * abs(cross) / variances}
            values.append(forms.get(form, cross / np.sqrt(variances)))
    return 1 - np.mean(values)


def deepsim_by_definition(features_moved, features_fixed, levels, zero_mean):
    means = []
    for level in levels:
        cosines = []
        for a, b in zip(features_moved[level - 1], features_fixed[level - 1], strict=True):
            a, b = (f.double().flatten(1).numpy() for f in (a, b))
            if zero_mean:
                a, b = a - a.mean(1)[:, None], b - b.mean(1)[:, None]
            for p in range(a.shape[1]):
                norms = max(a[:, p] @ a[:, p], 1e-6) * max(b[:, p] @ b[:, p], 1e-6)
                cosines.append(a[:, p] @ b[:, p] / np.sqrt(norms))
        means.append(np.mean(cosines))
    return 1 - np.mean(means)


@each_rank
def test_mse_by_definition(shape):
    moved, fixed = pair(shape, channels=2)
    assert MSE()(moved, fixed).item() == pytest.approx(np.mean((moved - fixed).double().numpy() ** 2), rel=1e-6)


@each_rank
@each_form
@pytest.mark.parametrize("window", [3, 5, 9, 21])
def test_ncc_by_definition(shape, form, window):
    moved, fixed = pair(shape, channels=2)
    moved[:, :, :4, :4] = 0.25  # flat windows
    expected = ncc_by_definition(moved, fixed, window, form)
    assert NCC(window, **FORMS[form])(moved, fixed).item() == pytest.approx(expected, abs=1e-6)


@each_form
def test_ncc_of_bright_images_does_not_cancel(form):
    """Texture of one grey level on a background of 10,000, in float32: var is 1e-9 of the mean square."""
    moved, fixed = (image + 10_000 for image in pair((9, 10)))
    expected = ncc_by_definition(moved, fixed, 5, form)
    assert NCC(5, **FORMS[form])(moved, fixed).item() == pytest.approx(expected, abs=1e-5)


@each_rank
def test_ncc_sees_contrast_as_it_says(shape):
    image, _ = pair(shape)
    assert NCC()(image, image).item() == pytest.approx(0, abs=1e-6)
    assert NCC()(image, 0.3 - 2 * image).item() == pytest.approx(0, abs=1e-6)
    assert NCC(squared=False)(image, 3 * image + 1).item() == pytest.approx(0, abs=1e-6)
    for form in ("plain", "signed"):
        assert NCC(**FORMS[form])(image, -image).item() == pytest.approx(2, abs=1e-6)
    assert NCC()(image, torch.full_like(image, 0.4)).item() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=["2d", "3d"])
def test_gradients_of_the_intensity_losses(shape):
    moved, fixed = (image.double().requires_grad_() for image in pair(shape))
    for loss in (MSE(), NCC(3), NCC(3, squared=False)):
        assert torch.autograd.gradcheck(loss, (moved, fixed))


def ncc_in_float64(moved, fixed, window, form, weights, eps=1e-5):
    """The definition, for autograd: a window's mean is the sum of weight and value over the sum of weights."""
    moved, fixed, weights = moved.double(), fixed.double(), weights.double()

    def windows(image):
        for axis in range(2, image.ndim):
            near = torch.arange(image.shape[axis])
            near = ((near[:, None] - near).abs() <= window // 2).double()
            image = (image.movedim(axis, -1) @ near).movedim(-1, axis)
        return image

    total = windows(weights)

    def mean(image):
        return torch.where(total > 0, windows(weights * image) / total.clamp(min=1e-12), 0)

    cross = mean(moved * fixed) - mean(moved) * mean(fixed)
    variances = [(mean(image**2) - mean(image) ** 2).clamp(min=eps) for image in (moved, fixed)]
    plain = cross * (variances[0] * variances[1]).rsqrt()
    ncc = {"squared": plain**2, "signed": plain * plain.abs(), "plain": plain}[form]
    return 1 - (weights * ncc).sum() / weights.expand_as(ncc).sum()


@each_rank
@each_form
@pytest.mark.parametrize("window", [3, 9])
@pytest.mark.parametrize("weighted", [False, True])
def test_ncc_and_its_gradient_are_those_of_the_definition_in_float64(shape, form, window, weighted):
    moved, fixed = pair(shape, channels=2)
    moved[:, :, :4, :4], fixed[:, :, 2:6, 2:6] = 1.0, 0.98  # flat and bright
    moved[:, :, 5:] *= 0.1
    weights = torch.ones(1, 1, *shape)
    if weighted:
        weights = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(5))
        weights[:, :, -4:] = 0
    gradients = []
    for measure in (NCC(window, **FORMS[form]), lambda *images: ncc_in_float64(*images[:2], window, form, weights)):
        image = moved.clone().requires_grad_()
        loss = measure(image, fixed, weights if weighted else None)
        gradients.append((loss.item(), *torch.autograd.grad(loss, image)))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-6)
    assert (gradients[0][1] - gradients[1][1]).norm() < 2e-3 * gradients[1][1].norm()


@pytest.mark.parametrize("scale", [1, 1000])
def test_ncc_of_a_flat_bright_region_beside_texture(scale):
    """A plateau far above the mean of the image, which float32 alone would take for texture."""
    moved, fixed = (image * scale for image in pair((24, 24)))
    for image in (moved, fixed):
        image[:, :, :12] = 30 * scale
    moved = moved.requires_grad_()
    loss = NCC(5)(moved, fixed)
    (gradient,) = torch.autograd.grad(loss, moved)
    assert loss.item() == pytest.approx(ncc_by_definition(moved.detach(), fixed, 5, "squared"), abs=1e-5)
    assert gradient[:, :, :8].abs().max() < 1e-5 * gradient.abs().max()


def test_weights_of_ncc_leave_out_what_they_are_zero_for():
    """Left out, the values of a region change neither the loss nor the gradient, and it has none."""
    moved, fixed = pair((16, 18))
    weights = torch.ones(1, 1, 16, 18)
    weights[:, :, 10:] = 0
    other = torch.where(weights > 0, moved, 7 * moved.flip(3)).requires_grad_()
    loss = NCC(5)(other, fixed, weights)
    loss.backward()
    assert loss.item() == pytest.approx(NCC(5)(moved[:, :, :10], fixed[:, :, :10]).item(), abs=1e-6)
    assert (other.grad[:, :, 10:] == 0).all()


def test_a_second_derivative_of_ncc_is_refused_not_wrong():
    moved, fixed = pair((8, 9))
    loss = NCC(3)(moved.requires_grad_(), fixed)
    (gradient,) = torch.autograd.grad(loss, moved, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@each_rank
@pytest.mark.parametrize("levels", [None, (1,), (2,), (1, 3), (3, 1, 2)])
@pytest.mark.parametrize("zero_mean", [False, True])
def test_deepsim_by_definition(shape, levels, zero_mean):
    moved, fixed = pair(shape)
    encoder = TinyEncoder(len(shape)).eval()
    loss = DeepSim(encoder, levels, zero_mean)(moved, fixed).item()
    with torch.no_grad():
        features = encoder.features(moved), encoder.features(fixed)
    assert loss == pytest.approx(deepsim_by_definition(*features, levels or (1, 2, 3), zero_mean), abs=1e-6)


class Identity:
    """An extractor that is no network: the image itself, as one level."""

    def features(self, image):
        return [image]


def test_deepsim_values_that_are_known():
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])
    loss = DeepSim(Identity())
    as_image = lambda vector: vector.view(1, 2, 1, 1).expand(1, 2, 4, 5)  # noqa: E731
    assert loss(as_image(east), as_image(4 * east)).item() == pytest.approx(0)
    assert loss(as_image(east), as_image(north)).item() == pytest.approx(1)
    assert loss(as_image(east), as_image(-north - east)).item() == pytest.approx(1 + 10**-0.5)
    assert loss(as_image(east), as_image(-east)).item() == pytest.approx(2)
    assert loss(as_image(0 * east), as_image(east)).item() == 1
    tiny = 5e-4 * east  # squared norm 2.5e-7, clamped to 1e-6
    assert loss(as_image(tiny), as_image(tiny)).item() == pytest.approx(0.75)


@each_rank
def test_deepsim_of_identical_images_is_zero(shape):
    image, _ = pair(shape)
    assert DeepSim(TinyEncoder(len(shape)))(image, image).item() == pytest.approx(0, abs=1e-6)


@each_rank
def test_zero_mean_ignores_what_all_positions_share(shape):
    class Offset(Identity):
        def features(self, image):
            return [torch.cat([image, 1 - image], 1) + 100]

    moved, fixed = pair(shape)
    assert DeepSim(Offset())(moved, fixed).item() < 1e-4
    bare = DeepSim(Offset(), zero_mean=True)(moved, fixed).item()
    assert bare > 0.05


def test_deepsim_gradient_reaches_the_moved_image_only():
    moved, fixed = (image.requires_grad_() for image in pair((16, 16)))
    encoder = TinyEncoder(2)
    DeepSim(encoder)(moved, fixed).backward()
    assert moved.grad.abs().max() > 0
    assert fixed.grad is None
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_deepsim_gradient_is_right():
    moved, fixed = (image.double() for image in pair((8, 8)))
    loss = DeepSim(TinyEncoder(2).double())
    assert torch.autograd.gradcheck(lambda image: loss(image, fixed), (moved.requires_grad_(),))


def test_deepsim_keeps_its_extractor_frozen_in_a_training_parent():
    loss = DeepSim(TinyEncoder(2))
    parent = nn.ModuleDict({"loss": loss, "net": nn.Dropout()}).train()
    assert parent["net"].training
    assert not any(module.training for module in loss.extractor.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    moved, fixed = pair((16, 16))
    assert loss(moved, fixed) == loss(moved, fixed)


def test_deepsim_under_autocast_stays_close_and_finite():
    moved, fixed = pair((32, 32))
    loss = DeepSim(TinyEncoder(2))
    expected = loss(moved, fixed)
    moved.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, same = loss(moved, fixed), loss(fixed, fixed)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=0.05)
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert moved.grad.isfinite().all()


@pytest.mark.parametrize("levels", [(), (0, 1), (1, 1)])
def test_deepsim_levels_that_make_no_sense(levels):
    with pytest.raises(ValueError, match="levels"):
        DeepSim(TinyEncoder(2), levels=levels)


def test_deepsim_errors_name_the_argument():
    with pytest.raises(ValueError, match="only the levels 1 to 3"):
        DeepSim(TinyEncoder(2), levels=(4,))(*pair((16, 16)))
    with pytest.raises(TypeError, match="features"):
        DeepSim(nn.Identity())


@each_rank
@pytest.mark.parametrize("loss_index", range(5), ids=["mse", "ncc", "ncc-plain", "deepsim", "deepsim-zero-mean"])
def test_no_image_gives_nan(shape, loss_index):
    loss = all_losses(len(shape))[loss_index]
    texture, other = pair(shape)
    zero, constant, huge = torch.zeros_like(texture), torch.full_like(texture, 0.3), 1e4 * texture
    spike = zero.clone()
    spike[(0, 0, *[n // 2 for n in shape])] = 1e4
    for moved, fixed in itertools.product((zero, constant, huge, spike, other, 1e-20 * other), repeat=2):
        moved = moved.clone().requires_grad_()
        value = loss(moved, fixed)
        value.backward()
        assert value.isfinite()
        assert moved.grad.isfinite().all()
        if not isinstance(loss, MSE):
            assert -1e-5 <= value.item() <= 2 + 1e-5


@pytest.mark.parametrize("loss_index", range(5))
def test_images_of_different_shape_are_an_error(loss_index):
    with pytest.raises(ValueError, match=r"\(1, 1, 16, 16\).*\(1, 1, 16, 1\)"):
        all_losses(2)[loss_index](torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 1))


def test_a_window_for_planes_and_one_for_volumes():
    for shape, same in zip(SHAPES, (NCC(5, signed=True), NCC(3)), strict=True):
        moved, fixed = pair(shape)
        assert build_similarity("ncc-25")(moved, 1 - fixed) == same(moved, 1 - fixed)


def test_even_window_is_an_error():
    with pytest.raises(ValueError, match="odd"):
        NCC(window=8)
    with pytest.raises(ValueError, match="odd"):
        NCC(window=(5, 4))


@each_rank
def test_diffusion_by_definition(shape):
    field = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(0))
    u, means = field.double().numpy(), []
    for axis in range(len(shape)):
        squares = []
        for voxel in np.ndindex(shape):
            if voxel[axis] + 1 < shape[axis]:
                ahead = tuple(x + (a == axis) for a, x in enumerate(voxel))
                squares.append((u[(..., *ahead)] - u[(..., *voxel)]) ** 2)
        means.append(np.mean(squares))
    assert diffusion(field).item() == pytest.approx(np.mean(means), rel=1e-5)


@each_rank
def test_diffusion_of_a_translation_and_of_a_stretch(shape):
    ndim = len(shape)
    translation = torch.full((1, ndim, *shape), 2.5)
    assert diffusion(translation).item() == 0
    stretch = torch.zeros(1, ndim, *shape)
    stretch[:, 0] = 0.1 * torch.arange(shape[0]).view(-1, *[1] * (ndim - 1))
    # One of D components changes, along one of D axes.
    assert diffusion(stretch).item() == pytest.approx(0.01 / ndim**2, rel=1e-5)


@each_rank
@pytest.mark.parametrize("spaced", [False, True])
def test_gradient_of_diffusion_by_finite_differences(shape, spaced):
    ndim = len(shape)
    shape = (1, *shape[1:])  # along an axis of one voxel there is no difference
    field = torch.randn(2, ndim, *shape, dtype=torch.float64, requires_grad=True)
    spacing = (0.5, 2.0, 1.5)[:ndim] if spaced else None
    assert torch.autograd.gradcheck(lambda u: diffusion(u, spacing), field)


def test_registry_builds_what_it_names():
    encoders = {"seg": UNet(2, 3, channels=[4, 6, 8]), "ae": TinyEncoder(2), "vgg": TinyEncoder(2)}
    moved, fixed = pair((16, 16))
    for name in SIMILARITIES:
        assert build_similarity(name, encoders)(moved, fixed).item() > 0
    assert build_similarity("deepsim-seg", encoders, levels=(1, 3)).levels == (1, 3)
    assert build_similarity("ncc", window=5).window == 5
    assert required_extractors(["mse", "ncc", "deepsim-seg", "classes-seg", "deepsim-ae"]) == ["seg", "ae"]


def test_registry_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"'ssd'.*deepsim-seg"):
        build_similarity("ssd")
    with pytest.raises(ValueError, match="unknown similarity 'ssd'; there is: mse, ncc"):
        required_extractors(["ssd"])
    with pytest.raises(ValueError, match=r"'seg'.*02_feature_extractor"):
        build_similarity("deepsim-seg", {"ae": TinyEncoder(2)})
    with pytest.raises(TypeError, match="windw"):
        build_similarity("ncc", windw=5)
    for weight in (None, "much", 0, float("nan")):
        with pytest.raises(ValueError, match="give each name once, with a positive weight"):
            similarity_terms({"ncc": weight})


@each_rank
def test_class_probabilities_by_definition(shape):
    torch.manual_seed(0)
    network = UNet(len(shape), 3, channels=[4, 5, 6], light=True).double()
    moved, fixed = (torch.rand(2, 1, *shape, dtype=torch.float64) for _ in range(2))
    measure = build_similarity("classes-seg", {"seg": network}, resolution=1).train()
    with torch.no_grad():
        logits = [network.eval()(image).numpy() for image in (moved, fixed)]
    a, b = (np.exp(values) / np.exp(values).sum(1, keepdims=True) for values in logits)
    assert measure(moved, fixed).item() == pytest.approx(((a - b) ** 2).sum(1).mean(), rel=1e-4)
    assert measure(fixed, fixed).item() == 0
    padding = [(0, 0), (0, 0), *((0, side % 2) for side in moved.shape[2:])]
    a, b = (np.pad(values, padding, mode="edge") for values in (a, b))
    blocks = [size for side in a.shape[2:] for size in (side // 2, 2)]
    axes = tuple(range(3, 2 + len(blocks), 2))
    a, b = (values.reshape(*values.shape[:2], *blocks).mean(axes) for values in (a, b))
    half = build_similarity("classes-seg", {"seg": network})
    assert half(moved, fixed).item() == pytest.approx(((a - b) ** 2).sum(1).mean(), rel=1e-4)
    measure(moved.requires_grad_(), fixed).backward()
    assert moved.grad.abs().max() > 0
    assert all(weight.grad is None for weight in network.parameters())
    with pytest.raises(ValueError, match="resolution is 3: give a power of two"):
        build_similarity("classes-seg", {"seg": network}, resolution=3)


def alignment(shape, dtype=torch.float64, size=0.0, seed=0):
    """A random pair, its labels, and a smooth displacement of up to `size` voxels."""
    generator = torch.Generator().manual_seed(seed)
    moving, fixed = (torch.rand(1, 1, *shape, generator=generator, dtype=dtype) for _ in range(2))
    labels = [torch.randint(3, (1, 1, *shape), generator=generator) for _ in range(2)]
    coarse = torch.rand(1, len(shape), *[3] * len(shape), generator=generator, dtype=dtype) * 2 - 1
    mode = ["bilinear", "trilinear"][len(shape) - 2]
    displacement = size * functional.interpolate(coarse, shape, mode=mode, align_corners=True)
    return Alignment(moving, fixed, displacement, *labels, 3)


@each_rank
def test_every_similarity_compares_what_it_would_after_the_warp(shape):
    pairs = alignment(shape, size=1.5)
    for loss in (MSE(), NCC(), NMI().eval(), MIND(), DeepSim(TinyEncoder(len(shape)).double())):
        assert loss.compare(pairs) == loss(warp_image(pairs.moving, pairs.displacement), pairs.fixed)


@each_rank
def test_supervised_ncc_by_definition(shape):
    pairs = alignment(shape, size=1.5)
    moved, fixed = (
        warp_one_hot(label, u, 3)
        for label, u in (
            (pairs.moving_label, pairs.displacement),
            (pairs.fixed_label, torch.zeros_like(pairs.displacement)),
        )
    )
    labels = ((moved - fixed) ** 2).sum() / (3 * np.prod(shape))
    expected = NCC().compare(pairs) + 0.5 * labels
    assert SupervisedNCC(weight=0.5).compare(pairs).item() == pytest.approx(expected.item(), abs=1e-12)
    assert SupervisedNCC().needs_labels


@each_rank
def test_the_dice_of_labels_by_definition(shape):
    """Without a displacement labels are hard: the Dice of the metrics, of each image and class but the background. A
    class that neither image has, the fourth, is left out; so are voxels that do not count.
    """
    pairs = replace(alignment(shape, size=1.5), displacement=torch.zeros(1, len(shape), *shape, dtype=torch.float64))
    pairs = replace(
        pairs, **{name: getattr(pairs, name)[:1] for name in ("moving", "fixed", "moving_label", "fixed_label")}
    )
    for classes in (3, 4):
        both = replace(pairs, classes=classes)
        dice = dice_per_class(pairs.moving_label, pairs.fixed_label, classes)[1:].nanmean()
        loss = SupervisedNCC(weight=0.5, overlap="dice").compare(both) - NCC().compare(both)
        assert loss.item() == pytest.approx(0.5 * (1 - dice.item()), abs=1e-9)
    weights = torch.zeros(1, 1, *shape, dtype=torch.float64)
    weights[:, :, : shape[0] // 2] = 1
    half = replace(pairs, fixed_weights=weights)
    labels = [label[:, :, : shape[0] // 2] for label in (pairs.moving_label, pairs.fixed_label)]
    loss = SupervisedNCC(overlap="dice").compare(half) - NCC().compare(half)
    assert loss.item() == pytest.approx(1 - dice_per_class(*labels, 3)[1:].nanmean().item(), abs=1e-9)


@pytest.mark.parametrize("overlap", ["mse", "dice"])
def test_the_gradient_of_the_labels_reaches_the_displacement(overlap):
    pairs = alignment((16, 16), size=1.0)
    flat = replace(pairs, moving=torch.zeros_like(pairs.moving), displacement=pairs.displacement.requires_grad_())
    SupervisedNCC(overlap=overlap).compare(flat).backward()
    assert pairs.displacement.grad.abs().max() > 0
    with pytest.raises(ValueError, match="choose one of mse, dice"):
        SupervisedNCC(overlap="jaccard")
    with pytest.raises(ValueError, match="give moving_label, fixed_label and classes"):
        SupervisedNCC().compare(replace(pairs, fixed_label=None))


def test_a_far_voxel_of_a_rare_class_changes_the_labels_term_by_that_voxel_only():
    pairs = replace(alignment((24, 24), size=1.5), classes=36)
    pairs = replace(pairs, displacement=torch.zeros_like(pairs.displacement))
    labels = [pairs.moving_label.clone() for _ in range(2)]
    for label, value in zip(labels, (pairs.fixed_label[..., -1, -1], 35), strict=True):
        label[..., -1, -1] = value
    right, rare = ((labels_term(replace(pairs, moving_label=label)), label) for label in labels)
    assert rare[0] - right[0] == pytest.approx(2 / 24**2 / 36, abs=1e-9)
    assert right[0] == pytest.approx(2 / 36 * (right[1] != pairs.fixed_label).double().mean().item(), abs=1e-9)


def test_the_labels_term_is_averaged_over_the_classes_of_the_dataset():
    pairs = alignment((24, 24), size=1.5)
    assert 36 * labels_term(replace(pairs, classes=36)) == pytest.approx(pairs.classes * labels_term(pairs), abs=1e-9)


def labels_term(pairs):
    return (SupervisedNCC().compare(pairs) - NCC().compare(pairs)).item()


class Dropping(nn.Module):
    """Dropout and batch norm: what it says depends on its mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))

    def forward(self, image):
        return self.layers(image)

    def features(self, image):
        return [self(image)]


@pytest.mark.parametrize("loss", [DeepSim, ClassProbabilities])
def test_a_network_that_is_looked_through_is_left_as_it_was(loss):
    network = Dropping().train()
    measure = loss(network)
    moved, fixed = (image.requires_grad_() for image in pair((16, 16)))
    value = measure.train()(moved, fixed)
    value.backward()
    assert value == measure(moved, fixed), "evaluation mode, whatever its parent is in"
    assert moved.grad.abs().max() > 0
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in network.parameters())
    assert network.layers[1].num_batches_tracked == 0
    assert not any(weight.requires_grad for weight in measure.parameters())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_similarity_takes_bfloat16(name, autocast):
    """Half-precision images, without labels and with them, give about what the same images give in float32."""
    encoders = {"seg": UNet(2, 3, channels=[4, 6, 8]), "ae": TinyEncoder(2), "vgg": TinyEncoder(2)}
    measure, pairs = build_similarity(name, encoders).eval(), alignment((16, 16), torch.bfloat16, size=1.5)
    wide = replace(pairs, moving=pairs.moving.float(), fixed=pairs.fixed.float())
    wide = replace(wide, displacement=pairs.displacement.float())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = measure.compare(pairs), measure(pairs.moving, pairs.fixed)
    assert {value.dtype for value in found} == {torch.float32}
    assert found[0].item() == pytest.approx(measure.compare(wide).item(), rel=0.05)
    assert found[1].item() == pytest.approx(measure(wide.moving, wide.fixed).item(), rel=0.05)


def test_an_extractor_in_bfloat16_takes_float32_images():
    moved, fixed = pair((16, 16))
    network = TinyEncoder(2)
    expected = DeepSim(network)(moved, fixed).item()
    assert DeepSim(network.bfloat16())(moved, fixed).item() == pytest.approx(expected, rel=0.05)


def test_an_extractor_moves_with_its_similarity():
    network = TinyEncoder(2)
    measure = DeepSim(network).to("meta", torch.float64)
    assert {(weight.device.type, weight.dtype) for weight in measure.parameters()} == {("meta", torch.float64)}
    assert {(weight.device.type, weight.dtype) for weight in network.parameters()} == {("cpu", torch.float32)}


def test_weighted_sum():
    pairs = alignment((16, 16), size=1.0)
    both = WeightedSum([MSE(), SupervisedNCC()], [2, 0.5])
    expected = 2 * MSE().compare(pairs) + 0.5 * SupervisedNCC().compare(pairs)
    assert both.compare(pairs) == expected
    assert both.needs_labels
    assert not WeightedSum([MSE(), NCC()], [1, 1]).needs_labels
    with pytest.raises(ValueError, match="2 similarities and 1 weights"):
        WeightedSum([MSE(), NCC()], [1])


@pytest.mark.parametrize("shape", [(16, 24), (17, 23), (8, 16, 8), (9, 11, 13)], ids=str)
def test_extract_before_warp_without_displacement_is_warp_before_extract(shape):
    pairs = alignment(shape)
    usual = DeepSim(UNet(len(shape), 2, channels=[4, 5, 6], light=True).double())
    other = DeepSim(usual.extractor, extract_before_warp=True)
    assert other.compare(pairs).item() == pytest.approx(usual.compare(pairs).item(), abs=1e-9)
    assert other(pairs.moving, pairs.fixed) == usual(pairs.moving, pairs.fixed)


@pytest.mark.parametrize("shape", [(17, 24), (9, 8, 11)], ids=["2d", "3d"])
def test_gradient_of_extract_before_warp_runs_through_the_warp_alone(shape):
    pairs = alignment(shape, size=1.3)
    loss = DeepSim(UNet(len(shape), 2, channels=[4, 5, 6], light=True).double(), extract_before_warp=True)
    moving, displacement = pairs.moving.requires_grad_(), pairs.displacement.requires_grad_()
    loss.compare(pairs).backward()
    assert moving.grad is None
    direction = torch.randn(displacement.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (
            loss.compare(replace(pairs, displacement=displacement + sign * step * direction)) for sign in (1, -1)
        )
    change = (ahead - behind) / (2 * step)
    assert (displacement.grad * direction).sum().item() == pytest.approx(change.item(), rel=1e-4)


@pytest.mark.parametrize("shape", [(96, 32), (96, 16, 16)], ids=["2d", "3d"])
def test_extract_before_warp_undoes_a_known_shift_at_every_level(shape):
    """Features move by 8 / 2, 8 / 4 and 8 / 8 steps: steps of their own grids."""
    network = UNet(len(shape), 2, channels=[4, 5, 6], light=True).double()
    large = torch.rand(1, 1, shape[0] + 8, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fixed, moving = large[:, :, 8:], large[:, :, :-8]  # fixed(x) = moving(x + 8)
    for level in (1, 2, 3):
        shift = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
        shift[:, 0] = 8
        inside = slice(32, shape[0] - 36)  # positions whose receptive field is inside both images
        a, b = (network.features(image)[level - 1] for image in (moving, fixed))
        moved = warp_image(a, displacement_at(shift, a.shape[2:]))
        part = slice(inside.start // 2**level, inside.stop // 2**level)
        torch.testing.assert_close(moved[:, :, part], b[:, :, part], atol=1e-9, rtol=0)


def test_displacement_on_the_grid_of_a_level():
    x = torch.arange(13.0)
    linear = torch.stack(torch.meshgrid(0.1 * x, 0.3 * x[:8], indexing="ij"))[None]  # u at x is (0.1 x_0, 0.3 x_1)
    level = displacement_at(linear, (4, 2))
    centres = 4 * torch.arange(4.0) + 1.5
    torch.testing.assert_close(level[0, 0, :3, 0], 0.1 * centres[:3] / 4)
    torch.testing.assert_close(level[0, 1, 0], 0.3 * centres[:2] / 4)
    with pytest.raises(ValueError, match="does not divide 13 voxels by a power of two"):
        displacement_at(linear, (6, 4))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("shape", "window"), [((61, 17), 9), ((40, 9, 11), 3)])
def test_ncc_in_slabs_is_ncc_of_the_whole(shape, window, weighted, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    moved, fixed = torch.rand(2, 2, 3, *shape, dtype=torch.float64, generator=generator)
    weights = torch.rand(1, 1, *shape, dtype=torch.float64, generator=generator) if weighted else None
    moved.requires_grad_()
    found = []
    for slab in (1, 10**9):
        monkeypatch.setattr("deepsimreg.losses.ncc.SLAB", slab)
        loss = NCC(window, signed=True)(moved, fixed, weights)
        found.append((loss.detach(), *torch.autograd.grad(loss, moved)))
    torch.testing.assert_close(*found)
