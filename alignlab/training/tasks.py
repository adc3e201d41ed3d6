"""Tasks: data split into train, validation and test, with the loss that goes with it, by name.

`xor` is the smallest task that needs a hidden layer (Minsky & Papert 1969), `xor_bits` the same with one
output. `linear_toy` is the linear problem of Lillicrap et al. 2016, for a 30-20-10 linear network.
`mnist_small` travels with the package; `mnist`, `fashion_mnist` and `cifar10` are found or fetched by
`datafiles`. Everything is fixed by the task's name and `seed_data`: the same call gives the same data, and
`Task.fingerprint` proves it. A task of one's own gets a name by `TASKS["mine"] = make_mine`.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alignlab.rules.randomness import random_states_kept
from alignlab.training import cifar, datafiles, idx
from alignlab.training.embedded import IDX_NAMES, read_subset
from alignlab.training.errors import DataError, SpecError
from alignlab.training.registry import Registry

__all__ = ["NAMES", "TASKS", "Split", "Task", "absolute_error", "half_squared_error", "load"]

Loss = Callable[[Tensor, Tensor], Tensor]
Threshold = float | tuple[float, float] | None

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


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs (N, …) float32 and their targets.

    Classes (N,) int64, or values (N, n_out) float32. Read only: it is shared.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for name in ("inputs", "targets"):
            given = getattr(self, name)
            if not isinstance(given, Tensor):
                raise ValueError(
                    f"a split's {name} are a {type(given).__name__}, expected a tensor: torch.as_tensor({name})"
                )
            # without the graph that made them, a teacher's say, which one backward pass would use up
            with torch.inference_mode(False):
                own = given.clone() if given.is_inference() else given.detach()
            object.__setattr__(self, name, own)
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"a split has one target an input, not {len(self.targets)} for {len(self.inputs)}"
            )

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is to learn: built by hand from three splits, or by name through `load`.

    `loss(output, target)` is the mean over samples. `n_in` is an input's shape without the batch, `n_out` the
    number of outputs, `has_accuracy` says whether targets are classes, and `classes` names them. With a
    `threshold` targets are values, and a sample is right if all its outputs are on their targets' side of it; of two, the
    first is the outputs', `(0.0, 0.5)` where these are logits and targets 0 or 1.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    loss: Loss
    n_in: tuple[int, ...]
    n_out: int
    has_accuracy: bool
    classes: tuple[str, ...] = ()
    threshold: Threshold = None

    def __post_init__(self) -> None:
        for name, split in self._splits().items():
            if not len(split):
                raise ValueError(
                    f"task {self.name}: the {name} split is empty, and every split needs a sample: one that you do not "
                    "evaluate may be another's again"
                )
            if tuple(split.inputs.shape[1:]) != self.n_in:
                shape = tuple(split.inputs.shape[1:])
                raise ValueError(
                    f"task {self.name}: {name} inputs have shape {shape}, not n_in = {self.n_in}"
                )
        if self.classes and len(self.classes) != self.n_out:
            raise ValueError(f"task {self.name}: {len(self.classes)} classes for n_out = {self.n_out}")

    @property
    def fingerprint(self) -> str:
        """sha256 over the splits: names, dtypes, shapes and raw bytes. Equal fingerprints mean equal data.

        Taken once, and anew where the tensors that were handed over have been changed in place since.
        """
        versions = [tensor._version for _, tensor in self._tensors()]
        if self.__dict__.get("_versions") != versions:
            self.__dict__.update(_versions=versions, _fingerprint=self._hashed())
        found: str = self.__dict__["_fingerprint"]
        return found

    def _hashed(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self._tensors():
            raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(raw.numpy().data)
        return digest.hexdigest()

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(name, x) for name, split in self._splits().items() for x in (split.inputs, split.targets)]

    def _splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """½‖e‖², mean over samples, (…) for outputs and targets (…, N, n_out): the loss of Lillicrap et al. 2016.

    >>> half_squared_error(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2))
    tensor(6.2500)
    """
    return 0.5 * _error(output, target).square().sum(-1).mean(-1)


def absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """Σ|e|, mean over samples, (…) for outputs and targets (…, N, n_out). Its derivative is the sign of the error.

    >>> absolute_error(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), torch.zeros(2, 2))
    tensor(3.5000)
    """
    return _error(output, target).abs().sum(-1).mean(-1)


def _error(output: Tensor, target: Tensor) -> Tensor:
    if output.shape != target.shape:
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} differ in shape")
    return output - target


def load(name: str, seed_data: int = 0) -> Task:
    """The task `name`; `seed_data` chooses the validation images of image tasks and the data of `linear_toy`.

    | task | train / validation / test | inputs | targets, loss |
    |---|---|---|---|
    | `xor` | the same 4 points thrice | (2,), each −1 or +1 | class, cross-entropy |
    | `xor_bits` | the same 4 points thrice | (2,), each 0 or 1 | (1,), 0 or 1, ½‖e‖²; right beside 0.5 |
    | `linear_toy` | 1,000 / 200 / 200 | (30,), N(0, 1) | T x, T (10, 30) ~ U(−1, 1), ½‖e‖² |
    | `mnist_small` | 8,000 / 2,000 / 2,000 | (1, 28, 28) | class, cross-entropy |
    | `mnist`, `fashion_mnist` | 50,000 / 10,000 / 10,000 | (1, 28, 28) | class, cross-entropy |
    | `cifar10` | 45,000 / 5,000 / 10,000 | (3, 32, 32) | class, cross-entropy |

    Validation images come from the original training images, equally many of each class. Pixels are scaled to
    [0, 1], then standardised by the train split's mean and standard deviation (of all pixels; a channel at a
    time for `cifar10`). One of your own is what `TASKS` has under its name. The task is cached. Raises ValueError for an
    unknown name, DataError where a data set is missing or corrupt, or a function of your own raises.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"unknown task {name!r}: {hint}The tasks are {', '.join(TASKS)}")
    if not 0 <= seed_data < 2**32:
        raise ValueError(f"seed_data={seed_data} is not in [0, 2**32)")
    return _cached(name, seed_data, _Content(TASKS[name]))


