import dataclasses
import json
import threading

import pytest
import yaml

from deepsimreg.data import load_dataset
from deepsimreg.paper import experiment
from deepsimreg.paper.experiment import Profile, Run, SettingsError, relative, run_folder
from deepsimreg.paper.paths import EXPERIMENTS

PROFILES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
TINY = {"shape": (32, 32), "train": 1, "validation": 1, "test": 1}


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A profile made from a tree."""

    def make(tree):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
        monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
        return Profile("mine")

    return make


@pytest.mark.parametrize("name", PROFILES)
def test_every_committed_profile_resolves(name):
    profile = Profile(name)
    for dataset in profile.datasets:
        assert profile.registrations(dataset)
        folders = [s.folder for s in profile.registrations(dataset) + profile.extractors(dataset)]
        assert len(set(folders)) == len(folders)


def test_settings_of_a_kind_go_before_those_of_all(profile):
    made = profile(
        {
            "phantom-2d": {
                "extractors": {"fit": {"steps": 5, "batch": 2}, "ae": {"fit": {"steps": 7}}},
                "registration": {
                    "fit": {"steps": 9},
                    "tuning": {"steps": 3},
                    "similarities": {"mse": {"grid": [0.1, 0.2]}, "ncc": {"lam": 1}},
                    "seeds": [0, 1],
                },
            }
        }
    )
    assert made.extractor("phantom-2d", "seg").fit.steps == 5
    assert made.extractor("phantom-2d", "ae").fit == dataclasses.replace(
        made.extractor("phantom-2d", "seg").fit, steps=7
    )
    runs = made.registrations("phantom-2d")
    assert [(run.method, run.lam, run.fit.seed) for run in runs] == [
        ("mse", None, 0),
        ("mse", None, 1),
        ("ncc", 1.0, 0),
        ("ncc", 1.0, 1),
    ]
    assert [(run.method, run.lam, run.fit.steps) for run in made.tunings("phantom-2d")] == [
        ("mse", 0.1, 3),
        ("mse", 0.2, 3),
    ]
    assert {run.fit.steps for run in runs} == {9}


def test_the_chosen_lam_is_read_from_its_file(profile, runs):
    made = profile({"phantom-2d": {"registration": {"similarities": {"mse": {"grid": [0.1, 0.2]}}}}})
    choice = made.choice("phantom-2d")
    choice.parent.mkdir(parents=True)
    choice.write_text('{"mse": 0.2}')
    assert made.registration("phantom-2d", "mse").lam == 0.2
    choice.write_text('{"mse": 5}')  # of another grid
    assert made.registration("phantom-2d", "mse").lam is None


def test_variants_start_from_the_method_they_are_of(profile):
    made = profile(
        {
            "phantom-2d": {
                "extractors": {"fit": {"steps": 5}, "seg-few": {"kind": "seg", "labels": 0.1, "fit": {"batch": 1}}},
                "registration": {
                    "network": {"light": True},
                    "similarities": {"deepsim-seg": {"lam": 2, "options": {"zero_mean": True}}},
                },
                "ablations": {
                    "fit": {"steps": 7},
                    "variants": {
                        "level-1": {"of": "deepsim-seg", "group": "levels", "options": {"levels": [1]}},
                        "few": {"of": "deepsim-seg", "group": "labels", "extractor": "seg-few", "lam": 1},
                    },
                },
            }
        }
    )
    base, few, level = made.ablations("phantom-2d")
    assert (base.method, level.method, few.method) == ("deepsim-seg", "level-1", "few")
    assert (base.lam, level.lam, few.lam) == (2, 2, 1)
    assert base.options == {"zero_mean": True}
    assert level.options == {"zero_mean": True, "levels": [1]}
    assert {run.fit.steps for run in (base, level, few)} == {7}
    assert made.groups("phantom-2d")["few"] == ("labels", "deepsim-seg")
    settings = made.extractor_for(few)
    assert (settings.name, settings.kind, settings.labels, settings.fit.steps) == ("seg-few", "seg", 0.1, 5)
    assert [extractor.name for extractor in made.extractors("phantom-2d")] == ["seg", "seg-few"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"fantom": {}}, "unknown dataset 'fantom'; there is: phantom-2d"),
        ({"phantom-2d": {"extractor": {}}}, "unknown setting of phantom-2d in mine.yaml: 'extractor'"),
        ({"phantom-2d": {"extractors": {"vgg": {}}}}, "unknown kind of extractor vgg of .* 'vgg'; there is: seg, ae"),
        ({"phantom-2d": {"extractors": {"seg": {"netwrok": {}}}}}, "unknown setting of .*.extractors.seg: 'netwrok'"),
        (
            {"phantom-2d": {"registration": []}},
            "phantom-2d in mine.yaml.registration is \\[\\], but must hold settings",
        ),
        ({"phantom-2d": {"baselines": {"elastix": {}}}}, "unknown baseline of .* 'elastix'; there is: syn"),
        (
            {"phantom-2d": {"ablations": {"variants": {"a": {"of": "mse"}}}}},
            "unknown method that .* is a variant `of` 'mse'",
        ),
        ({"phantom-2d": {"registration": {"similarities": {"ssim": {}}}}}, "unknown similarity of .* 'ssim'"),
        (
            {"phantom-2d": {"registration": {"similarities": {"mse": {"lambda": 1}}}}},
            "unknown setting of .*.mse: 'lambda'",
        ),
        (
            {"phantom-2d": {"registration": {"similarities": {"mse": {}}}}},
            "mse of .* has no λ: give lam, a number, or grid, a list",
        ),
    ],
)
def test_a_name_that_nothing_reads_is_an_error(profile, tree, message):
    with pytest.raises(SettingsError, match=message):
        profile(tree)


def test_unknown_names_are_errors_that_list_what_there_is():
    quick = Profile("quick")
    with pytest.raises(SettingsError, match="unknown profile 'fast'; there is: cpu"):
        Profile("fast")
    with pytest.raises(
        SettingsError, match=r"unknown similarity 'ssim'; there is: mse, ncc, ncc-3, ncc-sup, nmi, mind"
    ):
        quick.registration("phantom-2d", "ssim")
    with pytest.raises(SettingsError, match=r"unknown training setting 'step'; there is: steps, batch"):
        quick.extractor("phantom-2d", "seg", step=3)
    with pytest.raises(SettingsError, match="training setting steps is 'many', but must be of type int"):
        quick.extractor("phantom-2d", "seg", steps="many")
    assert quick.extractor("phantom-2d", "seg", learning_rate="1e-3").fit.learning_rate == 1e-3  # YAML's 1e-3 is text
    with pytest.raises(SettingsError, match=r"training setting steps is 2.5, but must be of type int"):
        quick.extractor("phantom-2d", "seg", steps=2.5)
    with pytest.raises(SettingsError, match="schedule is 'linear': choose plateau or cosine"):
        quick.extractor("phantom-2d", "seg", schedule="linear")
    with pytest.raises(SettingsError, match="unknown extractor 'vgg'"):
        quick.extractor("phantom-2d", "vgg")
    with pytest.raises(SettingsError, match="unknown dataset of profile quick 'brain'"):
        quick.registration("brain", "mse")


def test_run_writes_its_configuration_and_end(runs):
    settings = Profile("quick").registration("phantom-2d", "mse")
    run = Run(settings, load_dataset("phantom-2d", **TINY))
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["settings"] == json.loads(json.dumps(dataclasses.asdict(settings)))
    assert config["provenance"]["torch"].startswith("2.13.0")
    assert not run.done
    with pytest.raises(SettingsError, match="no finished run"):
        Run.result_of(run.folder)
    run.finish(best={"step": 3})
    run.finish(test={"dice": 0.5})
    assert Run.result_of(run.folder) == {"best": {"step": 3}, "test": {"dice": 0.5}}
    assert str(run) == "runs/quick/phantom-2d/registration/mse/seed-0: best step 3"


def test_run_of_the_same_settings_goes_on_and_of_others_starts_anew(runs, capsys):
    settings = Profile("quick").extractor("phantom-2d", "seg")
    data = load_dataset("phantom-2d", **TINY)
    folder = Run(settings, data).folder
    (folder / "last.ckpt").write_text("hours of work")
    assert (Run(settings, data).folder / "last.ckpt").exists()
    changed = dataclasses.replace(settings, fit=dataclasses.replace(settings.fit, steps=7))
    assert not (Run(changed, data).folder / "last.ckpt").exists()
    kept = [path for path in folder.parent.iterdir() if path != folder]
    assert [(path / "last.ckpt").read_text() for path in kept] == ["hours of work"]
    assert kept[0].name in capsys.readouterr().out


def test_a_training_setting_that_did_not_exist_yet_counts_as_its_default(runs):
    settings = Profile("quick").extractor("phantom-2d", "seg")
    data = load_dataset("phantom-2d", **TINY)
    path = Run(settings, data).folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    assert config["settings"]["fit"].pop("gradient_clip") == 0
    path.write_text(yaml.safe_dump(config))
    assert list(Run(settings, data).folder.parent.iterdir()) == [path.parent]


def test_run_with_another_extractor_starts_anew(runs):
    settings, data = Profile("quick").registration("phantom-2d", "deepsim-seg"), load_dataset("phantom-2d", **TINY)
    folder = Run(settings, data, inputs={"extractor": "a"}).folder
    Run(settings, data, inputs={"extractor": "a"})
    assert len(list(folder.parent.iterdir())) == 1
    Run(settings, data, inputs={"extractor": "b"})
    assert len(list(folder.parent.iterdir())) == 2


def test_provenance_is_that_of_the_first_sitting(runs, monkeypatch):
    settings, data = Profile("quick").extractor("phantom-2d", "seg"), load_dataset("phantom-2d", **TINY)
    path = Run(settings, data).folder / "config.yaml"
    before = path.read_text()
    monkeypatch.setattr(experiment, "provenance", lambda: {"commit": "another"})
    Run(settings, data)
    assert path.read_text() == before


def test_settings_come_back_from_a_run_folder(runs):
    for settings in (
        Profile("quick").extractor("phantom-2d", "ae"),
        Profile("quick").registration("phantom-2d", "ncc", 0.3, "tuning"),
        Profile("quick").baseline("phantom-2d", "greedy"),
    ):
        run = Run(settings, load_dataset("phantom-2d", **TINY))
        assert experiment.settings_of(run.folder) == settings
    with pytest.raises(SettingsError, match=r"no run \(there is no config.yaml\)"):
        experiment.settings_of(runs)


def test_one_process_at_a_time_in_a_run_folder(runs):
    order = []

    def second():
        with experiment.alone(runs / "a"):
            order.append("second")

    with experiment.alone(runs / "a"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_run_on_other_data_starts_anew(runs):
    settings = Profile("quick").extractor("phantom-2d", "seg")
    folder = Run(settings, load_dataset("phantom-2d", **TINY)).folder
    Run(settings, load_dataset("phantom-2d", **TINY, seed=1))
    assert len(list(folder.parent.iterdir())) == 2


def test_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings = Profile("quick").extractor("phantom-2d", "seg")
    with pytest.raises(SettingsError, match=r"file/run: the run folder cannot be written .* DEEPSIMREG_RUNS"):
        Run(settings, load_dataset("phantom-2d", **TINY), tmp_path / "file" / "run")


def test_names_of_folders_hold_no_machine_path(runs):
    folder = Profile("quick").extractor("phantom-2d", "seg").folder
    assert relative(folder) == "runs/quick/phantom-2d/extractor-seg"
    assert run_folder(relative(folder)) == folder
