"""The error of a setting that does not exist or is not possible, and how a command ends with it."""

import inspect
import os
import sys
from collections.abc import Callable, Iterable


class SettingsError(ValueError):
    """The message names the place and what there is."""


def check_choice(what: str, name: str, names: Iterable[str]) -> str:
    """`name` itself; SettingsError if it is not among `names`."""
    if name not in names:
        raise SettingsError(f"unknown {what} '{name}'; there is: {', '.join(map(str, names))}")
    return name


def run_main(main: Callable[..., None]) -> None:
    """Call `main` with the words of the command line; an error that a user can mend ends it with one line."""
    try:
        inspect.signature(main).bind(*sys.argv[1:])
    except TypeError as error:
        sys.exit(f"error: {error}; the arguments are {inspect.signature(main)}")
    try:
        main(*sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
