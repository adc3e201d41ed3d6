"""Direct feedback: the output's error goes to each hidden layer without passing through those above (Nøkland 2016).

The signal for layer l enters at the layer's *activation*, the tensor in which its output next meets a converted layer,
as ``e B_l`` with ``e = ∂L/∂output`` (the loss's averaging included) and B_l (n_error, out). Nøkland's e, ``ŷ − y``, is that
at the logits: a model that returns them sends it; of one that ends in a softmax or a logistic function a warning tells.
From the activation the true local derivative (nonlinearity, dropout, normalisation, pooling) takes the signal to the
layer's output. Each layer so receives its own error exactly once, however many skip connections lead around it; layers
whose output meets no other converted layer receive the true error. Nothing else flows: the products ``delta W`` that make
up backprop's chain are never computed, and no gradient reaches the network's input.

Where the way from the activation leads to that one layer and nowhere else, as in any plain chain, the layer above hands
the signal down in place of ``delta W``, and one backward pass does it all. Elsewhere (skip connections, convolutions)
each signal is taken to its layer by a pass of its own. (A hook on a hidden tensor then sees its signal, then the chain's
None.)
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from alignlab.rules.compiling import uncompiled
from alignlab.rules.credit import Call, Credit
from alignlab.rules.functions import RuleFunction
from alignlab.rules.hosts import hosted_parameters
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.linking import link
from alignlab.rules.rule import Rule


class DirectFeedbackAlignment(Rule):
    """``delta_l = (e B_l) ∘ f'(z_l)`` with fixed random B_l (Nøkland 2016, whose B is ``init="nokland"``).

    B_l has as many columns as the activation that it feeds has entries a sample (a position, where linear layers work
    on positions and the output has the same ones); it is drawn at the first forward pass, when both sizes are known,
    from the seed given at conversion. Until then the model has no such buffer: what copies buffers by their order
    (``AveragedModel`` of ``torch.optim.swa_utils``) is to be made after it.
    """

    name = "dfa"
    direct = True
    sends_error: ClassVar[bool] = True  # else broadcast() needs the output that the error belongs to
    reads_deltas: ClassVar[bool] = False  # whether deliver() needs what earlier calls' layers have got

    def broadcast(self, error: Tensor, output: Tensor | None, runs: int | None = None) -> Tensor:
        """What goes out to the layers that a B reaches, in the error's shape; ``runs``: how many runs that leads with."""
        return error

    def start(self, layer: FeedbackLayer) -> None:
        """B's shape is not known before the first forward pass."""

    def needs_feedback(self, call: Call) -> bool:
        """Whether ``call``'s layer is one that the error reaches through a B."""
        return not call.feeds_output

    def deliver(self, call: Call, error: Tensor) -> Tensor:
        target, feedback = call.target, call.layer.feedback
        assert target is not None
        assert feedback is not None
        rows = error if error.shape == call.reads else error.reshape(call.reads)
        signal = rows @ feedback.to(error.dtype)
        return signal if signal.shape == target.input_shape else signal.reshape(target.input_shape)


def _reading(target: Call, error_shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """How the error reads as rows that B can take: the rows' dimensions, the entries of each, and how many entries of
    ``target``'s input each row reaches."""
    layer, shape = target.layer, target.input_shape
    return _reading_of(
        layer.features_last, layer.runs is not None, layer.takes_one_sample(shape), shape, error_shape
    )


@functools.lru_cache(maxsize=4096)  # the same at each step, and asked for each layer
def _reading_of(
    features_last: bool, several: bool, one_sample: bool, shape: tuple[int, ...], error_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], int, int]:
    """A row is a position where the target is a linear layer on the same positions as the output, else a sample; of
    ``several`` runs it is one of one run."""
    positions = features_last and error_shape[:-1] == shape[:-1]
    rows = error_shape[: -1 if positions else several + (not one_sample)]
    if rows != shape[: len(rows)] or not (rows or one_sample):
        raise ValueError(
            f"a direct rule needs one batch dimension throughout: the output is {error_shape}, an activation {shape}"
        )
    return rows, math.prod(error_shape[len(rows) :]), math.prod(shape[len(rows) :])


