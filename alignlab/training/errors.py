"""The one error of this floor's data: a file that is missing, corrupt, or not to be had."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(RuntimeError):
    """A data file is missing, corrupt or cannot be fetched.

    The message names the file, the place and the way out.
    """
