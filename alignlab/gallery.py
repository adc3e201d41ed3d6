"""The named analyses: small modules with a ``CLAIM``, found beside the package in a clone and inside an installed wheel."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from types import ModuleType

from alignlab.audit import Claim

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


def names() -> list[str]:
    """The names that ``alignlab audit`` takes."""
    return sorted(path.stem for path in folder().glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """The module of an analysis."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise GalleryError(
            f"no analysis {name!r}: {hint}there are {', '.join(names())}; or give a CLAIM.yaml"
        )
    spec = importlib.util.spec_from_file_location(f"alignlab_analysis_{name}", folder() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def claim(source: str) -> tuple[str, Claim]:
    """The claim of a named analysis or of a YAML file, and the name that its results go by."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise GalleryError(f"no claim at {path}: expected a YAML file")
        return path.stem, Claim.from_yaml(path)
    found = load(source).CLAIM
    assert isinstance(found, Claim)
    return source, found
