"""How a command ends: what a user can do something about is one clear line and exit code 2, all else keeps its traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

STOPPED = 130  # as a shell has it after Ctrl-C; typer makes an exit of it


def ended(command: Callable[[], Any]) -> int:
    """Run a ``command`` of typer's and return the exit code; expected errors are told, in a line each."""
    try:
        code = command()
    except typer.Exit as stop:
        code = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = STOPPED
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own complaints about the command line
        if usage is None and not _expected(error):
            raise
        return _fail(_told(error) if usage is None else f"{usage().rstrip('.')}{_hint(error)}")
    if code == STOPPED:
        typer.echo("\nstopped; what was finished is stored, the same command does the rest", err=True)
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    typer.echo(f"alignlab: error: {' '.join(message.split())}", err=True)
    return 2


def _hint(error: Any) -> str:
    """Where the arguments stand that a command line lacks or has wrong."""
    context = getattr(error, "ctx", None)
    return "" if context is None else f"; see {context.command_path} --help"


def _told(error: Exception) -> str:
    """What went wrong; of a file that the system refused also what to do."""
    from alignlab.store.atomic import cannot_write

    if isinstance(error, OSError) and error.filename is not None:
        return str(cannot_write(Path(error.filename), error))
    return str(error)


def _expected(error: BaseException) -> bool:
    """Whether the user can do something about it; anything else is a bug and keeps its traceback."""
    from alignlab.gallery import GalleryError
    from alignlab.store import ContractError, StoreError
    from alignlab.training.errors import DataError, SpecError, SweepError, UnknownDataSetError

    ours = (GalleryError, ContractError, StoreError, DataError, SpecError, SweepError, UnknownDataSetError)
    return isinstance(error, (*ours, OSError))
