"""The list of rules by name. A new rule is a file of its own and a line here."""

from __future__ import annotations

from alignlab.rules.backprop import Backprop
from alignlab.rules.direct import DirectFeedbackAlignment
from alignlab.rules.drtp import DirectRandomTargetProjection
from alignlab.rules.indirect import IndirectFeedbackAlignment
from alignlab.rules.kolen_pollack import KolenPollack
from alignlab.rules.node_perturbation import NodePerturbation
from alignlab.rules.noisy_backprop import NoisyBackprop
from alignlab.rules.random_feedback import FeedbackAlignment, Rerandomised
from alignlab.rules.rescaled import Rescaled
from alignlab.rules.rule import Rule
from alignlab.rules.sign_feedback import BatchRandomSign, FixedRandomSign, SignSync, UniformSign
from alignlab.rules.soap import SecondOrderActivityPerturbation
from alignlab.rules.weight_mirror import WeightMirror
from alignlab.rules.weight_perturbation import WeightPerturbation

RULES: dict[str, type[Rule]] = {
    made.name: made
    for made in (
        Backprop,
        FeedbackAlignment,
        DirectFeedbackAlignment,
        IndirectFeedbackAlignment,
        DirectRandomTargetProjection,
        UniformSign,
        BatchRandomSign,
        FixedRandomSign,
        SignSync,
        Rerandomised,
        KolenPollack,
        WeightMirror,
        NodePerturbation,
        WeightPerturbation,
        SecondOrderActivityPerturbation,
        NoisyBackprop,
        Rescaled,
    )
}
