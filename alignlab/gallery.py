"""The named analyses: small modules with a ``CLAIM`` or a ``STUDY``, beside the package in a clone, inside it in a wheel."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from alignlab.audit import Claim
from alignlab.checks import did_you_mean
from alignlab.training.fields import read_yaml

if TYPE_CHECKING:
    from alignlab.study import Study

COMMANDS = {"CLAIM": "audit", "STUDY": "study"}  # what an analysis defines, and the command that takes it
PACKAGE = Path(__file__).resolve().parent


class GalleryError(ValueError):
    """There is no such analysis."""


def folder() -> Path:
    """Where the analyses are."""
    for place in (PACKAGE / "_analyses", PACKAGE.parent / "analyses"):
        if (place / "README.md").is_file():
            return place
    raise GalleryError(
        f"the analyses are missing: neither {PACKAGE / '_analyses'} nor {PACKAGE.parent / 'analyses'} has them"
    )


def names(kind: str | None = None) -> list[str]:
    """The analyses; those with a ``CLAIM`` or a ``STUDY`` alone where ``kind`` says so. Nothing is imported."""
    return sorted(name for name, own in _kinds().items() if kind in (None, own))


def _kinds() -> dict[str, str]:
    """What each analysis is: it names CLAIM or STUDY at the left margin."""
    found = {}
    for path in folder().glob("[a-z]*.py"):
        match = re.search(r"^(CLAIM|STUDY)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            found[path.stem] = match[1]
    return found


def load(name: str, kind: str) -> ModuleType:
    """The module of an analysis that has a ``CLAIM`` or a ``STUDY``, as ``kind`` says."""
    own = _kinds()
    if name not in own:
        hint = did_you_mean(name, own, told=str)
        others = "; or give a CLAIM.yaml" if kind == "CLAIM" else ""
        raise GalleryError(
            f"no {kind.lower()} {name!r}: {hint}there are {', '.join(names(kind)) or 'none'}{others}"
        )
    if own[name] != kind:
        raise GalleryError(f"{name} is a {own[name].lower()}: alignlab {COMMANDS[own[name]]} {name}")
    spec = importlib.util.spec_from_file_location(f"alignlab_analysis_{name}", folder() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def claim(source: str) -> tuple[str, Claim]:
    """The claim of a named analysis or of a YAML or JSON file, and the name that its results go by."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise GalleryError(f"no claim at {path}: expected a YAML or JSON file")
        fields = read_yaml(path)
        if "rule" in fields and not is_claim(fields):
            raise GalleryError(f"{path} is the spec of a run: alignlab run {path}")
        return path.stem, Claim.from_yaml(path)
    found = load(source, "CLAIM").CLAIM
    assert isinstance(found, Claim)
    return source, found


def is_claim(fields: Mapping[str, Any]) -> bool:
    """Whether what stands in a file is meant for a claim."""
    return "treatment" in fields or "baseline" in fields


def study(name: str) -> Study:
    """The study of a named analysis."""
    from alignlab.study import Study

    found = load(name, "STUDY").STUDY
    assert isinstance(found, Study)
    return found


def counted_on(seeds: Sequence[int], first: int | None, count: int | None) -> tuple[int, ...]:
    """``count`` seeds: those that are given, or as many from ``first`` on, and after these the next ones.

    >>> counted_on((7, 3, 5), None, 5), counted_on((7, 3, 5), 20, None), counted_on((7, 3, 5), None, 2)
    ((7, 3, 5, 8, 9), (20, 21, 22), (7, 3))
    """
    own = list(seeds) if first is None else list(range(first, first + len(seeds)))
    count = len(own) if count is None else count
    beyond = max(own) + 1
    return tuple(own[:count] + list(range(beyond, beyond + count - len(own))))
