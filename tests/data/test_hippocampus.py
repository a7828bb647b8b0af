"""hippocampus-mr in the layout of its archive: splits, pairs, padding, and files that cannot be used."""

import random
from pathlib import Path

import nibabel
import numpy as np
import pytest

from deepsimreg.data import SPLITS, load_dataset
from deepsimreg.errors import DataError
from deepsimreg.io import read_image


@pytest.fixture
def decathlon(tmp_path) -> Path:
    """Ten volumes of different sizes in the layout of Task04, with a resource fork as macOS leaves them."""
    draw = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "Task04_Hippocampus" / part).mkdir(parents=True)
        (tmp_path / "Task04_Hippocampus" / part / "._hippocampus_000.nii.gz").write_bytes(b"fork")
    for index in range(10):
        shape = (11 + index % 4, 15, 9)
        affine = np.array([[-1.0, 0, 0, 4], [0, 1.5, 0, -3], [0, 0, 2, 1], [0, 0, 0, 1]])
        image = draw.normal(100, 20, size=shape).astype(np.float32)
        label = np.zeros(shape, np.uint8)
        label[4:8, 5:9, 3:6] = 1 + (np.arange(4, 8) > 5)[:, None, None]
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            path = tmp_path / "Task04_Hippocampus" / part / f"hippocampus_{index:03d}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return tmp_path


def paths(root: Path, name: str) -> tuple[Path, Path]:
    folder = root / "Task04_Hippocampus"
    return folder / "imagesTr" / f"{name}.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"


def rewrite(path: Path, change) -> None:
    file = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(change(np.asarray(file.dataobj)), file.affine), path)


def test_hippocampus_splits_and_pairs(decathlon):
    data = load_dataset("hippocampus-mr", root=decathlon)
    shuffled = [f"hippocampus_{index:03d}" for index in range(10)]
    random.Random(42).shuffle(shuffled)
    names = {split: [sample.name for sample in data.samples(split)] for split in SPLITS}
    assert names == {"train": shuffled[:6], "validation": shuffled[6:8], "test": shuffled[8:]}
    train = {(pair.moving.name, pair.fixed.name) for pair in data.pairs("train")}
    assert train == {(a, b) for a in shuffled[:6] for b in shuffled[:6] if a != b}
    a, b = names["test"]
    assert [pair.name for pair in data.pairs("test")] == [f"{a}--{b}", f"{b}--{a}"]
    assert all(pair.displacement is None for pair in data.pairs("test"))


def test_hippocampus_pairs_no_subject_with_itself(decathlon):
    for part in paths(decathlon, "hippocampus_000"):
        for index in range(10, 15):
            (part.parent / f"hippocampus_{index:03d}.nii.gz").write_bytes(part.read_bytes())
    pairs = load_dataset("hippocampus-mr", root=decathlon).pairs("test")
    assert len(pairs) == 2
    assert all(pair.moving.name != pair.fixed.name for pair in pairs)


def test_hippocampus_padding_keeps_world_coordinates(decathlon):
    data = load_dataset("hippocampus-mr", root=decathlon)
    assert data.shape == (16, 16, 16)
    assert data.spacing == (1.0, 1.5, 2.0)
    for sample in data.samples("train"):
        raw, grid = read_image(paths(decathlon, sample.name)[0])
        corner = np.linalg.inv(sample.affine) @ grid.affine @ [0, 0, 0, 1]
        start = corner[:3].round().astype(int)
        inside = tuple(slice(s, s + n) for s, n in zip(start, raw.shape, strict=True))
        low, high = np.quantile(raw, [0.01, 0.99])
        expected = (np.clip(raw, low, high) - low) / (high - low)
        np.testing.assert_allclose(sample.image[0].numpy()[inside], expected, atol=1e-6)
        edge = sample.image[0].numpy()[(slice(0, start[0] + 1), *inside[1:])]
        np.testing.assert_array_equal(edge, np.broadcast_to(edge[-1:], edge.shape))
        assert (start == [(16 - n) // 2 for n in raw.shape]).all()


def test_hippocampus_fingerprint(decathlon):
    before = load_dataset("hippocampus-mr", root=decathlon).fingerprint()
    assert before == load_dataset("hippocampus-mr", root=decathlon).fingerprint()
    rewrite(paths(decathlon, "hippocampus_005")[0], lambda image: image + np.eye(*image.shape[:2])[..., None])
    assert load_dataset("hippocampus-mr", root=decathlon).fingerprint() != before


def test_hippocampus_absent_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSIMREG_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"deepsimreg fetch hippocampus-mr.*DEEPSIMREG_DATA"):
        load_dataset("hippocampus-mr")


def nan_voxel(image):
    image[3, 3, 3] = np.nan
    return image


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (0, nan_voxel, "NaN"),
        (0, lambda image: image * 0 + 7, "constant"),
        (0, lambda image: np.stack([image, image], -1), r"has shape \(11, 15, 9\), its image"),
        (1, lambda label: label[1:], "resample"),
        (1, lambda label: label + 2, r"has the label [34].*0: 'background', 1:"),
        (1, lambda label: label + np.float32(0.5), "integers"),
    ],
)
def test_hippocampus_refuses_volumes(decathlon, part, change, message):
    path = paths(decathlon, "hippocampus_004")[part]
    rewrite(path, change)
    with pytest.raises(DataError, match=rf"hippocampus_004.*{message}"):
        load_dataset("hippocampus-mr", root=decathlon)


@pytest.mark.parametrize("part", [0, 1])
def test_hippocampus_refuses_half_a_subject(decathlon, part):
    path = paths(decathlon, "hippocampus_007")[part]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.parent.name}.hippocampus_007.nii.gz is missing"):
        load_dataset("hippocampus-mr", root=decathlon)


@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.98])
def test_hippocampus_refuses_a_truncated_file(decathlon, keep):
    path = paths(decathlon, "hippocampus_002")[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 or keep == 0 else int(keep * len(whole))])
    with pytest.raises(DataError, match=r"hippocampus_002.*truncated or not NIfTI.*: remove it, or fetch it again$"):
        load_dataset("hippocampus-mr", root=decathlon)
