"""What a cell of a sweep is called: a hash of its spec, of the source code that computes it, and of the data.

So a changed program, data set or spec never passes for the old one, and equal runs are found again by whoever looks.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch

from alignlab.store import StoreError
from alignlab.training import tasks
from alignlab.training.spec import RunSpec

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
    """The name of a spec's segment: hash(spec + code + data)."""
    parts = f"{spec.digest()} {code_hash()} {tasks.load(spec.task).fingerprint}"
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


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
