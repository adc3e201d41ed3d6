"""Layers with feedback: what :func:`alignlab.rules.convert` turns a model's layers into, in place.

A converted layer is still an instance of its torch class, has the same parameters under the same names and computes the
same output. It adds the buffer ``feedback`` (B, in the shape of W for layerwise rules, (n_error, out) for direct ones)
and a clock that counts the changes of its weights. The clock reads the weight's version counter, so that gradient
accumulation, activation checkpointing, skipped steps and evaluations do not count as steps, and costs one integer
comparison. It sees changes in place, and what optimizers do (:mod:`alignlab.rules.steps`); what a loop of one's own
writes through ``weight.data`` it cannot see.

A graph of ``torch.compile`` ticks the clock as the layer itself would (:mod:`alignlab.rules.compiling`). Under
``torch.func`` the clock stands still: weights that a functional call puts in are no step of this layer's, and B is what
the call puts in with them (``dict(model.named_buffers())``, or ``stack_module_state``'s buffers). Direct rules
need autograd's own graph: they refuse ``torch.func``, and any part compiled by a backend that hides it.
"""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

import alignlab.rules.steps  # noqa: F401 — makes optimizers tell what they changed
from alignlab.rules.checkpoint import packed, unpacked
from alignlab.rules.compiling import feedback_in_graph, remember, uncompiled
from alignlab.rules.credit import Chain, Credit
from alignlab.rules.functions import Gate
from alignlab.rules.initialisation import Init, draw, draw_magnitude
from alignlab.rules.ranks import agree, forget
from alignlab.rules.rule import Rule
from alignlab.rules.runs import Seeds

_PENDING = -1  # a version no tensor has: the weights changed since the last forward pass


