"""Learning rules: how error travels back. :func:`convert` a model, train it as before, :func:`revert` it."""

from alignlab.rules.backward import backward
from alignlab.rules.choosing import make_rule, make_rules
from alignlab.rules.conversion import convert, revert
from alignlab.rules.convertible import feedback_layers
from alignlab.rules.convolution import (
    FeedbackConv1d,
    FeedbackConv2d,
    FeedbackConv3d,
    FeedbackConvTranspose2d,
)
from alignlab.rules.initialisation import INITS
from alignlab.rules.layers import FeedbackLayer
from alignlab.rules.linear import FeedbackLinear
from alignlab.rules.local import FeedbackLocallyConnected2d, LocallyConnected2d
from alignlab.rules.registry import RULES
from alignlab.rules.rule import Rule

__all__ = [
    "INITS",
    "RULES",
    "FeedbackConv1d",
    "FeedbackConv2d",
    "FeedbackConv3d",
    "FeedbackConvTranspose2d",
    "FeedbackLayer",
    "FeedbackLinear",
    "FeedbackLocallyConnected2d",
    "LocallyConnected2d",
    "Rule",
    "backward",
    "convert",
    "feedback_layers",
    "make_rule",
    "make_rules",
    "revert",
]
