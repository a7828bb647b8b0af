"""Every dataset from its archive to its samples and pairs."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace

import archives
import nibabel
import numpy as np
import pytest
import tifffile
import torch

from deepsimreg.data import DATASETS, load_dataset, phc, platelet
from deepsimreg.data.base import Sample
from deepsimreg.data.digests import file_digests
from deepsimreg.data.fetch import fetch_dataset
from deepsimreg.data.files import downsampled
from deepsimreg.errors import DataError
from deepsimreg.paper.samples import InOrder
from deepsimreg.paths import PROJECT

MADE = {
    "phc-u373": archives.make_phc,
    "platelet-em": archives.make_platelet,
    "neurite-oasis-3d": lambda folder: archives.make_oasis(folder, 3),
    "neurite-oasis-2d": lambda folder: archives.make_oasis(folder, 2),
}
OPTIONS = {"phc-u373": {"downsample": 8}}


def fetched(name, folder, monkeypatch):
    """The data root that holds a dataset: fetched from a made archive on the loopback address, or laid out."""
    root = folder / "data"
    if name == "brain-mri":
        archives.lay_out_brains(root)
        return root
    served = folder / "served"
    served.mkdir()
    archive = MADE[name](served)
    digest = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    source = DATASETS[name].source
    monkeypatch.setattr(DATASETS[name], "source", replace(source, checksum=digest if source.checksum else ""))
    with archives.serve(served) as url:
        fetch_dataset(name, root, f"{url}/{archive.name}")
    return root


@pytest.mark.parametrize("name", ["phc-u373", "platelet-em", "brain-mri", "neurite-oasis-3d", "neurite-oasis-2d"])
def test_what_a_dataset_holds(name, tmp_path, monkeypatch):
    data = load_dataset(name, root=fetched(name, tmp_path, monkeypatch))
    names = {split: [sample.name for sample in data.samples(split)] for split in ("train", "validation", "test")}
    for split, pairs in ((split, data.pairs(split)) for split in names):
        for pair in pairs:
            assert pair.moving.name != pair.fixed.name
            assert pair.moving.image.shape == pair.fixed.label.shape == (1, *data.shape)
        assert {pair.moving.name for pair in pairs} <= set(names[split])
    assert not set(names["train"]) & set(names["test"])
    sample = data.samples("test")[0]
    assert 0 <= sample.image.min() < sample.image.max() <= 1
    assert sample.label.max() < len(data.classes) == len(data.colors) == len(set(data.colors))
    assert data.ndim == len(DATASETS[name].shape)
    assert data.fingerprint() == load_dataset(name, root=tmp_path / "data").fingerprint()


def test_phc_layout_and_pairs(tmp_path, monkeypatch):
    root = fetched("phc-u373", tmp_path, monkeypatch)
    stack = tifffile.imread(root / "PhC-U373" / "images" / "02.tif", key=range(63))
    assert stack.shape == (63, 512, 688)
    with zipfile.ZipFile(tmp_path / "served" / "PhC-C2DH-U373.zip") as file:
        frame = tifffile.imread(file.open("PhC-C2DH-U373/02/t007.tif"))
    assert (stack[7] == frame[phc.CROP]).all()
    data = load_dataset("phc-u373", root=root)
    assert [pair.name for pair in data.pairs("test")] == ["02-t060--02-t061", "02-t061--02-t062"]
    assert len(data.samples("validation")) == 50
    distances = sorted(int(p.fixed.name[-3:]) - int(p.moving.name[-3:]) for p in data.pairs("train"))
    assert distances == [-2, -2, -1, -1, -1, 1, 1, 1, 2, 2]
    torch.testing.assert_close(data.samples("validation")[7].image[0], torch.from_numpy(stack[7] / 256).float())


def test_platelet_classes_follow_the_colours(tmp_path, monkeypatch):
    root = fetched("platelet-em", tmp_path, monkeypatch)
    label = archives.scene((24, 40, 48), 7, 24)[0]
    written = tifffile.imread(root / "platelet_em_reduced" / "labels-class" / "24-class.tif", key=range(24))
    assert (written == np.minimum(label, 2)).all()
    data = load_dataset("platelet-em", root=root)
    assert len(data.samples("validation")) == len(data.samples("test")) == 12
    assert (root / "platelet_em_reduced.sha256").read_text().startswith("sha256:")


def test_a_layout_that_is_already_prepared_is_taken_as_it_is(tmp_path):
    label, image = archives.scene((50, 16, 20), 7, 0)
    for stack in (24, 50):
        for part, array in (("images", (image * 255).astype(np.uint8)), ("labels-class", label)):
            path = tmp_path / "platelet_em_reduced" / part / f"{stack}-{'images' if part == 'images' else 'class'}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, array[:stack])
    assert fetch_dataset("platelet-em", tmp_path) == tmp_path / "platelet_em_reduced"
    sample = load_dataset("platelet-em", root=tmp_path).samples("train")[3]
    assert (sample.label[0].numpy() == np.minimum(label[3], 2)).all()


def test_a_folder_that_was_unpacked_by_hand_is_prepared_and_kept(tmp_path):
    with zipfile.ZipFile(archives.make_platelet(tmp_path)) as file:
        file.extractall(tmp_path)
    fetch_dataset("platelet-em", tmp_path)
    assert (tmp_path / "platelet-em").is_dir()
    assert len(load_dataset("platelet-em", root=tmp_path).samples("train")) == 50


def test_a_download_without_a_published_checksum_must_not_change(tmp_path, monkeypatch):
    root = fetched("platelet-em", tmp_path, monkeypatch)
    shutil.rmtree(root / "platelet_em_reduced")
    archives.make_platelet(tmp_path / "served", shape=(32, 32))
    with (
        archives.serve(tmp_path / "served") as url,
        pytest.raises(DataError, match=r"expected [0-9a-f]{64}: remove it"),
    ):
        fetch_dataset("platelet-em", root, f"{url}/images_and_labels_rgba.zip")
    assert not (root / "platelet_em_reduced").exists()


def test_faults_of_the_archives_are_named(tmp_path):
    with zipfile.ZipFile(archives.make_phc(tmp_path, (2, 2))) as file:
        file.extractall(tmp_path)
    raw = tmp_path / "PhC-C2DH-U373"
    label = raw / "01_ST" / "SEG" / "man_seg001.tif"
    tifffile.imwrite(label, np.zeros((5, 5), np.uint16))
    with pytest.raises(DataError, match=r"man_seg001.tif has shape \(5, 5\), but frames are \(520, 696\)"):
        phc.prepare(raw, tmp_path / "target")
    label.unlink()
    with pytest.raises(DataError, match=r"man_seg001.tif does not exist"):
        phc.prepare(raw, tmp_path / "target")
    with zipfile.ZipFile(archives.make_platelet(tmp_path)) as file:
        file.extractall(tmp_path)
    colours = tmp_path / "platelet-em" / "labels-semantic" / "24-semantic.tif"
    stack = tifffile.imread(colours)
    stack[5, 3, 3] = (9, 9, 9, 255)
    tifffile.imwrite(colours, stack)
    with pytest.raises(DataError, match=r"24-semantic.tif, slice 5 has the colour \(9, 9, 9\)"):
        platelet.prepare(tmp_path / "platelet-em", tmp_path / "target")


def test_what_is_killed_while_it_is_prepared_leaves_nothing(tmp_path, monkeypatch):
    with zipfile.ZipFile(archives.make_platelet(tmp_path)) as file:
        file.extractall(tmp_path)

    def killed(raw, target):
        platelet.prepare(raw, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(platelet.PlateletEm, "source", replace(platelet.PlateletEm.source, prepare=killed))
    with pytest.raises(KeyboardInterrupt):
        fetch_dataset("platelet-em", tmp_path)
    assert not (tmp_path / "platelet_em_reduced").exists()


def test_brain_mri_goes_to_its_atlas(tmp_path):
    archives.lay_out_brains(tmp_path)
    data = load_dataset("brain-mri", root=tmp_path)
    assert [pair.name for pair in data.pairs("test")] == ["s4--atlas", "s5--atlas"]
    assert [sample.name for sample in data.samples("validation")] == ["s2", "s3"]
    raw = nibabel.load(tmp_path / "brain_mris" / "data" / "s4" / "brain_aligned.nii.gz").get_fdata()
    torch.testing.assert_close(data.sample("s4").image[0], torch.from_numpy(raw.clip(0, 128) / 128).float())
    table = tmp_path / "brain_mris" / "metadata.csv"
    table.write_text(table.read_text().replace("TEST", "exam"))
    with pytest.raises(DataError, match=r"SPLIT of s4 is 'exam': write train, validate or test"):
        load_dataset("brain-mri", root=tmp_path)
    with pytest.raises(DataError, match=r"metadata.csv is missing: ABIDE and OASIS-3 may not be redistributed"):
        load_dataset("brain-mri", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="brain-mri cannot be fetched"):
        fetch_dataset("brain-mri", tmp_path)


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


def test_datasets_reach_spawned_workers(tmp_path):
    archives.lay_out_brains(tmp_path)
    for data in (load_dataset("brain-mri", root=tmp_path), load_dataset("phantom-2d", shape=(32, 32), train=3)):
        for items in (data.samples("train"), data.pairs("train")):
            again = pickle.loads(pickle.dumps(items))
            assert len(again) == len(items)
            ours, theirs = (one if hasattr(one, "image") else one.moving for one in (items[1], again[1]))
            assert torch.equal(ours.image, theirs.image)
    loader = torch.utils.data.DataLoader(
        InOrder(data.pairs("train")), 3, num_workers=1, multiprocessing_context="spawn"
    )
    (batch,) = loader
    assert torch.equal(batch["moving"][2], data.pairs("train")[2].moving.image)


def test_fingerprints_are_remembered_and_follow_the_files(tmp_path):
    archives.lay_out_brains(tmp_path)
    first = load_dataset("brain-mri", root=tmp_path).fingerprint()
    assert load_dataset("brain-mri", root=tmp_path).fingerprint() == first
    path = tmp_path / "brain_mris" / "data" / "s0" / "brain_aligned.nii.gz"
    image = nibabel.load(path)
    changed = image.get_fdata()
    changed[0, 0, 0] += 1
    archives.write_nifti(path, changed.astype(np.float32), image.affine)
    assert load_dataset("brain-mri", root=tmp_path).fingerprint() != first


def test_a_file_is_hashed_again_only_if_its_size_or_time_has_changed(tmp_path):
    path = tmp_path / "image"

    def digest(content: bytes, seconds: int) -> str:
        path.write_bytes(content)
        os.utime(path, (seconds, seconds))
        return file_digests([path], tmp_path)["image"]

    assert digest(b"one", 1000) == hashlib.sha256(b"one").hexdigest()
    assert digest(b"two", 1000) == hashlib.sha256(b"one").hexdigest(), "same size and time: not read"
    assert digest(b"two", 1001) == hashlib.sha256(b"two").hexdigest()
    assert digest(b"three", 1001) == hashlib.sha256(b"three").hexdigest()


NEW = """
from deepsimreg.data.phantom import phantom_2d


