"""The stages of the paper as calls: train an extractor, train a registration network. Notebooks and runs use these.

Each stage names the run that it needs from the stage before; nothing is copied by hand.
"""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from deepsimreg.data import Dataset, LazySequence, Sample
from deepsimreg.data.augment import AUGMENT_2D, AUGMENT_3D, add_noise
from deepsimreg.io import write_image
from deepsimreg.losses import build_similarity, required_extractor
from deepsimreg.metrics import evaluate_pair, segmentation_metrics
from deepsimreg.models import ARCHITECTURES, EXTRACTORS, Autoencoder, UNet, load_model, load_vgg, vgg_path
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.experiment import (
    FIXED_EXTRACTORS,
    QUICK,
    BaselineSettings,
    ExtractorSettings,
    Profile,
    RegistrationSettings,
    Run,
    Settings,
    SettingsError,
    alone,
    configuration,
    known,
    relative,
    settings_of,
    write_json,
)
from deepsimreg.paper.statistics import compare_methods, summary
from deepsimreg.paper.training import (
    ReconstructionTraining,
    RegistrationTraining,
    SegmentationTraining,
    Trained,
    fit,
)
from deepsimreg.paths import PROJECT
from deepsimreg.warps import warp_image, warp_labels

AUGMENTATIONS = {2: AUGMENT_2D, 3: AUGMENT_3D}
Tables = dict[str, pd.DataFrame]


def extractor_training(settings: ExtractorSettings, dataset: Dataset) -> Trained:
    """A fresh U-Net (seg) or autoencoder (ae) and how it is trained."""
    if settings.kind == "seg":
        network = UNet(dataset.ndim, len(dataset.classes), **settings.network)
        return SegmentationTraining(network, settings.fit)
    return ReconstructionTraining(Autoencoder(dataset.ndim, 1, **settings.network), settings.fit)


def registration_training(settings: RegistrationSettings, dataset: Dataset, similarity: nn.Module) -> Trained:
    """A fresh registration network and how it is trained."""
    network = ARCHITECTURES[settings.architecture](dataset.ndim, **settings.network)
    return RegistrationTraining(network, similarity, settings.lam, len(dataset.classes), settings.fit)


def train_extractor(
    settings: ExtractorSettings, dataset: Dataset, folder: str = ""
) -> tuple[nn.Module, pd.DataFrame, Run]:
    """Train, resume or load a feature extractor; `folder` empty is the profile's place.

    Args:
        settings: of the profile, or changed ones with a folder of their own.
        dataset: that it is trained on (`training_data`).
        folder: of the run.

    Returns:
        The network of the best validation in evaluation mode, its metrics by step, and its run.
    """
    profile = Profile(settings.profile)
    with alone(_place(settings, profile.extractor(settings.dataset, settings.name), folder)):
        run = Run(settings, dataset, folder)

        def items(split: str) -> Sequence[Sample]:
            samples = dataset.samples(split)
            return samples if split != "train" else _share(samples, settings.labels)

        history = _fit(run, lambda: extractor_training(settings, dataset), dataset, items, f"extractor-{settings.name}")
    return load_model(run.weights, EXTRACTORS[settings.kind]), history, run


def training_data(settings: ExtractorSettings, dataset: Dataset) -> Dataset:
    """The dataset that an extractor is trained on: `dataset`, unless its settings name another source."""
    return Profile(settings.profile).load(settings.source) if settings.source else dataset


def _share(samples: Sequence[Sample], share: float) -> Sequence[Sample]:
    """A share of the samples, at least one, drawn with a fixed seed: a smaller share is part of a larger one."""
    if share == 1:
        return samples
    if not 0 < share < 1:
        raise SettingsError(f"labels is {share}: give a share of the training images between 0 and 1")
    order = random.Random(0).sample(range(len(samples)), len(samples))
    chosen = order[: max(1, round(share * len(samples)))]
    return LazySequence(len(chosen), lambda index: samples[chosen[index]])


