"""What happens beside a training: the table of its metrics, its best weights, one bar over all steps."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tqdm.auto import tqdm

from deepsimreg.files import whole
from deepsimreg.models.store import save_model

FETCH = 5.0  # seconds between two looks at the losses: to read them, a GPU has to be waited for


class MetricsTable(Callback):
    """metrics.csv: one row a step and one a validation; a resumed run goes on below its last checkpoint.

    The losses of the steps stay where the network is, and are fetched together: every few seconds, and before each
    validation. `seconds` of a validation is the time spent so far, in all sittings, up to it. With several processes
    the rows of the steps are those of the first one's samples.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, ["step", "seconds", *columns]
        self.waiting, self.rows = [], 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.started = self.fetched = time.perf_counter()
        if not trainer.is_global_zero:
            return
        rows = rows_until(self.path, trainer.global_step)
        self.started -= max((float(row["seconds"] or 0) for row in rows), default=0.0)
        self.rows = len(rows)
        with whole(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_) -> None:
        if trainer.is_global_zero and not trainer.fit_loop._should_accumulate():
            self.waiting.append((trainer.global_step, module.latest))
            if time.perf_counter() - self.fetched > FETCH:
                self._fetch(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._fetch(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            found = {name: float(value) for name, value in trainer.callback_metrics.items() if name in self.columns}
            self._append(found | {"step": trainer.global_step, "seconds": time.perf_counter() - self.started})

    def _fetch(self, trainer: lightning.Trainer) -> None:
        """Write the losses that have not been written."""
        if self.waiting:
            names = [f"train_{name}" for name in self.waiting[0][1]]
            values = torch.stack([torch.stack([*terms.values()]).float() for _, terms in self.waiting]).tolist()
            for (step, _), row in zip(self.waiting, values, strict=True):
                found = dict(zip(names, row, strict=True))
                self._append(found | {"step": step})
                trainer.logger.log_metrics(found, step)
        self.waiting, self.fetched = [], time.perf_counter()

    def _append(self, row: dict[str, float]) -> None:
        self.rows += 1
        written = {name: f"{value:.6g}" for name, value in row.items() if name != "step"}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({"step": row["step"]} | written)

    def state_dict(self) -> dict:
        return {"rows": self.rows}


def rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The whole rows of a metrics.csv up to a step; none before the first. A killed run may have cut the last one."""
    if not step or not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [row for row in rows if None not in row.values() and int(row["step"]) <= step]


class BestWeights(Callback):
    """weights.safetensors of the best validation so far; they are in the checkpoint, too, and go back to the file."""

    def __init__(self, path: Path):
        self.path, self.best, self.weights = path, None, {}

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        value, loss = (float(trainer.callback_metrics[name]) for name in (module.best_metric, "validation_loss"))
        if not np.isfinite([value, loss]).all():
            raise FloatingPointError(
                f"{module.best_metric} is {value} and validation_loss {loss} at step {trainer.global_step}: "
                "lower learning_rate or set gradient_clip"
            )
        if self.best is None or (value > self.best if module.best_is_highest else value < self.best):
            self.best = value
            self.weights = {name: one.detach().cpu().clone() for name, one in module.network.state_dict().items()}
            self._write(trainer, module)

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.weights:
            self._write(trainer, module)

    def _write(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            save_model(module.network, self.path, self.weights)

    def state_dict(self) -> dict:
        return {"best": self.best, "weights": self.weights}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best, self.weights = state_dict["best"], state_dict["weights"]


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
