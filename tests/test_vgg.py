"""VGG-16's features, from a weight file with torchvision's keys, against the same network built by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from deepsimreg.errors import WeightsError
from deepsimreg.losses import build_similarity
from deepsimreg.models import load_vgg
from deepsimreg.models.vgg import FILE

CONFIGURATION = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
REST = {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


@pytest.fixture(scope="module")
def tensors():
    """The convolutions of torchvision's VGG-16 (configuration D) and one classifier layer, made narrow."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer, (before, after) in CONFIGURATION.items():
        state[f"features.{layer}.weight"] = torch.randn(after, before, 3, 3, generator=generator) / before**0.5 / 3
        state[f"features.{layer}.bias"] = torch.randn(after, generator=generator) * 0.1
    for layer, (_, after) in REST.items():
        state[f"features.{layer}.bias"] = torch.zeros(after)
    return state | {"classifier.6.bias": torch.zeros(1000)}


@pytest.fixture
def path(tensors, tmp_path):
    torch.save(tensors, tmp_path / FILE)
    return tmp_path / FILE


def by_hand(tensors, image):
    """relu1_2, relu2_2 and relu3_3 in float64."""
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    x = (image.double().repeat(1, 3, 1, 1) - torch.tensor(mean).view(1, 3, 1, 1).double()) / torch.tensor(
        deviation
    ).view(1, 3, 1, 1).double()
    levels = []
    for layers in ((0, 2), (5, 7), (10, 12, 14)):
        for layer in layers:
            weight, bias = (tensors[f"features.{layer}.{what}"].double() for what in ("weight", "bias"))
            x = functional.conv2d(x, weight, bias, padding=1).clamp(min=0)
        levels.append(x)
        x = functional.max_pool2d(x, 2)
    return levels


def test_features_are_those_of_torchvisions_keys(tensors, path):
    image = torch.rand(2, 1, 24, 30, generator=torch.Generator().manual_seed(1))
    features = load_vgg(path).features(image)
    assert [tuple(level.shape) for level in features] == [(2, 64, 24, 30), (2, 128, 12, 15), (2, 256, 6, 7)]
    for level, expected in zip(features, by_hand(tensors, image), strict=True):
        torch.testing.assert_close(level.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_similarity_is_zero_at_identity_and_sees_a_shift(path):
    similarity = build_similarity("vgg", {"vgg": load_vgg(path)})
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    assert similarity(image, image).abs() < 1e-5
    moved = image.roll(3, -1).requires_grad_()
    loss = similarity(moved, image)
    loss.backward()
    assert loss > 0.01
    assert moved.grad.abs().sum() > 0


def test_it_is_frozen_and_keeps_its_weights_out_of_training(path):
    network = load_vgg(path)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_grey_and_rgb_planes_only(path):
    network = load_vgg(path)
    with pytest.raises(ValueError, match="planes"):
        network.features(torch.rand(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="planes"):
        network.features(torch.rand(1, 2, 8, 8))


def test_a_missing_file_says_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSIMREG_DATA", str(tmp_path))
    with pytest.raises(WeightsError, match=f"{FILE}: no VGG-16 weights; run deepsimreg fetch vgg16"):
        load_vgg()


def test_damaged_and_foreign_files_are_refused(path, tensors):
    torch.save({key: value for key, value in tensors.items() if not key.startswith("features.14")}, path)
    with pytest.raises(WeightsError, match=r"features\.14\.weight, features\.14\.bias missing"):
        load_vgg(path)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(WeightsError, match="not the weights of VGG-16"):
        load_vgg(path)
    path.write_bytes(b"no pickle at all")
    with pytest.raises(WeightsError, match="damaged"):
        load_vgg(path)
