"""What became of each run, as tables seed × arm that paired statistics can take: final values, and steps to a level.

An outcome is a variable with one value a step; of one that has a value for each layer, ``layer`` says which layer's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alignlab.measures.quantities import sense
from alignlab.store.shaping import on_runs

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = [
    "around",
    "as_stored",
    "best_step",
    "by",
    "final",
    "last_steps",
    "layers_with",
    "lost",
    "of_arms",
    "sense",
    "steps_to",
    "with_errors",
]


def of_arms(runs: xr.Dataset, *arms: str) -> xr.Dataset:
    """The runs of these arms. Raises ``ValueError`` for an arm that has none."""
    runs = on_runs(runs)
    known = runs["arm"].values
    if missing := [arm for arm in arms if arm not in known]:
        raise ValueError(f"no arm {missing[0]!r} in these runs: there are {', '.join(dict.fromkeys(known))}")
    return runs.isel(run=np.isin(known, arms))


def layers_with(runs: xr.Dataset, name: str) -> list[str]:
    """The layers that have a value of ``name``, from the input on."""
    there = runs[name].notnull().any([dim for dim in runs[name].dims if dim != "layer"])
    return [str(layer) for layer in runs["layer"].values[there.values]]


def by(runs: xr.Dataset, name: str) -> dict[Any, xr.Dataset]:
    """The runs of each level of the coordinate ``name``, by that level, in the dataset's order."""
    runs = on_runs(runs)
    levels = runs[name].values
    return {level: runs.isel(run=levels == level) for level in dict.fromkeys(levels.tolist())}


def with_errors(runs: xr.Dataset) -> xr.Dataset:
    """The runs with an error in percent beside each accuracy: ``test_error`` = 100 (1 − ``test_accuracy``), and so on.

    Where there are both, ``error_gap`` = ``test_error`` − ``train_error``, in percentage points.
    """
    accuracies = [str(name) for name in runs.data_vars if str(name).endswith("_accuracy")]
    errors = {name.removesuffix("accuracy") + "error": _error(runs[name]) for name in accuracies}
    if {"test_error", "train_error"} <= set(errors):
        errors["error_gap"] = errors["test_error"] - errors["train_error"]
    return runs.assign(errors)


def _error(accuracy: xr.DataArray) -> xr.DataArray:
    """In percent: 10 beside an accuracy of 0.9, where float32 would say 10.000002."""
    if accuracy.dtype.kind != "f":
        return 100 * (1 - accuracy)
    return (100 - 100 * accuracy.astype(str).astype(np.float64)).astype(accuracy.dtype)


def final(runs: xr.Dataset, outcome: str, *, layer: str | None = None) -> pd.DataFrame:
    """The last value of ``outcome`` (dims run, step) of each run. A diverged run counts as untrained: its first value.

    Rows are seeds, columns arms in the dataset's order; float32 is read as the decimal fraction that it stands for, 0.9012, so
    that equal differences are equal. Raises ``ValueError`` where an arm has a seed twice.
    """
    rows, dtype = _rows(runs, outcome, layer), runs[outcome].dtype
    written = dtype.type if dtype.kind == "f" else np.float64
    return _by_seed(runs, [float(str(written(row[0] if diverged else row[-1]))) for _, row, diverged in rows])


def lost(runs: xr.Dataset, outcome: str) -> NDArray[np.bool_]:
    """Whether each run, (run,), ended no better than it began, or diverged. Arms may have a seed at several rates."""
    sign = sense(outcome)
    return np.array(
        [diverged or not sign * row[-1] > sign * row[0] for _, row, diverged in _rows(runs, outcome)]
    )


def last_steps(runs: xr.Dataset, outcome: str) -> NDArray[np.float64]:
    """The last step at which ``outcome`` was evaluated in each run, (run,)."""
    return np.array([steps[-1] for steps, *_ in _rows(runs, outcome)], np.float64)


def steps_to(
    runs: xr.Dataset,
    outcome: str,
    level: float,
    *,
    layer: str | None = None,
    lasting: bool = False,
    interpolated: bool = False,
) -> pd.DataFrame:
    """The first evaluated step at which each run has reached ``level``, infinite where none has; seed × arm.

    A loss, an error or an angle reaches a level from above, anything else from below. ``lasting``: the first step from which
    on it holds until the end, which a run that diverged never reached. The truth lies up to one interval between evaluations
    earlier; ``interpolated``: where the straight line from the evaluation before crosses the level (of a positive loss's
    logarithm).
    """
    sign, found, rows = sense(outcome), [], _rows(runs, outcome, layer)
    level = as_stored(level, runs[outcome])
    for steps, row, diverged in rows:
        held = sign * row >= sign * level
        if lasting:
            held = np.logical_and.accumulate(held[::-1])[::-1] & (not diverged)
        at = int(held.argmax())
        arrived = float(steps[at]) if held.any() else np.inf
        if interpolated and at > 0:
            log = outcome.endswith("loss") and min(level, *row[at - 1 : at + 1]) > 0
            arrived = _crossing(steps[at - 1 : at + 1], row[at - 1 : at + 1], level, log)
        found.append(arrived)
    return _by_seed(runs, found)


