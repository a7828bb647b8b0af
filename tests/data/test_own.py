"""A dataset by YAML alone: no code."""

import re

import archives
import nibabel
import numpy as np
import pytest
import tifffile
import torch
import yaml

from deepsimreg.data import load_dataset
from deepsimreg.errors import DataError
from deepsimreg.paths import PROJECT

README = (PROJECT / "data" / "README.md").read_text()
EXAMPLE = re.search(r"<!-- example of own data -->\n```yaml\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def nuclei(tmp_path):
    """The files that the README's example describes, and the example."""
    for number in range(10):
        label, image = archives.scene((24, 32 - number % 2), 2, number)
        for part, name, array in (
            ("images", f"slide{number}.tif", (image * 255).astype(np.uint8)),
            ("labels", f"slide{number}_mask.tif", label * 255),
        ):
            (tmp_path / part).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / part / name, array)
    path = tmp_path / "nuclei.yaml"
    path.write_text(EXAMPLE)
    return path


def changed(path, **keys):
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    return str(path)


def test_what_the_example_says(nuclei):
    data = load_dataset(str(nuclei))
    assert data.classes == ("background", "nucleus")
    assert data.shape == (24, 32)  # the largest; smaller planes are padded with their edge
    assert [len(data.samples(split)) for split in ("train", "validation", "test")] == [6, 2, 2]
    assert len(data.pairs("train")) == 6 * 5
    sample = data.sample("slide4")
    raw = tifffile.imread(nuclei.parent / "images" / "slide4.tif")
    torch.testing.assert_close(sample.image[0], torch.from_numpy(raw / 255).float())
    assert set(sample.label.unique().tolist()) == {0, 1}
    assert data.sample("slide5").image.shape == (1, 24, 32)


def test_named_splits_an_atlas_and_listed_pairs(nuclei):
    names = [f"slide{n}" for n in range(10)]
    split = {"train": names[:4], "validation": names[4:6], "test": names[6:9]}
    data = load_dataset(changed(nuclei, split=split, pairs={"atlas": "slide9"}))
    assert [pair.name for pair in data.pairs("test")] == [f"slide{n}--slide9" for n in (6, 7, 8)]
    rows = ["moving,fixed,split", "slide0,slide1,train", "slide4,slide5,validation", "slide8,slide6,test"]
    table = nuclei.parent / "pairs.csv"
    table.write_text("\n".join(rows))
    data = load_dataset(changed(nuclei, pairs={"file": "pairs.csv"}))
    assert [pair.name for pair in data.pairs("test")] == ["slide8--slide6"]
    assert [pair.name for pair in data.pairs("validation")] == ["slide4--slide5"]
    table.write_text("\n".join([rows[0], *rows[2:]]))
    assert len(load_dataset(str(nuclei)).pairs("train")) == 0, "optimisation needs none"
    for split, example, left in (("validation", "slide4,slide5", (0, 1, 3)), ("test", "slide6,slide7", (0, 1, 2))):
        table.write_text("\n".join(rows[i] for i in left))
        with pytest.raises(DataError, match=rf"pairs.csv has no row of the split {split}: .* {example},{split}$"):
            load_dataset(str(nuclei))


