"""Where a chapter finds its tables: the published ones, or those of its run, made and written if it has not ended.

How tables are found decides none of their numbers, so this module is no part of a run's identity.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pandas as pd

from deepsimreg.paper.errors import SettingsError, check_choice
from deepsimreg.paper.files import read_json
from deepsimreg.paper.outputs import write_table
from deepsimreg.paper.paths import FIGURES
from deepsimreg.paper.plan import Profile

Tables = dict[str, pd.DataFrame]
PUBLISHED = "published"  # as a profile: the results of figures/<dataset>
SOURCE = "source.json"  # in a published folder: the profile, the data, and the run behind each file


class Published(Profile):
    """The profile that a dataset's published results are from; its tables are those of `figures/<dataset>`.

    Neither the data nor the runs need to be at hand. SettingsError for a dataset without published results.
    """

    def __init__(self, dataset: str, figures: Path = FIGURES):
        folders = sorted(path.parent.name for path in figures.glob(f"*/{SOURCE}"))
        self.folder = figures / check_choice("published dataset", dataset, folders)
        self.record = read_json(self.folder / SOURCE) or {}
        if "fingerprints" not in self.record:
            raise SettingsError(f"{self.folder / SOURCE} is damaged; `make publish` writes it")
        super().__init__(self.record["profile"], self.record["fingerprints"])

    def tables(self, stage: str) -> Tables:
        """The tables of a chapter, by the names of their files."""
        found = {path.stem: pd.read_csv(path) for path in sorted((self.folder / stage).glob("*.csv"))}
        if not found:
            raise SettingsError(f"{self.folder} holds no tables of the chapter {stage}")
        return found


def published_datasets(stage: str = "evaluation", figures: Path = FIGURES) -> list[str]:
    """The datasets with published tables of a chapter."""
    return sorted(path.parent.name for path in figures.glob(f"*/{stage}") if path.is_dir())


def reported(profile: str, dataset: str) -> Profile:
    """What a chapter reports: the published results of a dataset (`profile` is "published"), or a profile's runs."""
    return Published(dataset) if profile == PUBLISHED else Profile(profile)


def at_hand(plan: Profile, dataset: str, stage: str) -> bool:
    """Whether the tables of a chapter can be read: they are published, or its run has ended."""
    if isinstance(plan, Published):
        return stage in {path.name for path in plan.folder.iterdir()}
    return plan.chapter(dataset, stage).current


def tables_of(stage: str) -> Callable[[Callable[..., Tables]], Callable]:
    """Decorator: read the tables of a chapter; make, write and mark them if its run has not ended.

    The function that is decorated takes a profile and a dataset, and returns tables by the names of their files. What
    the caller gets are these tables, or the table itself if there is only one.
    """

    def decorate(make: Callable[..., Tables]) -> Callable:
        @wraps(make)
        def read(plan: Profile, dataset: str, *options, **more) -> Tables | pd.DataFrame:
            tables = plan.tables(stage) if isinstance(plan, Published) else made(plan, dataset, *options, **more)
            return tables if len(tables) > 1 else tables.popitem()[1]

        def made(plan: Profile, dataset: str, *options, **more) -> Tables:
            run = plan.chapter(dataset, stage)
            with run.open():
                if not run.current:
                    found = make(plan, dataset, *options, **more)
                    for name, table in found.items():
                        write_table(table, run.folder / f"{name}.csv")
                    run.finish(tables=list(found))
                return {name: pd.read_csv(run.folder / f"{name}.csv") for name in run.result()["tables"]}

        return read

    return decorate
