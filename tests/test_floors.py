"""Imports go down the floors, also those inside functions. `alignlab.testing` is for tests; nothing else imports it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import alignlab

ROOT = Path(alignlab.__file__).parent
FLOORS = [
    "checks",
    "measures",
    "rules",
    "store",
    "probes",
    "training",
    "audit",
    "figures",
    "report",
    "study",
    "gallery",
    "output",
    "options",
    "complaints",
    "data_commands",
    "cli",
    "__main__",
]
TESTING = "testing"
PUBLIC = {"__version__"}  # what a floor may take from the package itself, which otherwise stands above all


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = ("alignlab", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package(path: Path) -> list[str]:
    """What relative imports in a file start from."""
    name = dotted(path).split(".")
    return name if path.name == "__init__.py" else name[:-1]


def imported(tree: ast.AST, here: list[str]) -> Iterator[str]:
    """The full dotted names that a module imports from alignlab, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "alignlab")
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            if origin.split(".")[0] == "alignlab":
                yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_call(node.func):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and str(argument.value).startswith(("alignlab", ".")):
                    base = here if str(argument.value).startswith(".") else []
                    yield ".".join([*base, str(argument.value).lstrip(".")])


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def floor(name: str) -> int | None:
    """A module's floor; None for the package itself and for names that it hands out."""
    parts = name.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else None


def complaints(source: str, name: str, here: list[str]) -> list[str]:
    own = floor(name)
    found = []
    for target in imported(ast.parse(source), here):
        part = target.split(".")[1] if "." in target else ""
        if part == TESTING and name.split(".")[1:2] != [TESTING]:
            found.append(f"{name} imports {target}, which is for tests")
        elif own is None or own == len(FLOORS) - 1 or part in PUBLIC:
            continue
        elif floor(target) is None:
            found.append(f"{name} imports {target}: take it from its own floor, not from the package above")
        elif (floor(target) or 0) > own:
            found.append(f"{name} imports {target}, from a higher floor")
    return found


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_a_module_imports_from_its_own_floor_or_lower(path: Path) -> None:
    assert complaints(path.read_text(), dotted(path), package(path)) == []


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_every_module_has_a_floor_and_opens_with_its_purpose(path: Path) -> None:
    name = dotted(path)
    assert name == "alignlab" or floor(name) is not None or name.split(".")[1] == TESTING
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import alignlab.audit",
        "from alignlab.audit import Verdict",
        "from alignlab.audit.verdict import decide",
        "from alignlab import audit",
        "from ..audit import Verdict",
        "from .. import audit",
        "def f():\n    from alignlab.probes import Recorder",
        "import importlib\nimportlib.import_module('alignlab.report')",
        "if TYPE_CHECKING:\n    from alignlab.training import RunSpec",
        "from alignlab import Recorder",
        "import alignlab",
        "import alignlab as al",
        "from alignlab.testing import run",
        "from alignlab import testing",
    ],
)
def test_an_import_upwards_is_found_in_every_spelling(source: str) -> None:
    assert len(complaints(source, "alignlab.rules.convert", ["alignlab", "rules"])) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "from alignlab.measures import angles",
        "from alignlab import measures",
        "from alignlab.rules.rule import Rule",
        "from .rule import Rule",
        "from . import rule",
        "from alignlab import __version__",
        "import importlib\nimportlib.import_module('scipy.sparse')",
    ],
)
def test_an_import_downwards_or_sideways_is_allowed(source: str) -> None:
    assert complaints(source, "alignlab.rules.convert", ["alignlab", "rules"]) == []