def test_stacks_pair_their_neighbours(tmp_path):
    for number in range(3):
        label, image = archives.scene((6, 24, 32), 3, number)
        tifffile.imwrite(tmp_path / f"v{number}.tif", (image * 255).astype(np.uint8))
        tifffile.imwrite(tmp_path / f"v{number}-seg.tif", label)
    own = {
        "name": "video",
        "kind": "stacks",
        "images": "{subject}.tif",
        "labels": "{subject}-seg.tif",
        "classes": ["background", "a", "b"],
        "intensity": {"range": [0, 255]},
        "split": {"train": ["v0"], "validation": ["v1"], "test": ["v2"]},
        "spacing": [0.5, 0.25],
    }
    path = tmp_path / "video.yaml"
    path.write_text(yaml.safe_dump(own))
    data = load_dataset(str(path))  # the pattern of the images finds the labels, too, but no split names them
    assert [pair.name for pair in data.pairs("test")][:2] == ["v2-t000--v2-t001", "v2-t001--v2-t002"]
    assert len(data.pairs("train")) == 10
    assert data.spacing == (0.5, 0.25)
    split = {"train": ["v0", "v1"], "validation": {"v2": "0-2"}, "test": {"v2": "3-"}}
    pairs = load_dataset(changed(path, split=split)).pairs("train")
    assert len(pairs) == 2 * 10
    assert all(pair.moving.name[:2] == pair.fixed.name[:2] for pair in pairs), "the next page of another stack is none"

    with pytest.raises(DataError, match=r"v0-seg-seg.tif is missing beside .*v0-seg.tif"):
        load_dataset(changed(path, split={"train": 0.4, "validation": 0.3, "test": 0.3}))


def described(folder, **keys):
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"name": "own", "classes": ["background", "cell"]} | keys))
    return path


@pytest.fixture
def cells(tmp_path):
    """Movie, twelve frames of one field; hand, eight fields that have nothing in common; extra, the same unlabelled."""
    for stack in ("movie", "hand", "extra"):
        seeds = [0] * 12 if stack == "movie" else range(20, 28)
        scenes = [archives.scene((64, 64), 2, seed) for seed in seeds]
        label, image = (np.stack([np.roll(one[i], t, 1) for t, one in enumerate(scenes)]) for i in (0, 1))
        (tmp_path / "labels").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / f"{stack}.tif", (image * 255).astype(np.uint8))
        if stack != "extra":
            tifffile.imwrite(tmp_path / "labels" / f"{stack}.tif", label)
    split = {"train": {"movie": "0-3"}, "validation": {"movie": "4-6"}, "test": {"movie": "7-"}}
    return described(tmp_path, kind="stacks", images="{subject}.tif", labels="labels/{subject}.tif", split=split)


def test_the_example_of_stacks_is_a_description(tmp_path):
    path = tmp_path / "t98g.yaml"
    path.write_text(re.search(r"<!-- example of stacks -->\n```yaml\n(.*?)```", README, re.DOTALL)[1])
    for folder, pages in (("images", {"hand": 45, "movie": 37}), ("labels-class", {"hand": 45, "movie": 37})):
        (tmp_path / folder).mkdir()
        for stack, count in pages.items():
            label, image = archives.scene((count, 16, 18), 2, count)
            tifffile.imwrite(tmp_path / folder / f"{stack}.tif", label if "labels" in folder else np.uint8(image * 255))
    data = load_dataset(str(path))
    assert {part: len(names) for part, names in data.splits.items()} == {
        "extractor": 44,
        "train": 13,
        "validation": 6,
        "test": 16,
    }


def test_extractor_and_registration_learn_from_different_stacks(cells, recwarn):
    split = yaml.safe_load(cells.read_text())["split"]
    data = load_dataset(changed(cells, split=split | {"extractor": {"hand": "1-7"}}))
    assert [sample.name for sample in data.samples("train")] == [f"hand-t00{page}" for page in range(1, 8)]
    assert [pair.name for pair in data.pairs("train")][::2] == [f"movie-t00{t}--movie-t00{t + 1}" for t in range(3)]
    assert [sample.name for sample in data.samples("validation")] == [f"movie-t00{t}" for t in (4, 5, 6)]
    assert [sample.name for sample in data.samples("test")] == [f"movie-t0{t:02d}" for t in range(7, 12)]
    pages = tifffile.imread(cells.parent / "labels" / "hand.tif")
    assert (data.samples("train")[2].label[0].numpy() == pages[3]).all()
    assert not recwarn.list


