"""SyN and greedy, run for real: a known warp comes back, in 2D and 3D, on anisotropic grids, with features."""

import pytest
import torch
from torch.nn import functional

from deepsimreg.data.augment import add_noise
from deepsimreg.models import UNet
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.warps import jacobian_determinant, warp_image

SHAPES = {2: (40, 48), 3: (24, 28, 32)}


def scene(ndim):
    """Smooth random structure, and the same pulled through a smooth displacement of up to two voxels."""
    generator = torch.Generator().manual_seed(0)
    mode = {2: "bicubic", 3: "trilinear"}[ndim]
    coarse = torch.rand(1, 1, *[side // 4 for side in SHAPES[ndim]], generator=generator)
    moving = functional.interpolate(coarse, SHAPES[ndim], mode=mode).clamp(0, 1)
    bumps = torch.randn(1, ndim, *[4] * ndim, generator=generator)
    edge = torch.zeros(SHAPES[ndim])
    edge[(slice(5, -5),) * ndim] = 1
    displacement = functional.interpolate(bumps, SHAPES[ndim], mode=mode) * edge
    displacement = (
        functional.avg_pool2d(displacement, 5, 1, 2) if ndim == 2 else functional.avg_pool3d(displacement, 5, 1, 2)
    )
    displacement = 2 * displacement / displacement.abs().max()
    return moving, warp_image(moving, displacement), displacement


@pytest.mark.parametrize(
    ("ndim", "method"), [(ndim, name) for name, one in BASELINES.items() for ndim in (2, 3) if ndim == 3 or one.planes]
)
def test_a_known_warp_is_found_on_an_anisotropic_grid(method, ndim):
    torch.manual_seed(0)
    moving, fixed, truth = scene(ndim)
    baseline = BASELINES[method]
    extractor = UNet(ndim, 2, channels=[8, 8]).eval() if baseline.extractor else None
    spacing = (0.5, 1.5, 1.0)[:ndim]
    found = baseline.register(moving, fixed, spacing, extractor, baseline.smoothing)
    assert found.shape == truth.shape
    inside = (..., *[slice(6, -6)] * ndim)
    before, after = truth[inside].norm(dim=1).mean(), (found - truth)[inside].norm(dim=1).mean()
    assert after < 0.6 * before
    error = (warp_image(moving, found) - fixed)[inside].square().mean()
    assert error < 0.25 * (moving - fixed)[inside].square().mean()
    assert (jacobian_determinant(found) > 0).all()


@pytest.mark.parametrize("method", ["syn", "greedy"])
def test_the_same_call_gives_the_same_warp(method):
    moving, fixed, _ = scene(2)
    noisy = add_noise(moving, 0.05, torch.Generator().manual_seed(1))
    register, value = BASELINES[method].register, BASELINES[method].smoothing
    assert torch.equal(register(noisy, fixed, (1, 1), None, value), register(noisy, fixed, (1, 1), None, value))


def test_more_smoothing_gives_a_smoother_warp():
    moving, fixed, _ = scene(2)
    rough, smooth = (
        jacobian_determinant(BASELINES["greedy"].register(moving, fixed, (1, 1), None, value)).std()
        for value in (0.5, 3.0)
    )
    assert smooth < rough


class Levels:
    """Features of which one direction is known to carry all the variance."""

    def features(self, image):
        half = functional.avg_pool2d(image, 2)
        return [torch.cat([half, 2 * half, -half], dim=1)]
