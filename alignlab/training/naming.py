"""What a cell of a sweep is called: a hash of its spec, of the source code that computes it, and of the data.

So a changed program, data set or spec never passes for the old one, and equal runs are found again by whoever looks. Of a
rule that was added to ``RULES`` from outside the package, of a draw added to ``INITS`` and of a task added to ``TASKS``, the
code is what it computes by and holds (:mod:`alignlab.training.identity`): the rule as it is made, the draw, the task's loss;
of the task's function its files, beside the data.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch

from alignlab.rules import INITS, RULES, make_rules
from alignlab.store import StoreError
from alignlab.training import tasks
from alignlab.training.errors import SpecError
from alignlab.training.identity import identity
from alignlab.training.registry import beyond_data
from alignlab.training.spec import RunSpec
from alignlab.training.task import Task

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


def version(spec: RunSpec, task: Task) -> str:
    """What a run says of what computed it: :func:`code_hash`, and a hash of what is the user's, where something is: rules,
    draws, or a task with its data. Runs of one spec that differ in it are no replicates."""
    try:
        own = [*_own_code(spec), *_task_code(spec.task, task)]
    except SpecError:  # it comes from no file, and has no name in a store
        return code_hash()
    own += [task.fingerprint] * tasks.TASKS.is_own(spec.task)
    return f"{code_hash()}+{hashlib.sha256(''.join(own).encode()).hexdigest()[:8]}" if own else code_hash()


def _task_code(name: str, task: Task) -> list[str]:
    """Of a task of the user's own, what its data do not tell; nothing of alignlab's."""
    if not tasks.TASKS.is_own(name):
        return []
    return [tasks.TASKS.code(name), beyond_data(task)]


def _own_code(spec: RunSpec) -> list[str]:
    """What the spec's rules and draws are where these are not alignlab's: their code and what they hold, as hashes."""
    if not any(map(_is_own, (*RULES.values(), *INITS.values()))):
        return []
    made = make_rules(spec.rule, **spec.rule_args).values()
    rules = [part for whole in made for part in whole.made_of]
    draws = [INITS.get(getattr(rule, "init", "")) for rule in rules]
    found = [_rule_identity(rule) for rule in rules if _is_own(type(rule))]
    return [*found, *(identity(draw) for draw in draws if _is_own(draw))]


def _rule_identity(rule: Any) -> str:
    try:
        return identity(rule)
    except SpecError:  # it holds a generator, say; and if it comes from no file, neither does its class
        return identity(type(rule))


def _is_own(thing: Any) -> bool:
    if isinstance(thing, functools.partial):
        return True
    return thing is not None and thing.__module__.partition(".")[0] != "alignlab"


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
