"""Tasks of images: a class-balanced validation split, and pixels that are standardised exactly alike on every machine."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch.nn.functional import cross_entropy

from alignlab.training import cifar, datafiles, idx
from alignlab.training.embedded import IDX_NAMES, read_subset
from alignlab.training.errors import DataError
from alignlab.training.task import Task, split_of

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def mnist_small(seed_data: int) -> Task:
    train, train_labels, test, test_labels = read_subset()
    return _image_task(
        "mnist_small",
        (train[:, None], train_labels, test[:, None], test_labels),
        validation_per_class=200,
        seed_data=seed_data,
        classes=_DIGITS,
    )


def mnist(seed_data: int) -> Task:
    return _idx_task("mnist", _DIGITS, seed_data)


def fashion_mnist(seed_data: int) -> Task:
    return _idx_task("fashion_mnist", _CLOTHES, seed_data)


def _idx_task(name: str, classes: tuple[str, ...], seed_data: int) -> Task:
    files = datafiles.read(name)
    train, train_labels, test, test_labels = (idx.parse(files[file], file) for file in IDX_NAMES)
    images = (train[:, None], train_labels, test[:, None], test_labels)
    return _image_task(name, images, validation_per_class=1000, seed_data=seed_data, classes=classes)


def cifar10(seed_data: int) -> Task:
    images = cifar.read(datafiles.read("cifar10"))
    return _image_task("cifar10", images, validation_per_class=500, seed_data=seed_data, classes=_OBJECTS)


def _image_task(
    name: str,
    images: tuple[idx.Pixels, idx.Pixels, idx.Pixels, idx.Pixels],
    validation_per_class: int,
    seed_data: int,
    classes: tuple[str, ...],
) -> Task:
    """A task of (train images (N, C, H, W), their labels, test images, their labels)."""
    train, train_labels, test, test_labels = images
    kept, held_out = _balanced_split(train_labels, validation_per_class, seed_data)
    pixels = (train[kept], train[held_out], test)
    labels = (train_labels[kept], train_labels[held_out], test_labels)
    tables = _standardising_tables(pixels[0])
    splits = [
        split_of(_standardise(p, tables), y.astype(np.int64)) for p, y in zip(pixels, labels, strict=True)
    ]
    n_in = tuple(int(n) for n in train.shape[1:])
    return Task(name, splits[0], splits[1], splits[2], cross_entropy, n_in, len(classes), True, classes)


def _balanced_split(
    labels: idx.Pixels, held_out_per_class: int, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices, ascending, of the images kept and of the held-out ones.

    `held_out_per_class` of every class, drawn by `seed`.
    """
    order = np.random.RandomState(seed).permutation(len(labels))
    held_out = [order[labels[order] == label][:held_out_per_class] for label in np.unique(labels)]
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.concatenate(held_out)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _standardising_tables(train: idx.Pixels) -> list[npt.NDArray[np.float32]]:
    """A channel's table from pixel value 0 … 255 to standardised float32.

    Counted in whole numbers, so exact on every machine.
    """
    values = np.arange(256)
    tables = []
    for channel in range(train.shape[1]):
        counts = np.bincount(train[:, channel].ravel(), minlength=256)
        total, first, second = int(counts.sum()), int(counts @ values), int(counts @ values**2)
        mean, variance = first / total, (second * total - first**2) / total**2
        if variance == 0:
            raise DataError(f"channel {channel} of the train images is constant and has no scale")
        tables.append(((values - mean) / math.sqrt(variance)).astype(np.float32))
    return tables


def _standardise(pixels: idx.Pixels, tables: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """(N, C, H, W) uint8 through the channels' tables."""
    result = np.empty(pixels.shape, dtype=np.float32)
    for channel, table in enumerate(tables):
        result[:, channel] = table[pixels[:, channel]]
    return result
