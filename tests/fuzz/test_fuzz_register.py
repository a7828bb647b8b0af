"""Registration of tiny pairs of any size and grey values: a finite answer, the same each time, or a clear refusal."""

import numpy as np
import pytest
import torch
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from deepsimreg import register

SIMILARITIES = ["mse", "ncc", "ncc-25", "nmi", "mind", "ncc-25 + 0.5 mind", "deepsim-seg"]


@st.composite
def pairs(draw):
    space = draw(st.one_of(st.tuples(*[st.integers(1, 13)] * 2), st.tuples(*[st.integers(1, 9)] * 3)))
    made = []
    for _ in range(2):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        kind = draw(st.sampled_from(["noise", "noise", "spot", "plateaus", "constant"]))
        values = {
            "noise": lambda rng=rng: rng.random(space),
            "spot": lambda rng=rng: (np.arange(np.prod(space)) == rng.integers(np.prod(space))).reshape(space) * 1.0,
            "plateaus": lambda rng=rng: rng.integers(0, 3, space) / 2,
            "constant": lambda rng=rng: np.full(space, rng.random()),
        }[kind]()
        scale, offset = draw(st.sampled_from([1e-300, 1e-42, 1e-6, 1.0, 1.0, 255.0, 1e12, 1e30, 1e38, 1e300])), 0.0
        if draw(st.booleans()):
            offset = -scale / 2
        dtype = draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int16]))
        with np.errstate(all="ignore"):
            made.append((values * scale + offset).astype(dtype))
    return made


@cases(25, 1500)
@given(pairs(), st.sampled_from(SIMILARITIES), st.integers(0, 3), st.sampled_from([None, 0.0, 1e-3, 100.0]))
def test_a_registration_is_finite_and_repeats(pair, similarity, steps, lam):
    kwargs = {"steps": steps, "progress": False, "extractor": "random" if "deepsim" in similarity else None}
    thin = sum(side > 1 for side in pair[0].shape) < 2
    flat = any(len(np.unique(image.astype(np.float32))) == 1 for image in pair)
    beyond = any(not np.abs(image).max() <= 2.0**126 for image in pair)
    if thin or flat or beyond:
        with pytest.raises(ValueError, match=r"too thin|constant|float32|NaN"):
            register(*pair, similarity, lam, **kwargs)
        return
    found = register(*pair, similarity, lam, **kwargs)
    again = register(*pair, similarity, lam, **kwargs)
    assert torch.equal(found.displacement, again.displacement)
    for value in (found.displacement, found.moved, found.inverse, found.jacobian, torch.tensor(found.losses)):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("highest", [1e300, 3e38])
def test_grey_values_beyond_float32_are_refused(highest):
    image = np.linspace(-highest, highest, 100).reshape(10, 10)
    with pytest.raises(ValueError, match=r"moving .*float32"):
        register(image, image[::-1], progress=False)
