"""Networks by their names; a class is imported when it is asked for.

A new architecture of registration networks, or a new kind of extractor, is one module and one entry here.
"""

from deepsimreg.lazy import Registry

ARCHITECTURES = Registry(  # of registration networks
    {
        "voxelmorph": "deepsimreg.models.voxelmorph:VoxelMorph",
        "pyramid": "deepsimreg.models.pyramid:Pyramid",
        "transmorph": "deepsimreg.models.transmorph:TransMorph",
    }
)
EXTRACTORS = Registry(  # of features, by what they are trained for
    {"seg": "deepsimreg.models.image_networks:UNet", "ae": "deepsimreg.models.image_networks:Autoencoder"}
)
