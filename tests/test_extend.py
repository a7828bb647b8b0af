"""What it takes to add a similarity, a registration network or a kind of extractor: a module and an entry."""

import pytest
import torch
from safetensors import safe_open

from deepsimreg import register
from deepsimreg.losses import SIMILARITIES, SimilarityRecord, build_similarity
from deepsimreg.models import ARCHITECTURES, EXTRACTORS, load_model, save_model

SIMILARITY = """
from deepsimreg.losses.base import Similarity, check_pair


class MeanAbsoluteError(Similarity):
    def __init__(self, power=1.0):
        super().__init__()
        self.power = power

    def forward(self, moved, fixed):
        check_pair(moved, fixed)
        return (moved - fixed).abs().pow(self.power).mean()
"""
NETWORK = """
from torch import nn

from deepsimreg.models.voxelmorph import flow_layer


class OneLayer(nn.Module):
    def __init__(self, ndim, in_channels=2):
        super().__init__()
        self.config = {"ndim": ndim, "in_channels": in_channels}
        self.flow = flow_layer(ndim, in_channels)

    def forward(self, moving, fixed):
        import torch

        return self.flow(torch.cat([moving, fixed], dim=1))
"""
EXTRACTOR = """
from deepsimreg.models.backbone import ImageNetwork


class Denoiser(ImageNetwork):
    skips = True
"""


def smooth(shape):
    coarse = torch.rand(1, 1, *[side // 6 for side in shape], generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, shape, mode="bicubic").clamp(0, 1)


@pytest.fixture
def module(tmp_path, monkeypatch):
    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


@pytest.mark.parametrize("lam", [0.05, None])
def test_a_similarity_is_a_module_and_a_record(module, monkeypatch, lam):
    name = module("my_mae", SIMILARITY)
    record = SimilarityRecord("MAE", "#123456", f"{name}:MeanAbsoluteError", lam, {"power": 1.5})
    monkeypatch.setitem(SIMILARITIES, "mae", record)
    assert build_similarity("mae").power == 1.5
    moving = smooth((48, 48))
    fixed = moving.roll(2, -1)
    if lam is None:
        with pytest.raises(ValueError, match="mae has no default weight of the regulariser: give lam"):
            register(moving, fixed, "mae + 0.5 mse", progress=False)
        return
    found = register(moving, fixed, "mae", progress=False)
    inside = (..., slice(8, -8), slice(8, -8))
    assert (found.moved - fixed)[inside].abs().mean() < 0.5 * (moving - fixed)[inside].abs().mean()


def test_a_registration_network_is_a_module_and_an_entry(module, monkeypatch, tmp_path):
    monkeypatch.setitem(ARCHITECTURES.places, "one-layer", f"{module('my_network', NETWORK)}:OneLayer")
    path = save_model(ARCHITECTURES["one-layer"](2), tmp_path / "weights.safetensors")
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["model"] == "one-layer"
    image = smooth((32, 32))
    found = register(image, image, "mse", network=path, steps=0, progress=False)
    assert torch.equal(found.displacement, load_model(path)(image, image))


def test_a_kind_of_extractor_is_a_module_and_an_entry(module, monkeypatch, tmp_path):
    """Another one that DeepSim looks through; its training, if it is to have one, is a class in TRAININGS."""
    monkeypatch.setitem(EXTRACTORS.places, "denoiser", f"{module('my_extractor', EXTRACTOR)}:Denoiser")
    record = SimilarityRecord(
        "DeepSim (denoiser)", "#654321", SIMILARITIES["deepsim-seg"].loss, 0.5, extractor="denoiser"
    )
    monkeypatch.setitem(SIMILARITIES, "deepsim-denoiser", record)
    path = save_model(EXTRACTORS["denoiser"](2, 1, channels=[4, 6, 8]), tmp_path / "weights.safetensors")
    image = smooth((32, 32))
    found = register(image, image.roll(1, -1), "deepsim-denoiser", extractor=path, steps=2, progress=False)
    assert torch.isfinite(found.displacement).all()
