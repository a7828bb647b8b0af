"""The methods without training that everything is compared with; `optimisers.py` runs them."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

SYN_ITERATIONS, GREEDY_ITERATIONS = (40, 20, 0), (100, 50, 30)  # on each resolution, coarse to fine
SYN, GREEDY = "SyN, smoothing of a step (flow_sigma)", "greedy, smoothing of the warp in voxels (of a step: twice that)"


@dataclass(frozen=True)
class Baseline:
    """A method without training.

    label, color: of figures. place: "module:function" that registers a pair. smoothing: default of its one tuned
    number. tuned: what that number is. iterations: its default. extractor: kind whose features it compares, too.
    """

    label: str
    color: str
    place: str
    smoothing: float
    tuned: str
    iterations: tuple[int, ...]
    extractor: str | None = None

    @property
    def module(self) -> str:
        return self.place.partition(":")[0]

    @property
    def register(self) -> Callable:
        """(moving, fixed, spacing, extractor=…, smoothing=…) → displacement; imported when it is asked for."""
        return pkgutil.resolve_name(self.place)


def _syn(label: str, color: str, extractor: str | None = None) -> Baseline:
    return Baseline(label, color, "deepsimreg.paper.optimisers:syn", 3.0, SYN, SYN_ITERATIONS, extractor)


def _greedy(label: str, color: str, extractor: str | None = None) -> Baseline:
    return Baseline(label, color, "deepsimreg.paper.optimisers:greedy", 1.0, GREEDY, GREEDY_ITERATIONS, extractor)


BASELINES: dict[str, Baseline] = {
    "syn": _syn("SyN", "#4D4D4D"),
    "syn-deepsim-ae": _syn("SyN + AE features", "#009E73", "ae"),
    "syn-deepsim-seg": _syn("SyN + seg features", "#D55E00", "seg"),
    "greedy": _greedy("greedy", "#4D4D4D"),
    "greedy-deepsim-ae": _greedy("greedy + AE features", "#009E73", "ae"),
    "greedy-deepsim-seg": _greedy("greedy + seg features", "#D55E00", "seg"),
}
