"""Did the hidden layers need to learn at all? The readout alone, on hidden layers that stay as they were drawn.

What two rules for hidden layers differ in can only be seen where learning in these layers gains something. Features of random
layers with a trained readout do well on many small tasks; an arm that does no better shows nothing about its rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from alignlab.audit.bench import Bench
from alignlab.audit.claim import Arm, Claim
from alignlab.audit.controls.control import Contrast, Control, Finding
from alignlab.audit.controls.recorded import table
from alignlab.audit.evidence import Check
from alignlab.audit.search import Grid, Search, check_seeds
from alignlab.audit.statistics import paired
from alignlab.rules.choosing import make_rules
from alignlab.training import models, tasks
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec

READOUT = "readout alone"
TUNED = f"{READOUT}, at its best rate"


class FrozenHidden(Control):
    """Each arm, as claimed, against the readout alone: the same network, seeds, batches and steps, in which the last layer with
    weights learns by backprop and all below it keeps the weights that it was drawn with.

    One readout alone serves both arms: its gradient is the true one under backprop and all layerwise and direct rules, so that
    with frozen hidden layers both arms are one run. It is trained at the baseline's learning rate, and at its own best, since
    random features want larger rates than a whole network. That rate is chosen once, as in :class:`Tuning`, from the claim's
    ``learning_rates`` by ``tuning_seeds`` on the validation split. The arms keep their rates.

    Contrasts are arm − readout alone, in units of the outcome, > 0 where the arm is better. Where an arm's interval (at the
    claim's alpha, uncorrected) is not wholly above m, the smallest effect, a caveat says so. At one rate for both such an arm
    gained nothing by its hidden layers; beside the readout's best rate it may have, but reached no more than can be had
    without. An arm that is better shows that its hidden layers learned, not by what: features that merely grow help, too.

    There is no N and no S, and so no part in the verdict's rules 3 to 7: the treatment "without" learning hidden layers is
    below the baseline wherever these matter, and the same run as the baseline without them; either would "explain" every
    claim, true or not.

    The manipulation check fails where a hidden layer took a step, or the readout none, in the recorded runs. Raises
    :class:`SpecError` for networks without hidden layers or with hidden weights of 0, where these or the readout are frozen by
    the claim already, and for rules under which the readout's gradient is not the true one (perturbation rules, ``soap``,
    ``noisy_backprop``). After Rahimi & Recht 2008, random features with a trained readout.
    """

    name = "frozen_hidden"
    explains = False

    def check(self, claim: Claim) -> None:
        """There are hidden layers that learn, below a readout that learns by its true gradient."""
        for arm in (claim.treatment, claim.baseline):
            _check_arm(arm)
        check_seeds(claim, "learning rates")
        frozen_hidden(claim)

    def foreseen(self, bench: Bench) -> list[RunSpec]:
        """The readout alone at the baseline's rate and on the grid; which rate is then taken, the grid will say."""
        own = _ReadoutAlone(bench)
        return [*own.specs(own.rate), *(spec for specs in own.search.missing().values() for spec in specs)]

    def apply(self, bench: Bench, treatment: Any, baseline: Any) -> Finding:
        claim, own = bench.claim, _ReadoutAlone(bench)
        own.search.run()
        best = own.search.best
        assert best is not None
        rates = {READOUT: own.rate} | ({TUNED: best} if best != own.rate else {})
        arms = {claim.treatment.label: treatment, claim.baseline.label: baseline}
        found, specs = Finding(), list[RunSpec]()
        for group, rate in rates.items():
            alone = bench.outcomes_of(group, own.arm, own.specs(rate))
            specs += bench.groups[group].specs
            found.curves[group] = group
            differences = {label: tuple(outcome - alone) for label, outcome in arms.items()}
            for label, values in differences.items():
                found.contrasts.append(Contrast(f"{label} − {READOUT}", group, values, compares=False))
            at = f"lr {rate:g}{', the best for it' * (rate == best)}"
            found.caveats += _caveat(at, differences, claim, continuous=bench.continuous)
        found.caveats += own.edge_caveat()
        found.checks.append(own.manipulation_check(specs))
        found.details = {READOUT: own.search.summary() | {"frozen": list(own.frozen)}}
        return found


def _check_arm(arm: Arm) -> None:
    if arm.label.startswith(READOUT):
        raise SpecError(
            f"control 'frozen_hidden' has runs of its own called {READOUT!r}: rename the arm {arm.label!r}"
        )
    rules = make_rules(arm.rule, **arm.rule_args).values()
    if other := next((rule.name for rule in rules if rule.closure or rule.explicit), None):
        raise SpecError(
            f"control 'frozen_hidden' compares with a readout that learns by its true gradient; under {other!r} (arm "
            f"{arm.label!r}) it does not, so that a difference would not be one of hidden layers. Leave the control out"
        )


