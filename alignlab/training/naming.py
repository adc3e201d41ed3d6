"""What a cell of a sweep is called: a hash of its spec, of the source code that computes it, and of the data.

So a changed program, data set or spec never passes for the old one, and equal runs are found again by whoever looks. Of a
rule that was added to ``RULES`` from outside the package, or a draw added to ``INITS``, the code is the file that defines it,
and what a draw holds that is a partial function or an instance. Of a task added to ``TASKS`` it is what its function and its
loss are (:mod:`alignlab.training.identity`), beside the data.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

import torch

from alignlab.rules import INITS, RULES, make_rules
from alignlab.store import StoreError
from alignlab.training import tasks
from alignlab.training.identity import no_file
from alignlab.training.registry import beyond_data
from alignlab.training.spec import RunSpec, SpecError

PACKAGE = Path(__file__).resolve().parent.parent
# the floors whose code decides what a run's numbers are
COMPUTING = ("measures", "rules", "probes", "training")


@functools.cache
def code_hash() -> str:
    """A hash of the source that computes a run, and of the versions of torch and numpy under it."""
    import numpy as np

    digest = hashlib.sha256(f"torch {torch.__version__}, numpy {np.__version__}".encode())
    for floor in COMPUTING:
        for path in sorted((PACKAGE / floor).rglob("*.py")):
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cell_name(spec: RunSpec) -> str:
    """The name of a spec's segment: hash(spec + code + data).

    Raises :class:`SpecError` for a rule, a draw or a task of one's own that comes from no file.
    """
    task = tasks.load(spec.task)
    code = "".join([code_hash(), *_own_code(spec), *_task_code(spec.task, task)])
    parts = f"{spec.digest()} {code} {task.fingerprint}"
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def version(spec: RunSpec, task: tasks.Task) -> str:
    """What a run says of what computed it: :func:`code_hash`, and a hash of what is the user's, where something is: rules,
    draws, or a task with its data. Runs of one spec that differ in it are no replicates."""
    try:
        own = [*_own_code(spec), *_task_code(spec.task, task)]
    except SpecError:  # it comes from no file, and has no name in a store
        return code_hash()
    own += [task.fingerprint] * tasks.TASKS.is_own(spec.task)
    return f"{code_hash()}+{hashlib.sha256(''.join(own).encode()).hexdigest()[:8]}" if own else code_hash()


def _task_code(name: str, task: tasks.Task) -> list[str]:
    """Of a task of the user's own, what its data do not tell; nothing of alignlab's."""
    if not tasks.TASKS.is_own(name):
        return []
    return [tasks.TASKS.code(name), beyond_data(task)]


def _own_code(spec: RunSpec) -> list[str]:
    """Hashes of the files that the spec's rules and draws come from, where these are not alignlab's, and what draws hold."""
    if not any(map(_is_own, (*RULES.values(), *INITS.values()))):
        return []
    used: list[Any] = []
    held: list[str] = []
    made = make_rules(spec.rule, **spec.rule_args).values()
    for rule in (part for whole in made for part in whole.made_of):
        draw, holds = _origin(INITS.get(getattr(rule, "init", "")))
        used += [*type(rule).__mro__, draw]
        held.append(holds)
    own = {thing.__module__: thing for thing in used if _is_own(thing)}
    return [*(_file_hash(own[module]) for module in sorted(own)), *held]


def _origin(draw: Any) -> tuple[Any, str]:
    """The function or class behind a draw, and what this holds: a partial function its arguments, an instance its fields."""
    if isinstance(draw, functools.partial):
        origin, holds = _origin(draw.func)
        return origin, f"{holds}{draw.args}{sorted(draw.keywords.items())}"
    if draw is None or hasattr(draw, "__qualname__"):
        return draw, ""
    return type(draw), str(sorted(vars(draw).items()))


def _is_own(thing: Any) -> bool:
    if isinstance(thing, functools.partial):
        return True
    return thing is not None and thing.__module__.partition(".")[0] not in (
        "alignlab",
        *sys.stdlib_module_names,
    )


@functools.cache
def _file_hash(thing: Any) -> str:
    file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    if file is None or not Path(file).is_file():
        raise no_file(thing, thing.__module__)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def short(spec: RunSpec) -> str:
    """A cell in a line of text."""
    graft = "" if spec.graft is None else f", graft {spec.graft.direction}/{spec.graft.magnitude}"
    return f"{spec.rule_name} lr={spec.lr:g} seed={spec.seed}{graft}"


def check_stored(spec: RunSpec, spec_hash: object, where: Path) -> None:
    """Raise StoreError where the run that was read from ``where`` is of another spec than the one that gave its name."""
    if str(spec_hash) != spec.digest():
        raise StoreError(
            f"{where} holds a run of another spec ({spec_hash}) than {short(spec)} ({spec.digest()}), whose name it has: "
            "move it out of the folder, and the run will be computed again"
        )
