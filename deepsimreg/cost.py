"""What a profile costs on this machine: every training timed over a few steps, times its length.

python -m deepsimreg.cost paper [--steps 2] [--voxels 500000]
python -m deepsimreg.cost --similarities 64 64 64       # of one image of that shape, forward and backward

Networks are fresh and images random, so nothing has to be fetched or trained before. Images of more voxels than the
limit are timed at a smaller size, and the seconds scaled by the number of voxels. Validation, evaluation and the
methods without training are not counted.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from deepsimreg.data import DATASETS
from deepsimreg.experiment import ExtractorSettings, Profile, RegistrationSettings, relative
from deepsimreg.losses import SIMILARITIES, Alignment, build_similarity, required_extractor
from deepsimreg.models import UNet, VGG16Features
from deepsimreg.stages import extractor_training, registration_training


@dataclass(frozen=True)
class Size:
    """What a network needs to know of a dataset."""

    shape: tuple[int, ...]
    classes: Sequence[str]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def voxels(self) -> int:
        return torch.Size(self.shape).numel()

    def below(self, voxels: int) -> "Size":
        """A size of the same proportions with no more than that many voxels, sides a multiple of 16."""
        factor = min(1.0, (voxels / self.voxels) ** (1 / self.ndim))
        return replace(self, shape=tuple(max(16, round(side * factor / 16) * 16) for side in self.shape))


def size_of(profile: Profile, dataset: str) -> Size:
    """Shape and classes of a dataset, without its files where they are known without."""
    nominal = DATASETS.get(dataset)
    if not hasattr(nominal, "shape"):
        nominal = profile.load(dataset)
    return Size(tuple(nominal.shape), tuple(nominal.classes))


def estimate(profile: Profile, steps: int = 2, voxels: int = 500_000) -> pd.DataFrame:
    """Seconds of every training of a profile.

    Args:
        profile: whose runs.
        steps: timed steps; the median counts, after one that is not counted.
        voxels: limit of the image that is timed.

    Returns:
        A row a training: run, steps, seconds_per_step, hours.
    """
    runs = [
        settings
        for dataset in profile.datasets
        for settings in [
            *profile.extractors(dataset),
            *profile.tunings(dataset),
            *profile.registrations(dataset),
            *profile.ablations(dataset),
        ]
    ]
    timed: dict[str, float] = {}
    rows = []
    for settings in tqdm(runs, desc="timing", unit="run"):
        # Seed, λ and length change nothing in the time of a step.
        key = repr((settings.dataset, settings.network, settings.fit.batch, settings.fit.accumulate, _what(settings)))
        if key not in timed:
            timed[key] = seconds_per_step(profile, settings, steps, voxels)
        hours = timed[key] * settings.fit.steps / 3600
        rows.append((relative(settings.folder), settings.fit.steps, timed[key], hours))
    return pd.DataFrame(rows, columns=["run", "steps", "seconds_per_step", "hours"])


def seconds_per_step(
    profile: Profile, settings: ExtractorSettings | RegistrationSettings, steps: int, voxels: int
) -> float:
    """Median seconds of an optimiser step of one training, scaled to the size of the dataset."""
    full = size_of(profile, getattr(settings, "source", "") or settings.dataset)
    size = full.below(voxels)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(settings, ExtractorSettings):
        module = extractor_training(settings, size)
        names = {"image": 1, "label": len(size.classes)}
    else:
        kind, extractors = required_extractor(settings.similarity), {}
        planned = profile.extractor_for(settings)
        if planned is not None:
            extractors = {kind: extractor_training(planned, size).network}
        elif kind is not None:
            extractors = {kind: VGG16Features()}
        similarity = build_similarity(settings.similarity, extractors, **settings.options)
        module = registration_training(replace(settings, lam=1.0), size, similarity)
        names = {"moving": 1, "fixed": 1, "moving_label": len(size.classes), "fixed_label": len(size.classes)}
    module = module.to(device)
    optimizer = module.configure_optimizers()

    def batch() -> dict[str, Tensor]:
        images = {}
        for name, classes in names.items():
            image = torch.rand(settings.fit.batch, 1, *size.shape, device=device)
            images[name] = image if classes == 1 else (image * classes).to(torch.uint8)
        return images

    seconds = []
    for _ in range(steps + 1):
        batches = [batch() for _ in range(settings.fit.accumulate)]
        started = time.perf_counter()
        for images in batches:
            module.terms(images)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]) * full.voxels / size.voxels


def similarity_seconds(shape: Sequence[int], repeats: int = 5) -> pd.DataFrame:
    """Median seconds of every similarity, forward and backward, for one pair of images; interleaved, after one warm-up.

    DeepSim looks through an untrained encoder of the light size (16, 32, 64 channels), VGG (2D only) through its own.

    Returns:
        A row a similarity: similarity, seconds, and `ratio` to NCC's.
    """
    ndim = len(shape)
    network = UNet(ndim, 3, channels=[16, 32, 64], light=True)
    extractors = {"seg": network, "ae": network, "vgg": VGG16Features()}
    names = [name for name in SIMILARITIES if ndim == 2 or name != "vgg"]
    measures = {name: build_similarity(name, extractors) for name in names}
    moving, fixed = torch.rand(2, 1, 1, *shape)
    label = torch.randint(0, 3, (1, 1, *shape))
    seconds = {name: [] for name in names}
    for number in range(repeats + 1):
        for name, measure in measures.items():
            displacement = torch.zeros(1, ndim, *shape, requires_grad=True)
            started = time.perf_counter()
            measure.compare(Alignment(moving, fixed, displacement, label, label)).backward()
            if number:
                seconds[name].append(time.perf_counter() - started)
    table = pd.DataFrame({"similarity": names, "seconds": [statistics.median(seconds[name]) for name in names]})
    return table.assign(ratio=table["seconds"] / table.set_index("similarity").loc["ncc", "seconds"])


def _what(settings: ExtractorSettings | RegistrationSettings) -> tuple:
    if isinstance(settings, ExtractorSettings):
        return settings.kind, settings.source
    return settings.similarity, settings.architecture, settings.extractor, settings.options


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deepsimreg.cost", description=__doc__)
    parser.add_argument("profile", nargs="?")
    parser.add_argument(
        "--similarities", type=int, nargs="+", metavar="SIDE", help="time these, on an image of that shape"
    )
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each kind of training")
    parser.add_argument("--voxels", type=int, default=500_000, help="larger images are timed at this size and scaled")
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    if options.similarities:
        table = similarity_seconds(options.similarities)
        print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
        return
    if options.profile is None:
        parser.error("name a profile, or --similarities")
    table = estimate(Profile(options.profile), options.steps, options.voxels)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    print(f"{len(table)} trainings, {table['hours'].sum():.3g} hours, one after the other, on this machine")


if __name__ == "__main__":
    main()
