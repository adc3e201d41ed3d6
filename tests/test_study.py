"""Studies: runs by label, computed once, read with their labels; and the command that runs a named one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

from alignlab import cli, gallery
from alignlab.audit.outcomes import final
from alignlab.figures import learning_curves, reaching
from alignlab.study import Study, aligned, grid, labelled
from alignlab.training import TASKS, RunSpec, SpecError, Split, Task

BASE = RunSpec(task="xor_bits", hidden=(3,), batch_size=1, steps=6, evaluations=4, record_every=0, lr=0.1)


def arms(full: bool) -> dict[str, list[RunSpec]]:
    steps = 8 if full else 6
    return {
        "mine": [BASE.changed(rule="fa", seed=s, steps=steps) for s in (2, 1, 0)],
        "another": [BASE.changed(seed=s, steps=steps) for s in range(3)],
    }


def table(runs: xr.Dataset) -> list[dict[str, Any]]:
    found = final(runs, "train_loss")
    return [{"arm": arm, "loss": float(found[arm].mean())} for arm in found]


STUDY = Study(
    question="Which?",
    source="a test",
    arms=arms,
    figures=lambda runs: {"share": reaching(runs, "train_accuracy", 0.75), "curves": learning_curves(runs, hue="arm")},
    table=table,
)  # fmt: skip


@pytest.mark.parametrize("lockstep", [False, True])
def test_runs_come_with_their_labels_and_are_computed_once(tmp_path: Path, lockstep: bool) -> None:
    study = Study(STUDY.question, STUDY.source, arms, STUDY.figures, table, lockstep)
    first = study.run(tmp_path)
    assert (first.computed, first.total) == (6, 6)
    assert first.runs["arm"].values.tolist() == ["mine"] * 3 + ["another"] * 3
    assert first.runs["rule"].values.tolist() == ["fa"] * 3 + ["bp"] * 3
    assert first.runs["seed"].values.tolist() == [0, 1, 2] * 2
    assert set(first.figures()) == {"share", "curves"}
    assert first.table().splitlines()[1].startswith("mine")
    second = study.run(tmp_path, seed=0)
    assert second.computed == 0
    xr.testing.assert_identical(first.runs, second.runs)
    assert study.run(tmp_path, seed=1).computed == 2  # seeds 1 and 2 are there
    full = study.run(tmp_path, full=True)  # what else is in the store is not read
    assert (full.computed, full.runs.sizes["run"], int(full.runs["step"].max())) == (6, 6, 8)


def test_progress_counts_runs(tmp_path: Path) -> None:
    from contextlib import contextmanager

    for lockstep in (False, True):
        counted: list[int] = []
        told: list[tuple[str, int]] = []

        @contextmanager
        def phase(what: str, n: int) -> Any:
            told.append((what, n))  # noqa: B023
            yield counted.append  # noqa: B023

        Study("?", "", arms, STUDY.figures, table, lockstep).run(tmp_path / str(lockstep), phase=phase)
        assert told == [("runs", 6)]
        assert sum(counted) == 6


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "there is no arm"),
        ({"a": []}, "arms without a run: 'a'"),
        ({"a": [BASE], "b": [BASE]}, "arms 'a' and 'b'"),
        ({"a": [BASE, BASE]}, "arms 'a' and 'a'"),
    ],
)
def test_arms_that_cannot_be_told_apart_are_refused(given: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        labelled(given)


def test_a_grid_has_every_combination_once_the_last_field_side_by_side() -> None:
    found = grid(BASE, lr=(0.1, 0.3), seed=range(2))
    assert [(spec.lr, spec.seed) for spec in found] == [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)]
    assert {spec.changed(lr=BASE.lr, seed=BASE.seed) for spec in found} == {BASE}
    assert grid(BASE) == [BASE]
    with pytest.raises(SpecError, match="colour"):
        grid(BASE, colour=["red"])


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.1), ("rule", "fa"), ("rule_args", {"init": "nokland"})]
)
def test_a_grid_takes_several_values_of_a_field(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"grid: {field} is .*, expected several values: {field}="):
        grid(BASE, **{field: value})
    with pytest.raises(SpecError, match="expected a RunSpec, not str"):
        grid("xor", lr=[0.1])  # type: ignore[arg-type]


def test_notes_stand_below_a_table() -> None:
    assert aligned([{"arm": "a"}], "one", "two").splitlines() == ["arm", "a", "", "one", "two"]


def test_rows_are_aligned() -> None:
    text = aligned([{"arm": "a", "x": 0.123456}, {"arm": "longer", "n": 3}])
    assert text.splitlines() == ["arm     x       n", "a       0.1235", "longer          3"]


# The command ----------------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> Any:
    monkeypatch.setattr(sys, "argv", ["alignlab", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_a_study_leaves_table_and_figures_and_a_second_call_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gallery, "study", lambda name: STUDY)
    call = ("study", "which", "--out", tmp_path / "out", "--workers", 1)
    assert command(monkeypatch, *call) == 0
    out = capsys.readouterr().out
    assert "Which?\n  a test" in out
    assert "6 of 6 runs computed" in out
    assert (tmp_path / "out" / "table.txt").read_text().strip() in out
    assert {"share.png", "share.svg", "curves.png"} <= {
        p.name for p in (tmp_path / "out" / "figures").iterdir()
    }
    assert command(monkeypatch, *call) == 0
    assert "nothing to compute: all 6 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("study", "xorr"), "no study 'xorr': did you mean xor? there are "),
        (("study", "sign_sync"), "sign_sync is a claim: alignlab audit sign_sync"),
        (("audit", "xor"), "xor is a study: alignlab study xor"),
    ],
)
def test_a_wrong_name_is_one_clear_line(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert told in error[0]


def test_a_study_asks_about_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = Split(torch.linspace(-1, 1, 12).view(6, 2), torch.linspace(0, 1, 6)[:, None])
    task = Task("own", points, points, points, torch.nn.functional.mse_loss, (2,), 1, has_accuracy=False)
    monkeypatch.setitem(TASKS, "own", task)

    def arms(full: bool) -> dict[str, list[RunSpec]]:
        base = RunSpec(task="own", hidden=(3,), steps=4, batch_size=3, evaluations=2)
        return {rule: [base.changed(rule=rule, seed=seed) for seed in range(2)] for rule in ("bp", "fa")}

    study = Study("a", "b", arms, lambda runs: {}, lambda runs: "c")
    result = study.run(tmp_path)
    assert result.runs["task"].values.tolist() == ["own"] * 4
    assert study.run(tmp_path).computed == 0


def test_help_has_an_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "study", "--help") == 0
    assert "Example: alignlab study xor" in capsys.readouterr().out


def test_the_gallery_tells_claims_from_studies() -> None:
    assert {"sign_sync", "bp_beats_fa"} <= set(gallery.names("CLAIM"))
    assert "xor" in gallery.names("STUDY")
    assert sorted(gallery.names("CLAIM") + gallery.names("STUDY")) == gallery.names()


@pytest.mark.parametrize("name", gallery.names("STUDY"))
@pytest.mark.parametrize("full", [False, True])
def test_every_study_of_the_gallery_has_runs_that_can_be_told_apart(name: str, full: bool) -> None:
    study = gallery.study(name)
    assert study.question
    assert study.source
    assert len(labelled(study.arms(full))) > 1
