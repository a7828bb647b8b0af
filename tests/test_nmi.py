import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from deepsimreg.data import load_dataset
from deepsimreg.losses import NMI, SIMILARITIES, diffusion
from deepsimreg.warps import warp_image

SHAPES = [(9, 11), (5, 6, 7)]
each_rank = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


def nmi_by_definition(i, j, bins):
    """2 - (H(I) + H(J)) / H(I, J) in float64, a voxel and a bin at a time; the windows are scipy's B-splines."""
    window = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    joint = np.zeros(bins)
    for pair in zip(i.ravel(), j.ravel(), strict=True):
        fractions = []
        for value, count in zip(pair, bins, strict=True):  # the ends of the range are the centres of the second bins
            centres = (np.arange(count) - 1) / (count - 3)
            fractions.append(np.nan_to_num(window((value - centres) * (count - 3))))
        joint += np.outer(*fractions) / i.size

    def entropy(probabilities):
        return -sum(p * math.log(p) for p in probabilities.ravel() if p > 0)

    return 2 - (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)


def images(shape, count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 1, *shape, generator=generator, dtype=dtype) for _ in range(count)]


@each_rank
@pytest.mark.parametrize("bins", [(8, 8), (64, 48)])
def test_nmi_by_definition(shape, bins):
    i, j = images(shape)
    expected = nmi_by_definition(i.numpy(), j.numpy(), bins)
    assert NMI(bins, fraction=1)(i, j).item() == pytest.approx(expected, abs=1e-10)
    assert NMI(bins, fraction=1)(i.float(), j.float()).item() == pytest.approx(expected, abs=1e-4)


def test_nmi_is_the_mean_over_the_batch():
    a, b, c, d = images((9, 11), count=4)
    both = NMI(fraction=1)(torch.cat([a, b]), torch.cat([c, d]))
    assert both.item() == pytest.approx((NMI(fraction=1)(a, c) + NMI(fraction=1)(b, d)).item() / 2)


def test_nmi_does_not_care_for_the_sign_of_the_contrast():
    i, j = images((40, 40))
    assert NMI(fraction=1)(1 - i, j).item() == pytest.approx(NMI(fraction=1)(i, j).item(), abs=1e-9)


def test_values_that_predict_each_other_give_a_low_loss():
    grey = torch.randint(8, (1, 1, 60, 60), generator=torch.Generator().manual_seed(1)) / 7
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    other = shuffled[(grey * 7).round().long()] / 7
    unrelated = grey.flatten()[torch.randperm(3600, generator=torch.Generator().manual_seed(3))].view_as(grey)
    assert NMI(31, fraction=1)(grey, other).item() < 0.5  # each value counts in three bins: not 0
    assert NMI(31, fraction=1)(grey, unrelated).item() > 0.95


@each_rank
def test_weights_count_as_so_many_copies_of_a_voxel(shape):
    i, j = images(shape)
    copies = torch.randint(4, shape, generator=torch.Generator().manual_seed(1))
    again = [one.flatten().repeat_interleave(copies.flatten())[None, None, None] for one in (i, j)]
    weights = copies[None, None].double()
    assert NMI(16, fraction=1)(i, j, weights).item() == pytest.approx(NMI(16, fraction=1)(*again).item(), abs=1e-10)
    assert NMI(16, fraction=1).against([j], weights)([i]).item() == NMI(16, fraction=1)(i, j, weights).item()


@each_rank
def test_nmi_is_lowest_without_a_shift(shape):
    smooth = torch.nn.functional.interpolate(
        images(shape)[0], scale_factor=6, mode=["bilinear", "trilinear"][len(shape) - 2]
    )
    curve = {shift: NMI(32, fraction=1)(smooth.roll(shift, -1), smooth).item() for shift in (-6, -2, 0, 2, 6)}
    assert min(curve, key=curve.get) == 0
    assert curve[2] < curve[6]
    assert curve[-2] < curve[-6]


def test_gradient_of_nmi():
    i, j = images((5, 6))
    assert torch.autograd.gradcheck(NMI((6, 5), fraction=1), (i.requires_grad_(), j.requires_grad_()))


def test_a_training_step_draws_voxels_with_torchs_generator():
    i, j = images((40, 40))
    loss = NMI(16, fraction=0.1)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(loss(i, j).item())
    assert values[0] == values[1] != values[2]
    loss.eval()
    assert loss(i, j).item() == loss(i, j).item()


def test_values_outside_the_unit_interval_count_as_its_ends():
    i, j = images((9, 11))
    assert NMI(fraction=1)(i * 3 - 1, j).item() == pytest.approx(NMI(fraction=1)((i * 3 - 1).clamp(0, 1), j).item())


def test_constant_images_give_a_number():
    flat = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    loss = NMI(fraction=1)(flat, flat.detach())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("options", [{"bins": 3}, {"bins": (64, 3)}, {"fraction": 0}, {"fraction": 1.5}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="give at least 4 bins, and a fraction"):
        NMI(**options)


@pytest.mark.parametrize("name", ["phantom-2d", "phantom-3d"])
def test_the_default_weight_lets_the_true_warp_win(name):
    """With λ of .3 or 1, the first defaults, the true warp of a pair costs more than it gains."""
    pairs, lam, loss = load_dataset(name).pairs("test"), SIMILARITIES["nmi"].lam, NMI().eval()
    for pair in (pairs[0], pairs[1], pairs[2]):
        moving, fixed, truth = pair.moving.image[None], pair.fixed.image[None], pair.displacement[None]
        still = loss(moving, fixed)
        assert loss(warp_image(moving, truth), fixed) + lam * diffusion(truth) < still - 0.25 * lam * diffusion(truth)
        assert loss(warp_image(moving, truth), fixed) + 1.0 * diffusion(truth) > still


def test_no_voxel_is_sampled_twice_and_none_is_permuted(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: pytest.fail("a permutation of all voxels"))
    loss = NMI(fraction=0.1).eval()
    for voxels in (1000, 97_000, 131_072, 150_000, 2_000_000):
        chosen = loss._chosen(voxels, torch.device("cpu"))
        assert len(chosen.unique()) == len(chosen) >= min(voxels, max(2**17, voxels // 10))
    assert not torch.equal(loss.train()._chosen(4096, torch.device("cpu")), loss._chosen(4096, torch.device("cpu")))


def test_the_histogram_keeps_its_digits_under_autocast():
    """A true warp gains about .01; in bfloat16 numbers near one are .004 to .008 apart."""
    i, j = images((40, 40), dtype=torch.float32)
    expected = NMI(fraction=1)(i, j)
    with torch.autocast("cpu", torch.bfloat16):
        assert NMI(fraction=1)(i, j).item() == pytest.approx(expected.item(), abs=1e-6)


def test_values_that_are_no_numbers_give_no_number():
    i, j = images((9, 11))
    i[..., 3] = math.nan
    assert NMI(fraction=1)(i, j).isnan()
