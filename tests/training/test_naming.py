"""A cell's name follows everything that decides its numbers, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from training_runs import TINY

from alignlab.store import StoreError
from alignlab.training import RunSpec, naming, tasks
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


def test_the_code_that_computes_is_where_the_hash_looks() -> None:
    assert {"measures", "rules", "probes", "training"} <= set(naming.COMPUTING)
    assert all((naming.PACKAGE / floor / "__init__.py").is_file() for floor in naming.COMPUTING)


def test_a_stored_run_of_another_spec_is_told(tmp_path: Path) -> None:
    check_stored(BASE, BASE.digest(), tmp_path / "a.nc")
    with pytest.raises(StoreError, match=r"a\.nc holds a run of another spec .* than fa lr=0.1 seed=0"):
        check_stored(BASE, BASE.changed(seed=1).digest(), tmp_path / "a.nc")