class FeedbackLayer(nn.Module):
    """What linear and convolutional layers with feedback share."""

    weight: Tensor
    bias: Any
    feedback: Tensor | None
    feedback_magnitude: Tensor | None
    feedback_unscaled: Tensor | None  # B as a rule has it whose feedback is rescaled
    rule: Rule
    credit: Credit
    clock: int
    feedback_seed: int
    _seen: int | None
    _stale: bool  # whether B is behind the clock, for want of use
    _used: bool  # whether an error was ever to pass a B that learns
    runs: int | None = None  # how many runs' layers this is, side by side; None: a layer as anybody has it
    features_last: ClassVar[bool]  # whether units lie along the last dimension of the input
    hands_signals: ClassVar[bool] = (
        False  # whether its Function's input is the layer's own, and takes a Delivery
    )

    def attach(self, rule: Rule, credit: Credit, seed: int) -> None:
        """Set the layer up for ``rule``; ``convert`` calls this after changing the class."""
        self.prepare(rule, credit, seed)
        rule.start(self)

    def prepare(self, rule: Rule, credit: Credit, seed: Any) -> None:
        """The same without a first feedback. ``seed``: one, or one of each run."""
        self.rule, self.credit, self.feedback_seed = rule, credit, seed
        credit.layers.add(self)
        remember(self)
        forget(self)
        self.clock, self._seen, self._stale, self._used = 0, None, False, False
        register = self.register_parameter if rule.learns_feedback else self.register_buffer
        register("feedback", None)
        self.register_buffer("feedback_magnitude", None)
        self.register_buffer("feedback_unscaled", None)

    def detach_rule(self) -> None:
        """Undo :meth:`attach`."""
        self.credit.layers.discard(self)
        for name in (
            "rule",
            "credit",
            "feedback_seed",
            "clock",
            "_seen",
            "_stale",
            "_used",
            "feedback",
            "feedback_magnitude",
            "feedback_unscaled",
        ):
            delattr(self, name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        if name == "weight":
            self.replaced()

    def replaced(self) -> None:
        """The weight is another tensor, whose version says nothing beside the last one's: its weights count as changed."""
        if self.__dict__.get("_seen") is not None:
            self._seen = _PENDING

    def carrier(self) -> Tensor:
        """The matrix that a layerwise rule sends errors down with: B, or W itself under backprop."""
        return self.weight if self.feedback is None else self.feedback

    def neurons(self, weight: Tensor) -> Tensor:
        """A weight as matrices (…, out, in), in each row a neuron and what it sees; of a contiguous weight a view."""
        return weight.flatten(1)

    def norm(self, weight: Tensor) -> Tensor:
        """The Frobenius norm of a weight or B, for each run where there are several; to be broadcast with it."""
        norm: Tensor = torch.linalg.vector_norm(weight)
        return norm

    def drawn(self, init: str | Init, seed: int) -> Tensor:
        """A draw of B in the shape of W."""
        return draw(init, self.weight, seed)

    def drawn_as(self, init: str | Init, seed: int, like: Tensor) -> Tensor:
        """A draw of B in the shape of ``like``, which is of one run: for direct rules."""
        return draw(init, like, seed)

    def drawn_magnitude(self, init: str | Init, seed: int) -> Tensor:
        """Absolute values of a draw, for rules that draw at each step."""
        return draw_magnitude(init, self.weight, seed)

    def noise(self, rows: int, like: Tensor, seed: int) -> Tensor:
        """Samples ~ N(0, 1) of what the neurons of ``like`` (…, out, in) see, (rows, in)."""
        generator = torch.Generator(like.device).manual_seed(seed)
        return torch.randn(rows, like.shape[-1], generator=generator, dtype=like.dtype, device=like.device)

    def tick(self, used: bool = True) -> None:
        """Advance the clock if the weights changed since the last differentiable forward pass, and bring B up to date.

        ``used``: whether errors will be sent down through B, whose refreshing some rules put off until they are.
        """
        if torch.compiler.is_compiling():
            return  # the graph asks for B where it needs it
        agree(self)
        weight = self._parameters.get("weight")
        if weight is None:
            if not self.rule.has_clock:
                return
            raise RuntimeError(
                f"the weight of a {type(self).__name__} is made anew at each pass (pruned or reparametrised after convert), "
                "so its changes cannot be counted: revert the model, or prune before converting and make it permanent"
            )
        version = weight._version
        if version == self._seen and (not self.rule.every_forward or _in_backward_pass()):
            if self._stale and used:
                self._refresh()
            return
        if not isinstance(weight, nn.Parameter):
            return  # torch.func put it here for one call
        restored = self._seen is None and self.clock > 0  # B is as this clock has left it
        state = self.__dict__  # past nn.Module.__setattr__, which asks first whether numbers are parameters
        if self._seen is not None:
            state["clock"] += 1
        state["_seen"] = version
        if self.rule.has_clock and not restored:
            state["_stale"] = True
        if self._stale and (used or not self.rule.rests):
            self._refresh()

    def _refresh(self) -> None:
        self.__dict__["_stale"] = False
        with torch.no_grad():
            self.rule.refresh(self)

    def forward(self, input: Tensor) -> Tensor:
        x = input  # torch's name for it, by which a model may hand it over
        if not torch.is_grad_enabled():
            if self.training and not torch.compiler.is_compiling():
                agree(self)  # a checkpoint with use_reentrant=True, which draws B after the pass
            x, weight, bias, _ = self._autocast(x, self.weight)
            return self.transform(x, weight, bias, None, chain=True)
        if self.rule.direct:
            z: Tensor = uncompiled(self._direct_forward, x)
            return z
        if self.rule.whole:
            self.credit.require_pass(self.rule.name)
        self.tick(used=x.requires_grad)
        x, weight, bias, carrier = self._autocast(x, self.rule.taught_weight(self, x))
        return self.transform(x, weight, bias, carrier, chain=self.rule.hands_down)

    def _direct_forward(self, x: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{self.rule.name}: a direct rule reads how layers hang together from autograd's graph, and torch.func "
                "keeps none: call the model outside of transforms, or convert it to a layerwise rule"
            )
        self.tick()
        x, weight, bias, _ = self._autocast(x, self.weight)
        call = self.credit.record(self, x)
        delivery = call.delivery
        z = self.transform(x, weight, bias, None, chain=delivery if self.hands_signals else False)
        if not z.requires_grad:
            return z
        if delivery.above or not self.hands_signals:
            z = Gate.apply(z, delivery)
        # Without get_gradient_edge's token, which keeps the graph: it is used while the graph above runs backward.
        call.output_edge = GradientEdge(z.grad_fn, z.output_nr)  # type: ignore[arg-type]
        return z

    def transform(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, chain: Chain
    ) -> Tensor:
        """The layer's own operation through its Function."""
        raise NotImplementedError

    def propagate(self, signal: Tensor) -> Tensor:
        """``signal`` sent forward through W without the bias (for indirect feedback alignment)."""
        raise NotImplementedError

    def takes_one_sample(self, shape: tuple[int, ...]) -> bool:
        """Whether an input of ``shape`` is a single sample, without a batch dimension."""
        raise NotImplementedError

    def _autocast(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Inputs in the dtype that autocast would choose; the casts stay in the graph: gradients return in float32."""
        carrier = None if self.rule.direct else self._current_feedback(x.requires_grad)
        if not torch._C._is_any_autocast_enabled():
            return x, weight, self.bias, carrier
        device = x.device.type
        if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
            return x, weight, self.bias, carrier
        dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        return x.to(dtype), weight.to(dtype), bias, None if carrier is None else carrier.to(dtype)

    def _current_feedback(self, used: bool) -> Tensor | None:
        """B; from within a compiled graph through an operation that ticks, where there is a clock to tick."""
        if torch.compiler.is_compiling() and torch.is_grad_enabled() and self.rule.has_clock:
            return feedback_in_graph(self, used)
        feedback = self.feedback
        return feedback.detach() if feedback is not None and self.rule.learns_feedback else feedback

    def _resume_point(self) -> int | None:
        """``_seen`` in a form that survives a copy, whose tensors start with fresh version counters."""
        if self._seen is None:
            return None
        pending = self.rule.every_forward or self.weight._version != self._seen
        return _PENDING if pending else None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if "_seen" in state:
            state["_seen"] = self._resume_point()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        remember(self)
        vars(self.credit).setdefault("layers", weakref.WeakSet()).add(self)

    def get_extra_state(self) -> Tensor:
        state = {
            "clock": self.clock,
            "seed": self.feedback_seed,
            "pending": int(self._resume_point() == _PENDING),
            "stale": int(self._stale),
            "used": int(self._used),
        }
        return packed(self.rule, state)

    def set_extra_state(self, state: Tensor | dict[str, Any]) -> None:
        told = unpacked(self.rule, state)
        seed: Any = Seeds(told["seed"]) if isinstance(told["seed"], list) else told["seed"]
        self.clock, self.feedback_seed = told["clock"], seed
        self._seen, self._stale = _PENDING if told["pending"] else None, bool(told.get("stale", 0))
        self._used = bool(told.get("used", 0))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.rule.direct and prefix + "_extra_state" in state_dict:
            # Direct rules draw B at the first forward pass: either side may not have it yet.
            saved = state_dict.get(prefix + "feedback")
            self.feedback = None if saved is None else torch.empty_like(saved).to(self.weight)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _in_backward_pass() -> bool:
    """Whether a checkpoint computes the layer again."""
    return torch._C._current_graph_task_id() != -1
