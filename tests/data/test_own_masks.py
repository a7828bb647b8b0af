"""Masks of a dataset of one's own: read, turned, padded and downsampled beside their images; what is wrong is named."""

import hashlib
import json
from dataclasses import replace

import archives
import nibabel
import numpy as np
import pytest
import tifffile
import torch
from test_own import changed, described, nuclei  # noqa: F401

from deepsimreg.data import load_dataset
from deepsimreg.data.augment import AUGMENT_2D
from deepsimreg.data.files import LabelledFiles
from deepsimreg.errors import DataError
from deepsimreg.paper.samples import DrawnSamples, augmented

PATTERN = "masks/{subject}.tif"


@pytest.fixture
def masked(nuclei):  # noqa: F811
    """The example of the README with a mask for each image: a hole of 6 × 5 pixels at another place in each."""
    (nuclei.parent / "masks").mkdir()
    for number in range(10):
        mask = np.full((24, 32 - number % 2), 255, np.uint8)
        mask[8:14, number : number + 5] = 0
        tifffile.imwrite(nuclei.parent / "masks" / f"slide{number}.tif", mask)
    return nuclei


def test_a_mask_lies_where_its_image_lies_padded_as_it_is(masked):
    data = load_dataset(changed(masked, mask=PATTERN))
    for number in (4, 5):  # the second is one column narrower, and padded at its end
        raw = tifffile.imread(masked.parent / "masks" / f"slide{number}.tif")
        expected = np.pad(raw > 0, [(0, 0), (0, 32 - raw.shape[1])], mode="edge")
        mask = data.sample(f"slide{number}").mask
        assert mask.dtype == torch.uint8
        np.testing.assert_array_equal(mask[0].numpy(), expected)
    pair = data.pairs("test")[0]
    torch.testing.assert_close(pair.weights["moving_weights"], pair.moving.mask.float())
    torch.testing.assert_close(pair.weights["fixed_weights"], pair.fixed.mask.float())


def test_a_pair_whose_masks_leave_nothing_to_compare_is_refused_by_name(masked):
    pair = load_dataset(changed(masked, mask=PATTERN)).pairs("test")[0]
    left, right = torch.zeros(1, 24, 32), torch.ones(1, 24, 32)
    left[..., :10], right[..., :10] = 1, 0
    for masks in ((left, right), (None, torch.zeros_like(left)), (torch.zeros_like(left), None)):
        apart = replace(pair, moving=replace(pair.moving, mask=masks[0]), fixed=replace(pair.fixed, mask=masks[1]))
        with pytest.raises(DataError, match=rf"pair {pair.name}: its masks leave no voxel to compare"):
            assert apart.weights


def test_without_masks_nothing_changes(masked):
    """The files are there, and no key names them. A key that names them makes another dataset, known files or not."""
    without = load_dataset(str(masked))
    assert without.sample("slide4").mask is None
    assert without.pairs("test")[0].weights == {}
    names = {"moving", "fixed", "moving_label", "fixed_label"}
    assert set(DrawnSamples(without.pairs("train"), AUGMENT_2D, 0)[0]) == names | {"matrix", "corner"}
    given = load_dataset(changed(masked, mask=PATTERN))
    torch.testing.assert_close(given.sample("slide4").image, without.sample("slide4").image)
    prints = {without.fingerprint(), given.fingerprint()}
    assert len(prints | {load_dataset(changed(masked, mask="labels/{subject}_mask.tif")).fingerprint()}) == 3
    hole = masked.parent / "masks" / "slide3.tif"
    tifffile.imwrite(hole, np.where(np.arange(31) < 2, 0, tifffile.imread(hole)).astype(np.uint8))
    assert load_dataset(changed(masked, mask=PATTERN)).fingerprint() not in prints


def test_a_fingerprint_without_masks_is_that_of_before_there_were_any(masked):
    data = load_dataset(str(masked))
    aside = {"description", "licence", "citation", "colors", "mask"}
    keys = {key: value for key, value in data.settings.model_dump(mode="json").items() if key not in aside}
    content = f"{LabelledFiles.fingerprint(data)} {json.dumps(keys, separators=(',', ':'))} {{}}"
    assert data.fingerprint() == hashlib.sha256(content.encode()).hexdigest()[:16]


def test_a_block_counts_only_if_all_of_it_does(masked):
    small = load_dataset(changed(masked, mask=PATTERN), downsample=2).sample("slide4").mask[0].numpy()
    raw = tifffile.imread(masked.parent / "masks" / "slide4.tif") > 0
    expected = raw.reshape(12, 2, 16, 2).all((1, 3))
    np.testing.assert_array_equal(small, expected)
    assert expected.sum() < raw.reshape(12, 2, 16, 2).any((1, 3)).sum()


