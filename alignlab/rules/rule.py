"""What a learning rule is: how a layer's feedback starts and how it changes as the weights do.

A rule is small, immutable and shared by all layers of a model; everything that changes lives in the layers (the buffers
``feedback``, ``feedback_magnitude`` and ``feedback_unscaled``, and a clock), so that ``state_dict`` carries it. To write
one, subclass :class:`Rule` in a file of its own and add it to ``RULES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from alignlab.rules.initialisation import Init, resolve_init
from alignlab.rules.outlet import Handout, session_handout

if TYPE_CHECKING:
    from torch.autograd.graph import GradientEdge

    from alignlab.rules.credit import Call, Credit
    from alignlab.rules.layers import FeedbackLayer
    from alignlab.rules.passes import Passes


class Rule:
    """Base of all rules.

    ``init`` names the distribution of B (see :mod:`alignlab.rules.initialisation`) or draws it.
    ``uses_feedback``: whether layers carry a B at all. ``every_forward``: whether the clock ticks at each
    differentiable forward pass instead of each change of the weights. ``direct``: whether the error travels straight
    to the layers. ``learns_feedback``: whether B is a parameter, for the optimizer to step, and not a buffer. ``rests``:
    whether B stays as it is where nothing below the layer learns, and is brought up to date when an error is to pass it.

    ``closure``: whether it compares several forward passes, and so needs :func:`alignlab.rules.backward`; :meth:`teach` is
    then what it does. ``explicit``: whether its weight gradients are no ``deltaᵀ h`` but handed to the parameters at the
    model's output, by :meth:`handout`. ``hands_down``: whether layers pass errors to those below. ``perturbs_norms``: whether
    it acts at the outputs of normalisations and the like as at those of converted layers. ``stacks``: whether it acts on
    layers of several runs (:mod:`alignlab.rules.stacked`), run by run, as on those of one: what draws numbers or sums over a
    batch or a weight must look for them (:mod:`alignlab.rules.runs`). A rule from outside the package does only where its own
    class says so; the runs of others are trained one by one. ``each_its_own``: whether these runs may have settings of their
    own; :meth:`together` then makes one rule of theirs.
    """

    name: ClassVar[str]
    uses_feedback: ClassVar[bool] = True
    every_forward: ClassVar[bool] = False
    direct: ClassVar[bool] = False
    learns_feedback: ClassVar[bool] = False
    rests: ClassVar[bool] = False
    closure: ClassVar[bool] = False
    explicit: ClassVar[bool] = False
    hands_down: ClassVar[bool] = True
    perturbs_norms: ClassVar[bool] = False
    stacks: ClassVar[bool] = True
    each_its_own: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "stacks" not in vars(cls) and cls.__module__.partition(".")[0] != "alignlab":
            cls.stacks = False  # a norm over W would be one over all runs, and nothing would tell

    def __init__(self, init: str | Init = "kaiming") -> None:
        resolve_init(init)  # an unknown name fails here, before anything was touched
        self.init = init

    def start(self, layer: FeedbackLayer) -> None:
        """Give a newly converted layer its first feedback."""
        layer.feedback = layer.drawn(self.init, layer.feedback_seed)

    def refresh(self, layer: FeedbackLayer) -> None:
        """Bring the feedback up to date. Called at the first differentiable forward pass (clock 0) and once per tick, in a
        resumed run too: what a checkpoint brings back is not refreshed again.

        Must depend on the weights, the buffers, ``layer.clock`` and ``layer.feedback_seed`` alone: that is what makes a
        resumed run continue bit for bit.
        """

    def taught_weight(self, layer: FeedbackLayer, x: Tensor) -> Tensor:
        """The weight as the layer uses it on ``x`` in a differentiable pass: where a rule may meet W's gradient."""
        return layer.weight

    def deliver(self, call: Call, error: Tensor) -> Tensor:
        """For direct rules: the signal at the point where ``call``'s output next meets a converted layer."""
        raise NotImplementedError(f"{self.name} is not a direct rule")

    def teach(self, passes: Passes) -> Tensor:
        """For rules with a closure: fill ``.grad`` and return the objective without noise, detached."""
        raise NotImplementedError(f"{self.name} needs no closure")

    def handout(
        self,
        model: nn.Module,
        credit: Credit,
        edges: list[GradientEdge],
        learning: dict[str, nn.Parameter],
    ) -> Handout:
        """For ``closure`` and ``explicit`` rules, at the end of a pass: what will happen to the errors at the ``edges`` of
        the model's outputs, and which gradients the parameters in ``learning`` will get."""
        return session_handout(self, credit, learning)

    def fits(self, names: Sequence[str]) -> None:
        """Raise ``ValueError`` where the rule's arguments do not fit layers of these names; before anything changes."""

    def together(self, members: Sequence[Rule]) -> Rule:
        """The rule of a layer of several runs, whose own rules are ``members``, this the first of them."""
        return self

    def narrow(self, rows: Sequence[int]) -> None:
        """For a rule of several runs, which goes on with these ``rows`` of them alone."""

    @property
    def whole(self) -> bool:
        """Whether it takes hold of the model at its output, so that layers must run as parts of their model."""
        return self.closure or self.explicit

    @property
    def has_clock(self) -> bool:
        """Whether the feedback follows the clock."""
        return type(self).refresh is not Rule.refresh

    @property
    def draws(self) -> bool:
        """Whether ``init`` has a part in the feedback."""
        return self.uses_feedback

    @property
    def made_of(self) -> tuple[Rule, ...]:
        """The rule, and another whose feedback it uses."""
        return (self,)

    def settings(self) -> dict[str, Any]:
        """The arguments that make this rule again, for attrs and messages."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.settings().items())})"
