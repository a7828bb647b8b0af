"""The error of a setting that does not exist or is not possible."""

from collections.abc import Iterable


class SettingsError(ValueError):
    """The message names the place and what there is."""


def check_choice(what: str, name: str, names: Iterable[str]) -> str:
    """`name` itself; SettingsError if it is not among `names`."""
    if name not in names:
        raise SettingsError(f"unknown {what} '{name}'; there is: {', '.join(map(str, names))}")
    return name
