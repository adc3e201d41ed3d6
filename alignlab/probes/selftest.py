"""Tests that a recording makes of itself: where two signals are one by construction, they must be equal.

A layer that feeds the model's output gets backprop's own error, whatever the rule: tested at every measured step. And in
some steps every layer's error is computed a second time from the output's: what arrives from elsewhere, from a loss on
hidden activations, say, would be missing from the true error and bend the angle. There too, deltaᵀ h is compared with the
gradient that the weight got. These steps (measured ones 0, 1, 2, 4, 8, …) read their results at once, so that no wrong angle
is recorded: with eigenvalues, which the CPU computes, they are all that makes a GPU wait between two flushes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from alignlab.probes.cleared import holds_cleared
from alignlab.probes.errors import ProbeError
from alignlab.probes.geometry import is_plain, runs
from alignlab.probes.hooks import Hook
from alignlab.probes.uses import Use, parameter_of, rule_of
from alignlab.rules.layers import FeedbackLayer

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # relative
TOLERANCE_HALF = 3e-2  # bfloat16 rounds at 4e-3


class LastLayers:
    """Collects the test of each step; :meth:`check` reads the results, so that nothing waits for the device before."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str, Tensor, float]] = []

    def add(self, step: int, layers: Mapping[str, Iterable[Use]]) -> None:
        """Compare the two errors of each layer that feeds the output."""
        for name, uses in layers.items():
            for use in uses:
                rule = rule_of(use.layer)
                estimated = (
                    rule is not None and rule.closure
                )  # from losses: its error there is not backprop's
                compared = use.delta_bp is not None and use.delta_rule is not use.delta_bp
                if use.feeds_output and compared and not estimated:
                    assert use.delta_rule is not None
                    assert use.delta_bp is not None
                    difference = _difference(use.layer, use.delta_rule, use.delta_bp)
                    self._found.append((step, name, difference, _tolerance(use.delta_bp)))

    def check(self) -> None:
        """Raise :class:`ProbeError` if a test failed, now and at every later call."""
        while self._found:
            step, name, difference, tolerance = self._found[0]
            if float(difference) > tolerance:
                raise ProbeError(
                    f"layer {name!r}, step {step}: it feeds the output, so its error must equal backprop's, but they differ by "
                    f"{float(difference):.1e} (relative). A hook changes gradients on the way; the angles of this run cannot "
                    "be trusted"
                )
            self._found.pop(0)


def check_paths(layers: Mapping[str, Iterable[Use]]) -> None:
    """Raise :class:`ProbeError` where a layer received another error than the one that comes from the output."""
    for name, use in ((name, use) for name, uses in layers.items() for use in uses):
        if use.expected is None:
            continue
        assert use.delta_rule is not None
        difference = float(_difference(use.layer, use.delta_rule, use.expected))
        if difference > _tolerance(use.expected):
            raise ProbeError(
                f"layer {name!r} received another error than the one that the model's output sends it (they differ by "
                f"{difference:.1e}, relative), so its true error is unknown: a loss on activations inside the model or on a "
                "derivative of it (create_graph=True), or a hook that changes gradients at random. Return such activations "
                "from the model beside its output"
            )


