"""NIfTI and TIFF files, in and out."""

import gzip

import numpy as np
import pytest
import tifffile

from deepsimreg.errors import DataError
from deepsimreg.grid import Grid
from deepsimreg.io import image_shape, read_image, read_page, write_image


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
def test_nifti_round_trip(tmp_path, suffix, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])
    write_image(tmp_path / f"a{suffix}", array, Grid.of(array.shape, affine=affine))
    found, grid = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(grid.affine, affine, atol=1e-6)
    assert found.dtype == dtype
    np.testing.assert_allclose(grid.spacing, (1, 2, 3))
    write_image(tmp_path / f"a{suffix}", array, Grid.of(array.shape, (0.5, 1, 2)))
    np.testing.assert_allclose(read_image(tmp_path / f"a{suffix}").grid.spacing, (0.5, 1, 2))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("pages", [2, 3, 4])
def test_pages_are_no_colours(tmp_path, pages):
    stack = np.arange(pages * 6 * 7, dtype=np.uint8).reshape(pages, 6, 7)
    write_image(tmp_path / "a.tif", stack)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert {page.photometric.name for page in file.pages} == {"MINISBLACK"}
        assert len(file.pages) == pages
    assert image_shape(tmp_path / "a.tif") == stack.shape
    np.testing.assert_array_equal(read_page(tmp_path / "a.tif", pages - 1), stack[-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_round_trip(tmp_path, dtype):
    stack = np.arange(2 * 6 * 7).reshape(2, 6, 7).astype(dtype)
    write_image(tmp_path / "new" / "stack.tif", stack)
    found, grid = read_image(tmp_path / "new" / "stack.tif")
    np.testing.assert_array_equal(found, stack)
    assert (found.dtype, grid.spacing, grid.placed) == (dtype, (1, 1, 1), False)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(DataError, match=r"image.bmp.*\.nii\.gz"):
        read_image(tmp_path / "image.bmp")
    with pytest.raises(DataError, match=r"image.bmp.*\.nii\.gz"):
        write_image(tmp_path / "image.bmp", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"image.nii does not exist: check the path$"):
        read_image(tmp_path / "image.nii")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"text" * 100))
    (tmp_path / "a.tif").write_bytes(b"text")
    for name in ("a.nii.gz", "a.tif"):
        with pytest.raises(DataError, match=rf"{name} is truncated .*: copy it anew, or give another file$"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"a.tif: page 3 cannot be read .*: copy it anew, or give another file$"):
        read_page(tmp_path / "a.tif", 3)
    (tmp_path / "b.tif").mkdir()
    with pytest.raises(DataError, match=r"is a folder: name a file in it$"):
        read_image(tmp_path / "b.tif")
