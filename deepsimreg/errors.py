"""Errors that a user can mend; each message names the file and the remedy."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """Data that cannot be used."""


class UnreadableError(DataError):
    """A file that is missing or damaged. fault: the message without its remedy, which whoever owns the file knows."""

    def __init__(self, fault: str, remedy: str = "copy it anew, or give another file"):
        super().__init__(f"{fault}: {remedy}")
        self.fault = fault


class WeightsError(ValueError):
    """A weight file that cannot be used."""


@contextmanager
def unlogged() -> Iterator[None]:
    """Without what libraries log of a damaged file: the error that refuses it says so."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
