"""A tiny profile that has everything, and how runs are made in one process, without the seconds that a kernel takes."""

D = "phantom-2d"
SMALL = {"channels": [4, 6, 8], "light": True}
FIT = {"steps": 4, "batch": 2, "validate_every": 2}
TREE = {
    "phantom-2d": {
        "data": {"shape": [32, 32], "train": 3, "validation": 2, "test": 2},
        "extractors": {
            "network": SMALL,
            "fit": FIT,
            "seg-random": {"kind": "seg", "fit": {"steps": 0}},
            "seg-few": {"kind": "seg", "labels": 0.4},
            "seg-1": {"kind": "seg", "fit": {"seed": 1}},
        },
        "repeats": {"seg": ["seg-1"]},
        "registration": {
            "network": SMALL,
            "fit": FIT,
            "seeds": [0, 1],
            "tuning": {"steps": 2},
            "similarities": {"mse": {"grid": [0.1, 1]}, "deepsim-ae": {"lam": 1}, "deepsim-seg": {"lam": 1}},
        },
        "ablations": {
            "fit": {"steps": 2},
            "variants": {
                "level-1": {"of": "deepsim-seg", "group": "levels", "options": {"levels": [1]}},
                "random": {"of": "deepsim-seg", "group": "features", "extractor": "seg-random"},
                "few": {"of": "deepsim-seg", "group": "labels", "extractor": "seg-few"},
            },
        },
        "baselines": {"greedy": {"smoothing": [0.7, 1]}},
        "robustness": {"noise": [0.1], "contrast": ["inverted"], "methods": ["greedy", "ncc"]},
        "optimisation": {
            "tests": {"ncc": {"against": ["labels", "greedy"], "classes": ["organelle"]}},
            "methods": {
                "greedy": {"baseline": "greedy"},
                "network": {"network": "mse"},
                "ncc": {
                    "similarity": "ncc",
                    "options": {"ncc": {"window": 5}},
                    "lam": [0.3, 1],
                    "levels": [[4, 8, 5], [2, 4, 5]],
                },
                "segmentation": {"segmentation": "seg"},
                "labels": {"similarity": "mse", "maps": "labels", "lam": [0.002, 0.02], "levels": [[2, 4, 20]]},
                "maps": {
                    "baseline": "greedy",
                    "maps": "segmentation",
                    "lam": [1],
                    "options": {"greedy": {"metric": "SSD"}},
                },
                "both": {
                    "network": "mse",
                    "similarity": "ncc + deepsim-seg + classes-seg",
                    "lam": [1],
                    "levels": [[2, 4, 5]],
                },
            },
        },
    }
}


def make_inputs(plan, run):
    """Make what a run is made from, in this process."""
    from deepsimreg.paper.extractors import source_data, train_extractor
    from deepsimreg.paper.methods import run_baseline
    from deepsimreg.paper.registrations import train_registration

    for one in run.inputs:
        make_inputs(plan, one)
        data = plan.data(one.dataset)
        if one.current or one.chapter.startswith(("05", "06", "07", "08", "09")):
            continue
        if one.chapter.startswith("02"):
            train_extractor(one, source_data(plan, one))
        elif one.chapter == "03_registration":
            train_registration(plan, one, data)
        elif one.chapter == "04_baselines":
            run_baseline(plan, one, data)


def make_all(plan):
    """Make every run of a profile with networks, an evaluation, a noise test and figures, as its chapters do."""
    from deepsimreg.paper.drawn import drawings
    from deepsimreg.paper.tables import evaluation, robustness

    for run in plan.runs(D):
        run.repair()
    make_inputs(plan, plan.chapter(D, "figures"))
    for make in (evaluation, robustness, drawings):
        make(plan, D)
    with plan.chapter(D, "data").open() as run:
        run.finish()
