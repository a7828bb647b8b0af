"""The affine pre-alignment: the same in every unit and every run, in the plane of slices, and a failure of one line."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from test_geometry import saved

from deepsimreg import register
from deepsimreg.alignment import align_affinely, write_affine
from deepsimreg.apply import read_transforms
from deepsimreg.errors import DataError
from deepsimreg.image import as_image


def blob(shape=(40, 44, 36), seed=0):
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def aligned(step, kind="rigid", seed=0):
    """Voxels of the shift that is found between an image and the same three voxels further along x."""
    image, affine = blob(), np.diag([step, step, step, 1.0])
    pair = [as_image(nibabel.Nifti1Image(array, affine), "image") for array in (image, np.roll(image, 3, 0))]
    return align_affinely(*pair, kind, seed)[:3, 3] / step


def test_the_unit_does_not_matter():
    shifts = np.array([aligned(step) for step in (1.0, 0.025, 0.001, 1000.0)])
    np.testing.assert_allclose(shifts[0], [-3, 0, 0], atol=0.3)
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[0], shifts.shape), atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_two_runs_agree_to_the_last_digit(kind, seed):
    np.testing.assert_array_equal(aligned(1.0, kind, seed), aligned(1.0, kind, seed))


def test_what_is_written_is_itks_and_is_read_again(tmp_path):
    transform = np.array([[1.02, 0.05, 0, 3], [-0.04, 0.98, 0.1, -2], [0, -0.03, 1.1, 5], [0, 0, 0, 1]])
    for suffix in (".mat", ".txt", ".tfm"):
        write_affine(tmp_path / f"a{suffix}", transform, 3)
        itk, point = sitk.ReadTransform(str(tmp_path / f"a{suffix}")), np.array([4.0, -7, 11])
        expected = (transform @ [-4, 7, 11, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(itk.TransformPoint(point.tolist()), expected, atol=1e-9)
        ours = read_transforms([tmp_path / f"a{suffix}"], 3)
        np.testing.assert_allclose(ours.TransformPoint(point.tolist()), expected, atol=1e-9)
    (tmp_path / "text.mat").write_text("text")
    with pytest.raises(DataError, match=r"text\.mat is truncated or not a transform that ITK"):
        read_transforms([tmp_path / "text.mat"], 3)


def test_slices_are_aligned_in_their_plane(tmp_path):
    image = blob((48, 52))
    affine = np.array([[1.0, 0, 0, -10], [0, 0, 1, 20], [0, -1, 0, 30], [0, 0, 0, 1]])
    paths = [
        saved(tmp_path / f"{name}.nii.gz", array[..., None], affine)
        for name, array in (("moving", image), ("fixed", np.roll(image, 3, 0)))
    ]
    result = register(*paths, "mse", affine="rigid", network=None, steps=0, levels=[(4, 8, 0)], progress=False)
    np.testing.assert_allclose(result.transform[:3, 3], [-3, 0, 0], atol=0.4)


def test_a_failure_is_one_line():
    """Masks that never meet: no voxel is left to compare."""
    image = blob((24, 24, 24))
    masks = {}
    for name, part in (("fixed_mask", slice(0, 3)), ("moving_mask", slice(21, 24))):
        masks[name] = np.zeros_like(image)
        masks[name][part, part, part] = 1
    with pytest.raises(ValueError, match="cannot be aligned by affine='affine'") as error:
        register(image, image, "mse", affine="affine", progress=False, **masks)
    assert "\n" not in str(error.value)
