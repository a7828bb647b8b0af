"""Where images lie: what comes out is what ITK makes of the input files and the field, whatever their headers."""

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch import nn

from deepsimreg import register
from deepsimreg.errors import DataError
from deepsimreg.io import read_image

UNITS = {"mm": 1.0, "micron": 1e-3, "meter": 1e3, "unknown": 1.0}
CODES = [(1, 1), (0, 1), (1, 0), (4, 1), (2, 1), (1, 2), (4, 4), (0, 0)]  # sform, qform
CASES, PART = 520, 65  # cases of the fuzz, and how many a test runs


class Given(nn.Module):
    """A network that predicts one displacement."""

    def __init__(self, displacement):
        super().__init__()
        self.displacement = displacement

    def forward(self, moving, fixed):
        return self.displacement


def smooth(rng, shape, sigma=1.5):
    values = gaussian_filter(rng.normal(size=shape), sigma)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def field(rng, shape, peak=2.0):
    vectors = np.stack([gaussian_filter(rng.normal(size=shape), 2.5) for _ in shape])
    return torch.from_numpy(vectors / np.abs(vectors).max() * peak)[None].float()


def turned(rng, kind):
    """A rotation, mirroring or permutation of the axes."""
    linear = np.eye(3)
    if kind == "oblique":
        linear = Rotation.from_rotvec(rng.uniform(-1, 1, 3)).as_matrix()
    if kind == "permuted":
        linear = linear[:, rng.permutation(3)]
    return linear * (rng.choice([-1, 1], 3) if kind in ("flipped", "permuted", "oblique") else 1)


def saved(path, array, affine, codes=(1, 1), units="mm", other=None):
    """A NIfTI file whose two forms have these codes; the sform is `other`, if that is given."""
    image = nibabel.Nifti1Image(array, affine)
    header = image.header.copy()
    header.set_qform(affine, codes[1])
    header.set_sform(affine if other is None else other, codes[0])
    header.set_xyzt_units(units)
    nibabel.save(nibabel.Nifti1Image(array, None, header), path)
    return path


def witness(field_path, moving_path, fixed_path, interpolator=sitk.sitkLinear, outside=0.0):
    """ITK resamples the moving file by the field on the grid of the fixed file; (X, Y, Z)."""
    moving, fixed = sitk.ReadImage(str(moving_path)), sitk.ReadImage(str(fixed_path))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field_path), sitk.sitkVectorFloat64))
    return sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, interpolator, outside)).T


def moved_points(field_path, moving_path, fixed_path, points):
    """The same for points: voxels of the fixed file to voxels of the moving file."""
    moving, fixed = sitk.ReadImage(str(moving_path)), sitk.ReadImage(str(fixed_path))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field_path), sitk.sitkVectorFloat64))
    there = [transform.TransformPoint(fixed.TransformContinuousIndexToPhysicalPoint(p)) for p in points.tolist()]
    return np.array([moving.TransformPhysicalPointToContinuousIndex(p) for p in there])


def drawn(rng, folder):
    """Two random files that overlap at least in part, and the displacement; what is drawn is told for a failure."""
    ndim = int(rng.choice([2, 3]))
    shape = rng.integers(7, 15, ndim)
    thin = ndim == 3 and rng.random() < 0.3
    if thin:
        shape[rng.integers(3)] = rng.integers(2, 4)
    zooms = np.exp(rng.uniform(0, np.log(10), 3))
    kind = str(rng.choice(["plain", "flipped", "oblique", "permuted"]))
    affine = np.eye(4)
    if ndim == 2:
        kind = "flipped" if kind == "permuted" else kind
        turn = np.eye(3)
        angle = rng.uniform(-3, 3) if kind == "oblique" else 0
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine[:3, :3] = turn * [*rng.choice([-1, 1], 2), 1] if kind == "flipped" else turn
        affine[:2, 3] = rng.uniform(-100, 100, 2)
    else:
        affine[:3, :3], affine[:3, 3] = turned(rng, kind), rng.uniform(-100, 100, 3)
    affine[:3, :3] *= zooms
    codes, units = CODES[rng.integers(len(CODES))], str(rng.choice(list(UNITS)))
    if codes == (0, 0):  # ITK places the first voxel at 0
        affine = np.diag([-zooms[0], -zooms[1], zooms[2], 1.0])
    other_shape, moving_affine = shape.copy(), affine.copy()
    if rng.random() < 0.6 and codes != (0, 0):  # another grid: another step, a shift of up to half of the field of view
        steps = rng.uniform(0.8, 1.3, 3)
        moving_affine[:3, :3] *= steps
        moving_affine[:3, 3] += affine[:3, :ndim] @ (rng.uniform(-0.5, 0.5, ndim) * shape)
        other_shape = np.maximum(2, np.round(shape / steps[:ndim] * rng.uniform(0.7, 1.2, ndim))).astype(int)
    paths = [folder / "moving.nii.gz", folder / "fixed.nii.gz"]
    # The same place in another unit: numbers are divided by its size.
    other_unit = str(rng.choice(list(UNITS))) if codes != (0, 0) else units
    scaled = [
        a * np.array([[1], [1], [1], [0]]) / UNITS[u] + np.diag([0, 0, 0, 1])
        for a, u in ((moving_affine, other_unit), (affine, units))
    ]
    saved(paths[0], smooth(rng, other_shape), scaled[0], codes, other_unit)
    saved(paths[1], smooth(rng, shape), scaled[1], codes, units)
    return *paths, field(rng, tuple(shape)), f"{ndim}D {kind} {codes} {other_unit} to {units} {tuple(shape)}"


