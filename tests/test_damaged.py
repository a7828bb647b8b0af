"""Files that were damaged in a way that a library met with an error of its own, with a hang, or with silence."""

import gzip
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from safetensors.torch import save

from deepsimreg.alignment import write_affine
from deepsimreg.apply import read_points, read_transforms
from deepsimreg.batch import register_pairs
from deepsimreg.data.description import read_description
from deepsimreg.data.files import read_table
from deepsimreg.errors import DataError, WeightsError
from deepsimreg.io import image_shape, read_image, write_image
from deepsimreg.itk import read_field
from deepsimreg.learn2reg import read_disp
from deepsimreg.models.store import load_model

VOLUME = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)


def patched(path, *changes):
    """The file with bytes overwritten at these offsets."""
    content = bytearray(path.read_bytes())
    for offset, new in changes:
        content[offset : offset + len(new)] = new
    path.write_bytes(content)


def test_a_changed_voxel_in_a_compressed_file_is_seen(tmp_path):
    """nibabel stops before the checksum at the end of the file."""
    volume = np.random.default_rng(0).integers(0, 200, (30, 31, 32)).astype(np.uint8)
    for suffix, kind in ((".nii.gz", nibabel.Nifti1Image), (".mgz", nibabel.MGHImage)):
        path = tmp_path / f"a{suffix}"
        nibabel.save(kind(volume, np.eye(4)), path)
        stored = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))  # a byte of it is a byte of the image
        path.write_bytes(stored)
        np.testing.assert_array_equal(read_image(path).array, volume)
        stored[stored.index(volume.tobytes("F")[:100]) + 7] ^= 64
        path.write_bytes(stored)
        assert not np.array_equal(np.asarray(nibabel.load(path).dataobj), volume)  # in silence
        with pytest.raises(DataError, match=rf"a{suffix} is truncated .*CRC"):
            read_image(path)


def test_pages_of_a_tiff_that_lead_nowhere_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, VOLUME, photometric="minisblack", metadata=None)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        first, second, last = (page.offset for page in file.pages)
        length = file.pages[0].tags["ImageLength"].valueoffset
    tags = struct.unpack_from("<H", whole, second)[0]
    patched(path, (second + 2 + 12 * tags, struct.pack("<I", first)))
    with pytest.raises(DataError, match=r"a\.tif has pages that follow each other in a circle"):
        image_shape(path)  # tifffile went round four million times
    path.write_bytes(whole[:last])
    with pytest.raises(DataError, match=r"a\.tif is cut short, of 2 pages another follows"):
        read_image(path)  # as two pages, in silence
    tifffile.imwrite(path, VOLUME[0], compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        length = file.pages[0].tags["ImageLength"].valueoffset
    patched(path, (length, struct.pack("<H", 65535)))
    with pytest.raises(DataError, match=r"a\.tif cannot hold the \(65535, 5\) values"):
        read_image(path)  # as zeros, as many as the header says


@pytest.mark.parametrize(("offset", "new"), [(4, b"\0\0\0\0"), (20, b"\0\0\0\x09"), (4, b"\x7f\xff\xff\xff")])
def test_a_damaged_header_of_mgh_is_refused(tmp_path, offset, new):
    """MGHError, KeyError and TypeError."""
    nibabel.save(nibabel.MGHImage(VOLUME, np.eye(4)), tmp_path / "a.mgh")
    patched(tmp_path / "a.mgh", (offset, new))
    with pytest.raises(DataError, match=r"a\.mgh is truncated or not MGH"):
        read_image(tmp_path / "a.mgh")


@pytest.mark.parametrize("count", [b"-1", b"300", b"3e9", b"99999999999999999999"])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_axes_with_which_itk_ends_the_process_are_refused(tmp_path, count, suffix):
    path = tmp_path / f"a{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(path))
    assert read_image(path).array.shape == (5, 4, 3)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = " + count))
    for read in (read_image, image_shape, read_field):
        with pytest.raises(DataError, match=rf"a{suffix}: NDims is {count.decode()}"):
            read(path)


@pytest.mark.parametrize("line", [b"", b"ElementDataFile\0\0= LOCAL\n", b"ElementDataFile = %s%s%n 1 5 1\n"])
def test_data_without_a_name_with_which_itk_ends_the_process_are_refused(tmp_path, line):
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(path))
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL\n", line))
    for read in (read_image, read_field):
        with pytest.raises(DataError, match=r"a\.mha: its header does not say where the voxels are"):
            read(path)


