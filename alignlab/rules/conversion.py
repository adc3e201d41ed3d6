"""Turn a model's layers into layers with feedback, in place, and back; module tree and parameters stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from alignlab.rules.backprop import Backprop
from alignlab.rules.choosing import Choice, assign, make_rules
from alignlab.rules.convertible import CONVERTIBLE, convertible
from alignlab.rules.credit import Credit
from alignlab.rules.direct import DirectOutput
from alignlab.rules.hosts import FeedbackHost
from alignlab.rules.initialisation import Init
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.outlet import ModelOutput
from alignlab.rules.rule import Rule

Model = TypeVar("Model", bound=nn.Module)


def convert(
    model: Model,
    rule: Choice,
    *,
    init: str | Init | None = None,
    generator: torch.Generator | None = None,
    **rule_args: Any,
) -> Model:
    """Make ``model`` learn by ``rule``; in place, returns ``model``.

    Every layer of :data:`CONVERTIBLE` becomes one of the same class with feedback: it hands errors down through the
    buffer ``feedback`` instead of its weight. Forward values, parameters and their names do not change. Recurrent cells
    and attention, which hold several maps, get a child module with feedback for each. Normalisations, PReLU and
    embeddings stay as they are. Modules that share one parameter get the same feedback.

    ``rule``: a name of :data:`RULES`, or a :class:`Rule`. ``rule_args``: its arguments (``period=100``). Or a rule for each
    of several patterns of layer names, ``{"features.*": "bp", "classifier.*": {"rule": "fa", "init": "nokland"}}``: the first
    that matches a layer counts, and layers that none matches learn by backprop.
    ``init``: the distribution of B, a name of :data:`INITS` or a callable ``(like, generator) -> tensor``.
    ``generator``: where B comes from; without one, from torch's global seed. Processes that train one model together by
    DistributedDataParallel have one B, the first process's, whatever each has converted from (:mod:`alignlab.rules.ranks`); a
    loop that averages gradients itself has to convert from one seed.

    Raises ``ValueError`` for an unknown rule or argument, a model that is converted already or has nothing to convert,
    and ``TypeError`` that lists every module that cannot be converted, or names what is no model or generator. In either case
    the model was not changed.
    """
    _check_model(model)
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"generator is {generator!r:.60}, expected a torch.Generator: torch.Generator().manual_seed(0)"
        )
    made = make_rules(rule, init=init, **rule_args)
    named = convertible(model)
    layers, learns_by = list(named.values()), assign(made, list(named), Backprop())
    for own in made.values():
        own.fits(list(named))
    seeds = _seeds(layers, generator)
    credit = Credit()
    done: list[nn.Module] = []
    try:
        for layer, own, seed in zip(layers, learns_by, seeds, strict=True):
            original = type(layer)
            layer.__class__ = CONVERTIBLE[original]
            assert isinstance(layer, FeedbackLayer | FeedbackHost)
            done.append(layer)
            layer.attach(own, credit, seed)
    except BaseException:
        for changed in done:
            _restore(changed)
        raise
    hook_output(model, credit, learns_by[0])
    return model


def revert(model: Model) -> Model:
    """Undo :func:`convert`: the original classes with the same parameter tensors, without feedback. In place.

    Raises ``ValueError`` for a model without converted layers.
    """
    _check_model(model)
    found = [m for m in model.modules() if type(m) in CONVERTIBLE.values()]
    if not found:
        raise ValueError("revert: the model has no converted layers")
    for layer in found:
        _restore(layer)
    for module in model.modules():
        _unhook_output(module)
    return model


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}, expected an nn.Module")


def _seeds(layers: list[nn.Module], generator: torch.Generator | None) -> Iterator[int]:
    """One seed a weight, in the model's order: tied weights get the same, and so the same feedback."""
    drawn: dict[int, int] = {}
    for layer in layers:
        weight = id(_weight(layer))
        if weight not in drawn:
            device = generator.device if generator is not None else "cpu"
            drawn[weight] = int(torch.randint(2**62, (), generator=generator, device=device))
        yield drawn[weight]


def _weight(layer: nn.Module) -> Any:
    """What a layer, or the first map of a host, is tied by."""
    made = CONVERTIBLE[type(layer)]
    name = next(iter(made.maps.values()))[0] if issubclass(made, FeedbackHost) else "weight"
    return getattr(layer, name)


def hook_output(model: nn.Module, credit: Credit, first: Rule) -> None:
    """Put on the model the hooks of a rule that takes hold of it as a whole; no other rule stands beside such a one."""
    if not (first.direct or first.whole):
        return
    output = DirectOutput(credit) if first.direct else ModelOutput(credit, first)
    model.register_forward_pre_hook(output.before)
    model.register_forward_hook(output.after, always_call=True)  # a pass that fails is over too


def _unhook_output(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), DirectOutput | ModelOutput):
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


def _restore(layer: nn.Module) -> None:
    assert isinstance(layer, FeedbackLayer | FeedbackHost)
    layer.detach_rule()
    original = next(plain for plain, made in CONVERTIBLE.items() if made is type(layer))
    layer.__class__ = original  # type: ignore[assignment]
