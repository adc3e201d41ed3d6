"""Claim: what is asserted, frozen and hashed before anything runs.

A claim names two arms, the task, the outcome with its direction, the smallest effect that would matter, and everything that
an honest test of it fixes in advance: seeds, tuning space, controls, alpha. The hash goes into every result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from alignlab.checks import did_you_mean
from alignlab.measures.quantities import sense
from alignlab.training.errors import SpecError
from alignlab.training.fields import without_numpy
from alignlab.training.spec import RunSpec, SpecModel, checked, parse, read_yaml

OUTCOMES = tuple(
    f"{split}_{metric}" for split in ("train", "validation", "test") for metric in ("loss", "accuracy")
)
MOST_SEEDS = 10**6
CONTROLS = ("magnitude", "tuning", "placebo")  # of a claim that names none


class Arm(SpecModel):
    """One side of a comparison: a rule with its arguments, and its learning rate where it has one of its own."""

    rule: str
    rule_args: dict[str, Any] = Field(default_factory=dict)
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    name: str = ""

    @property
    def label(self) -> str:
        """What to call the arm in tables and figures."""
        return self.name or self.rule


class Claim(SpecModel):
    """``treatment`` beats ``baseline`` on ``outcome``.

    ``direction``: whether lower or higher outcomes are better. ``smallest_effect``: the difference in units of the outcome
    below which nobody would care (m). ``setup``: fields of :class:`RunSpec` that both arms share (``lr``, ``steps``,
    ``hidden``, …). ``seeds``: the paired runs. ``learning_rates``: the tuning grid of both arms, beside their own rates, three
    or more in rising order; ``tuning_seeds``: how many seeds, apart from ``seeds``, choose from it; ``tuning_studies``: how
    often they do so anew, each time on seeds of their own and for an equal part of ``seeds`` (:mod:`alignlab.audit.studies`).
    ``controls``: the rival explanations to intervene on, the primary one first. ``alpha``: the two-sided level of the
    intervals, below ½. ``source``: who claims it. Raises :class:`SpecError`, one line that names every field at fault.
    """

    statement: str
    treatment: Arm
    baseline: Arm
    task: str
    outcome: str = "train_loss"
    direction: Literal["lower", "higher"] = "lower"
    smallest_effect: float = Field(gt=0, allow_inf_nan=False)
    seeds: Sequence[int] = tuple(range(10))
    setup: dict[str, Any] = Field(default_factory=dict)
    learning_rates: tuple[float, ...] = (0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0)
    tuning_seeds: int = Field(default=3, ge=1)
    tuning_studies: int = Field(default=1, ge=1)
    controls: tuple[str, ...] = CONTROLS
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    source: str = ""

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds_from_any_sequence(cls, seeds: Any) -> Any:
        seeds = without_numpy(seeds)
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            if seeds > MOST_SEEDS:
                raise ValueError(f"expected at most {MOST_SEEDS}, or a list of seeds")
            return tuple(range(seeds))
        return tuple(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str | bytes) else seeds

    @field_validator("seeds")
    @classmethod
    def _seeds_are_seeds(cls, seeds: Sequence[int]) -> Sequence[int]:
        if len(set(seeds)) < len(seeds) or len(seeds) < 2:
            raise ValueError("expected at least two, all different")
        if not all(0 <= seed < 2**63 for seed in seeds):
            raise ValueError("every seed must be at least 0 and below 2^63")
        return seeds

    @field_validator("outcome")
    @classmethod
    def _outcome_is_known(cls, outcome: str) -> str:
        if outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome: known are {', '.join(OUTCOMES)}")
        return outcome

    @field_validator("controls")
    @classmethod
    def _controls_are_known(cls, controls: tuple[str, ...]) -> tuple[str, ...]:
        from alignlab.audit.controls import ALL  # which is made of what stands here

        for name in controls:
            if name not in ALL:
                hint = did_you_mean(name, ALL, n=1)
                raise ValueError(
                    f"there is no {name!r}, {hint}expected different ones out of {', '.join(ALL)}"
                )
            if controls.count(name) > 1:
                raise ValueError(f"{name!r} stands there {controls.count(name)} times")
        return controls

    @field_validator("learning_rates")
    @classmethod
    def _grid_is_a_grid(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if (
            len(rates) < 3
            or any(not 0 < rate < float("inf") for rate in rates)
            or list(rates) != sorted(set(rates))
        ):
            raise ValueError("expected at least three different learning rates > 0 in rising order")
        return rates

    @model_validator(mode="after")
    def _is_testable(self) -> Claim:
        if {"task", "rule", "rule_args", "seed", "graft", "order", "splits"} & set(self.setup):
            raise ValueError("setup: task, rule, seed, graft, order and splits are set by the claim itself")
        better = "lower" if sense(self.outcome) < 0 else "higher"
        if self.direction != better:
            raise ValueError(f"direction is {self.direction!r}, but for {self.outcome} {better} is better")
        if self.treatment.label == self.baseline.label:
            raise ValueError(f"both arms are called {self.treatment.label!r}: give one a name of its own")
        self.check_studies()
        self.spec(self.treatment, self.seeds[0])
        self.spec(self.baseline, self.seeds[0])
        return self

    def changed(self, **fields: Any) -> Claim:
        """A copy with some fields changed, checked again."""
        claim: Claim = checked(type(self), {**self.model_dump(), **fields}, "claim")
        return claim

    def check_studies(self) -> None:
        """Refuse a number of studies among which the seeds cannot be split evenly."""
        n, studies = len(self.seeds), self.tuning_studies
        if n % studies:
            fit = ", ".join(str(r) for r in range(1, n + 1) if n % r == 0)
            raise SpecError(
                f"tuning_studies is {studies}, among which {n} seeds cannot be split evenly: take {_multiples(n, studies)} "
                f"seeds, or as many studies as one of {fit:.80}"
            )

    def spec(self, arm: Arm, seed: int, **changes: Any) -> RunSpec:
        """The run of an arm with a seed; ``changes`` override its fields."""
        lr = {} if arm.lr is None else {"lr": arm.lr}
        fields = {**self.setup, "task": self.task, "rule": arm.rule, "rule_args": arm.rule_args, **lr}
        return parse({**fields, "seed": seed, **changes}, where=f"arm {arm.label!r}")

    @property
    def sign(self) -> int:
        """+1 where higher outcomes are better, −1 where lower ones are."""
        return 1 if self.direction == "higher" else -1

    @property
    def continuous(self) -> bool:
        """Whether outcomes are no counts, so that different runs hardly end alike: those of a loss."""
        return self.outcome.endswith("_loss")

    def hashed(self) -> dict[str, Any]:
        """All fields; of a single study as before there could be several, so that its store is found again."""
        fields = self.model_dump(mode="json")
        if self.tuning_studies == 1:
            del fields["tuning_studies"]
        return fields

    def digest(self) -> str:
        """A hash of the claim: the first 16 digits of the sha256 of :meth:`hashed` as JSON with sorted keys."""
        text = json.dumps(self.hashed(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return int(self.digest(), 16)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Claim:
        """A claim from a YAML file. Unknown keys are refused."""
        claim: Claim = checked(cls, read_yaml(Path(path)), str(path))
        return claim


def _multiples(n: int, of: int) -> str:
    """Those next to n."""
    below = n // of * of
    return f"{below} or {below + of}" if below else str(of)
