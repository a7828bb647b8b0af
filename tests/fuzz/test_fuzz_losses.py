"""Every similarity and the regulariser: finite for finite images, forward and backward, and the laws they state."""

import itertools

import numpy as np
import pytest
import torch
from fuzzing import cases, spaces
from hypothesis import given
from hypothesis import strategies as st

from deepsimreg.losses import SIMILARITIES, Alignment, build_similarity, diffusion
from deepsimreg.models.registry import EXTRACTORS

GREY = ("mind", "vgg", "deepsim-ae", "deepsim-seg", "ncc-ae", "ncc-seg", "classes-seg")  # one channel only
SYMMETRIC = ("mse", "ncc", "ncc-3", "ncc-25", "ncc-sup", "mind", "deepsim-ae", "deepsim-seg", "classes-seg")
SCALES = (0.0, 1e-42, 1e-20, 1e-6, 1.0, 255.0, 1e6, 1e12)
BOUND = {"mse": np.inf, "ncc-25": 2, "nmi": 1, "mind": 1, "ncc": 1, "ncc-3": 1, "ncc-sup": 1}  # others: 2
WEIGHTS = ("none", "ones", "zeros", "some", "graded")


def build(name: str, ndim: int):
    """A similarity whose network was never trained."""
    kind = SIMILARITIES[name].extractor
    if kind == "vgg":
        return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {"ndim": ndim, "channels": (4, 8, 8), "out_channels": 3 if kind == "seg" else 1}
        network = {kind: EXTRACTORS[kind](**options).eval()} if kind else None
        return build_similarity(name, network).eval()


BUILT = {(name, ndim): one for name in SIMILARITIES for ndim in (2, 3) if (one := build(name, ndim)) is not None}
EACH = pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in BUILT))


