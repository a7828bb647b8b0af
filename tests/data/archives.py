"""Small archives in exactly the layouts of the public ones, and a server on the loopback address."""

import io
import tarfile
import tempfile
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
import tifffile
from scipy import ndimage

from deepsimreg.data.phc import FRAME
from deepsimreg.data.platelet import COLOURS as PLATELET_COLOURS

AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])


def scene(shape, classes, seed):
    """A label image of smooth blobs and a grey image that follows it, in [0, 1]."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 0.08 * max(shape))
    edges = np.quantile(field, np.linspace(0.4, 0.95, classes - 1))
    label = np.digitize(field, edges).astype(np.uint8)
    return label, 0.95 * (label / classes + 0.05 * rng.random(shape)).astype(np.float32)


def write_nifti(path: Path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def make_phc(folder: Path, frames=(4, 63)) -> Path:
    """PhC-C2DH-U373.zip with frames of the real size, the first ones of both videos."""
    small = [side // 8 for side in FRAME]
    archive = folder / "PhC-C2DH-U373.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for video, count in zip(("01", "02"), frames, strict=True):
            for number in range(count):
                label, image = scene(small, 2, number)
                for name, array, kind in (
                    (f"{video}/t{number:03d}.tif", image * 255, np.uint8),
                    (f"{video}_ST/SEG/man_seg{number:03d}.tif", label * 7, np.uint16),
                ):
                    full = np.kron(array.astype(kind), np.ones((8, 8), kind))
                    file.writestr(f"PhC-C2DH-U373/{name}", tiff(full))
    return archive


def tiff(array) -> bytes:
    """The bytes of a compressed TIFF file."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, compression="zlib")
    return buffer.getvalue()


def make_platelet(folder: Path, shape=(40, 48)) -> Path:
    """images_and_labels_rgba.zip: stacks of 24 and 50 slices, labels by colour, with macOS resource forks."""
    colours = np.array([(*colour, 255) for colour in PLATELET_COLOURS], np.uint8)
    archive = folder / "images_and_labels_rgba.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for stack in (24, 50):
            label, image = scene((stack, *shape), len(colours), stack)
            file.writestr(f"platelet-em/images/{stack}-images.tif", tiff((255 * image).astype(np.uint8)))
            file.writestr(f"platelet-em/labels-semantic/{stack}-semantic.tif", tiff(colours[label]))
            file.writestr(f"__MACOSX/platelet-em/images/._{stack}-images.tif", b"fork")
    return archive


def make_t98g(folder: Path, frames=37, fields=4) -> Path:
    """The archive of the repository Usiigaci at a commit: a movie with labels by number, fields drawn by hand."""
    archive, top = folder / "9501d80c.zip", "Usiigaci-9501d80cabc"
    movie = f"{top}/ExampleData/T98G_sample/20180101ef002xy01t{{:02d}}.tif"
    masks = f"{top}/ExampleData/T98G_sample_Exp_2018-08-31T161026/Id_masks_per_frame/id_masks_{{:02d}}.png"
    names = [(movie.format(k + 1), masks.format(k)) for k in range(frames)]
    hand = f"{top}/Mask R-CNN/train/set"
    names += [(f"{hand}{k + 1}/raw.tif", f"{hand}{k + 1}/instances_ids.png") for k in range(fields)]
    with zipfile.ZipFile(archive, "w") as file:
        for number, (image_name, label_name) in enumerate(names):
            label, image = scene((64, 64), 2, number)
            image, label = (np.kron(one, np.ones((16, 16)))[:1022] for one in (image * 65535, label * 7))
            file.writestr(image_name, tiff(image.astype(np.uint16)))
            file.writestr(label_name, png(label.astype(np.uint8)))
    return archive


def make_vnc(folder: Path, sections=20) -> Path:
    """The archive of the repository groundtruth-drosophila-vnc at a commit."""
    archive, top = folder / "4a5f0514.zip", "groundtruth-drosophila-vnc-4a5f0514abc/stack1"
    values = np.array([0, 255, 191, 223, 32], np.uint8)
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(sections):
            label, image = (np.kron(one, np.ones((16, 16))) for one in scene((64, 64), 5, number))
            file.writestr(f"{top}/raw/{number:02d}.tif", tiff((255 * image).astype(np.uint8)))
            file.writestr(f"{top}/labels/labels{number:08d}.png", png(values[label.astype(int)]))
    return archive


def png(array) -> bytes:
    """The bytes of a PNG file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.png")
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
        return path.read_bytes()


def make_oasis(folder: Path, ndim: int, subjects=10) -> Path:
    """The tar of neurite-oasis, 3D or 2D, whose subjects lie at its top."""
    archive = folder / f"neurite-oasis-{ndim}d.tar"
    shape, classes = ((16, 24, 16), 36) if ndim == 3 else ((32, 24), 25)
    with tarfile.open(archive, "w") as file:
        for number in range(1, subjects + 1):
            subject = folder / "made" / f"OASIS_OAS1_{number:04d}_MR1"
            label, image = scene(shape, classes, number)
            if ndim == 3:
                write_nifti(subject / "aligned_norm.nii.gz", image)
                write_nifti(subject / "aligned_seg35.nii.gz", label)
            else:
                write_nifti(subject / "slice_norm.nii.gz", image[..., None])
                write_nifti(subject / "slice_seg24.nii.gz", label[..., None])
                write_nifti(subject / "slice_seg4.nii.gz", (label // 6)[..., None])
            file.add(subject, subject.name)
    return archive


def lay_out_slices(root: Path) -> None:
    """The folder brain-2d, which is not fetched."""
    values, splits = np.array([0, 1, 2, 7, 8, 9], np.uint8), ("train", "train", "val", "val", "test", "test", "test")
    rows = ["subject_id,SPLIT", *(f"s{number},{split}" for number, split in enumerate(splits))]
    for number in range(len(splits)):
        label, image = scene((32, 24), 6, number)
        place = root / "brain-2d" / "data" / f"s{number}"
        write_nifti(place / "brain_aligned.nii.gz", image[..., None] * 128)
        write_nifti(place / "seg_coalesced_aligned.nii.gz", values[label][..., None])
    (root / "brain-2d" / "metadata.csv").write_text("\n".join(rows) + "\n")


def lay_out_brains(root: Path, splits=("train", "train", "Validate", "val", "TEST", "test")) -> None:
    """The authors' folder brain_mris, which is not fetched."""
    folder = root / "brain_mris"
    rows = ["subject_id,SPLIT", *(f"s{number},{split}" for number, split in enumerate(splits))]
    for number, place in enumerate([folder / "atlas", *(folder / "data" / f"s{n}" for n in range(len(splits)))]):
        label, image = scene((16, 24, 16), 24, number)
        write_nifti(place / "brain_aligned.nii.gz", image * 140)
        write_nifti(place / "seg_coalesced_aligned.nii.gz", label)
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def serve(folder: Path):
    """The folder on the loopback address; yields its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
