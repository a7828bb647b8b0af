"""Feature extractors: how each kind is trained, tested and loaded."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepsimreg.data.base import Dataset, LazySequence, Sample
from deepsimreg.data.regrouped import Regrouped
from deepsimreg.metrics import segmentation_metrics
from deepsimreg.models.registry import EXTRACTORS
from deepsimreg.models.store import load_model
from deepsimreg.models.vgg import load_vgg
from deepsimreg.paper.files import read_json
from deepsimreg.paper.outputs import device, write_sample, write_table
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.resolve import FIXED_EXTRACTORS
from deepsimreg.paper.run import Run
from deepsimreg.paper.settings import ExtractorPart
from deepsimreg.paper.training import Trained, mean_dice, trained
from deepsimreg.paths import PROJECT


class SegmentationTraining(Trained):
    """U-Net, cross-entropy; keeps the weights of the highest validation Dice."""

    best_metric, best_is_highest = "validation_dice", True
    outputs = staticmethod(lambda dataset: len(dataset.classes))  # channels of the network

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.network(batch["image"]).float()
        label = batch["label"][:, 0].long()
        terms = {"loss": functional.cross_entropy(logits, label)}
        if not self.training:
            terms["dice"] = mean_dice(logits.argmax(1, keepdim=True), batch["label"], logits.shape[1])
        return terms

    @staticmethod
    def tested(output: Tensor, sample: Sample, classes: Sequence[str]) -> tuple[Tensor, dict[str, float]]:
        """The segmentation (1, 1, *spatial), uint8, and its Dice per class and pixel accuracy."""
        segmentation = output.argmax(1, keepdim=True).to(torch.uint8)
        return segmentation, segmentation_metrics(segmentation, sample.label[None], classes)


class ReconstructionTraining(Trained):
    """Autoencoder, mean squared error; keeps the weights of the lowest validation error."""

    best_metric, best_is_highest = "validation_loss", False
    outputs = staticmethod(lambda dataset: 1)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": functional.mse_loss(self.network(batch["image"]).float(), batch["image"])}

    @staticmethod
    def tested(output: Tensor, sample: Sample, classes: Sequence[str]) -> tuple[Tensor, dict[str, float]]:
        """The reconstruction (1, 1, *spatial), and its mean squared and absolute error."""
        error = output - sample.image[None].to(output.device)
        squared, absolute = error.square().mean().item(), error.abs().mean().item()
        return output, {"mean_squared_error": squared, "mean_absolute_error": absolute}


TRAININGS: dict[str, type[Trained]] = {"seg": SegmentationTraining, "ae": ReconstructionTraining}  # by kind


def extractor_training(settings: ExtractorPart, dataset: Dataset) -> Trained:
    """A fresh extractor and how it is trained."""
    training = TRAININGS[settings.kind]
    network = EXTRACTORS[settings.kind](dataset.ndim, training.outputs(dataset), **settings.network)
    return training(network, settings.fit)


def source_data(plan: Profile, run: Run) -> Dataset:
    """The dataset that an extractor is trained on: the run's own, or the source that the profile names, with the
    classes that it is taught.
    """
    (source,) = run.data
    taught = run.settings.taught
    return Regrouped(plan.data(source), taught) if taught else plan.data(source)


def train_extractor(run: Run, dataset: Dataset) -> tuple[nn.Module, pd.DataFrame]:
    """Train, resume or load a feature extractor on its dataset (`source_data`).

    Returns the network of the best validation in evaluation mode, and its metrics by step.
    """
    with run.open():
        network, history = trained(run, *extractor_parts(run, dataset), EXTRACTORS[run.settings.kind], dataset)
        if not run.current:
            run.finish(**read_json(run.folder / "training.json"))
    return network, history


def extractor_parts(run: Run, dataset: Dataset) -> tuple[Callable[[], Trained], Callable[[str], Sequence[Sample]]]:
    """What `fit` needs: how the training is made, and split → its samples."""

    def items(split: str) -> Sequence[Sample]:
        samples = dataset.samples(split)
        return samples if split != "train" else fraction_of(samples, run.settings.labels)

    return partial(extractor_training, run.settings, dataset), items


def fraction_of(samples: Sequence[Sample], fraction: float) -> Sequence[Sample]:
    """A fraction of the samples, at least one, drawn with a fixed seed: a smaller one is part of a larger one."""
    if fraction == 1:
        return samples
    order = random.Random(0).sample(range(len(samples)), len(samples))
    return LazySequence(order[: max(1, round(fraction * len(samples)))], samples.__getitem__)


def load_extractor(plan: Profile, dataset: str, name: str, kind: str | None = None) -> nn.Module:
    """A trained extractor by its name in the profile, or by the folder of a run (a name with "/").

    kind: that is expected; None: any. SettingsError if its run has not ended and the profile makes no runs on demand;
    WeightsError if VGG's weights are missing, or if the folder holds another network.
    """
    if name in FIXED_EXTRACTORS:
        return load_vgg()
    own = PROJECT / name / "weights.safetensors" if "/" in name else None
    path = own or plan.extractor(dataset, name).need().weights
    return load_model(path, EXTRACTORS.get(kind))


@torch.no_grad()
def evaluate_extractor(network: nn.Module, kind: str, dataset: Dataset, folder: Path | None = None) -> pd.DataFrame:
    """Run an extractor on the test images, on a GPU if there is one; its segmentations or reconstructions go to
    `folder` as image files.

    Returns one row per image: Dice per class and pixel accuracy (seg), or mean squared and absolute error (ae).
    """
    rows = []
    network = network.to(device())
    for sample in dataset.samples("test"):
        output, metrics = TRAININGS[kind].tested(network(sample.image[None].to(device())), sample, dataset.classes)
        rows.append({"image": sample.name, **metrics})
        if folder is not None:
            write_sample(folder / sample.name, output[0, 0], sample)
    table = pd.DataFrame(rows)
    if folder is not None:
        write_table(table, folder / "images.csv")
    network.cpu()
    return table
