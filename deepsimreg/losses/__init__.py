"""Similarities and regularisers, and the one place where the name of a similarity becomes an object.

A similarity is a `Similarity`: forward(moved, fixed) -> scalar loss, for images (N, C, *spatial); less is more
similar. A new one is one line in `SIMILARITIES`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from deepsimreg.losses.base import Alignment, Similarity, WeightedSum
from deepsimreg.losses.classes import ClassProbabilities
from deepsimreg.losses.deepsim import DeepSim, FeatureFunction
from deepsimreg.losses.mind import MIND
from deepsimreg.losses.mse import MSE
from deepsimreg.losses.ncc import NCC
from deepsimreg.losses.nmi import NMI
from deepsimreg.losses.regularisers import diffusion
from deepsimreg.losses.supervised import SupervisedNCC

__all__ = [
    "MIND",
    "MSE",
    "NCC",
    "NMI",
    "SIMILARITIES",
    "Alignment",
    "ClassProbabilities",
    "DeepSim",
    "FeatureFunction",
    "Similarity",
    "SupervisedNCC",
    "WeightedSum",
    "build_similarity",
    "diffusion",
    "parse_similarity",
    "required_extractor",
    "required_extractors",
    "similarity_terms",
]


@dataclass(frozen=True)
class Factory:
    """Makes a similarity: `loss(**options)`, or `loss(network, **options)` if it needs an extractor."""

    loss: Callable[..., Similarity]
    extractor: str | None = None

    @property
    def needs_labels(self) -> bool:
        return getattr(self.loss, "func", self.loss).needs_labels

    def __call__(self, extractors: Mapping[str, object] | None = None, **options) -> Similarity:
        if self.extractor is None:
            return self.loss(**options)
        if self.extractor not in (extractors or {}):
            raise ValueError(
                f"{self.loss.__name__} needs the feature extractor {self.extractor!r}: train it with the "
                f"notebook 02_feature_extractor and pass extractors={{{self.extractor!r}: network}}"
            )
        return self.loss(extractors[self.extractor], **options)


SIMILARITIES: dict[str, Factory] = {
    "mse": Factory(MSE),
    "ncc": Factory(NCC),
    "ncc-3": Factory(partial(NCC, window=3)),  # the smallest window: finer than the paper's
    "ncc-sup": Factory(SupervisedNCC),
    "nmi": Factory(NMI),
    "mind": Factory(MIND),
    "vgg": Factory(DeepSim, extractor="vgg"),
    "deepsim-ae": Factory(DeepSim, extractor="ae"),
    "deepsim-seg": Factory(DeepSim, extractor="seg"),
    "classes-seg": Factory(ClassProbabilities, extractor="seg"),
}


def build_similarity(name: str, extractors: Mapping[str, object] | None = None, **options) -> Similarity:
    """The similarity called `name`, made with `options`; `extractors` maps "seg", "ae", "vgg" to networks.

    Raises ValueError for an unknown name and for a missing extractor, TypeError for an unknown option.
    """
    return _factory(name)(extractors, **options)


def similarity_terms(similarity: str | Mapping[str, float]) -> dict[str, float]:
    """Weight of each similarity of a sum: "deepsim-seg + 0.5 mind" or {"deepsim-seg": 1, "mind": 0.5}.

    Raises:
        ValueError: an unknown name, a name twice, or a weight that is no positive number.
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
        _factory(name)
        try:
            value = float(weight)
        except ValueError:
            value = float("nan")
        if not 0 < value < math.inf or name in terms:
            raise ValueError(f"similarity is {similarity!r}: give each name once, with a positive weight")
        terms[name] = value
    return terms


def parse_similarity(
    similarity: str | Mapping[str, float], extractors: Mapping[str, object] | None = None
) -> Similarity:
    """The similarity, or weighted sum, that `similarity_terms` reads; errors as there and as `build_similarity`."""
    terms = similarity_terms(similarity)
    built = [build_similarity(name, extractors) for name in terms]
    return built[0] if list(terms.values()) == [1.0] else WeightedSum(built, list(terms.values()))


def required_extractors(names: Iterable[str]) -> list[str]:
    """The kinds of extractors that these similarities need."""
    kinds = [required_extractor(name) for name in names]
    return list(dict.fromkeys(kind for kind in kinds if kind))


def required_extractor(name: str) -> str | None:
    """Which extractor the similarity called `name` needs: "seg", "ae", "vgg" or None."""
    return _factory(name).extractor


def _factory(name: str) -> Factory:
    if name not in SIMILARITIES:
        raise ValueError(f"unknown similarity {name!r}; choose one of {', '.join(SIMILARITIES)}")
    return SIMILARITIES[name]
