"""The forward passes of one training step: the first, on whose graph gradients land, and further ones with something moved.

A *site* is one use of a layer in the first pass. A gate on each site's output lets the rule put its own delta there, from
where the layer's usual ``deltaᵀ h`` follows; in the further passes the rule may move the same output. Uses are matched by
their order, so a layer that runs twice has two sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from alignlab.rules.credit import Credit
from alignlab.rules.hosts import FeedbackHost
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.outlet import ModelOutput, trained
from alignlab.rules.replay import Noise, Replay
from alignlab.rules.rule import Rule
from alignlab.rules.runs import checked_loss, objective_of, require_graph, samples_of
from alignlab.rules.sites import OUTLET, Held, Move, Relay, Site, SiteGate, leaves, of_used_units

Closure = Callable[[], Tensor]


class Passes:
    """The passes of one step of ``rule``; :meth:`first`, then :meth:`again` as often as it likes, then :meth:`land`.

    ``runs``: how many runs the model is of, None for one as anybody has it. Of several, outputs and losses lead with them.
    """

    def __init__(self, model: nn.Module, closure: Closure, rule: Rule, credit: Credit) -> None:
        self.model, self.closure, self.rule, self.credit = model, closure, rule, credit
        self.sites: list[Site] = []
        self.landing = False
        self.gradients: dict[int, Tensor] = {}
        self.beside = False  # whether the loss also depends on the layers past the model's output
        self._order: list[Site | None] = []
        self._held: dict[int, Held] = {}
        self.outputs: list[Tensor] = []
        self._replay = Replay(model)
        self._layers = [m for m in model.modules() if isinstance(m, FeedbackLayer)]
        self.runs = self._layers[0].runs

    @cached_property
    def noise(self) -> Noise:
        """This step's own random numbers: a function of the layers' seed and clocks, and so of ``state_dict``."""
        clock = sum(layer.clock for layer in self._layers)
        return Noise((self._layers[0].feedback_seed + clock) % 2**63)

    def samples(self, loss: Tensor) -> int:
        """Of how many samples' losses a loss is made; 0 where it is one number."""
        return samples_of(loss, self.runs)

    def objective(self, loss: Tensor) -> Tensor:
        """What is to become smaller: the loss, or the mean over its samples."""
        return objective_of(loss, self.runs)

    def first(self) -> Tensor:
        """The loss of the pass whose graph is kept: a scalar, or (N,) where the closure returns one for each sample; of
        several runs (K,), or (K, N)."""
        with self._hooked(self._gate), self._watching_outputs():
            loss = checked_loss(self.closure(), self.runs, self.rule.name)
        require_graph(loss, self.rule.name)
        above = leaves([loss.grad_fn], stop=(OUTLET,))
        known = {id(p) for p in trained(self.model).values()}
        self.beside = above.gates or (self.rule.explicit and not known.isdisjoint(above.parameters))
        return loss

    def again(self, move: Move | None = None, *, graph: bool = False) -> Tensor:
        """The loss of the same pass with each site's output replaced by ``move(site, output)``."""
        left = iter(self._order)
        move = move or (lambda site, z: z)
        with (
            self._replay.again(),
            torch.set_grad_enabled(graph),
            self._hooked(partial(self._move, left, move)),
        ):
            loss = checked_loss(self.closure(), self.runs, self.rule.name)
        if next(left, self) is not self:
            raise self._differs("fewer layers")
        return loss if graph else loss.detach()

    @contextmanager
    def computed_once(self) -> Iterator[None]:
        """Within the block, a checkpoint that computes a layer again is an error: its output would not be moved there."""

        def refuse(name: str, module: nn.Module, args: Any, z: Any) -> None:
            raise RuntimeError(
                f"{self.rule.name}: layer {name!r} runs in an activation checkpoint, which would compute it again without its "
                "output moved: take it out of the checkpoint"
            )

        with self._hooked(refuse):
            yield

    def learners(self, *ends: Tensor) -> dict[str, nn.Parameter]:
        """The trained parameters of the model that ``ends`` (the loss, or the model's outputs) depend on, by name."""
        found = leaves([x.grad_fn for x in ends if x.grad_fn is not None], stop=())
        if found.reentrant:
            raise RuntimeError(
                f"{self.rule.name}: a checkpoint hides the layers in it from their graph: give it use_reentrant=False"
            )
        return {name: p for name, p in trained(self.model).items() if id(p) in found.parameters}

    def land(self, objective: Tensor) -> None:
        """Run the backward pass that fills ``.grad`` with what the sites' deltas, or ``gradients``, say.

        ``objective``: one number, of several runs one each: their mean would teach each of them a share.
        """
        if self.runs is not None and objective.shape != (self.runs,):
            raise RuntimeError(
                f"{self.rule.name}: the objective is {tuple(objective.shape)}, expected one number for each of the "
                f"{self.runs} runs (passes.objective(loss)); a rule that cannot tell runs apart says stacks = False"
            )
        for site in self.sites:
            self._held[id(site)].delta = of_used_units(site)
        if self.rule.explicit:
            ones = torch.ones_like(objective)
            errors = torch.autograd.grad(objective, self.outputs, ones, retain_graph=True, allow_unused=True)
            objective = Relay.apply(objective, errors, *self.outputs)  # type: ignore[no-untyped-call]
        self.landing = True
        objective.backward(torch.ones_like(objective))  # type: ignore[no-untyped-call]

    @contextmanager
    def _hooked(self, hook: Callable[..., Any]) -> Iterator[None]:
        handles = [
            # before other hooks, which so see what the layer's successors see
            module.register_forward_hook(partial(hook, name), prepend=True)
            for name, module in self.model.named_modules()
            if self._is_site(module)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _is_site(self, module: nn.Module) -> bool:
        own = any(p.requires_grad for p in module.parameters(recurse=False))
        layer = isinstance(module, FeedbackLayer)
        return own and (layer or (self.rule.perturbs_norms and not isinstance(module, FeedbackHost)))

    @contextmanager
    def _watching_outputs(self) -> Iterator[None]:
        """Keep what the closure receives from the model, past every other hook."""

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            leaves = pytree.tree_leaves(output)
            self.outputs += [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]

        with ExitStack() as stack:
            for module in self.model.modules():
                if _has_outlet(module):
                    stack.callback(module.register_forward_hook(keep).remove)
            yield

    def _gate(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        return pytree.tree_map(partial(self._gated, name, module), output)

    def _gated(self, name: str, module: nn.Module, z: Any) -> Any:
        if not isinstance(z, Tensor):
            return z
        if not z.requires_grad or self.rule.explicit:  # the layer is frozen, or nothing lands at its output
            self._order.append(None)
            return z
        held, site = Held(), Site(name, module, tuple(z.shape), z.dtype, z.device)
        site.rows = getattr(module, "used_rows", None)
        gated: Tensor = SiteGate.apply(z, held, self.credit)  # type: ignore[no-untyped-call]
        site.edge = get_gradient_edge(gated)
        self._held[id(site)] = held
        self.sites.append(site)
        self._order.append(site)
        return gated

    def _move(
        self, left: Iterator[Site | None], move: Move, name: str, module: nn.Module, args: Any, output: Any
    ) -> Any:
        return pytree.tree_map(partial(self._moved, left, move, name, module), output)

    def _moved(self, left: Iterator[Site | None], move: Move, name: str, module: nn.Module, z: Any) -> Any:
        if not isinstance(z, Tensor) or (site := next(left, self)) is None:
            return z
        if not isinstance(site, Site) or site.module is not module or tuple(z.shape) != site.shape:
            raise self._differs(f"layer {name!r}, unexpectedly or on an input of another size")
        return move(site, z)

    def _differs(self, what: str) -> RuntimeError:
        return RuntimeError(
            f"{self.rule.name}: the closure ran {what} when it was called again; it has to do the same each time, on "
            "the same batch"
        )


def _has_outlet(module: nn.Module) -> bool:
    hooks = module._forward_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), ModelOutput) for hook in hooks)
