"""The bench that controls experiment on: ask for the outcomes of arms under changes, and it runs what is not there yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from alignlab.audit.claim import Arm, Claim
from alignlab.measures.quantities import sense
from alignlab.store import Segments
from alignlab.store.shelf import Phase, silent
from alignlab.training import tasks
from alignlab.training.errors import SpecError
from alignlab.training.naming import check_stored, short
from alignlab.training.spec import SPLITS, RunSpec
from alignlab.training.sweep import Sweep
from alignlab.training.workers import opened

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

    from alignlab.store.record import Record
    from alignlab.training.task import Task
    from alignlab.training.workers import Executor

    Outcomes = npt.NDArray[np.float64]

Kind = Literal["compared", "crossed", "search", "check"]


class Group(NamedTuple):
    """Runs of one arm under one name in the result. ``kind``: whether the verdict compares them, a contrast shows them at a
    setting that both arms share, a search for a learning rate or the like tries them, or they check the audit itself.
    ``arm``: the arm's label."""

    specs: tuple[RunSpec, ...]
    arm: str
    kind: Kind = "compared"


class Bench:
    """Runs of one claim in one store. Outcomes are final values, oriented so that higher is better. A context manager
    that ends the ``workers`` that it started (see :class:`alignlab.training.workers.Workers`)."""

    def __init__(
        self,
        claim: Claim,
        store: str | Path,
        *,
        workers: Executor = 1,
        phase: Phase | None = None,
    ) -> None:
        self.claim, self.store = claim, Path(store)
        self.folder = self.store.absolute()  # the caller may go elsewhere meanwhile
        self._open = ExitStack()
        self.workers = self._open.enter_context(opened(workers))
        self.computed = 0
        self.groups: dict[str, Group] = {}
        self._phase = phase or silent
        self._final: dict[RunSpec, dict[str, float]] = {}
        self._names: dict[RunSpec, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @contextmanager
    def about(self, claim: Claim, kind: Kind = "compared") -> Iterator[None]:
        """Within the block runs are of another ``claim``, one that a control plants. Groups that are named there are of this
        ``kind`` and end in ", planted" afterwards: an arm of the audit's own claim may have the same name."""
        own, groups = self.claim, self.groups
        self.claim, self.groups = claim, {}
        try:
            yield
        finally:
            planted, self.claim, self.groups = self.groups, own, groups
            groups |= {f"{name}, planted": group._replace(kind=kind) for name, group in planted.items()}

    def run(self, what: str, specs: Sequence[RunSpec]) -> None:
        """Have all ``specs`` in the store; ``what`` is shown as progress."""
        sweep = Sweep(specs, self.folder)
        with self._phase(what, len(sweep.missing())) as notify:
            self.computed += sweep.run(self.workers, notify=notify)
        self._names |= sweep.names

    def outcomes(
        self,
        group: str,
        arm: Arm,
        *,
        seeds: Sequence[int] | None = None,
        metric: str | None = None,
        kind: Kind = "compared",
        **changes: Any,
    ) -> Outcomes:
        """The final outcome of an arm for each seed, oriented. ``group`` names these runs in the result, see :class:`Group`."""
        return self.outcomes_of(group, arm, self.specs(arm, seeds, **changes), metric=metric, kind=kind)

    def outcomes_of(
        self,
        group: str,
        arm: Arm,
        specs: Sequence[RunSpec],
        *,
        metric: str | None = None,
        kind: Kind = "compared",
    ) -> Outcomes:
        """The same of ``specs`` that go with the claim's seeds, each changed in its own way."""
        self.run(group, specs)
        self.groups[group] = Group(tuple(specs), arm.label, kind)
        return self.values(specs, metric)

    def specs(self, arm: Arm, seeds: Sequence[int] | None = None, **changes: Any) -> list[RunSpec]:
        """The specs of an arm, one a seed."""
        return [self.claim.spec(arm, s, **changes) for s in (self.claim.seeds if seeds is None else seeds)]

    def values(self, specs: Sequence[RunSpec], metric: str | None = None) -> Outcomes:
        """Oriented final values of runs that are in the store."""
        metric = metric or self.claim.outcome
        sign = sense(metric)
        found = np.array([sign * self.final(spec)[metric] for spec in specs])
        if not np.isfinite(found).all():
            worst = specs[int(np.argmin(np.isfinite(found)))]
            raise SpecError(
                f"{metric} is not finite even before training ({short(worst)}): such a run cannot be compared, not even as an "
                f"untrained one. Are its initial weights too large (weight_scale is {worst.weight_scale:g})?"
            )
        return found

    def final(self, spec: RunSpec) -> dict[str, float]:
        """The last evaluation of a run; of a diverged one, which counts as having learned nothing, that before training, which
        stands there under "initial …" besides."""
        if spec not in self._final:
            run = {name: field.data for name, field in self._record(spec).fields.items()}
            self._final[spec] = _final_values(run, _samples(tasks.load(spec.task)))
        return self._final[spec]

    def begun(self, specs: Sequence[RunSpec]) -> Outcomes:
        """The loss of each run before training, on the split of the claim's outcome."""
        loss = self.claim.outcome.split("_")[0] + "_loss"
        return np.array([self.final(spec)[f"initial {loss}"] for spec in specs])

    def first_norms(self, specs: Sequence[RunSpec]) -> Outcomes:
        """Each layer's weight norm before the first step, (n, layers); (n, 0) where the runs recorded nothing."""
        runs = [self.dataset(spec) for spec in specs]
        norms = [
            run["weight_norm"].transpose("step", "layer")[0] if "weight_norm" in run else [] for run in runs
        ]
        return np.array(norms, np.float64)

    def gained(self, specs: Sequence[RunSpec]) -> Outcomes:
        """By how much each run's outcome is better than before training; 0 where it diverged."""
        metric = self.claim.outcome
        ends = np.array(
            [[self.final(spec)[f"{when}{metric}"] for when in ("", "initial ")] for spec in specs]
        )
        gains: Outcomes = sense(metric) * (ends[:, 0] - ends[:, 1])
        return gains

    def diverged(self, specs: Sequence[RunSpec]) -> npt.NDArray[np.bool_]:
        """Whether each of the runs diverged."""
        return np.array([bool(self.final(spec)["diverged"]) for spec in specs])

    @property
    def continuous(self) -> bool:
        """Whether runs that end alike computed the same (:func:`alignlab.audit.statistics.paired`): outcomes are losses, and no
        run so far diverged or ended as one of another seed, as at a loss of 0 or at that of a constant answer."""
        groups = [group.specs for group in self.groups.values() if group.kind != "search"]
        return self.claim.continuous and not any(
            self.diverged(specs).any() or len(set(self.values(specs))) < len(set(specs)) for specs in groups
        )

    def dataset(self, spec: RunSpec) -> xr.Dataset:
        """The recorded run of a spec."""
        return self._record(spec).to_dataset()

    def _record(self, spec: RunSpec) -> Record:
        segments, name = Segments(self.folder), self._names[spec]
        record = segments.read_record(name)
        check_stored(spec, record.attrs.get("spec_hash"), segments.file(name))
        return record

    def name(self, spec: RunSpec) -> str:
        """The run's name in the store."""
        return self._names[spec]


def _samples(task: Task) -> dict[str, int]:
    """Of how many samples each accuracy of a task is a share."""
    return {f"{split}_accuracy": len(getattr(task, split)) for split in SPLITS}


def _final_values(
    run: Mapping[str, npt.NDArray[Any]], samples: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Of a run's variables by name, NaN where a step has none; ``samples``: see :func:`_samples`."""
    diverged = str(run["status"]) == "diverged"
    found = {"diverged": float(diverged)}
    for name, column in run.items():
        if name.endswith(("_loss", "_accuracy")):
            known = ~np.isnan(column)
            values = column[known] if known.any() else column
            first, last = (_unrounded(end, (samples or {}).get(name)) for end in values[[0, -1]])
            found[name] = first if diverged or not np.isfinite(last) else last
            found[f"initial {name}"] = first
    return found


def _unrounded(value: np.floating[Any], samples: int | None) -> float:
    """What float32 stands for: 0.91, not 0.91000003, and of a share of so many ``samples`` the very fraction, 37/41.

    Equal differences of accuracies are then equal, whatever float32 made of these. A share of something else, as of all
    positions of sequences, is no such fraction.
    """
    written = float(str(value))
    if samples is None or not np.isfinite(written):
        return written
    fraction = round(written * samples) / samples
    return fraction if value.dtype.type(fraction) == value else written
