"""The data contract of a recorded run, and the check that every dataset passes before it is stored.

A run is an `xarray.Dataset` with dims (step, layer, mode), several runs have the leading dim `run`. What each variable
means, its dims and its range come from `alignlab.measures.quantities`; this module adds what is true of the whole:
which coordinates there are, of which type, and that steps increase. Values must lie in the range of their quantity.
An infinite value is allowed only where that range is open, as for a loss, a norm or an eigenvalue: this is what the
last steps of a diverging run look like, and such a run is kept. NaN says that a quantity is not defined or was not
measured at that step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from alignlab.measures.quantities import QUANTITIES, Quantity

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    import numpy.typing as npt
    import xarray as xr

SCHEMA_VERSION = 1
DIMS = ("run", "step", "layer", "mode")
STATUSES = ("running", "finished", "diverged", "crashed")
CLOCKS = ("learning_rate", "wall_time", "samples_seen")  # finite even in a run that diverges
COUNTS = ("samples_seen",)  # may also be integers: float32 counts exactly only to 16.7 million
RESERVED_ATTRS = (
    "dtype",
    "coordinates",
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "alignlab_index",
)

_KINDS = {
    "run_id": "text", "rule": "text", "task": "text", "arm": "text", "control": "text", "status": "text",
    "lr": "number", "seed": "number", "last_step": "integer",
}  # fmt: skip
_LAYER_KINDS = {"kind": "text", "fan_in": "number", "fan_out": "number"}
run_coords = ["run_id", "rule", "lr", "seed", "task", "arm", "control", "status", "last_step"]
REQUIRED = ("run_id", "status", "last_step")


class ContractError(ValueError):
    """A dataset breaks the data contract; the message names the variable, what is wrong, and what is expected."""


def check(dataset: xr.Dataset) -> None:
    """Raise `ContractError` unless `dataset` keeps the data contract.

    Checked are dims and their coordinates (integer steps and modes that increase, unique layer names), the
    coordinates of the run (`run_id`, `status` and `last_step` must be there), the variables (dims and type; values
    within the range of their quantity; nothing later than `last_step`), and that every attribute can be stored.
    Variables that are no quantity of alignlab are welcome on any of the dims run, step, layer, mode.
    """
    _check_dims(dataset)
    _check_run(dataset)
    _check_layer_coords(dataset)
    for name in map(str, dataset.coords):
        _check_coord_values(name, dataset.variables[name].values)
    for name in map(str, dataset.data_vars):
        _check_variable(name, dataset)
    _check_end(dataset)
    _check_attrs(dataset)


def check_free(names: Iterable[Hashable]) -> None:
    """Raise `ContractError` where a variable that lies not along a dim of its own name has the name of one."""
    for name in names:
        if name in DIMS[1:]:
            _refuse(
                str(name), "a variable of this name not along the dim", "another name, or values along it"
            )


def is_text(values: npt.NDArray[Any]) -> bool:
    """Whether an array holds strings and nothing else, in any of numpy's ways to hold strings."""
    return values.dtype.kind in "UT" or (
        values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat)
    )