def test_unrelated_fields_that_would_be_neighbours_are_warned_of(cells):
    with pytest.warns(UserWarning, match=r"own.yaml: neighbours in hand.tif are no more alike .* split.extractor"):
        load_dataset(changed(cells, split={"train": ["hand"], "validation": {"movie": "0-5"}, "test": {"movie": "6-"}}))


def test_two_stacks_with_fractions_are_told_of_ranges(cells):
    (cells.parent / "extra.tif").unlink()
    with pytest.raises(DataError, match=r"own.yaml: split.validation: none of 2 subjects is left .* {stack: 0-19}"):
        load_dataset(changed(cells, split={}))


def test_images_without_labels(cells, recwarn):
    keys = yaml.safe_load(cells.read_text()) | {"split": {"train": "0-3", "validation": "4-5", "test": {"extra": "6-"}}}
    cells.write_text(yaml.safe_dump({key: keys[key] for key in keys if key not in ("labels", "classes")}))
    data = load_dataset(str(cells))
    assert data.classes == ("unlabelled",)
    assert [len(data.samples(split)) for split in ("train", "validation", "test")] == [12, 6, 2]
    assert data.samples("train")[5].label.shape == data.samples("train")[5].image.shape
    assert not recwarn.list


def test_a_range_of_files_is_of_their_order(nuclei):
    data = load_dataset(changed(nuclei, split={"train": "0-5", "validation": "6-7", "test": "8-"}))
    assert [sample.name for sample in data.samples("validation")] == ["slide6", "slide7"]


def test_patterns_may_be_absolute_repeat_the_subject_and_hold_special_characters(tmp_path):
    place = tmp_path / "lab [1]"
    for number in range(10):
        label, image = archives.scene((16, 24, 16), 2, number)
        folder = place / f"sub-{number:02d}" / "anat"
        archives.write_nifti(folder / f"sub-{number:02d}2_T1w.nii.gz", image)
        archives.write_nifti(folder / f"sub-{number:02d}2_dseg.nii.gz", label)
    (tmp_path / "elsewhere").mkdir()
    images = f"{place}/sub-{{subject}}/anat/sub-{{subject}}2_T1w.nii.gz"
    labels = images.replace("T1w", "dseg")
    data = load_dataset(str(described(tmp_path / "elsewhere", kind="volumes", images=images, labels=labels)))
    assert sorted(data.files) == [f"{number:02d}" for number in range(10)]
    assert data.files["07"].label == place / "sub-07" / "anat" / "sub-072_dseg.nii.gz"
    assert data.fingerprint() == data.fingerprint()


TURNS = [(0, 1, 2), (1, 2, 0), (2, 1, 0)]


@pytest.mark.parametrize("order", TURNS)
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, 1, -1)])
def test_orientation_is_honoured(tmp_path, order, flips):
    """The label of s0, and both files of s1, lie along other axes in the same world: what is read is the same."""
    label, image = archives.scene((12, 16, 20), 2, 1)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5, -7, 9

    def stored(array):
        turned = nibabel.Nifti1Image(array, affine).as_reoriented(np.stack([order, flips], axis=1))
        return np.asarray(turned.dataobj), turned.affine

    for number in range(10):
        other = stored if number == 1 else lambda array: (array, affine)
        archives.write_nifti(tmp_path / f"s{number}.nii.gz", *other(image))
        archives.write_nifti(tmp_path / f"l{number}.nii.gz", *(stored if number < 2 else other)(label))
    data = load_dataset(
        str(described(tmp_path, kind="volumes", images="s{subject}.nii.gz", labels="l{subject}.nii.gz"))
    )
    assert data.shape == label.shape
    for name in "012":
        sample = data.sample(name)
        np.testing.assert_array_equal(sample.label[0].numpy(), label)
        np.testing.assert_array_equal(sample.image[0].numpy(), data.sample("2").image[0].numpy())
        np.testing.assert_allclose(sample.affine, affine)
        assert sample.spacing == (1.0, 2.0, 3.0)


