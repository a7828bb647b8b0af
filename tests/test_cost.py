"""The estimate of a profile's cost names every training and scales with length and size."""

import pytest

from deepsimreg.cost import Size, estimate, main, similarity_seconds, size_of
from deepsimreg.experiment import Profile, relative
from deepsimreg.losses import SIMILARITIES


def test_every_training_of_the_profile_has_a_row():
    profile = Profile("quick")
    table = estimate(profile, steps=1)
    dataset = profile.datasets[0]
    planned = [
        *profile.extractors(dataset),
        *profile.tunings(dataset),
        *profile.registrations(dataset),
        *profile.ablations(dataset),
    ]
    assert list(table["run"]) == [relative(settings.folder) for settings in planned]
    assert table["hours"].to_list() == pytest.approx((table["steps"] * table["seconds_per_step"] / 3600).to_list())
    assert (table.loc[table["steps"] > 0, "hours"] > 0).all()


def test_a_large_image_is_timed_smaller_in_the_same_proportions():
    brain = Size((160, 192, 224), ("a", "b"))
    small = brain.below(500_000)
    assert small.voxels <= 550_000
    assert all(side % 16 == 0 for side in small.shape)
    assert small.shape[0] / small.shape[2] == pytest.approx(160 / 224, rel=0.15)
    assert brain.below(10**9) == brain


def test_sizes_are_known_without_the_files(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPSIMREG_DATA", str(tmp_path))
    profile = Profile("paper")
    for dataset in profile.datasets:
        size = size_of(profile, dataset)
        assert size.ndim in (2, 3)
        assert len(size.classes) > 1


def test_the_command_prints_the_sum(capsys):
    main(["quick", "--steps", "1"])
    assert "hours, one after the other, on this machine" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("shape", [(32, 40), (16, 16, 24)])
def test_every_similarity_is_timed_beside_ncc(shape):
    table = similarity_seconds(shape, repeats=1).set_index("similarity")
    assert set(table.index) == set(SIMILARITIES) - ({"vgg"} if len(shape) == 3 else set())
    assert (table["seconds"] > 0).all()
    assert table.loc["ncc", "ratio"] == 1