@pytest.mark.parametrize("part", range(CASES // PART))
@pytest.mark.filterwarnings("ignore:.*covers.*:UserWarning")
def test_a_fuzz_of_headers_against_itk(tmp_path, part):
    largest, compared = np.zeros(2), []
    for case in range(part * PART, (part + 1) * PART):
        rng = np.random.default_rng(case)
        moving, fixed, displacement, what = drawn(rng, tmp_path)
        result = register(moving, fixed, "mse", network=Given(displacement), steps=0, fill=-1.0, progress=False)
        result.save(tmp_path)
        seen = witness(tmp_path / "field.nii.gz", moving, fixed, outside=-1.0)
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "moved.nii.gz"))).T
        assert ours.shape == seen.shape, what
        known = (ours > -1) & (seen > -1)
        assert ((ours > -1) != (seen > -1)).sum() <= 1, f"{case}: {what}: the border of the moving image"
        points = rng.uniform(0, np.array(displacement.shape[2:]) - 1, (10, displacement.shape[1]))
        sent = moved_points(tmp_path / "field.nii.gz", moving, fixed, points)
        apart = np.abs(ours - seen)[known].max(initial=0), np.abs(result.warp_points(points).numpy() - sent).max()
        assert apart[0] < 1e-4, f"{case}: {what}: grey values"
        assert apart[1] < 1e-4, f"{case}: {what}: points"
        labels = nibabel.load(moving)
        labels = nibabel.Nifti1Image((labels.get_fdata() * 300).astype(np.uint16), None, labels.header, dtype=np.uint16)
        nibabel.save(labels, tmp_path / "labels.nii.gz")
        carried = result.warp_labels(tmp_path / "labels.nii.gz")[0, 0].numpy()
        seen = witness(tmp_path / "field.nii.gz", tmp_path / "labels.nii.gz", fixed, sitk.sitkNearestNeighbor)
        assert (carried != seen).sum() <= 1, f"{case}: {what}: labels, but for one halfway between two voxels"
        largest = np.maximum(largest, apart)
        compared.append(known.mean())
    print(f"grey values (of 1) {largest[0]:.1e}, points {largest[1]:.1e} voxels; {np.mean(compared):.0%} inside")
    assert np.mean(compared) > 0.4


def test_the_form_that_itk_takes_wins(tmp_path):
    """sform and qform 8 mm apart: whichever code they have, the place is ITK's."""
    array = smooth(np.random.default_rng(0), (8, 9, 10))
    affine, other = np.diag([1, 1, 1.5, 1.0]), np.diag([1, 1, 1.5, 1.0])
    other[0, 3] = 8
    for codes in itertools.product((0, 1, 2, 4), repeat=2):
        path = saved(tmp_path / "a.nii.gz", array, affine, codes, other=other)
        itk = sitk.ReadImage(str(path))
        x = np.array([3.0, 4, 5, 1])
        lps = np.array(itk.TransformContinuousIndexToPhysicalPoint(x[:3]))
        np.testing.assert_allclose((read_image(path).grid.affine @ x)[:3], lps * [-1, -1, 1], atol=1e-5)