def test_a_label_that_lies_elsewhere_is_refused(tmp_path):
    label, image = archives.scene((12, 16, 20), 2, 1)
    moved = archives.AFFINE.copy()
    moved[1, 3] += 0.5
    for number in range(10):
        archives.write_nifti(tmp_path / f"s{number}.nii.gz", image)
        archives.write_nifti(tmp_path / f"l{number}.nii.gz", label, moved if number == 3 else archives.AFFINE)
    path = described(tmp_path, kind="volumes", images="s{subject}.nii.gz", labels="l{subject}.nii.gz")
    with pytest.raises(DataError, match=r"l3.nii.gz lies up to 0.5 voxels beside its image s3.nii.gz.*resample"):
        load_dataset(str(path))


def test_pairs_keep_to_their_split(nuclei):
    split = {"train": "0-3", "validation": "4-5", "test": "6-8"}
    for row, message in (
        ("slide0,slide6,test", "the split of slide0 is train, and here test"),
        ("slide9,slide6,test\nslide6,slide9,validation", "the split of slide6 is test, and here validation"),
        ("slide9,slide9,test\nslide9,slide9,validation", "the split of slide9 and slide9 is test, and here validation"),
    ):
        (nuclei.parent / "pairs.csv").write_text(f"moving,fixed,split\n{row}\n")
        with pytest.raises(DataError, match=rf"pairs.csv: {message}: change one of them"):
            load_dataset(changed(nuclei, split=split, pairs={"file": "pairs.csv"}))


def test_what_the_description_decides_belongs_to_the_fingerprint(nuclei):
    first = load_dataset(str(nuclei)).fingerprint()
    assert load_dataset(changed(nuclei, description="as before", licence="ours")).fingerprint() == first
    assert load_dataset(changed(nuclei, intensity={"range": [0, 200]})).fingerprint() != first


def test_volumes_with_their_affine(tmp_path):
    for number in range(10):
        label, image = archives.scene((16, 24, 16 - 2 * (number == 3)), 4, number)
        archives.write_nifti(tmp_path / f"s{number}" / "t1.nii.gz", image * 900)
        archives.write_nifti(tmp_path / f"s{number}" / "seg.nii.gz", label * 10)
    own = {
        "name": "brains",
        "kind": "volumes",
        "images": "{subject}/t1.nii.gz",
        "labels": "{subject}/seg.nii.gz",
        "classes": {0: "background", 10: "cortex", 20: "white matter", 30: "ventricle"},
    }
    path = tmp_path / "brains.yaml"
    path.write_text(yaml.safe_dump(own))
    data = load_dataset(str(path))
    assert data.spacing == (1.0, 1.0, 2.0)
    small = data.sample("s3")
    np.testing.assert_allclose(small.affine @ [0, 0, 1, 1], archives.AFFINE @ [0, 0, 0, 1])  # one slice of padding
    assert len(data.pairs("test")) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clases": []}, "unknown key clases; the keys are name, kind"),
        ({"neighbours": [0]}, "neighbours.0: Input should be greater than 0, found 0"),
        ({"intensity": {"range": [1, 0]}}, r"intensity: give either range: \[low, high\]"),
        ({"kind": "movie"}, "kind: Input should be 'planes', 'volumes' or 'stacks', found 'movie'"),
        ({"images": "images/*.tif"}, r"images: must contain {subject}, as in .*, found 'images/\*.tif'"),
        ({"images": "scans/{subject}.tif"}, r"images: no file is called .*scans/{subject}.tif"),
        ({"labels": "labels/{subject}.tif"}, r"labels/slide0.tif is missing beside .*slide0.tif"),
        ({"split": {"train": 0.5, "validation": 0.2, "test": 0.2}}, "must add up to 1"),
        (
            {"split": {"train": ["x"], "validation": ["slide1"], "test": ["slide2"]}},
            "split.train names x, of which there is no image; there is: slide0, ",
        ),
        ({"pairs": {"file": "no.csv"}}, "no.csv does not exist"),
        ({"kind": "volumes"}, "kind is volumes, but the images have 2 axes"),
        ({"spacing": [1]}, "spacing has 1 values for 2 axes"),
        ({"colors": ["red"]}, "colors has 1 entries for 2 classes"),
        ({"pairs": {"atlas": "slide77"}}, r"nuclei.yaml names slide77, which is no image and no split"),
        ({"pairs": "some"}, r"pairs: choose all, neighbours, .*, found 'some'"),
        ({"split": {"train": ["slide0"], "validation": 0.5, "test": 0.5}}, "three fractions, or lists of subjects"),
        ({"split": {"train": [{"slide0": "0-3"}]}}, "split.train: give a fraction between 0 and 1, a list of subjects"),
        ({"split": {"train": "0:9"}}, "a range such as 0-19 .*, found '0:9'"),
        ({"split": "0-9"}, "no keys in split; the keys are train, validation, test, extractor, seed"),
        (
            {"split": {"train": "0-3", "validation": "4-5", "test": "6-10"}},
            "split.test: 6-10 does not lie in 0-9, its 10",
        ),
        ({"split": {"train": "0-3", "validation": "4-5", "test": "5-7"}}, "slide5 is in validation and test: leave it"),
        ({"split": {"train": "0-3", "validation": "8-9", "test": "4-7", "extractor": "6-7"}}, "in test and extractor"),
        ({"split": {"train": "0-3", "validation": "4", "test": "5-7"}}, "split.validation: no pair of its 1 images"),
        (
            {"split": {"train": {"slide0": "0-3"}, "validation": "4-5", "test": "6-8"}},
            "split.train.slide0: 0-3 does not",
        ),
        ({"labels": None}, "labels and classes: give both; or neither"),
        ({"intensity": {"minimum": 0}}, "unknown key intensity.minimum; the keys are range, quantiles"),
    ],
)
def test_faults_of_a_description(nuclei, keys, message):
    with pytest.raises(DataError, match=message):
        load_dataset(changed(nuclei, **keys))


