import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from deepsimreg.losses import MIND

SHAPES = [(7, 9), (5, 6, 7)]
each_rank = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


def mind_by_definition(image, radius, dilation):
    """Descriptor (pairs, *spatial) in float64, a voxel, a pair and a patch at a time."""
    ndim, shape = image.ndim, image.shape
    axes = [
        tuple(sign * dilation * (axis == other) for other in range(ndim)) for axis in range(ndim) for sign in (-1, 1)
    ]
    pairs = [(a, b) for a, b in itertools.combinations(axes, 2) if any(x + y for x, y in zip(a, b, strict=True))]

    def at(voxel, offset):
        return image[tuple(min(max(v + o, 0), n - 1) for v, o, n in zip(voxel, offset, shape, strict=True))]

    distance = np.zeros((len(pairs), *shape))
    for number, (a, b) in enumerate(pairs):
        for voxel in np.ndindex(shape):
            patch = [
                (at(y, a) - at(y, b)) ** 2
                for y in itertools.product(*[range(v - radius, v + radius + 1) for v in voxel])
                if all(0 <= v < n for v, n in zip(y, shape, strict=True))
            ]
            distance[(number, *voxel)] = sum(patch) / len(patch)
    distance -= distance.min(0)
    variance = distance.mean(0)
    return np.exp(-distance / variance.clip(1e-3 * variance.mean(), 1e3 * variance.mean()))


def images(shape, count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 1, *shape, generator=generator, dtype=dtype) for _ in range(count)]


@each_rank
@pytest.mark.parametrize(("radius", "dilation"), [(2, 2), (1, 1), (0, 3)])
def test_mind_by_definition(shape, radius, dilation):
    i, j = images(shape)
    expected = [mind_by_definition(image[0, 0].numpy(), radius, dilation) for image in (i, j)]
    mind = MIND(radius, dilation)
    np.testing.assert_allclose(mind.describe(i)[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(mind.describe(i.float())[0], expected[0], atol=1e-4)
    assert mind(i, j).item() == pytest.approx(((expected[0] - expected[1]) ** 2).mean(), abs=1e-12)


def test_number_of_pairs():
    assert MIND().describe(images((7, 9))[0]).shape == (1, 4, 7, 9)
    assert MIND().describe(images((5, 6, 7))[0]).shape == (1, 12, 5, 6, 7)


@each_rank
def test_mind_does_not_see_gain_and_offset(shape):
    image = images(shape)[0]
    assert MIND()(image * 0.3 + 0.5, image).item() < 1e-20


@each_rank
def test_identical_images_give_zero_and_a_shift_more(shape):
    mode = ["bilinear", "trilinear"][len(shape) - 2]
    smooth = functional.interpolate(images(shape)[0], scale_factor=4, mode=mode)
    curve = {shift: MIND()(smooth.roll(shift, -1), smooth).item() for shift in (-4, -1, 0, 1, 4)}
    assert curve[0] == 0
    assert min(curve[1], curve[-1]) > 0
    assert curve[1] < curve[4]
    assert curve[-1] < curve[-4]


@each_rank
def test_gradient_of_mind(shape):
    i, j = images(shape)
    direction = torch.randn(i.shape, generator=torch.Generator().manual_seed(2), dtype=i.dtype)
    i.requires_grad_()
    mind = MIND(1, 1)
    mind(i, j).backward()
    step = 1e-6
    with torch.no_grad():
        change = (mind(i + step * direction, j) - mind(i - step * direction, j)) / (2 * step)
    assert (i.grad * direction).sum().item() == pytest.approx(change.item(), rel=1e-5)
    assert j.grad is None


def test_flat_images_give_a_number():
    flat = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    loss = MIND()(flat, images((8, 8), dtype=torch.float32)[0])
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(flat.grad).all()


def test_errors():
    with pytest.raises(ValueError, match="one channel, not 2"):
        MIND()(torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match="give radius"):
        MIND(radius=-1)
