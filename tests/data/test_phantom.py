"""The phantom: its displacement is the exact answer, and everything follows from its seed."""

import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter

from deepsimreg.data import SPLITS, load_dataset
from deepsimreg.warps import jacobian_determinant, warp_labels

SMALL = {
    "phantom-2d": {"shape": (48, 40), "train": 3, "validation": 1, "test": 2},
    "phantom-3d": {"shape": (32, 32, 24), "train": 2, "validation": 1, "test": 1},
}


@pytest.mark.parametrize("name", SMALL)
def test_phantom_keeps_the_contract(name):
    data = load_dataset(name, **SMALL[name])
    assert data.name == name
    assert len(data.classes) == len(data.colors) == len(data.materials)
    assert data.ndim == len(data.shape) == len(data.spacing)
    for split in SPLITS:
        pairs = data.pairs(split)
        assert len(pairs) == SMALL[name][split]
        images = [sample for pair in pairs for sample in (pair.moving, pair.fixed)]
        assert [sample.name for sample in data.samples(split)] == [sample.name for sample in images]
        for sample in images:
            assert sample.image.shape == sample.label.shape == (1, *data.shape)
            assert (sample.image.dtype, sample.label.dtype) == (torch.float32, torch.uint8)
            assert sample.image.isfinite().all()
            assert 0 <= sample.image.min() < sample.image.max() <= 1
            assert sample.label.max() < len(data.classes)


@pytest.mark.parametrize("name", SMALL)
def test_phantom_displacement_is_the_exact_answer(name):
    """Nearest warping of the moving label is wrong only beside a boundary; by -u it is worse than nothing."""
    for pair in load_dataset(name).pairs("test")[:2]:
        displacement = pair.displacement[None]
        moving, fixed = pair.moving.label[None], pair.fixed.label[None]
        boundary = maximum_filter(fixed[0, 0], 3) != minimum_filter(fixed[0, 0], 3)
        before, after, opposite = (
            (label != fixed)[0, 0].numpy() & ~boundary
            for label in (moving, warp_labels(moving, displacement), warp_labels(moving, -displacement))
        )
        assert 10 * after.mean() < before.mean() < opposite.mean()


@pytest.mark.parametrize("name", SMALL)
def test_phantom_displacement_is_large_and_invertible_and_stays_on_the_grid(name):
    data = load_dataset(name, **SMALL[name] | {"train": 10})
    grid = torch.stack(torch.meshgrid(*map(torch.arange, data.shape), indexing="ij"))
    last = torch.tensor(data.shape).view(-1, *[1] * data.ndim) - 1
    for pair in data.pairs("train"):
        u = pair.displacement
        assert jacobian_determinant(u[None]).min() > 0.1
        assert 0.04 * min(data.shape) < u.norm(dim=0).max() <= data.displacement * min(data.shape)
        assert (grid + u > -0.01).all()
        assert (grid + u < last + 0.01).all()


def test_phantom_follows_from_its_seed():
    first, again = (load_dataset("phantom-2d", **SMALL["phantom-2d"], seed=3) for _ in range(2))
    other = load_dataset("phantom-2d", **SMALL["phantom-2d"], seed=4)
    pair, same = first.pairs("train")[1], again.pairs("train")[1]
    assert torch.equal(pair.fixed.image, same.fixed.image)
    assert torch.equal(pair.displacement, same.displacement)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    scenes = [data.pairs(s)[0].moving.label for data in (first, other) for s in ("train", "test")]
    assert not any(torch.equal(a, b) for i, a in enumerate(scenes) for b in scenes[:i])


def test_phantom_light_and_noise_are_drawn_for_each_image():
    """With no displacement both labels agree; what is left between the images has the SD of two noises."""
    options = SMALL["phantom-2d"] | {"displacement": 0.0, "illumination": 0.0}
    quiet, noisy = (load_dataset("phantom-2d", **options, noise=noise).pairs("test")[0] for noise in (0, 0.1))
    assert torch.equal(noisy.moving.label, noisy.fixed.label)
    texture = (quiet.moving.image - quiet.fixed.image).var()
    both = (noisy.moving.image - noisy.fixed.image).var()
    assert (both - texture).item() == pytest.approx(2 * 0.1**2, rel=0.15)


@pytest.mark.parametrize("options", [{"shape": (96,)}, {"shape": (8, 96)}, {"noise": -1}, {"displacement": 0.5}])
def test_phantom_refuses_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        load_dataset("phantom-2d", **options)
