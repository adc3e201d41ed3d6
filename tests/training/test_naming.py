"""A cell's name follows everything that decides its numbers, and nothing else."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import TINY

from alignlab.rules import INITS, RULES, Rule
from alignlab.store import StoreError
from alignlab.training import RunSpec, SpecError, naming, tasks
from alignlab.training.naming import cell_name, check_stored, code_hash

BASE = RunSpec(
    task="xor", hidden=(3,), rule="fa", batch_size=2, steps=4, evaluations=2, record_every=2, lr=0.1
)


def test_a_cells_name_follows_spec_data_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    name = cell_name(BASE)
    assert re.fullmatch("[0-9a-f]{24}", name)
    assert cell_name(RunSpec.from_yaml(BASE.to_yaml())) == name
    names = {name, cell_name(BASE.changed(seed=1)), cell_name(BASE.changed(lr=0.2))}
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "load", lambda task: TINY)
        names.add(cell_name(BASE))
    with monkeypatch.context() as patch:
        patch.setattr(naming, "code_hash", lambda: "other code")
        names.add(cell_name(BASE))
    assert len(names) == 5
    assert cell_name(BASE) == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (BASE.model_dump(), "29c18b2b2c06a83dece2e4ed"),
        ({}, "21e6d03f7dab6574688fb44b"),
        ({"task": "linear_toy", "rule": {"1": "fa"}}, "759b6e7a7f368bbb47609958"),
    ],
)
def test_by_the_same_code_a_run_on_a_task_of_alignlabs_keeps_its_name(
    fields: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From before there were others: stores go by it."""
    monkeypatch.setattr(naming, "code_hash", lambda: "code")
    assert cell_name(RunSpec(**fields)) == name


def test_the_code_hash_follows_every_source_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed() -> str:
        code_hash.cache_clear()
        return code_hash()

    files = [tmp_path / floor / "a.py" for floor in (*naming.COMPUTING, "figures")]
    for file in files:
        file.parent.mkdir()
        file.write_text("x = 1\n")
    real = hashed()
    with monkeypatch.context() as patch:
        patch.setattr(naming, "PACKAGE", tmp_path)
        seen = [hashed()]
        for file in files[:-1]:
            file.write_text("x = 2\n")
            seen.append(hashed())
        files[0].rename(files[0].with_name("b.py"))
        seen.append(hashed())
        files[-1].write_text("x = 2\n")  # how a run is drawn does not change it
        assert hashed() == seen[-1]
        patch.setattr(torch, "__version__", "0.0")
        seen.append(hashed())
    assert len({real, *seen}) == len(seen) + 1
    assert hashed() == real


OWN = """
from alignlab.rules import FeedbackLayer, Rule

class Own(Rule):
    name = "own"

    def refresh(self, layer):
        layer.feedback = 2 * layer.weight.detach()

def draw(like, generator):
    return like * 0
"""


@pytest.mark.parametrize("module", ["own_rule", "this"])  # which Python has one of, too
def test_a_rule_or_a_draw_of_ones_own_names_its_runs_by_the_file_it_comes_from(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(text: str) -> list[tuple[str, str]]:
        """Of runs by the rule, with the draw, by a rule made of the rule, and by others, as another process would name them,
        and what they say of what computed them."""
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        own = importlib.import_module(module)
        monkeypatch.setitem(RULES, "own", own.Own)
        monkeypatch.setitem(INITS, "own", own.draw)
        patterns = {"1": {"rule": "fa", "init": "own"}, "*": "bp"}
        rules = ("own", patterns, {"*": {"rule": "rescaled", "of": "own"}}, "fa", "bp")
        specs = [BASE.changed(rule=rule) for rule in rules]
        return [(cell_name(spec), naming.version(spec, tasks.load(spec.task))) for spec in specs]

    without = cell_name(BASE), code_hash()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first, again, other = names(OWN), names(OWN), names(OWN.replace("2 *", "3 *"))
    assert first == again
    for part in (0, 1):
        same = [a[part] == b[part] for a, b in zip(first, other, strict=True)]
        assert same == [False, False, False, True, True]
    assert first[3] == without


HELPED = """
import torch
from alignlab.rules import Rule
from own_helper import scaled

NOISE = 1.0

class Own(Rule):
    name = "own"

    def __init__(self, by=1.0, init="kaiming"):
        super().__init__(init)
        self.by, self.generator = by, GENERATOR

    def refresh(self, layer):
        layer.feedback = self.by * NOISE * scaled(layer.weight.detach())
"""
HELPER = "def scaled(weight):\n    return 2 * weight\n"


def test_a_rule_of_ones_own_names_its_runs_by_all_that_it_computes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(helper: str = HELPER, noise: float = 1.0, generator: str = "None", **held: float) -> str:
        (tmp_path / "own_helper.py").write_text(helper)
        (tmp_path / "own_rule.py").write_text(HELPED.replace("GENERATOR", generator))
        for module in ("own_helper", "own_rule"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        own = importlib.import_module("own_rule")
        monkeypatch.setattr(own, "NOISE", noise)
        monkeypatch.setitem(RULES, "own", functools.partial(own.Own, **held))
        return cell_name(BASE.changed(rule="own"))

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    edited = HELPER.replace("2 *", "3 *")
    different = {name(), name(edited), name(noise=2.0), name(by=2.0)}
    assert len(different) == 4
    assert name() in different
    drawing = "torch.Generator()"  # which has no hash
    assert name(generator=drawing) == name(generator=drawing) != name(edited, generator=drawing)


DRAWS = """
class Draw:
    __hash__ = None

    def __init__(self, bound):
        self.bound = bound

    def __call__(self, like, generator):
        return like * self.bound

def scaled(like, generator, bound=1):
    return like * bound
"""


def test_a_draw_that_is_partial_or_an_instance_goes_by_its_file_and_by_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def names(text: str, bound: float) -> list[str]:
        (tmp_path / "own_draws.py").write_text(text)
        monkeypatch.delitem(sys.modules, "own_draws", raising=False)
        importlib.invalidate_caches()
        own = importlib.import_module("own_draws")
        found = []
        for draw in (functools.partial(own.scaled, bound=bound), own.Draw(bound)):
            monkeypatch.setitem(INITS, "own", draw)
            found.append(cell_name(BASE.changed(rule_args={"init": "own"})))
        return found

    first = names(DRAWS, 0.1)
    assert names(DRAWS, 0.1) == first
    assert not set(first) & {*names(DRAWS, 0.2), *names(DRAWS.replace("like *", "2 * like *"), 0.1)}


def test_a_rule_that_comes_from_no_file_has_no_name_in_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    made = type("Typed", (Rule,), {"name": "typed", "__module__": "console"})
    monkeypatch.setitem(RULES, "typed", made)
    with pytest.raises(SpecError, match=r"Typed comes from no file \(console\).*put it into a module"):
        cell_name(BASE.changed(rule="typed"))
    assert cell_name(BASE)


def test_the_code_that_computes_is_where_the_hash_looks() -> None:
    assert {"measures", "rules", "probes", "training"} <= set(naming.COMPUTING)
    assert all((naming.PACKAGE / floor / "__init__.py").is_file() for floor in naming.COMPUTING)


def test_a_stored_run_of_another_spec_is_told(tmp_path: Path) -> None:
    check_stored(BASE, BASE.digest(), tmp_path / "a.nc")
    with pytest.raises(StoreError, match=r"a\.nc holds a run of another spec .* than fa lr=0.1 seed=0"):
        check_stored(BASE, BASE.changed(seed=1).digest(), tmp_path / "a.nc")
