"""What a dataset of runs holds, in the form that figures read, and one error for what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignlab.store.shaping import check_dataset

if TYPE_CHECKING:
    import xarray as xr

DIMS = ("run", "step", "layer", "mode")
_EVALUATED = ("train_", "validation_", "test_")


def need(dataset: xr.Dataset, *names: str) -> None:
    """Raise one error that says which variable is missing or empty, what records it, and what the dataset holds."""
    check_dataset(dataset)
    for name in names:
        if name not in dataset:
            held = ", ".join(sorted(map(str, dataset.data_vars))) or "nothing"
            raise ValueError(f"the dataset has no {name!r}: {recorder_of(name)} records it. It holds {held}")
        if not np.isfinite(dataset[name].values).any():
            raise ValueError(f"{name!r} has no finite value in this dataset; {recorder_of(name)} records it")
        if strange := [str(dim) for dim in dataset[name].dims if dim not in DIMS]:
            raise ValueError(
                f"{name!r} has the dim {strange[0]!r}, expected some of {', '.join(DIMS)}: give it its name back by "
                f"dataset.rename({strange[0]}=...), or select one, dataset.isel({strange[0]}=0)"
            )


def need_outcome(dataset: xr.Dataset, name: str) -> None:
    """`need`, for a variable that has one value a step and none of its own for each layer."""
    need(dataset, name)
    if surplus := set(dataset[name].dims) - {"run", "step"}:
        raise ValueError(
            f"{name!r} is no outcome of a run: it has a value for each {', '.join(map(str, surplus))}"
        )


def recorder_of(name: str) -> str:
    """Who records a variable, in words.

    >>> recorder_of("feedback_gain"), recorder_of("train_loss")
    ('the probe EffectiveLR', 'the evaluation of alignlab.training')
    """
    from alignlab import probes

    if name.startswith(_EVALUATED):
        return "the evaluation of alignlab.training"
    for probe in vars(probes).values():
        if isinstance(probe, type) and issubclass(probe, probes.Probe) and name in probe.quantities:
            return f"the probe {probe.__name__}"
    return "no probe of alignlab"


def values(data: xr.Dataset, name: str, dims: tuple[str, ...]) -> xr.DataArray:
    """The variable as float64 with the dims ("run", *dims), and NaN for all that is not finite.

    A dim of length 1 that was selected away comes back, or goes.
    """
    array = data[name].astype(np.float64)
    for dim in set(dims) - set(array.dims):
        array = array.expand_dims(dim)
    surplus = set(array.dims) - {"run", *dims}
    if several := [str(dim) for dim in surplus if array.sizes[dim] > 1]:
        raise ValueError(
            f"{name!r} has a value for each {', '.join(several)}, where one is drawn: select one, isel({several[0]}=0)"
        )
    return array.squeeze([*surplus]).transpose("run", *dims).where(np.isfinite)
