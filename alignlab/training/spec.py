"""RunSpec: everything that determines one training run, frozen, checked, hashable, and readable as YAML.

Two runs with equal specs (and equal code and data) are the same run: the store names them by :meth:`RunSpec.digest`.
Every seed is split into named streams, so that arms which share a seed share their initial weights and batch order while
their feedback is drawn on the side.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from alignlab.checks import did_you_mean
from alignlab.rules.choosing import make_rules
from alignlab.training import tasks
from alignlab.training.errors import SpecError
from alignlab.training.fields import DUMPER, SpecModel, checked, read_yaml
from alignlab.training.interventions import Graft, StepSizes

__all__ = [
    "SPLITS",
    "STREAMS",
    "Graft",
    "RunSpec",
    "SpecError",
    "SpecModel",
    "StepSizes",
    "checked",
    "parse",
    "read_yaml",
]

STREAMS = ("init", "order", "feedback", "noise")
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
MOST = 10**9  # of anything that is counted: more than a machine has room or time for
LOOKS = 10**6
LARGEST = 3.4e38  # float32 ends there, and PyTorch's optimizers raise at a number beyond
ADAMS_LARGEST = 3e37  # it divides the learning rate by 0.1 in its first step


class RunSpec(SpecModel):
    """One training run.

    ``task`` and ``model`` by name: ``mlp``, which ``hidden`` and ``activation`` shape; ``lenet``; ``convnet``, two convolutions
    and two dense layers; or ``untied``, the same with other weights at each place. ``weight_init`` draws the initial weights
    (:data:`alignlab.training.models.WEIGHT_INITS`), ``weight_scale`` multiplies them, biases aside; ``bias`` False leaves
    biases out. ``frozen``: patterns of parameter names that do not learn (``["1.*", "3.*"]``).

    ``rule`` with ``rule_args`` (``init`` among them, by name), or a rule for each of several patterns of layer names, of which
    the first that matches counts (``{"1": "bp", "*": {"rule": "fa", "init": "xavier"}}``). ``loss``: that of the task, or
    ``absolute``, Σ|output − target|, whose derivative is the sign. ``clip``: the largest norm that the gradient of all
    parameters together keeps. ``lr`` falls by its ``lr_schedule`` (:func:`alignlab.training.optimizers.learning_rate`), after
    ``warmup`` steps of rising; ``momentum`` in Nesterov's form where ``nesterov`` is true.

    ``steps`` optimizer steps on batches of ``batch_size``; ``sampling`` by ``epochs`` (every sample once in a new order) or
    with ``replacement`` (every sample drawn from all). ``evaluations`` of the ``splits``, first and last step included, with
    ``spacing`` ``even`` or ``geometric`` (dense at first: for times that are compared as ratios). Probes look every
    ``record_every`` steps (0: none), and at ``record_log`` steps evenly spaced in log(1 + step), eigenvalues at every
    ``spectra_every``-th of them (0: none). ``order`` shifts the stream of batches alone: the same seed on another data order.
    ``graft`` replaces step sizes by another method's, ``step_sizes`` by given ones. Raises :class:`SpecError`, one line
    that names every field at fault.
    """

    _truths: ClassVar[tuple[str, ...]] = ("bias", "nesterov")

    task: str = "mnist_small"
    model: Literal["mlp", "lenet", "convnet", "untied"] = "mlp"
    hidden: tuple[int, ...] = (128, 64)
    activation: Literal["relu", "tanh", "sigmoid", "linear"] = "relu"
    bias: bool = Field(default=True, strict=True)
    weight_init: Literal["pytorch", "gaussian", "lillicrap", "nokland"] = "pytorch"
    weight_scale: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    frozen: tuple[str, ...] = ()
    rule: str | dict[str, Any] = "bp"
    rule_args: dict[str, Any] = Field(default_factory=dict)
    loss: Literal["task", "absolute"] = "task"
    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    lr: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0, le=MOST)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = Field(default=False, strict=True)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=64, ge=1, le=MOST)
    sampling: Literal["epochs", "replacement"] = "epochs"
    steps: int = Field(default=500, ge=1, le=MOST)
    evaluations: int = Field(default=6, ge=2, le=LOOKS)
    splits: tuple[SplitName, ...] = Field(default=SPLITS, min_length=1)
    spacing: Literal["even", "geometric"] = "even"
    record_every: int = Field(default=25, ge=0, le=MOST)
    record_log: int = Field(default=0, ge=0, le=LOOKS)
    spectra_every: int = Field(default=4, ge=0, le=MOST)
    graft: Graft | None = None
    step_sizes: StepSizes | None = None
    order: int = Field(default=0, ge=0, lt=2**63)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("rule", mode="before")
    @classmethod
    def _rule_is_a_name_or_patterns(cls, rule: Any) -> Any:
        if isinstance(rule, str) or (isinstance(rule, dict) and all(isinstance(key, str) for key in rule)):
            return rule
        raise ValueError("expected a rule's name, or patterns of layer names (in quotes) with a rule each")

    @field_validator("rule", "rule_args")
    @classmethod
    def _arguments_are_plain(cls, arguments: Any) -> Any:
        try:
            copied = json.loads(json.dumps(arguments, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a spec is hashed and written down, so its arguments must be plain values ({error}): name an init, or "
                "convert the model yourself"
            ) from None
        return copied

    @field_validator("lr", "weight_decay")
    @classmethod
    def _float32_has_it(cls, value: float) -> float:
        if value > LARGEST:
            raise ValueError(f"expected at most {LARGEST:g}, where float32 ends")
        return value

    @field_validator("hidden")
    @classmethod
    def _widths_are_positive(cls, hidden: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 1 for width in hidden):
            raise ValueError("every hidden layer needs at least one unit")
        if any(width > MOST for width in hidden):
            raise ValueError(f"expected at most {MOST} units")
        return hidden

    @field_validator("splits")
    @classmethod
    def _splits_are_in_order(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in SPLITS if name in splits)  # however they are named, it is one run

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, name: str) -> str:
        if name not in tasks.TASKS:
            hint = did_you_mean(name, tasks.TASKS, told=str)
            raise ValueError(
                f"unknown task: {hint}known are {', '.join(tasks.TASKS)} (one of your own: TASKS[name] = … in a module that is "
                "imported first, by alignlab run and audit with --import; or train(spec, task=…) with any of these)"
            )
        return name

    @model_validator(mode="after")
    def _parts_agree(self) -> RunSpec:
        if "rule" in self.rule_args:
            raise ValueError("rule_args: the rule itself is the field 'rule'")
        made = make_rules(self.rule, **self.rule_args)
        shape = {name: type(self).model_fields[name].default for name in ("hidden", "activation")}
        if self.model != "mlp" and any(getattr(self, name) != value for name, value in shape.items()):
            raise ValueError(f"hidden and activation shape an mlp: leave them out for a {self.model}")
        if self.momentum and self.optimizer == "adam":
            raise ValueError("adam has its own momentum: leave momentum at 0")
        if self.optimizer == "adam" and self.lr > ADAMS_LARGEST:
            raise ValueError(
                f"lr is {self.lr:g}: adam, whose first step is ten times that, takes {ADAMS_LARGEST:g} at most"
            )
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov is a form of sgd's momentum: set optimizer sgd and a momentum above 0")
        if self.graft is not None and {rule.name for rule in made.values()} == {"bp"}:
            raise ValueError("a graft needs a rule to compare with backprop: rule is bp itself")
        if self.graft is not None and self.optimizer != "sgd":
            raise ValueError(
                f"a graft sets the size of gradients, which {self.optimizer} divides out again: use optimizer sgd"
            )
        if self.step_sizes is not None:
            self._takes_plain_steps()
        return self

    def _takes_plain_steps(self) -> None:
        """Raise ``ValueError`` where something else than step_sizes has a say in how long steps are."""
        if self.optimizer != "sgd":
            raise ValueError(
                f"step_sizes sets the size of gradients, which {self.optimizer} divides out: use sgd"
            )
        others = [name for name in ("momentum", "weight_decay", "clip", "graft") if getattr(self, name)]
        if others:
            raise ValueError(f"step_sizes alone sets how long steps are: leave out {' and '.join(others)}")

    @property
    def rule_name(self) -> str:
        """What to call the rule, or the rules, in a line of text."""
        if isinstance(self.rule, str):
            return self.rule
        return ", ".join(f"{pattern}: {made.name}" for pattern, made in make_rules(self.rule).items())

    def freezes(self, parameter: str) -> bool:
        """Whether the parameter of this name does not learn."""
        return any(fnmatchcase(parameter, pattern) for pattern in self.frozen)

    def digest(self) -> str:
        """A hash of all fields: the run's identity.

        Fields that later versions brought are left out at their defaults, so that a run keeps its hash from version to version.
        """
        fields = self.model_dump(mode="json")
        for part, name, default in ((fields, "step_sizes", None), (fields["graft"] or {}, "scope", "layer")):
            if part.get(name) == default:
                part.pop(name, None)
        if isinstance(self.rule, dict):
            fields["rule"] = list(self.rule.items())  # of several patterns the first counts
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunSpec) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def changed(self, **changes: Any) -> RunSpec:
        """A copy with some fields changed, checked again."""
        return parse({**self.model_dump(), **changes})

    def stream(self, name: str) -> int:
        """The seed of one of :data:`STREAMS`."""
        if name not in STREAMS:
            raise ValueError(f"no stream {name!r}: there are {', '.join(STREAMS)}")
        key = [STREAMS.index(name), self.order if name == "order" else 0]
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 2)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The spec as YAML; also written to ``path`` if given."""
        text: str = yaml.dump(self.model_dump(mode="json"), Dumper=DUMPER, sort_keys=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_yaml(cls, source: str | Path) -> RunSpec:
        """A spec from YAML: a file, or a text of keys and values. Unknown keys are refused."""
        return parse(read_yaml(source), where=str(source) if isinstance(source, Path) else "spec")


def parse(fields: dict[str, Any], where: str = "spec") -> RunSpec:
    """A RunSpec from plain fields; every fault in one line of one :class:`SpecError`."""
    spec: RunSpec = checked(RunSpec, fields, where)
    return spec
