"""Datasets: the phantom's ground truth, the hippocampus splits and padding, files, augmentation."""

import gzip
import random
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, maximum_filter, minimum_filter

from deepsimreg.data import DATASETS, SPLITS, LazySequence, load_dataset
from deepsimreg.data.augment import AUGMENT_2D, AUGMENT_3D, Augmentation, add_noise, augment_pair
from deepsimreg.errors import DataError
from deepsimreg.io import read_image, write_image
from deepsimreg.warps import jacobian_determinant, warp_labels

SMALL = {
    "phantom-2d": {"shape": (48, 40), "train": 3, "validation": 1, "test": 2},
    "phantom-3d": {"shape": (32, 32, 24), "train": 2, "validation": 1, "test": 1},
}


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


# The contract


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="phantom-2d, phantom-3d, hippocampus-mr"):
        load_dataset("brain")
    with pytest.raises(ValueError, match="train, validation, test"):
        load_dataset("phantom-2d").pairs("val")


def test_lazy_sequence_makes_what_is_asked_and_hides_no_error():
    made = []
    squares = LazySequence(5, lambda i: made.append(i) or i * i)
    assert (len(squares), squares[-1], squares[1:3], made) == (5, 16, [1, 4], [4, 1, 2])
    with pytest.raises(IndexError):
        squares[5]
    with pytest.raises(IndexError, match="inside"):
        list(LazySequence(3, lambda i: (_ for _ in ()).throw(IndexError("inside"))))


@pytest.mark.parametrize("name", SMALL)
def test_phantom_keeps_the_contract(name):
    data = load_dataset(name, **SMALL[name])
    assert data.name == name
    assert len(data.classes) == len(data.colors) == len(data.materials)
    assert data.ndim == len(data.shape) == len(data.spacing)
    for split in SPLITS:
        pairs = data.pairs(split)
        assert len(pairs) == SMALL[name][split]
        images = [sample for pair in pairs for sample in (pair.moving, pair.fixed)]
        assert [sample.name for sample in data.samples(split)] == [sample.name for sample in images]
        for sample in images:
            assert sample.image.shape == sample.label.shape == (1, *data.shape)
            assert (sample.image.dtype, sample.label.dtype) == (torch.float32, torch.uint8)
            assert sample.image.isfinite().all()
            assert 0 <= sample.image.min() < sample.image.max() <= 1
            assert sample.label.max() < len(data.classes)


# Phantom


@pytest.mark.parametrize("name", SMALL)
def test_phantom_displacement_is_the_exact_answer(name):
    """Nearest warping of the moving label is wrong only beside a boundary; by -u it is worse than nothing."""
    for pair in load_dataset(name).pairs("test")[:2]:
        displacement = pair.displacement[None]
        moving, fixed = pair.moving.label[None], pair.fixed.label[None]
        boundary = maximum_filter(fixed[0, 0], 3) != minimum_filter(fixed[0, 0], 3)
        before, after, opposite = (
            (label != fixed)[0, 0].numpy() & ~boundary
            for label in (moving, warp_labels(moving, displacement), warp_labels(moving, -displacement))
        )
        assert 10 * after.mean() < before.mean() < opposite.mean()


@pytest.mark.parametrize("name", SMALL)
def test_phantom_displacement_is_large_and_invertible_and_stays_on_the_grid(name):
    data = load_dataset(name, **SMALL[name] | {"train": 10})
    grid = torch.stack(torch.meshgrid(*map(torch.arange, data.shape), indexing="ij"))
    last = torch.tensor(data.shape).view(-1, *[1] * data.ndim) - 1
    for pair in data.pairs("train"):
        u = pair.displacement
        assert jacobian_determinant(u[None]).min() > 0.1
        assert 0.04 * min(data.shape) < u.norm(dim=0).max() <= data.displacement * min(data.shape)
        assert (grid + u > -0.01).all()
        assert (grid + u < last + 0.01).all()


