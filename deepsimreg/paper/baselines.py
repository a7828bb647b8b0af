"""The methods without training that everything is compared with; `optimisers.py` runs them."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

SYN_ITERATIONS, GREEDY_ITERATIONS = (40, 20, 0), (100, 50, 30)  # on each resolution, coarse to fine
CONVEXADAM_ITERATIONS = (80,)
SYN, GREEDY = "SyN, smoothing of a step (flow_sigma)", "greedy, smoothing of the warp in voxels (of a step: twice that)"


@dataclass(frozen=True)
class Baseline:
    """A method without training."""

    place: str  # "module:function" that registers a pair
    smoothing: float  # default of its one tuned number
    tuned: str  # what that number is
    iterations: tuple[int, ...]  # default
    label: str  # in figures
    color: str
    extractor: str | None = None  # kind whose features it compares, too
    planes: bool = True  # whether it registers them, too, or volumes alone

    @property
    def module(self) -> str:
        return self.place.partition(":")[0]

    @property
    def register(self) -> Callable:
        """(moving, fixed, spacing, extractor=…, smoothing=…) → displacement; imported when it is asked for."""
        return pkgutil.resolve_name(self.place)


_SYN = partial(Baseline, "deepsimreg.paper.optimisers:syn", 3.0, SYN, SYN_ITERATIONS)
_GREEDY = partial(Baseline, "deepsimreg.paper.optimisers:greedy", 1.0, GREEDY, GREEDY_ITERATIONS)

BASELINES: dict[str, Baseline] = {
    "syn": _SYN("SyN", "#4D4D4D"),
    "syn-deepsim-ae": _SYN("SyN + AE features", "#009E73", "ae"),
    "syn-deepsim-seg": _SYN("SyN + seg features", "#D55E00", "seg"),
    "greedy": _GREEDY("greedy", "#4D4D4D"),
    "greedy-deepsim-ae": _GREEDY("greedy + AE features", "#009E73", "ae"),
    "greedy-deepsim-seg": _GREEDY("greedy + seg features", "#D55E00", "seg"),
    "convexadam": Baseline(
        "deepsimreg.paper.optimisers:convexadam",
        1.25,
        "convexAdam, weight of the regulariser",
        CONVEXADAM_ITERATIONS,
        "convexAdam",
        "#4D4D4D",
        planes=False,
    ),
}
