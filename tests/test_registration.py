"""register(): physics, grids and spacings, what it takes and what it refuses; files that other tools read."""

import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from scipy import ndimage

from deepsimreg import register
from deepsimreg.data import load_dataset
from deepsimreg.errors import WeightsError
from deepsimreg.grid import positions
from deepsimreg.image import antialiased, as_image
from deepsimreg.losses import MSE, DeepSim, FeatureFunction, Similarity, diffusion, similarity_terms
from deepsimreg.metrics import evaluate_pair
from deepsimreg.models import UNet, VoxelMorph, save_model
from deepsimreg.optimise import Level, default_levels, optimise
from deepsimreg.warps import (
    affine_displacement,
    compose,
    integrate,
    jacobian_determinant,
    sample_image,
    sample_labels,
    upsample,
    warp_image,
)

SHAPES = pytest.mark.parametrize("shape", [(40, 48), (24, 28, 20)], ids=["2d", "3d"])
ODD = pytest.mark.parametrize("shape", [(17, 23), (31, 40, 24)], ids=["2d", "3d"])
QUIET = {"progress": False}


def smooth(shape, seed=0, period=5):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *[-(-size // period) for size in shape], generator=generator)
    mode = {2: "bicubic", 3: "trilinear"}[len(shape)]
    return torch.nn.functional.interpolate(coarse, shape, mode=mode).clamp(0, 1)


def bump(shape, peak=2.0):
    """A smooth displacement that vanishes at the border."""
    axes = torch.meshgrid(*[torch.linspace(0, torch.pi, size) for size in shape], indexing="ij")
    height = torch.stack(axes).sin().prod(0)
    return torch.stack([(peak - 0.5 * k) * (-1) ** k * height for k in range(len(shape))])[None]


def error(found, truth, margin=4):
    inside = (..., *[slice(margin, -margin)] * (truth.ndim - 2))
    return (found - truth)[inside].norm(dim=1).mean()


@ODD
@pytest.mark.parametrize("similarity", ["mse", "ncc", "mind", "ncc + 0.5 mind"])
def test_an_image_with_itself_stays_where_it_is_at_odd_sizes(shape, similarity):
    image = smooth(shape)
    result = register(image, image, similarity, **QUIET)
    assert result.displacement.shape == (1, len(shape), *shape)
    assert result.displacement.abs().max() < 0.05
    torch.testing.assert_close(result.moved, image, atol=0.02, rtol=0)


@SHAPES
@pytest.mark.parametrize("options", [{}, {"model": "displacement"}, {"extract": "always"}], ids=str)
def test_a_known_smooth_warp_is_recovered(shape, options):
    moving, truth = smooth(shape), bump(shape)
    fixed = warp_image(moving, truth)
    result = register(moving, fixed, "mse", lam=1e-4, **QUIET, **options)
    assert error(result.displacement, truth) < 0.5
    assert error(0 * truth, truth) > 1
    assert (result.jacobian > 0).all()
    pulled = sample_image(moving, positions(np.eye(1 + len(shape)), result.displacement), moving.min())
    torch.testing.assert_close(result.moved, pulled, atol=1e-5, rtol=0)


@SHAPES
def test_half_of_the_way_twice_is_the_whole_way(shape):
    moving = smooth(shape)
    result = register(moving, warp_image(moving, bump(shape)), "mse", lam=1e-3, **QUIET)
    assert result.partway(0).abs().max() == 0
    torch.testing.assert_close(result.partway(1), result.displacement, rtol=1e-5, atol=1e-5)
    half = result.partway(0.5)
    assert error(compose(half, half), result.displacement) < 0.15 * error(result.displacement, 0 * half)
    network = replace(result, velocity=None)
    torch.testing.assert_close(network.partway(0.25), result.displacement / 4)


@SHAPES
def test_the_inverse_undoes_the_warp_and_is_the_flow_of_minus_the_velocity(shape):
    moving = smooth(shape)
    result = register(moving, warp_image(moving, bump(shape)), "mse", lam=1e-3, **QUIET)
    inside = (..., *[slice(4, -4)] * len(shape))
    assert compose(result.displacement, result.inverse)[inside].abs().max() < 0.01
    grid = 4 if len(shape) == 3 else 2  # of the finest level
    back = grid * upsample(integrate(-result.velocity, 5), grid)[(..., *map(slice, shape))]
    assert (result.inverse - back)[inside].norm(dim=1).mean() < 0.15 * result.displacement[inside].norm(dim=1).mean()


@pytest.mark.parametrize("peak", [0.1, 0.5])
@pytest.mark.parametrize("similarity", ["mse", "ncc", "ncc-25", "nmi", "mind"])
@SHAPES
def test_a_warp_of_less_than_a_voxel_is_recovered(shape, similarity, peak):
    moving, truth = smooth(shape), bump(shape, peak) * (peak / bump(shape, peak).abs().max())
    result = register(moving, warp_image(moving, truth), similarity, **QUIET)
    assert error(result.displacement, truth) < 0.5 * error(0 * truth, truth)


def blobs(shape, seed=0, width=2):
    """Blurred noise, in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), width)
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()[None, None]


def object_of_blobs(shape):
    """Blobs that fade into a black background."""
    sides = torch.meshgrid(*[torch.linspace(0, 8, size) for size in shape], indexing="ij")
    return blobs(shape) * torch.stack([torch.minimum(side, 8 - side).clamp(max=1) for side in sides]).prod(0)


@pytest.mark.parametrize("peak", [0.25, 1.0])
@pytest.mark.parametrize(
    ("similarity", "extractor"),
    [
        *[(name, None) for name in ("mse", "ncc", "ncc-3", "ncc-25", "nmi", "mind")],
        *[(name, "phantom-2d") for name in ("ncc-seg", "ncc-ae")],
    ],
)
def test_half_of_a_small_uneven_warp_is_recovered_with_the_default_weight(similarity, extractor, peak):
    """The warp changes within few voxels, and is scipy's."""
    shape = (96, 112)
    moving, warp = object_of_blobs(shape), np.concatenate([blobs(shape, seed, 5)[0] for seed in (3, 4)]) - 0.5
    warp *= peak / np.abs(warp).max()
    pulled = ndimage.map_coordinates(moving[0, 0].numpy(), np.indices(shape) + warp, order=1, mode="nearest")
    truth = torch.from_numpy(warp)[None]
    result = register(moving, torch.from_numpy(pulled), similarity, extractor=extractor, **QUIET)
    assert error(result.displacement, truth, 8) < 0.5 * error(0 * truth, truth, 8)


@pytest.mark.parametrize("similarity", ["mse", "ncc-25", "nmi", "mind"])
def test_a_small_local_change_is_found_where_it_is(similarity):
    """As in two images of one person a year apart: what has not changed stays."""
    shape = (72, 80)
    squares = sum((index - centre) ** 2 for index, centre in zip(np.indices(shape), (30, 44), strict=True))
    warp = np.stack([0.5 * np.exp(-squares / 50), -0.3 * np.exp(-squares / 50)])
    moving, truth = object_of_blobs(shape), torch.from_numpy(warp)[None]
    pulled = ndimage.map_coordinates(moving[0, 0].numpy(), np.indices(shape) + warp, order=1, mode="nearest")
    found = register(moving, torch.from_numpy(pulled), similarity, **QUIET).displacement
    near, far = torch.from_numpy(squares < 50), torch.from_numpy(squares > 400)
    assert (found - truth)[..., near].norm(dim=1).mean() < 0.5 * truth[..., near].norm(dim=1).mean()
    assert found[..., far].norm(dim=1).mean() < 0.03


def test_a_coarse_level_that_misleads_the_next_is_dropped():
    """Seen coarsely, noise alone differs, and is followed; seen finely, nothing has moved."""
    image = smooth((64, 64), 1, period=3)
    light = smooth((64, 64), 2, period=24)
    result = register(image, image * 0.7 + 0.3 * light, "ncc-3", lam=0.1, **QUIET)
    assert result.displacement.abs().max() < 1
    levels = [(8, 32, 30), (1, 4, 0)]
    assert register(image, image * 0.7 + 0.3 * light, "ncc-3", lam=0.1, levels=levels, **QUIET).displacement.any() == 0


def test_losses_fall_and_a_level_ends_when_nothing_improves():
    moving, fixed = smooth((32, 32), 1), smooth((32, 32), 2)
    result = register(moving, fixed, "ncc", lam=0.01, levels=[(4, 8, 20), (1, 4, 20)], **QUIET)
    assert len(result.losses) == 40
    assert result.losses[-1] < result.losses[0]
    still = register(moving, moving, "mse", lam=0.1, levels=[(1, 4, 500)], **QUIET)
    assert len(still.losses) < 30


def test_features_once_or_always_agree_where_the_extractor_commutes_with_the_warp():
    """Grey values as features: pulling them is pulling the image."""

    class Grey:
        def features(self, image):
            return [torch.cat([image, 1 - image], dim=1)]

    moving = smooth((40, 48))
    fixed = warp_image(moving, bump((40, 48)))
    once, always = (
        register(moving, fixed, DeepSim(Grey()), 1e-3, levels=[(1, 4, 30)], extract=extract, **QUIET)
        for extract in ("once", "always")
    )
    torch.testing.assert_close(once.displacement, always.displacement, atol=1e-3, rtol=0)


def test_a_function_serves_as_extractor():
    """Local mean and spread at half resolution, from a layer that was made elsewhere."""
    layer = torch.nn.Conv2d(1, 4, 3, padding=1)

    def features(image):
        return [torch.nn.functional.avg_pool2d(layer(image).relu(), 2)]

    moving = smooth((40, 48))
    fixed = warp_image(moving, bump((40, 48)))
    result = register(moving, fixed, "deepsim-seg + ncc", 0.1, extractor=FeatureFunction(features), **QUIET)
    assert error(result.displacement, bump((40, 48))) < 0.5
    with pytest.raises(TypeError, match="str cannot be called"):
        FeatureFunction("features")
    with pytest.raises(TypeError, match="return a list of feature maps"):
        register(moving, fixed, "deepsim-seg", extractor=FeatureFunction(layer), **QUIET)


def test_a_pair_of_the_phantom_gets_closer_to_its_truth():
    data = load_dataset("phantom-2d", noise=0.01, illumination=0.0, train=1, validation=1, test=1)
    pair = data.pairs("test")[0]
    labels = pair.moving.label[None], pair.fixed.label[None]
    result = register(pair.moving.image[None], pair.fixed.image[None], "mse", lam=0.02, labels=labels, **QUIET)

    def measured(displacement):
        return evaluate_pair(displacement, *labels, data.classes, data.spacing, pair.displacement[None])

    before, after = measured(None), measured(result.displacement)
    assert after["target_registration_error"] < 0.8 * before["target_registration_error"]
    assert after["dice"] > before["dice"] + 0.05
    assert result.metrics["dice"] == pytest.approx(after["dice"], abs=1e-3), "outside is background, there the edge"
    assert result.metrics["folds"] == after["folds"]


def test_weights_of_extractor_and_network_do_not_change(tmp_path):
    torch.manual_seed(0)
    extractor, network = UNet(2, 3, channels=[4, 6, 8]), VoxelMorph(2, channels=[4, 6, 8], batch_norm=True)
    before = [value.clone() for module in (extractor, network) for value in module.state_dict().values()]
    register(
        smooth((32, 32), 1), smooth((32, 32), 2), "deepsim-seg", network=network, extractor=extractor, steps=3, **QUIET
    )
    after = [value for module in (extractor, network) for value in module.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_extractor_of_another_kind_is_refused(tmp_path):
    path = save_model(UNet(2, 3, channels=[4, 6, 8]), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="weights of UNet, but Autoencoder is needed"):
        register(smooth((32, 32), 1), smooth((32, 32), 2), "deepsim-ae", extractor=path, **QUIET)


def test_three_ways_network_both_and_optimisation(tmp_path):
    torch.manual_seed(0)
    network = VoxelMorph(2, channels=[4, 6, 8], light=True).eval()
    torch.nn.init.normal_(network.flow.weight, std=0.5)
    path = save_model(network, tmp_path / "weights.safetensors")
    moving, fixed = smooth((32, 32), 1), smooth((32, 32), 2)
    alone = register(moving, fixed, "mse", network=path, steps=0, **QUIET)
    with torch.no_grad():
        torch.testing.assert_close(alone.displacement, network(moving, fixed))
    both = register(moving, fixed, "mse", network=network, **QUIET)
    first, last = (((r.moved - fixed) ** 2).mean() for r in (alone, both))
    assert last < 0.7 * first
    assert alone.losses == ()
    assert both.velocity is not None


class Constant(torch.nn.Module):
    """A registration network that always gives one displacement."""

    def __init__(self, displacement):
        super().__init__()
        self.displacement = displacement

    def forward(self, moving, fixed):
        return self.displacement


@SHAPES
def test_a_start_is_met_before_the_first_step(shape):
    """The velocity of a smooth displacement flows back into it."""
    moving, truth = smooth(shape), bump(shape)
    fixed = warp_image(moving, truth)
    found = optimise(moving, fixed, MSE(), 0.1, [Level(1, 4, 0)], None, truth, progress=False)
    assert error(found.displacement, truth) < 0.2
    assert error(0 * truth, truth) > 1


@SHAPES
def test_no_grid_is_finer_than_what_is_compared(shape):
    torch.manual_seed(0)
    similarity = DeepSim(UNet(len(shape), 3, channels=[4, 6, 8]))
    pair = smooth(shape, 1), smooth(shape, 2), similarity, 0.1
    fine, half, coarse = (optimise(*pair, [Level(r, 4, 5)], progress=False).displacement for r in (1, 2, 4))
    assert torch.equal(fine, half), "the finest features have steps of two voxels"
    assert not torch.equal(half, coarse)


def test_a_start_begins_on_a_grid_that_holds_it():
    shape = (256, 320)
    assert default_levels(shape)[0] == Level(8, 32, 30)
    assert default_levels(shape, started=True) == [Level(2, 8, 30), Level(1, 2, 16)]
    assert default_levels((256, 320, 256))[-1] == Level(1, 4, 16)
    moving, truth = smooth(shape, period=20), bump(shape, 6.0)
    fixed = warp_image(moving, truth)
    alone = register(moving, fixed, "mse", 0.01, network=Constant(truth), steps=1, **QUIET)
    assert error(alone.displacement, truth) < 0.2


def test_files_on_different_grids_meet_in_the_world(tmp_path):
    """The same content on an oblique, finer, flipped grid: nothing is left to register."""
    fixed = smooth((24, 28, 20))
    fixed_affine = np.diag([1.0, 1.2, 1.5, 1.0])
    moving_affine = np.diag([-0.8, 1.0, 1.1, 1.0])
    moving_affine[:3, 3] = [23, 2, 1]
    shape = (26, 26, 22)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ moving_affine[:3, :3].T + moving_affine[:3, 3]
    place = torch.from_numpy(np.moveaxis(world / np.diag(fixed_affine)[:3], -1, 0)[None]).float()
    moving = sample_image(fixed, place)
    for name, image, affine in (("fixed", fixed, fixed_affine), ("moving", moving, moving_affine)):
        nibabel.save(
            nibabel.Nifti1Image((image[0, 0].numpy() * 1000).astype(np.int16), affine), tmp_path / f"{name}.nii.gz"
        )
    result = register(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", "mse", lam=0.1, **QUIET)
    inside = (..., *[slice(5, -5)] * 3)
    assert result.displacement[inside].abs().mean() < 0.15
    assert (result.moved / 1000 - fixed)[inside].abs().mean() < 0.02

    moved, field = result.save(tmp_path / "out", ["moved", "field"])
    saved = nibabel.load(moved)
    assert saved.get_data_dtype() == np.int16
    np.testing.assert_allclose(saved.affine, fixed_affine)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    grids = [sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("moving", "fixed")]
    witness = sitk.GetArrayFromImage(sitk.Resample(*grids, transform, sitk.sitkLinear)).T
    np.testing.assert_allclose(result.moved[0, 0].numpy()[inside[1:]], witness[inside[1:]], atol=1)


def test_points_go_where_their_content_lies():
    moving, truth = smooth((40, 48)), bump((40, 48))
    result = register(moving, warp_image(moving, truth), "mse", lam=1e-4, **QUIET)
    points = torch.tensor([[12.0, 20.0], [25.0, 30.0]])
    expected = points + torch.stack([truth[0, :, 12, 20], truth[0, :, 25, 30]])
    assert (result.warp_points(points) - expected).norm(dim=1).max() < 0.5
    assert (points - expected).norm(dim=1).min() > 1
    there = sample_image(moving, result.warp_points(points).T[None, :, :, None])[0, 0, :, 0]
    torch.testing.assert_close(there, torch.stack([result.moved[0, 0, 12, 20], result.moved[0, 0, 25, 30]]))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_an_affine_prealignment_finds_a_rotation_and_a_shift(kind, ndim):
    fixed = smooth((48, 56, 40)[:ndim], 3, period=12)  # coarser than the shift: else it locks in beside it
    c, s = np.cos(0.3), np.sin(0.3)
    matrix = torch.tensor([[[c, -s, 0, 4.0], [s, c, 0, -3.0], [0, 0, 1, 2.0]]], dtype=torch.float32)
    matrix = matrix[:, :ndim, [*range(ndim), 3]]
    truth = affine_displacement(matrix, fixed.shape[2:])
    moving = warp_image(fixed, truth)  # moving(x) = fixed(x + truth(x)): registration has to find the inverse
    plain = register(moving, fixed, "ncc", steps=0, levels=[(4, 8, 0)], **QUIET)
    aligned = register(moving, fixed, "ncc", steps=0, levels=[(4, 8, 0)], affine=kind, **QUIET)
    inside = (..., *[slice(10, -10)] * ndim)
    before, after = ((r.moved - fixed)[inside].abs().mean() for r in (plain, aligned))
    assert after < 0.2 * before


def test_spacing_counts_in_the_regulariser():
    """Thick slices: the same bend costs less along the axis on which voxels are long, more across it."""
    moving = smooth((32, 32), 5)
    fixed = warp_image(moving, bump((32, 32)))
    isotropic = register(moving, fixed, "mse", lam=0.05, **QUIET)
    scaled = register(moving, fixed, "mse", lam=0.05, spacing=(2.0, 2.0), **QUIET)
    torch.testing.assert_close(isotropic.displacement, scaled.displacement, atol=1e-4, rtol=0)
    thick = register(moving, fixed, "mse", lam=0.05, spacing=(4.0, 1.0), **QUIET)
    energy = [r.displacement[0, 0].diff(dim=1).square().mean() for r in (isotropic, thick)]
    assert energy[1] < energy[0]


def test_tiff_and_integer_arrays(tmp_path):
    image = (smooth((40, 48))[0, 0].numpy() * 200 + 20).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image)
    result = register(tmp_path / "a.tif", image, "ncc", **QUIET)
    assert result.displacement.abs().max() < 0.05
    assert result.moved.max() > 100, "the moving image keeps its grey values"


def refusals():
    plane, volume = torch.rand(16, 16), torch.rand(16, 16, 16)
    hole = plane.clone()
    hole[3, 3] = torch.nan
    return [
        ((torch.rand(0, 4), plane, "ncc"), "moving is empty"),
        ((plane, torch.full((16, 16), 0.5), "ncc"), "fixed is constant, every voxel is 0.5"),
        ((plane, hole, "ncc"), "fixed contains NaN or inf; fix the image first"),
        ((plane, volume, "ncc"), "moving has 2 axes and fixed 3"),
        ((torch.rand(1, 1, 16, 16), torch.rand(1, 2, 16, 16), "ncc"), "moving has 1 channels and fixed 2"),
        ((torch.rand(2, 1, 16, 16), plane, "ncc"), "moving has 2 images and fixed 1"),
        ((plane, plane, "nccc"), "unknown similarity 'nccc'; there is: mse, ncc"),
        ((plane, plane, "ncc + ncc"), "each name once"),
        ((plane, plane, "-1 ncc"), "positive weight"),
        ((plane, plane, "deepsim-seg"), "compares features: give extractor"),
        ((plane, plane, MSE()), "give lam"),
        ((plane, plane, torch.nn.MSELoss(), 0.1), "MSELoss is no similarity: derive it"),
        ((plane, plane, "ncc-sup"), "compares labels, too"),
        ((torch.rand(5), plane, "ncc"), r"shape \(5,\): give a plane"),
        ((plane[:1], plane[:1], "ncc"), "too thin"),
    ]


@pytest.mark.parametrize(("arguments", "message"), refusals(), ids=[message for _, message in refusals()])
def test_bad_input_is_refused_at_the_start(arguments, message):
    with pytest.raises(ValueError, match=message):
        register(*arguments, **QUIET)


def test_bad_options_are_refused():
    plane = torch.rand(16, 16)
    for options, message in [
        ({"affine": "similarity"}, "rigid or affine"),
        ({"model": "spline"}, "velocity, displacement"),
        ({"extract": "never"}, "once or always"),
        ({"levels": [(4, 2, 10)]}, "powers of two, grid the larger"),
        ({"levels": [(2, 6, 10)]}, "powers of two"),
        ({"levels": [(1, 4, 10), (1, 8, 10)]}, "from coarse to fine"),
        ({"spacing": (1.0,)}, "2 positive values"),
        ({"labels": torch.zeros(8, 8)}, "give one on the grid of moving"),
        ({"labels": [torch.zeros(16, 16)] * 3}, "3 label images"),
        ({"labels": torch.zeros(2, 1, 16, 16)}, "moving label: 2 for 1 images"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"levels": [(1.0, 4.0, 5)]}, "whole numbers"),
        ({"network": "hippocampus-mr/registration"}, "Pyramid is for images of 3 axes, these have 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            register(plane, plane.flip(0), "ncc", **QUIET, **options)
    with pytest.raises(WeightsError, match="weights of UNet: name a registration network"):
        register(plane, plane.flip(0), network="phantom-2d/seg", **QUIET)
    with pytest.raises(ValueError, match="UNet is for images of 3 axes, these have 2"):
        register(plane, plane.flip(0), "deepsim-seg", extractor="hippocampus-mr", **QUIET)
    colours = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="UNet is for images of 1 channels, these have 3"):
        register(colours, colours.flip(2), "deepsim-seg", extractor="phantom-2d", **QUIET)
    with pytest.raises(TypeError, match="FeatureFunction gives no logits"):
        register(plane, plane.flip(0), "classes-seg", extractor=FeatureFunction(lambda x: [x]), **QUIET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device is cuda, but torch finds no GPU here"):
        register(torch.rand(16, 16), torch.rand(16, 16), "ncc", device="cuda", **QUIET)


def moved_blobs(shape, shift):
    """Noise of a few voxels, and the same moved by `shift` along the second axis: its true displacement."""
    wide = smooth((*shape[:-2], shape[-2] + shift, shape[-1]), period=8)
    axis = wide.ndim - 2
    return wide.narrow(axis, 0, shape[-2]), wide.narrow(axis, shift, shape[-2])


def test_a_stack_of_a_few_slices_is_searched_coarse_to_fine():
    moving, fixed = moved_blobs((8, 96, 96), 6)
    assert default_levels((8, 96, 96))[0].resolution == 4
    result = register(moving, fixed, "ncc", **QUIET)
    inside = result.displacement[0, 1, :, 12:-12, 12:-12]
    assert (inside - 6).abs().mean() < 0.3


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_unit_of_the_grey_values_does_not_matter(factor):
    moving, fixed = moved_blobs((40, 48), 3)
    result = register(factor * moving, factor * fixed, "ncc", **QUIET)
    assert (result.displacement[0, 0, 6:-6, 6:-6] - 3).abs().mean() < 0.3


def test_nothing_is_drawn_at_random():
    moving, fixed = moved_blobs((40, 48), 3)
    state = torch.get_rng_state()
    first, second = (register(moving, fixed, "nmi", 0.3, **QUIET).displacement for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert (first[0, 0, 6:-6, 6:-6] - 3).abs().mean() < 1
    network = VoxelMorph(2, channels=[4, 6, 8]).train()
    register(moving, fixed, "mse", network=network, steps=0, **QUIET)
    assert network.training, "left in the mode that it was in"


def test_one_step_is_taken():
    moving, fixed = moved_blobs((40, 48), 3)
    assert register(moving, fixed, "ncc", steps=1, **QUIET).displacement.abs().max() > 0.1


def test_images_and_labels_must_lie_in_one_place(tmp_path):
    def saved(name, array, shift=0.0):
        affine = np.eye(4)
        affine[0, 3] = shift
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
        return tmp_path / f"{name}.nii.gz"

    array = smooth((24, 28, 20))[0, 0].numpy()
    here, far = saved("here", array), saved("far", array, 500.0)
    with pytest.raises(ValueError, match="do not overlap in the world: check their headers"):
        register(far, here, "mse", **QUIET)
    aligned = register(far, here, "mse", affine="rigid", **QUIET)
    assert (aligned.moved[0, 0].numpy() - array)[4:-4, 4:-4, 4:-4].std() < 0.05
    labels = (array > 0.5).astype(np.uint8)
    with pytest.raises(ValueError, match=r"moving label .* lies elsewhere than moving"):
        register(here, here, "mse", labels=saved("labels", labels, 500.0), **QUIET)


def test_features_of_any_object_and_of_other_steps_along_each_axis():
    class Slices:
        """Grey values, halved along the last two axes only."""

        def features(self, image):
            return [torch.nn.functional.avg_pool3d(torch.cat([image, 1 - image], 1), (1, 2, 2))]

    moving, fixed = moved_blobs((5, 64, 64), 3)
    result = register(moving, fixed, "deepsim-seg", 0.05, extractor=Slices(), **QUIET)
    assert (result.displacement[0, 1, :, 8:-8, 8:-8] - 3).abs().mean() < 0.7
    plane = smooth((24, 28), 1), smooth((24, 28), 2)
    short, full = (
        register(*plane, "deepsim-seg", extractor=name, **QUIET) for name in ("phantom-2d", "phantom-2d/seg")
    )
    assert torch.equal(short.displacement, full.displacement)


def test_a_batch_is_not_saved_in_part(tmp_path):
    batch = torch.cat([smooth((24, 28), seed) for seed in range(2)])
    result = register(batch, batch, "mse", steps=1, **QUIET)
    with pytest.raises(ValueError, match="2 images: save one pair"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_colour_image_is_no_stack(tmp_path):
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((24, 28, 3), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match="holds 3 colours"):
        register(tmp_path / "colour.tif", tmp_path / "colour.tif", **QUIET)


def test_sums_are_read_as_written():
    for wrong in ({}, ["ncc"], None, {"ncc": float("inf")}):
        with pytest.raises(ValueError, match="similarity is"):
            similarity_terms(wrong)
    assert similarity_terms("deepsim-seg + 0.5 mind") == {"deepsim-seg": 1.0, "mind": 0.5}
    assert similarity_terms({"ncc": 2}) == {"ncc": 2.0}


def test_a_diverged_optimisation_says_what_to_do():
    class Worse(Similarity):
        def forward(self, moved, fixed):
            return (moved - fixed).mean() * torch.inf

    plane = torch.rand(1, 1, 16, 16)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        optimise(plane, plane.flip(2), Worse(), 0.1, [Level(1, 2, 5)], progress=False)


def test_folds_are_rare_even_where_images_have_nothing_in_common():
    result = register(smooth((48, 48), 1), smooth((48, 48), 2), "ncc", **QUIET)
    assert (jacobian_determinant(result.displacement) <= 0).float().mean() < 0.001


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_kept_whatever_the_caller_does(mode):
    moving = smooth((40, 48))
    fixed = warp_image(moving, bump((40, 48)))
    outside = register(moving, fixed, "mse", lam=1e-3, **QUIET)
    with mode():
        inside = register(moving.clone(), fixed.clone(), "mse", lam=1e-3, **QUIET)
        found = optimise(moving.clone(), fixed.clone(), MSE(), 1e-3, default_levels((40, 48)), **QUIET)
    assert torch.equal(inside.displacement, outside.displacement)
    assert torch.equal(found.displacement, outside.displacement)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, "f2", ">f4", ">f8", ">i2", "u2", "u4", ">u8"], ids=str
)
def test_images_of_any_number_type_and_byte_order(dtype):
    image = 1000 * smooth((40, 48))
    given = image.to(dtype) if isinstance(dtype, torch.dtype) else image[0, 0].numpy().astype(dtype)
    torch.testing.assert_close(as_image(given, "moving").data.float(), image, atol=4, rtol=0)
    result = register(given, given, "ncc", **QUIET)
    assert result.displacement.abs().max() < 0.05
    assert result.moved.dtype == torch.float32


def test_what_is_warped_later_follows_the_moving_image():
    moving, fixed = moved_blobs((40, 48), 3)
    result = register(moving, fixed, "ncc", **QUIET)
    torch.testing.assert_close(result.warp(moving), result.moved)
    labels = (moving > 0.5).to(torch.uint8)
    pulled = sample_labels(labels, positions(np.eye(3), result.displacement), 0)
    assert torch.equal(result.warp_labels(labels), pulled)
    with pytest.raises(ValueError, match="give one on the grid of moving"):
        result.warp(moving[..., 1:])


def test_the_regulariser_of_thick_slices_is_its_definition_in_mm():
    spacing = (1.0, 1.0, 5.0)
    u = torch.randn(1, 3, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    mm = u[0].double().numpy() * np.reshape(spacing, (3, 1, 1, 1))
    squares = [np.square(np.diff(mm, axis=axis + 1) / step).mean() for axis, step in enumerate(spacing)]
    assert diffusion(u, spacing).item() == pytest.approx(np.mean(squares), rel=1e-5)
    assert diffusion(u, (5.0, 5.0, 5.0)).item() == pytest.approx(diffusion(u).item(), rel=1e-5)


def test_nothing_is_measured_that_nobody_asked_for(monkeypatch):
    moving = smooth((40, 48))
    monkeypatch.setattr("deepsimreg.transform.smoothness", lambda *_: pytest.fail("nobody asked"))
    result = register(moving, moving, "mse", steps=1, **QUIET)
    with pytest.raises(pytest.fail.Exception, match="nobody asked"):
        _ = result.metrics


def test_lam_means_the_same_at_any_unit_and_is_that_of_the_papers_where_voxels_are_equal():
    moving, shape = smooth((24, 28, 20)), (24, 28, 20)
    fixed = warp_image(moving, bump(shape))
    fields = [
        register(moving, fixed, "mse", lam=0.05, spacing=(s,) * 3, **QUIET).displacement for s in (1.0, 10.0, 0.1)
    ]
    torch.testing.assert_close(fields[0], fields[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(fields[0], fields[2], atol=1e-4, rtol=0)


def test_levels_count_in_mm():
    assert Level(8, 32, 30).factors(3, (1.0, 1.0, 5.0)) == ((8, 8, 2), (32, 32, 8))
    assert Level(1, 4, 20).factors(3, (1.0, 1.0, 5.0)) == ((1, 1, 1), (4, 4, 1))
    assert Level(4, 16, 30).factors(2, (1.0, 1.2)) == ((4, 4), (16, 16)), "nearly equal spacing counts as equal"
    assert Level(4, 16, 30).factors(2, None) == ((4, 4), (16, 16))
    thick = default_levels((160, 192, 40), (1.0, 1.0, 5.0))
    assert [level.resolution for level in thick] == [8, 4, 2, 1]


def test_a_known_warp_of_thick_slices_is_recovered():
    """A volume of 1 × 1 × 5 mm whose slices move against each other: they must not be pooled into one another."""
    shape, spacing = (48, 48, 16), (1.0, 1.0, 5.0)
    moving = smooth(shape, 3)
    truth = torch.zeros(1, 3, *shape)
    truth[:, 0] = 2.5 * torch.sin(torch.linspace(0, 2 * torch.pi, 16)) * torch.ones(48, 48, 16)
    fixed = warp_image(moving, truth)
    found = register(moving, fixed, "mse", lam=1e-3, spacing=spacing, **QUIET)
    pooled_alike = register(moving, fixed, "mse", lam=1e-3, **QUIET)
    assert error(found.displacement, truth) < 0.6 * error(pooled_alike.displacement, truth)
    assert error(found.displacement, truth) < 0.25 * error(0 * truth, truth)


def test_a_fine_moving_image_is_smoothed_for_a_coarser_grid():
    """Fine stripes would alias into coarse ones; the witness is scipy's Gaussian."""
    fine = np.indices((128, 96)).sum(0) % 2 * 1.0
    matrix = np.diag([4.0, 4.0, 1.0])
    values = torch.from_numpy(fine)[None, None].float()
    sigma = np.sqrt((4**2 - 1) / (8 * np.log(2)))
    expected = ndimage.gaussian_filter(fine, sigma, mode="nearest")
    np.testing.assert_allclose(antialiased(values, matrix)[0, 0].numpy(), expected, atol=1e-6)
    assert antialiased(values, matrix)[0, 0, 16:-16, 16:-16].std() < 0.01 < values.std()
    assert antialiased(values, np.eye(3)) is values
    turned = np.eye(3)
    turned[:2, :2] = [[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]]
    assert antialiased(values, turned) is values


def test_images_of_two_resolutions_are_brought_together(tmp_path):
    """The same object at .5 and at 2 mm; fine stripes, which the coarse image cannot show, must not alias into it."""
    coarse = smooth((32, 32), 2, period=8)
    fine = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
    stripes = 0.3 * torch.cos(2 * torch.pi * torch.arange(128) / 3.8)
    noisy = 0.5 * fine + 0.3 + stripes
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:2, 3] = -0.75
    moving = nibabel.Nifti1Image(noisy[0, 0].numpy()[..., None], affine)
    fixed = nibabel.Nifti1Image(coarse[0, 0].numpy()[..., None], np.diag([2.0, 2.0, 2.0, 1.0]))
    found = register(moving, fixed, "ncc", **QUIET)
    aliased = register(noisy[..., 1::4, 1::4], coarse, "ncc", **QUIET)
    assert found.displacement.abs().mean() < 0.5 * aliased.displacement.abs().mean()


LOADED = "import sys; print(*sorted({modules} & set(sys.modules)))"
HEAVY = {"torch", "SimpleITK", "nibabel", "pandas", "lightning", "matplotlib", "snakemake"}
HEAVY |= {"deepsimreg.data", "deepsimreg.paper"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import deepsimreg", set()),
        ("from deepsimreg import register", {"torch", "nibabel"}),
        ("from deepsimreg.cli import main; main(['--help'], standalone_mode=False)", {"deepsimreg.data"}),  # fetch
        ("from deepsimreg.cli import main; main(['models'], standalone_mode=False)", set()),
        ("import deepsimreg.losses, deepsimreg.models, deepsimreg.losses.registry, deepsimreg.models.registry", set()),
    ],
)
def test_starting_up_loads_no_more_than_it_needs(code, expected):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LOADED.format(modules=HEAVY)}"], capture_output=True, text=True, check=True
    )
    assert {*done.stdout.splitlines()[-1].split()} == expected
