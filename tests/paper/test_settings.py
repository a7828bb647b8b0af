"""Profiles: what they may say, what is merged, and what is refused with which words."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from test_own import cells  # noqa: F401

from deepsimreg.losses.registry import SIMILARITIES
from deepsimreg.paper import settings
from deepsimreg.paper.baselines import BASELINES
from deepsimreg.paper.errors import SettingsError
from deepsimreg.paper.paths import EXPERIMENTS
from deepsimreg.paper.plan import Profile
from deepsimreg.paper.settings import SCHEMA, Fit, write_schema

D = "phantom-2d"
SEG = {"similarity": "deepsim-seg", "lam": [1, 2]}
METHODS = {"optimisation": {"methods": {"x": SEG}}}
ONE, SEEN = ({"similarity": name, "lam": [1]} for name in ("ncc", "deepsim-seg"))
NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def network(**own):
    return {D: {"registration": {"similarities": {"mse": own}}}}


@pytest.mark.parametrize("name", NAMES)
def test_every_committed_profile_resolves(name):
    known = {dataset: "0" * 16 for dataset in settings.read_profile(name)}
    plan = Profile(name, known)
    for dataset in plan.datasets:
        runs = plan.runs(dataset)
        assert len({run.folder for run in runs}) == len(runs) > 5


@pytest.mark.parametrize(
    ("example", "runs"),
    [
        (
            "networks",
            "data extractor-seg tuning registration/ncc/seed-0 registration/deepsim-seg/seed-0 evaluation figures",
        ),
        ("optimisation", "data extractor-seg optimisation"),
        ("source", "data extractor-ae optimisation"),
    ],
)
def test_the_examples_of_profiles_resolve(profile, example, runs):
    text = (EXPERIMENTS / "README.md").read_text()
    tree = yaml.safe_load(re.search(rf"<!-- {example} -->\n```yaml\n(.*?)```", text, re.DOTALL)[1])
    profile(tree)
    plan = Profile("mine", dict.fromkeys(tree, "0" * 16))
    assert set(runs.split()) <= {run.name for run in plan.runs(plan.datasets[0])}
    assert [run.name for other in plan.datasets[1:] for run in plan.runs(other)] == ["data"] * len(plan.datasets[1:])


def test_settings_of_a_kind_go_before_those_of_all(profile):
    plan = profile(
        {
            D: {
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
    assert plan.extractor(D, "seg").settings.fit == Fit(steps=5, batch=2)
    assert plan.extractor(D, "ae").settings.fit == Fit(steps=7, batch=2)
    found = [(run.settings.similarity, run.settings.lam, run.settings.fit.seed) for run in plan.registrations(D)]
    assert found == [("mse", "tuned", 0), ("mse", "tuned", 1), ("ncc", 1, 0), ("ncc", 1, 1)]
    assert [(run.settings.lam, run.settings.fit.steps) for run in plan.tunings(D)] == [(0.1, 3), (0.2, 3)]
    assert {run.settings.fit.steps for run in plan.registrations(D)} == {9}


def test_what_the_registries_bind_belongs_to_the_identity(profile, monkeypatch):
    tree = network(grid=[0.1, 1])
    tree[D]["baselines"] = {"greedy": {}}
    tree[D]["optimisation"] = {"methods": {"one": {"similarity": "ncc-3", "lam": [1]}, "two": {"baseline": "greedy"}}}

    def changed(tree):
        return {run.name for run in profile(tree).runs(D) if run.identity != before.get(run.name)}

    before = {}
    before = {run.name: run.identity for run in profile(tree).runs(D)}
    assert changed(tree) == set()
    with monkeypatch.context() as patch:
        patch.setitem(SIMILARITIES, "ncc-3", replace(SIMILARITIES["ncc-3"], options={"window": 5}))
        assert changed(tree) == {"optimisation", "figures"}
    with monkeypatch.context() as patch:
        patch.setitem(BASELINES, "greedy", replace(BASELINES["greedy"], iterations=(10, 5)))
        assert changed(tree) == {"baseline/greedy", "evaluation", "optimisation", "figures"}
    tree[D]["registration"]["similarities"]["mse"]["lam"] = 0.1
    trained = {"registration/mse/seed-0", "evaluation"}
    assert changed(tree) - {"robustness"} == {*trained, "tuning", "figures"}, "the tuning's table says which λ is used"


def test_variants_start_from_the_method_they_are_of(profile):
    tree = {
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
                "pyramid": {"of": "deepsim-seg", "architecture": "pyramid", "network": {"radius": 2}},
            },
        },
    }
    plan = profile({D: tree})
    base, level, few, pyramid = plan.ablations(D)
    assert [run.settings.lam for run in (base, level, few)] == [2, 2, 1]
    assert base.settings.options == {"zero_mean": True}
    assert level.settings.options == {"zero_mean": True, "levels": [1]}
    assert {run.settings.fit.steps for run in (base, level, few)} == {7}
    assert (base.settings.network, pyramid.settings.network) == ({"light": True}, {"radius": 2})
    assert plan.groups(D)["few"] == ("labels", "deepsim-seg")
    (extractor,) = few.inputs
    assert (extractor.name, extractor.settings.kind, extractor.settings.labels) == ("extractor-seg-few", "seg", 0.1)
    assert [run.name for run in plan.extractors(D)] == ["extractor-seg", "extractor-seg-few"]


def test_a_profile_may_optimise_alone(profile):
    plan = profile({D: {"optimisation": {"methods": {"a": ONE}}}})
    assert [run.name for run in plan.runs(D)] == ["data", "optimisation"]
    assert [run.name for run in plan.optimisation(D).inputs] == []


def test_a_dataset_without_methods_is_there_for_others(profile):
    sources = {"extractors": {"seg": {"source": "phantom-3d"}}, "optimisation": {"methods": {"a": SEEN}}}
    plan = profile({D: sources, "phantom-3d": {"data": {"shape": [16, 16, 16], "train": 2}}})
    assert [run.name for run in plan.runs("phantom-3d")] == ["data"]
    assert [run.name for run in plan.runs(D)] == ["data", "extractor-seg", "optimisation"]
    assert list(plan.extractor(D, "seg").data) == ["phantom-3d"]


def test_an_option_that_a_dataset_does_not_have_is_named(profile):
    plan = profile({D: {"data": {"shpae": [32, 32]}}})
    with pytest.raises(ValueError, match=r"phantom-2d: .*'shpae'; the options are .*shape, train"):
        plan.runs(D)


def test_images_without_labels_teach_autoencoders_alone(profile, cells):  # noqa: F811
    keys = yaml.safe_load(cells.read_text())
    cells.with_name("bare.yaml").write_text(
        yaml.safe_dump({key: keys[key] for key in keys if key not in ("labels", "classes")} | {"name": "bare"})
    )
    tree = {
        "own": {
            "data": {"description": str(cells)},
            "extractors": {"ae": {"source": "bare"}, "seg": {"source": "bare"}},
        },
        "bare": {"data": {"description": str(cells.with_name("bare.yaml"))}},
    }
    plan = profile(
        tree | {"own": tree["own"] | {"optimisation": {"methods": {"a": SEEN | {"similarity": "deepsim-ae"}}}}}
    )
    assert [run.name for dataset in plan.datasets for run in plan.runs(dataset)] == [
        *("data", "extractor-ae", "optimisation"),
        "data",
    ]
    plan = profile(tree | {"own": tree["own"] | {"optimisation": {"methods": {"a": SEEN}}}})
    with pytest.raises(SettingsError, match="own: extractor-seg learns labels, but bare has none: name another source"):
        plan.runs("own")
    for methods in ({"baselines": {"syn": {}}}, {"optimisation": {"methods": {"a": ONE}}}):
        plan = profile(tree | {"bare": tree["bare"] | methods})
        with pytest.raises(SettingsError, match="bare has no labels to judge registrations by"):
            plan.runs("bare")


def test_a_missing_run_names_the_notebook_that_makes_it(profile):
    with pytest.raises(
        SettingsError, match=r"Run notebooks/02_feature_extractor.ipynb with .*'extractor': 'ae'}; make paper"
    ):
        profile({D: {"optimisation": {"methods": {"a": ONE}}}}).extractor(D, "ae").need()


def test_the_optimisation_asks_for_its_extractors(profile):
    methods = {"a": {"similarity": "classes-seg", "lam": [1]}, "b": {"similarity": "deepsim-ae + 0.5 mse", "lam": [1]}}
    plan = profile({D: {"registration": {"similarities": {"mse": {"lam": 1}}}, "optimisation": {"methods": methods}}})
    assert [run.name for run in plan.extractors(D)] == ["extractor-seg", "extractor-ae"]
    assert {run.name for run in plan.optimisation(D).inputs} == {"extractor-seg", "extractor-ae"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"fantom": {}}, r"mine.yaml: fantom: unknown dataset without data.description 'fantom'; there is: phantom-2d"),
        ({D: {"extractor": {}}}, r"mine.yaml: phantom-2d: unknown key 'extractor'; there is: on_demand, data"),
        ({D: {"extractors": {"vgg": {}}}}, r"unknown kind of extractor vgg 'vgg'; there is: seg, ae"),
        ({D: {"extractors": {"seg": {"netwrok": {}}}}}, r"phantom-2d.extractors.seg: unknown key 'netwrok'"),
        ({D: {"registration": []}}, r"phantom-2d.registration: is \[\], but holds settings: architecture"),
        (
            {D: {"baselines": {"elastix": {}}}},
            r"baselines.elastix: unknown baseline 'elastix'; there is: syn",
        ),
        ({D: {"ablations": {"variants": {"a": {"of": "mse"}}}}}, "unknown method that a is a variant of 'mse'"),
        (
            network(lam=1) | {D: network(lam=1)[D] | {"ablations": {"variants": {"a": {"of": "mse", "lam": "tuned"}}}}},
            "λ of a is tuned, but mse has no grid: give lam or grid",
        ),
        ({D: {"registration": {"similarities": {"ssim": {}}}}}, "unknown similarity 'ssim'; there is: mse, ncc"),
        (network(**{"lambda": 1}), r"similarities.mse: unknown key 'lambda'; there is: lam, grid"),
        (network(), "mse: has no λ: give lam, a number, or grid, a list"),
        (network(lam=-1), r"mse.lam.* greater than or equal to 0"),
        (network(lam=float("nan")), r"mse.lam.* finite number"),
        (network(lam=1, fit={"steps": "many"}), r"mse.fit.steps: .*valid integer.*, found 'many'$"),
        (network(lam=1, fit={"steps": 2.5}), r"mse.fit.steps: .*valid integer.*, found 2.5$"),
        (network(lam=1, fit={"schedule": "linear"}), r"mse.fit.schedule: .*'plateau' or 'cosine', found 'linear'$"),
        (network(lam=1, architecture="resnet"), "unknown architecture 'resnet'; there is: voxelmorph"),
        (network(lam=1, extractor="seg-5"), "unknown extractor 'seg-5'; there is: seg, ae"),
        ({D: {"resources": {"training": {"gpu": 1}}}}, "unknown stage in resources 'training'"),
        ({D: {"reference": "sny"}}, "unknown reference 'sny'; there is: unregistered"),
        ([], "mine.yaml holds .*, but maps dataset names"),
        (
            {D: {"extractors": {"network": {"chanels": [4]}}}},
            "option of the network of extractor seg 'chanels'; there is: ",
        ),
        (network(lam=1, network={"lihgt": True}), "option of the network of mse 'lihgt'; there is: .* channels"),
        (network(lam=1, options={"widnow": 3}), "unknown option of mse 'widnow'"),
        ({D: {"baselines": {"greedy": {"options": {"raduis": 3}}}}}, "option of greedy 'raduis'; there is: .*radius"),
        (
            {D: {"optimisation": {"methods": {"a": ONE | {"options": {"ncc": {"widnow": 3}}}}}}},
            "unknown option of ncc 'widnow'; there is: window",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_its_place(profile, tree, message):
    with pytest.raises(SettingsError, match=message):
        profile(tree)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"baseline": "syn"}, "baseline of optimisation.methods.x 'syn'"),
        ({"network": "ncc"}, "network of optimisation.methods.x 'ncc'"),
        ({"similarity": "ncc"}, "methods.x: needs a baseline, a network, a segmentation, or a similarity with lam"),
        ({}, "methods.x: needs a baseline"),
        ({"baseline": "greedy", "network": "mse"}, "'baseline' and 'network': choose one"),
        ({"segmentation": "seg", "similarity": "ncc", "lam": [1]}, "'segmentation' and 'similarity': choose one"),
        ({"segmentation": "sog"}, "extractor of optimisation.methods.x 'sog'"),
        ({"network": "mse", "lam": [1]}, "lam belongs to a similarity or a baseline"),
        ({"baseline": "greedy", "maps": "labels"}, "maps are registered by a similarity or a baseline with lam"),
        ({"similarity": "mse", "lam": [1], "maps": "label"}, "methods.x.maps"),
        ({"similarity": "deepsim-seg + deepsim-ae", "lam": [1], "extractor": "seg"}, "needs two kinds of extractors"),
        ({"similarity": "nc", "lam": [1]}, "methods.x.similarity: unknown similarity 'nc'"),
        ({"similarity": "ncc", "lam": [1], "levels": [[4, 8]]}, r"methods.x.levels.0.2: Field required"),
        ({"similarity": "ncc-sup", "lam": [1]}, "compares labels by ncc-sup"),
        ({"similarity": "ncc", "lam": [1], "options": {"mind": {}}}, "with options 'mind'; there is: ncc"),
    ],
    ids=str,
)
def test_methods_that_cannot_be_are_refused(profile, method, message):
    with pytest.raises(SettingsError, match=message):
        profile({D: {"optimisation": {"methods": {"x": method}}}})


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"optimisation": {"tests": {"x": {"against": ["y"]}}}}, "method in optimisation.tests 'x'"),
        ({"repeats": {"seg": ["seg-1"]}}, "extractor in repeats 'seg-1'"),
        (
            {"optimisation": {"tests": {"x": {"against": ["x"]}}, "methods": {"x": {"segmentation": "seg"}}}},
            "optimisation.tests.x has no grid",
        ),
        ({"robustness": {"contrast": ["inverted"]}}, "robustness: needs both or neither: contrast and methods"),
        ({"robustness": {"contrast": ["dim"], "methods": ["x"]}}, "unknown contrast 'dim'"),
        ({"robustness": {"contrast": ["inverted"], "methods": ["x"]}}, "method in robustness 'x'"),
        (
            {
                "robustness": {"contrast": ["inverted"], "methods": ["x"]},
                "optimisation": {"methods": {"x": {"similarity": "mse", "maps": "labels", "lam": [1]}}},
            },
            "robustness changes images, but x registers none",
        ),
        ({"baselines": {"convexadam": {}}}, "phantom-2d are planes, but convexadam registers volumes"),
        ({"extractors": {"seg": {"taught": [["axon"]]}}, **METHODS}, "class of phantom-2d that .* is taught 'axon'"),
        (
            {"optimisation": {"tests": {"x": {"against": ["x"], "classes": ["axon"]}}, "methods": {"x": SEG}}},
            "class of phantom-2d in optimisation.tests 'axon'",
        ),
    ],
    ids=str,
)
def test_what_an_experiment_names_has_to_be_there(profile, part, message):
    def planned():
        plan = profile({D: part})
        plan.data(D)
        return plan.runs(D)

    with pytest.raises(SettingsError, match=message):
        planned()


def test_the_network_of_a_further_seed_is_trained_with_a_further_extractor(profile):
    extractors = {"seg-1": {"kind": "seg", "fit": {"seed": 1}}}
    part = {"seeds": [0, 1, 2], "similarities": {"deepsim-seg": {"grid": [1, 2]}, "mse": {"lam": 1}}}
    plan = profile({D: {"extractors": extractors, "repeats": {"seg": ["seg-1"]}, "registration": part}})
    used = {run.settings.fit.seed: run.settings.extractor for run in plan.registrations(D) if "deepsim" in run.name}
    assert used == {0: "seg", 1: "seg-1", 2: "seg-1"}
    assert {run.settings.extractor for run in plan.tunings(D)} == {"seg"}


def test_changes_of_a_run_are_checked(profile):
    plan = profile(network(lam=1))
    assert plan.extractor(D, "seg", "runs/x", learning_rate="1e-3").settings.fit.learning_rate == 1e-3
    with pytest.raises(SettingsError, match="training setting: unknown key 'step'; there is: steps"):
        plan.extractor(D, "seg", "runs/x", step=3)
    with pytest.raises(SettingsError, match=r"give the run a folder of its own"):
        plan.registration(D, "mse", steps=3)
    with pytest.raises(SettingsError, match=r"give the run a folder of its own"):
        plan.registration(D, "mse", lam=0.5)
    with pytest.raises(SettingsError, match="mse compares no features: leave extractor empty"):
        plan.registration(D, "mse", place="runs/x", extractor="seg")
    with pytest.raises(SettingsError, match="unknown dataset of profile mine 'brain'"):
        plan.registration("brain", "mse")


def test_a_profile_that_is_no_yaml_and_one_that_is_not_there(profile, tmp_path):
    profile()
    for content in (b"a: [", b"\xff\xfe", b"a: 2020-99-99", b"[" * 9999):
        (tmp_path / "experiments" / "bad.yaml").write_bytes(content)
        with pytest.raises(SettingsError, match=r"bad\.yaml is not YAML"):
            Profile("bad")
    with pytest.raises(SettingsError, match="unknown profile 'none'; there is: bad, mine"):
        Profile("none")


def test_the_committed_schema_is_that_of_the_models(tmp_path):
    made = json.loads(write_schema(tmp_path).read_text())
    assert made == json.loads((EXPERIMENTS / SCHEMA).read_text())
    assert "steps" in made["$defs"]["Fit"]["properties"]
