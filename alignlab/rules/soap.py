"""Second order activity perturbation (soap): a feedback-guided gradient of the activities, divided by a secant curvature.

The gradient g₀ of each layer's output, as feedback sends it, is tried out: all outputs are moved a small step against it,
and the same gradient g₁ is taken there. The change along each unit's own move estimates its curvature (a diagonal secant,
as in Becker & LeCun 1988's diagonal Newton steps, but from differences and with feedback that need not be W).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.checks import is_number
from alignlab.rules.backprop import Backprop
from alignlab.rules.initialisation import Init
from alignlab.rules.random_feedback import FeedbackAlignment
from alignlab.rules.rule import Rule
from alignlab.rules.runs import beside, each_run
from alignlab.rules.sign_feedback import BatchRandomSign, FixedRandomSign, SignSync, UniformSign

if TYPE_CHECKING:
    from alignlab.rules.layers import FeedbackLayer
    from alignlab.rules.passes import Passes
    from alignlab.rules.sites import Site

GUIDES: dict[str, type[Rule]] = {
    made.name: made
    for made in (Backprop, FeedbackAlignment, UniformSign, BatchRandomSign, FixedRandomSign, SignSync)
}
FORMS = ("plain", "safeguarded", "rescaled")


class SecondOrderActivityPerturbation(Rule):
    """``delta = n / N`` with n the step that a diagonal secant makes of the activity gradient g₀.

    ``guide``: the rule that sends g₀ and g₁ down, with ``init`` its B. ``step``: how far outputs move, ``z ← z − step g₀``.
    With the curvature ``c = (g₀ − g₁) / (step g₀)``, unit by unit:

    - ``form="safeguarded"``: ``n = g₀ / (c + damping)`` where c exceeds what rounding could make of no curvature
      (``16 eps / step``), and ``n = g₀`` elsewhere: where the loss is flat or bends down. At ``damping=1`` the two meet at
      c = 0. Always of the sign of g₀, and at most ``1 / damping`` times as long, or as long as g₀.
    - ``form="plain"``, as its author wrote it: ``n = step g₀² / (g₀ − g₁ + bias)``. What it gets wrong: under negative
      curvature it climbs. Where the curvature is 0 (a ReLU network under an absolute loss, almost everywhere) it is
      ``step g₀² / bias``: huge, and of the sign of ``bias`` whatever the sign of g₀. Where ``g₀ − g₁`` happens to be −bias
      it is infinite, and 0/0 is NaN (with ``bias=0``, for every dead unit). And the difference of near equals carries a
      relative rounding error of about eps / (step c), which a small step makes large.
    - ``form="rescaled"``, a control that uses no curvature of a unit's own: ``n = g₀ ‖n'‖ / ‖g₀‖``, with n' the safeguarded
      step and the norms over a layer's units and the whole batch. Whatever n' does better than this is direction, not size.

    In all, c is of the whole move: what the layers below moved is part of ``g₀ − g₁``, as are a unit's neighbours.

    The closure returns the loss of each sample, (N,): g₀, ``step`` and ``damping`` are in units of one sample's loss and the
    layer's output, and no result depends on the size of a batch beyond the mean over it. n is a displacement of z, not a
    gradient: multiplying the loss by a number leaves the undamped n as it is, for moves of equal size. Normalisations learn
    from what is handed down to them. Nothing is remembered between steps. Costs two forward and three backward passes.
    """

    name = "soap"
    closure = True

    def __init__(
        self,
        guide: str = "fa",
        init: str | Init | None = None,
        step: float = 1e-2,
        form: str = "safeguarded",
        damping: float = 1.0,
        bias: float = 1e-8,
    ) -> None:
        if guide not in GUIDES:
            raise ValueError(f"soap: guide is {guide!r}, expected one of {', '.join(GUIDES)}")
        if form not in FORMS:
            raise ValueError(f"soap: form is {form!r}, expected one of {', '.join(FORMS)}")
        _check("step", step, lowest=0, included=False)
        _check("damping", damping, lowest=0, included=True)
        _check("bias", bias, lowest=-math.inf, included=False)
        drawn: dict[str, Any] = {"init": init} if GUIDES[guide].uses_feedback and init is not None else {}
        self._guide = GUIDES[guide](**drawn)
        self.guide, self.form = guide, form
        self.step, self.damping, self.bias = float(step), float(damping), float(bias)
        self.init = getattr(self._guide, "init", "kaiming")

    @property
    def draws(self) -> bool:
        return self._guide.draws

    def start(self, layer: FeedbackLayer) -> None:
        self._guide.start(layer)

    def refresh(self, layer: FeedbackLayer) -> None:
        self._guide.refresh(layer)

    def teach(self, passes: Passes) -> Tensor:
        loss = passes.first()
        n = passes.samples(loss)
        if not n:
            raise ValueError(
                "soap: the closure returned one number; return the loss of each sample (reduction='none'), since the step "
                "and the curvature are in units of one sample's loss"
            )
        before = self._guided(passes, loss, [site.edge for site in passes.sites])
        moved = self._moved(passes, before)
        with passes.computed_once():
            after = self._guided(passes, *moved)
        for site, g_0, g_1 in zip(passes.sites, before, after, strict=True):
            if g_0 is not None and g_1 is not None:
                site.delta = (self.newton(g_0, g_1, passes.runs) / n).to(site.dtype)
        objective = passes.objective(loss)
        passes.land(objective)
        return objective.detach()

    def newton(self, g_0: Tensor, g_1: Tensor, runs: int | None = None) -> Tensor:
        """n, unit by unit, from the gradients before and after the move; float32 at least. ``runs``: how many runs these lead
        with."""
        wide = torch.promote_types(g_0.dtype, torch.float32)
        resolution = 16 * torch.finfo(g_0.dtype).eps / self.step
        g_0, g_1 = g_0.to(wide), g_1.to(wide)
        if self.form == "plain":
            return self.step * g_0.square() / (g_0 - g_1 + self.bias)
        curvature = (g_0 - g_1) / (self.step * g_0)
        n = torch.where(curvature > resolution, g_0 / (curvature + self.damping), g_0)
        return n if self.form == "safeguarded" else _resized(g_0, n, runs)

    def _moved(self, passes: Passes, before: list[Tensor | None]) -> tuple[Tensor, list[Any]]:
        """The loss after the move, and the places of the moved outputs in its graph."""
        moves = {site: g for site, g in zip(passes.sites, before, strict=True)}
        places: list[Any] = []

        def move(site: Site, z: Tensor) -> Tensor:
            g = moves[site]
            moved = z.clone() if g is None else z - self.step * g
            places.append(torch.autograd.graph.get_gradient_edge(moved))
            return moved

        return passes.again(move, graph=True), places

    @staticmethod
    def _guided(passes: Passes, loss: Tensor, places: list[Any]) -> list[Tensor | None]:
        """The gradients of the samples' losses at ``places`` as the guide sends them."""
        if not places:
            return []
        with passes.credit.unheard():
            found = torch.autograd.grad(loss.sum(), places, retain_graph=True, allow_unused=True)
        return list(found)


def _resized(g: Tensor, n: Tensor, runs: int | None) -> Tensor:
    """g at the norm of n, in each run; nothing gives a zero vector a size."""
    length, size = (beside(each_run(x, runs).norm(dim=1), g) for x in (g, n))
    return torch.where(length == 0, g, g * (size / length))


def _check(name: str, value: Any, lowest: float, included: bool) -> None:
    if not is_number(value) or value < lowest or (value == lowest and not included):
        bound = (
            "a number"
            if lowest == -math.inf
            else f"a number {'of at least' if included else 'above'} {lowest:g}"
        )
        raise ValueError(f"soap: {name} is {value!r}, expected {bound}")
