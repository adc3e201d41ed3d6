"""What is done to a run's gradients on purpose, as a part of its spec: what controls change to see what an effect hangs on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from alignlab.training.fields import SpecModel


class Graft(SpecModel):
    """Whose direction and whose step size each layer's update takes: the learning rule's or backprop's, on the same state.

    ``scope``: whether every layer gets its own size, or the whole network one factor, which leaves layers their proportions.
    """

    direction: Literal["rule", "bp"]
    magnitude: Literal["rule", "bp"]
    scope: Literal["layer", "global"] = "layer"


class StepSizes(SpecModel):
    """How long the steps of each layer's weight are, whatever its gradient's length: ‖ΔW‖, or ``relative`` ‖ΔW‖/‖W‖.

    ``sizes``: one for all layers, or a table {layer name: [sizes at the ``steps``]}, in straight lines between these and
    constant before and after. Layers that a table leaves out step as they do. A layer's other parameters take the factor of
    its weight, and a zero gradient stays zero; where the size is 0 as well, that factor is 1: what a run's own sizes leave.
    """

    _truths: ClassVar[tuple[str, ...]] = ("relative",)

    sizes: float | dict[str, list[float]]
    steps: list[int] = Field(default_factory=lambda: [0], min_length=1)
    relative: bool = Field(default=False, strict=True)

    @field_validator("sizes", mode="wrap")
    @classmethod
    def _one_or_a_table(cls, sizes: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(sizes)
        except ValidationError:
            raise ValueError(
                'expected a number, or a table {"layer name": [numbers]} with the names in quotes'
            ) from None

    @field_validator("sizes")
    @classmethod
    def _sizes_are_lengths(cls, sizes: Any) -> Any:
        for row in sizes.values() if isinstance(sizes, Mapping) else [[sizes]]:
            if not all(0 <= size < math.inf for size in row):
                raise ValueError("expected finite numbers of at least 0")
        return sizes

    @field_validator("steps")
    @classmethod
    def _steps_rise(cls, steps: Sequence[int]) -> Sequence[int]:
        if list(steps) != sorted(set(steps)) or steps[0] < 0:
            raise ValueError("expected different whole numbers of at least 0 in rising order")
        return steps

    @model_validator(mode="after")
    def _every_row_is_whole(self) -> StepSizes:
        for name, row in self.sizes.items() if isinstance(self.sizes, Mapping) else ():
            if len(row) != len(self.steps):
                raise ValueError(f"sizes of {name!r} has {len(row)} entries for {len(self.steps)} steps")
        if not isinstance(self.sizes, Mapping) and len(self.steps) > 1:
            raise ValueError("steps belong to a table of sizes, and there is one number")
        return self
