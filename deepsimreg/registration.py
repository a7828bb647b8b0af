"""Two images, one call: `register(moving, fixed)`, by a trained network, by optimisation of this pair, or by both.

1  both images onto the fixed grid, through their affines and, if asked for, an affine pre-alignment
2  a network's displacement, or none, to start from
3  coarse to fine, the displacement that makes this pair most similar (optimise.py)
4  the moving image, labels and points pulled once through all of it (transform.py)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepsimreg.errors import WeightsError
from deepsimreg.image import Image, ImageLike
from deepsimreg.losses.base import Similarity
from deepsimreg.losses.channels import ChannelMean
from deepsimreg.losses.registry import DEFAULT, default_lam, parse_similarity, required_extractors, similarity_terms
from deepsimreg.models.foreign import RANDOM, TorchScriptFeatures, random_features
from deepsimreg.models.registry import ARCHITECTURES, EXTRACTORS
from deepsimreg.optimise import LEARNING_RATE, Level, Optimised, default_levels, evaluating, optimise
from deepsimreg.pair import Pair, prepared
from deepsimreg.pretrained import load, pretrained
from deepsimreg.transform import Registration


@torch.inference_mode(False)
def register(
    moving: ImageLike | Sequence[ImageLike],
    fixed: ImageLike | Sequence[ImageLike],
    similarity: str | Mapping[str, float] | Similarity = DEFAULT,
    lam: float | None = None,
    *,
    network: str | Path | nn.Module | None = None,
    extractor: object | None = None,
    levels: Sequence[Level | tuple[int, int, int]] | None = None,
    steps: int | None = None,
    labels: tuple[ImageLike, ImageLike] | ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    fixed_mask: ImageLike | None = None,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
    landmark_weight: float = 0.1,
    channel_weights: Sequence[float] | None = None,
    affine: str | None = None,
    start: str | Path | Sequence[str | Path] | None = None,
    fill: float | None = None,
    background: int = 0,
    model: str = "velocity",
    extract: str = "once",
    learning_rate: float = LEARNING_RATE,
    spacing: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Registration:
    """Pull `moving` onto `fixed`.

    With a network and steps = 0 the network alone; with a network and steps, both; else optimisation from the identity.

    Args:
        moving, fixed: paths (NIfTI, TIFF, NRRD, MetaImage, MGH, PNG), images of nibabel, SimpleITK or ANTs, arrays
            (H, W) or (X, Y, Z), tensors (N, C, *spatial); or lists of these, on one grid: several channels. Of a file
            that holds more than one image, `as_image(path, "moving", page=3)`.
            Images on different grids are brought together by their affines; a moving image that is finer than the
            fixed grid is smoothed for the comparison. Grey values that leave [0, 1], or stay below 0.5, are scaled
            from their 1 % and 99 % quantiles for it.
        similarity: a name ("ncc"), a sum ("deepsim-seg + 0.5 mind"), names with weights, or a `Similarity`.
        lam: weight λ of the diffusion regulariser; None: that of the similarity's record. Its derivatives are in mm per
            mm: on a grid with equal spacing, whatever it is, λ means what it means in the papers (voxels per voxel).
        network: a registration network, the path of its weights, or a pretrained one's name.
        extractor: for DeepSim: anything with a method `features`; the path of its weights, or of a TorchScript file
            (.pt; `deepsimreg.models.foreign` says more of it); the name of a pretrained network or of its dataset; or
            "random", a network that was never trained, as control.
        levels: (resolution, grid, steps), coarse to fine; None: `default_levels`.
        steps: of each level, in place of the schedule's.
        labels: on the moving image's grid, or a pair of them, the fixed image's second; then Dice is measured.
        moving_mask, fixed_mask: on the grids of the images; what is not more than 0 neither pulls nor pushes.
        landmarks: points (P, D) of the moving and of the fixed image that should meet: mm, LPS, as ITK has them; of
            arrays mm along their axes. landmark_weight: of their mean squared distance in the finest spacing.
        channel_weights: of the images of a list; None: the same.
        affine: "rigid" or "affine" aligns the images by that first.
        start: displacement fields or affines (`deepsimreg.apply`) of any tool, to go on from.
        fill: grey value of what lies outside the moving image; None: its lowest.
        background: the label of what lies outside, and of the class that counts as background in Dice.
        model, extract, learning_rate: as `optimise`.
        spacing: mm, array axis order, for images that carry none, in place of what a TIFF's tags say.
        device: where it runs; None: a GPU if there is one.
        progress: show a bar.

    Raises:
        DataError: a file that cannot be read.
        FloatingPointError: the optimisation has diverged.
        ValueError: images that do not go together, are empty, constant or not finite; an unknown name or option.
        WeightsError: weights that cannot be used.
    """
    masks, given = (moving_mask, fixed_mask), start is not None
    pair = prepared(moving, fixed, _device(device), labels, masks, affine, spacing, started=given)
    several = isinstance(fixed, list | tuple) and len(fixed) > 1
    compared = _similarity(similarity, extractor, pair.fixed, several)
    if several:
        compared = ChannelMean(compared, channel_weights or [1.0] * len(fixed))
    compared = compared.to(pair.device)
    marks = None if landmarks is None else pair.landmarks(landmarks, landmark_weight)
    lam = default_lam(similarity, pair.fixed.ndim) if lam is None else float(lam)
    if start is not None and (network is not None or affine is not None):
        raise ValueError("start, network and affine each give where to begin: choose one, or write them into one field")
    begin = _started(start, network, pair)
    schedule = _levels(levels, steps, pair.fixed, started=begin is not None)
    found = Optimised(begin, None, ())
    if begin is None or sum(level.steps for level in schedule):
        images = (*pair.values, compared, lam, schedule, pair.fixed.spacing, begin)
        further = {"progress": progress, "weights": pair.weights, "landmarks": marks}
        found = optimise(*images, model, extract, learning_rate, **further)
    how = {"fill": fill, "background": background}
    if found.losses:
        how |= {"similarity": _name(similarity), "lam": lam}
    return pair.registered(found, **how)


def _levels(levels, steps: int | None, fixed: Image, started: bool) -> list[Level]:
    levels = levels or default_levels(fixed.shape, fixed.spacing, started)
    levels = [level if isinstance(level, Level) else Level(*level) for level in levels]
    return levels if steps is None else [Level(level.resolution, level.grid, steps) for level in levels]


def _started(start, network: str | Path | nn.Module | None, pair: Pair) -> Tensor | None:
    """The displacement of transforms on disk, or of a network, to start from."""
    found = None
    if start is not None:
        from deepsimreg.apply import displacement_of

        names = [start] if isinstance(start, str | Path) else start
        found = displacement_of(names, pair.fixed.grid, pair.moving.grid, pair.matrix).to(pair.device)
        pair.check_reach(found)
        found = found.expand(len(pair.values[1]), *found.shape[1:])
    elif network is not None:
        network = _network(network, pair.fixed, pair.device)
        with torch.no_grad(), evaluating(network):
            found = network(*pair.values)
    pair.tick("network")
    return found


def _device(device: str | torch.device | None) -> torch.device:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device}, but torch finds no GPU here: leave it out, or install torch with CUDA")
    return device


def _network(network: str | Path | nn.Module, fixed: Image, device: torch.device) -> nn.Module:
    """The registration network, on the device."""
    if isinstance(network, str | Path):
        name, network = network, load(network)
        if type(network) not in ARCHITECTURES.values():
            raise WeightsError(f"{name} holds weights of {type(network).__name__}: name a registration network")
    _check_network(network, fixed.ndim)
    return network.to(device)


def _check_network(network: object, ndim: int, channels: int | None = None) -> None:
    """ValueError for a network of this package that is made for other images."""
    made = getattr(network, "config", {})
    for what, ours, own in (("axes", ndim, made.get("ndim")), ("channels", channels, made.get("in_channels"))):
        if None not in (ours, own) and ours != own:
            raise ValueError(f"{type(network).__name__} is for images of {own} {what}, these have {ours}: give another")


def _name(similarity) -> str:
    """A similarity as it is written in a call."""
    if isinstance(similarity, nn.Module):
        return type(similarity).__name__
    terms = similarity_terms(similarity).items()
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in terms)


def _similarity(similarity, extractor, image: Image, one_by_one: bool) -> Similarity:
    if isinstance(similarity, nn.Module):
        if not isinstance(similarity, Similarity):
            kind = type(similarity).__name__
            raise ValueError(f"{kind} is no similarity: derive it from deepsimreg.losses.Similarity")
        return similarity
    extractors = {}
    for kind in required_extractors(similarity_terms(similarity)):
        if extractor is None:
            raise ValueError(
                f"{similarity} compares features: give extractor, a pretrained dataset (deepsimreg models), "
                "a weight file, or a network with a method features(image)"
            )
        extractors[kind] = extractor
        if isinstance(extractor, str) and extractor == RANDOM:
            if any(name.startswith("classes") for name in similarity_terms(similarity)):
                raise ValueError("a random network knows no classes: compare its features, as deepsim-seg does")
            extractors[kind] = random_features(image.ndim)
        elif isinstance(extractor, str | Path) and Path(extractor).suffix in (".pt", ".pth", ".ts"):
            extractors[kind] = TorchScriptFeatures(extractor)
        elif isinstance(extractor, str | Path):
            path = Path(extractor).expanduser()
            found = str(extractor) if str(extractor) in pretrained() else path if path.is_file() else None
            extractors[kind] = load(found or f"{extractor}/{kind}", EXTRACTORS.get(kind))
        if hasattr(extractors[kind], "at_spacing"):
            extractors[kind] = extractors[kind].at_spacing(image.spacing)
        _check_network(extractors[kind], image.ndim, 1 if one_by_one else image.data.shape[1])
    built = parse_similarity(similarity, extractors)
    if built.needs_labels:
        raise ValueError(f"{similarity} compares labels, too: it trains networks, and cannot register a pair")
    return built
