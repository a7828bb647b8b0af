"""Displacement fields on disk, against SimpleITK and ANTs."""

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from deepsimreg.errors import DataError
from deepsimreg.grid import Grid
from deepsimreg.itk import from_itk, read_field, to_itk, write_field
from deepsimreg.warps import warp_image, warp_labels, warp_points

SHAPES = [(21, 26), (13, 17, 15)]
each_rank = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
each_grid = pytest.mark.parametrize("kind", ["diagonal", "flipped", "oblique", "permuted"])


def affine_of(kind, ndim, seed=0):
    """(4, 4), RAS: anisotropic, with an origin, and turned or mirrored as its name says."""
    rotvec = {"oblique": [0.2, -0.3, 0.4] if ndim == 3 else [0, 0, 0.4]}.get(kind, [0, 0, 0])
    linear = Rotation.from_rotvec(rotvec).as_matrix() @ np.diag([0.7, 1.1, 2.3])
    if kind == "flipped":
        linear[:, 0] *= -1
    if kind == "permuted":
        linear[:, :2] = linear[:, 1::-1]
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:ndim, 3] = np.random.default_rng(seed).uniform(-30, 30, ndim)
    return affine


def smooth_field(shape, peak=3, seed=0):
    noise = np.random.default_rng(seed).normal(size=(1, len(shape), *shape))
    field = gaussian_filter(noise, (0, 0, *[3] * len(shape)))
    return torch.from_numpy(field * (peak / np.abs(field).max())).float()


def smooth_image(shape, seed=1):
    noise = np.random.default_rng(seed).random((1, 1, *shape))
    image = gaussian_filter(noise, (0, 0, *[1] * len(shape)))
    return torch.from_numpy((image - image.min()) / np.ptp(image)).float()


def write_nifti(path, image, affine):
    nibabel.save(nibabel.Nifti1Image(image[0, 0].numpy(), affine), path)
    return sitk.ReadImage(str(path))


def transform_of(path):
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


@each_rank
@each_grid
def test_simpleitk_warps_image_and_points_as_we_do(tmp_path, shape, kind):
    affine, displacement, moving = affine_of(kind, len(shape)), smooth_field(shape), smooth_image(shape)
    write_field(tmp_path / "field.nii.gz", displacement, Grid.of(shape, affine=affine))
    transform = transform_of(tmp_path / "field.nii.gz")
    image = write_nifti(tmp_path / "moving.nii", moving, affine)
    witness = sitk.GetArrayFromImage(sitk.Resample(image, image, transform, sitk.sitkLinear)).T
    inside = (slice(4, -4),) * len(shape)
    np.testing.assert_allclose(warp_image(moving, displacement)[0, 0].numpy()[inside], witness[inside], atol=1e-4)

    points = 4 + torch.rand(1, 20, len(shape)) * (torch.tensor(shape) - 9)
    expected = warp_points(points, displacement)[0].numpy()
    sent = [
        image.TransformPhysicalPointToContinuousIndex(
            transform.TransformPoint(image.TransformContinuousIndexToPhysicalPoint(point))
        )
        for point in points[0].double().tolist()
    ]
    np.testing.assert_allclose(sent, expected, atol=1e-3)


@each_rank
@each_grid
def test_ants_warps_image_labels_and_points_as_we_do(tmp_path, shape, kind):
    ants, ndim = pytest.importorskip("ants"), len(shape)
    affine, displacement, moving = affine_of(kind, ndim), smooth_field(shape), smooth_image(shape)
    write_field(tmp_path / "field.nii.gz", displacement, Grid.of(shape, affine=affine))
    write_nifti(tmp_path / "moving.nii", moving, affine)
    image, field = ants.image_read(str(tmp_path / "moving.nii")), [str(tmp_path / "field.nii.gz")]
    inside = (slice(4, -4),) * ndim
    witness = ants.apply_transforms(image, image, field, interpolator="linear").numpy()
    difference = np.abs(warp_image(moving, displacement)[0, 0].numpy() - witness)[inside].max()
    labels = (4 * moving).floor()
    held = image.new_image_like(labels[0, 0].numpy())
    witness = ants.apply_transforms(image, held, field, interpolator="nearestNeighbor").numpy()
    ours = warp_labels(labels.int(), displacement)[0, 0].numpy()
    assert (ours != witness)[inside].mean() < 0.01, "halfway between two voxels either may be taken"

    points = 4 + torch.rand(1, 20, ndim) * (torch.tensor(shape) - 9)
    steps = image.direction * image.spacing  # (D, D), of ANTs' own reading of the header
    world = points[0].numpy() @ steps.T + image.origin
    sent = ants.apply_transforms_to_points(ndim, pd.DataFrame(world, columns=list("xyz"[:ndim])), field).to_numpy()
    back = np.linalg.solve(steps, (sent - image.origin).T).T
    apart = np.abs(back - warp_points(points, displacement)[0].numpy()).max()
    print(f"{ndim}D {kind}: images differ by at most {difference:.2g}, points by {apart:.2g} voxels")
    assert difference < 1e-4
    assert apart < 1e-3


