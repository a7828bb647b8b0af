"""Masks of a dataset, with their true effect: a bright mark that lies elsewhere in the two images misleads.

A masked one does not, in training, in optimisation and in the baselines.
"""

import numpy as np
import pytest
import tifffile
import torch
import yaml
from conftest_tree import FIT, make_inputs
from test_masks import bump, smooth

from deepsimreg.data import load_dataset
from deepsimreg.losses import MSE
from deepsimreg.losses.registry import build_similarity
from deepsimreg.metrics import evaluate_pair
from deepsimreg.models import VoxelMorph, load_model
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.evaluate import Entry, evaluate, weights_of
from deepsimreg.paper.methods import optimisation_method
from deepsimreg.paper.optimisation import optimisation
from deepsimreg.paper.registrations import RegistrationTraining
from deepsimreg.paper.samples import to_tensors
from deepsimreg.paper.settings import Fit
from deepsimreg.paper.training import fit
from deepsimreg.warps import warp_image, warp_labels

SHAPE, SMALL = (48, 48), {"channels": [8, 8, 16], "light": True}
TRUTH = bump(SHAPE, 2.5)
SPLITS = {"train": range(8), "validation": range(8, 10), "test": range(10, 12)}


def marked(number):
    """A pair with the known warp and a mark that is 5 pixels away from where the warp would have it.

    Returns side → image, label and mask, (1, 1, *spatial).
    """
    moving = 0.6 * smooth(number, SHAPE)
    label = (moving > 0.3).to(torch.uint8)
    row, column = np.random.default_rng(number).integers(14, 22, 2)
    sides = {}
    for side, image, labels, start in (
        ("m", moving, label, column + 5),
        ("f", warp_image(moving, TRUTH), warp_labels(label, TRUTH), column),
    ):
        mask = torch.ones(1, 1, *SHAPE)
        mask[:, :, row : row + 10, start : start + 8] = 0
        sides[side] = (torch.where(mask > 0, image, 1.0), labels, mask.to(torch.uint8))
    return sides


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """Descriptions of such pairs, without the masks and with them."""
    folder = tmp_path_factory.mktemp("marks")
    names = {split: [f"{side}{n}" for n in numbers for side in "mf"] for split, numbers in SPLITS.items()}
    rows = [f"m{n},f{n},{split}" for split, numbers in SPLITS.items() for n in numbers]
    (folder / "pairs.csv").write_text("\n".join(["moving,fixed,split", *rows]) + "\n")
    for kind in ("images", "labels", "masks"):
        (folder / kind).mkdir()
    for number in range(12):
        for side, arrays in marked(number).items():
            for kind, array in zip(("images", "labels", "masks"), arrays, strict=True):
                tifffile.imwrite(folder / kind / f"{side}{number}.tif", array[0, 0].numpy())
    own = {"name": "marks", "kind": "planes", "images": "images/{subject}.tif", "labels": "labels/{subject}.tif"}
    own |= {"classes": ["background", "tissue"], "intensity": {"range": [0, 1]}, "split": names}
    paths = [folder / "without.yaml", folder / "masked.yaml"]
    for path, mask in zip(paths, ({}, {"mask": "masks/{subject}.tif"}), strict=True):
        path.write_text(yaml.safe_dump(own | {"pairs": {"file": "pairs.csv"}} | mask))
    return paths


def error(register, data, with_weights=True):
    """Mean distance to the true warp over the test pairs, voxels."""
    found = []
    for pair in data.pairs("test"):
        given = {"weights": weights_of(pair)} if with_weights and pair.weights else {}
        with torch.no_grad():
            displacement = register(pair.moving.image[None], pair.fixed.image[None], **given)
        found.append((displacement - TRUTH).norm(dim=1).mean().item())
    return np.mean(found)


@pytest.mark.parametrize(("name", "lam"), [("mse", 0.05), ("ncc", 0.5)])
def test_a_network_that_is_trained_with_masks_is_not_misled(described, tmp_path, name, lam):
    errors = []
    for path in described:
        data, folder = load_dataset(str(path)), tmp_path / path.stem
        settings = Fit(steps=150, batch=4, learning_rate=3e-3, validate_every=75, augment=False)
        folder.mkdir()

        def module(data=data, settings=settings):
            return RegistrationTraining(VoxelMorph(2, **SMALL), build_similarity(name), lam, data, settings)

        fit(module, settings, data.pairs("train"), data.pairs("validation"), data, folder)
        errors.append(error(load_model(folder / "weights.safetensors", VoxelMorph), data, with_weights=False))
    print(f"{name}: {errors[0]:.2f} voxels off without masks, {errors[1]:.2f} with them")
    assert errors[1] < 0.2 < TRUTH.norm(dim=1).mean() / 3
    assert errors[1] < 0.6 * errors[0]