def as_text(values: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """Strings, however numpy holds them, in its fixed-length form."""
    return np.array(values.tolist(), dtype=str).reshape(values.shape)


def storable(text: str) -> bool:
    """Whether HDF5 can hold a text: it ends texts at NUL, and they must be valid Unicode."""
    return "\0" not in text and text == text.encode(errors="replace").decode()


def plain(value: object) -> Any:
    """An attribute's value as JSON holds it: None, bool, int, float, str, and lists and dicts of them.

    Tuples and arrays become lists, numpy scalars Python's.

    Raises:
        TypeError: for anything else; the store would not give back what it was given.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"{value!r} ({type(value).__name__})")


def _refuse(name: str, wrong: str, expected: str) -> NoReturn:
    raise ContractError(f"{name}: {wrong}; expected {expected}")


def _check_dims(dataset: xr.Dataset) -> None:
    for name, variable in dataset.variables.items():
        for dim in variable.dims:
            if dim not in DIMS:
                _refuse(str(name), f"unknown dim {dim!r}", f"dims out of {', '.join(DIMS)}")
        if not isinstance(name, str) or not name or any(c.isspace() or c in "/\0" for c in name):
            _refuse(repr(name), "not a name", "a word without spaces and slashes")
    check_free(name for name in dataset.variables if name not in dataset.dims)
    if "step" not in dataset.dims:
        _refuse("step", "no such dim", "every dataset to have the dim step")
    for dim in dataset.dims:
        if dim != "run" and dim not in dataset.coords:
            _refuse(str(dim), "a dim without a coordinate", "steps, layer names, or mode numbers")
    for dim in ("step", "mode"):
        if dim in dataset.dims:
            _check_increasing(dim, dataset.variables[dim].values)
    if "layer" in dataset.dims:
        if not is_text(dataset["layer"].values):
            _refuse("layer", f"dtype {dataset['layer'].dtype}", "names of modules, as str")
        _check_unique("layer", dataset["layer"].values)


def _check_increasing(name: str, values: npt.NDArray[Any]) -> None:
    if values.dtype.kind not in "iu":
        _refuse(name, f"dtype {values.dtype}", "integers (int64)")
    late = np.flatnonzero(np.diff(values.astype(np.int64)) <= 0)
    if late.size:
        before, after = values[late[0]], values[late[0] + 1]
        _refuse(name, f"{after} follows {before}", "strictly increasing values")
    if values.size and values[0] < 0:
        _refuse(name, f"begins at {values[0]}", "values from 0")


def _check_unique(name: str, values: npt.NDArray[Any]) -> None:
    names, counts = np.unique(as_text(values), return_counts=True)
    if (counts > 1).any():
        _refuse(name, f"{str(names[counts > 1][0])!r} occurs {counts.max()} times", "every one once")


def _check_run(dataset: xr.Dataset) -> None:
    own: tuple[str, ...] = ("run",) if "run" in dataset.dims else ()
    for name in REQUIRED:
        if name not in dataset.coords:
            _refuse(name, "missing", f"a coordinate with dims {own}")
    for name, kind in _KINDS.items():
        if name in dataset.variables:  # a scalar is what all runs share
            _check_coord(name, kind, dataset, [own] if name == "run_id" else [own, ()])
    for status in np.unique(as_text(dataset["status"].values)):
        if status not in STATUSES:
            _refuse("status", repr(str(status)), f"one of {', '.join(STATUSES)}")
    if (as_text(dataset["run_id"].values) == "").any():
        _refuse("run_id", "empty", "a name that no other run has")
    _check_unique("run_id", dataset["run_id"].values.ravel())


def _check_layer_coords(dataset: xr.Dataset) -> None:
    for name, kind in _LAYER_KINDS.items():
        if name in dataset.variables:
            # (run, layer) where runs of different shapes were joined
            _check_coord(name, kind, dataset, [("layer",), ("run", "layer")])


def _check_coord(name: str, kind: str, dataset: xr.Dataset, dims: list[tuple[str, ...]]) -> None:
    if name not in dataset.coords:
        _refuse(name, "a data variable of this name", "a coordinate")
    if dataset.variables[name].dims not in dims:
        _refuse(name, f"dims {dataset[name].dims}", f"dims {' or '.join(dict.fromkeys(map(str, dims)))}")
    values = dataset.variables[name].values
    if kind == "text" and not is_text(values):
        _refuse(name, f"dtype {values.dtype}", "str")
    if kind != "text" and values.dtype.kind not in ("iu" if kind == "integer" else "iuf"):
        _refuse(name, f"dtype {values.dtype}", f"{kind}s")


def _check_coord_values(name: str, values: npt.NDArray[Any]) -> None:
    if name in QUANTITIES:
        _refuse(name, "a coordinate of this name", "a data variable")
    if is_text(values):
        for text in map(str, values.flat):
            if not storable(text):
                _refuse(name, f"{text!r}", "valid Unicode without NUL")
    elif values.dtype.kind not in "biu" and not _is_float(values.dtype):
        _refuse(name, f"dtype {values.dtype}", "str, integers, floats or bool (an empty str for 'none')")


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" and dtype.itemsize in (4, 8)


def _check_variable(name: str, dataset: xr.Dataset) -> None:
    variable = dataset.variables[name]
    kind, floating = variable.dtype.kind, _is_float(variable.dtype)
    quantity = QUANTITIES.get(name)
    if quantity is None:
        if kind not in "biu" and not floating:
            _refuse(name, f"dtype {variable.dtype}", "float32 (float64, integers and bool are allowed)")
        return
    expected = (("run",) if "run" in dataset.dims else ()) + quantity.dims
    if set(variable.dims) != set(expected):
        _refuse(name, f"dims {variable.dims}", f"dims {expected}")
    if not floating and not (name in COUNTS and kind in "iu"):
        _refuse(name, f"dtype {variable.dtype}", "float32 (float64 is allowed)")
    _check_range(quantity, variable)


def _check_range(quantity: Quantity, variable: xr.Variable) -> None:
    values = variable.values
    low, high = float(quantity.low), float(quantity.high)
    slack = 1e-5 * max(abs(bound) for bound in (low, high, 1.0) if np.isfinite(bound))  # float32's rounding
    outside = (values < low - slack) | (values > high + slack)
    kind = "values"
    if quantity.name in CLOCKS:
        outside, kind = outside | np.isinf(values), "finite values"
    if outside.any():
        _refuse(quantity.name, f"value {values[outside][0]}", f"{kind} from {low:g} to {high:g}, or NaN")


def _check_end(dataset: xr.Dataset) -> None:
    """No run has a value later than its last step: such values would be of another attempt at the run."""
    steps, last_steps = dataset.variables["step"].values, dataset.variables["last_step"].values
    if not steps.size or not last_steps.size or steps.max() <= last_steps.min():
        return
    late = dataset["step"] > dataset["last_step"]
    for name, variable in dataset.data_vars.items():
        if "step" in variable.dims and (variable.notnull() & late).any():
            step, last = int(dataset["step"].max()), int(dataset["last_step"].max())
            wrong = f"values later than last_step (steps up to {step}, last_step up to {last})"
            _refuse(str(name), wrong, "last_step to be the last optimizer step that the run took")


def _check_attrs(dataset: xr.Dataset) -> None:
    owners = {"dataset": dataset.attrs, **{str(k): v.attrs for k, v in dataset.variables.items()}}
    for owner, attrs in owners.items():
        for key, value in attrs.items():
            if not isinstance(key, str) or not key or key.startswith("_") or key in RESERVED_ATTRS:
                _refuse(owner, f"attribute {key!r}", "attribute names that netCDF does not use itself")
            try:
                plain(value)
            except TypeError as error:
                expected = "None, bool, int, float, str, or lists and dicts (with str keys) of them"
                _refuse(owner, f"attribute {key!r} holds {error}", expected)
    version = dataset.attrs.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        _refuse("dataset", f"schema_version {version!r}", f"{SCHEMA_VERSION}")