@each_rank
def test_simpleitk_resamples_from_another_grid(tmp_path, shape):
    """The moving grid has its own spacing, origin and direction; its content is where the voxels say it is."""
    ndim = len(shape)
    fixed_affine, moving_affine = affine_of("oblique", ndim), affine_of("flipped", ndim, seed=5)
    displacement, moving = smooth_field(shape), smooth_image(shape)
    grids = Grid.of(shape, affine=fixed_affine), Grid.of(shape, affine=moving_affine)
    write_field(tmp_path / "field.nii", displacement, *grids, matrix=np.eye(ndim + 1))
    image = write_nifti(tmp_path / "moving.nii", moving, moving_affine)
    grid = write_nifti(tmp_path / "fixed.nii", moving, fixed_affine)
    witness = sitk.Resample(image, grid, transform_of(tmp_path / "field.nii"), sitk.sitkLinear)
    inside = (slice(4, -4),) * ndim
    moved = warp_image(moving, displacement)[0, 0].numpy()
    np.testing.assert_allclose(moved[inside], sitk.GetArrayFromImage(witness).T[inside], atol=1e-3)
    vectors, found = read_field(tmp_path / "field.nii")
    np.testing.assert_allclose(vectors, to_itk(displacement, *grids, np.eye(ndim + 1)), atol=1e-4)
    np.testing.assert_allclose(found.columns, np.delete(fixed_affine, range(ndim, 3), axis=1), atol=1e-5)


@each_rank
@each_grid
def test_a_field_written_by_simpleitk_is_read(tmp_path, shape, kind):
    affine, displacement = affine_of(kind, len(shape)), smooth_field(shape)
    grid = write_nifti(tmp_path / "grid.nii", smooth_image(shape), affine)
    vectors = to_itk(displacement, Grid.of(shape, affine=affine))
    field = sitk.GetImageFromArray(vectors.transpose(*range(len(shape))[::-1], -1), isVector=True)
    field.CopyInformation(grid)
    sitk.WriteImage(field, str(tmp_path / "field.nii.gz"))
    found = from_itk(*read_field(tmp_path / "field.nii.gz"))
    torch.testing.assert_close(found, displacement, atol=1e-4, rtol=0)


@each_rank
def test_header_is_that_of_itk(tmp_path, shape):
    ndim, affine = len(shape), affine_of("oblique", len(shape))
    write_field(tmp_path / "field.nii", smooth_field(shape), Grid.of(shape, affine=affine))
    image = nibabel.load(tmp_path / "field.nii")
    assert image.shape == (*shape, *[1] * (4 - ndim), ndim)
    assert image.header.get_intent("code")[0] == 1007
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine[:ndim, :ndim], affine[:ndim, :ndim], atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["field.nii"]


def test_one_voxel_to_the_right_is_minus_its_millimetres():
    """RAS axes: +1 voxel along x and z of spacing 2 and 3 mm is -2 mm to the left and +3 mm to the head."""
    displacement = torch.zeros(1, 3, 2, 2, 2)
    displacement[:, 0] = displacement[:, 2] = 1
    grid = Grid.of((2, 2, 2), (2, 5, 3))
    vectors = to_itk(displacement, grid)
    np.testing.assert_array_equal(vectors, np.broadcast_to([-2.0, 0, 3], (2, 2, 2, 3)))
    torch.testing.assert_close(from_itk(vectors, grid), displacement)


@pytest.mark.parametrize(
    ("displacement", "affine", "message"),
    [
        (torch.zeros(2, 2, 4, 4), np.eye(4), r"\(2, 2, 4, 4\): give one field"),
        (torch.full((1, 2, 4, 4), torch.nan), np.eye(4), "NaN"),
        (torch.zeros(1, 3, 4, 4, 4), np.eye(3), r"shape \(3, 3\): give \(4, 4\)"),
        (torch.zeros(1, 2, 4, 4), np.eye(4)[[0, 2, 1, 3]], "out of its plane"),
        (torch.zeros(1, 3, 4, 4, 4), np.eye(4) + 0.2 * np.eye(4, k=1), "sheared"),
        (torch.zeros(1, 3, 4, 4, 4), np.diag([1.0, 0, 1, 1]), "singular"),
    ],
    ids=["batch", "nan", "size", "tilted", "sheared", "singular"],
)
def test_fields_and_affines_that_itk_cannot_hold_are_refused(tmp_path, displacement, affine, message):
    with pytest.raises(ValueError, match=message):
        write_field(tmp_path / "field.nii", displacement, Grid.of(displacement.shape[2:], affine=affine))
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_field_are_named(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "image.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "image.nii").read_bytes()[:400])
    for name, message in [
        ("none.nii", "does not exist"),
        ("image.nii", r"\(X, Y, Z, 1, 3\)"),
        ("cut.nii", "truncated"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            read_field(tmp_path / name)
        assert name in str(error.value)
