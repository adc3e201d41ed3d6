"""Study: a question that is answered by training, with its runs, its figures and its table. What an analysis is made of.

A claim asks whether one method beats another and why; a study asks how something depends on something, and decides nothing.
Its runs are cells of a sweep: named by what determines them, computed once, resumed where they were left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.store import Segments, open_segments
from alignlab.store.shaping import as_runs
from alignlab.store.shelf import Phase, silent
from alignlab.training.arguments import spec_of
from alignlab.training.errors import SpecError
from alignlab.training.naming import check_stored
from alignlab.training.spec import RunSpec
from alignlab.training.sweep import Sweep

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from alignlab.training.workers import Executor

Arms = Mapping[str, Sequence[RunSpec]]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """A question that is answered by training.

    ``question``: what is asked. ``source``: who raised it, or claims an answer.

    ``arms(full)``: the runs by label, on the full data sets where ``full`` is true and else on what the package carries.
    ``figures(runs)``: the drawings by name; ``table(runs)``: the answer in numbers, as text or as rows of a table. Both
    are given the recorded runs as a dataset whose coordinate ``arm`` is the label. ``lockstep``: train runs of one shape
    together, as populations (:mod:`alignlab.training.population`).
    """

    question: str
    source: str
    arms: Callable[[bool], Arms]
    figures: Callable[[xr.Dataset], Mapping[str, Figure]]
    table: Callable[[xr.Dataset], str | Rows]
    lockstep: bool = True

    def run(
        self,
        store: str | Path,
        *,
        full: bool = False,
        seed: int | None = None,
        workers: Executor = 1,
        phase: Phase | None = None,
    ) -> StudyResult:
        """Compute what ``store`` lacks of the runs, and read them.

        ``seed``: the first seed, from which the others are counted on. ``workers``: how many processes, or where
        else, see :class:`Sweep`. ``phase``: called as ``phase(what, n)`` for progress.
        Raises :class:`SpecError` for arms that cannot be told apart, ``DataError`` where a data set is missing, and
        ``SweepError`` where runs failed.
        """
        arms = labelled(self.arms(full), seed)
        specs = [spec for own in arms.values() for spec in own]
        sweep = Sweep(specs, store, lockstep=self.lockstep)
        with (phase or silent)("runs", len(sweep.missing())) as notify:
            computed = sweep.run(workers, notify=notify)
        label = {sweep.names[spec]: arm for arm, own in arms.items() for spec in own}
        return StudyResult(self, _read(sweep, label), len(specs), computed)


@dataclass(frozen=True)
class StudyResult:
    """The ``runs`` of a study, how many they are (``total``) and how many had to be ``computed``."""

    study: Study
    runs: xr.Dataset
    total: int
    computed: int

    def figures(self) -> dict[str, Figure]:
        """The study's figures by name."""
        return dict(self.study.figures(self.runs))

    def table(self) -> str:
        """The study's answer as text."""
        found = self.study.table(self.runs)
        return found if isinstance(found, str) else aligned(found)


def grid(spec: RunSpec, **values: Iterable[Any]) -> list[RunSpec]:
    """Copies of ``spec`` with every combination of the ``values`` of some fields, those of the last field next to each other.

    >>> [(s.lr, s.seed) for s in grid(RunSpec(), lr=(0.1, 0.3), seed=range(2))]
    [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)]

    Raises :class:`SpecError` for what is no spec, an unknown field, a value that it does not take, or one value alone.
    """
    spec = spec_of(spec)
    alone = [
        name
        for name, given in values.items()
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable)
    ]
    if alone:
        raise SpecError(
            f"grid: {alone[0]} is {values[alone[0]]!r}, expected several values: {alone[0]}=[{values[alone[0]]!r}], or one for "
            f"all by spec.changed({alone[0]}=…)"
        )
    return [spec.changed(**dict(zip(values, cell, strict=True))) for cell in product(*values.values())]


def labelled(arms: Arms, seed: int | None = None) -> dict[str, list[RunSpec]]:
    """The arms as they will run, their seeds counted from ``seed``; each arm has runs, and no run has two labels."""
    empty = [repr(label) for label, specs in arms.items() if not specs]
    if empty or not arms:
        raise SpecError(f"arms without a run: {', '.join(empty) or 'there is no arm'}")
    first = min(spec.seed for specs in arms.values() for spec in specs)
    shift = 0 if seed is None else seed - first
    found = {
        label: [spec.changed(seed=spec.seed + shift) if shift else spec for spec in specs]
        for label, specs in arms.items()
    }
    owner: dict[RunSpec, str] = {}
    for label, specs in found.items():
        for spec in specs:
            if spec in owner:
                raise SpecError(
                    f"the run {spec.rule_name}, lr {spec.lr:g}, seed {spec.seed} is in the arms {owner[spec]!r} and "
                    f"{label!r}: a run has one label, once"
                )
            owner[spec] = label
    return found


def aligned(rows: Rows, *notes: str) -> str:
    """Rows as a table of text: the columns of all rows, numbers with four digits, an empty cell for what is missing.

    ``notes``: lines to stand below it, after an empty one.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = (
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(sweep: Sweep, label: Mapping[str, str]) -> xr.Dataset:
    """The runs of a study, in the order of its arms and, within one, of their seeds."""
    runs = as_runs(open_segments(sweep.store, label))
    _check(sweep, runs)
    arms = [label[name] for name in runs["run_id"].values.tolist()]
    place = {arm: i for i, arm in enumerate(dict.fromkeys(label.values()))}
    seeds = runs["seed"].values.tolist()
    order = sorted(range(len(arms)), key=lambda i: (place[arms[i]], seeds[i]))
    return runs.assign_coords(arm=("run", arms)).isel(run=order)


def _check(sweep: Sweep, runs: xr.Dataset) -> None:
    """Each segment holds the run that its name says."""
    shared = [runs.attrs.get("spec_hash")] * runs.sizes["run"]
    hashes = runs["spec_hash"].values.tolist() if "spec_hash" in runs.coords else shared
    found = dict(zip(runs["run_id"].values.tolist(), hashes, strict=True))
    for spec, name in sweep.names.items():
        check_stored(spec, found.get(name), Segments(sweep.store).file(name))
