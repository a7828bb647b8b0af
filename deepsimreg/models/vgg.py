"""VGG-16 up to relu3_3 as a feature extractor: the "VGG" similarity of the DeepSim papers.

Trained on photographs (ImageNet), it is the usual network of perceptual losses. Simonyan & Zisserman, ICLR 2015; the
levels are those of Johnson et al., ECCV 2016. Weights: torchvision's file `vgg16-397923af.pth`, read by key.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from deepsimreg.errors import WeightsError
from deepsimreg.paths import data_root

FILE = "vgg16-397923af.pth"
LEVELS = ((64, 64), (128, 128), (256, 256, 256))  # channels of the convolutions between two poolings
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue


class VGG16Features(nn.Module):
    """Features of grey or RGB planes after relu1_2, relu2_2 and relu3_3, with torchvision's keys."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for widths in LEVELS:
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def features(self, image: Tensor) -> list[Tensor]:
        """Three levels of (N, 1 or 3, H, W) in [0, 1]: (N, 64, H, W), (N, 128, ⌊H/2⌋, ⌊W/2⌋), (N, 256, ⌊H/4⌋, ⌊W/4⌋).

        Raises ValueError for a volume, or another number of channels.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"VGG-16 looks at planes (N, 1 or 3, H, W), not at {tuple(image.shape)}")
        levels, features = [], (image.expand(-1, 3, -1, -1) - self.mean) / self.deviation
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                levels.append(features)
            features = layer(features)
        return [*levels, features]


def vgg_path() -> Path:
    """Where the weight file lies: the data root."""
    return data_root() / FILE


def load_vgg(path: str | Path | None = None) -> VGG16Features:
    """VGG-16 with the weights of torchvision's file, in evaluation mode; None: `vgg_path()`.

    Raises WeightsError for a missing file, one that is not torch's, and keys or shapes that are not those of VGG-16.
    """
    path = Path(path or vgg_path())
    if not path.is_file():
        raise WeightsError(f"{path}: no VGG-16 weights; run deepsimreg fetch vgg16, or put {FILE} there by hand")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise whatever it comes upon
        raise WeightsError(f"{path}: damaged or no weight file of torch ({error}); fetch it again") from error
    network = VGG16Features()
    wanted = network.layers.state_dict()
    wrong = [
        f"features.{key}"
        for key, value in wanted.items()
        if getattr(tensors.get(f"features.{key}") if isinstance(tensors, dict) else None, "shape", None) != value.shape
    ]
    if wrong:
        raise WeightsError(f"{path}: not the weights of VGG-16, {', '.join(wrong)} missing or of another shape")
    network.layers.load_state_dict({key: tensors[f"features.{key}"] for key in wanted})
    return network.requires_grad_(False).eval()
