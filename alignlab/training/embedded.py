"""The data that travels with alignlab: the class-balanced MNIST subset and the published results.

An installed package carries it as `alignlab/_data`, a clone has it in `data` beside the package. The images
are IDX files, as MNIST's own, compressed with xz; `build_subset` makes them, and SHA256SUMS beside them says
what they must be.
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

from alignlab.training import idx
from alignlab.training.errors import DataError
from alignlab.training.verify import read_bytes

__all__ = ["CHECKSUMS", "IDX_NAMES", "embedded", "read_subset"]

CHECKSUMS = "SHA256SUMS"  # in the format of `sha256sum`: digest, two blanks, name

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def embedded(name: str) -> Path:
    """The file or folder `name` of the embedded data (`mnist_small`, `published.csv`, `README.md`)."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "_data" / name, package.parent / "data" / name]
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(str(place) for place in places)
    raise DataError(
        f"embedded data {name!r} not found: looked for {looked}. Reinstall alignlab to get it back"
    )


def read_subset(folder: Path | str | None = None) -> tuple[idx.Pixels, ...]:
    """(train images, train labels, test images, test labels), uint8, of the embedded MNIST subset.

    `folder` may name another folder that `build_subset` wrote. Raises DataError on a missing or corrupt file.
    """
    folder = embedded("mnist_small") if folder is None else Path(folder)
    return tuple(idx.parse(lzma.decompress(_checked(folder, f"{name}.xz")), name) for name in IDX_NAMES)


def _checked(folder: Path, name: str) -> bytes:
    """The bytes of `folder`/`name`, once they agree with the folder's SHA256SUMS."""
    way_out = "Reinstall alignlab, or rebuild it as the README.md of the data folder says"
    sums = read_bytes(folder / CHECKSUMS, way_out).decode("utf-8", errors="replace")
    known = {line[66:]: line[:64] for line in sums.splitlines()}
    if name not in known:
        raise DataError(f"{folder / CHECKSUMS} lists no {name}. {way_out}")
    content = read_bytes(folder / name, way_out)
    found = hashlib.sha256(content).hexdigest()
    if found != known[name]:
        raise DataError(f"{folder / name} is corrupt: its sha256 is {found}, not {known[name]}. {way_out}")
    return content