def test_transforms_that_are_no_numbers_are_refused(tmp_path):
    write_affine(tmp_path / "a.tfm", np.eye(4), 3)
    whole = (tmp_path / "a.tfm").read_bytes()
    for old, new, match in (
        (b"Parameters: 1 ", b"Parameters: nan ", "a transform that ITK reads"),
        (b"Parameters: 1 ", b"Parameters: \xff ", "a transform that ITK reads"),
        (b"Parameters: 1 ", b"Parameters: 0 ", "has no inverse"),
    ):
        (tmp_path / "a.tfm").write_bytes(whole.replace(old, new))
        with pytest.raises(DataError, match=rf"a\.tfm.*{match}"):
            read_transforms([f"inverse:{tmp_path / 'a.tfm'}"], 3)
    write_affine(tmp_path / "a.mat", np.eye(4), 3)
    content = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(content.replace(struct.pack("<d", 1.0), struct.pack("<d", np.nan)))
    with pytest.raises(DataError, match=r"a\.mat: a parameter is NaN"):
        read_transforms([tmp_path / "a.mat"], 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["f.nii.gz", "f.mha", "disp.nii"])
def test_fields_that_are_no_numbers_are_refused(tmp_path, bad, name):
    vectors, path = np.zeros((3, 4, 5, 3), np.float32), tmp_path / name
    vectors[1, 1, 1, 1] = bad
    if name == "disp.nii":
        nibabel.save(nibabel.Nifti1Image(vectors, np.eye(4)), path)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(vectors, isVector=True), str(path))
    for read in (read_disp,) if name == "disp.nii" else (read_field, read_disp):
        with pytest.raises(DataError, match=rf"{name}: its vectors are NaN"):
            read(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"x,y,z\n1,2,3\n\xff,2,3\n", "is no CSV table"),
        (b"x,y,z\n1,2,nan\n", "row 1: a coordinate is no number"),
        (b"x,y,z\n1,2,1e999\n", "row 1: a coordinate is no number"),
        (b"a\n1,2,3\n", "has the columns a, None"),
        (b"x,y,z\n" + b"1" * 200_000 + b",2,3\n", "is no CSV table"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, content, match):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"p\.csv.*{match}"):
        read_points(tmp_path / "p.csv")
    if b"x" not in content or match == "is no CSV table":
        with pytest.raises(DataError, match=r"p\.csv"):
            read_table(tmp_path / "p.csv", ["x"])


def test_a_table_of_results_that_was_damaged_is_made_anew(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"{name}.nii", np.random.default_rng(ord(name)).random((8, 9)).astype(np.float32))
    (tmp_path / "pairs.csv").write_text("name,moving,fixed\none,a.nii,b.nii\n", encoding="utf-8")
    results = register_pairs(tmp_path / "pairs.csv", tmp_path / "out", steps=1)
    whole = results.read_text(encoding="utf-8")
    results.write_text(whole.replace("name,", "nbme,"), encoding="utf-8")
    register_pairs(tmp_path / "pairs.csv", tmp_path / "out", steps=1)  # KeyError
    assert results.read_text(encoding="utf-8").startswith("name,")


@pytest.mark.parametrize("text", ["name: 2020-99-99", "name: !!int ''", "[" * 5000, "name: \xff"])
def test_descriptions_that_are_no_yaml_are_refused(tmp_path, text):
    """ValueError, IndexError, RecursionError and UnicodeDecodeError."""
    (tmp_path / "own.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"own\.yaml is not YAML"):
        read_description(tmp_path / "own.yaml")


def test_limits_that_are_no_numbers_are_refused(tmp_path):
    text = "name: a\nkind: planes\nimages: '{subject}.nii'\nintensity: {range: [.nan, 1]}\n"
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"own\.yaml: intensity\.range\.0: .*finite"):
        read_description(tmp_path / "own.yaml")


@pytest.mark.parametrize("config", ['{"ndim": 2, "out_channels": -1}', '{"ndim": 9, "out_channels": 2}', "[" * 5000])
def test_weights_whose_configuration_makes_no_network_are_refused(tmp_path, config):
    """RuntimeError, KeyError and RecursionError."""
    (tmp_path / "w.safetensors").write_bytes(save({"a": torch.zeros(1)}, {"model": "unet", "config": config}))
    with pytest.raises(WeightsError, match=r"w\.safetensors: UNet cannot be built"):
        load_model(tmp_path / "w.safetensors")


def test_a_place_that_only_itk_refuses_is_refused_by_name(tmp_path):
    path = tmp_path / "disp.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 3), np.float32), np.eye(4)), path)
    patched(path, (80, struct.pack("<f", 0.0)), (280, bytes(12)))
    with pytest.raises(DataError, match=r"disp\.nii"):
        read_disp(path)