class Broadcast(RuleFunction):
    """The identity on the network's output; backward it hands each layer its own error, and the chain nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        edge: GradientEdge,
        credit: Credit,
        calls: list[Call],
        *trained: nn.Parameter,
    ) -> Tensor:
        ctx.edge, ctx.credit, ctx.calls, ctx.trained = edge, credit, calls, trained
        ctx.set_materialize_grads(False)
        if any(not _rule(call).sends_error for call in calls):
            ctx.save_for_backward(output)
        return output.clone()  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Tensor | None, ...]:
        (error,) = errors
        gradients: dict[int, Tensor | None] = {id(p): None for p in ctx.trained}
        if error is None or ctx.credit.true:
            return (error, None, None, None, *gradients.values())
        sent = _sent(ctx.calls, error, *ctx.saved_tensors)
        task = torch._C._current_graph_task_id()
        apart = []
        for call in ctx.calls:
            call.delivery.task = task
            if not call.flows:
                apart.append(call)
            elif call.target is not None:  # left with the layer that hands it down, in this pass
                rule = _rule(call)
                call.target.delivery.below = rule.deliver(call, sent[rule])
        if apart:
            _hand_over(ctx, apart, error, sent, gradients)
        passes = any(call.feeds_output and call.flows for call in ctx.calls)
        return (error if passes else None, None, None, None, *gradients.values())


def _rule(call: Call) -> DirectFeedbackAlignment:
    assert isinstance(call.layer.rule, DirectFeedbackAlignment)
    return call.layer.rule


def _sent(
    calls: list[Call], error: Tensor, output: Tensor | None = None
) -> dict[DirectFeedbackAlignment, Tensor]:
    """What each rule sends out."""
    rules = {_rule(call) for call in calls if call.target is not None}
    return {rule: rule.broadcast(error, output, calls[0].layer.runs) for rule in rules}


def _hand_over(
    ctx: Any,
    calls: list[Call],
    error: Tensor,
    sent: Mapping[DirectFeedbackAlignment, Tensor],
    gradients: dict[int, Tensor | None],
) -> None:
    """Take each call's signal to its layer, and add up the gradients of the unconverted parameters that learn from it."""
    with ctx.credit.deliver():
        for call in calls:
            where, signal = ctx.edge, error
            if call.target is not None:
                rule = _rule(call)
                where, signal = call.target.input_edge, rule.deliver(call, sent[rule])
            wanted: list[Any] = [call.output_edge, *call.teaches]
            call.delivery.delta, *learnt = torch.autograd.grad(
                [where], wanted, [signal], retain_graph=True, allow_unused=True
            )
            for parameter, gradient in zip(call.teaches, learnt, strict=True):
                before = gradients[id(parameter)]
                if gradient is not None:
                    gradients[id(parameter)] = gradient if before is None else before + gradient


class DirectOutput:
    """The forward hooks that a direct rule puts on the model: they link a pass's calls and install Broadcast."""

    def __init__(self, credit: Credit) -> None:
        self.credit, self.looked = credit, False

    def before(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook: start a new record."""
        uncompiled(self._start)

    def _start(self) -> None:
        self.credit.calls = []

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: returns the output through which the error will be handed out."""
        return uncompiled(self._finish, module, output)

    def _finish(self, module: nn.Module, output: Any) -> Any:
        calls, self.credit.calls = [c for c in self.credit.calls or () if c.output_edge is not None], None
        if not calls or output is None:  # the pass failed
            return output
        if not isinstance(output, Tensor):
            raise TypeError(
                f"a direct rule needs a model that returns one tensor, this one returns {type(output).__name__}: concatenate "
                "several outputs, and take them apart and compute the loss outside of the model"
            )
        if output.grad_fn is None:
            return output
        edge = GradientEdge(output.grad_fn, output.output_nr)  # Broadcast's node will keep the graph
        alive = link(calls, edge, lambda: _unconverted(module))
        shape = tuple(output.shape)
        if not self.looked and any(_rule(call).sends_error and call.target is not None for call in alive):
            self.looked = True
            _tell_of_squashed(output, _rule(alive[0]).name)
        for call in alive:
            _ensure_feedback(call, shape)
            call.flows = call.flows and _can_flow(call)
        taught = {id(p): p for call in alive if not call.flows for p in call.teaches}
        return Broadcast.apply(output, edge, self.credit, alive, *taught.values())


_SQUASHED = ("LogSoftmax", "Softmax", "Sigmoid", "LogSigmoid", "Tanh")


def _tell_of_squashed(output: Tensor, rule: str) -> None:
    """Warn of an output whose error is not the one at the logits."""
    made_by = type(output.grad_fn).__name__.partition("Backward")[0]
    if made_by in _SQUASHED:
        warnings.warn(
            f"{rule}: the model ends in a {made_by}, so that hidden layers get the loss's gradient at its output; published e "
            "is the one at what enters it (ŷ - y at logits). Return that, and leave the rest to the loss: cross_entropy, or "
            "binary_cross_entropy_with_logits",
            stacklevel=2,
        )


def _can_flow(call: Call) -> bool:
    """Whether ``call``'s signal can go down in autograd's own pass, by the layer above, where the graph allows it."""
    if call.delivery.apart or (call.target is not None and call.target.layer._backward_hooks):
        return False  # a hook of the loop's own there may change what passes; apart, nothing passes it, recorded or not
    return call.target is None or (call.target.layer.hands_signals and not _rule(call).reads_deltas)


def _unconverted(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of normalisations and the like, which learn from the signal that passes them."""
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        if not isinstance(module, FeedbackLayer)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and key not in hosted_parameters(module)
    }


def _ensure_feedback(call: Call, output_shape: tuple[int, ...]) -> None:
    rule, layer = _rule(call), call.layer
    if not rule.needs_feedback(call):
        return
    assert call.target is not None
    rows, features, units = _reading(call.target, output_shape)
    call.reads, shape, feedback = (*rows, features), (features, units), layer.feedback
    if feedback is None:
        like = torch.empty(shape, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.feedback = layer.drawn_as(rule.init, layer.feedback_seed, like)
    elif feedback.shape[-2:] != shape:
        raise ValueError(
            f"{rule.name}: the feedback of a layer is {tuple(feedback.shape)}, but output and activation now ask "
            f"for {shape}; a direct rule needs inputs of one size"
        )