def train_registration(
    settings: RegistrationSettings, dataset: Dataset, folder: str = ""
) -> tuple[nn.Module, pd.DataFrame, Run]:
    """Train, resume or load a registration network; `folder` empty is the profile's place.

    Every metric of the validation pairs goes to `validation.csv` of the run's folder. A network that tuning has trained
    with the same settings, at full length, is not trained again.

    Returns:
        The network of the best validation in evaluation mode, its metrics by step, and its run.

    Raises:
        SettingsError: λ has not been chosen, or the extractor has not been trained (in the quick profile both are
            done here).
    """
    profile = Profile(settings.profile)
    if settings.lam is None:
        if profile.name != QUICK:
            raise SettingsError(
                f"λ of {settings.similarity} on {settings.dataset} has not been chosen: make paper "
                f"PROFILE={profile.name}, or run 06_tuning with profile={profile.name} dataset={settings.dataset}"
            )
        tune(profile, dataset)
        settings = replace(settings, lam=profile.lam(settings.dataset, settings.similarity))
    lam = settings.lam if settings.stage == "tuning" else None
    planned = profile.registration(settings.dataset, settings.method, lam, settings.stage, seed=settings.fit.seed)
    similarity, inputs = similarity_of(settings, dataset)

    with alone(_place(settings, planned, folder)):
        run = Run(settings, dataset, folder, inputs)
        _take_over(profile, run)
        history = _fit(
            run,
            lambda: registration_training(settings, dataset, similarity),
            dataset,
            dataset.pairs,
            f"{settings.stage} {settings.method} λ={settings.lam:g}",
        )
        network = load_model(run.weights, ARCHITECTURES[settings.architecture])
        if not validation_table(run.folder).is_file():
            write_table(evaluate_method(network, dataset, split="validation"), validation_table(run.folder))
    return network, history, run


def _take_over(profile: Profile, run: Run) -> None:
    """If tuning has trained this very network, with the same settings and inputs, its results become this run's."""
    settings = run.settings
    if settings.stage != "registration" or settings.lam not in profile.grid(settings.dataset, settings.method):
        return
    twin = profile.registration(settings.dataset, settings.method, settings.lam, "tuning")
    if (
        replace(twin, stage=settings.stage) != settings
        or run.trained.is_file()
        or not (twin.folder / "done.json").is_file()
    ):
        return
    ours, theirs = (configuration(folder) for folder in (run.folder, twin.folder))
    if any(ours[key] != theirs[key] for key in ("inputs", "data_fingerprint")):
        return
    for name in ("weights.safetensors", "metrics.csv", validation_table(run.folder).name, run.trained.name):
        shutil.copyfile(twin.folder / name, run.folder / f"{name}.tmp")
        os.replace(run.folder / f"{name}.tmp", run.folder / name)


def validation_table(folder: Path) -> Path:
    """Every metric of the validation pairs of a run."""
    return Path(folder) / "validation.csv"


def similarity_of(settings: RegistrationSettings, dataset: Dataset) -> tuple[nn.Module, dict[str, str]]:
    """The similarity that a registration is trained with, its extractor loaded; and the digest of the extractor.

    Raises:
        SettingsError: the extractor is missing, or one is given to a similarity that has none.
        WeightsError: the run that `settings.extractor` names holds another network.
    """
    kind = required_extractor(settings.similarity)
    if settings.extractor and kind is None:
        raise SettingsError(f"{settings.similarity} compares no features: leave extractor empty")
    if kind is None:
        return build_similarity(settings.similarity, **settings.options), {}
    network, path = extractor_of(settings, dataset, kind)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return build_similarity(settings.similarity, {kind: network}, **settings.options), {"extractor": digest}


def extractor_of(
    settings: RegistrationSettings | BaselineSettings, dataset: Dataset, kind: str
) -> tuple[nn.Module, Path]:
    """The extractor of a method and its weight file; in the quick profile it is trained where it is missing.

    Raises:
        SettingsError: it is missing in another profile.
    """
    if kind in FIXED_EXTRACTORS:
        return load_vgg(), vgg_path()
    profile = Profile(settings.profile)
    named = getattr(settings, "extractor", "")
    if "/" in named:
        path = PROJECT / named / "weights.safetensors"
    else:
        planned = profile.extractor(settings.dataset, named or kind)
        if profile.name == QUICK:
            train_extractor(planned, training_data(planned, dataset))
        path = finished(planned) / "weights.safetensors"
    return load_model(path, EXTRACTORS[kind]), path