def frozen_hidden(claim: Claim) -> tuple[str, ...]:
    """The field ``frozen`` of the readout alone: the claim's own patterns, and one for each hidden layer that learns.

    The readout is the last module with weights of its own in the model that the claim's runs have.
    """
    spec = claim.spec(claim.baseline, claim.seeds[0])
    model = models.build(spec, tasks.load(spec.task))
    layers = {name: m for name, m in model.named_modules() if [*m.parameters(recurse=False)]}
    *hidden, readout = layers
    if not hidden:
        raise SpecError(
            f"control 'frozen_hidden' needs hidden layers: the {spec.model} with hidden {list(spec.hidden)} is a readout "
            "alone. Give setup some, or leave the control out"
        )
    if not layers[readout].get_parameter("weight").requires_grad:
        raise SpecError(
            f"control 'frozen_hidden' trains the readout alone, but frozen is {list(spec.frozen)}, which holds its weight "
            f"({readout}.weight). Let it learn, or leave the control out"
        )
    learning = [name for name in hidden if any(p.requires_grad for p in layers[name].parameters())]
    if not learning:
        raise SpecError(
            f"control 'frozen_hidden' has nothing to freeze: frozen is {list(spec.frozen)}, so that both arms are the "
            "readout alone. Let hidden layers learn, or leave the control out"
        )
    if silent := [name for name in hidden if not layers[name].get_parameter("weight").any()]:
        raise SpecError(
            f"control 'frozen_hidden' needs hidden layers that pass something on: those of layer {silent[0]!r} are all 0 "
            f"(weight_init {spec.weight_init!r}, weight_scale {spec.weight_scale:g}). Draw others, or leave the control out"
        )
    return (*spec.frozen, *(f"{name}.*" for name in learning))


class _ReadoutAlone:
    """The runs of the readout alone, and the search for the rate that suits it."""

    def __init__(self, bench: Bench) -> None:
        claim = bench.claim
        self.bench, self.frozen = bench, frozen_hidden(claim)
        self.rate = claim.spec(claim.baseline, claim.seeds[0]).lr
        self.arm = Arm(rule="bp", lr=self.rate, name=READOUT)
        also = {"frozen": self.frozen}
        self.search = Search(
            bench, self.arm, Grid("lr", claim.learning_rates, "learning rate", "lr", also=also)
        )

    def specs(self, rate: float) -> list[RunSpec]:
        """The runs on the claim's seeds."""
        return self.bench.specs(self.arm, **self.search.grid.at(rate))

    def edge_caveat(self) -> list[str]:
        if self.search.inside:
            return []
        return [
            f"the best learning rate of the {READOUT}, {self.search.best:g}, lies on the edge of the grid that was tried: it "
            "may do better, and the arms less well beside it, than was seen"
        ]

    def manipulation_check(self, specs: list[RunSpec]) -> Check:
        """Whether the last layer alone took steps, in the runs together, as recorded from the weights themselves; a layer that
        cannot learn has none."""
        name, moved, layers = "manipulation: frozen_hidden", set[str](), list[str]()
        for spec in specs:
            run = self.bench.dataset(spec)
            if "update_norm" not in run:
                return Check(name, None, "not applicable, no steps are recorded (record_every is 0)")
            layers = [str(layer) for layer in run["layer"].values]
            steps: Any = np.nan_to_num(table(run, "update_norm"))
            moved |= {layer for layer, took in zip(layers, steps.any(0), strict=True) if took}
        shown = ", ".join(layer for layer in layers if layer in moved) or "none"
        detail = f"layers that took steps with the hidden ones frozen: {shown}; the readout is {layers[-1]}"
        return Check(name, moved == {layers[-1]}, detail)


def _caveat(
    rate: str, differences: dict[str, tuple[float, ...]], claim: Claim, *, continuous: bool
) -> list[str]:
    """Which arms are not better than the readout alone by more than m, and what follows."""
    m = claim.smallest_effect
    found = {
        label: paired(values, claim.alpha, continuous=continuous) for label, values in differences.items()
    }
    short = {label: interval for label, interval in found.items() if not interval.low > m}
    if not short:
        return []
    told = [
        f"{label} is {'not' if i.high <= m else 'not shown to be'} better by more than m = {m:g} ({i:+.3g})"
        for label, i in short.items()
    ]
    no_better = [label for label, interval in short.items() if interval.high <= m]
    undecided = [label for label in short if label not in no_better]
    so = []
    if no_better:
        so.append(f"what {' and '.join(no_better)} reached can be had without learning in hidden layers")
    if undecided:
        so.append(f"that what {' and '.join(undecided)} reached needs learning in hidden layers is not shown")
    if len(no_better) == len(found):
        so.append("so that the comparison says little about rules for these")
    return [
        f"against the {READOUT} (hidden layers as they were drawn, {rate}) {', '.join(told)}: {', '.join(so)}"
    ]
