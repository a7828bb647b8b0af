"""Every similarity by its name: label and colour, default λ, class, and what it needs.

A new similarity is one module, one record here, and a line in a profile. torch is loaded only when one is built.
"""

import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SimilarityRecord:
    """Properties of a similarity that are known without importing it.

    label, color: in figures. loss: "module:Class". lam: default weight λ of the regulariser in `register`, or None;
    or a pair of them, for planes and for volumes.
    options: arguments of the class. extractor: the kind of network whose outputs it compares, or None.
    needs_labels: it also compares labels, so it only trains networks.
    """

    label: str
    color: str
    loss: str
    lam: float | tuple[float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    extractor: str | None = None
    needs_labels: bool = False


_DEEPSIM, _CLASSES = "deepsimreg.losses.deepsim:DeepSim", "deepsimreg.losses.classes:ClassProbabilities"
_CORRELATED = "deepsimreg.losses.features:FeatureCorrelation"
_NCC, _SUPERVISED = "deepsimreg.losses.ncc:NCC", "deepsimreg.losses.supervised:SupervisedNCC"

# λ is the papers' for hippocampus-mr, and for platelet-em with VGG; those of nmi, classes-seg and further NCC are ours.
# nmi: of .05, .1 and .2 the best on 15 validation pairs of hippocampus-mr; at .2 a phantom's true warp costs too much.
# ncc-25, the default of `register`: 5 × 5 pixels, with a sign, and 3 × 3 × 3 voxels, without; chosen, with its λ, on
# pairs of t98g-phase and vnc-em, and of hippocampus-mr, that are not test pairs.
SIMILARITIES: dict[str, SimilarityRecord] = {
    "mse": SimilarityRecord("MSE", "#E69F00", "deepsimreg.losses.mse:MSE", 0.08),
    "ncc": SimilarityRecord("NCC", "#56B4E9", _NCC, 1.0),
    "ncc-3": SimilarityRecord("NCC (window 3)", "#00305E", _NCC, 1.0, {"window": 3}),
    "ncc-25": SimilarityRecord(
        "NCC (25 voxels)", "#5B7FA6", _NCC, (1.5, 0.8), {"window": (5, 3), "signed": (True, False)}
    ),
    "ncc-sup": SimilarityRecord("NCC + labels", "#0072B2", _SUPERVISED, needs_labels=True),
    "ncc-dice": SimilarityRecord(
        "NCC + label Dice", "#004D40", _SUPERVISED, options={"overlap": "dice"}, needs_labels=True
    ),
    "nmi": SimilarityRecord("NMI", "#A68A00", "deepsimreg.losses.nmi:NMI", 0.1),
    "mind": SimilarityRecord("MIND", "#CC79A7", "deepsimreg.losses.mind:MIND", 0.25),
    "vgg": SimilarityRecord("VGG", "#000000", _DEEPSIM, 1.0, extractor="vgg"),
    "deepsim-ae": SimilarityRecord("DeepSim (AE)", "#009E73", _DEEPSIM, 0.25, extractor="ae"),
    "deepsim-seg": SimilarityRecord("DeepSim (seg)", "#D55E00", _DEEPSIM, 0.5, extractor="seg"),
    "ncc-ae": SimilarityRecord("NCC + features (AE)", "#66A61E", _CORRELATED, (1.0, 0.5), extractor="ae"),
    "ncc-seg": SimilarityRecord("NCC + features (seg)", "#7570B3", _CORRELATED, (1.0, 0.5), extractor="seg"),
    "classes-seg": SimilarityRecord("Classes (seg)", "#8B5A2B", _CLASSES, 0.015, extractor="seg"),
}

DEFAULT = "ncc-25"  # of `register`


def record(name: str) -> SimilarityRecord:
    """The record of that name. ValueError lists the names there are."""
    if name not in SIMILARITIES:
        raise ValueError(f"unknown similarity '{name}'; there is: {', '.join(SIMILARITIES)}")
    return SIMILARITIES[name]


def build_similarity(name: str, extractors: Mapping[str, object] | None = None, **options):
    """The similarity called `name`, made with `options`; `extractors` maps "seg", "ae", "vgg" to networks.

    Raises ValueError for an unknown name and for a missing extractor, TypeError for an unknown option.
    """
    known, extractors = record(name), extractors or {}
    kind = known.extractor
    if kind and kind not in extractors:
        raise ValueError(
            f"{name} needs the feature extractor '{kind}': train one in the chapter 02_feature_extractor and pass "
            f"extractors={{'{kind}': network}}"
        )
    network = [extractors[kind]] if kind else []
    return pkgutil.resolve_name(known.loss)(*network, **{**known.options, **options})


def similarity_terms(similarity: str | Mapping[str, float]) -> dict[str, float]:
    """Weight of each similarity of a sum: "deepsim-seg + 0.5 mind" or {"deepsim-seg": 1, "mind": 0.5}.

    Raises ValueError for an unknown name, a name that occurs twice, and a weight that is not a positive number.
    """
    if isinstance(similarity, str):
        parts = [part.split() for part in similarity.split("+")]
        if not all(0 < len(part) < 3 for part in parts):
            raise ValueError(f"similarity is {similarity!r}: write names, or sums such as 'deepsim-seg + 0.5 mind'")
        pairs = [(part[-1], part[0] if len(part) == 2 else 1.0) for part in parts]
    elif isinstance(similarity, Mapping) and similarity:
        pairs = list(similarity.items())
    else:
        raise ValueError(
            f"similarity is {similarity!r}: give a name, a sum such as 'ncc + 0.5 mind', or {{name: weight}}"
        )
    terms = {}
    for name, weight in pairs:
        record(name)
        try:
            value = float(weight)
        except (TypeError, ValueError):
            value = float("nan")
        if not 0 < value < math.inf or name in terms:
            raise ValueError(f"similarity is {similarity!r}: give each name once, with a positive weight")
        terms[name] = value
    return terms


def parse_similarity(similarity: str | Mapping[str, float], extractors: Mapping[str, object] | None = None):
    """The similarity, or weighted sum, that `similarity_terms` reads; errors as there and as `build_similarity`."""
    from deepsimreg.losses.base import WeightedSum

    terms = similarity_terms(similarity)
    built = [build_similarity(name, extractors) for name in terms]
    return built[0] if list(terms.values()) == [1.0] else WeightedSum(built, list(terms.values()))


def default_lam(similarity: str | Mapping[str, float], ndim: int) -> float:
    """λ of a similarity of images with `ndim` axes; of a sum: the weighted sum of the records' λ.

    Raises ValueError for a Similarity object, and for a name whose record has no λ.
    """
    if not isinstance(similarity, str | Mapping):
        raise ValueError("give lam, the weight of the regulariser, with a similarity of your own")
    terms = similarity_terms(similarity)
    known = {name: record(name).lam for name in terms}
    missing = [name for name, lam in known.items() if lam is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} has no default weight of the regulariser: give lam")
    one = {name: lam[ndim - 2] if isinstance(lam, tuple) else lam for name, lam in known.items()}
    return sum(weight * one[name] for name, weight in terms.items())


def required_extractors(names: Iterable[str]) -> list[str]:
    """The kinds of extractors that these similarities need, each once."""
    return list(dict.fromkeys(kind for name in names if (kind := record(name).extractor)))
