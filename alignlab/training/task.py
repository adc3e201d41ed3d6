"""What a task is: data split into train, validation and test, with the loss that goes with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Threshold = float | tuple[float, float] | None


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
            raw = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8)
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


def split_of(inputs: npt.NDArray[np.float32], targets: npt.NDArray[np.float32 | np.int64]) -> Split:
    """Of these numbers, whatever PyTorch's default type and device are."""
    return Split(torch.from_numpy(inputs), torch.from_numpy(targets))