def test_phantom_follows_from_its_seed():
    first, again = (load_dataset("phantom-2d", **SMALL["phantom-2d"], seed=3) for _ in range(2))
    other = load_dataset("phantom-2d", **SMALL["phantom-2d"], seed=4)
    pair, same = first.pairs("train")[1], again.pairs("train")[1]
    assert torch.equal(pair.fixed.image, same.fixed.image)
    assert torch.equal(pair.displacement, same.displacement)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    scenes = [data.pairs(s)[0].moving.label for data in (first, other) for s in ("train", "test")]
    assert not any(torch.equal(a, b) for i, a in enumerate(scenes) for b in scenes[:i])


def test_phantom_light_and_noise_are_drawn_for_each_image():
    """With no displacement both labels agree; what is left between the images has the SD of two noises."""
    options = SMALL["phantom-2d"] | {"displacement": 0.0, "illumination": 0.0}
    quiet, noisy = (load_dataset("phantom-2d", **options, noise=noise).pairs("test")[0] for noise in (0, 0.1))
    assert torch.equal(noisy.moving.label, noisy.fixed.label)
    texture = (quiet.moving.image - quiet.fixed.image).var()
    both = (noisy.moving.image - noisy.fixed.image).var()
    assert (both - texture).item() == pytest.approx(2 * 0.1**2, rel=0.15)


@pytest.mark.parametrize("options", [{"shape": (96,)}, {"shape": (8, 96)}, {"noise": -1}, {"displacement": 0.5}])
def test_phantom_refuses_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        load_dataset("phantom-2d", **options)


# Hippocampus


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
        raw, _, affine = read_image(paths(decathlon, sample.name)[0])
        corner = np.linalg.inv(sample.affine) @ affine @ [0, 0, 0, 1]
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
        (1, lambda label: label + 2, "0 to 2"),
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
    with pytest.raises(DataError, match=r"hippocampus_002.*truncated or not NIfTI.*fetch it again"):
        load_dataset("hippocampus-mr", root=decathlon)


# Files


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32])
def test_nifti_round_trip(tmp_path, suffix, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, -3], [0, 0, 3, 1], [0, 0, 0, 1]])
    write_image(tmp_path / f"a{suffix}", array, affine=affine)
    found, spacing, found_affine = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(found_affine, affine)
    assert found.dtype == dtype
    assert spacing == (1, 2, 3)
    write_image(tmp_path / f"a{suffix}", array, spacing=(0.5, 1, 2))
    assert read_image(tmp_path / f"a{suffix}")[1] == (0.5, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_round_trip(tmp_path, dtype):
    stack = np.arange(2 * 6 * 7).reshape(2, 6, 7).astype(dtype)
    write_image(tmp_path / "new" / "stack.tif", stack)
    found, spacing, affine = read_image(tmp_path / "new" / "stack.tif")
    np.testing.assert_array_equal(found, stack)
    assert (found.dtype, spacing, affine) == (dtype, (1, 1, 1), None)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(DataError, match=r"image.png.*\.nii\.gz"):
        read_image(tmp_path / "image.png")
    with pytest.raises(DataError, match=r"image.png.*\.nii\.gz"):
        write_image(tmp_path / "image.png", np.zeros((4, 4)))
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "image.nii")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"text" * 100))
    (tmp_path / "a.tif").write_bytes(b"text")
    for name in ("a.nii.gz", "a.tif"):
        with pytest.raises(DataError, match=rf"{name} is truncated"):
            read_image(tmp_path / name)


# Augmentation


@pytest.mark.parametrize(("preset", "ndim"), [(AUGMENT_2D, 2), (AUGMENT_3D, 3)])
def test_augmentation_draws_within_its_ranges(preset, ndim):
    shape = (40, 60, 50)[:ndim]
    generator = torch.Generator().manual_seed(0)
    matrices = torch.cat([preset.sample(generator, ndim, shape) for _ in range(200)]).double()
    linear, shift = matrices[..., :ndim], matrices[..., ndim]
    volume = torch.linalg.det(linear)
    assert matrices.shape == (200, ndim, ndim + 1)
    assert volume.abs().min() > preset.scale[0] ** ndim - 0.01
    assert volume.abs().max() < preset.scale[1] ** ndim + 0.01
    assert 60 < (volume < 0).sum() < 140
    assert (shift.abs() <= preset.translation * torch.tensor(shape)).all()
    again = preset.sample(torch.Generator().manual_seed(0), ndim, shape)
    assert torch.equal(again[0].double(), matrices[0])


