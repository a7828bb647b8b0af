import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepsimreg import losses, models
from deepsimreg.errors import WeightsError
from deepsimreg.models import (
    ARCHITECTURES,
    Autoencoder,
    Pyramid,
    UNet,
    VoxelMorph,
    count_parameters,
    load_model,
    save_model,
)
from deepsimreg.models.pyramid import correlation
from deepsimreg.warps import jacobian_determinant, warp_image

ODD = {2: (17, 23), 3: (9, 14, 11)}


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def ndim(request):
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("light", [False, True])
def test_any_size_in_the_same_size_out(ndim, light):
    image = torch.rand(2, 1, *ODD[ndim])
    options = {"channels": [4, 6, 8], "light": light}
    assert UNet(ndim, 5, **options)(image).shape == (2, 5, *ODD[ndim])
    rebuilt = Autoencoder(ndim, 1, **options)(image)
    assert rebuilt.shape == image.shape
    assert rebuilt.min() >= 0
    assert rebuilt.max() <= 1
    assert VoxelMorph(ndim, **options)(image, image).shape == (2, ndim, *ODD[ndim])


def test_features_are_the_encoder_levels(ndim):
    network = UNet(ndim, 3, channels=[4, 6, 8])
    features = network.features(torch.rand(1, 1, *ODD[ndim]))
    expected = [[-(-size // 2**level) for size in ODD[ndim]] for level in (1, 2, 3)]
    assert [list(level.shape[2:]) for level in features] == expected
    assert [level.shape[1] for level in features] == [4, 6, 8]


def test_paper_sizes_by_default():
    assert UNet(2, 3).config["channels"] == [64, 128, 256]
    assert UNet(3, 3).config["channels"] == [32, 64, 128]


def test_encoder_stage_is_the_papers():
    stage = UNet(2, 3, batch_norm=True, dropout=0.1).backbone.encoder[0]
    flat = [type(m).__name__ for m in stage.modules() if not list(m.children())]
    assert flat == ["BatchNorm2d", "Conv2d", "LeakyReLU", "Conv2d", "LeakyReLU", "Dropout2d"]
    assert stage[1].kernel_size == (4, 4)
    assert stage[1].stride == (2, 2)
    assert stage[2].negative_slope == 0.2


def test_autoencoder_has_no_way_around_its_code(ndim):
    network = Autoencoder(ndim, 1, channels=[4, 6, 8]).eval()
    image = torch.rand(1, 1, *[16] * ndim)
    with torch.no_grad():
        network.backbone.encoder[2][0].weight.zero_()  # the narrowest level hears nothing of the image
        assert torch.equal(network(image), network(torch.rand_like(image)))


def test_unet_skips_carry_the_image(ndim):
    network = UNet(ndim, 3, channels=[4, 6, 8]).eval()
    image = torch.rand(1, 1, *[16] * ndim)
    with torch.no_grad():
        network.backbone.encoder[2][0].weight.zero_()
        assert not torch.allclose(network(image), network(torch.rand_like(image)))


@pytest.mark.parametrize("light", [False, True])
def test_registration_starts_at_the_identity(ndim, light):
    images = torch.rand(2, 1, 1, *ODD[ndim])
    assert VoxelMorph(ndim, channels=[4, 6, 8], light=light)(*images).abs().max() < 1e-3


@pytest.mark.parametrize("light", [False, True])
def test_diffeomorphic_head_does_not_fold_where_the_plain_one_does(light):
    torch.manual_seed(0)
    images = torch.rand(2, 1, 1, 32, 32)

    def folds(squarings):
        torch.manual_seed(1)
        network = VoxelMorph(2, channels=[4, 6, 8], light=light, diffeomorphic=squarings)
        torch.nn.init.normal_(network.flow.weight, std=30.0 if light else 6.0)
        with torch.no_grad():
            return (jacobian_determinant(network(*images)) <= 0).float().mean()

    assert folds(0) > 0.01
    assert folds(7) < folds(0) / 5


def test_weights_round_trip(tmp_path):
    network = VoxelMorph(2, channels=[4, 6, 8], light=True, diffeomorphic=3).eval()
    torch.nn.init.normal_(network.flow.weight)
    loaded = load_model(save_model(network, tmp_path / "weights.safetensors"), VoxelMorph)
    images = torch.rand(2, 1, 1, 17, 23)
    assert loaded.config == network.config
    assert torch.equal(loaded(*images), network(*images))
    assert list(tmp_path.iterdir()) == [tmp_path / "weights.safetensors"]


def test_weights_of_another_network_are_refused(tmp_path):
    path = save_model(UNet(2, 3, channels=[4, 6, 8]), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"weights.safetensors: holds weights of UNet, but VoxelMorph is needed"):
        load_model(path, VoxelMorph)


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(WeightsError, match="no such weight file"):
        load_model(path)
    save_model(UNet(2, 3, channels=[4, 6, 8]), path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match="damaged"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="not a network of deepsimreg"):
        load_model(path)


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    path = save_model(UNet(2, 3, channels=[4, 6, 8]), tmp_path / "weights.safetensors")
    tensors = load_file(path)
    tensors.pop("head.1.weight")
    save_file(
        tensors, path, metadata={"model": "unet", "config": '{"ndim": 2, "out_channels": 3, "channels": [4, 6, 8]}'}
    )
    with pytest.raises(WeightsError, match="do not fit their own configuration"):
        load_model(path)


@pytest.mark.parametrize("config", [None, "{", "3", '{"ndim": 2}', '{"ndim": 2, "out_channels": 3, "colour": 1}'])
def test_a_configuration_of_another_version_is_refused(tmp_path, config):
    path = save_model(UNet(2, 3, channels=[4, 6, 8]), tmp_path / "weights.safetensors")
    save_file(load_file(path), path, metadata={"model": "unet"} | ({"config": config} if config else {}))
    with pytest.raises(WeightsError, match=r"weights.safetensors: UNet cannot be built from its configuration"):
        load_model(path)


@pytest.mark.parametrize("options", [{}, {"channels": [4, 6, 8]}])
def test_only_2d_and_3d(options):
    for network in (lambda: UNet(4, 3, **options), lambda: VoxelMorph(4, **options), lambda: Pyramid(4, **options)):
        with pytest.raises(ValueError, match="2D or 3D"):
            network()


@pytest.mark.parametrize("network", [Pyramid, VoxelMorph], ids=["pyramid", "voxelmorph"])
def test_a_network_in_float64_predicts_in_float64(network):
    images = torch.rand(2, 1, 1, 16, 16).double()
    assert network(2, channels=[4, 6]).double()(*images).dtype == torch.float64


def test_the_configuration_is_every_argument():
    assert UNet(3, 4, light=True).config == {
        "ndim": 3,
        "out_channels": 4,
        "in_channels": 1,
        "channels": [32, 64, 128],
        "batch_norm": False,
        "dropout": 0.0,
        "light": True,
    }
    assert Pyramid(2, channels=(4, 6), radius=0).config == {
        "ndim": 2,
        "in_channels": 2,
        "channels": [4, 6],
        "batch_norm": False,
        "dropout": 0.0,
        "light": False,
        "diffeomorphic": 0,
        "radius": 0,
    }


def test_count_of_weights_by_hand():
    assert count_parameters(torch.nn.Conv2d(3, 5, 3)) == 5 * 3 * 9 + 5


@pytest.mark.parametrize("light", [False, True])
def test_pyramid_takes_any_size_and_starts_at_the_identity(ndim, light):
    images = torch.rand(2, 2, 1, *ODD[ndim])
    network = Pyramid(ndim, channels=[4, 6, 8], light=light, diffeomorphic=3)
    displacement = network(*images)
    assert displacement.shape == (2, ndim, *ODD[ndim])
    assert 0 < displacement.abs().max() < 1e-2
    torch.nn.init.normal_(network.flows[0].weight, std=0.1)
    network(*images).square().mean().backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not silent


@pytest.mark.parametrize("light", [False, True])
def test_pyramid_level_counts_in_voxels_of_its_own_grid(light):
    """A bias of one at the flow of a level that is 1/r as fine moves every voxel by r."""
    images = torch.rand(2, 1, 1, 32, 32)
    for index, ratio in enumerate([8, 4, 2] + [1] * (not light)):
        network = Pyramid(2, channels=[4, 6, 8], light=light)
        for flow in network.flows:
            torch.nn.init.zeros_(flow.weight)
        torch.nn.init.ones_(network.flows[index].bias)
        with torch.no_grad():
            torch.testing.assert_close(network(*images), torch.full((1, 2, 32, 32), float(ratio)))


@pytest.mark.parametrize("network", [Pyramid, VoxelMorph], ids=["pyramid", "voxelmorph"])
def test_it_learns_a_shift(network):
    torch.manual_seed(0)
    coarse = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    fixed = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
    moving = fixed.roll(2, -1)
    network = network(2, channels=[8, 8, 8], light=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        displacement = network(moving, fixed)
        loss = (warp_image(moving, displacement) - fixed).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * (moving - fixed).square().mean()
    assert displacement[0, 1, 8:-8, 8:-8].mean().item() == pytest.approx(2, abs=0.4)


@pytest.mark.parametrize("squarings", [0, 3], ids=["displacement", "velocity"])
@pytest.mark.parametrize("name", ["voxelmorph", "pyramid", "transmorph"])
def test_the_flow_keeps_its_digits_under_autocast(name, squarings):
    """In bfloat16 a displacement of 10 voxels has steps of .0625 voxel."""
    if name == "transmorph":
        pytest.importorskip("monai")
    torch.manual_seed(0)
    small = {"embed_dim": 8, "depths": (2, 2), "heads": (2, 2), "window": 2}
    network = ARCHITECTURES[name](
        2, light=True, diffeomorphic=squarings, **(small if name == "transmorph" else {"channels": [8, 8]})
    ).eval()
    flows = network.flows if name == "pyramid" else [network.flow]
    for flow in flows:
        torch.nn.init.normal_(flow.weight, std=1e-3)
        torch.nn.init.constant_(flow.bias, 10.0)
    moving, fixed = torch.rand(2, 1, 1, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        displacement = network(moving, fixed)
    assert displacement.dtype == torch.float32
    steps = displacement[:, 0].flatten().unique().diff()
    assert len(steps) > 100
    assert steps.median() < 0.01


def test_a_subclass_is_refused_when_it_is_saved_and_not_when_it_is_loaded(tmp_path):
    class Mine(UNet):
        pass

    with pytest.raises(WeightsError, match="Mine is not registered, so it could not be loaded again"):
        save_model(Mine(2, 3, channels=[4, 6]), tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_with_a_retired_option_load(tmp_path):
    network = VoxelMorph(2, channels=[4, 6])
    network.config = network.config | {"stages": 1}
    save_model(network, tmp_path / "old.safetensors")
    assert "stages" not in load_model(tmp_path / "old.safetensors").config


@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 7)])
def test_correlation_is_the_cosine_at_every_shift(shape):
    moving, fixed = torch.randn(2, 2, 4, *shape, generator=torch.Generator().manual_seed(0)).double()
    found = correlation(moving, fixed, 1)
    assert found.shape == (2, 3 ** len(shape), *shape)
    for index, position in [(0, (2, 3, 4)), (3 ** len(shape) // 2, (0, 5, 0)), (3 ** len(shape) - 1, (4, 2, 3))]:
        at = position[: len(shape)]
        shift = [index // 3**axis % 3 - 1 for axis in reversed(range(len(shape)))]
        there = tuple(min(max(a + s, 0), size - 1) for a, s, size in zip(at, shift, shape, strict=True))
        a, b = moving[(1, slice(None), *there)], fixed[(1, slice(None), *at)]
        assert found[(1, index, *at)].item() == pytest.approx((a @ b / a.norm() / b.norm()).item())


@pytest.mark.parametrize(
    "code",
    [
        "from deepsimreg.models.registry import ARCHITECTURES as A, EXTRACTORS as E; found = 'seg' in E, 'x' in A, *A",
        "from deepsimreg.losses.registry import default_lam as f; found = f('ncc + 0.5 mse', 3)",
    ],
    ids=["networks", "similarities"],
)
def test_names_are_known_without_loading_what_they_name(code):
    code += "; import sys; print(found, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = "(True, False, 'voxelmorph', 'pyramid', 'transmorph')" if "models" in code else "1.04"
    assert found.strip() == f"{expected} False"


@pytest.mark.parametrize("package", [losses, models])
def test_every_name_that_a_lazy_package_lists_is_there(package):
    assert all(hasattr(package, name) for name in package.__all__)
    assert models.WeightsError is WeightsError
