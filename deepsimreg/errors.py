"""Errors that a user can mend; each message names the file and the remedy."""


class DataError(ValueError):
    """Data that cannot be used."""


class WeightsError(ValueError):
    """A weight file that cannot be used."""
