import pytest
import torch

from deepsimreg import register
from deepsimreg.data import load_dataset
from deepsimreg.evaluation import evaluate_pair
from deepsimreg.losses import MSE, NCC, DeepSim
from deepsimreg.models import UNet
from deepsimreg.warps import jacobian_determinant, warp_image


def smooth(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *[-(-size // 6) for size in shape], generator=generator)
    mode = {2: "bicubic", 3: "trilinear"}[len(shape)]
    return torch.nn.functional.interpolate(coarse, shape, mode=mode).clamp(0, 1)


@pytest.mark.parametrize("shape", [(17, 23), (18, 20, 14)], ids=["2d", "3d"])
def test_an_image_with_itself_stays_where_it_is(shape):
    image = smooth(shape)
    result = register(image, image, MSE(), lam=0.1, steps=5)
    assert result.displacement.abs().max() < 0.05
    assert result.displacement.shape == (1, len(shape), *shape)


@pytest.mark.parametrize("shape", [(40, 48), (24, 28, 20)], ids=["2d", "3d"])
def test_a_known_smooth_warp_is_recovered(shape):
    moving = smooth(shape)
    axes = torch.meshgrid(*[torch.linspace(0, torch.pi, size) for size in shape], indexing="ij")
    bump = torch.stack(axes).sin().prod(0)
    truth = torch.stack([(1.5 + 0.5 * k) * (-1) ** k * bump for k in range(len(shape))])[None]
    fixed = warp_image(moving, truth)
    result = register(moving, fixed, MSE(), lam=1e-4, steps=60)
    inside = (..., *[slice(6, -6)] * len(shape))
    error = (result.displacement - truth)[inside].norm(dim=1).mean()
    assert error < 0.5
    assert truth[inside].norm(dim=1).mean() > 1
    assert (jacobian_determinant(result.displacement) > 0).all()
    torch.testing.assert_close(result.moved, warp_image(moving, result.displacement))


def test_losses_fall_and_are_counted():
    moving, fixed = smooth((32, 32), 1), smooth((32, 32), 2)
    result = register(moving, fixed, NCC(), lam=0.01, steps=20, scales=(8, 4))
    assert len(result.losses) == 40
    assert result.losses[-1] < result.losses[0]
    assert result.seconds > 0


def test_a_pair_of_the_phantom_gets_closer_to_its_truth():
    data = load_dataset("phantom-2d", noise=0.01, illumination=0.0, train=1, validation=1, test=1)
    pair = data.pairs("test")[0]
    result = register(pair.moving.image[None], pair.fixed.image[None], MSE(), lam=0.02)

    def error(displacement):
        labels = pair.moving.label[None], pair.fixed.label[None]
        return evaluate_pair(displacement, *labels, data.classes, data.spacing, pair.displacement[None])

    assert error(result.displacement)["target_registration_error"] < 0.8 * error(None)["target_registration_error"]
    assert error(result.displacement)["dice"] > error(None)["dice"] + 0.05


def test_weights_of_the_extractor_do_not_change():
    extractor = UNet(2, 3, channels=[4, 6, 8])
    before = {key: value.clone() for key, value in extractor.state_dict().items()}
    register(smooth((32, 32), 1), smooth((32, 32), 2), DeepSim(extractor), lam=1.0, steps=3)
    assert all(torch.equal(before[key], value) for key, value in extractor.state_dict().items())


@pytest.mark.parametrize(
    ("moving", "fixed", "message"),
    [
        (torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 9), r"moving \(1, 1, 8, 8\) and fixed \(1, 1, 8, 9\)"),
        (torch.rand(8, 8), torch.rand(8, 8), r"moving has shape \(8, 8\): give \(N, C, H, W\)"),
        (torch.rand(1, 1, 8, 8), torch.full((1, 1, 8, 8), torch.nan), "fixed holds NaN"),
    ],
)
def test_bad_images_are_refused(moving, fixed, message):
    with pytest.raises(ValueError, match=message):
        register(moving, fixed, MSE(), lam=0.1)
