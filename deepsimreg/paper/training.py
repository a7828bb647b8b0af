"""Training of extractors and registration networks: Lightning modules, and `fit`, which survives being killed.

What a step sees depends on its number and the seed alone: sample i is drawn by a generator seeded with (seed, i), and
an epoch is the stretch of steps between two validations. A checkpoint is written at the end of each epoch, so a run
that was killed repeats the epoch that it was in and ends with the weights of an uninterrupted run; on a CPU they are
equal bit for bit.
"""

import csv
import logging
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from deepsimreg.data.augment import Augmentation, augment_pair
from deepsimreg.data.base import Pair, Sample
from deepsimreg.losses import Alignment, Similarity, diffusion
from deepsimreg.metrics import dice_per_class
from deepsimreg.models import save_model
from deepsimreg.warps import jacobian_determinant, warp_labels


@dataclass(frozen=True)
class FitSettings:
    """How a network is trained."""

    steps: int = 300  # optimiser steps; rounded up to whole validation intervals; 0 keeps the initial weights
    batch: int = 4  # samples of a batch
    accumulate: int = 1  # batches of an optimiser step
    learning_rate: float = 1e-4  # of Adam
    validate_every: int = 50  # optimiser steps between two validations
    schedule: str = "plateau"  # of the learning rate: plateau, or cosine, which ends at 0 with the last step
    warmup: int = 0  # steps in which the learning rate rises from 0
    plateau: int = 10  # validations without a lower loss before the learning rate drops to a tenth
    early_stopping: int = 0  # validations without a lower loss before training ends; 0: never
    gradient_clip: float = 0.0  # largest norm of a step's gradient; 0: any
    augment: bool = True  # random affine and flips, the same for both images of a pair
    flips: bool = True  # part of the augmentation; False where left and right, front and back mean something
    crop: tuple[int, ...] = ()  # sides of the random window that training sees of an image, voxels; empty: all of it
    precision: str = "32-true"  # Lightning's name: 32-true, bf16-mixed, 16-mixed
    workers: int = 0  # processes that load and augment samples; what they yield does not depend on their number
    devices: int = 1  # processes; one a GPU where there are GPUs
    seed: int = 0  # of initial weights, samples and augmentation

    def __post_init__(self):
        if self.schedule not in ("plateau", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}: choose plateau or cosine")
        object.__setattr__(self, "crop", tuple(self.crop))


