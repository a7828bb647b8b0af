"""Pretrained networks by name: offline, checked, in half precision; and weight files by path."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from deepsimreg import load, pretrained, register
from deepsimreg.cli import main
from deepsimreg.errors import WeightsError
from deepsimreg.models import Autoencoder, UNet, save_model


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of weights with one network in half precision, as the package ships them."""
    network = UNet(2, 3, channels=[4, 6, 8]).eval()
    path = save_model(network, tmp_path / "made-seg.safetensors")
    config = json.dumps(network.config)
    halves = {key: value.half() for key, value in load_file(path).items()}
    save_file(halves, path, metadata={"model": "unet", "config": config})
    card = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "what": "a U-Net"}
    (tmp_path / "index.json").write_text(json.dumps({"made/seg": card}))
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    monkeypatch.setattr(pretrained, "INDEX", tmp_path / "index.json")
    return network, path


def test_a_name_and_a_path_give_the_same_network_in_float32(shipped):
    network, path = shipped
    image = torch.rand(1, 1, 16, 16)
    for loaded in (load("made/seg"), load(path)):
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
        torch.testing.assert_close(loaded(image), network(image), atol=1e-2, rtol=1e-2)


def test_it_serves_as_the_extractor_of_register(shipped):
    images = torch.rand(2, 16, 16)
    result = register(*images, "ncc + deepsim-seg", extractor="made", steps=2, progress=False)
    assert len(result.losses) == 2, "16 pixels a side have one level"


@pytest.mark.parametrize("name", list(pretrained.pretrained()))
def test_every_network_that_comes_with_the_package_loads(name):
    network = load(name)
    assert not network.training
    assert {value.dtype for value in network.state_dict().values() if value.is_floating_point()} == {torch.float32}
    image = torch.rand(1, 1, *[32] * network.config["ndim"], generator=torch.Generator().manual_seed(0))
    out = network(image, image) if name.endswith("registration") else network(image)
    assert torch.isfinite(out).all()
    assert out.shape[2:] == image.shape[2:]


def test_damaged_unknown_and_other_networks_are_refused(shipped):
    _, path = shipped
    with pytest.raises(WeightsError, match="unknown pretrained network 'made/ae'; there is: made/seg; or give a path"):
        load("made/ae")
    with pytest.raises(WeightsError, match="holds weights of UNet, but Autoencoder"):
        load("made/seg", Autoencoder)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"made-seg\.safetensors: damaged, its sha256 is"):
        load("made/seg")


def test_the_command_line_lists_them(shipped):
    assert CliRunner().invoke(main, ["models"]).stdout.split() == ["made/seg", "a", "U-Net"]
    assert list(json.loads(CliRunner().invoke(main, ["models", "--json"]).stdout)) == ["made/seg"]


def test_the_index_is_read_without_torch():
    code = "import sys; from deepsimreg.pretrained import pretrained; print(len(pretrained()), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(len(pretrained.pretrained())), "False"]
