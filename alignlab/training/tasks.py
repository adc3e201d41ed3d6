"""Tasks by name.

`xor` is the smallest task that needs a hidden layer (Minsky & Papert 1969), `xor_bits` the same with one
output. `linear_toy` is the linear problem of Lillicrap et al. 2016, for a 30-20-10 linear network.
`mnist_small` travels with the package; `mnist`, `fashion_mnist` and `cifar10` are found or fetched by
`datafiles`. Everything is fixed by the task's name and `seed_data`: the same call gives the same data, and
`Task.fingerprint` proves it. A task of one's own gets a name by `TASKS["mine"] = make_mine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from torch.nn.functional import cross_entropy

from alignlab.checks import did_you_mean
from alignlab.rules.randomness import random_states_kept
from alignlab.training import images
from alignlab.training.errors import DataError, SpecError
from alignlab.training.registry import Registry
from alignlab.training.task import Task, half_squared_error, split_of

__all__ = ["NAMES", "TASKS", "load"]


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
        hint = did_you_mean(name, TASKS, n=3, cutoff=0.5)
        raise ValueError(f"unknown task {name!r}: {hint}The tasks are {', '.join(TASKS)}")
    if not 0 <= seed_data < 2**32:
        raise ValueError(f"seed_data={seed_data} is not in [0, 2**32)")
    return _cached(name, seed_data, _Content(TASKS[name]))


class _Content:
    """What a name stands for, by which object it is: another one under the same name is another task. So is a function into
    which IPython's autoreload has put the code of an edited file."""

    def __init__(self, content: Callable[[int], Task] | Task) -> None:
        self.content, self.code = content, getattr(content, "__code__", None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self.content is other.content and self.code is other.code

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
        except (Exception, SystemExit) as error:
            raise DataError(
                f"the task {name!r} of your own cannot be made: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, Task):
        raise SpecError(f"the function TASKS[{name!r}] returned {found!r:.60}, expected a Task")
    return replace(found, name=name)  # as specs, claims and stored runs call it


def _xor(seed_data: int) -> Task:
    inputs = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
    points = split_of(inputs, np.array([0, 1, 1, 0], np.int64))
    return Task("xor", points, points, points, cross_entropy, (2,), 2, True, ("equal", "different"))


def _xor_bits(seed_data: int) -> Task:
    inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    points = split_of(inputs, np.array([[0], [1], [1], [0]], np.float32))
    return Task("xor_bits", points, points, points, half_squared_error, (2,), 1, True, threshold=0.5)


def _linear_toy(seed_data: int) -> Task:
    random = np.random.RandomState(seed_data)  # numpy keeps this generator's streams the same for good
    T_oi = random.uniform(-1.0, 1.0, (10, 30)).astype(np.float32)
    splits = []
    for size in (1000, 200, 200):
        x_ni = random.standard_normal((size, 30)).astype(np.float32)
        # term by term, since a BLAS product rounds differently from one machine to the next
        y_no = sum(np.float64(x_ni[:, i, None]) * np.float64(T_oi[:, i]) for i in range(30))
        splits.append(split_of(x_ni, np.asarray(y_no, np.float32)))
    return Task("linear_toy", splits[0], splits[1], splits[2], half_squared_error, (30,), 10, False)


_LOADERS: dict[str, Callable[[int], Task]] = {
    "xor": _xor,
    "xor_bits": _xor_bits,
    "linear_toy": _linear_toy,
    "mnist_small": images.mnist_small,
    "mnist": images.mnist,
    "fashion_mnist": images.fashion_mnist,
    "cifar10": images.cifar10,
}

NAMES = tuple(_LOADERS)
"""alignlab's own tasks, by name."""

TASKS = Registry(_LOADERS, Task)
"""All tasks: to add one of your own, ``TASKS["mine"] = make_mine``, a function that takes ``seed_data`` and returns a
:class:`Task`, or a Task. In a module that your script imports at its top, so that worker processes know it too."""
