"""Training of a network by Lightning, in a way that survives being killed.

A checkpoint is written at the end of each epoch, so a run that was killed repeats the epoch that it was in, and ends
with the weights of an uninterrupted run; on a CPU they are equal bit for bit (samples.py says why).
"""

import csv
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from deepsimreg.data.augment import AUGMENTATIONS
from deepsimreg.data.base import Dataset
from deepsimreg.metrics import dice_per_class
from deepsimreg.models.store import load_model, save_model
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.evaluate import write_table
from deepsimreg.paper.files import read_json, write_json
from deepsimreg.paper.run import Run
from deepsimreg.paper.samples import DrawnSamples, EpochSampler, InOrder
from deepsimreg.paper.settings import Fit

HARMLESS = (".*exists and is not empty.*", ".*does not have many workers.*", ".*LeafSpec.*", ".*in eval mode.*")
METRIC_TERMS = ("loss", "similarity", "regulariser", "dice", "folds")


class Trained(lightning.LightningModule):
    """What the three trainings share: Adam, and the schedule of its learning rate.

    The cosine schedule and the warm-up follow from the number of the step alone. The plateau schedule is stepped here
    and not by Lightning, which writes its checkpoint before it steps the schedule: a resumed run would miss one step.
    """

    best_metric: str  # of validation, decides which weights are kept
    best_is_highest: bool

    def __init__(self, network: nn.Module, settings: Fit):
        super().__init__()
        self.network, self.settings = network, settings

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=self.settings.plateau
        )
        return optimizer

    def on_train_batch_start(self, *_) -> None:
        step, factor = self.trainer.global_step, 1.0
        if step < self.settings.warmup:
            factor = (step + 1) / (self.settings.warmup + 1)
        elif self.settings.schedule == "cosine":
            factor = (1 + math.cos(math.pi * min(step / self.settings.steps, 1))) / 2
        elif step > self.settings.warmup:
            return
        for group in self.optimizers().param_groups:
            group["lr"] = self.settings.learning_rate * factor

    def on_train_epoch_end(self) -> None:
        if self.settings.schedule == "plateau":
            self.schedule.step(self.trainer.callback_metrics["validation_loss"])

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["schedule"] = self.schedule.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self._resumed_schedule = checkpoint["schedule"]

    def on_train_start(self) -> None:
        if hasattr(self, "_resumed_schedule"):
            self.schedule.load_state_dict(self._resumed_schedule)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.settings.seed * 1_000_003 + self.current_epoch)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts, by name."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        terms = self.terms(batch)
        self.log_dict({f"train_{name}": value.detach() for name, value in terms.items()})
        return terms["loss"]

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        size = len(next(iter(batch.values())))
        self.log_dict(
            {f"validation_{name}": value for name, value in self.terms(batch).items()},
            batch_size=size,
            sync_dist=True,
        )


def mean_dice(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Mean over images and all classes, background included; a class that neither image has is left out."""
    return torch.nanmean(torch.stack([dice_per_class(a, b, classes) for a, b in zip(prediction, label, strict=True)]))


class MetricsTable(Callback):
    """metrics.csv: one row a step and one a validation; a resumed run goes on below its last checkpoint.

    `seconds` of a validation is the time spent so far, in all sittings, up to it.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, ["step", "seconds", *columns]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        rows = []
        if not trainer.is_global_zero:
            return
        if trainer.global_step and self.path.is_file():
            with self.path.open(newline="") as file:
                whole = [row for row in csv.DictReader(file) if None not in row.values()]  # a killed run may cut a row
                rows = [row for row in whole if int(row["step"]) <= trainer.global_step]
        spent = max((float(row["seconds"] or 0) for row in rows), default=0.0)
        self.started = time.perf_counter() - spent
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)

    def _append(self, trainer: lightning.Trainer, prefix: str, **more: str) -> None:
        metrics = more | {
            name: f"{float(value):.6g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix) and name in self.columns
        }
        if metrics:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow({"step": trainer.global_step} | metrics)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_) -> None:
        if trainer.is_global_zero and not trainer.fit_loop._should_accumulate():
            self._append(trainer, "train_")

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            self._append(trainer, "validation_", seconds=f"{time.perf_counter() - self.started:.1f}")


class BestWeights(Callback):
    """weights.safetensors of the best validation so far."""

    def __init__(self, path: Path):
        self.path, self.best = path, None

    def on_validation_end(self, trainer: lightning.Trainer, module: Trained) -> None:
        value, loss = (float(trainer.callback_metrics[name]) for name in (module.best_metric, "validation_loss"))
        if not np.isfinite([value, loss]).all():
            raise FloatingPointError(
                f"{module.best_metric} is {value} and validation_loss {loss} at step {trainer.global_step}: "
                "lower learning_rate or set gradient_clip"
            )
        better = self.best is None or (value > self.best if module.best_is_highest else value < self.best)
        if better and trainer.is_global_zero:
            self.best = value
            save_model(module.network, self.path)

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best = state_dict["best"]


