"""What the fuzz tests share: how many cases there are, images of every kind, and bytes that were damaged.

`make test` draws the same few cases each time. All 100,000: FUZZ=long pytest tests/fuzz -n 1 (a worker shows a crash).
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONG = os.environ.get("FUZZ") == "long"
HANGING = 120  # s, after which a case of the long run ends the process with its traceback
common = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("test", derandomize=True, **common)
settings.register_profile("long", **common)
settings.load_profile("long" if LONG else "test")


def cases(short: int, long: int) -> settings:
    """How many cases a test draws in `make test`, and in the long run."""
    return settings(max_examples=long if LONG else short)


TOKENS = [
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\x00",
    b"\x00\x00\x80\x7f",
    b"\x00\x00\xc0\x7f",
]
TOKENS += [
    b"nan",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"1e999",
    b"\n",
    b" ",
    b",",
    b'"',
    b"{",
    b"[",
    b"&a *a",
    b"\xe9",
]


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """The bytes of a file, cut short, or up to three of its places overwritten, zeroed, put in or taken out."""
    if draw(st.integers(0, 4)) == 0:
        return whole[: draw(st.integers(0, len(whole) - 1))]
    for _ in range(draw(st.integers(1, 3))):
        end = min(len(whole), draw(st.sampled_from([64, 400, len(whole)])))
        at, what = (
            draw(st.integers(0, max(0, end - 1))),
            draw(st.sampled_from(["set", "flip", "zero", "insert", "take"])),
        )
        token = draw(st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=8)))
        if what == "flip":
            token = bytes(b ^ 1 << draw(st.integers(0, 7)) for b in whole[at : at + 1])
        elif what == "zero":
            token = bytes(draw(st.integers(1, 64)))[: len(whole) - at]
        left = at + (0 if what == "insert" else draw(st.integers(1, 64)) if what == "take" else len(token))
        whole = whole[:at] + (b"" if what == "take" else token) + whole[left:]
    return whole


spaces = st.one_of(  # sizes of planes and volumes, of one voxel and more
    st.tuples(*[st.integers(1, 9)] * 2),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from([(1, 1), (1, 17), (1, 1, 1)]),
)
