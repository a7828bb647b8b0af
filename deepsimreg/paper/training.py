"""Training of a network by Lightning, in a way that survives being killed.

A checkpoint is written at the end of each epoch, so a run that was killed repeats the epoch that it was in, and ends
with the weights of an uninterrupted run; on a CPU they are equal bit for bit (samples.py says why).
"""

import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from deepsimreg.data.augment import AUGMENTATIONS
from deepsimreg.data.base import Dataset, LazySequence
from deepsimreg.files import whole
from deepsimreg.metrics import overlap
from deepsimreg.models.store import load_model, save_model
from deepsimreg.paper.callbacks import BestWeights, MetricsTable, Progress, rows_until
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.files import read_json, size_of, write_json
from deepsimreg.paper.outputs import write_table
from deepsimreg.paper.run import TRAINING, Run
from deepsimreg.paper.samples import DrawnSamples, EpochSampler, augmented, to_tensors
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
        self.schedule = ReduceLROnPlateau(optimizer, factor=0.1, patience=self.settings.plateau)
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

    def on_after_batch_transfer(self, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
        return augmented(batch, self.settings.crop)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        terms = self.terms(batch)
        self.latest = {name: value.detach() for name, value in terms.items()}
        return terms["loss"]

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        terms = {f"validation_{name}": value for name, value in self.terms(batch).items()}
        self.log_dict(terms, batch_size=len(next(iter(batch.values()))), sync_dist=True)


def mean_dice(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Mean over images and all classes, background included; a class that neither image has is left out."""
    return torch.nanmean(torch.stack([overlap(a, b, classes) for a, b in zip(prediction, label, strict=True)]))


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all: beside the last one, which they replace when they are written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        try:
            with whole(Path(path)) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch raises the second where a disk is full
            raise SettingsError(f"{Path(path).name} cannot be written, is the disk full? ({error})") from error


def checkpoint_of(folder: Path) -> Path | None:
    """The checkpoint that a training goes on from; None if there is none, or none that can be trusted, which is said.

    It has to be whole, and metrics.csv has to hold the rows that it held when the checkpoint was written.
    """
    last, table = folder / "last.ckpt", folder / "metrics.csv"
    if not last.is_file():
        return None
    try:
        checkpoint = torch.load(last, map_location="cpu", weights_only=True)
        expected = checkpoint["callbacks"]["MetricsTable"]["rows"]
        found = len(rows_until(table, checkpoint["global_step"]))
        damage = "" if found == expected else f"{table.name} holds {found} of the {expected} rows that belong to it"
    except Exception as error:  # what torch raises for a damaged file has no common kind
        damage = f"it cannot be read ({type(error).__name__})"
    if damage:
        print(f"{last.name} is not gone on from, since {damage}; the training begins anew", flush=True)
        last.unlink()
        return None
    return last


def trainer_of(settings: Fit, folder: Path, label: str, epochs: int, every: int) -> lightning.Trainer:
    """The Lightning trainer of a run: what it logs, checkpoints and keeps."""
    columns = [f"{kind}_{term}" for kind in ("train", "validation") for term in METRIC_TERMS]
    last = {"filename": "last", "save_top_k": 1, "enable_version_counter": False, "save_on_train_epoch_end": True}
    callbacks = [
        MetricsTable(folder / "metrics.csv", columns),
        BestWeights(folder / "weights.safetensors"),
        Progress(label, epochs * every),
        ModelCheckpoint(folder, **last),
    ]
    if settings.early_stopping:
        patience = settings.early_stopping
        callbacks.append(EarlyStopping("validation_loss", patience=patience, check_on_train_epoch_end=False))
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        precision=settings.precision,
        gradient_clip_val=settings.gradient_clip or None,
        accumulate_grad_batches=settings.accumulate,
        callbacks=callbacks,
        plugins=[WholeCheckpoints(), LightningEnvironment()],  # processes are started here on a cluster, too
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
    """Train to the end, from `last.ckpt` of the folder where there is one that is whole.

    Args:
        make_module: makes the Lightning module; called after the seed is set, so that initial weights repeat.
        train, validation: samples or pairs.
        dataset: whose rank and spacing the augmentation follows.
        folder: receives metrics.csv, TensorBoard events, last.ckpt and weights.safetensors (best on validation).

    Returns metrics.csv as a table: column `step`, and `train_…` and `validation_…` columns. SettingsError if `train` is
    empty. Several devices need a script (`by_script`).
    """
    torch.set_flush_denormal(True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message)
    lightning.seed_everything(settings.seed, verbose=False)
    module = make_module()
    if settings.steps == 0:
        save_model(module.network, folder / "weights.safetensors")
        return pd.DataFrame({"step": [0]})
    if not len(train):
        raise SettingsError(f"{dataset.name} has no training pairs or images: give its split train some")
    if settings.compile:
        module.network.compile()
    every = min(settings.validate_every, settings.steps)
    epochs = -(-settings.steps // every)
    own = settings.ranges.model_dump(exclude_none=True)
    ranges = replace(AUGMENTATIONS[dataset.ndim], flips=settings.flips, **own)
    augmentation = ranges if settings.augment else None
    samples = DrawnSamples(train, augmentation, settings.seed, settings.crop, dataset.spacing)
    sampler = EpochSampler(every * settings.accumulate * settings.batch)
    options = {"batch_size": settings.batch, "pin_memory": torch.cuda.is_available()}
    # Spawned: a process that is forked beside the threads of torch or CUDA may hang.
    spawned = {"persistent_workers": True, "multiprocessing_context": "spawn"} if settings.workers else {}
    drawn = DataLoader(samples, sampler=sampler, num_workers=settings.workers, **spawned, **options)
    in_order = DataLoader(LazySequence(validation, to_tensors), **options)
    resumed = {"ckpt_path": checkpoint_of(folder), "weights_only": True}
    trainer_of(settings, folder, label, epochs, every).fit(module, drawn, in_order, **resumed)
    return pd.read_csv(folder / "metrics.csv")


def trained(
    run: Run, make_module: Callable[[], Trained], items: Callable, kind: type[nn.Module], dataset: Dataset
) -> tuple[nn.Module, pd.DataFrame]:
    """Train a run's network, of class `kind`, unless that has been done. run: open. items: split → samples or pairs.

    Returns the network of the best validation, in evaluation mode, and its metrics by step. `training.json` of the
    folder says that training has ended, and the sizes of what it left: what follows can be repeated without training.
    """
    end = run.folder / "training.json"
    if (read_json(end) or {}).get("sizes") != (sizes := _sizes(run)) or None in sizes.values():
        run.validation.unlink(missing_ok=True)  # it is of weights that are made anew
        if run.settings.fit.devices > 1 and run.settings.fit.steps:
            by_script(run)
            history = pd.read_csv(run.folder / "metrics.csv")
        else:
            parts = make_module, run.settings.fit, items("train"), items("validation"), dataset
            history = fit(*parts, run.folder, run.name)
        result = {"best": {"step": 0}, "seconds": 0.0}
        if "validation_loss" in history:
            columns = [*history.filter(like="train_"), "seconds"]
            measured = history.dropna(subset="validation_loss").drop(columns=columns)
            by_dice = measured["validation_dice"].notna().any()
            best = measured["validation_dice"].idxmax() if by_dice else measured["validation_loss"].idxmin()
            result = {"best": measured.loc[best].dropna().to_dict(), "seconds": history["seconds"].max()}
        write_table(history, run.folder / "metrics.csv")
        write_json(end, result | {"sizes": _sizes(run)})
    return load_model(run.weights, kind), pd.read_csv(run.folder / "metrics.csv")


def _sizes(run: Run) -> dict[str, int | None]:
    """Bytes of the weights and of the table that a training leaves."""
    return {name: size_of(run.folder / name) for name in TRAINING[1:]}


def by_script(run: Run) -> None:
    """Train a run of the profile in processes of their own, one for each device: in a notebook they would hang."""
    if run.place:
        raise SettingsError(f"{run}: devices is {run.settings.fit.devices}, which takes a run that a profile plans")
    command = [sys.executable, "-m", "deepsimreg.paper.train", run.profile, run.dataset, run.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SettingsError(f"{run}: the training on {run.settings.fit.devices} devices failed:\n{done.stderr[-3000:]}")
