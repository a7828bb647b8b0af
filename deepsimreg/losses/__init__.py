"""Similarities and regularisers. A similarity is a `Similarity`: forward(moved, fixed) → scalar loss, for images
(N, C, *spatial); less is more similar. `registry.py` holds their names."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "base": ["Alignment", "Similarity", "WeightedSum"],
        "classes": ["ClassProbabilities"],
        "deepsim": ["DeepSim", "FeatureFunction"],
        "mind": ["MIND"],
        "mse": ["MSE"],
        "ncc": ["NCC"],
        "nmi": ["NMI"],
        "registry": [
            "SIMILARITIES",
            "SimilarityRecord",
            "build_similarity",
            "default_lam",
            "parse_similarity",
            "required_extractors",
            "similarity_terms",
        ],
        "regularisers": ["diffusion"],
        "supervised": ["SupervisedNCC"],
    },
)
