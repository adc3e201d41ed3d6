"""The errors of this floor: data that are missing, corrupt or not to be had, and sweeps in which something failed."""

from __future__ import annotations

__all__ = ["DataError", "SweepError"]


class DataError(RuntimeError):
    """A data file is missing, corrupt or cannot be fetched.

    The message names the file, the place and the way out.
    """


class SweepError(RuntimeError):
    """Some cells failed, or the workers cannot do them; what was finished is stored. The message says which, and why."""
