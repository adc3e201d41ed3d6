"""Feedback that learns as its weight does: the parameter B, and how the weight's gradient comes to it.

A learning B is a parameter beside W, so that the optimizer that steps W steps B alike, with the same momentum and the same
decay. Its gradient is W's own, handed on where the layer takes its weight: the layer's Function knows nothing of it, and
every kind of layer serves. What the user can get wrong is watched here, at the price of two integers a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from alignlab.rules.functions import RuleFunction


class Notes:
    """What is known of a learning B in this process; copies of B and checkpoints start afresh."""

    in_use: bool = False  # whether a signal was ever to go down through B
    taught: bool = False  # whether B got a gradient since W last changed
    decays: tuple[bool, ...] | None = (
        None  # by its optimizer, in each run; None while no optimizer has stepped it
    )
    told: bool = False
    versions: tuple[int, int] | None = None  # of W and B, when W last changed

    def __reduce__(self) -> Any:
        return Notes, ()

    def stepped(self, group: Mapping[str, Any]) -> None:
        """An optimizer has stepped B, with the settings of this ``group``; of several runs each has a decay."""
        decay = group.get("weight_decay")
        self.decays = tuple(own != 0 for own in (decay if isinstance(decay, tuple) else (decay,)))

    def watch(self, feedback: Tensor, weight: Tensor, others: Iterable[Notes]) -> None:
        """Called when W has changed. ``others``: the notes on all layers of the model.

        Raises ``RuntimeError`` if B got a gradient and no step, and warns once a model if its optimizer has no decay.
        """
        now, before = (weight._version, feedback._version), self.versions
        taught, self.taught, self.versions = self.taught, False, now
        left_out = before is not None and now[0] != before[0] and now[1] == before[1]
        if left_out and taught and self.decays is None:
            raise RuntimeError(
                f"kolen_pollack: the weight {tuple(weight.shape)} was stepped and its feedback, which got the same gradient, "
                "was not: no optimizer has it. Make the optimizer after convert, from model.parameters()"
            )
        if self.decays is not None and not all(self.decays) and not self.told:
            for other in others:
                other.told = True
            _tell(feedback, weight, self.decays)


def _tell(feedback: Tensor, weight: Tensor, decays: tuple[bool, ...]) -> None:
    """Warn where a B that is not W has no decay, in the runs that these lead with where there are several."""
    pairs = zip(feedback, weight, strict=True) if len(decays) > 1 else [(feedback, weight)]
    apart = sum(not decay and not torch.equal(B, W) for decay, (B, W) in zip(decays, pairs, strict=True))
    where = f" in {apart} of {len(decays)} runs" if len(decays) > 1 else ""
    if apart:
        warnings.warn(
            f"kolen_pollack: the optimizer has weight_decay=0{where}, so that the feedback B takes the same steps as W and "
            "B - W stays what it was drawn as: give the optimizer a weight_decay",
            stacklevel=3,
        )


def notes_of(feedback: Tensor) -> Notes:
    """The notes on a B, kept on the tensor itself."""
    notes = getattr(feedback, "notes", None)
    if notes is None:
        notes = feedback.notes = Notes()  # type: ignore[attr-defined]
    assert isinstance(notes, Notes)
    return notes


def pass_notes_on(before: Tensor, after: Tensor) -> None:
    """The B ``after`` takes the place of ``before`` in the middle of a run, for fewer runs."""
    old, new = notes_of(before), notes_of(after)
    new.in_use, new.told = old.in_use, old.told


class ShareGradient(RuleFunction):
    """The identity on W; backward it gives W's gradient to B too.

    Where ``carries`` is false (no error was ever to pass B here), B gets it only if B is in use elsewhere, in a layer that
    shares the weight or a later use of this one: what W learns there, B must not miss.
    """

    @staticmethod
    def forward(weight: Tensor, feedback: Tensor, notes: Notes, carries: bool) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.notes, ctx.carries = inputs
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        if gradient is None or not (ctx.carries or ctx.notes.in_use):
            return gradient, None, None, None
        if not torch.compiler.is_compiling():  # a graph has no place for notes: there nobody watches
            ctx.notes.taught = True
        return gradient, gradient, None, None


def share_gradient(weight: Tensor, feedback: Tensor, carries: bool) -> Tensor:
    """``weight``, whose gradient will be B's as well."""
    if not (weight.requires_grad and feedback.requires_grad):
        return weight  # B takes W's steps: a frozen W has none
    notes = notes_of(feedback)
    if carries and not notes.in_use:
        notes.in_use = True
    shared: Tensor = ShareGradient.apply(weight, feedback, notes, carries)
    return shared
