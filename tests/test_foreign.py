"""Networks from elsewhere as extractors, and features compared by local correlation."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deepsimreg import register
from deepsimreg.errors import WeightsError
from deepsimreg.losses.features import FeatureCorrelation, feature_channels
from deepsimreg.losses.ncc import NCC
from deepsimreg.models.foreign import ForeignFeatures, ModuleFeatures, TorchScriptFeatures, random_features
from deepsimreg.warps import warp_image


class Small(nn.Module):
    """Two levels, at full and at half resolution."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 4, stride=2, padding=1)

    def forward(self, image):
        full = torch.tanh(self.first(image))
        return full, torch.tanh(self.second(full))


@pytest.fixture
def script(tmp_path):
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Small()), tmp_path / "small.pt")
    return tmp_path / "small.pt"


def blobs(shape=(48, 56), seed=0):
    noise = torch.randn(1, 1, *[side // 8 for side in shape], generator=torch.Generator().manual_seed(seed))
    image = nn.functional.interpolate(noise, shape, mode="bicubic" if len(shape) == 2 else "trilinear")
    return (image - image.amin()) / (image.amax() - image.amin())


def shifted(image, voxels=2.0):
    displacement = torch.zeros(1, image.ndim - 2, *image.shape[2:])
    displacement[:, 0] = voxels
    return warp_image(image, displacement)


def test_a_scripted_network_registers_a_pair(script):
    extractor = TorchScriptFeatures(script, layers=[0, 1], intensity="zscore", multiple=2)
    moving = blobs()
    result = register(moving, shifted(moving), "deepsim-seg", 0.02, extractor=extractor, progress=False)
    assert (result.displacement[0, 0, 10:-10, 10:-10] - 2).abs().mean() < 0.3


def test_tiles_give_what_the_whole_image_gives(script):
    image = blobs((93, 70))
    whole = TorchScriptFeatures(script, multiple=2).features(image)
    tiled = TorchScriptFeatures(script, multiple=2, tile=32, overlap=8).features(image)
    for a, b in zip(whole, tiled, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(93, 70), (61, 33), (32, 17)])
def test_tiles_of_a_few_voxels_at_the_end_fit_those_before(shape):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.Tanh(), nn.Conv2d(4, 4, 4, 2, 1))
    image = torch.rand(1, 1, *shape)
    whole = ForeignFeatures(network, ["0", "2"], multiple=4).features(image)
    tiled = ForeignFeatures(network, ["0", "2"], multiple=4, tile=24, overlap=8).features(image)
    for a, b in zip(whole, tiled, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=0)


def test_what_the_network_expects_is_what_it_gets():
    seen = []

    class Spy(nn.Module):
        def forward(self, image):
            seen.append(image)
            return nn.functional.avg_pool2d(image, 3, ceil_mode=True)

    image = blobs((30, 44))
    (map_,) = ForeignFeatures(Spy(), intensity=(-1, 1), channels=3, multiple=7).features(image)
    assert seen[0].shape == (1, 3, 35, 49)
    torch.testing.assert_close(seen[0][:, 1:2, :30, :44], 2 * image - 1)
    assert map_.shape[2:] == (15, 22), "steps of 3 become the nearest power of two"
    ForeignFeatures(Spy(), intensity="zscore").features(image)
    assert abs(seen[1].mean()) < 1e-5
    assert seen[1].std(correction=0) == pytest.approx(1, abs=1e-4)
    ForeignFeatures(Spy(), voxel_size=0.5).at_spacing((1.0, 0.5)).features(image)
    assert seen[2].shape[2:] == (60, 44)


def test_weights_in_safetensors_and_parts_of_a_module_by_name(tmp_path):
    torch.manual_seed(1)
    trained = Small()
    save_file(trained.state_dict(), tmp_path / "small.safetensors")
    image = blobs()
    extractor = ModuleFeatures(Small(), tmp_path / "small.safetensors", layers=["first", 1], multiple=2)
    by_name, by_number = extractor.features(image)
    torch.testing.assert_close(by_name, trained.first(image))
    torch.testing.assert_close(by_number, trained(image)[1])
    with pytest.raises(WeightsError, match="not the weights of Conv2d"):
        ModuleFeatures(nn.Conv2d(1, 1, 1), tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"layer .* is not there: the network has 2 outputs"):
        ForeignFeatures(trained, [5]).features(image)


def test_files_that_are_no_torchscript_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("text")
    for name, message in (("text.pt", r"text\.pt: no TorchScript"), ("none.pt", r"none\.pt: no such file")):
        with pytest.raises(WeightsError, match=message):
            TorchScriptFeatures(tmp_path / name)
    with pytest.raises(ValueError, match="choose unit, zscore"):
        ForeignFeatures(Small(), intensity="grey")
    with pytest.raises(ValueError, match="tile > 2 overlap"):
        ForeignFeatures(Small(), tile=32, overlap=16)


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_features_are_a_control_with_a_seed(ndim):
    image = blobs((32,) * ndim)
    ours, again, other = (random_features(ndim, seed).features(image) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    assert not torch.equal(ours[0], other[0])


@pytest.mark.parametrize("shape", [(24, 28), (12, 14, 10)])
def test_components_are_those_of_a_full_analysis(shape):
    """Against the definition: every level enlarged, the covariance of all voxels, projected."""
    generator, mode = torch.Generator().manual_seed(0), "bilinear" if len(shape) == 2 else "trilinear"
    levels = [torch.randn(2, c, *[-(-s // r) for s in shape], generator=generator) for c, r in ((3, 1), (5, 2))]
    found = feature_channels(levels, shape, 4)
    enlarged = [nn.functional.interpolate(level, shape, mode=mode) / level.shape[1] ** 0.5 for level in levels]
    rows = torch.cat(enlarged, 1).movedim(1, -1).flatten(0, -2).double()
    rows = rows - rows.mean(0)
    components = rows @ torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :4]
    components = components.T.reshape(4, 2, *shape).movedim(0, 1)
    for k in range(4):
        ours, theirs = found[:, k].flatten().double(), components[:, k].flatten()
        assert abs(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 1 - 1e-6
        assert (ours.min(), ours.max()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_the_loss_is_the_weighted_correlation_of_image_and_channels():
    torch.manual_seed(0)
    network, (moved, fixed) = random_features(2), (blobs(seed=1), blobs(seed=2))
    similarity = FeatureCorrelation(network, components=3, weight=2.0, window=5)
    channels = similarity.maps(torch.cat([moved, fixed]))[0]
    ncc = NCC(5, signed=True)
    parts = [ncc(channels[:1, k : k + 1], channels[1:, k : k + 1]) for k in range(4)]
    expected = (parts[0] + 2 * torch.stack(parts[1:]).mean()) / 3
    torch.testing.assert_close(similarity(moved, fixed), expected)
    assert similarity(fixed, fixed) < 0.02
    image = moved.clone().requires_grad_()
    similarity(image, fixed).backward()
    assert image.grad.abs().sum() > 0


def test_features_by_local_correlation_register_a_pair():
    moving = blobs()
    result = register(moving, shifted(moving), "ncc-seg", extractor=random_features(2), progress=False)
    assert (result.displacement[0, 0, 10:-10, 10:-10] - 2).abs().mean() < 0.3
    named = register(moving, shifted(moving), "ncc-seg", extractor="random", progress=False)
    assert torch.equal(named.displacement, result.displacement)