def test_quantiles_are_those_of_what_counts(masked):
    path = masked.parent / "images" / "slide4.tif"
    image = tifffile.imread(path)
    hole = tifffile.imread(masked.parent / "masks" / "slide4.tif") == 0
    tifffile.imwrite(path, np.where(hole, 255, image // 4).astype(np.uint8))
    own = {"intensity": {"quantiles": [0.01, 0.99]}}
    found = load_dataset(changed(masked, mask=PATTERN, **own)).sample("slide4").image[0].numpy()
    low, high = np.quantile((image // 4)[~hole], [0.01, 0.99])
    np.testing.assert_allclose(found[~hole], np.clip((image // 4 - low) / (high - low), 0, 1)[~hole], atol=1e-6)


def test_masks_of_volumes_are_turned_with_their_images(tmp_path):
    """The masks lie along other axes than the images, in the same world."""
    label, image = archives.scene((12, 16, 20), 2, 1)
    mask = (np.indices(image.shape).sum(0) % 7 > 0).astype(np.uint8)
    affine = archives.AFFINE
    turned = np.stack([(2, 0, 1), (-1, 1, -1)], axis=1)
    for number in range(10):
        archives.write_nifti(tmp_path / f"s{number}.nii.gz", image, affine)
        archives.write_nifti(tmp_path / f"l{number}.nii.gz", label, affine)
        other = nibabel.Nifti1Image(mask, affine).as_reoriented(turned)
        archives.write_nifti(tmp_path / f"m{number}.nii.gz", np.asarray(other.dataobj), other.affine)
    patterns = {"images": "s{subject}.nii.gz", "labels": "l{subject}.nii.gz", "mask": "m{subject}.nii.gz"}
    data = load_dataset(str(described(tmp_path, kind="volumes", **patterns)))
    np.testing.assert_array_equal(data.sample("4").mask[0].numpy(), mask)


def test_masks_of_stacks_are_their_pages_and_need_no_labels(tmp_path):
    for number in range(3):
        image = archives.scene((6, 24, 32), 3, number)[1]
        mask = (np.arange(6)[:, None, None] + np.indices((24, 32)).sum(0) > 8).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"v{number}.tif", (image * 255).astype(np.uint8))
        tifffile.imwrite(tmp_path / f"v{number}-mask.tif", mask)
    split = {"train": ["v0"], "validation": ["v1"], "test": ["v2"]}
    given = {"kind": "stacks", "images": "{subject}.tif", "mask": "{subject}-mask.tif", "split": split}
    data = load_dataset(str(described(tmp_path, classes=None, **given)))
    np.testing.assert_array_equal(data.sample("v1-t003").mask[0].numpy(), mask[3])


def test_masks_are_augmented_as_labels_and_cut_with_the_images(masked):
    """A mask that equals the label goes where the label goes."""
    data = load_dataset(changed(masked, mask="labels/{subject}_mask.tif"))
    for index in range(4):
        item = DrawnSamples(data.pairs("train"), AUGMENT_2D, 0, (16, 20))[index]
        batch = augmented({name: one[None] for name, one in item.items()}, (16, 20))
        for side in ("moving", "fixed"):
            assert batch[f"{side}_weights"].shape == (1, 1, 16, 20)
            torch.testing.assert_close(batch[f"{side}_weights"], batch[f"{side}_label"].float())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mask": "mask/{subject}.tif"}, r"mask/slide0.tif is missing beside .*images/slide0.tif: add it"),
        ({"mask": "masks/slide.tif"}, r"mask: must contain {subject}.*, found 'masks/slide.tif'"),
        ({"masks": PATTERN}, "unknown key masks; the keys are name, kind, images, labels, mask"),
    ],
)
def test_faults_of_the_key_are_told_at_the_start(masked, keys, message):
    with pytest.raises(DataError, match=message):
        load_dataset(changed(masked, **keys))


def test_masks_that_do_not_fit_are_named(masked):
    path = masked.parent / "masks" / "slide7.tif"
    tifffile.imwrite(path, np.zeros((24, 31), np.uint8))
    data = load_dataset(changed(masked, mask=PATTERN))
    with pytest.raises(DataError, match=r"slide7.tif is 0 everywhere: give more than 0 where voxels count"):
        data.sample("slide7")
    tifffile.imwrite(path, np.indices((24, 31)).sum(0).astype(np.uint8) % 2)
    with pytest.raises(DataError, match=r"slide7.tif has no block of 2 voxels that counts: downsample less"):
        load_dataset(str(masked), downsample=2).sample("slide7")
    tifffile.imwrite(path, np.ones((20, 31), np.uint8))
    with pytest.raises(DataError, match=r"slide7.tif has shape \(20, 31\), its image slide7.tif \(24, 31\): resample"):
        load_dataset(changed(masked, mask=PATTERN))
