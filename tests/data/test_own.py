"""A dataset by YAML alone: no code."""

import re

import archives
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
    (nuclei.parent / "pairs.csv").write_text("moving,fixed,split\nslide0,slide1,train\nslide8,slide6,test\n")
    data = load_dataset(changed(nuclei, pairs={"file": "pairs.csv"}))
    assert [pair.name for pair in data.pairs("test")] == ["slide8--slide6"]
    assert len(data.pairs("validation")) == 0


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
    with pytest.raises(DataError, match=r"v0-seg-seg.tif is missing beside .*v0-seg.tif"):
        load_dataset(str(path))  # the pattern of the images finds the labels, too
    (tmp_path / "seg").mkdir()
    for number in range(3):
        (tmp_path / f"v{number}-seg.tif").rename(tmp_path / "seg" / f"v{number}.tif")
    data = load_dataset(changed(path, labels="seg/{subject}.tif"))
    assert [pair.name for pair in data.pairs("test")][:2] == ["v2-t000--v2-t001", "v2-t001--v2-t002"]
    assert len(data.pairs("train")) == 10
    assert data.spacing == (0.5, 0.25)
    split = {"train": ["v0", "v1"], "validation": ["v1"], "test": ["v2"]}
    pairs = load_dataset(changed(path, split=split)).pairs("train")
    assert len(pairs) == 2 * 10
    assert all(pair.moving.name[:2] == pair.fixed.name[:2] for pair in pairs), "the next page of another stack is none"


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
        ({"kind": "movie"}, "kind: Input should be 'planes', 'volumes' or 'stacks', found 'movie'"),
        ({"images": "images/*.tif"}, r"images: must contain {subject}, as in .*, found 'images/\*.tif'"),
        ({"images": "scans/{subject}.tif"}, r"images: no file is called .*scans/{subject}.tif"),
        ({"labels": "labels/{subject}.tif"}, r"labels/slide0.tif is missing beside .*slide0.tif"),
        ({"split": {"train": 0.5, "validation": 0.2, "test": 0.2}}, "must add up to 1"),
        ({"split": {"train": ["x"], "validation": ["slide1"], "test": ["slide2"]}}, "split names x, of which"),
        ({"pairs": {"file": "no.csv"}}, "no.csv does not exist"),
        ({"kind": "volumes"}, "kind is volumes, but the images have 2 axes"),
        ({"spacing": [1]}, "spacing has 1 values for 2 axes"),
        ({"colors": ["red"]}, "colors has 1 entries for 2 classes"),
        ({"pairs": {"atlas": "slide77"}}, r"nuclei.yaml names slide77, which is no image and no split"),
        ({"pairs": "some"}, r"pairs: choose all, neighbours, .*, found 'some'"),
        ({"split": {"train": ["slide0"], "validation": 0.5, "test": 0.5}}, "three fractions or three lists"),
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
    with pytest.raises(DataError, match=r"slide2_mask.tif is truncated or not TIFF"):
        load_dataset(str(nuclei))
    nuclei.write_text("name: nuclei\n")
    with pytest.raises(DataError, match="missing key kind; the keys are name, kind"):
        load_dataset(str(nuclei))
    with pytest.raises(DataError, match="does not exist: name the YAML file"):
        load_dataset("nowhere.yaml")