def trained_extractor(settings: ExtractorSettings, dataset: Dataset) -> nn.Module:
    """One extractor of a profile; errors as `extractor_of`."""
    if settings.profile == QUICK:
        return train_extractor(settings, training_data(settings, dataset))[0]
    return load_model(finished(settings) / "weights.safetensors", EXTRACTORS[settings.kind])


def finished(settings: Settings) -> Path:
    """The run folder of these settings.

    Raises:
        SettingsError: the run has not ended, or was made with other settings.
    """
    if not (settings.folder / "done.json").is_file():
        raise SettingsError(
            f"{relative(settings.folder)}: no finished run; make paper PROFILE={settings.profile} makes it"
        )
    if settings_of(settings.folder) != settings:
        raise SettingsError(
            f"{relative(settings.folder)} was made with other settings than profile {settings.profile} has; "
            f"make paper PROFILE={settings.profile} makes it anew"
        )
    return settings.folder


def trained_registration(settings: RegistrationSettings, dataset: Dataset) -> tuple[nn.Module, Path]:
    """A registration network of the profile and its run folder; in the quick profile it is trained where it is missing.

    Raises:
        SettingsError: it is missing in another profile.
    """
    if settings.profile == QUICK:
        network, _, run = train_registration(settings, dataset)
        return network, run.folder
    folder = finished(settings)
    return load_model(folder / "weights.safetensors", ARCHITECTURES[settings.architecture]), folder


def _place(settings: Settings, planned: Settings, folder: str) -> Path:
    """The run's folder; settings that are not the profile's need one of their own."""
    if not folder and settings != planned:
        raise SettingsError("these settings are not the profile's: give the run a folder of its own (folder=…)")
    return PROJECT / (folder or settings.folder)


@torch.no_grad()
def try_extractor(network: nn.Module, dataset: Dataset, folder: Path | None = None) -> pd.DataFrame:
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
        rows.append({"image": sample.name, **metrics})
        if folder is not None:
            write_sample(folder / sample.name, output[0, 0], sample)
    table = pd.DataFrame(rows)
    if folder is not None:
        write_table(table, folder / "images.csv")
    return table


