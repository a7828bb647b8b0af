"""Labelled images in files: what is kept in memory, downsampling, and which files belong together."""

import tracemalloc

import archives
import numpy as np
import pytest
import tifffile
import torch

from deepsimreg.data import load_dataset
from deepsimreg.data.base import Sample
from deepsimreg.data.files import matched_files
from deepsimreg.data.grids import downsampled
from deepsimreg.errors import DataError


def test_no_more_volumes_are_kept_than_asked_for(tmp_path):
    archives.lay_out_brains(tmp_path)
    data = load_dataset("brain-mri", root=tmp_path, cache=2)
    for split in ("train", "validation", "test"):
        for _ in data.pairs(split):
            assert data._cached.cache_info().currsize <= 2


def test_a_downsampled_image_is_the_mean_and_keeps_its_place(tmp_path):
    archives.lay_out_brains(tmp_path)
    full, half = (load_dataset("brain-mri", root=tmp_path, downsample=n).sample("s0") for n in (1, 2))
    mean = full.image[0].reshape(8, 2, 12, 2, 8, 2).mean((1, 3, 5))
    torch.testing.assert_close(half.image[0], mean)
    assert half.spacing == (2.0, 2.0, 4.0)
    np.testing.assert_allclose(half.affine @ [3, 4, 5, 1], full.affine @ [6.5, 8.5, 10.5, 1])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_labels_lie_where_their_image_lies_when_both_are_downsampled(factor):
    """The centre of a disc, in voxels of the full image; a label taken from one voxel of each block lies aside."""
    size, centre = 24 * factor, torch.tensor([11.3 * factor, 12.6 * factor])
    disc = (torch.cartesian_prod(*[torch.arange(size)] * 2) - centre).norm(dim=1).reshape(1, size, size) < 7 * factor
    sample = downsampled(Sample(disc.float(), disc.to(torch.uint8), "a", (1.0, 1.0)), factor)
    places = factor * sample.label[0].nonzero().double().mean(dim=0) + (factor - 1) / 2
    torch.testing.assert_close(places, disc[0].nonzero().double().mean(dim=0), atol=0.1 * factor, rtol=0)


def test_a_downsampled_label_is_the_most_frequent_class_of_its_block():
    label = torch.randint(3, (1, 8, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    small = downsampled(Sample(label.float(), label, "a", (1.0, 1.0)), 2).label[0]
    for row, column in np.ndindex(4, 6):
        block = label[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert small[row, column] == np.bincount(block.flatten().numpy()).argmax(), "the lowest of equals"


def peak_memory(read):
    """Bytes that numpy had allocated at most, beyond what was there before."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_volumes(tmp_path):
    """Brains of the real size, 28 MB each as float32: 16 are read, four are kept."""
    shape, folder = (160, 192, 224), tmp_path / "brain_mris"
    label = np.zeros(shape, np.uint8)
    label[40:120, 40:150, 50:170] = 2
    archives.write_nifti(folder / "atlas" / "brain_aligned.nii.gz", label * 60)
    archives.write_nifti(folder / "atlas" / "seg_coalesced_aligned.nii.gz", label)
    for number in range(16):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"s{number}").symlink_to(folder / "atlas")
    splits = ["train"] * 14 + ["validate", "test"]
    (folder / "metadata.csv").write_text("subject_id,SPLIT\n" + "\n".join(f"s{i},{s}" for i, s in enumerate(splits)))

    def read(count):
        data = load_dataset("brain-mri", root=tmp_path)
        return [pair.moving.image.shape for pair, _ in zip(data.pairs("train"), range(count), strict=False)]

    few, many = peak_memory(lambda: read(5)), peak_memory(lambda: read(14))
    assert many < 1.05 * few
    assert many < 14 * np.prod(shape) * 4 * 0.75, "less than the volumes that were read"


def test_a_stack_is_read_page_by_page(tmp_path):
    """Fifty slices of 800 × 800: opening the dataset and reading one pair takes a fraction of the stack."""
    folder = tmp_path / "platelet_em_reduced"
    for stack, pages in (("50", 50), ("24", 24)):
        for path in (folder / "images" / f"{stack}-images.tif", folder / "labels-class" / f"{stack}-class.tif"):
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, np.zeros((pages, 800, 800), np.uint8), compression="zlib")

    def read():
        data = load_dataset("platelet-em", root=tmp_path)
        assert data.pairs("train")[0].moving.image.shape == (1, 800, 800)

    assert peak_memory(read) < 50 * 800 * 800 * 0.9


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_subject_may_stand_in_folder_and_file_and_hidden_files_are_skipped(tmp_path):
    names = [f"sub-{n}/sub-{n}_{kind}.nii" for n in (1, 2) for kind in ("t1", "seg")]
    touched(tmp_path, *names, "sub-1/._sub-1_t1.nii", "sub-2/sub-1_t1.nii")
    files = matched_files(tmp_path, "{subject}/{subject}_t1.nii", "{subject}/{subject}_seg.nii")
    assert {name: entry.label for name, entry in files.items()} == {
        f"sub-{n}": tmp_path / f"sub-{n}" / f"sub-{n}_seg.nii" for n in (1, 2)
    }


def test_a_label_without_an_image_is_an_error(tmp_path):
    touched(tmp_path, "a.tif", "seg/a.tif", "seg/b.tif")
    with pytest.raises(DataError, match=r"b\.tif is missing beside .*seg.b\.tif"):
        matched_files(tmp_path, "{subject}.tif", "seg/{subject}.tif")
