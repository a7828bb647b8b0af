"""Every dataset by its name, from archives in the layouts of the public ones to samples and pairs."""

import hashlib
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import archives
import nibabel
import numpy as np
import pytest
import tifffile
import torch

from deepsimreg.data import DATASETS, LazySequence, load_dataset, phc, platelet, t98g, vnc
from deepsimreg.data.fetch import fetch_dataset
from deepsimreg.errors import DataError
from deepsimreg.paper.samples import to_tensors
from deepsimreg.paths import PROJECT

MADE = {
    "phc-u373": archives.make_phc,
    "platelet-em": archives.make_platelet,
    "t98g-phase": archives.make_t98g,
    "vnc-em": archives.make_vnc,
    "neurite-oasis-3d": lambda folder: archives.make_oasis(folder, 3),
    "neurite-oasis-2d": lambda folder: archives.make_oasis(folder, 2),
}


OPTIONS = {"phc-u373": {"downsample": 8}}


def fetched(name, folder, monkeypatch):
    """The data root that holds a dataset: fetched from a made archive on the loopback address, or laid out."""
    root = folder / "data"
    laid_out = {"brain-mri": archives.lay_out_brains, "brain-2d": archives.lay_out_slices}
    if name in laid_out:
        laid_out[name](root)
        return root
    served = folder / "served"
    served.mkdir()
    archive = MADE[name](served)
    digest = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    source = DATASETS[name].source
    source = replace(source, checksum=digest if source.checksum else "")
    if source.files:
        with zipfile.ZipFile(archive) as file:
            found = {one: hashlib.sha256(file.read(one)).hexdigest() for one in file.namelist()}
        lines = [f"{digest}  {one.partition('/')[2]}\n" for one, digest in found.items()]
        (folder / "files.sha256").write_text("".join(lines))
        source = replace(source, files=str(folder / "files.sha256"))
    monkeypatch.setattr(DATASETS[name], "source", source)
    with archives.serve(served) as url:
        fetch_dataset(name, root, f"{url}/{archive.name}")
    return root


def test_lazy_sequence_makes_what_is_asked_and_hides_no_error():
    made = []
    squares = LazySequence(5, lambda i: made.append(i) or i * i)
    assert (len(squares), squares[-1], squares[1:3], made) == (5, 16, [1, 4], [4, 1, 2])
    with pytest.raises(IndexError):
        squares[5]
    with pytest.raises(IndexError, match="inside"):
        list(LazySequence(3, lambda i: (_ for _ in ()).throw(IndexError("inside"))))


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="phantom-2d, phantom-3d, hippocampus-mr"):
        load_dataset("brain")
    with pytest.raises(ValueError, match="train, validation, test"):
        load_dataset("phantom-2d").pairs("val")