def circles(**options):
    return phantom_2d(shape=(32, 32), train=2, validation=1, test=1, **options)
"""


def test_a_new_dataset_is_a_module_and_an_entry(tmp_path, monkeypatch):
    (tmp_path / "my_circles.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DATASETS.places, "circles", "my_circles:circles")
    assert load_dataset("circles").pairs("test")[0].fixed.image.shape == (1, 32, 32)
    with pytest.raises(ValueError, match=r"dataset is 'circle': choose one of .*circles"):
        load_dataset("circle")


def test_the_data_root_outside_of_a_checkout_is_the_callers_folder(tmp_path):
    shutil.copytree(PROJECT / "deepsimreg", tmp_path / "site" / "deepsimreg", ignore=shutil.ignore_patterns("weights"))
    work = tmp_path / "work"
    work.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "DEEPSIMREG_DATA"}
    code = "from deepsimreg.paths import data_root; print(data_root())"
    options = {"cwd": work, "env": environment | {"PYTHONPATH": str(tmp_path / "site")}, "text": True}
    assert subprocess.check_output([sys.executable, "-c", code], **options).strip() == str(work / "data")


@pytest.mark.parametrize("name", list(MADE))
def test_missing_data_say_how_to_get_them(name, tmp_path):
    with pytest.raises(DataError, match=rf"deepsimreg fetch {name}"):
        load_dataset(name, root=tmp_path)


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