def test_a_sheared_header_is_refused_by_name_unless_its_other_form_is_good(tmp_path):
    array, affine = smooth(np.random.default_rng(0), (8, 9, 10)), np.diag([2, 3, 4, 1.0])
    sheared = affine.copy()
    sheared[0, 1] = 0.5
    good = saved(tmp_path / "good.nii.gz", array, affine, (1, 1), other=sheared)
    np.testing.assert_allclose(read_image(good).grid.affine, affine, atol=1e-5)
    bad = saved(tmp_path / "bad.nii.gz", array, affine, (1, 0), other=sheared)
    with pytest.raises(DataError, match=r"bad\.nii\.gz: its header places it on a sheared grid"):
        register(bad, good, progress=False)


SLICES = {
    "axial": np.array([[1.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, 3, 30], [0, 0, 0, 1]]),
    "coronal": np.array([[1.0, 0, 0, -10], [0, 0, 1, 20], [0, -1, 0, 30], [0, 0, 0, 1]]),
    "sagittal": np.array([[0.0, 0, 2, -10], [1, 0, 0, 20], [0, -1, 0, 30], [0, 0, 0, 1]]),
    "tilted": np.block([[Rotation.from_rotvec([0.3, -0.5, 0.4]).as_matrix(), np.ones((3, 1))], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", SLICES)
def test_a_slice_keeps_its_axis_and_its_field_applies_in_itk_and_ants(tmp_path, kind, axis):
    ants = pytest.importorskip("ants")
    rng, affine = np.random.default_rng(axis), SLICES[kind]
    above = affine.copy()
    above[:3, 3] += 2 * affine[:3, axis]  # the moving slice lies two slices higher
    moving, fixed = (
        saved(tmp_path / f"{name}.nii.gz", np.expand_dims(smooth(rng, (20, 24)), axis), place)
        for name, place in (("moving", above), ("fixed", affine))
    )
    result = register(moving, fixed, "mse", network=Given(field(rng, (20, 24))), steps=0, fill=0, progress=False)
    result.save(tmp_path)
    moved = nibabel.load(tmp_path / "moved.nii.gz")
    assert moved.shape == nibabel.load(fixed).shape
    np.testing.assert_allclose(moved.affine, affine, atol=1e-5)
    assert np.abs(moved.get_fdata() - witness(tmp_path / "field.nii.gz", moving, fixed)).max() < 1e-5
    images = [ants.image_read(str(path)) for path in (fixed, moving)]
    seen = ants.apply_transforms(*images, [str(tmp_path / "field.nii.gz")]).numpy()
    assert np.abs(moved.get_fdata() - seen).max() < 1e-5


def test_slices_that_are_tilted_against_each_other_are_refused(tmp_path):
    array = smooth(np.random.default_rng(0), (20, 24, 1))
    paths = [saved(tmp_path / f"{kind}.nii.gz", array, SLICES[kind]) for kind in ("axial", "tilted")]
    with pytest.raises(ValueError, match="tilted against each other"):
        register(*paths, affine=None, progress=False)


def test_a_file_without_a_place_is_refused_beside_one_that_has_one(tmp_path):
    array = smooth(np.random.default_rng(0), (16, 18, 20))
    none = saved(tmp_path / "none.nii.gz", array, np.eye(4), (0, 0))
    placed = saved(tmp_path / "placed.nii.gz", array, np.eye(4))
    with pytest.raises(ValueError, match=r"none\.nii\.gz does not say where it lies, fixed .*placed\.nii\.gz does"):
        register(none, placed, progress=False)
    assert (
        register(array, placed, steps=0, network=Given(torch.zeros(1, 3, 16, 18, 20)), progress=False).moved.mean() > 0
    )


def test_little_overlap_is_warned_of(tmp_path):
    array, far = smooth(np.random.default_rng(0), (20, 20, 20)), np.eye(4)
    far[0, 3] = 17
    paths = saved(tmp_path / "moving.nii.gz", array, far), saved(tmp_path / "fixed.nii.gz", array, np.eye(4))
    with pytest.warns(UserWarning, match=r"covers \d+% of"):
        register(*paths, "mse", steps=1, progress=False)


def test_the_space_code_and_the_type_of_the_source_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    array = (smooth(rng, (16, 18, 20)) * 60000).astype(np.uint16)
    moving = saved(tmp_path / "moving.nii.gz", array, np.eye(4), (4, 4))
    labels = saved(tmp_path / "labels.nii.gz", (array // 1000).astype(np.uint16), np.eye(4), (4, 4))
    still = Given(torch.zeros(1, 3, 16, 18, 20))
    register(moving, moving, network=still, steps=0, labels=labels, progress=False).save(tmp_path / "out")
    for name, source in (("moved", moving), ("moved_labels", labels)):
        found = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        assert found.get_data_dtype() == np.uint16
        assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (4, 4)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(nibabel.load(source).dataobj))
