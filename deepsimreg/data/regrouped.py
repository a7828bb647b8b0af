"""A dataset some of whose classes are not told apart, or not told at all: an extractor is to do without them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from deepsimreg.data.base import Dataset, LazySequence, Pair, Sample


class Regrouped(Dataset):
    """The images of a dataset with other labels: class k is the k-th group of its classes, all others are background.

    groups: names of classes. ValueError for one that the dataset does not have.
    """

    def __init__(self, dataset: Dataset, groups: Sequence[Sequence[str]]):
        self.whole, self.spacing, self.shape = dataset, dataset.spacing, dataset.shape
        self.name, self.licence, self.citation = dataset.name, dataset.licence, dataset.citation
        self.classes = (dataset.classes[0], *(" + ".join(group) for group in groups))
        self.description = f"{dataset.description}; told apart: {', '.join(self.classes)}"
        self.indices = torch.zeros(256, dtype=torch.uint8)
        for index, group in enumerate(groups, start=1):
            self.indices[[dataset.classes.index(name) for name in group]] = index
        first = (dataset.classes.index(group[0]) for group in groups)
        self.colors = (dataset.colors[0], *(dataset.colors[index] for index in first))

    def samples(self, split: str) -> Sequence[Sample]:
        return LazySequence(self.whole.samples(split), self._sample)

    def pairs(self, split: str) -> Sequence[Pair]:
        return LazySequence(self.whole.pairs(split), self._pair)

    def fingerprint(self) -> str:
        return self.whole.fingerprint()

    def _sample(self, sample: Sample) -> Sample:
        return replace(sample, label=self.indices[sample.label.long()])

    def _pair(self, pair: Pair) -> Pair:
        return replace(pair, moving=self._sample(pair.moving), fixed=self._sample(pair.fixed))
