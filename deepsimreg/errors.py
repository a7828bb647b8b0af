"""Errors that a user can mend; each message names the file and the remedy."""


class DataError(ValueError):
    """Data that cannot be used."""


class UnreadableError(DataError):
    """A file that is missing or damaged. fault: the message without its remedy, which whoever owns the file knows."""

    def __init__(self, fault: str, remedy: str = "copy it anew, or give another file"):
        super().__init__(f"{fault}: {remedy}")
        self.fault = fault


class WeightsError(ValueError):
    """A weight file that cannot be used."""