def test_importing_the_package_loads_no_dataset():
    code = (
        "import sys, deepsimreg.data as d; d.DATASETS; print([m for m in sys.modules if m[:16] == 'deepsimreg.data.'])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_dataset_has_a_name_of_its_own():
    assert all(DATASETS[name].name == name for name in list(DATASETS)[2:])
    assert [load_dataset(name).name for name in list(DATASETS)[:2]] == list(DATASETS)[:2]


@pytest.mark.parametrize("name", list(DATASETS)[3:])
def test_what_a_dataset_holds(name, tmp_path, monkeypatch):
    data = load_dataset(name, root=fetched(name, tmp_path, monkeypatch))
    names = {split: [sample.name for sample in data.samples(split)] for split in ("train", "validation", "test")}
    for split, pairs in ((split, data.pairs(split)) for split in names):
        for pair in pairs:
            assert pair.moving.name != pair.fixed.name
            assert pair.moving.image.shape == pair.fixed.label.shape == (1, *data.shape)
        images = DATASETS[name].parts[split][0] if name == "t98g-phase" else ""
        assert images or {pair.moving.name for pair in pairs} <= set(names[split])
    assert not set(names["train"]) & set(names["test"])
    sample = data.samples("test")[0]
    assert 0 <= sample.image.min() < sample.image.max() <= 1
    assert sample.label.max() < len(data.classes) == len(data.colors) == len(set(data.colors))
    assert data.ndim == len(DATASETS[name].shape)
    assert data.fingerprint() == load_dataset(name, root=tmp_path / "data").fingerprint()


def test_datasets_reach_spawned_workers(tmp_path):
    archives.lay_out_brains(tmp_path)
    for data in (load_dataset("brain-mri", root=tmp_path), load_dataset("phantom-2d", shape=(32, 32), train=3)):
        for items in (data.samples("train"), data.pairs("train")):
            again = pickle.loads(pickle.dumps(items))
            assert len(again) == len(items)
            ours, theirs = (one if hasattr(one, "image") else one.moving for one in (items[1], again[1]))
            assert torch.equal(ours.image, theirs.image)
    loader = torch.utils.data.DataLoader(
        LazySequence(data.pairs("train"), to_tensors), 3, num_workers=1, multiprocessing_context="spawn"
    )
    (batch,) = loader
    assert torch.equal(batch["moving"][2], data.pairs("train")[2].moving.image)


NEW = """
from deepsimreg.data.phantom import phantom_2d


def circles(**options):
    return phantom_2d(shape=(32, 32), train=2, validation=1, test=1, **options)
"""


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


def test_the_cells_register_their_movie_and_extractors_see_other_fields(tmp_path, monkeypatch):
    data = load_dataset("t98g-phase", root=fetched("t98g-phase", tmp_path, monkeypatch))
    assert [sample.name for sample in data.samples("train")] == ["hand-t001", "hand-t002", "hand-t003"]
    assert len(data.pairs("train")) == 2 * (19 + 18)
    assert data.pairs("train")[0].name == "movie-t000--movie-t001"
    for split, first, last in (("validation", 20, 26), ("test", 27, 36)):
        names = [pair.name for pair in data.pairs(split)]
        expected = [(a, a + d) for a in range(first, last + 1) for d in (1, 2) if a + d <= last]
        assert names == [f"movie-t{a:03d}--movie-t{b:03d}" for a, b in expected]
    full = load_dataset("t98g-phase", root=tmp_path / "data", full=True)
    assert (data.shape, full.shape) == ((504, 512), (1008, 1024))
    assert data.fingerprint() != full.fingerprint()


@pytest.mark.parametrize("name", ["t98g-phase", "vnc-em"])
def test_a_raw_file_that_has_changed_or_is_missing_is_named(name, tmp_path, monkeypatch):
    fetched(name, tmp_path, monkeypatch)
    listed = tmp_path / "files.sha256"
    digest, _, first = listed.read_text().splitlines()[0].partition("  ")
    for content, message in (
        (f"{'0' * 64}  {first}", "sha256 " + digest),
        (f"{digest}  gone.tif", "gone.tif is missing"),
    ):
        listed.write_text(content + "\n")
        shutil.rmtree(tmp_path / "data")
        with archives.serve(tmp_path / "served") as url, pytest.raises(DataError, match=message):
            fetch_dataset(name, tmp_path / "data", f"{url}/{DATASETS[name].source.url.rpartition('/')[2]}")
        assert not (tmp_path / "data" / DATASETS[name].source.folder).exists()


SHARED = PROJECT.parent / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the copies of the real data are not here")
def test_what_is_prepared_of_the_real_files_is_what_the_data_hold(tmp_path):
    """Two frames, two fields and two sections: their half size is that of the stacks, pixel for pixel."""
    cells, cord = SHARED / "T98G-phase", SHARED / "VNC-EM"
    t98g.prepare(cells / "raw-sample", tmp_path / "cells")
    shutil.copytree(cord / "raw-sample", tmp_path / "raw")
    vnc.prepare(tmp_path / "raw", tmp_path / "cord")
    for folder, made, stacks in (
        (cells, tmp_path / "cells", ("movie", "hand")),
        (cord, tmp_path / "cord", ("stack1",)),
    ):
        for part, stack in ((part, stack) for part in ("images", "labels-class") for stack in stacks):
            found, expected = (tifffile.imread(place / part / f"{stack}.tif") for place in (made, folder))
            assert len(found) == 2
            np.testing.assert_array_equal(found, expected[:2])


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


def test_a_damaged_file_has_the_remedy_of_its_dataset(tmp_path):
    """What can be fetched is fetched again, when it is prepared and when it is opened; what cannot be is not."""
    with zipfile.ZipFile(archives.make_platelet(tmp_path)) as file:
        file.extractall(tmp_path)
    stack = tmp_path / "platelet-em" / "labels-semantic" / "50-semantic.tif"
    whole = stack.read_bytes()
    stack.write_bytes(whole[:9])
    with pytest.raises(DataError, match=r"50-semantic.tif is truncated .*: remove platelet-em if .* fetch the data"):
        fetch_dataset("platelet-em", tmp_path)
    stack.write_bytes(whole)
    (fetch_dataset("platelet-em", tmp_path) / "images" / "50-images.tif").write_bytes(whole[:9])
    with pytest.raises(DataError, match=r"50-images.tif is truncated .*: remove it, or fetch it again$"):
        load_dataset("platelet-em", root=tmp_path)
    archives.lay_out_brains(tmp_path)
    (tmp_path / "brain_mris" / "data" / "s4" / "brain_aligned.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"s4.brain_aligned.nii.gz is truncated .*: correct it, or copy it from your"):
        load_dataset("brain-mri", root=tmp_path)


def test_a_new_dataset_is_a_module_and_an_entry(tmp_path, monkeypatch):
    (tmp_path / "my_circles.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DATASETS.places, "circles", "my_circles:circles")
    assert load_dataset("circles").pairs("test")[0].fixed.image.shape == (1, 32, 32)
    with pytest.raises(ValueError, match=r"dataset is 'circle': choose one of .*circles"):
        load_dataset("circle")


@pytest.mark.parametrize("name", list(MADE))
def test_missing_data_say_how_to_get_them(name, tmp_path):
    with pytest.raises(DataError, match=rf"deepsimreg fetch {name}"):
        load_dataset(name, root=tmp_path)
