"""The identity of code and of what it holds: it follows what decides a number, and nothing else."""

from __future__ import annotations

import argparse
import enum
import functools
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from alignlab.training import SpecError, referring
from alignlab.training.identity import identity

SCALE: Any = 1.0
Module = Callable[[str], ModuleType]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Imports a text as the module ``own``, as another process would."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported(text: str, name: str = "own") -> ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return imported


def scaled(output: Tensor, target: Tensor, by: float = 1.0) -> Tensor:
    return by * SCALE * (output - target).square().mean()


def enclosing(weight: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return weight * (output - target).square().mean()

    return loss


def by_keyword(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor, *, by: float = weight) -> Tensor:
        return by * (output - target).square().mean()

    return loss


class Scaled:
    def __init__(self, by: Any) -> None:
        self.by = by

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.by * mse_loss(output, target)

    def other(self, output: Tensor, target: Tensor) -> Tensor:
        return output - target


@dataclass
class Settings:
    by: float = 1.0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.by * mse_loss(output, target)


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by: float) -> None:
        self.by = by


class Listed(list[int]):
    def __init__(self, by: float) -> None:
        super().__init__([1, 2])
        self.by = by


FINE = torch.full((2000,), 0.5)
MADE: list[Callable[[], Any]] = [  # each differs from all others, and equals itself when it is made again
    lambda: scaled, lambda: cross_entropy, lambda: mse_loss, lambda: torch.dist, lambda: max,
    lambda: enclosing(1.0), lambda: enclosing(2.0), lambda: enclosing(1), lambda: enclosing("1.0"),
    lambda: enclosing(FINE), lambda: enclosing(FINE + 1e-6), lambda: enclosing(FINE.view(2, -1)),
    lambda: enclosing(FINE.double()), lambda: enclosing(torch.zeros(2)), lambda: enclosing(torch.zeros(2, dtype=torch.int32)),
    lambda: enclosing(torch.eye(2).to_sparse()), lambda: enclosing(2 * torch.eye(2).to_sparse()),
    lambda: enclosing(torch.eye(2).to_sparse_csr()), lambda: enclosing(torch.eye(3).to_sparse()),
    lambda: enclosing(torch.tensor([1j]).conj()), lambda: enclosing(torch.tensor([1j]).conj().imag),
    lambda: enclosing(torch.ones(3)[::3]),
    lambda: enclosing(np.array([1.0, 2.0])), lambda: enclosing(np.array([1.0, 3.0])),
    lambda: enclosing(FINE.numpy()), lambda: enclosing(np.array([1, "a"], object)), lambda: enclosing(np.float32(1)),
    lambda: enclosing((1, 2)), lambda: enclosing([1, 2]), lambda: enclosing({1: 2}), lambda: enclosing({1, 2}),
    lambda: enclosing(None),
    lambda: enclosing({"a": 1, "b": 2}), lambda: enclosing({"b": 2, "a": 1}), lambda: enclosing({"x", "y", "z"}),
    lambda: enclosing(scaled), lambda: enclosing(torch.float32), lambda: enclosing(Path("a")), lambda: enclosing(Slotted(1.0)),
    lambda: enclosing(Slotted(2.0)), lambda: enclosing([Slotted(1.0), Slotted(2.0)]),
    lambda: enclosing([Slotted(1.0), Slotted(3.0)]), lambda: by_keyword(1.0), lambda: by_keyword(2.0),
    lambda: enclosing(Listed(1.0)), lambda: enclosing(Listed(2.0)),
    lambda: functools.partial(scaled, by=2.0), lambda: functools.partial(scaled, by=3.0),
    lambda: functools.partial(mse_loss, reduction="sum"),
    lambda: Scaled(1.0), lambda: Scaled(2.0), lambda: Scaled(nn.MSELoss()),
    lambda: Scaled(1.0).other, lambda: Scaled(2.0).other,
    lambda: Settings(), lambda: Settings(2.0),
    lambda: nn.MSELoss(), lambda: nn.HuberLoss(delta=0.5), lambda: nn.HuberLoss(delta=0.6),
    lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
    lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0001])),
    lambda: enclosing(pd.DataFrame({"by": [1.0, 2.0]})), lambda: enclosing(pd.DataFrame({"by": [1.0, 3.0]})),
    lambda: enclosing(pd.DataFrame({"of": [1.0, 2.0]})), lambda: enclosing(pd.DataFrame({"by": [1.0, 2.0]}, index=["a", "b"])),
    lambda: enclosing(xr.DataArray([1.0, 2.0])), lambda: enclosing(xr.DataArray([1.0, 2.0], {"x": ["a", "b"]})),
    lambda: enclosing(np.ma.array([1, 2], mask=[0, 1])), lambda: enclosing(np.ma.array([1, 2], mask=[1, 0])),
    lambda: enclosing(np.dtype("f4")), lambda: enclosing(np.dtype("f8")),
    lambda: enclosing(b"a"), lambda: enclosing(range(3)), lambda: enclosing(slice(3)), lambda: enclosing(torch.device("cpu")),
    lambda: enclosing(1j), lambda: enclosing(os), lambda: enclosing(sys), lambda: enclosing(torch.ones(2).mul),
    lambda: enclosing(torch.zeros(2).mul), lambda: functools.cache(enclosing(1.0)), lambda: functools.cache(enclosing(2.0)),
    lambda: torch.no_grad()(scaled), lambda: functools.cache(scaled), lambda: functools.wraps(scaled)(lambda o, t: o),
    lambda: (lambda o, t: 1 * o), lambda: (lambda o, t: 2 * o),
]  # fmt: skip