class DrawnSamples(Dataset):
    """Item i is drawn, augmented and returned by a generator seeded with (seed, i): repeatable from any step."""

    def __init__(
        self,
        items: Sequence[Sample] | Sequence[Pair],
        augmentation: Augmentation | None,
        seed: int,
        crop: Sequence[int] = (),
    ):
        self.items, self.augmentation, self.seed, self.crop = items, augmentation, seed, crop

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {index}").getrandbits(63))
        choice = int(torch.randint(len(self.items), (), generator=generator))
        batch = to_tensors(self.items[choice])
        if self.augmentation is not None:
            batch = self._augmented(batch, generator)
        return self._window(batch, generator) if self.crop else batch

    def _augmented(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        images = [key for key in batch if "label" not in key]
        labels = [key for key in batch if "label" in key]
        shape = batch[images[0]].shape[1:]
        matrix = self.augmentation.sample(generator, len(shape), shape)
        warped = augment_pair([batch[key] for key in images], [batch[key] for key in labels], matrix)
        return dict(zip(images + labels, [*warped[0], *warped[1]], strict=True))

    def _window(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The same window of every image; a side of the window that is longer than the image is cut to it."""
        shape = next(iter(batch.values())).shape[1:]
        starts = [
            int(torch.randint(max(size - side, 0) + 1, (), generator=generator))
            for size, side in zip(shape, self.crop, strict=True)
        ]
        window = tuple(slice(start, start + side) for start, side in zip(starts, self.crop, strict=True))
        return {name: image[(slice(None), *window)] for name, image in batch.items()}


class InOrder(Dataset):
    """Every item once, as it is."""

    def __init__(self, items: Sequence[Sample] | Sequence[Pair]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return to_tensors(self.items[index])


class EpochSampler(Sampler):
    """Indices of one epoch: `length` for each process of a parallel run, in turn, so that no two see the same."""

    def __init__(self, length: int):
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rank, world = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        start = self.epoch * self.length * world
        return iter(range(start + rank, start + self.length * world, world))


def to_tensors(item: Sample | Pair) -> dict[str, Tensor]:
    """Named tensors of a sample or a pair: images (C, *spatial), labels (1, *spatial)."""
    if isinstance(item, Sample):
        return {"image": item.image, "label": item.label}
    return {
        "moving": item.moving.image,
        "fixed": item.fixed.image,
        "moving_label": item.moving.label,
        "fixed_label": item.fixed.label,
    }


class Trained(lightning.LightningModule):
    """What the three trainings share: Adam, and the schedule of its learning rate.

    The cosine schedule and the warm-up follow from the number of the step alone. The plateau schedule is stepped here
    and not by Lightning, which writes its checkpoint before it steps the schedule: a resumed run would miss one step.
    """

    best_metric: str  # of validation, decides which weights are kept
    best_is_highest: bool

    def __init__(self, network: nn.Module, settings: FitSettings):
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


class SegmentationTraining(Trained):
    """U-Net, cross-entropy; keeps the weights of the highest validation Dice."""

    best_metric, best_is_highest = "validation_dice", True

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.network(batch["image"]).float()
        label = batch["label"][:, 0].long()
        terms = {"loss": functional.cross_entropy(logits, label)}
        if not self.training:
            terms["dice"] = mean_dice(logits.argmax(1, keepdim=True), batch["label"], logits.shape[1])
        return terms


class ReconstructionTraining(Trained):
    """Autoencoder, mean squared error; keeps the weights of the lowest validation error."""

    best_metric, best_is_highest = "validation_loss", False

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": functional.mse_loss(self.network(batch["image"]).float(), batch["image"])}


class RegistrationTraining(Trained):
    """Registration network: D(I∘Φ, J) + λ·R(Φ) (Czolbe et al. 2023); keeps the highest validation Dice.

    Args:
        network: (moving, fixed) → displacement.
        similarity: the loss D.
        lam: weight λ of the diffusion regulariser R.
        classes: number of classes of the labels.
    """

    best_metric, best_is_highest = "validation_dice", True

    def __init__(self, network: nn.Module, similarity: Similarity, lam: float, classes: int, settings: FitSettings):
        super().__init__(network, settings)
        self.similarity, self.lam, self.classes = similarity, lam, classes

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        displacement = self.network(batch["moving"], batch["fixed"])
        names = ("moving", "fixed", "moving_label", "fixed_label")
        similarity = self.similarity.compare(Alignment(displacement=displacement, **{key: batch[key] for key in names}))
        regulariser = diffusion(displacement)
        terms = {
            "loss": similarity + self.lam * regulariser,
            "similarity": similarity,
            "regulariser": regulariser,
        }
        if not self.training:
            terms["folds"] = (jacobian_determinant(displacement) <= 0).float().mean()
        with torch.no_grad():
            moved_label = warp_labels(batch["moving_label"], displacement)
            terms["dice"] = mean_dice(moved_label, batch["fixed_label"], self.classes)
        return terms

    def state_dict(self, *args, **kwargs) -> dict:
        """Without the frozen extractor: its weights live in its own run."""
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.startswith("similarity.")}

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [key for key in result.missing_keys if not key.startswith("similarity.")]
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(f"checkpoint of another network: {missing + result.unexpected_keys}")
        return result


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
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]
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


def fit(
    make_module: Callable[[], Trained],
    settings: FitSettings,
    train: Sized,
    validation: Sized,
    augmentation: Augmentation | None,
    folder: Path,
    label: str = "training",
) -> pd.DataFrame:
    """Train to the end, from `last.ckpt` of the folder where there is one.

    Args:
        make_module: makes the Lightning module; called after the seed is set, so that initial weights repeat.
        settings: lengths, batch, seed and so on.
        train, validation: samples or pairs.
        augmentation: of the training samples, None for none.
        folder: receives metrics.csv, TensorBoard events, last.ckpt and weights.safetensors (best on validation).
        label: of the progress bar.

    Returns:
        metrics.csv as a table: column `step`, and `train_…` and `validation_…` columns.
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
    every = min(settings.validate_every, settings.steps)
    epochs = -(-settings.steps // every)
    if augmentation is not None:
        augmentation = replace(augmentation, flips=settings.flips) if settings.augment else None
    samples = DrawnSamples(train, augmentation, settings.seed, settings.crop)
    columns = [f"{kind}_{term}" for kind in ("train", "validation") for term in METRIC_TERMS]
    last = folder / "last.ckpt"
    callbacks = [
        MetricsTable(folder / "metrics.csv", columns),
        BestWeights(folder / "weights.safetensors"),
        Progress(label, epochs * every),
        ModelCheckpoint(
            folder,
            filename=last.stem,
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
    ]
    if settings.early_stopping:
        callbacks.append(
            EarlyStopping("validation_loss", patience=settings.early_stopping, check_on_train_epoch_end=False)
        )
    trainer = lightning.Trainer(
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
    trainer.fit(
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


HARMLESS = (".*exists and is not empty.*", ".*does not have many workers.*", ".*LeafSpec.*", ".*in eval mode.*")
METRIC_TERMS = ("loss", "similarity", "regulariser", "dice", "folds")