@st.composite
def images(draw, shape, values=SCALES):
    """An image: noise, plateaus, a constant, a ramp, one bright voxel, of any scale and offset; float32 or float64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind, size = draw(st.sampled_from(["noise", "plateaus", "constant", "ramp", "spot"])), int(np.prod(shape))
    found = {
        "noise": lambda: rng.random(shape),
        "plateaus": lambda: rng.integers(0, 3, shape) / 2,
        "constant": lambda: np.full(shape, rng.random()),
        "ramp": lambda: np.linspace(0, 1, size).reshape(shape),
        "spot": lambda: (np.arange(size) == rng.integers(size)).reshape(shape).astype(float),
    }[kind]()
    found = found * draw(st.sampled_from(values)) + draw(st.sampled_from([0.0, 0.0, 1.0])) * max(values)
    return torch.from_numpy(found).float()


@st.composite
def weights(draw, shape):
    kind = draw(st.sampled_from(WEIGHTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    one = (draw(st.sampled_from([1, shape[0]])), 1, *shape[2:])
    made = {"ones": np.ones(one), "zeros": np.zeros(one), "some": rng.random(one) > 0.5, "graded": rng.random(one)}
    return None if kind == "none" else torch.from_numpy(made[kind].astype(np.float32))


@st.composite
def situations(draw, name, values=SCALES):
    """Two images of one shape, weights or None, and the similarity."""
    space = draw(spaces)
    shape = (draw(st.integers(1, 2)), 1 if name in GREY else draw(st.integers(1, 2)), *space)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    pair = [draw(images(shape, values)).to(dtype) for _ in range(2)]
    return BUILT[name, len(space)], *pair, draw(weights(shape))


@EACH
@cases(12, 1250)
@given(st.data())
def test_a_similarity_is_finite_and_so_is_its_gradient(name, data):
    similarity, moved, fixed, weight = data.draw(situations(name))
    moved.requires_grad_()
    loss = similarity(moved, fixed, weight)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    (slope,) = torch.autograd.grad(loss, moved)
    assert torch.isfinite(slope).all()


@EACH
@cases(8, 750)
@given(st.data())
def test_a_comparison_has_a_finite_gradient_by_the_displacement(name, data):
    similarity, moving, fixed, _ = data.draw(situations(name, (0.0, 1e-42, 1e-3, 0.5, 1.0)))
    moving, fixed = moving.clamp(0, 1), fixed.clamp(0, 1)
    shape = moving.shape
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    scale = data.draw(st.sampled_from([0.0, 0.3, 5.0, 1e6, 1e30, 3e38]))
    u = (torch.rand(shape[0], len(shape) - 2, *shape[2:], generator=rng) * 2 - 1) * scale
    u.requires_grad_()
    given_weights = [data.draw(weights(shape)) for _ in range(2)]
    given_weights = [None if w is None else w.expand(shape[0], *w.shape[1:]) for w in given_weights]
    labels = [torch.randint(0, 3, (shape[0], 1, *shape[2:]), generator=rng) for _ in range(2)]
    loss = similarity.compare(Alignment(moving, fixed, u, *labels, 3, *given_weights))
    assert torch.isfinite(loss)
    if loss.requires_grad:
        (slope,) = torch.autograd.grad(loss, u)
        assert torch.isfinite(slope).all()


@EACH
@cases(8, 400)
@given(st.data())
def test_a_similarity_keeps_to_its_bounds_and_an_image_is_most_like_itself(name, data):
    similarity, moved, fixed, weight = data.draw(situations(name, (0.0, 0.1, 1.0)))
    counts = weight is None or (weight.expand(len(moved), *weight.shape[1:]).flatten(1).sum(1) > 0).all()
    loss, least = (similarity(one, fixed, weight).item() for one in (moved, fixed))
    if name == "mind":
        least = similarity(fixed, fixed, weight).item()
    bound = BOUND.get(name, 2)
    assert -1e-5 <= loss <= bound + 1e-5 or (name == "nmi" and not counts)
    if name in ("mse", "mind", "classes-seg"):
        assert abs(least) < 1e-6
    if name in SYMMETRIC:
        assert similarity(fixed, moved, weight).item() == pytest.approx(loss, rel=1e-4, abs=1e-5)
    if weight is None:
        ones = torch.ones(1, 1, *moved.shape[2:])
        assert similarity(moved, fixed, ones).item() == pytest.approx(loss, rel=1e-4, abs=1e-5)


def textured(space, seed, channels=1):
    """Noise in [0, 1]: each window has texture."""
    return torch.rand(1, channels, *space, generator=torch.Generator().manual_seed(seed))


textures = st.tuples(st.sampled_from([(9, 10), (7, 12), (6, 7, 8), (9, 5, 6)]), st.integers(0, 2**32 - 1))


@EACH
@cases(6, 400)
@given(textures, st.floats(0.0, 1.0))
def test_a_textured_image_is_most_like_itself(name, texture, mixed):
    space, seed = texture
    image, other = textured(space, seed), textured(space, seed ^ 1)
    similarity = BUILT[name, len(space)]
    other = (1 - mixed) * image + mixed * other
    alike, unlike = similarity(image, image).item(), similarity(other, image).item()
    if name != "nmi":  # windows overlap, so an image is near 0 from itself and not least
        assert alike == pytest.approx(
            0, abs=2e-3 if name in ("deepsim-ae", "deepsim-seg", "ncc-ae", "ncc-seg") else 1e-4
        )
        assert alike <= unlike + 1e-4


@pytest.mark.parametrize("name", ["ncc", "ncc-3", "ncc-25", "mind"])
@cases(6, 1000)
@given(textures, st.floats(0.2, 5), st.floats(-3, 3), st.booleans())
def test_what_is_linear_in_the_grey_values_is_alike(name, texture, factor, offset, negative):
    space, seed = texture
    image, other = textured(space, seed), textured(space, seed ^ 1)
    blind = name in ("ncc", "ncc-3", "mind") or (name == "ncc-25" and len(space) == 3)
    factor = -factor if negative and blind else factor
    similarity = BUILT[name, len(space)]
    changed = similarity(factor * other + offset, image).item()
    assert changed == pytest.approx(similarity(other, image).item(), abs=2e-3)


@pytest.mark.parametrize("name", ["mse", "ncc", "ncc-3", "ncc-25", "mind", "nmi"])
@cases(6, 750)
@given(textures, st.integers(0, 2**32 - 1))
def test_where_weights_are_0_nothing_counts(name, texture, seed):
    space, similarity = texture[0], BUILT[name, len(texture[0])]
    moved, fixed = textured(space, texture[1]).requires_grad_(), textured(space, texture[1] ^ 1)
    weight = (textured(space, seed) > 0.4).float()
    changed = torch.where(weight > 0, fixed, textured(space, seed ^ 1) * 1e3)
    loss = similarity(moved, fixed, weight)
    assert similarity(moved, changed, weight).item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    (slope,) = torch.autograd.grad(loss, moved)
    assert not slope[weight == 0].any()


@cases(30, 2000)
@given(spaces, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-42, 1e-6, 1.0, 1e12]), st.booleans())
def test_the_regulariser_is_what_its_equation_says(space, seed, scale, placed):
    field = (np.random.default_rng(seed).normal(size=(2, len(space), *space)) * scale).astype(np.float32)
    spacing = [0.5, 1.0, 3.0][: len(space)] if placed else [1.0] * len(space)
    u = torch.from_numpy(field).requires_grad_()
    value = diffusion(u, spacing if placed else None)
    wanted = 0.0
    for axis, component in itertools.product(range(len(space)), repeat=2):
        steps = np.diff(field[:, component].astype(float), axis=1 + axis) * spacing[component] / spacing[axis]
        wanted += np.square(steps).mean() / len(space) ** 2 if steps.size else 0
    assert value.item() == pytest.approx(wanted, rel=1e-4, abs=1e-37)
    (slope,) = torch.autograd.grad(value, u)
    assert torch.isfinite(slope).all()
    assert abs(slope.double().sum()) <= 1e-4 * slope.abs().sum() + 1e-37
    assert diffusion(torch.full_like(u, 3.0)).item() == 0
