"""Tables from a name to something that is imported when it is asked for: `--help` and planning load no torch."""

import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any


class Registry(Mapping[str, Any]):
    """name → object, given as "module:attribute"; reading a value imports the module.

    places: name → "module:attribute".
    """

    def __init__(self, places: Mapping[str, str]):
        self.places = dict(places)

    def __getitem__(self, name: str) -> Any:
        return pkgutil.resolve_name(self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def module(self, name: str) -> str:
        """The module of an entry; nothing is imported."""
        return self.places[name].partition(":")[0]
