"""Downloading a data set's files from its mirrors, through pooch, into a folder.

Each file is written under a temporary name, its contents are checked there, and only then it is renamed: what
bears a file's name is that file, whole, whenever the transfer stops. Mirrors are tried in turn, file by file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alignlab.training.catalogue import DataFile, DataSet
from alignlab.training.errors import DataError
from alignlab.training.verify import read_verified

__all__ = ["cache_folder", "download", "offline"]


def cache_folder(name: str) -> Path:
    """Where downloads of the set `name` are kept: pooch's cache folder for alignlab."""
    import pooch

    return Path(pooch.os_cache("alignlab")) / name


def offline() -> bool:
    """Whether ALIGNLAB_OFFLINE forbids downloads."""
    return os.environ.get("ALIGNLAB_OFFLINE", "") not in ("", "0")


def download(dataset: DataSet, folder: Path, mirrors: Sequence[str], progress: bool) -> None:
    """Bring every file of the set into `folder`; those that are there and right are left alone.

    Raises DataError, with each mirror's answer, where a file is to be had from none of them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{dataset.name}: cannot make the folder {folder}: {error.strerror}") from error
    for file in dataset.variants[0]:
        path = file.find(folder)
        if path is not None and _is_right(file, path):
            continue
        if path is not None:
            path.unlink()  # corrupt; and pooch would take it for the download
        with _progress_bar(f"{dataset.name}/{file.served_name}") if progress else nullcontext() as bar:
            _from_any_mirror(dataset, file, folder, mirrors, bar)


def _from_any_mirror(
    dataset: DataSet, file: DataFile, folder: Path, mirrors: Sequence[str], bar: Any
) -> None:
    answers = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file.served_name}"
        try:
            _retrieve(url, file, folder, bar)
            return
        except (
            DataError,
            OSError,
            ValueError,
        ) as error:  # requests' errors are OSErrors; ValueError: a malformed address
            answers.append(f"{url}: {_reason(error)}")
    package = f", run `apt-get install {dataset.package}`," if dataset.package else ""
    raise DataError(
        f"{dataset.name}: {file.served_name} could not be fetched into {folder}. "
        f"{'; '.join(answers) or 'No mirror given'}. "
        f"Try again later{package} or set ALIGNLAB_DATA to a folder that holds the set"
    )


def _retrieve(url: str, file: DataFile, folder: Path, bar: Any) -> None:
    import pooch

    def download_and_check(url: str, output: str, caller: object) -> None:
        http = pooch.HTTPDownloader(progressbar=bar or False, chunk_size=1 << 16)
        http(url, output, caller)
        _check_download(file, Path(output))

    with _quiet(pooch.get_logger()):
        pooch.retrieve(url, None, fname=file.served_name, path=folder, downloader=download_and_check)


def _check_download(file: DataFile, path: Path) -> None:
    try:
        read_verified(file, path)
    except DataError as error:
        raise DataError(f"what arrived{str(error).removeprefix(str(path)).rstrip('.')}") from error


def _is_right(file: DataFile, path: Path) -> bool:
    try:
        read_verified(file, path)
    except DataError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words: the HTTP status, or the error at the root of the chain."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"{response.status_code} {response.reason}"
    while not isinstance(error, DataError) and error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _progress_bar(label: str) -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress, progress.add_task(label, total=None))


class _Bar:
    """What pooch wants of a progress bar (`total`, `update`, `reset`, `close`), drawn by rich."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    @property
    def total(self) -> int | None:
        total: int | None = self._progress.tasks[self._task].total
        return total

    @total.setter
    def total(self, size: int) -> None:
        self._progress.reset(self._task, total=size or None)  # a second mirror starts at zero

    def update(self, size: int) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.refresh()
