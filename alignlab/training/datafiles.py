"""Full data sets by name: where they lie, whether they are whole, and how to get them.

A set (`mnist`, `fashion_mnist`, `cifar10`) is looked for in this order: the folder in the environment
variable ALIGNLAB_DATA, the folder of the Debian package that ships it, the download cache. Where it is
nowhere, `obtain` downloads it into the cache and says so on standard error; ALIGNLAB_OFFLINE=1 forbids that.
Contents are checked against their checksums at every read, so a truncated or altered file is an error here
and never a strange result later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from alignlab.checks import did_you_mean
from alignlab.training import fetching
from alignlab.training.catalogue import SETS, DataFile, DataSet
from alignlab.training.embedded import embedded
from alignlab.training.errors import DataError, UnknownDataSetError
from alignlab.training.verify import checksum, gunzip, read_bytes, read_verified

__all__ = [
    "NAMES",
    "DataError",
    "Row",
    "describe",
    "embedded",
    "fetch",
    "locate",
    "obtain",
    "read",
    "read_folder",
]

NAMES = tuple(SETS)
"""The full data sets, by name."""


class Row(NamedTuple):
    """One line of `describe`.

    `status` is "embedded", "complete", "corrupt: FILE" or "not here"; then `where` is None and `size` (bytes)
    is that of the download.
    """

    name: str
    where: Path | None
    status: str
    size: int


def locate(name: str) -> Path | None:
    """The first folder that holds every file of the set `name`, or None. Looks at names, not at contents."""
    dataset = _dataset(name)
    return next((folder for folder in _places(dataset) if dataset.complete_variant(folder)), None)


def read(name: str) -> dict[str, bytes]:
    """The checked contents of the set `name`: uncompressed bytes by file name.

    Downloads what is nowhere (see `obtain`). Raises DataError on a missing or corrupt file.
    """
    return read_folder(name, obtain(name))


def read_folder(name: str, folder: Path | str) -> dict[str, bytes]:
    """The checked contents of the set `name` as it lies in `folder`.

    Raises DataError on a missing or corrupt file.
    """
    dataset, folder = _dataset(name), Path(folder)
    variant = dataset.complete_variant(folder)
    if variant is None:
        raise DataError(f"{name} not found ({_shortfall(dataset, folder)}). {_way_out(dataset)}")
    return {file.name: _content(dataset, file, folder) for file in variant}


def obtain(name: str, progress: bool = True) -> Path:
    """The folder that holds the set `name`, downloaded into the cache where it is nowhere yet.

    Raises DataError, naming every place it looked in, where the download is forbidden (ALIGNLAB_OFFLINE=1) or
    fails.
    """
    folder = locate(name)
    if folder is not None:
        return folder
    dataset = _dataset(name)
    if fetching.offline():
        raise DataError(f"{_not_found(dataset)}; ALIGNLAB_OFFLINE forbids the download. {_way_out(dataset)}")
    if progress:
        print(f"{_not_found(dataset)}; downloading", file=sys.stderr)
    try:
        return fetch(name, progress)
    except DataError as error:
        raise DataError(f"{_not_found(dataset)}; the download failed: {error}") from error


def fetch(
    name: str,
    progress: bool = True,
    mirrors: Sequence[str] | None = None,
    folder: Path | str | None = None,
) -> Path:
    """Download the set `name` into `folder` (default: the cache); return the folder.

    Files that are there and right are kept. `mirrors` are base addresses, tried in turn. Raises DataError
    where none has a file, where downloads are forbidden, or where `folder` holds another set.
    """
    dataset = _dataset(name)
    target = fetching.cache_folder(name) if folder is None else Path(folder)
    if fetching.offline():
        raise DataError(
            f"{name} is not fetched: ALIGNLAB_OFFLINE forbids downloads; unset it, or set ALIGNLAB_DATA"
        )
    if _holds_another(dataset, target):  # its files would be taken for corrupt ones
        raise DataError(
            f"{name} is not fetched: {target} holds files of another set by the same names; name another folder"
        )
    fetching.download(dataset, target, dataset.mirrors if mirrors is None else mirrors, progress)
    return target


def describe() -> list[Row]:
    """One row a data set, the embedded one first; every file that is here is read and checked."""
    small = embedded("mnist_small")
    rows = [Row("mnist_small", small, "embedded", sum(path.stat().st_size for path in small.iterdir()))]
    return rows + [_row(dataset) for dataset in SETS.values()]


def _row(dataset: DataSet) -> Row:
    folder = locate(dataset.name)
    variant = dataset.complete_variant(folder) if folder else None
    if folder is None or variant is None:
        return Row(dataset.name, None, "not here", dataset.download_size)
    size = sum(path.stat().st_size for file in variant if (path := file.find(folder)))
    for file in variant:
        try:
            _content(dataset, file, folder)
        except DataError:
            return Row(dataset.name, folder, f"corrupt: {file.name}", size)
    return Row(dataset.name, folder, "complete", size)


def _dataset(name: str) -> DataSet:
    if name in SETS:
        return SETS[name]
    if name == "mnist_small":
        raise DataError(f"{name} travels with the package, in {embedded(name)}: there is nothing to fetch")
    known = ["mnist_small", *SETS]
    hint = did_you_mean(name, known)
    raise UnknownDataSetError(f"unknown data set {name!r}: {hint}there are {', '.join(known)}")


def _places(dataset: DataSet) -> Iterator[Path]:
    """Folders that may hold the set, in the order in which they count."""
    root = _user_folder()
    if root is not None:
        yield from (root / folder for folder in dataset.folders)
        if not _holds_another(dataset, root):
            yield root
    if dataset.packaged is not None:
        yield dataset.packaged
    yield fetching.cache_folder(dataset.name)


def _user_folder() -> Path | None:
    value = os.environ.get("ALIGNLAB_DATA", "")
    root = Path(value).expanduser()
    if value and not root.is_dir():
        raise DataError(
            f"ALIGNLAB_DATA={value} is no folder: unset it, or name the folder that holds the data sets"
        )
    return root if value else None


def _holds_another(dataset: DataSet, root: Path) -> bool:
    """Whether `root` itself holds another set.

    MNIST and Fashion-MNIST name their files alike, so the contents must tell.
    """
    file = dataset.variants[0][-1]  # the test labels: small
    path = file.find(root)
    others = {f.checksum for other in SETS.values() for v in other.variants for f in v if f.name == file.name}
    if path is None or others == {file.checksum}:
        return False
    raw = read_bytes(path)
    return checksum(gunzip(raw) or raw, file) in others - {file.checksum}


def _content(dataset: DataSet, file: DataFile, folder: Path) -> bytes:
    path = file.find(folder) or folder / file.served_name
    return read_verified(file, path, f"Delete or replace it. {_way_out(dataset)}")


def _not_found(dataset: DataSet) -> str:
    unset = "" if os.environ.get("ALIGNLAB_DATA") else "ALIGNLAB_DATA is not set; "
    looked = "; ".join(_shortfall(dataset, place) for place in _places(dataset))
    return f"{dataset.name} not found ({unset}looked in {looked})"


def _shortfall(dataset: DataSet, folder: Path) -> str:
    lacks = f"lacks {', '.join(dataset.missing(folder))}" if folder.is_dir() else "no such folder"
    return f"{folder}: {lacks}"


def _way_out(dataset: DataSet) -> str:
    package = f"run `apt-get install {dataset.package}`, " if dataset.package else ""
    example = f"{dataset.folders[0]}/{dataset.variants[0][0].served_name}"
    return (
        f"To get the set: set ALIGNLAB_DATA to a folder with {example}, "
        f"{package}or run `alignlab data fetch {dataset.name}`"
    )
