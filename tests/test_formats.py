"""Files of every format and type: read at ITK's place, in the file's own type; what is no image is refused by name."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from scipy.ndimage import gaussian_filter, zoom

from deepsimreg import register
from deepsimreg.errors import DataError
from deepsimreg.grid import Grid
from deepsimreg.image import as_image, as_labels
from deepsimreg.io import image_shape, read_image, read_page, write_image


def smooth(shape, seed=0):
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def sixteen(array):
    return (array * 60000).astype(np.uint16)


PLACE = np.array([[0, -2.0, 0, 5], [1, 0, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_what_is_written_is_read_by_itk_and_by_us(tmp_path, suffix, dtype):
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(dtype)
    path = tmp_path / f"a{suffix}"
    write_image(path, array, Grid.of(array.shape, affine=PLACE))
    itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).T, array)
    x = np.array([2.0, 1, 3, 1])
    lps = itk.TransformContinuousIndexToPhysicalPoint(x[:3])
    np.testing.assert_allclose(lps, (PLACE @ x)[:3] * [-1, -1, 1], atol=1e-5)
    found, grid = read_image(path)
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(grid.affine, PLACE, atol=1e-5)
    assert found.dtype == dtype
    assert image_shape(path) == (3, 4, 5)


@pytest.mark.parametrize("suffix", [".mgz", ".mgh", ".img", ".mhd", ".nhdr"])
def test_further_formats_are_read(tmp_path, suffix):
    array, path = smooth((8, 9, 10)), tmp_path / f"a{suffix}"
    if suffix == ".img":
        nibabel.save(nibabel.Nifti1Pair(array, PLACE), path)
    elif suffix.startswith(".mg"):
        nibabel.save(nibabel.MGHImage(array, PLACE), path)
    else:
        write_image(tmp_path / "a.nii", array, Grid.of(array.shape, affine=PLACE))
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(path))
    found, grid = read_image(path)
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(grid.affine, PLACE, atol=1e-5)
    with pytest.raises(DataError, match=r"unknown suffix: use one of \.nii"):
        write_image(tmp_path / "b.mhd", array)


def test_a_png_is_a_plane_and_its_colours_are_chosen(tmp_path):
    grey, colours = (smooth((20, 30)) * 255).astype(np.uint8), np.random.default_rng(0).integers(0, 255, (20, 30, 3))
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / "grey.png"))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png").array, grey)
    sitk.WriteImage(sitk.GetImageFromArray(colours.astype(np.uint8), isVector=True), str(tmp_path / "colours.png"))
    with pytest.raises(DataError, match=r"colours\.png .* choose one with channel \(0 to 2\)"):
        read_image(tmp_path / "colours.png")
    np.testing.assert_array_equal(read_image(tmp_path / "colours.png", channel=1).array, colours[..., 1])


def test_rgb_and_complex_are_refused_by_name(tmp_path):
    rgb = np.zeros((8, 9, 10), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgb["G"] = (smooth((8, 9, 10)) * 255).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii.gz")
    with pytest.raises(DataError, match=r"rgb\.nii\.gz .*channel"):
        read_image(tmp_path / "rgb.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.nii.gz", channel=1).array, rgb["G"])
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 9, 10), np.complex64), np.eye(4)), tmp_path / "phase.nii.gz")
    with pytest.raises(ValueError, match=r"phase\.nii\.gz holds complex64"):
        as_image(tmp_path / "phase.nii.gz", "moving")


def test_big_endian_files_and_time_series(tmp_path):
    array = smooth((8, 9, 10))
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">f4"))
    nibabel.save(nibabel.Nifti1Image(array.astype(">f4"), np.eye(4), header), tmp_path / "big.nii")
    torch.testing.assert_close(as_image(tmp_path / "big.nii", "moving").data[0, 0], torch.from_numpy(array))
    series = np.stack([array, array + 1], axis=-1)
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), tmp_path / "series.nii")
    with pytest.raises(DataError, match=r"series\.nii has shape \(8, 9, 10, 2\).* choose one with page \(0 to 1\)"):
        read_image(tmp_path / "series.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "series.nii", page=1).array, series[..., 1])
    with pytest.raises(DataError, match=r"has no page 2: there are 2"):
        read_image(tmp_path / "series.nii", page=2)


@pytest.mark.parametrize("kind", ["simpleitk", "ants", "nibabel"])
def test_images_of_other_libraries_lie_where_they_say(kind):
    array = smooth((8, 9, 10))
    if kind == "nibabel":
        source = nibabel.Nifti1Image(array, PLACE)
    else:
        itk = sitk.GetImageFromArray(array.T)
        itk.SetSpacing((1, 2, 3))
        itk.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
        itk.SetOrigin((-5, 3, 1))
        source = itk
        if kind == "ants":
            ants = pytest.importorskip("ants")
            direction = np.reshape(itk.GetDirection(), (3, 3))
            source = ants.from_numpy(array, list(itk.GetOrigin()), list(itk.GetSpacing()), direction)
    image = as_image(source, "moving")
    torch.testing.assert_close(image.data[0, 0], torch.from_numpy(array))
    np.testing.assert_allclose(image.grid.affine, PLACE, atol=1e-6)


def test_the_field_of_a_tiff_fits_the_tiff_as_itk_reads_it(tmp_path):
    moving = smooth((44, 60))
    fixed = np.roll(moving, 2, axis=0)
    for name, image in (("moving", moving), ("fixed", fixed)):
        tifffile.imwrite(tmp_path / f"{name}.tif", sixteen(image), resolution=(100, 50), resolutionunit="CENTIMETER")
    result = register(tmp_path / "moving.tif", tmp_path / "fixed.tif", progress=False)
    assert np.allclose(result.fixed.spacing, (0.2, 0.1)), "row, column; mm"
    result.save(tmp_path)
    itk = sitk.ReadImage(str(tmp_path / "moving.tif"))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    moved = sitk.ReadImage(str(tmp_path / "moved.nii.gz"))
    assert moved.GetSize() == itk.GetSize()
    np.testing.assert_allclose(moved.GetSpacing(), itk.GetSpacing(), rtol=1e-6)
    seen = sitk.GetArrayFromImage(sitk.Resample(itk, itk, transform, sitk.sitkLinear, float(sixteen(moving).min())))
    ours = sitk.GetArrayFromImage(moved)
    assert ours.dtype == np.uint16
    assert np.abs(ours.astype(int) - seen).max() <= 1
    assert (seen != sixteen(moving)).mean() > 0.5


@pytest.mark.parametrize("tags", ["imagej", "ome"])
def test_sizes_in_the_tags_bring_two_tiffs_together(tmp_path, tags):
    """The same object at .5 and at 1 µm; ITK reads no size from these tags, and the field fits its reading."""
    coarse = smooth((40, 56))
    fine = zoom(coarse, 2, order=1, grid_mode=True, mode="nearest")
    for name, image, step in (("fine.tif", fine, 0.5), ("coarse.tif", coarse, 1.0)):
        if tags == "imagej":
            options = {"imagej": True, "resolution": (1 / step, 1 / step), "metadata": {"unit": "um"}}
        else:
            sizes = {f"PhysicalSize{axis}": step for axis in "XY"} | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
            options = {"ome": True, "metadata": {"axes": "YX"} | sizes}
        tifffile.imwrite(tmp_path / name, sixteen(image), **options)
    result = register(tmp_path / "fine.tif", tmp_path / "coarse.tif", "mse", lam=1.0, progress=False)
    np.testing.assert_allclose((result.moving.spacing, result.fixed.spacing), ((5e-4,) * 2, (1e-3,) * 2))
    assert np.corrcoef(result.moved[0, 0].numpy().ravel(), coarse.ravel())[0, 1] > 0.98
    result.save(tmp_path)
    itk, grid = (sitk.ReadImage(str(tmp_path / name)) for name in ("fine.tif", "coarse.tif"))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "field.nii.gz"), sitk.sitkVectorFloat64))
    lowest = float(sixteen(fine).min())
    seen = sitk.Resample(itk, grid, transform, sitk.sitkLinear, lowest, sitk.sitkFloat32)
    assert np.abs(sitk.GetArrayFromImage(seen) - result.moved[0, 0].numpy()).max() < 0.5, "of 60,000"
    given = as_image(tmp_path / "fine.tif", "moving", spacing=(0.3, 0.4))
    np.testing.assert_allclose(given.spacing, (0.3, 0.4))


def test_time_and_channels_of_a_tiff_are_no_depth(tmp_path):
    stack = np.stack([sixteen(smooth((20, 30), seed)) for seed in range(4)])
    for axes, what, chosen in (("TYX", "time points", "page"), ("CYX", "channels", "channel")):
        tifffile.imwrite(tmp_path / f"{axes}.ome.tif", stack, metadata={"axes": axes})
        tifffile.imwrite(tmp_path / f"{axes}.tif", stack, imagej=True, metadata={"axes": axes})
        for path in (tmp_path / f"{axes}.ome.tif", tmp_path / f"{axes}.tif"):
            with pytest.raises(DataError, match=rf"holds 4 {what}, and no depth: choose one with {chosen} \(0 to 3\)"):
                read_image(path)
            np.testing.assert_array_equal(read_image(path, **{chosen: 2}).array, stack[2])
    tifffile.imwrite(tmp_path / "zyx.tif", stack, imagej=True, metadata={"axes": "ZYX", "spacing": 3, "unit": "um"})
    found, grid = read_image(tmp_path / "zyx.tif")
    np.testing.assert_array_equal(found, stack)
    np.testing.assert_allclose(grid.spacing[0], 3e-3)
    planar = np.random.default_rng(0).integers(0, 255, (3, 20, 30)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "planar.tif", planar, photometric="rgb", planarconfig="separate")
    with pytest.raises(DataError, match=r"planar\.tif holds 3 colours"):
        read_image(tmp_path / "planar.tif")


def test_appended_pages_read_alike_everywhere(tmp_path):
    stack = np.stack([sixteen(smooth((20, 30), seed)) for seed in range(5)])
    for page in stack:
        tifffile.imwrite(tmp_path / "a.tif", page, append=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array, stack)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=3).array, stack[3])
    np.testing.assert_array_equal(read_page(tmp_path / "a.tif", 3), stack[3])
    assert image_shape(tmp_path / "a.tif") == stack.shape


def test_a_compressed_tiff_is_read_without_further_packages(tmp_path):
    image = (smooth((20, 30)) * 255).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "lzw.tif"), useCompression=True, compressor="LZW")
    with tifffile.TiffFile(tmp_path / "lzw.tif") as file:
        assert file.pages[0].compression.name == "LZW"
    np.testing.assert_array_equal(read_image(tmp_path / "lzw.tif").array, image)


def test_labels_that_a_header_scales_are_rounded_and_probabilities_are_refused(tmp_path):
    labels = np.zeros((12, 12, 12))
    labels[2:8] = 3
    labels[5:7, 3:6] = 6
    image = nibabel.Nifti1Image(labels, np.eye(4))
    image.set_data_dtype(np.uint16)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    assert set(np.unique(nibabel.load(tmp_path / "scaled.nii.gz").dataobj)) != {0, 3, 6}
    np.testing.assert_array_equal(as_labels(tmp_path / "scaled.nii.gz", "labels").data[0, 0], labels)
    with pytest.raises(ValueError, match="no integers: give labels, not probabilities"):
        as_labels(smooth((12, 12, 12)), "labels")


def test_a_tiff_that_is_written_on_a_grid_has_pages_of_rows(tmp_path):
    """An array of a NIfTI, (X, Y, Z): columns are x, rows y, pages z, as ITK reads a TIFF."""
    array = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    write_image(tmp_path / "a.tif", array, Grid.of(array.shape))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.tif"))).T, array)
    tifffile.imwrite(tmp_path / "plane.tif", array[0])
    stored = read_image(tmp_path / "plane.tif")
    write_image(tmp_path / "again.tif", *stored)
    np.testing.assert_array_equal(read_image(tmp_path / "again.tif").array, array[0])


@pytest.mark.parametrize(
    ("unit", "mm"), [("micrometer", 1e-3), ("Micrometers", 1e-3), ("millimeter", 1), ("inches", 25.4)]
)
def test_units_of_a_tiff_are_read_when_they_are_written_out(tmp_path, unit, mm):
    stack = np.zeros((3, 20, 30), np.uint8)
    options = {"imagej": True, "resolution": (2, 2), "metadata": {"axes": "ZYX", "spacing": 3, "unit": unit}}
    tifffile.imwrite(tmp_path / "a.tif", stack, **options)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").grid.spacing, np.array([3, 0.5, 0.5]) * mm)


def test_ratios_without_a_unit_count_and_an_unknown_unit_is_said(tmp_path):
    stack = np.zeros((3, 20, 30), np.uint8)
    for unit in ("pixel", "furlong"):
        metadata = {"axes": "ZYX", "spacing": 3, "unit": unit}
        tifffile.imwrite(tmp_path / f"{unit}.tif", stack, imagej=True, resolution=(1, 1), metadata=metadata)
    np.testing.assert_allclose(read_image(tmp_path / "pixel.tif").grid.spacing, (3, 1, 1))
    with pytest.warns(UserWarning, match="unit 'furlong' of a TIFF is not known"):
        read_image(tmp_path / "furlong.tif")


def test_a_page_of_a_series_of_volumes_is_a_volume(tmp_path):
    series = np.arange(2 * 3 * 20 * 30, dtype=np.uint16).reshape(2, 3, 20, 30)
    tifffile.imwrite(tmp_path / "a.tif", series, imagej=True, metadata={"axes": "TZYX"})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=1).array, series[1])
    with pytest.raises(DataError, match=r"holds 2 time points: choose one with page"):
        read_image(tmp_path / "a.tif")


def test_colours_of_other_libraries_are_no_depth():
    ants = pytest.importorskip("ants")
    colours = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    for source in (sitk.GetImageFromArray(colours, isVector=True), ants.from_numpy(colours, has_components=True)):
        with pytest.raises(ValueError, match="several values a voxel"):
            as_image(source, "moving")


def test_large_labels_stay_what_they_are():
    labels = np.array([[0, 2**31 + 5], [2**40, 7]], np.float64).repeat(4, 0).repeat(4, 1)
    found = as_labels(labels, "labels")
    np.testing.assert_array_equal(found.data[0, 0].numpy(), labels.astype(np.int64))
    assert found.dtype == np.int64
    with pytest.raises(ValueError, match="store integers"):
        as_labels(labels.astype(np.float32), "labels")
