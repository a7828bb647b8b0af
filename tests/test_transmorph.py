import pytest
import torch

from deepsimreg.models import TransMorph, load_model, save_model, transmorph
from deepsimreg.warps import warp_image

SMALL = {"embed_dim": 8, "depths": (2, 2), "heads": (2, 2), "window": 2}
EACH = pytest.mark.parametrize(
    ("shape", "light"),
    [((33, 41), False), ((33, 41), True), ((17, 16, 20), False), ((17, 16, 20), True)],
    ids=["2d", "2d-light", "3d", "3d-light"],
)


def pair(shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 1, *shape, generator=generator) for _ in range(2)]


@EACH
def test_any_size_gives_a_displacement_near_zero_at_first(shape, light):
    torch.manual_seed(0)
    displacement = TransMorph(len(shape), light=light, **SMALL)(*pair(shape))
    assert displacement.shape == (1, len(shape), *shape)
    assert 0 < displacement.abs().max() < 1e-2


@EACH
def test_every_weight_that_is_used_gets_a_gradient(shape, light):
    torch.manual_seed(0)
    network = TransMorph(len(shape), light=light, diffeomorphic=3, **SMALL)
    torch.nn.init.normal_(network.flow.weight, std=0.1)
    network(*pair(shape)).square().mean().backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in silent if not name.endswith("bias")], silent


def test_it_learns_a_shift():
    torch.manual_seed(0)
    coarse = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    fixed = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
    moving = fixed.roll(2, -1)
    network = TransMorph(2, light=True, **SMALL)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (warp_image(moving, network(moving, fixed)) - fixed).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_weights_come_back(tmp_path):
    network = TransMorph(2, light=True, **SMALL).eval()
    path = save_model(network, tmp_path / "weights.safetensors")
    again = load_model(path, TransMorph)
    assert torch.equal(network(*pair((32, 32))), again(*pair((32, 32))))


def test_options_that_make_no_sense():
    with pytest.raises(ValueError, match="2D or 3D"):
        TransMorph(4, **SMALL)
    with pytest.raises(ValueError, match="give one of each for up to four stages"):
        TransMorph(2, depths=(2, 2), heads=(2,))


def test_what_is_computed_again_in_training_changes_no_gradient(monkeypatch):
    torch.manual_seed(0)
    network = TransMorph(3, embed_dim=12, depths=[1, 1], heads=[2, 2], window=3).train()
    torch.nn.init.normal_(network.flow.weight, std=0.1)
    moving, fixed = torch.rand(2, 1, 1, 16, 16, 32)
    calls, gradients = [], []
    for again in (True, False):
        if not again:
            monkeypatch.setattr(transmorph, "checkpoint", lambda stage, *inputs, **_: calls.append(1) or stage(*inputs))
            for part in network.encoder.modules():
                part.use_checkpoint = False
        network.zero_grad()
        network(moving, fixed).square().mean().backward()
        gradients.append({name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None})
    assert len(calls) == 3
    assert max(gradients[0]["flow.weight"].abs().max(), gradients[0]["skips.0.0.weight"].abs().max()) > 0
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected)