def test_rotation_of_the_preset_in_3d_is_small():
    generator = torch.Generator().manual_seed(0)
    rotations = Augmentation(rotation=5)
    for _ in range(5):
        linear = rotations.sample(generator, 3, (8, 8, 8))[0, :, :3].double()
        torch.testing.assert_close(linear @ linear.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
        assert linear.trace() > 1 + 2 * np.cos(np.deg2rad(5 * 3))


def test_no_augmentation_changes_nothing():
    matrix = Augmentation().sample(torch.Generator(), 2, (6, 7))
    image, label = torch.rand(1, 6, 7), torch.randint(0, 3, (1, 6, 7), dtype=torch.uint8)
    images, labels = augment_pair([image], [label], matrix)
    torch.testing.assert_close(images[0], image)
    assert torch.equal(labels[0], label)


@pytest.mark.parametrize(("preset", "shape"), [(AUGMENT_2D, (21, 30)), (AUGMENT_3D, (12, 15, 10))])
def test_augmentation_agrees_with_scipy(preset, shape):
    """Both images and labels move by the same affine about the centre, as `scipy.ndimage` computes it."""
    matrix = preset.sample(torch.Generator().manual_seed(1), len(shape), shape)
    images = [torch.rand(1, *shape) for _ in range(2)]
    labels = [torch.randint(0, 3, (1, *shape), dtype=torch.uint8) for _ in range(2)]
    moved_images, moved_labels = augment_pair(images, labels, matrix)
    linear, shift = matrix[0, :, :-1].double().numpy(), matrix[0, :, -1].double().numpy()
    centre = (np.array(shape) - 1) / 2
    offset = centre + shift - linear @ centre
    for before, after, order in zip((*images, *labels), (*moved_images, *moved_labels), (1, 1, 0, 0), strict=True):
        expected = affine_transform(before[0].numpy(), linear, offset, order=order, mode="nearest")
        assert after.dtype == before.dtype
        np.testing.assert_allclose(after[0].numpy(), expected, atol=1e-4)


def test_augmentation_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one size"):
        augment_pair([torch.rand(1, 6, 7), torch.rand(1, 6, 8)], [], torch.eye(2, 3)[None])
    with pytest.raises(ValueError, match="scale"):
        Augmentation(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="need 3 positive values each"):
        Augmentation().sample(torch.Generator(), 3, (6, 7))


def test_every_dataset_has_a_name_of_its_own():
    assert all(DATASETS[name].name == name for name in list(DATASETS)[2:])
    assert [load_dataset(name).name for name in list(DATASETS)[:2]] == list(DATASETS)[:2]


def test_rotations_are_rigid_in_mm():
    """On voxels of 1 × 1 × 5 mm distances in mm are kept; on equal voxels nothing changes."""
    spacing, rotation = torch.tensor([1.0, 1.0, 5.0]), Augmentation(rotation=40)
    draw = lambda **more: rotation.sample(torch.Generator().manual_seed(1), 3, (9, 9, 9), **more)  # noqa: E731
    linear = draw(spacing=(1.0, 1.0, 5.0))[0, :, :3]
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
    before, after = points * spacing, (points @ linear.T) * spacing
    torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before), atol=1e-4, rtol=0)
    assert (after - before).norm(dim=1).mean() > 1
    assert torch.equal(draw(), draw(spacing=(2.0, 2.0, 2.0)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_noise_is_drawn_where_its_generator_is_and_keeps_the_images_type(dtype):
    image = torch.full((1, 1, 64, 64), 0.5, dtype=dtype)
    noisy = add_noise(image, 0.1, torch.Generator().manual_seed(0))
    assert noisy.dtype == dtype
    assert (noisy - image).float().std().item() == pytest.approx(0.1, rel=0.05)
    assert 0 <= noisy.min() < noisy.max() <= 1
