"""The stages of the paper as calls: train an extractor, train a registration network. Notebooks and runs use these.

Each stage names the run that it needs from the stage before; nothing is copied by hand.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from deepsimreg.data import Dataset, Sample
from deepsimreg.data.augment import AUGMENT_2D, AUGMENT_3D
from deepsimreg.data.files import write_image
from deepsimreg.evaluation import evaluate_pair, segmentation_metrics, summary
from deepsimreg.experiment import (
    QUICK,
    ExtractorSettings,
    Profile,
    RegistrationSettings,
    Run,
    SettingsError,
    alone,
    known,
    relative,
    settings_of,
    write_json,
)
from deepsimreg.losses import build_similarity, required_extractor
from deepsimreg.models import Autoencoder, UNet, VoxelMorph, load_model
from deepsimreg.paths import PROJECT
from deepsimreg.statistics import compare_methods
from deepsimreg.training import (
    ReconstructionTraining,
    RegistrationTraining,
    SegmentationTraining,
    Trained,
    fit,
)
from deepsimreg.warps import warp_image, warp_labels

EXTRACTORS = {"seg": UNet, "ae": Autoencoder}
AUGMENTATIONS = {2: AUGMENT_2D, 3: AUGMENT_3D}


def extractor_training(settings: ExtractorSettings, dataset: Dataset) -> Trained:
    """A fresh U-Net (seg) or autoencoder (ae) and how it is trained."""
    if settings.kind == "seg":
        network = UNet(dataset.ndim, len(dataset.classes), **settings.network)
        return SegmentationTraining(network, settings.fit)
    return ReconstructionTraining(Autoencoder(dataset.ndim, 1, **settings.network), settings.fit)


def train_extractor(
    settings: ExtractorSettings, dataset: Dataset, folder: str = ""
) -> tuple[nn.Module, pd.DataFrame, Run]:
    """Train, resume or load a feature extractor; `folder` empty is the profile's place.

    Returns:
        The network of the best validation in evaluation mode, its metrics by step, and its run.
    """
    with alone(_place(settings, Profile(settings.profile).extractor(settings.dataset, settings.kind), folder)):
        run = Run(settings, dataset, folder)
        history = _fit(
            run,
            lambda: extractor_training(settings, dataset),
            dataset,
            dataset.samples,
            f"extractor-{settings.kind}",
        )
    return load_model(run.weights, EXTRACTORS[settings.kind]), history, run


def train_registration(
    settings: RegistrationSettings, dataset: Dataset, folder: str = ""
) -> tuple[nn.Module, pd.DataFrame, Run]:
    """Train, resume or load a registration network; `folder` empty is the profile's place.

    Returns:
        The network of the best validation in evaluation mode, its metrics by step, and its run.

    Raises:
        SettingsError: the extractor has not been trained (in the quick profile it is trained here).
    """
    profile = Profile(settings.profile)
    planned = profile.registration(settings.dataset, settings.similarity, settings.lam, seed=settings.fit.seed)
    similarity = similarity_of(settings, dataset)
    kind = required_extractor(settings.similarity)
    inputs = {}
    if kind is not None:
        weights = PROJECT / (settings.extractor or profile.extractor(settings.dataset, kind).folder)
        inputs = {"extractor": hashlib.sha256((weights / "weights.safetensors").read_bytes()).hexdigest()[:16]}

    def module() -> Trained:
        return RegistrationTraining(
            VoxelMorph(dataset.ndim, **settings.network),
            similarity,
            settings.lam,
            len(dataset.classes),
            settings.fit,
        )

    with alone(_place(settings, planned, folder)):
        run = Run(settings, dataset, folder, inputs)
        history = _fit(run, module, dataset, dataset.pairs, f"{settings.similarity} λ={settings.lam:g}")
    return load_model(run.weights, VoxelMorph), history, run


def similarity_of(settings: RegistrationSettings, dataset: Dataset) -> nn.Module:
    """The similarity that a registration is trained with, its extractor loaded.

    Raises:
        SettingsError: the extractor is missing, or one is given to a similarity that has none.
        WeightsError: the run that `settings.extractor` names holds another network.
    """
    kind = required_extractor(settings.similarity)
    extractors = {}
    if settings.extractor and kind is None:
        raise SettingsError(f"{settings.similarity} compares no features: leave extractor empty")
    if settings.extractor:
        extractors[kind] = load_model(PROJECT / settings.extractor / "weights.safetensors", EXTRACTORS[kind])
    elif kind is not None:
        extractors[kind] = extractor_of(Profile(settings.profile).extractor(settings.dataset, kind), dataset)
    return build_similarity(settings.similarity, extractors, **settings.options)


def extractor_of(settings: ExtractorSettings, dataset: Dataset) -> nn.Module:
    """The trained extractor; in the quick profile it is trained where it is missing.

    Raises:
        SettingsError: it is missing in another profile.
    """
    if settings.profile == QUICK:
        return train_extractor(settings, dataset)[0]
    if not (settings.folder / "training.json").is_file():
        raise SettingsError(
            f"{settings.folder}: no finished extractor; make paper PROFILE={settings.profile}, or run "
            f"02_feature_extractor with profile={settings.profile} dataset={settings.dataset} kind={settings.kind}"
        )
    _check_planned(settings)
    return load_model(settings.folder / "weights.safetensors", EXTRACTORS[settings.kind])


def _place(
    settings: ExtractorSettings | RegistrationSettings,
    planned: ExtractorSettings | RegistrationSettings,
    folder: str,
) -> Path:
    """The run's folder; settings that are not the profile's need one of their own."""
    if not folder and settings != planned:
        raise SettingsError("these settings are not the profile's: give the run a folder of its own (folder=…)")
    return PROJECT / (folder or settings.folder)


def _check_planned(settings: ExtractorSettings | RegistrationSettings) -> None:
    """The run in the profile's place must be the one that the profile describes."""
    if settings_of(settings.folder) != settings:
        raise SettingsError(
            f"{relative(settings.folder)} was trained with other settings than profile {settings.profile} has; "
            f"make paper PROFILE={settings.profile} trains it anew"
        )