def as_stored(level: float, values: xr.DataArray) -> float:
    """The level as the type of the ``values`` holds it: an accuracy of 0.9 is 0.89999998 in float32, and has reached 0.9.

    >>> import xarray as xr
    >>> as_stored(0.9, xr.DataArray(np.float32([0.5]))), as_stored(0.9, xr.DataArray([0, 1]))
    (0.8999999761581421, 0.9)
    """
    return float(values.dtype.type(level)) if values.dtype.kind == "f" else float(level)


def _crossing(steps: NDArray[Any], values: NDArray[Any], level: float, log: bool) -> float:
    """Where the line through two evaluations, of which the second has reached the level, crosses it."""
    before, after, at = np.log([*values, level]) if log else (*values, level)
    with np.errstate(invalid="ignore"):  # no line leads from an infinite loss
        way = (before - at) / (before - after)
    return float(steps[0] + way * (steps[1] - steps[0])) if math.isfinite(way) else float(steps[1])


def best_step(runs: xr.Dataset, outcome: str) -> pd.DataFrame:
    """The step at which each run's ``outcome`` is best, the first of several; seed × arm.

    A loss, an error or an angle is best where it is lowest.
    """
    sign = sense(outcome)
    return _by_seed(runs, [float(steps[(sign * row).argmax()]) for steps, row, _ in _rows(runs, outcome)])


def around(
    runs: xr.Dataset, name: str, step: float, *, layer: str | None = None, over: int = 1
) -> pd.DataFrame:
    """The mean of the ``over`` recorded values of ``name`` that are nearest to ``step`` in log(1 + step); seed × arm.

    A run that was not recorded there gives its nearest values all the same.
    """
    found = []
    for steps, row, _ in _rows(runs, name, layer):
        nearest = np.abs(np.log1p(steps) - np.log1p(step)).argsort(kind="stable")[:over]
        found.append(float(row[nearest].mean()))
    return _by_seed(runs, found)


def _rows(
    runs: xr.Dataset, outcome: str, layer: str | None = None
) -> list[tuple[NDArray[Any], NDArray[Any], bool]]:
    """Of each run its evaluated steps, the values there, and whether it diverged."""
    runs = on_runs(runs if layer is None else runs.sel(layer=layer))
    if outcome not in runs or set(runs[outcome].dims) != {"run", "step"}:
        held = ", ".join(str(name) for name in runs.data_vars if set(runs[name].dims) == {"run", "step"})
        raise ValueError(
            f"no outcome {outcome!r} with a value a step in these runs: there are {held or 'none'}"
        )
    steps, table = runs["step"].values, runs[outcome].transpose("run", "step").values.astype(np.float64)
    diverged = runs["status"].values == "diverged"
    kept = [~np.isnan(row) for row in table]
    bare = [str(runs["run_id"].values[i]) for i, own in enumerate(kept) if not own.any()]
    if bare:
        raise ValueError(f"{outcome} was never evaluated in {len(bare)} of these runs ({bare[0]}, …)")
    return [(steps[own], row[own], bool(d)) for own, row, d in zip(kept, table, diverged, strict=True)]


def _by_seed(runs: xr.Dataset, values: list[float]) -> pd.DataFrame:
    import pandas as pd

    runs = on_runs(runs)
    if missing := [name for name in ("arm", "seed") if name not in runs.coords]:
        raise ValueError(
            f"these runs have no {missing[0]!r}: give each one, runs.assign_coords({missing[0]}=('run', [...]))"
        )
    arms, seeds = runs["arm"].values.tolist(), runs["seed"].values.tolist()
    keys = list(zip(arms, seeds, strict=True))
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twice is not None:
        raise ValueError(
            f"arm {twice[0]!r} has several runs of seed {twice[1]}: give each condition an arm of its own"
        )
    table = pd.DataFrame(
        index=pd.Index(sorted(set(seeds)), name="seed"), columns=list(dict.fromkeys(arms)), dtype=float
    )
    for (arm, seed), value in zip(keys, values, strict=True):
        table.loc[seed, arm] = value
    return table