class GradientTest:
    """Whether deltaᵀ h is what came to the weights; tested, as all that costs, at measured steps 0, 1, 2, 4, 8, …"""

    def __init__(self) -> None:
        self._steps = 0
        self._weights: dict[str, Tensor] = {}
        self._landed: dict[str, dict[int, Tensor]] = {}  # by layer and backward pass
        self.elsewhere: dict[str, None] = {}  # layers whose weights get other gradients too

    @property
    def due(self) -> bool:
        """Whether the step under way is tested."""
        return self._steps & (self._steps - 1) == 0

    def note(self, name: str, layer: nn.Module, gradient: Tensor) -> None:
        """A gradient comes to a layer's weight; copied, since ``.grad`` takes its memory."""
        weight, task = parameter_of(layer), torch._C._current_graph_task_id()
        if self.due and weight is not None and not _hooked(weight):
            self._weights.setdefault(name, weight.detach().clone())  # as it was before the step
            by_pass = self._landed.setdefault(name, {})
            by_pass[task] = by_pass.get(task, 0) + gradient.detach().clone()

    def check(
        self,
        taken: Mapping[str, Sequence[Use]],
        layers: Mapping[str, nn.Module],
        passes: Mapping[str, Iterable[int]],
    ) -> None:
        """End a step; compare what came to each weight with the deltaᵀ h of the uses seen.

        What else comes to the weight of a plain layer (a penalty in the loss, a use outside the layer) is no part of this
        layer's teaching signal: a warning, once, and an entry in ``elsewhere``; L2 and L1 decay, as in the optimizer, is
        not even that. A layer of another class may compute something else: :class:`ProbeError`.
        """
        landed, self._landed, weights, self._weights = self._landed, {}, self._weights, {}
        self._steps += 1
        mixed = []
        for name, by_pass in landed.items():
            if parts := [by_pass[p] for p in passes[name] if p in by_pass]:
                rest = [gradient for p, gradient in by_pass.items() if p not in passes[name]]
                weight = parameter_of(layers[name])
                if rest and weight is not None and weight.grad is not None:
                    mixed += [name] * holds_cleared(weight.grad, parts, rest)
                tied = [n for n in taken if parameter_of(layers[n]) is parameter_of(layers[name])]
                uses = [use for n in tied for use in taken[n] if use.delta_rule is not None]
                if difference := _elsewhere(uses, sum(parts[1:], parts[0]), weights[name]):
                    self._tell(name, layers[name], difference)
        self._tell_of_cleared([name for name in layers if name in mixed and name not in self.elsewhere])

    def _tell_of_cleared(self, names: list[str]) -> None:
        self.elsewhere.update(dict.fromkeys(names))
        if names:
            warnings.warn(
                f"layers {', '.join(names)}: gradients that had been cleared from .grad have a part in the step, too (several "
                "losses', put together by hand). Gradients and angles are of the loss that was not cleared; take the losses' "
                "gradients by torch.autograd.grad, and all count",
                stacklevel=2,
            )

    def _tell(self, name: str, layer: nn.Module, difference: float) -> None:
        told = f"layer {name!r}: its weight got another gradient than deltaᵀ h (they differ by {difference:.1e}, relative)"
        if not is_plain(layer) and not isinstance(layer, FeedbackLayer):
            raise ProbeError(
                f"{told}. Is a {type(layer).__name__} more than its base class? What it does is not known: leave it out with "
                "layers="
            )
        if name not in self.elsewhere:
            self.elsewhere[name] = None
            warnings.warn(
                f"{told}: a penalty in the loss, a use outside the layer, or an input whose memory numpy has filled anew "
                "(give each batch its own). Gradients and angles are of the layer's own "
                "signal; update_angle and projected_lr compare the whole step with it",
                stacklevel=2,
            )


def _elsewhere(uses: Sequence[Use], landed: Tensor, weight: Tensor) -> float:
    """How much of a weight's gradient, relative to it, is not the deltaᵀ h of the uses."""
    signals = [(use, delta) for use in uses if (delta := use.delta_rule) is not None]
    seen = sum(use.gradient(delta) for use, delta in signals)
    # near a minimum the samples' terms cancel, and what is left of both may be rounding
    noise = sum(
        _rounding(delta) * float(delta.float().norm() * use.h.float().norm()) for use, delta in signals
    )
    allowed = max((_tolerance(delta) for _, delta in signals), default=0.0)
    size, rest = max(float(landed.float().norm()), 1e-38), landed - seen
    # as nearly always; to look for decay costs several times as much. NaN shows elsewhere
    if not float(rest.float().norm()) - noise > allowed * size:
        return 0.0
    found = max(0.0, _beyond_decay(rest, weight) - noise) / size
    return found if found > allowed else 0.0


def _hooked(weight: Tensor) -> bool:
    """Whether a hook of the loop's own may have changed the gradient on its way."""
    hooks = (getattr(weight, "_backward_hooks", None) or {}).values()
    return not all(isinstance(hook, Hook) for hook in hooks)


def _beyond_decay(rest: Tensor, weight: Tensor) -> float:
    """‖rest‖, of what no multiple of the weight or of its signs explains."""
    rest, weight = rest.float(), weight.float()
    for direction in _orthogonal(weight, weight.sign()):
        rest = rest - (rest * direction).sum() * direction
    return float(rest.norm())


def _orthogonal(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a = a / a.norm().clamp(min=1e-15)
    b = b - (a * b).sum() * a
    length = b.norm()
    return a, b / length if length > 1e-5 * b.numel() ** 0.5 else torch.zeros_like(b)


def _difference(layer: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ / ‖b‖; of several runs the largest."""
    difference: Tensor
    a, b = a.float(), b.float()
    if runs(layer) is None:
        difference = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)
    else:
        each = (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
        difference = each.nan_to_num(0.0).max()  # a run that has diverged shows nothing
    return difference


def _rounding(x: Tensor) -> float:
    """Of a sum of products, relative to the lengths of its factors."""
    return 8 * torch.finfo(x.dtype).eps


def _tolerance(x: Tensor) -> float:
    return TOLERANCE.get(x.dtype, TOLERANCE_HALF)