@torch.no_grad()
def test_extractor(network: nn.Module, dataset: Dataset, folder: Path) -> pd.DataFrame:
    """Run an extractor on the test images; its segmentations or reconstructions go to `folder` as image files.

    Returns:
        A row an image: Dice per class and pixel accuracy (U-Net), or mean squared and absolute error (autoencoder).
    """
    rows = []
    for sample in dataset.samples("test"):
        output = network(sample.image[None])
        if isinstance(network, UNet):
            output = output.argmax(1, keepdim=True).to(torch.uint8)
            metrics = segmentation_metrics(output, sample.label[None], dataset.classes)
        else:
            metrics = {
                "mean_squared_error": functional.mse_loss(output, sample.image[None]).item(),
                "mean_absolute_error": functional.l1_loss(output, sample.image[None]).item(),
            }
        write_sample(folder / sample.name, output[0, 0], sample)
        rows.append({"image": sample.name, **metrics})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "images.csv", index=False)
    return table


def write_sample(stem: Path, values: Tensor, like: Sample) -> None:
    """Write (*spatial) on the grid of a sample: NIfTI for volumes, TIFF for planes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if values.ndim == 3 else ".tif"
    write_image(stem.with_name(stem.name + suffix), values.cpu().numpy(), like.spacing, like.affine)


def choose_lam(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """Validation Dice of every trained λ; column `chosen` marks each similarity's best, over the mean of its seeds.

    In the quick profile, runs that are missing are trained here.

    Returns:
        A row a run: similarity, lam, seed, validation_dice, validation_folds, seconds, folder, chosen.
    """
    rows = []
    for settings in profile.registrations(dataset.name):
        if profile.name == QUICK:
            train_registration(settings, dataset)
        result = Run.result_of(settings.folder)
        _check_planned(settings)
        rows.append(
            {
                "similarity": settings.similarity,
                "lam": settings.lam,
                "seed": settings.fit.seed,
                "folder": settings.folder,
                "seconds": result["seconds"],
                **result["best"],
            }
        )
    table = pd.DataFrame(rows)
    means = table.groupby(["similarity", "lam"])["validation_dice"].mean()
    best = means.groupby("similarity").idxmax()
    table["chosen"] = [best[row.similarity] == (row.similarity, row.lam) for row in table.itertuples()]
    return table


@torch.no_grad()
def evaluate_method(
    register: Callable[[Tensor, Tensor], Tensor] | None,
    dataset: Dataset,
    folder: Path | None = None,
    split: str = "test",
) -> pd.DataFrame:
    """Every metric of every pair of a split.

    Args:
        register: (moving, fixed) (1, 1, *spatial) → displacement; None for the pairs before registration.
        dataset: the data.
        folder: receives the warped images and labels with the fixed image's affine; None writes none.
        split: of the dataset.

    Returns:
        A row a pair: `pair`, the metrics of `evaluate_pair`, and `seconds` of the registration alone.
    """
    rows = []
    for pair in dataset.pairs(split):
        moving, fixed = pair.moving.image[None], pair.fixed.image[None]
        started = time.perf_counter()
        displacement = None if register is None else register(moving, fixed)
        seconds = time.perf_counter() - started
        metrics = evaluate_pair(
            displacement,
            pair.moving.label[None],
            pair.fixed.label[None],
            dataset.classes,
            dataset.spacing,
            None if pair.displacement is None else pair.displacement[None],
        )
        if folder is not None and displacement is not None:
            moved, label = (
                warp_image(moving, displacement),
                warp_labels(pair.moving.label[None], displacement),
            )
            write_sample(folder / f"{pair.name}-image", moved[0, 0], pair.fixed)
            write_sample(folder / f"{pair.name}-label", label[0, 0], pair.fixed)
        rows.append({"pair": pair.name, **metrics, "seconds": seconds})
    return pd.DataFrame(rows)


def evaluate_chosen(
    profile: Profile, dataset: Dataset, tuning: pd.DataFrame, reference: str = "deepsim-seg", images: bool = True
) -> dict[str, pd.DataFrame]:
    """The test of every similarity at its chosen λ, and of the unregistered pairs; all tables are written.

    Args:
        profile, dataset: whose runs.
        tuning: of `choose_lam`.
        reference: the method that the others are tested against.
        images: write every warped image and label, too.

    Returns:
        By the name of its file: `pairs`, a row a method, seed and pair; `means`, the seeds averaged pair by pair;
        `summary`, means over pairs with bootstrap intervals; `tests`, each method against the reference; `tuning`.
    """
    known("reference method", reference, [*tuning["similarity"].unique(), "unregistered"])
    folder = profile.folder(dataset.name, "evaluation")
    chosen = [row for row in tuning.itertuples() if row.chosen]
    tables = [evaluate_method(None, dataset).assign(method="unregistered", seed=0)]
    for row in tqdm(chosen, desc="methods", unit="method"):
        network = load_model(Path(row.folder) / "weights.safetensors", VoxelMorph)
        target = folder / row.similarity / f"seed-{row.seed}" if images else None
        tables.append(
            evaluate_method(network, dataset, target).assign(method=row.similarity, lam=row.lam, seed=row.seed)
        )
    pairs = pd.concat(tables, ignore_index=True)
    means = pairs.groupby(["method", "pair"], sort=False).mean(numeric_only=True).drop(columns="seed").reset_index()
    results = {
        "pairs": pairs,
        "means": means,
        "summary": summary(means.drop(columns="lam")),
        "tests": compare_methods(means, reference=reference),
        "tuning": tuning.assign(folder=tuning["folder"].map(relative)),
    }
    for name, table in results.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    write_json(folder / "done.json", {"dice": means.groupby("method", sort=False)["dice"].mean().to_dict()})
    return results


def evaluation_tables(profile: Profile, dataset: Dataset) -> tuple[dict[str, pd.DataFrame], Path]:
    """The tables of `evaluate_chosen` and their folder; in the quick profile they are made if they are missing.

    Raises:
        SettingsError: the evaluation has not ended.
    """
    folder = profile.folder(dataset.name, "evaluation")
    if profile.name == QUICK and not (folder / "done.json").is_file():
        return evaluate_chosen(profile, dataset, choose_lam(profile, dataset)), folder
    Run.result_of(folder)
    names = ("pairs", "means", "summary", "tests", "tuning")
    return {name: pd.read_csv(folder / f"{name}.csv") for name in names}, folder


def _fit(run: Run, module: Callable[[], Trained], dataset: Dataset, items: Callable, label: str) -> pd.DataFrame:
    """Train unless that has been done; the best validation goes to training.json and done.json."""
    if not run.trained.is_file():
        history = fit(
            module,
            run.settings.fit,
            items("train"),
            items("validation"),
            AUGMENTATIONS[dataset.ndim],
            run.folder,
            label,
        )
        validation = history.dropna(subset="validation_loss").drop(columns=[*history.filter(like="train_"), "seconds"])
        by_dice = validation["validation_dice"].notna().any()
        best = validation["validation_dice"].idxmax() if by_dice else validation["validation_loss"].idxmin()
        seconds = history["seconds"].max()
        write_json(run.trained, {"best": validation.loc[best].dropna().to_dict(), "seconds": seconds})
    run.finish(**json.loads(run.trained.read_text()))
    return pd.read_csv(run.folder / "metrics.csv")
