"""Registration networks: how one is trained with a similarity, and the λ that it is trained with."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from deepsimreg.data.base import Dataset, Pair
from deepsimreg.losses.base import Alignment, Similarity
from deepsimreg.losses.registry import build_similarity, required_extractors
from deepsimreg.losses.regularisers import diffusion
from deepsimreg.metrics import segmentation_metrics
from deepsimreg.models.registry import ARCHITECTURES
from deepsimreg.models.store import load_model
from deepsimreg.paper.evaluate import STILL, Entry, chosen_lams, evaluate
from deepsimreg.paper.extractors import load_extractor
from deepsimreg.paper.files import copy_file, read_json
from deepsimreg.paper.outputs import write_table
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.resolve import RegistrationSettings
from deepsimreg.paper.run import TRAINING, Run
from deepsimreg.paper.settings import Fit
from deepsimreg.paper.training import Trained, mean_dice, trained
from deepsimreg.warps import jacobian_determinant, warp_labels


class RegistrationTraining(Trained):
    """Registration network: D(I∘Φ, J) + λ·R(Φ) (Czolbe et al. 2023); keeps the highest validation Dice.

    network: (moving, fixed) → displacement. similarity: the loss D. lam: weight λ of the diffusion regulariser R, whose
    derivatives are in mm per mm. dataset: its classes and spacing. Where pairs have masks, D is of what counts.
    """

    best_metric, best_is_highest = "validation_dice", True

    def __init__(self, network: nn.Module, similarity: Similarity, lam: float, dataset: Dataset, settings: Fit):
        super().__init__(network, settings)
        self.held, self.lam = (similarity,), lam  # in a tuple: the frozen extractor is no part of a checkpoint
        self.classes, self.spacing = len(dataset.classes), dataset.spacing

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        displacement = self.network(batch["moving"], batch["fixed"])
        measure = self.held[0].to(displacement.device).train(self.training)
        similarity = measure.compare(Alignment(displacement=displacement, classes=self.classes, **batch))
        regulariser = diffusion(displacement, self.spacing)
        terms = {"loss": similarity + self.lam * regulariser, "similarity": similarity, "regulariser": regulariser}
        if not self.training:
            terms["folds"] = (jacobian_determinant(displacement) <= 0).float().mean()
        with torch.no_grad():
            moved_label = warp_labels(batch["moving_label"], displacement)
            terms["dice"] = mean_dice(moved_label, batch["fixed_label"], self.classes)
        return terms


def similarity_of(plan: Profile, run: Run) -> Similarity:
    """The similarity that a registration is trained with, its extractor loaded; errors as `load_extractor`."""
    settings: RegistrationSettings = run.settings
    kinds = required_extractors([settings.similarity])
    extractors = {kind: load_extractor(plan, run.dataset, settings.extractor, kind) for kind in kinds}
    return build_similarity(settings.similarity, extractors, **settings.options)


def validation_rows(runs: list[Run]) -> pd.DataFrame:
    """Every metric of the validation pairs of finished networks, with their method and λ."""
    tables = [
        pd.read_csv(one.need().validation).assign(method=one.settings.similarity, lam=one.settings.lam) for one in runs
    ]
    return pd.concat(tables, ignore_index=True)


def lam_of(run: Run) -> float:
    """λ of a registration: a number of the profile, or the best of tuning."""
    return best_tuning(run).settings.lam if run.settings.lam == "tuned" else run.settings.lam


def best_tuning(run: Run) -> Run:
    """Of the runs of tuning that a run is made from, the one whose λ is the best on the validation pairs."""
    runs = [one for one in run.inputs if one.name.startswith("tuning/")]
    (lam,) = chosen_lams(validation_rows(runs)).values()
    return next(one for one in runs if one.settings.lam == lam)


def train_registration(plan: Profile, run: Run, dataset: Dataset) -> tuple[nn.Module, pd.DataFrame]:
    """Train, resume or load a registration network.

    Every metric of the validation pairs goes to `validation.csv` of the run's folder. A network that tuning has trained
    with the same settings, at full length, is not trained again. Returns the network of the best validation in
    evaluation mode, and its metrics by step.
    """
    settings: RegistrationSettings = run.settings
    tuned = best_tuning(run) if settings.lam == "tuned" else None
    lam = lam_of(run)
    with run.open():
        if tuned and not (run.folder / "training.json").is_file():
            _reuse_tuning_run(tuned, run)
        parts = registration_parts(plan, run, dataset, lam)
        network, history = trained(run, *parts, ARCHITECTURES[settings.architecture], dataset)
        if not run.current:
            rows = evaluate([Entry({"lam": lam}, network)], dataset, "validation", run.validation)
            write_table(rows, run.validation)
            run.finish(**read_json(run.folder / "training.json"), lam=lam, gain=_gain(run, rows, dataset))
    return network.cpu(), history


def _gain(run: Run, rows: pd.DataFrame, dataset: Dataset) -> float:
    """Validation Dice above that of the pairs before registration; says so where there is hardly any."""
    pairs = dataset.pairs("validation")
    still = [segmentation_metrics(pair.moving.label, pair.fixed.label, dataset.classes)["dice"] for pair in pairs]
    after, before = rows["dice"].mean(), sum(still) / len(still)
    if after - before < STILL and run.settings.fit.steps:
        print(
            f"{run} has learned nothing: validation Dice {after:.4f}, before registration {before:.4f}, SD log J "
            f"{rows['sd_log_jacobian'].mean():.3f}. It may have stayed at the identity: more steps, another learning "
            "rate or a smaller λ may help"
        )
    return after - before


def registration_parts(
    plan: Profile, run: Run, dataset: Dataset, lam: float
) -> tuple[Callable[[], Trained], Callable[[str], Sequence[Pair]]]:
    """What `fit` needs: how the training is made, and split → its pairs."""
    settings: RegistrationSettings = run.settings

    def make_module() -> RegistrationTraining:
        network = ARCHITECTURES[settings.architecture](dataset.ndim, **settings.network)
        return RegistrationTraining(network, similarity_of(plan, run), lam, dataset, settings.fit)

    return make_module, dataset.pairs


def _reuse_tuning_run(tuned: Run, run: Run) -> None:
    """If tuning has trained this very network, with the same settings and inputs, its results become this run's."""
    if tuned.settings == run.settings.model_copy(update={"lam": tuned.settings.lam, "grid": ()}):
        for name in (*TRAINING[1:], tuned.validation.name, TRAINING[0]):
            copy_file(tuned.folder / name, run.folder / name)


def load_network(run: Run) -> nn.Module:
    """The network of a finished registration, in evaluation mode; made where the profile makes runs on demand."""
    return load_model(run.need().weights, ARCHITECTURES[run.settings.architecture])
