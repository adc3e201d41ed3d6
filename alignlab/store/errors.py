"""The one error of the store: something about files or folders that a user can put right."""

from __future__ import annotations


class StoreError(RuntimeError):
    """A store cannot be read or written; one line that names the path, what is wrong and the way out."""