def test_what_differs_has_different_identities_and_what_is_made_anew_its_own() -> None:
    first = [identity(made()) for made in MADE]
    assert len(set(first)) == len(MADE)
    assert [identity(made()) for made in MADE] == first


def test_lambdas_of_one_line_differ() -> None:
    both = (lambda o, t: 1 * o), (lambda o, t: 2 * o)
    assert identity(both[0]) != identity(both[1])


def test_a_value_that_code_names_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [identity(scaled)]
    tables = pd.Series([1.0, 2.0]), pd.Series([1.0, 3.0]), xr.DataArray([1.0, 2.0]), xr.DataArray([1.0, 3.0])
    for other in (2.0, torch.tensor(2.0), nn.MSELoss(), Settings(), Settings(2.0), enclosing(3.0), *tables):
        monkeypatch.setitem(globals(), "SCALE", other)
        seen.append(identity(scaled))
    monkeypatch.setattr(Settings, "unit", 1.0, raising=False)
    seen.append(identity(enclosing(Settings)))
    monkeypatch.setattr(Settings, "unit", 2.0)
    seen.append(identity(enclosing(Settings)))
    assert len(set(seen)) == 13


def test_what_code_names_that_is_not_surely_a_part_of_what_it_computes_counts_by_no_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds: list[Callable[[int], Any]] = [
        lambda level: logging.Logger("own", level),
        lambda level: xr.DataArray([level]).chunk(),  # lazy: the runs that a script reads, say
    ]
    for made in kinds:
        seen = set()
        for level in (1, 2):
            monkeypatch.setitem(globals(), "SCALE", made(level))
            seen.add(identity(scaled))
        assert len(seen) == 1


def test_an_edited_file_is_other_code_wherever_it_is_named(module: Module) -> None:
    helper = "def squared(x):\n    return x * x\n"
    users = {
        "by name": "from helper import squared\ndef loss(o, t):\n    return squared(o - t).mean()",
        "by module": "import helper\ndef loss(o, t):\n    return helper.squared(o - t).mean()",
        "inside": "import helper\ndef loss(o, t):\n    return (lambda e: helper.squared(e))(o - t).mean()",
        "in a method": "import helper\nclass L:\n    def __call__(self, o, t):\n        return helper.squared(o)\nloss = L()",
        "as a base": "import helper\nclass L(helper.Base):\n    pass\nloss = L()",
    }
    helper += "class Base:\n    def __call__(self, o, t):\n        return o\n"

    def identities(helper: str, more: str = "") -> list[str]:
        module(helper, "helper")
        return [identity(module(text + more).loss) for text in users.values()]

    first = identities(helper)
    assert identities(helper) == first
    assert not set(first) & set(identities(helper + "# another\n"))
    assert not set(first) & set(identities(helper, "\n# another\n"))