class Progress(Callback):
    """One bar over all steps, with the latest loss and validation."""

    def __init__(self, label: str, steps: int):
        self.label, self.steps = label, steps

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.bar = tqdm(
            total=self.steps,
            initial=trainer.global_step,
            desc=self.label,
            unit="step",
            mininterval=1,
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Trained, *_) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: lightning.Trainer, module: Trained) -> None:
        metrics = trainer.callback_metrics
        self.bar.set_postfix({name: f"{float(metrics[name]):.4f}" for name in ("validation_loss", module.best_metric)})

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.bar.close()


def trainer_of(settings: Fit, folder: Path, label: str, epochs: int, every: int) -> lightning.Trainer:
    """The Lightning trainer of a run: what it logs, checkpoints and keeps."""
    columns = [f"{kind}_{term}" for kind in ("train", "validation") for term in METRIC_TERMS]
    callbacks = [
        MetricsTable(folder / "metrics.csv", columns),
        BestWeights(folder / "weights.safetensors"),
        Progress(label, epochs * every),
        ModelCheckpoint(
            folder, filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True
        ),
    ]
    if settings.early_stopping:
        patience = settings.early_stopping
        callbacks.append(EarlyStopping("validation_loss", patience=patience, check_on_train_epoch_end=False))
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=settings.devices,
        precision=settings.precision,
        gradient_clip_val=settings.gradient_clip or None,
        accumulate_grad_batches=settings.accumulate,
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, name="", version=""),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def fit(
    make_module: Callable[[], Trained],
    settings: Fit,
    train: Sized,
    validation: Sized,
    dataset: Dataset,
    folder: Path,
    label: str = "training",
) -> pd.DataFrame:
    """Train to the end, from `last.ckpt` of the folder where there is one.

    Args:
        make_module: makes the Lightning module; called after the seed is set, so that initial weights repeat.
        settings: lengths, batch, seed and so on.
        train, validation: samples or pairs.
        dataset: whose rank and spacing the augmentation follows.
        folder: receives metrics.csv, TensorBoard events, last.ckpt and weights.safetensors (best on validation).
        label: of the progress bar.

    Returns:
        metrics.csv as a table: column `step`, and `train_…` and `validation_…` columns.

    Raises:
        SettingsError: several devices in a notebook, where processes that are forked after threads have run hang.
    """
    if settings.devices > 1 and in_notebook():
        raise SettingsError(f"devices is {settings.devices}: several devices hang in a notebook; train from a script")
    torch.set_flush_denormal(True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message)
    lightning.seed_everything(settings.seed, verbose=False)
    module = make_module()
    if settings.steps == 0:
        save_model(module.network, folder / "weights.safetensors")
        return pd.DataFrame({"step": [0]})
    every = min(settings.validate_every, settings.steps)
    epochs = -(-settings.steps // every)
    preset = AUGMENTATIONS[dataset.ndim]
    augmentation = replace(preset, flips=settings.flips) if settings.augment else None
    samples = DrawnSamples(train, augmentation, settings.seed, settings.crop, dataset.spacing)
    last = folder / "last.ckpt"
    trainer_of(settings, folder, label, epochs, every).fit(
        module,
        DataLoader(
            samples,
            settings.batch,
            sampler=EpochSampler(every * settings.accumulate * settings.batch),
            num_workers=settings.workers,
            persistent_workers=settings.workers > 0,
        ),
        DataLoader(InOrder(validation), settings.batch),
        ckpt_path=last if last.is_file() else None,
        weights_only=True,
    )
    return pd.read_csv(folder / "metrics.csv")


def trained(
    run: Run, make_module: Callable[[], Trained], kind: type[nn.Module], dataset: Dataset, items: Callable
) -> tuple[nn.Module, pd.DataFrame]:
    """Train a run's network unless that has been done; `run` is open.

    Args:
        run: whose settings have a `fit`.
        make_module: as `fit`.
        kind: class of the network.
        dataset: that it is trained on.
        items: split → samples or pairs.

    Returns:
        The network of the best validation, in evaluation mode, and its metrics by step. `training.json` of the folder
        says that training has ended: what follows it can be repeated without training.
    """
    end = run.folder / "training.json"
    if read_json(end) is None:
        history = fit(make_module, run.settings.fit, items("train"), items("validation"), dataset, run.folder, run.name)
        result = {"best": {"step": 0}, "seconds": 0.0}
        if "validation_loss" in history:
            columns = [*history.filter(like="train_"), "seconds"]
            measured = history.dropna(subset="validation_loss").drop(columns=columns)
            by_dice = measured["validation_dice"].notna().any()
            best = measured["validation_dice"].idxmax() if by_dice else measured["validation_loss"].idxmin()
            result = {"best": measured.loc[best].dropna().to_dict(), "seconds": history["seconds"].max()}
        write_table(history, run.folder / "metrics.csv")
        write_json(end, result)
    return load_model(run.weights, kind), pd.read_csv(run.folder / "metrics.csv")


def in_notebook() -> bool:
    """Whether an IPython kernel runs this code."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")