class _Content:
    """What a name stands for, by which object it is: another one under the same name is another task."""

    def __init__(self, content: Callable[[int], Task] | Task) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self.content is other.content

    def __hash__(self) -> int:
        return id(self.content)


@lru_cache(maxsize=4)  # a handful: cifar10 alone takes 0.7 GB
def _cached(name: str, seed_data: int, made: _Content) -> Task:
    if name in NAMES:
        return _LOADERS[name](seed_data)
    found = made.content
    if not isinstance(found, Task):
        try:
            with random_states_kept():  # it may seed them
                found = found(seed_data)
        except Exception as error:
            raise DataError(
                f"the task {name!r} of your own cannot be made: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, Task):
        raise SpecError(f"the function TASKS[{name!r}] returned {found!r:.60}, expected a Task")
    return replace(found, name=name)  # as specs, claims and stored runs call it


def _split(inputs: npt.NDArray[np.float32], targets: npt.NDArray[np.float32 | np.int64]) -> Split:
    """Of these numbers, whatever PyTorch's default type and device are."""
    return Split(torch.from_numpy(inputs), torch.from_numpy(targets))


def _xor(seed_data: int) -> Task:
    inputs = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
    points = _split(inputs, np.array([0, 1, 1, 0], np.int64))
    return Task("xor", points, points, points, cross_entropy, (2,), 2, True, ("equal", "different"))


def _xor_bits(seed_data: int) -> Task:
    inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    points = _split(inputs, np.array([[0], [1], [1], [0]], np.float32))
    return Task("xor_bits", points, points, points, half_squared_error, (2,), 1, True, threshold=0.5)


def _linear_toy(seed_data: int) -> Task:
    random = np.random.RandomState(seed_data)  # numpy keeps this generator's streams the same for good
    T_oi = random.uniform(-1.0, 1.0, (10, 30)).astype(np.float32)
    splits = []
    for size in (1000, 200, 200):
        x_ni = random.standard_normal((size, 30)).astype(np.float32)
        # term by term, since a BLAS product rounds differently from one machine to the next
        y_no = sum(np.float64(x_ni[:, i, None]) * np.float64(T_oi[:, i]) for i in range(30))
        splits.append(_split(x_ni, np.asarray(y_no, np.float32)))
    return Task("linear_toy", splits[0], splits[1], splits[2], half_squared_error, (30,), 10, False)


def _mnist_small(seed_data: int) -> Task:
    train, train_labels, test, test_labels = read_subset()
    return _image_task(
        "mnist_small",
        (train[:, None], train_labels, test[:, None], test_labels),
        validation_per_class=200,
        seed_data=seed_data,
        classes=_DIGITS,
    )


def _idx_task(name: str, classes: tuple[str, ...], seed_data: int) -> Task:
    files = datafiles.read(name)
    train, train_labels, test, test_labels = (idx.parse(files[file], file) for file in IDX_NAMES)
    images = (train[:, None], train_labels, test[:, None], test_labels)
    return _image_task(name, images, validation_per_class=1000, seed_data=seed_data, classes=classes)


def _cifar10(seed_data: int) -> Task:
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
        _split(_standardise(p, tables), y.astype(np.int64)) for p, y in zip(pixels, labels, strict=True)
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
            raise datafiles.DataError(f"channel {channel} of the train images is constant and has no scale")
        tables.append(((values - mean) / math.sqrt(variance)).astype(np.float32))
    return tables


def _standardise(pixels: idx.Pixels, tables: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """(N, C, H, W) uint8 through the channels' tables."""
    result = np.empty(pixels.shape, dtype=np.float32)
    for channel, table in enumerate(tables):
        result[:, channel] = table[pixels[:, channel]]
    return result


_LOADERS: dict[str, Callable[[int], Task]] = {
    "xor": _xor,
    "xor_bits": _xor_bits,
    "linear_toy": _linear_toy,
    "mnist_small": _mnist_small,
    "mnist": lambda seed: _idx_task("mnist", _DIGITS, seed),
    "fashion_mnist": lambda seed: _idx_task("fashion_mnist", _CLOTHES, seed),
    "cifar10": _cifar10,
}

NAMES = tuple(_LOADERS)
"""alignlab's own tasks, by name."""

TASKS = Registry(_LOADERS, Task)
"""All tasks: to add one of your own, ``TASKS["mine"] = make_mine``, a function that takes ``seed_data`` and returns a
:class:`Task`, or a Task. In a module that your script imports at its top, so that worker processes know it too."""
