"""Surfaces of masks, and the distance between them that weights each piece of a surface by its area.

A mask's surface passes the corners that 2 × 2 × 2 voxels share where some of them are in the mask and some are not.
Its area there is that of the marching-cubes surface (Lorensen & Cline 1987) through the middles of the cube's edges.
Source: Nikolov et al. 2018, arXiv:1809.04430, as github.com/google-deepmind/surface-distance measures it.
"""

import itertools
from functools import cache

import numpy as np
from scipy import ndimage


def hausdorff_distance_95_by_area(a: np.ndarray, b: np.ndarray) -> float:
    """Robust Hausdorff distance of two masks (X, Y, Z), in voxels; infinite if one of them is empty.

    The greater of the two 95 % quantiles, by area, of the distances from a piece of one surface to the other surface.
    """
    if not (a.any() and b.any()):
        return np.inf
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    codes = [_corner_codes(np.pad(mask[box], 1)) for mask in (a, b)]
    surfaces = [(code > 0) & (code < 255) for code in codes]
    quantiles = []
    for own, code, other in zip(surfaces, codes, surfaces[::-1], strict=True):
        distances = ndimage.distance_transform_edt(~other)[own]
        order = np.argsort(distances, kind="stable")
        covered = np.cumsum(_areas()[code[own]][order])
        quantiles.append(distances[order][np.searchsorted(covered, 0.95 * covered[-1])])
    return float(max(quantiles))


def _corner_codes(mask: np.ndarray) -> np.ndarray:
    """At each corner that 2 × 2 × 2 voxels share, which of them are in the mask, as the bits of one number."""
    shifts = itertools.product((slice(None, -1), slice(1, None)), repeat=3)
    return sum(mask[shift].astype(np.uint8) << bit for bit, shift in enumerate(shifts))


@cache
def _areas() -> np.ndarray:
    """Area of the surface at a corner of each of the 256 codes, in squared voxels.

    The surface cuts off each connected group of the fewer voxels alone, those in the mask or those outside it.
    """
    triangle, strip = 3**0.5 / 8, 0.5**0.5  # that cut off one corner, and two that share an edge
    by_edges = {0: triangle, 1: strip, 2: 0.5 + 3 * triangle, 3: strip + 4 * triangle, 4: 1.0}
    areas = np.zeros(256)
    for code in range(256):
        voxels = np.array([code >> bit & 1 for bit in range(8)], bool).reshape(2, 2, 2)
        groups, count = ndimage.label(voxels if voxels.sum() <= 4 else ~voxels)
        for group in (groups == k for k in range(1, count + 1)):
            neighbours = sum(group & np.flip(group, axis).astype(int) for axis in range(3))
            around = neighbours.max() == 3  # a voxel and its three neighbours
            areas[code] += 6 * triangle if around else by_edges[neighbours.sum() // 2]
    return areas