def write_sample(stem: Path, values: Tensor, like: Sample) -> None:
    """Write (*spatial) on the grid of a sample: NIfTI for volumes, TIFF for planes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if values.ndim == 3 else ".tif"
    write_image(stem.with_name(stem.name + suffix), values.cpu().numpy(), like.spacing, like.affine)


def tune(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """Choose λ of every tuned method by mean validation Dice; the choice is written for the stages that follow.

    In the quick profile, runs that are missing are trained here.

    Returns:
        A row a run: method, lam, the means of every metric over the validation pairs, seconds, folder, chosen.
    """
    rows = []
    for settings in profile.tunings(dataset.name):
        _, folder = trained_registration(settings, dataset)
        means = pd.read_csv(validation_table(folder)).mean(numeric_only=True).drop("seconds")
        training = Run.result_of(folder)
        rows.append(
            {"method": settings.method, "lam": settings.lam, **means}
            | {"seconds": training["seconds"], "folder": relative(folder)}
        )
    folder = profile.folder(dataset.name, "tuning")
    table = pd.DataFrame(rows, columns=None if rows else ["method", "lam", "dice"])
    best = table.loc[table.groupby("method", sort=False)["dice"].idxmax()]
    best = best[[profile.chosen_by_tuning(dataset.name, method) for method in best["method"]]]
    write_json(profile.choice(dataset.name), dict(zip(best["method"], best["lam"], strict=True)))
    table["chosen"] = [row.lam == profile.lam(dataset.name, row.method) for row in table.itertuples()]
    write_table(table, folder / "tuning.csv")
    return table


def tuning_table(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """The table of `tune`; in the quick profile it is made if it is missing.

    Raises:
        SettingsError: 06_tuning has not been run.
    """
    if profile.name == QUICK:
        return tune(profile, dataset)
    return _read(profile.choice(dataset.name).with_name("tuning.csv"), profile)


def run_baseline(settings: BaselineSettings, dataset: Dataset) -> tuple[Tables, Run]:
    """Choose the tuned value of a method without training on the validation pairs, then register the test pairs.

    Every pair is written as soon as it is done, so a run that was killed goes on from there.

    Returns:
        `validation`, a row a value and pair; `test`, a row a pair at the chosen value; and the run.
    """
    profile = Profile(settings.profile)
    kind, extractor, inputs = BASELINES[settings.method].extractor, None, {}
    if kind is not None:
        extractor, path = extractor_of(settings, dataset, kind)
        inputs = {"extractor": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    with alone(_place(settings, profile.baseline(settings.dataset, settings.method), "")):
        run = Run(settings, dataset, inputs=inputs)

        def rows(value: float, split: str, path: Path) -> pd.DataFrame:
            def displacement(moving: Tensor, fixed: Tensor) -> Tensor:
                return BASELINES[settings.method].register(
                    moving, fixed, dataset.spacing, extractor, value, **settings.options
                )

            images, limit = (run.folder / "test", 0) if split == "test" else (None, settings.pairs)
            return evaluate_method(displacement, dataset, images, split, path, limit=limit).assign(lam=value)

        tables = [rows(v, "validation", run.folder / f"validation-{v:g}.csv") for v in settings.values]
        validation = pd.concat(tables, ignore_index=True)
        chosen = float(validation.groupby("lam")["dice"].mean().idxmax())
        test = rows(chosen, "test", run.folder / f"test-{chosen:g}.csv")
        write_table(validation, validation_table(run.folder))
        write_table(test, run.folder / "test.csv")
        run.finish(value=chosen, dice=test["dice"].mean())
    return {"validation": validation, "test": test}, run


def baseline_tables(settings: BaselineSettings, dataset: Dataset) -> Tables:
    """The tables of `run_baseline`; in the quick profile they are made if they are missing."""
    if settings.profile == QUICK:
        return run_baseline(settings, dataset)[0]
    folder = finished(settings)
    return {"validation": pd.read_csv(validation_table(folder)), "test": pd.read_csv(folder / "test.csv")}


@torch.no_grad()
def evaluate_method(
    register: Callable[[Tensor, Tensor], Tensor] | None,
    dataset: Dataset,
    folder: Path | None = None,
    split: str = "test",
    rows: Path | None = None,
    noise: float = 0.0,
    limit: int = 0,
) -> pd.DataFrame:
    """Every metric of every pair of a split.

    Args:
        register: (moving, fixed) (1, 1, *spatial) → displacement; None for the pairs before registration.
        dataset: the data.
        folder: receives the warped images and labels with the fixed image's affine; None writes none.
        split: of the dataset.
        rows: a CSV file that keeps each row as it is made; pairs that are in it are not registered again.
        noise: standard deviation of Gaussian noise that is added to both images; the same for every method.
        limit: the first pairs only; 0: all of them.

    Returns:
        A row a pair: `pair`, the metrics of `evaluate_pair`, and `seconds` of the registration alone.
    """
    table = pd.read_csv(rows).to_dict("records") if rows is not None and rows.is_file() else []
    known_pairs = {row["pair"] for row in table}
    pairs = dataset.pairs(split)
    chosen = range(min(limit, len(pairs)) or len(pairs))
    for number in tqdm(chosen, desc=f"{split} pairs", unit="pair", leave=False):
        pair = pairs[number]
        if pair.name in known_pairs:
            continue
        moving, fixed = pair.moving.image[None], pair.fixed.image[None]
        if noise:
            generator = torch.Generator().manual_seed(number)
            moving, fixed = add_noise(moving, noise, generator), add_noise(fixed, noise, generator)
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
        table.append({"pair": pair.name, **metrics, "seconds": seconds})
        if rows is not None:
            write_table(pd.DataFrame(table), rows)
    return pd.DataFrame(table)


def evaluate_all(profile: Profile, dataset: Dataset, reference: str = "deepsim-seg", images: bool = True) -> Tables:
    """The test of every method, and of the unregistered pairs; all tables are written.

    Args:
        profile, dataset: whose runs.
        reference: the method that the others are tested against.
        images: write every warped image and label, too.

    Returns:
        By the name of its file: `pairs`, a row a method, seed and pair; `means`, the seeds averaged pair by pair;
        `summary`, means over pairs with bootstrap intervals; `tests`, each method against the reference; `runs`, λ,
        seed, folder and validation Dice of each run; `smoothness`, mean Dice and SD log J of each method on the
        validation pairs, at each λ of its grid.
    """
    networks, baselines = profile.registrations(dataset.name), profile.baselines(dataset.name)
    methods = [*dict.fromkeys(settings.method for settings in [*networks, *baselines]), "unregistered"]
    known("reference method", reference, methods)
    folder = profile.folder(dataset.name, "evaluation")
    tables = [evaluate_method(None, dataset).assign(method="unregistered", seed=0)]
    runs, curves = [], []
    for settings in tqdm(networks, desc="networks", unit="network"):
        network, source = trained_registration(settings, dataset)
        lam, seed = settings_of(source).lam, settings.fit.seed
        target = folder / settings.method / f"seed-{seed}" if images else None
        tables.append(evaluate_method(network, dataset, target).assign(method=settings.method, lam=lam, seed=seed))
        dice = pd.read_csv(validation_table(source))["dice"].mean()
        runs.append((settings.method, lam, seed, dice, Run.result_of(source)["seconds"], relative(source)))
    for settings in tqdm(baselines, desc="baselines", unit="method"):
        results = baseline_tables(settings, dataset)
        value, validation = results["test"]["lam"].iloc[0], results["validation"].assign(method=settings.method)
        tables.append(results["test"].assign(method=settings.method, seed=0))
        curves.append(validation.groupby(["method", "lam"], as_index=False).mean(numeric_only=True))
        dice = validation.query("lam == @value")["dice"].mean()
        runs.append((settings.method, value, 0, dice, float("nan"), relative(settings.folder)))
    if profile.tunings(dataset.name):
        curves.insert(0, tuning_table(profile, dataset).drop(columns="folder"))
    pairs = pd.concat(tables, ignore_index=True)
    means = pairs.groupby(["method", "pair"], sort=False).mean(numeric_only=True).drop(columns="seed").reset_index()
    runs = pd.DataFrame(runs, columns=["method", "lam", "seed", "validation_dice", "seconds", "folder"])
    curves = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=["method", "lam"])
    results = {
        "pairs": pairs,
        "means": means,
        "summary": summary(means.drop(columns="lam")),
        "tests": compare_methods(means, reference=reference),
        "runs": runs,
        "smoothness": curves.reindex(columns=["method", "lam", "dice", "folds", "sd_log_jacobian"]),
    }
    for name, table in results.items():
        write_table(table, folder / f"{name}.csv")
    write_json(folder / "done.json", {"dice": means.groupby("method", sort=False)["dice"].mean().to_dict()})
    return results


def evaluation_tables(profile: Profile, dataset: Dataset) -> tuple[Tables, Path]:
    """The tables of `evaluate_all` and their folder; in the quick profile they are made if they are missing.

    Raises:
        SettingsError: the evaluation has not ended.
    """
    folder = profile.folder(dataset.name, "evaluation")
    if profile.name == QUICK and not (folder / "done.json").is_file():
        return evaluate_all(profile, dataset), folder
    Run.result_of(folder)
    names = ("pairs", "means", "summary", "tests", "runs", "smoothness")
    return {name: pd.read_csv(folder / f"{name}.csv") for name in names}, folder


def evaluate_ablations(profile: Profile, dataset: Dataset) -> Tables:
    """The test of every variant of the ablations; all tables are written.

    Returns:
        `pairs`, a row a variant, seed and pair; `variants`, a row a variant: `group`, `base` (the method it is a
        variant of), share of the labels of its extractor, the extractor's test Dice, mean of every metric.
    """
    folder = profile.folder(dataset.name, "ablations")
    groups, tables, rows = profile.groups(dataset.name), [], []
    for settings in tqdm(profile.ablations(dataset.name), desc="variants", unit="network"):
        network, source = trained_registration(settings, dataset)
        table = evaluate_method(network, dataset, rows=source / "test.csv")
        group, base = groups[settings.method]
        names = {"method": settings.method, "group": group, "base": base, "lam": settings_of(source).lam}
        tables.append(table.assign(seed=settings.fit.seed, **names))
        extractor = profile.extractor_for(settings)
        if extractor is not None and extractor.kind == "seg" and not extractor.source:
            network = trained_extractor(extractor, dataset)
            dice = try_extractor(network, dataset)["dice"].mean()
            names |= {"labels": extractor.labels, "extractor_dice": dice}
        rows.append(names | table.mean(numeric_only=True).to_dict())
    pairs, variants = pd.concat(tables, ignore_index=True), pd.DataFrame(rows)
    keys = ["method", "group", "base"]
    results = {"pairs": pairs, "variants": variants.groupby(keys, sort=False).mean(numeric_only=True).reset_index()}
    for name, table in results.items():
        write_table(table, folder / f"{name}.csv")
    return results


def ablation_tables(profile: Profile, dataset: Dataset) -> Tables:
    """The tables of `evaluate_ablations`; in the quick profile they are made if they are missing.

    Raises:
        SettingsError: 07_ablations has not been run.
    """
    folder = profile.folder(dataset.name, "ablations")
    if profile.name == QUICK and not (folder / "variants.csv").is_file():
        return evaluate_ablations(profile, dataset)
    return {name: _read(folder / f"{name}.csv", profile) for name in ("pairs", "variants")}


def evaluate_robustness(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """The test of every method (its first seed) on images with added noise; the table is written.

    Returns:
        A row a method, SD of the noise and pair.
    """
    folder, tables = profile.folder(dataset.name, "robustness"), []
    known_methods = {settings.method: settings for settings in reversed(profile.registrations(dataset.name))}
    methods: dict[str, Callable | None] = {"unregistered": None}
    for name in reversed(known_methods):
        methods[name] = trained_registration(known_methods[name], dataset)[0]
    for name, register in tqdm(methods.items(), desc="methods", unit="method"):
        for noise in [0.0, *profile.noise(dataset.name)]:
            table = evaluate_method(register, dataset, noise=noise)
            tables.append(table.assign(method=name, noise=noise))
    table = pd.concat(tables, ignore_index=True)
    write_table(table, folder / "pairs.csv")
    return table


def robustness_table(profile: Profile, dataset: Dataset) -> pd.DataFrame:
    """The table of `evaluate_robustness`; in the quick profile it is made if it is missing.

    Raises:
        SettingsError: 08_robustness has not been run.
    """
    path = profile.folder(dataset.name, "robustness") / "pairs.csv"
    if profile.name == QUICK and not path.is_file():
        return evaluate_robustness(profile, dataset)
    return _read(path, profile)


def method_of(profile: Profile, dataset: Dataset, method: str, **options) -> Callable[[Tensor, Tensor], Tensor]:
    """A method of the profile as (moving, fixed) (1, 1, *spatial) → displacement, voxels.

    A network has its first seed and its chosen λ; a method that is not trained, the value that its run chose, and
    `options` in place of the profile's.
    """
    if method in profile.methods(dataset.name):
        return torch.no_grad()(trained_registration(profile.registration(dataset.name, method), dataset)[0].forward)
    settings, baseline = profile.baseline(dataset.name, method), BASELINES[method]
    extractor = None if baseline.extractor is None else extractor_of(settings, dataset, baseline.extractor)[0]
    value = float(baseline_tables(settings, dataset)["test"]["lam"].iloc[0])

    def register(moving: Tensor, fixed: Tensor) -> Tensor:
        return baseline.register(moving, fixed, dataset.spacing, extractor, value, **settings.options | options)

    return register


def _read(path: Path, profile: Profile) -> pd.DataFrame:
    """A table of a stage.

    Raises:
        SettingsError: the stage has not been run.
    """
    if not path.is_file():
        raise SettingsError(f"{relative(path.parent)}: no {path.name}; make paper PROFILE={profile.name} makes it")
    return pd.read_csv(path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """CSV under a temporary name, then renamed."""
    temporary = path.with_suffix(".tmp")
    table.to_csv(temporary, index=False)
    os.replace(temporary, path)


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
        result = {"best": {"step": 0}, "seconds": 0.0}
        if "validation_loss" in history:
            validation = history.dropna(subset="validation_loss").drop(
                columns=[*history.filter(like="train_"), "seconds"]
            )
            by_dice = validation["validation_dice"].notna().any()
            best = validation["validation_dice"].idxmax() if by_dice else validation["validation_loss"].idxmin()
            result = {"best": validation.loc[best].dropna().to_dict(), "seconds": history["seconds"].max()}
        write_table(history, run.folder / "metrics.csv")
        write_json(run.trained, result)
    run.finish(**json.loads(run.trained.read_text()))
    return pd.read_csv(run.folder / "metrics.csv")
