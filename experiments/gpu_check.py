"""What this machine's GPU computes, beside the CPU in float64, and how long the runs of the paper would take on it.

    make gpu-check        at most eight minutes on a GPU; without one the same, small, on the CPU

Values: losses, warps, metrics, the training of each network and its resume, the optimisation of a pair of brain size.
Costs: seconds and peak memory of a step of every training of `paper.yaml`, at the size of its data, and how often the
GPU waits for the host in it. The images are made.
"""

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import torch
from speed import made
from torch import Tensor

from deepsimreg import register
from deepsimreg.batch import peak_memory
from deepsimreg.data import DATASETS, load_dataset
from deepsimreg.data.augment import AUGMENTATIONS
from deepsimreg.losses.base import Alignment
from deepsimreg.losses.registry import SIMILARITIES, build_similarity, required_extractors
from deepsimreg.losses.regularisers import diffusion
from deepsimreg.metrics import evaluate_pair
from deepsimreg.models import VGG16Features
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS
from deepsimreg.models.store import load_model
from deepsimreg.paper.extractors import extractor_training
from deepsimreg.paper.outputs import device, named
from deepsimreg.paper.plan import CHAPTERS, Profile
from deepsimreg.paper.registrations import RegistrationTraining
from deepsimreg.paper.settings import ExtractorPart, Fit
from deepsimreg.paper.training import fit
from deepsimreg.warps import integrate, invert, jacobian_determinant, warp_image, warp_labels, warp_one_hot

SMALL = {"channels": [4, 8, 8], "light": True}
ALLOWED = {"loss": 1e-4, "gradient": 2e-3, "warp": 1e-4, "metric": 1e-4, "training": 0.02, "resume": 1e-6}
STEPS = 3  # that are timed of each training


class Table:
    """Rows of a Markdown table, printed as they come."""

    def __init__(self, *columns: str):
        self.rows = []
        self.print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def print(self, line: str) -> None:
        print(line, flush=True)
        self.rows.append(line)

    def add(self, *cells) -> None:
        self.print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")


