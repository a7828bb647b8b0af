"""Tables from a name to something that is imported when it is asked for: `--help` and planning load no torch."""

import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any


class Registry(Mapping[str, Any]):
    """name → object; reading a value imports its module, iterating and `in` do not.

    places: name → "module:attribute"; an entry that is added here is known at once.
    """

    def __init__(self, places: Mapping[str, str]):
        self.places = dict(places)

    def __getitem__(self, name: str) -> Any:
        return pkgutil.resolve_name(self.places[name])

    def __contains__(self, name: object) -> bool:  # Mapping's would read the value, and so import its module
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def module(self, name: str) -> str:
        """The module of an entry; nothing is imported."""
        return self.places[name].partition(":")[0]
