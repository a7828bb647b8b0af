"""Augmentation: ranges, agreement with scipy, rotations that are rigid in mm; noise."""

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from deepsimreg.data.augment import AUGMENT_2D, AUGMENT_3D, Augmentation, add_noise, augment_pair


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
    images, labels = augment_pair([image[None]], [label[None]], matrix)
    torch.testing.assert_close(images[0][0], image)
    assert torch.equal(labels[0][0], label)


@pytest.mark.parametrize(("preset", "shape"), [(AUGMENT_2D, (21, 30)), (AUGMENT_3D, (12, 15, 10))])
def test_augmentation_agrees_with_scipy(preset, shape):
    """Both images and labels move by the same affine about the centre, as `scipy.ndimage` computes it."""
    matrix = preset.sample(torch.Generator().manual_seed(1), len(shape), shape)
    images = [torch.rand(1, 1, *shape) for _ in range(2)]
    labels = [torch.randint(0, 3, (1, 1, *shape), dtype=torch.uint8) for _ in range(2)]
    moved_images, moved_labels = augment_pair(images, labels, matrix)
    linear, shift = matrix[0, :, :-1].double().numpy(), matrix[0, :, -1].double().numpy()
    centre = (np.array(shape) - 1) / 2
    offset = centre + shift - linear @ centre
    for before, after, order in zip((*images, *labels), (*moved_images, *moved_labels), (1, 1, 0, 0), strict=True):
        expected = affine_transform(before[0, 0].numpy(), linear, offset, order=order, mode="nearest")
        assert after.dtype == before.dtype
        np.testing.assert_allclose(after[0, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(("preset", "shape"), [(AUGMENT_2D, (21, 30)), (AUGMENT_3D, (12, 15, 10))])
def test_a_window_of_the_augmented_pair_is_that_part_of_the_whole(preset, shape):
    """Each pair of a batch with a map and a corner of its own."""
    generator = torch.Generator().manual_seed(2)
    matrix = torch.cat([preset.sample(generator, len(shape), shape) for _ in range(3)])
    image, label = torch.rand(3, 1, *shape), torch.randint(0, 3, (3, 1, *shape), dtype=torch.uint8)
    corner = torch.tensor([[0, 0, 0], [2, 3, 1], [5, 7, 4]])[:, : len(shape)]
    whole = augment_pair([image], [label], matrix)
    part = augment_pair([image], [label], matrix, (7, 8, 6)[: len(shape)], corner)
    for number, start in enumerate(corner.tolist()):
        window = tuple(slice(low, low + side) for low, side in zip(start, (7, 8, 6), strict=False))
        torch.testing.assert_close(part[0][0][number, 0], whole[0][0][number, 0][window], atol=1e-5, rtol=0)
        assert torch.equal(part[1][0][number, 0], whole[1][0][number, 0][window])


def test_augmentation_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one size"):
        augment_pair([torch.rand(1, 1, 6, 7), torch.rand(1, 1, 6, 8)], [], torch.eye(2, 3)[None])
    with pytest.raises(ValueError, match="scale"):
        Augmentation(scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="need 3 positive values each"):
        Augmentation().sample(torch.Generator(), 3, (6, 7))


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


def test_noise_follows_its_image_to_another_device():
    image = torch.empty(1, 1, 8, 8, device="meta")
    assert add_noise(image, 0.1, torch.Generator().manual_seed(0)).device == image.device


def test_noise_does_not_depend_on_the_type_of_the_image():
    image = torch.full((1, 1, 8, 8), 0.5)
    single, double = (
        add_noise(image.to(t), 0.1, torch.Generator().manual_seed(3)) for t in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=0)


def test_the_spacing_must_fit():
    for spacing in ((1.0, 1.0), (1.0, 1.0, 0.0)):
        with pytest.raises(ValueError, match="3 positive values"):
            Augmentation().sample(torch.Generator(), 3, (6, 7, 8), spacing)