def scene(shape: tuple[int, ...], classes: int = 3, batch: int = 1) -> dict[str, Tensor]:
    """Moving and fixed image, labels and displacement of smooth texture, float64."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 4 + len(shape), *[6] * len(shape), generator=generator, dtype=torch.float64)
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    fields = torch.nn.functional.interpolate(coarse, shape, mode=mode, align_corners=True)
    images = {"moving": fields[:, :1], "fixed": fields[:, 1:2]}
    labels = {"moving_label": (fields[:, 2:3] * classes).byte(), "fixed_label": (fields[:, 3:4] * classes).byte()}
    return images | labels | {"displacement": 4 * (fields[:, 4:] - 0.5)}


def moved(values, where: torch.device, dtype: torch.dtype):
    return {name: one.to(where, dtype if one.is_floating_point() else None) for name, one in values.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected value."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def values(where: torch.device) -> Iterator[tuple[str, str, float]]:
    """(what, kind, difference to the CPU in float64) of losses, gradients, warps and metrics."""
    for shape in ((48, 40), (24, 20, 28)):
        ndim, double = len(shape), scene(shape)
        torch.manual_seed(0)
        networks = {kind: EXTRACTORS[kind](ndim, 3 if kind == "seg" else 1, **SMALL) for kind in EXTRACTORS}
        networks |= {"vgg": VGG16Features()} if ndim == 2 else {}
        for name in SIMILARITIES:
            if not {*required_extractors([name])} <= {*networks}:
                continue
            results = []
            for place, dtype in ((torch.device("cpu"), torch.float64), (where, torch.float32)):
                measure = build_similarity(name, networks).to(place, dtype).eval()
                given = moved(double, place, dtype)
                given["displacement"].requires_grad_()
                loss = measure.compare(Alignment(**given, classes=3))
                results.append((loss, *torch.autograd.grad(loss, given["displacement"])))
            yield f"{name}, {ndim}D", "loss", abs(results[0][0].item() - results[1][0].item())
            yield f"{name}, {ndim}D, by the displacement", "gradient", relative(results[1][1], results[0][1])
        found = [warped(**moved(double, *place)) for place in (("cpu", torch.float64), (where, torch.float32))]
        for name in found[0]:
            yield f"{name}, {ndim}D", "warp", relative(found[1][name], found[0][name])
        rows = []
        for place, dtype in (("cpu", torch.float64), (where, torch.float32)):
            given = moved(double, place, dtype)
            labels = given["moving_label"], given["fixed_label"]
            rows.append(evaluate_pair(given["displacement"], *labels, "abc", [1.0] * ndim, published=True))
        shared = [name for name in rows[0] if np.isfinite(rows[0][name])]
        yield f"metrics, {ndim}D", "metric", max(abs(rows[0][name] - rows[1][name]) for name in shared)


def warped(moving: Tensor, moving_label: Tensor, displacement: Tensor, **_) -> dict[str, Tensor]:
    """What each warp makes of a scene."""
    return {
        "warp_image": warp_image(moving, displacement),
        "warp_labels": warp_labels(moving_label, displacement),
        "warp_one_hot": warp_one_hot(moving_label, displacement, 3),
        "integrate": integrate(displacement, 6),
        "invert": invert(displacement / 4),
        "Jacobian": jacobian_determinant(displacement),
        "diffusion": diffusion(displacement, [1.0, 2.0, 3.0][: displacement.shape[1]]),
    }


def trainings(steps: int) -> Iterator[tuple[str, str, float]]:
    """(what, kind, difference) of each network: trained here against the CPU, and gone on with against at once."""
    data = load_dataset("phantom-2d", shape=(48, 48), train=8, validation=4, test=2)
    settings = Fit(steps=steps, batch=4, validate_every=steps // 2, learning_rate=1e-3)

    def network(name: str, more: dict, settings: Fit) -> RegistrationTraining:
        return RegistrationTraining(ARCHITECTURES[name](2, **more), build_similarity("ncc"), 0.5, data, settings)

    makes = {kind: partial(_extractor, kind, data) for kind in EXTRACTORS}
    swin = {"embed_dim": 12, "depths": (2, 2), "heads": (2, 2), "window": 3, "light": True}
    for name in ARCHITECTURES:
        makes[name] = partial(network, name, swin if name == "transmorph" else SMALL)
    for name, make in makes.items():
        items = data.samples if name in EXTRACTORS else data.pairs
        parts = items("train"), items("validation"), data
        with tempfile.TemporaryDirectory() as folder:
            half, whole = Path(folder, "half"), Path(folder, "whole")
            history = fit(partial(make, settings), settings, *parts, whole)
            fit(partial(make, settings), settings.model_copy(update={"steps": steps // 2}), *parts, half)
            fit(partial(make, settings), settings, *parts, half)
            a, b = (torch.load(one / "last.ckpt", weights_only=True)["state_dict"] for one in (whole, half))
            yield f"{name}, gone on with", "resume", max((a[key] - b[key]).abs().max().item() for key in a)
            with on_the_cpu():
                expected = fit(partial(make, settings), settings, *parts, Path(folder, "cpu"))
            losses = (one["validation_loss"].dropna().iloc[-1] for one in (history, expected))
            yield f"{name}, loss after {steps} steps", "training", abs(np.subtract(*losses))
            mixed = settings.model_copy(update={"precision": "bf16-mixed"})
            losses = fit(partial(make, mixed), mixed, *parts, Path(folder, "mixed"))["validation_loss"].dropna()
            yield f"{name}, bf16-mixed", "training", abs(losses.iloc[-1] - history["validation_loss"].dropna().iloc[-1])
            load_model(whole / "weights.safetensors")
            if name == "voxelmorph":
                compiled = settings.model_copy(update={"compile": True})
                losses = fit(partial(make, compiled), compiled, *parts, Path(folder, "compiled"))["validation_loss"]
                difference = abs(losses.dropna().iloc[-1] - history["validation_loss"].dropna().iloc[-1])
                yield f"{name}, compiled", "training", difference
                load_model(Path(folder, "compiled", "weights.safetensors"))


def _extractor(kind: str, data, settings: Fit):
    return extractor_training(ExtractorPart(kind=kind, network=SMALL, fit=settings), data)


class on_the_cpu:
    """`with on_the_cpu():` a training does not see the GPU."""

    def __enter__(self) -> None:
        self.seen, torch.cuda.is_available = torch.cuda.is_available, lambda: False

    def __exit__(self, *_) -> None:
        torch.cuda.is_available = self.seen


def measured(work: Callable[[], object], where: torch.device) -> tuple[float, float]:
    """Seconds and peak GiB of some work."""
    if where.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, peak_memory(where)


def step_of(run, shape: tuple[int, ...], where: torch.device) -> Callable[[], None]:
    """One optimiser step of the training of a planned run on made data: augmentation, losses, gradients, Adam."""
    settings, ndim = run.settings.fit, len(shape)
    classes = tuple(map(str, range(24 if ndim == 3 else 3)))
    data = SimpleNamespace(ndim=ndim, classes=classes, spacing=(1.0,) * ndim)
    if run.chapter == CHAPTERS["extractor"]:
        module = extractor_training(run.settings, data)
    else:
        kinds = required_extractors([run.settings.similarity])
        vgg = {"vgg": VGG16Features()} if "vgg" in kinds else {}
        widths = {"batch_norm": True, "dropout": 0.1}
        networks = {kind: EXTRACTORS[kind](ndim, 3, **widths) for kind in kinds if kind != "vgg"} | vgg
        similarity = build_similarity(run.settings.similarity, networks, **run.settings.options)
        network = ARCHITECTURES[run.settings.architecture](ndim, **run.settings.network)
        module = RegistrationTraining(network, similarity, 1.0, data, settings)
    module.to(where).train()
    optimizer = torch.optim.Adam(module.parameters())
    batch = moved(scene(shape, len(classes), settings.batch), where, torch.float32)
    batch.pop("displacement")
    if run.chapter == CHAPTERS["extractor"]:
        batch = {"image": batch["moving"], "label": batch["moving_label"]}
    draw = partial(AUGMENTATIONS[ndim].sample, torch.Generator().manual_seed(0), ndim, shape)
    precision = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[settings.precision]

    def step() -> None:
        for _ in range(settings.accumulate):
            matrix = torch.cat([draw() for _ in range(settings.batch)])
            drawn = batch | {"matrix": matrix, "corner": torch.zeros(settings.batch, ndim)}
            drawn = {name: one.to(where, non_blocking=True) for name, one in drawn.items()}
            with torch.autocast(where.type, precision, enabled=precision is not None):
                loss = module.terms(module.on_after_batch_transfer(drawn, 0))["loss"]
            (loss / settings.accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def costs(where: torch.device, small: bool, table: Table, minutes: float) -> None:
    """A row for every kind of training of paper.yaml: seconds and memory of a step, runs, hours of all of them."""
    plan, deadline, total = Profile("paper", dict.fromkeys(DATASETS, "")), time.time() + 60 * minutes, 0.0
    for dataset in plan.datasets:
        shape = DATASETS[dataset].shape
        trained = [run for run in (*plan.runs(dataset), *plan.tunings(dataset)) if hasattr(run.settings, "fit")]
        trained = [run for run in {id(run): run for run in trained}.values() if run.settings.fit.steps]
        for (kind, name), runs in grouped(trained).items():
            if small:
                runs = [small_run(run) for run in runs]
            if time.time() > deadline:
                table.add(dataset, kind, name, len(runs), "–", "–", "–", "not measured: the time is up")
                continue
            try:
                step = step_of(runs[0], tuple(16 for _ in shape) if small else shape, where)
                waits = counted(step, where)  # warms up, too
                seconds, memory = measured(partial(repeated, step), where)
            except torch.OutOfMemoryError:
                table.add(dataset, kind, name, len(runs), "–", "–", "–", "more memory than there is")
                continue
            hours = seconds / STEPS * sum(run.settings.fit.steps for run in runs) / 3600
            total += hours
            found = ("–", "–") if where.type == "cpu" else (memory, waits)
            table.add(dataset, kind, name, len(runs), seconds / STEPS, *found, "–" if small else f"{hours:.0f}")
    table.add("all", "", "", "", "", "", "", "–" if small else f"{total:.0f}")


def counted(step: Callable[[], None], where: torch.device) -> int:
    """How often the GPU waits for the host in a step, after a first one, in which libraries look at what there is."""
    step()
    if where.type == "cpu":
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in caught)


def repeated(step: Callable[[], None]) -> None:
    for _ in range(STEPS):
        step()


def grouped(runs) -> dict[tuple[str, str], list]:
    """Trainings that cost the same: of one network and one loss."""
    found: dict[tuple[str, str], list] = {}
    for run in runs:
        settings = run.settings
        extractor = run.chapter == CHAPTERS["extractor"]
        key = ("extractor", settings.kind) if extractor else (settings.architecture, settings.similarity)
        found.setdefault(key, []).append(run)
    return found


def small_run(run):
    """The run with a batch of two, for a look at whether it runs at all."""
    settings = run.settings
    return SimpleNamespace(
        chapter=run.chapter,
        settings=settings.model_copy(update={"fit": settings.fit.model_copy(update={"batch": 2, "accumulate": 1})}),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file for the tables")
    parser.add_argument("--minutes", type=float, default=5.0, help="for the costs; what is left is said")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    where = device()
    small = where.type == "cpu"
    lightning.seed_everything(0, verbose=False)
    head = f"# {named(where)}{', small size' if small else ''}\n\ntorch {torch.__version__}\n"
    print(head)
    checks, failed = Table("what", "difference", "allowed"), 0
    for what, kind, difference in itertools.chain(values(where), trainings(8 if small else 40)):
        checks.add(what, float(difference), ALLOWED[kind])
        failed += not difference <= ALLOWED[kind]
    print()
    pairs = Table("pair", "seconds", "peak GiB", "error, voxels", "before")
    shape = (40, 48, 56) if small else (160, 192, 224)
    moving, fixed, u = made(shape)
    found = []
    seconds, memory = measured(lambda: found.append(register(moving, fixed, progress=False)), where)
    errors = [np.linalg.norm(one - u, axis=0).mean() for one in (found[0].displacement[0].cpu().numpy(), 0 * u)]
    pairs.add(" × ".join(map(str, shape)), seconds, "–" if small else memory, *map(float, errors))
    failed += not errors[0] < 0.1 * errors[1]
    print()
    trained = Table("data", "network", "loss, kind", "runs", "s a step", "peak GiB", "waits", "hours of all")
    costs(where, small, trained, options.minutes)
    if options.out:
        tables = "\n\n".join("\n".join(table.rows) for table in (checks, pairs, trained))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(f"{head}\n{tables}\n", encoding="utf-8")
    print(f"\n{failed} of the checks failed" if failed else "\nall checks passed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
