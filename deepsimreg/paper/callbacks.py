"""What happens beside a training: the table of its metrics, its best weights, one bar over all steps."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from tqdm.auto import tqdm

from deepsimreg.files import whole
from deepsimreg.models.store import save_model


class MetricsTable(Callback):
    """metrics.csv: one row a step and one a validation; a resumed run goes on below its last checkpoint.

    `seconds` of a validation is the time spent so far, in all sittings, up to it.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, ["step", "seconds", *columns]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        rows = []
        if trainer.global_step and self.path.is_file():
            with self.path.open(newline="") as file:
                uncut = [row for row in csv.DictReader(file) if None not in row.values()]  # a killed run may cut a row
                rows = [row for row in uncut if int(row["step"]) <= trainer.global_step]
        spent = max((float(row["seconds"] or 0) for row in rows), default=0.0)
        self.started = time.perf_counter() - spent
        with whole(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def _append(self, trainer: lightning.Trainer, prefix: str, **more: str) -> None:
        found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        metrics = more | {name: f"{float(value):.6g}" for name, value in found.items() if name in self.columns}
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

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
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
        span = {"total": self.steps, "initial": trainer.global_step, "disable": not trainer.is_global_zero}
        self.bar = tqdm(desc=self.label, unit="step", mininterval=1, **span)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.bar.set_postfix({name: f"{float(metrics[name]):.4f}" for name in ("validation_loss", module.best_metric)})

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.bar.close()
