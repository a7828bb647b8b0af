"""Rigid and affine pre-alignment of two images, by SimpleITK: mutual information, coarse to fine, in mm."""

import numpy as np

from deepsimreg.image import Image, unit_range

KINDS = ("rigid", "affine")
SHRINK, SMOOTHING = (4, 2, 1), (2, 1, 0)  # voxels, from coarse to fine
FEWEST = 16  # voxels along the shortest axis of the coarsest level


def align_affinely(moving: Image, fixed: Image, kind: str, seed: int = 0) -> np.ndarray:
    """(4, 4), RAS, mm: where a point of the fixed image's world lies in the moving image's.

    Args:
        moving, fixed: one image each; further ones of a batch and further channels are not looked at.
        kind: "rigid" or "affine".
        seed: of the voxels that are sampled.

    Raises:
        ValueError: another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"affine is {kind!r}: choose rigid or affine")
    import SimpleITK  # takes half a second to load

    ndim = fixed.ndim
    rigid = {2: SimpleITK.Euler2DTransform, 3: SimpleITK.Euler3DTransform}[ndim]
    transform = rigid() if kind == "rigid" else SimpleITK.AffineTransform(ndim)
    images = [_itk(image) for image in (fixed, moving)]
    start = SimpleITK.CenteredTransformInitializer(
        *images, transform, SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5, seed)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    factors = [(s, g) for s, g in zip(SHRINK, SMOOTHING, strict=True) if s == 1 or min(fixed.shape) // s >= FEWEST]
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in factors])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in factors])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(*images)
    return _matrix(start, ndim)


def _itk(image: Image):
    """The first channel on its grid, LPS: a SimpleITK image."""
    import SimpleITK

    ndim = image.ndim
    made = SimpleITK.GetImageFromArray(unit_range(image)[0, 0].cpu().numpy().T)
    linear = np.diag([-1.0, -1.0, 1.0]) @ image.affine[:3, :3]
    made.SetSpacing(image.spacing)
    made.SetDirection((linear[:ndim, :ndim] / np.array(image.spacing)).flatten().tolist())
    made.SetOrigin((np.array([-1.0, -1.0, 1.0]) * image.affine[:3, 3])[:ndim].tolist())
    return made


def _matrix(transform, ndim: int) -> np.ndarray:
    """(4, 4), RAS, of an ITK transform (LPS): what it does to the origin and to the unit vectors."""
    origin = np.array(transform.TransformPoint([0.0] * ndim))
    columns = [np.array(transform.TransformPoint(list(unit))) - origin for unit in np.eye(ndim)]
    matrix = np.eye(4)
    matrix[:ndim, :ndim], matrix[:ndim, 3] = np.stack(columns, axis=1), origin
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ matrix @ flip
