"""The last step of the recorded optimizer: whether there was one, and whether another optimizer went on after it."""

from __future__ import annotations

import warnings

import torch

MANY = 10  # steps' worth of changes; weights that are put back, averaged or clamped after the last step change once or twice


class LastStep:
    """Watches a weight of ``optimizer``, whose version torch counts up at each change in place."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = type(optimizer).__name__
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        self._weight = next((p for p in weights if p.requires_grad), weights[0])
        self._begin = self._end = self._weight._version

    def note(self) -> None:
        """The optimizer has stepped."""
        self._end = self._weight._version

    def tell(self, steps: int, stacklevel: int) -> None:
        """Warn if none of the loop's ``steps`` was the optimizer's, or those after its last one were another's."""
        if steps == 0:
            warnings.warn(
                "nothing was recorded: the optimizer that the recorder was given took no step. Is it the one that the loop "
                "steps, by its step()?",
                stacklevel=stacklevel + 1,
            )
            return
        later = self._weight._version - self._end
        if later >= MANY * max(1.0, (self._end - self._begin) / steps):
            warnings.warn(
                f"the weights went on changing after step {steps - 1}, the last of the recorded optimizer ({self._optimizer}): "
                "what came then is not recorded. Where the loop goes on with another optimizer, end this recorder and start "
                "another with the new one",
                stacklevel=stacklevel + 1,
            )
