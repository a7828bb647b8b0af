"""Rigid and affine pre-alignment of two images, by SimpleITK: mutual information, coarse to fine.

Lengths are counted in steps of the fixed grid, so that the unit of the files does not matter, and one thread adds up
the metric, so that two runs agree. Two slices are aligned in the plane of the fixed one.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from deepsimreg.files import whole
from deepsimreg.grid import FLIP
from deepsimreg.image import Image, unit_range
from deepsimreg.io import itk_image

KINDS = ("rigid", "affine")
SHRINK, SMOOTHING = (4, 2, 1), (2, 1, 0)  # voxels, from coarse to fine
FEWEST = 16  # voxels along the shortest axis of the coarsest level
SUFFIXES = (".mat", ".txt", ".tfm")


def align_affinely(
    moving: Image,
    fixed: Image,
    kind: str,
    seed: int = 0,
    moving_mask: Image | None = None,
    fixed_mask: Image | None = None,
) -> np.ndarray:
    """(4, 4), RAS, mm: where a point of the fixed image's world lies in the moving image's.

    Args:
        moving, fixed: one image each; further ones of a batch and further channels are not looked at.
        kind: "rigid" or "affine".
        seed: of the voxels that are sampled.
        moving_mask, fixed_mask: only voxels in them count.

    Raises:
        ValueError: another kind; images that cannot be aligned, as those that do not overlap.
    """
    if kind not in KINDS:
        raise ValueError(f"affine is {kind!r}: choose rigid or affine")
    import SimpleITK  # takes half a second to load

    ndim, frame = fixed.ndim, _frame(fixed)
    rigid = {2: SimpleITK.Euler2DTransform, 3: SimpleITK.Euler3DTransform}[ndim]
    transform = rigid() if kind == "rigid" else SimpleITK.AffineTransform(ndim)
    images = [_in_frame(unit_range(*pair), pair[0], frame) for pair in ((fixed, fixed_mask), (moving, moving_mask))]
    start = SimpleITK.CenteredTransformInitializer(
        *images, transform, SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5, seed + 1)  # 0 stands for the clock
    for mask, use in ((fixed_mask, method.SetMetricFixedMask), (moving_mask, method.SetMetricMovingMask)):
        if mask is not None:
            use(SimpleITK.Cast(_in_frame(mask.data, mask, frame), SimpleITK.sitkUInt8))
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    factors = [(s, g) for s, g in zip(SHRINK, SMOOTHING, strict=True) if s == 1 or min(fixed.shape) // s >= FEWEST]
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in factors])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in factors])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(start, inPlace=True)
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # several would add up in another order each time
    try:
        method.SetNumberOfThreads(1)
        method.Execute(*images)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{moving.name} and {fixed.name} cannot be aligned by affine={kind!r}: {reason}") from error
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return frame @ _matrix(start, ndim) @ np.linalg.inv(frame)


def write_affine(path: str | Path, transform: np.ndarray, ndim: int) -> None:
    """Write (4, 4), RAS, mm, as an ITK transform: .mat, .txt or .tfm; it takes points of the fixed to the moving image.

    ndim: 2 for images whose files have two axes, else 3.
    """
    import SimpleITK

    lps = FLIP @ transform @ FLIP
    affine = SimpleITK.AffineTransform(ndim)
    affine.SetMatrix(lps[:ndim, :ndim].flatten().tolist())
    affine.SetTranslation(lps[:ndim, 3].tolist())
    with whole(Path(path)) as partial:
        SimpleITK.WriteTransform(affine, str(partial))


def _frame(fixed: Image) -> np.ndarray:
    """(4, 4): to the world from a frame in which the fixed grid's finest step is 1, and a slice lies in x and y."""
    frame = np.eye(4)
    if fixed.ndim == 2:
        steps = fixed.grid.columns[:3, :2] / np.array(fixed.spacing)
        frame[:3, :2], frame[:3, 2] = steps, np.cross(*steps.T)
    frame[:3, :3] *= min(fixed.spacing)
    frame[:3, 3] = fixed.grid.columns[:3, -1]
    return frame


def _in_frame(values: Tensor, image: Image, frame: np.ndarray):
    """The first channel of values on the grid of an image, as a SimpleITK image whose world is the frame."""
    columns = np.linalg.solve(frame, image.grid.columns).round(9)  # the same numbers in any unit
    return itk_image(values[0, 0].cpu().numpy(), FLIP @ columns)


def _matrix(transform, ndim: int) -> np.ndarray:
    """(4, 4) of an ITK transform: what it does to the origin and to the unit vectors."""
    origin = np.array(transform.TransformPoint([0.0] * ndim))
    columns = [np.array(transform.TransformPoint(list(unit))) - origin for unit in np.eye(ndim)]
    matrix = np.eye(4)
    matrix[:ndim, :ndim], matrix[:ndim, 3] = np.stack(columns, axis=1), origin
    return matrix
