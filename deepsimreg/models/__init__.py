"""Networks: extractors of features, registration networks, and how their weights are kept."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "image_networks": ["Autoencoder", "UNet"],
        "pyramid": ["Pyramid"],
        "registry": ["ARCHITECTURES", "EXTRACTORS"],
        "store": ["WeightsError", "count_parameters", "load_model", "save_model"],
        "transmorph": ["TransMorph"],
        "vgg": ["VGG16Features", "load_vgg", "vgg_path"],
        "voxelmorph": ["VoxelMorph"],
    },
)