def test_every_fault_of_a_description_has_a_line_that_names_file_and_key(nuclei):
    with pytest.raises(DataError) as caught:
        load_dataset(changed(nuclei, kind="movie", classes={"a": "b"}, spacing=[-1], clases=[]))
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{nuclei}: ") for line in lines)
    keys = ["kind: Input should be", "classes.a: Input should be", "spacing.0: Input should be", "unknown key clases"]
    for line, key in zip(lines, keys, strict=True):
        assert line.removeprefix(f"{nuclei}: ").startswith(key)


def test_faults_of_the_files(nuclei):
    with pytest.raises(
        DataError, match=r"slide0_mask.tif has the label 255, .* {0: 'background', 1: .* change nuclei.yaml"
    ):
        load_dataset(changed(nuclei, classes={0: "background", 1: "nucleus"}))
    (nuclei.parent / "labels" / "slide2_mask.tif").write_bytes(b"II*\0")
    mine = "correct it, remove it, or change nuclei.yaml$"
    with pytest.raises(DataError, match=rf"slide2_mask.tif is truncated or not TIFF .*: {mine}"):
        load_dataset(str(nuclei))
    (nuclei.parent / "images" / "slide0.tif").write_bytes(b"II*\0")
    with pytest.raises(DataError, match=rf"slide0.tif is truncated or not TIFF .*: {mine}"):
        load_dataset(changed(nuclei, kind="stacks"))
    nuclei.write_text("- name: nuclei\n")
    with pytest.raises(DataError, match="no keys in the description; the keys are name, kind"):
        load_dataset(str(nuclei))
    nuclei.write_text("name: nuclei\n")
    with pytest.raises(DataError, match="missing key kind; the keys are name, kind"):
        load_dataset(str(nuclei))
    with pytest.raises(DataError, match="does not exist: name the YAML file"):
        load_dataset("nowhere.yaml")