def test_the_loss_of_a_training_step_is_that_of_what_counts(described):
    data = load_dataset(str(described[1]))
    network = VoxelMorph(2, **SMALL)
    torch.nn.init.normal_(network.flow.weight)
    module = RegistrationTraining(network, MSE(), 0.0, data, Fit()).eval()
    batch = {name: tensor[None] for name, tensor in to_tensors(data.pairs("train")[0]).items()}
    with torch.no_grad():
        displacement = module.network(batch["moving"], batch["fixed"])
        terms = module.terms(batch)
    seen = (warp_image(batch["moving_weights"], displacement) > 0.999) & (batch["fixed_weights"] > 0)
    expected = (warp_image(batch["moving"], displacement) - batch["fixed"]).square()[seen].mean()
    torch.testing.assert_close(terms["similarity"], expected)
    measured = evaluate_pair(displacement, batch["moving_label"], batch["fixed_label"], data.classes, data.spacing)
    assert terms["dice"].item() == pytest.approx(measured["dice"]), "of all voxels"


METHODS = {
    "ncc": {"similarity": "ncc", "lam": [1]},
    "network, then mse": {"network": "mse", "similarity": "mse", "lam": [0.05]},
    "network": {"network": "mse"},
    "greedy": {"baseline": "greedy"},
    "syn": {"baseline": "syn"},
}


def test_every_method_of_the_optimisation_chapter_uses_the_masks(described, profile):
    tables, errors = [], []
    for path in described:
        tree = {"data": {"description": str(path)}, "baselines": {"greedy": {}, "syn": {}}}
        tree["registration"] = {"network": SMALL, "fit": FIT, "similarities": {"mse": {"lam": 1}}}
        plan = profile({"marks": tree | {"optimisation": {"methods": METHODS}}}, path.stem)
        make_inputs(plan, plan.chapter("marks", "optimisation"))
        parts, data = plan.methods("marks"), plan.data("marks")
        methods = [optimisation_method(plan, "marks", parts[name], parts[name].lam[0]) for name in [*METHODS][:2]]
        errors.append([error(register, data) for register in methods])
        tables.append(optimisation(plan, "marks", traced=1))
    dice, traces = (
        [one[kind].groupby("method")["dice"].agg("mean" if kind == "test" else "last") for one in tables]
        for kind in ("test", "traces")
    )
    print("Dice", *(f"{name} {a:.3f} {b:.3f}" for name, a, b in zip(dice[0].index, *dice, strict=True)))
    print("voxels off", *errors)
    for name in set(METHODS) - {"network"}:
        assert dice[1][name] > dice[0][name] + 0.01, name
        assert traces[1][name] > traces[0][name], name
    assert (np.array(errors[1]) < 0.3 * np.array(errors[0])).all()


@pytest.mark.parametrize("name", ["syn", "greedy"])
@pytest.mark.parametrize("sides", ["both", "moving", "fixed"])
def test_baselines_take_masks(name, sides):
    register, smoothing = BASELINES[name].register, BASELINES[name].smoothing
    errors = {"without": [], "masked": []}
    for number in range(4):
        (moving, _, moving_mask), (fixed, _, fixed_mask) = marked(number).values()
        weights = tuple(
            mask if sides in (side, "both") else None for side, mask in (("moving", moving_mask), ("fixed", fixed_mask))
        )
        for what, given in (("without", {}), ("masked", {"weights": weights})):
            found = register(moving, fixed, (1, 1), smoothing=smoothing, **given)
            errors[what].append((found - TRUTH).norm(dim=1).mean().item())
    means = {what: np.mean(found) for what, found in errors.items()}
    print(f"{name}, {sides}: {means['without']:.2f} voxels off without masks, {means['masked']:.2f} with them")
    assert means["masked"] < 0.85 * means["without"]


def test_masks_do_not_reach_the_metrics(described):
    """A displacement that is given has the same metrics with masks and without."""
    entry = [Entry({}, lambda moving, fixed, weights=None: TRUTH)]
    without, masked = (evaluate(entry, load_dataset(str(path))).drop(columns="seconds") for path in described)
    assert without.equals(masked)