NESTED = {  # ways to come by what another file of one's own defines
    "imported as it runs": "def loss(o, t):\n    from helpers.inner import squared\n    return squared(o - t)",
    "imported from beside it": "from helpers.outer import loss",
    "its module": "def loss(o, t):\n    import helpers.inner as h\n    return h.squared(o - t)",
    "both from a package": "def loss(o, t):\n    from helpers import inner\n    return inner.squared(o - t)",
    "through its package": "import helpers.inner\ndef loss(o, t):\n    return helpers.inner.squared(o - t)",
    "from a table": "from helpers.inner import squared\nALL = {'a': [squared]}\ndef loss(o, t):\n    return ALL['a'][0](o - t)",
    "by an object": "from helpers.inner import Base\nb = Base()\ndef loss(o, t):\n    return b.f(o - t)",
    "enclosed": "from helpers.inner import squared\ndef made(f):\n    def loss(o, t):\n        return f(o - t)\n"
    "    return loss\nloss = made(squared)",
    "in an attribute": "from helpers.inner import Base\nclass L:\n    b = Base()\n    def __call__(self, o, t):\n"
    "        return self.b.f(o - t)\nloss = L()",
    "by a tuple with names": "from helpers.inner import Pair\np = Pair()\ndef loss(o, t):\n    return p.f(o - t)",
    "by a number with a name": "from helpers.inner import Kind\nk = Kind.A\ndef loss(o, t):\n    return k.f(o - t)",
    "inside a class": "from helpers.inner import squared\nclass A:\n    class B:\n        f = squared\n"
    "def loss(o, t):\n    return A.B.f(o - t)",
    "as a property": "from helpers.inner import squared\nclass L:\n    @property\n    def f(self):\n        return squared\n"
    "    def __call__(self, o, t):\n        return self.f(o - t)\nloss = L()",
    "once": "import functools\nfrom helpers.inner import squared\nclass L:\n    @functools.cached_property\n"
    "    def f(self):\n        return squared\n    def __call__(self, o, t):\n        return self.f(o - t)\nloss = L()",
}  # fmt: skip


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_an_edited_file_is_other_code_however_code_comes_by_it(
    text: str, module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("")

    def identified(factor: int) -> tuple[str, str]:
        squared = (
            f"import enum\nfrom typing import NamedTuple\ndef squared(x):\n    return {factor} * x * x\n"
        )
        for head in ("Base:", "Pair(NamedTuple):\n    by: int = 1", "Kind(enum.IntEnum):\n    A = 1"):
            squared += f"class {head}\n    f = staticmethod(squared)\n"
        (tmp_path / "helpers" / "inner.py").write_text(squared)
        outer = "def loss(o, t):\n    from .inner import squared\n    return squared(o - t)\n"
        (tmp_path / "helpers" / "outer.py").write_text(outer)
        for name in ("helpers", "helpers.inner", "helpers.outer"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        loss = module(text).loss
        return identity(loss), identity(loss, held=False)

    first = identified(1)
    assert identified(1) == first
    assert not set(identified(2)) & set(first)


def test_what_is_installed_goes_by_its_file_alone(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    text = "BY = 1.0\ndef loss(o, t):\n    return BY * o\n"

    def installed(text: str) -> str:
        (folder / "bought.py").write_text(text)
        monkeypatch.delitem(sys.modules, "bought", raising=False)
        return identity(module("from bought import loss\ndef own(o, t):\n    return loss(o, t)\n").own)

    first = installed(text)
    monkeypatch.setattr(sys.modules["bought"], "BY", 2.0)
    assert identity(sys.modules["own"].own) == first != installed(text + "# another\n")


def test_what_is_installed_among_pythons_own_files_is_not_pythons() -> None:
    assert referring.known(str(referring.PYTHON / "json" / "decoder.py"))
    for name in referring.INSTALLED:
        assert not referring.known(str(referring.PYTHON / name / "bought.py"))
        assert not referring.is_users_file(str(referring.PYTHON / name / "bought.py"))


class Options:
    def __init__(self, by: float) -> None:
        self.by = by


class Step(enum.Enum):
    SMALL = 1.0
    LARGE = 2.0


class Count(enum.IntEnum):
    ONE = 1


class Mean(enum.StrEnum):
    OVER = "samples"


def test_choices_by_name_have_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their classes hold functions in C that Python gives no name to."""
    seen = set()
    for named in (Step, Count, Mean, Count.ONE, Mean.OVER, str.lower):
        monkeypatch.setitem(globals(), "SCALE", named)
        seen.add(identity(scaled))
    assert len(seen) == 6


def test_settings_that_code_names_count_whatever_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for by in (1.0, 2.0):
        kinds: list[Any] = [Options(by), SimpleNamespace(by=by), argparse.Namespace(by=by), Step(by)]
        kinds += [torch.distributions.Normal(0.0, by), {"f": enclosing(by)}, [Options(by)]]
        for held in kinds:
            monkeypatch.setitem(globals(), "SCALE", held)
            seen.append(identity(scaled))
    assert len(set(seen)) == 14


def test_an_object_that_cannot_be_hashed_goes_by_its_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Options(1.0), Options(2.0)
    seen = []
    for held in first:
        held.log = iter([held.by])  # type: ignore[attr-defined]
        monkeypatch.setitem(globals(), "SCALE", held)
        seen.append(identity(scaled))
    monkeypatch.setitem(globals(), "SCALE", iter([1.0]))
    assert seen[0] == seen[1] != identity(scaled)


def test_a_module_edited_after_its_import_is_what_it_was_until_it_is_imported_anew(
    module: Module, tmp_path: Path
) -> None:
    text = "def loss(o, t):\n    return o\n"
    own = module(text)
    first = identity(own.loss)
    (tmp_path / "own.py").write_text(text.replace("return o", "return t"))
    assert identity(own.loss) == first
    importlib.reload(own)
    assert identity(own.loss) != first


@pytest.mark.parametrize(
    "text",
    [
        "def loss(o, t):\n    return o\n",
        "class Loss:\n    def __call__(self, o, t):\n        return o\nloss = Loss()\n",
        "def other(o):\n    return o\ndef loss(o, t):\n    return other(o)\n",
        "def loss(o, t):\n    def inner():\n        return o\n    return inner()\n",
    ],
)
@pytest.mark.parametrize("edit", [("return o", "return 2 * o"), ("", "\n"), ("return o", "return (")])
def test_a_module_that_was_edited_before_its_code_was_first_named_is_refused(
    module: Module, tmp_path: Path, text: str, edit: tuple[str, str]
) -> None:
    """The old code ran, and its runs were stored under the new code's name: after a restart they passed for the new code's."""
    own = module(text)
    (tmp_path / "own.py").write_text(text.replace(*edit, 1))
    with pytest.raises(
        SpecError, match=r"own\.py was edited after it was imported: .* importlib\.reload\(own\)"
    ):
        identity(own.loss)
    assert identity(module(text).loss)


def test_an_edit_that_autoreload_puts_into_the_code_that_is_there_counts(
    module: Module, tmp_path: Path
) -> None:
    text = "def double(o):\n    return 2 * o\nclass Loss:\n    def __call__(self, o, t):\n        return double(o)\n"
    own = module(text)
    loss, functions = own.Loss(), [own.double, own.Loss.__call__]
    first = identity(loss)
    (tmp_path / "own.py").write_text(text.replace("2 *", "3 *"))
    importlib.reload(own)
    assert identity(own.Loss()) != first
    for function, edited in zip(functions, (own.double, own.Loss.__call__), strict=True):
        function.__code__ = edited.__code__
    assert identity(loss) == identity(own.Loss())


def test_without_what_it_holds_code_goes_by_its_files() -> None:
    found = [identity(thing, held=False) for thing in (enclosing(1.0), enclosing(2.0))]
    assert found[0] == found[1] != identity(scaled, held=False)
    assert identity(Scaled(1.0), held=False) == identity(Scaled(2.0), held=False)


@pytest.mark.parametrize(
    "thing",
    [iter([1]), torch.Generator(), enclosing(iter([1])), Scaled(torch.Generator())],
    ids=["iterator", "generator", "enclosed", "held"],
)
def test_what_cannot_be_hashed_is_told(thing: Any) -> None:
    with pytest.raises(SpecError, match="cannot be hashed, so that a store could not tell"):
        identity(thing)


def test_what_acts_and_cannot_be_hashed_is_told_where_code_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCALE", Scaled(torch.Generator()))
    with pytest.raises(SpecError, match="Generator cannot be hashed"):
        identity(scaled)


def test_a_compiled_function_is_refused() -> None:
    with pytest.raises(SpecError, match="scaled is compiled, and has no identity: give the function itself"):
        identity(torch.compile(scaled))


def test_code_that_was_typed_in_comes_from_no_file() -> None:
    space: dict[str, Any] = {}
    exec("def loss(o, t):\n    return o\nclass Loss:\n    def __call__(self, o, t):\n        return o", space)
    for typed in (space["loss"], space["Loss"](), functools.partial(space["loss"]), enclosing(space["loss"])):
        with pytest.raises(SpecError, match=r"[Ll]oss comes from no file .* put it into a module"):
            identity(typed)


def test_what_holds_itself_has_an_end() -> None:
    around: list[Any] = [1]
    around.append(around)
    assert identity(enclosing(around)) != identity(enclosing([1, [1]]))


def test_other_processes_and_the_main_module_agree(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import functools, sys\n"
        "import torch\n"
        "from alignlab.training.identity import identity\n"
        "WEIGHTS = {'a', 'b', 'c'}, ('x', 1.5), torch.ones(2)\n"
        "class Held:\n    kind = 1\n    def __call__(self, o, t):\n        return inner(o, t)\n"
        "@torch.no_grad()\ndef inner(o, t):\n    return o, WEIGHTS\n"
        "def loss(o, t, held=Held()):\n    return inner(o, t)\n"
        "if __name__ == '__main__':\n"
        "    import script\n"
        "    print(identity(loss), identity(script.loss))\n"
    )
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found |= set(done.stdout.split())
    assert len(found) == 1
