"""The errors of this floor: specs that are wrong, data that are missing, corrupt or not to be had, sweeps in which something
failed."""

from __future__ import annotations

__all__ = ["DataError", "SpecError", "SweepError", "UnknownDataSetError"]


class SpecError(ValueError):
    """A spec is wrong; the message names the field, the value and the way out."""


class UnknownDataSetError(ValueError):
    """There is no data set of that name; the message names those that there are."""


class DataError(RuntimeError):
    """A data file is missing, corrupt or cannot be fetched.

    The message names the file, the place and the way out.
    """


class SweepError(RuntimeError):
    """Some cells failed, or the workers cannot do them; what was finished is stored. The message says which, and why."""
