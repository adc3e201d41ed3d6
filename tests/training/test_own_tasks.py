"""Tasks of one's own, by name: none is overwritten, runs go by data, loss and files, and what does not fit is told at once."""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_task import LOSSES, TASK, registered, written
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from training_runs import trained

from alignlab.store import Segments, open_runs
from alignlab.store.claims import Claims
from alignlab.training import TASKS, RunSpec, SpecError, Split, Sweep, Task, planner, tasks, train
from alignlab.training.cells import Job, run_job
from alignlab.training.errors import DataError, SweepError
from alignlab.training.evaluation import accuracy
from alignlab.training.naming import cell_name, code_hash, version
from alignlab.training.planner import packs
from alignlab.training.population import alone, train_population
from alignlab.training.workers import Workers

FIELDS: dict[str, Any] = {
    "hidden": (5,), "rule": "fa", "batch_size": 10, "steps": 6, "evaluations": 3, "record_every": 3, "lr": 0.1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in set(TASKS) - set(tasks.NAMES):
        del TASKS[name]


def splits(outputs: int = 1, seed: int = 0) -> list[Split]:
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(size, 4, generator=generator) for size in (40, 12, 12)]
    return [Split(x, x[:, :outputs].tanh()) for x in inputs]


def table(
    loss: Callable[[Tensor, Tensor], Tensor] = mse_loss, of: list[Split] | None = None, **changes: Any
) -> Task:
    fields: dict[str, Any] = {"n_in": (4,), "n_out": 1, "has_accuracy": False}
    three = dict(zip(("train", "validation", "test"), of or splits(), strict=True))
    return Task(**{"name": "table", "loss": loss, **three, **fields, **changes})


def make(seed_data: int) -> Task:
    return table()


def make_another(seed_data: int) -> Task:
    return table(of=splits(seed=1))


def of_seed(seed_data: int, add: int) -> Task:
    return table(of=splits(seed=seed_data + add))


def spec(**fields: Any) -> RunSpec:
    return RunSpec(**{**FIELDS, "task": "own", **fields})


# The registry ---------------------------------------------------------------------------------------------------------


def test_a_task_is_added_by_a_function_or_as_it_is() -> None:
    TASKS["made"], TASKS["own"] = make, table()
    assert list(TASKS) == [*tasks.NAMES, "made", "own"]
    assert tasks.load("made").fingerprint == tasks.load("own").fingerprint
    assert tasks.load("made").name == spec(task="made").task == "made"
    assert train(spec())["task"].item() == "own"
    assert tasks.load("made") is tasks.load("made")


def test_a_function_is_given_the_seed_of_the_data() -> None:
    TASKS["own"] = lambda seed: table(train=splits(seed=seed)[0])
    assert tasks.load("own", 1).fingerprint != tasks.load("own", 2).fingerprint


@pytest.mark.parametrize("name", tasks.NAMES)
def test_alignlabs_own_tasks_are_neither_replaced_nor_removed(name: str) -> None:
    with pytest.raises(SpecError, match=f"'{name}' is one of alignlab's own tasks, and stays"):
        TASKS[name] = make
    with pytest.raises(SpecError, match="and stays"):
        del TASKS[name]
    assert name in TASKS


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("own", None, "expected a function that takes seed_data and returns a Task, or a Task"),
        ("own", lambda: table(), "too many positional arguments: expected a function"),
        ("own", lambda a, b: table(), "missing a required argument: 'b': expected a function"),
        ("own", Task, "expected a function"),
        ("own", splits(), "expected a function"),
        ("", make, "expected a text"),
        (3, make, "the name of a task is 3"),
    ],
)
def test_what_makes_no_task_is_refused_at_once(name: Any, content: Any, told: str) -> None:
    with pytest.raises(SpecError, match=re.escape(told)):
        TASKS[name] = content
    assert list(TASKS) == list(tasks.NAMES)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (make, make_another), (make, table()), (table(), make), (table(), table(nn.L1Loss())),
        (table(), table(threshold=0.5)), (table(), make_another(0)), (functools.partial(of_seed, add=1), make),
    ],
)  # fmt: skip
def test_a_name_keeps_its_content(first: Any, second: Any) -> None:
    TASKS["own"] = first
    with pytest.raises(
        SpecError, match=r"a task 'own' already, with another content, which stays: .*`del TASKS\['own'\]`"
    ):
        TASKS["own"] = second
    assert TASKS["own"] is first


def test_the_same_content_may_be_added_again() -> None:
    for content in (make, make, functools.partial(make_another)):
        TASKS[str(content)] = content
        TASKS[str(content)] = content
    TASKS["own"] = first = table()
    TASKS["own"] = table()
    assert TASKS["own"] is first
    TASKS["part"] = functools.partial(make)
    TASKS["part"] = functools.partial(make)


def test_a_name_that_is_given_to_another_content_serves_no_old_data() -> None:
    TASKS["own"] = make
    before, name = tasks.load("own"), cell_name(spec())
    del TASKS["own"]
    with pytest.raises(ValueError, match="unknown task 'own'"):
        tasks.load("own")
    TASKS["own"] = make_another
    assert tasks.load("own").fingerprint != before.fingerprint
    assert cell_name(spec()) != name


def test_a_function_that_raises_or_returns_no_task_is_told() -> None:
    TASKS["own"] = lambda seed: Path("nowhere.csv").read_text()
    with pytest.raises(
        DataError, match=r"^the task 'own' of your own cannot be made: FileNotFoundError: .*nowhere.csv"
    ):
        Sweep([spec()])
    TASKS["exits"] = lambda seed: sys.exit("no data here")
    with pytest.raises(DataError, match="'exits' of your own cannot be made: SystemExit: no data here"):
        Sweep([spec(task="exits")])
    TASKS["none"] = lambda seed: None
    with pytest.raises(SpecError, match=r"^the function TASKS\['none'\] returned None, expected a Task"):
        Sweep([spec(task="none")])


def test_an_unknown_task_is_told_with_those_of_ones_own() -> None:
    TASKS["diabetes"] = make
    with pytest.raises(SpecError, match="did you mean diabetes"):
        spec(task="diabtes")
    with pytest.raises(ValueError, match="did you mean 'diabetes'"):
        tasks.load("diabtes")


# Names of runs --------------------------------------------------------------------------------------------------------


def name_of(content: Any, **fields: Any) -> str:
    TASKS["own"] = content
    try:
        return cell_name(spec(**fields))
    finally:
        del TASKS["own"]


def squared(output: Tensor, target: Tensor, by: float = 1.0) -> Tensor:
    return by * (output - target).square().mean()


def test_runs_go_by_the_data_the_loss_and_what_it_holds() -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    classes = table(cross_entropy, train=Split(splits()[0].inputs, labels), n_out=2)
    contents = [
        table(), make_another(0), table(squared), table(functools.partial(squared, by=2.0)),
        table(nn.HuberLoss(delta=0.5)),
        table(nn.HuberLoss(delta=0.4)), table(lambda o, t: 2 * squared(o, t)), table(n_out=2),
        table(threshold=0.5, has_accuracy=True),
        table(threshold=0.4, has_accuracy=True), classes, replace(classes, n_out=3), make,
    ]  # fmt: skip
    names = [name_of(content) for content in contents]
    assert len(set(names)) == len(contents)
    assert [name_of(content) for content in contents] == names


def test_a_loss_that_is_changed_in_place_is_another() -> None:
    loss = nn.HuberLoss(delta=0.5)
    TASKS["own"] = table(loss)
    sweep = Sweep([spec()])
    loss.delta = 0.4
    assert cell_name(spec()) not in sweep.names.values()
    with pytest.raises(SpecError, match="changed after the sweep named it, and nothing was run"):
        sweep.run()


def test_data_that_are_changed_in_place_are_others(tmp_path: Path) -> None:
    given = splits()
    inputs = given[0].inputs.clone()
    TASKS["own"] = table(train=Split(inputs, given[0].targets))
    assert Sweep([spec()], tmp_path).run() == 1
    inputs /= inputs.std(0)
    sweep = Sweep([spec()], tmp_path)
    assert sweep.run() == 1
    stored = Segments(tmp_path).read(sweep.names[spec()])
    np.testing.assert_allclose(stored["train_loss"], train(spec())["train_loss"], rtol=1e-5)
    assert stored.attrs["data_hash"] == table(train=Split(inputs, given[0].targets)).fingerprint
    late = Sweep([spec(seed=1)], tmp_path)
    inputs *= 2
    with pytest.raises(SpecError, match="changed after the sweep named it"):
        late.run()


def test_an_edited_loss_or_task_is_never_served_runs_of_the_one_before(tmp_path: Path) -> None:
    def sweep(number: int, task: str = TASK, losses: str = LOSSES) -> tuple[int, str, float]:
        with registered(tmp_path / str(number), task, losses):
            own = spec(task="tab")
            done = Sweep([own], tmp_path / "runs")
            computed, name = done.run(), done.names[own]
            return computed, name, float(Segments(tmp_path / "runs").read(name)["test_loss"][-1])

    first = sweep(0)
    assert sweep(1) == (0, *first[1:])
    edited = sweep(2, losses=LOSSES.replace("0.7", "0.9"))
    assert edited[0] == 1
    assert edited[2] != first[2]
    imported = LOSSES.replace("SHARE = 0.7", "from math import log10 as f\nSHARE = f(8)")
    assert sweep(3, losses=imported)[0] == 1
    assert sweep(4, TASK + "\n# a word\n")[0] == 1
    assert sweep(5)[0] == 0


def test_runs_of_a_spec_before_and_after_an_edit_are_told_to_be_no_replicates(tmp_path: Path) -> None:
    edits = (("", LOSSES), ("", LOSSES.replace("0.7", "0.9")), ("# more data", LOSSES))
    for number, (more, losses) in enumerate(edits):
        task = TASK.replace("(40, 12, 12)", "(41, 12, 12)") if more else TASK
        with registered(tmp_path / str(number), task, losses):
            Sweep([spec(task="tab")], tmp_path / "runs").run()
    with pytest.warns(UserWarning, match="3 of 3 runs are of 1 spec, computed by several versions"):
        runs = open_runs(tmp_path / "runs")
    assert len(set(runs["code_hash"].values)) == 3
    TASKS["own"] = table()
    assert (
        train(spec()).attrs["code_hash"]
        != code_hash()
        == train(spec(task="xor", batch_size=2)).attrs["code_hash"]
    )


def test_runs_of_a_spec_on_other_data_are_no_replicates_where_the_code_is_the_same() -> None:
    TASKS["own"] = table()
    first, again, other = (version(spec(), task) for task in (table(), table(), make_another(0)))
    assert first == again != other


def test_a_file_that_is_edited_after_its_import_does_not_name_what_was_imported(tmp_path: Path) -> None:
    with registered(tmp_path) as own:
        written(tmp_path, losses=LOSSES.replace("0.7", "0.9"))
        late = cell_name(spec(task="tab"))
        with pytest.raises(SpecError, match="already, with another content"):
            importlib.reload(sys.modules["own_tab_losses"]) and importlib.reload(own)
    with registered(tmp_path, losses=LOSSES):
        assert cell_name(spec(task="tab")) == late


def test_an_edit_that_autoreload_puts_into_a_task_makes_its_data_and_its_runs_anew(tmp_path: Path) -> None:
    with registered(tmp_path) as own:
        make, before, name = own.make, tasks.load("tab"), cell_name(spec(task="tab"))
        written(tmp_path, TASK.replace("(40, 12, 12)", "(41, 12, 12)").replace('TASKS["tab"] = make', ""))
        make.__code__ = importlib.reload(own).make.__code__
        assert [len(task.train.targets) for task in (before, tasks.load("tab"))] == [40, 41]
        assert cell_name(spec(task="tab")) != name


def test_a_task_that_comes_from_no_file_has_no_name_in_a_store_and_can_be_trained(tmp_path: Path) -> None:
    space: dict[str, Any] = {"table": table}
    exec(
        "def make(seed_data):\n    return table()\ndef loss(o, t):\n    return (o - t).square().mean()", space
    )
    TASKS["own"] = space["make"]
    with pytest.raises(SpecError, match=r"make comes from no file .* put it into a module and import it"):
        Sweep([spec()], tmp_path)
    assert train(spec())["status"].item() == "finished"
    with pytest.raises(SpecError, match="the loss of task own: loss comes from no file"):
        name_of_typed(space["loss"])


def name_of_typed(loss: Any) -> str:
    del TASKS["own"]
    return name_of(table(loss))


def test_a_task_as_it_is_with_a_loss_of_torchs_needs_no_file(tmp_path: Path) -> None:
    TASKS["own"] = table()
    assert Sweep([spec()], tmp_path).run() == 1


# Populations, sweeps, workers -----------------------------------------------------------------------------------------


def pinball(output: Tensor, target: Tensor) -> Tensor:
    error = target - output
    return (0.7 * error.clamp(min=0) - 0.3 * error.clamp(max=0)).sum(-1).mean()


def uneven(output: Tensor, target: Tensor) -> Tensor:
    """Its way depends on its numbers, which many runs at once cannot follow."""
    loss = squared(output, target)
    return loss if loss > 0.1 else 2 * loss


def cells(**fields: Any) -> list[RunSpec]:
    return [spec(rule=rule, seed=seed, **fields) for rule in ("bp", "fa", "sign_sync") for seed in range(2)]


@pytest.mark.parametrize("rules", [("bp", "fa"), ("node_perturbation",)])
def test_a_population_on_a_task_of_ones_own_is_its_runs_one_by_one(rules: tuple[str, ...]) -> None:
    TASKS["own"] = table(pinball)
    specs = [spec(rule=rule, seed=seed) for rule in rules for seed in range(3)]
    for one, run in zip(specs, train_population(specs), strict=True):
        single = train(one, task=table(pinball))
        for name in ("train_loss", "test_loss", "gradient_angle", "update_norm"):
            np.testing.assert_allclose(run[name], single[name], rtol=2e-4, atol=1e-6)
        assert "test_accuracy" not in run


def test_runs_on_double_data_take_twice_the_memory(monkeypatch: Any) -> None:
    TASKS["own"], TASKS["twice"] = table(), table(of=[double(split) for split in splits()])
    monkeypatch.setattr(planner.devices, "free_memory", lambda device: 2**30)
    assert planner.fitting(spec(), 1) in (2 * planner.fitting(spec(task="twice"), 1) + k for k in (0, 1))


def test_a_loss_that_many_runs_cannot_share_is_trained_run_by_run(tmp_path: Path) -> None:
    TASKS["own"], TASKS["together"] = table(uneven), table(pinball)
    assert alone(spec()) == ["the loss of own cannot be taken of many runs at once"]
    assert alone(spec(task="together")) == alone(spec(loss="absolute")) == []
    assert [len(pack) for pack in packs(cells())] == [1] * 6
    sweep = Sweep(cells(), tmp_path)
    assert sweep.run() == 6
    for one, name in sweep.names.items():
        stored = Segments(tmp_path).read(name)
        np.testing.assert_array_equal(stored["train_loss"], train(one, task=table(uneven))["train_loss"])


def test_a_loss_that_is_another_number_of_many_runs_at_once_is_trained_run_by_run() -> None:
    calls: list[int] = []

    def counting(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return squared(output, target) * len(calls)

    TASKS["own"] = table(counting)
    assert alone(spec())


def test_workers_import_what_was_imported_and_compute_the_same_numbers(tmp_path: Path) -> None:
    with registered(tmp_path):
        specs = cells(task="tab")
        sweep = Sweep(specs, tmp_path / "runs", lockstep=False)
        with Workers(2) as two:
            assert sweep.run(two) == 6
        for one, name in sweep.names.items():
            stored = Segments(tmp_path / "runs").read(name)
            np.testing.assert_array_equal(stored["test_loss"], train(one)["test_loss"])


def test_a_task_that_a_worker_does_not_know_is_told(tmp_path: Path) -> None:
    TASKS["own"] = make
    asked = Job((spec(),), (cell_name(spec()),), tmp_path, code_hash(), "mark")
    del TASKS["own"]
    with Claims(tmp_path) as claims:
        claims.take("mark")
        (outcome,) = run_job(asked)
        TASKS["own"] = make_another
        (changed,) = run_job(asked)
    assert outcome.reason.startswith(
        "unknown task 'own'; put a task of your own into TASKS where workers do too: in a module"
    )
    assert changed.reason.startswith(
        "its spec or its data changed after the sweep began, or the file of a rule or a task"
    )
    assert changed.reason.endswith("a task of your own must give the same data in every process")
    assert Segments(tmp_path).names() == []


SCRIPT = """
import torch
import alignlab as al
from alignlab.training import TASKS, Split, Task
import {module}


def here(seed_data):
    x = torch.linspace(-1, 1, 30)[:, None]
    split = Split(x, x.square())
    return Task("here", split, split, split, lambda o, t: (o - t).abs().mean(), (1,), 1, has_accuracy=False)


TASKS["here"] = here
{late}

if __name__ == "__main__":
    cells = [al.RunSpec(task=task, hidden=(4,), steps=5, batch_size=10, seed=seed) for task in TASKS_USED for seed in (0, 1)]
    try:
        print(al.Sweep(cells, "runs").run(2), "computed")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("known", [True, False])
def test_workers_know_the_tasks_that_the_script_adds_at_its_top(tmp_path: Path, known: bool) -> None:
    late = 'TASKS_USED = ("tab", "here")'
    if not known:
        late = 'TASKS_USED = ("late",)\nif __name__ == "__main__":\n    TASKS["late"] = here'
    (tmp_path / "script.py").write_text(SCRIPT.format(module=written(tmp_path), late=late))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    if known:
        assert done.stdout == "4 computed\n"
    else:
        assert done.stdout.startswith("SweepError 2 of 2 runs failed")
        assert (
            done.stdout.count("unknown task 'late'; put a task of your own into TASKS where workers do too")
            == 1
        )


def test_a_worker_that_cannot_import_a_module_says_so(tmp_path: Path) -> None:
    with registered(tmp_path):
        sweep = Sweep(cells(task="tab"), tmp_path / "runs", lockstep=False)
        (tmp_path / "own_tab.py").unlink()
        with (
            Workers(2) as two,
            pytest.raises(SweepError, match=r"the worker on .* cannot import 'own_tab' .*PYTHONPATH"),
        ):
            sweep.run(two)


# What does not fit ----------------------------------------------------------------------------------------------------


def labelled(outputs: int, *labels: int) -> Task:
    inputs = splits()[2].inputs
    split = Split(inputs, torch.tensor(labels).repeat(12)[:12])
    return table(cross_entropy, train=split, validation=split, test=split, n_out=outputs, has_accuracy=True)


@dataclass
class Weighted:
    """Which has no hash."""

    by: float = 2.0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.by * mse_loss(output, target)


def holed() -> Task:
    inputs = splits()[0].inputs.clone()
    inputs[3, 2] = torch.nan
    return table(train=Split(inputs, splits()[0].targets))


def flat() -> Task:
    return table(of=[Split(split.inputs, split.targets[:, 0]) for split in splits()])


def double(split: Split) -> Split:
    return Split(split.inputs.double(), split.targets.double())


def weighted() -> Task:
    labels = labelled(3, 0, 0, 0, 1, 2)
    return replace(labels, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0])))


class Annealed:
    """Weaker at each call."""

    calls = 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return squared(output, target) / self.calls


UNFIT: list[tuple[Callable[[], Task], dict[str, Any], str]] = [
    (table, {"model": "lenet", "hidden": (128, 64)}, "lenet needs images of at least 16×16 pixels, the task's inputs are (4,)"),
    (table, {"frozen": ("9.*",)}, "'9.*' names no parameter"),
    (flat, {}, "train targets have shape (40,), and (N, 1) outputs minus (N,) targets are N × N numbers"),
    (lambda: table(n_out=3), {}, "outputs (2, 3) and train targets (2, 1) of torch.float32 do not go together (UserWarning: "),
    (lambda: table(has_accuracy=True), {}, "a task without classes has has_accuracy=False, or a threshold"),
    (lambda: table(cross_entropy, n_out=2), {}, "outputs (2, 2) and train targets (2, 1)"),
    (lambda: labelled(2, 0, 1, 2), {}, "do not go together (IndexError: Target 2 is out of bounds"),
    (lambda: labelled(2, 0, 1), {"loss": "absolute"}, "the targets of own are classes"),
    (holed, {}, "train inputs are not all finite"),
    (lambda: table(nn.MSELoss(reduction="none")), {}, "its loss gives a tensor of shape (2, 1), expected the mean"),
    (lambda: table(lambda o, t: float(squared(o, t))), {}, "its loss gives a float, expected"),
    (lambda: table(lambda o, t: squared(o.detach(), t)), {}, "its loss gives a tensor without a gradient, expected"),
    (lambda: table(lambda o, t: o.no_such()), {}, "(AttributeError: 'Tensor' object has no attribute 'no_such')"),
    (lambda: table(test=double(splits()[2])), {}, "test inputs are torch.float64 and train inputs torch.float32: give all"),
    (lambda: table(lambda o, t: squared(o, t) * o[1].exp().mean()), {"rule": "soap"}, "alone (index 1 is out of bounds"),
    (lambda: table(Annealed()), {}, "its loss changes itself as it is called"),
    (lambda: table(uneven), {"rule": "node_perturbation"}, "cannot be taken sample by sample, as this rule needs it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "fields", "told"), UNFIT, ids=lambda x: x[:50] if isinstance(x, str) else ""
)
def test_what_does_not_fit_is_one_line_before_anything_runs(
    content: Callable[[], Task], fields: dict[str, Any], told: str, tmp_path: Path
) -> None:
    TASKS["own"] = content()
    fields = {"hidden": FIELDS["hidden"], **fields}
    with pytest.raises(SpecError) as caught:
        Sweep([spec(seed=seed, **fields) for seed in range(3)], tmp_path).run()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_fit_is_told_before_another_on_its_task_is_computed(tmp_path: Path) -> None:
    beyond = Split(torch.full((12, 4), torch.inf), torch.zeros(12, 1))
    pairs: list[tuple[Task, dict[str, Any], dict[str, Any], str]] = [
        (labelled(2, 0, 1), {}, {"loss": "absolute"}, "needs values to compare with"),
        (table(), {"hidden": (128, 64)}, {"hidden": (128, 64), "model": "lenet"}, "lenet"),
        (weighted(), {}, {"rule": "node_perturbation"}, "this rule needs them equal"),
        (table(test=beyond), {"splits": ("train",)}, {}, "test inputs are not all finite"),
    ]
    for content, fits, other, told in pairs:
        TASKS["own"] = content
        with pytest.raises(SpecError, match=told):
            Sweep([spec(**fits), spec(**other)], tmp_path).run()
        del TASKS["own"]
    assert list(tmp_path.iterdir()) == []


def among(output: Tensor, target: Tensor) -> Tensor:
    return squared(output - output.mean(0), target - target.mean(0))


@pytest.mark.parametrize("rule", ["node_perturbation", "weight_perturbation", "soap"])
@pytest.mark.parametrize("content", [weighted(), table(among)], ids=["weights", "among"])
def test_a_rule_that_compares_passes_takes_no_loss_that_is_not_the_mean_of_single_ones(
    rule: str, content: Task, tmp_path: Path
) -> None:
    """It would make the mean fall, and backprop beside it the loss."""
    TASKS["own"] = content
    runs = [spec(rule=rule, seed=seed) for seed in range(2)]
    told = r"task own: its loss of \d+ samples is .*, and the mean of their single losses .*: this rule needs them equal"
    for refused in (Sweep(runs, tmp_path).run, lambda: train(runs[0]), lambda: train_population(runs)):
        with pytest.raises(SpecError, match=told):
            refused()
    assert list(tmp_path.iterdir()) == []


def test_the_weight_of_a_rare_class_is_found_wherever_it_stands() -> None:
    """One sample in 4000: it was not among those that were looked at, and the mean without weights was made to fall."""
    inputs = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4000) % 2
    labels[5] = 2
    split = Split(inputs, labels)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 100.0]))
    rare = table(loss, of=[split] * 3, n_out=3, has_accuracy=True)
    with pytest.raises(SpecError, match="this rule needs them equal"):
        train(spec(task="xor", rule="node_perturbation"), task=rare)


@pytest.mark.parametrize(
    "loss",
    [squared, nn.HuberLoss(), lambda o, t: (o.double() - t).abs().mean()],
    ids=["own", "huber", "double"],
)
def test_a_rule_that_compares_passes_takes_a_loss_that_is_the_mean_of_single_ones(loss: Any) -> None:
    TASKS["own"] = table(loss)
    assert train(spec(rule="node_perturbation"))["status"] == "finished"


def test_values_without_a_dimension_of_outputs_are_refused_where_a_task_is_handed_over_too() -> None:
    """(N, 1) outputs minus (N,) targets were N × N errors, whose least mean is the targets' variance."""
    for train_it in (
        lambda: train(spec(task="xor"), task=flat()),
        lambda: train_population([spec()], task=flat()),
    ):
        TASKS["own"] = table()
        with pytest.raises(SpecError, match=r"train targets have shape \(40,\), and \(N, 1\) outputs minus"):
            train_it()
        del TASKS["own"]


def test_logits_and_the_bits_that_are_their_targets_have_a_threshold_each() -> None:
    """Of one for both, 0.5, logits between 0 and 0.5 counted as a 0."""
    bits = [Split(split.inputs, (split.inputs[:, :2] > 0).float()) for split in splits()]
    for loss in (binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()):
        wrong = table(loss, of=bits, n_out=2, has_accuracy=True, threshold=0.5)
        with pytest.raises(SpecError, match=r"threshold=\(0.0, 0.5\), the outputs' and the targets'"):
            train(spec(task="xor"), task=wrong)
        TASKS["own"] = right = replace(wrong, threshold=(0.0, 0.5))
        output = trained(spec(task="xor", steps=40, lr=1.0), right)(right.train.inputs)
        share = ((torch.sigmoid(output) > 0.5) == (right.train.targets > 0.5)).all(1).float().mean()
        for run in (train(spec(steps=40, lr=1.0)), *train_population([spec(steps=40, lr=1.0)])):
            assert run["train_accuracy"][-1] == share
        assert accuracy(output, right.train.targets, 0.5) < share
        del TASKS["own"]


def test_bits_that_are_true_or_false_are_refused_where_they_have_a_threshold() -> None:
    bits = [Split(split.inputs, split.inputs[:, :2] > 0) for split in splits()]
    task = table(lambda o, t: binary_cross_entropy_with_logits(o, t.float()), of=bits, n_out=2, has_accuracy=True,
                 threshold=(0.0, 0.5))  # fmt: skip
    with pytest.raises(
        SpecError, match=r"targets are true or false, expected bits as floats: targets.float\(\)"
    ):
        train(spec(task="xor"), task=task)


def total(output: Tensor, target: Tensor) -> Tensor:
    """Of batches of 10."""
    return squared(output, target) * len(output) / 10


def score(output: Tensor, target: Tensor) -> Tensor:
    """The better the lower, below 0."""
    return -torch.exp(-(output - target).square()).sum()


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(reduction="sum"), total, score], ids=["sum", "by a fixed number", "negative"]
)
@pytest.mark.parametrize("rule", ["bp", "dfa", "node_perturbation"])
def test_a_loss_that_is_a_sum_over_samples_is_refused_by_every_rule(
    rule: str, loss: Any, tmp_path: Path
) -> None:
    """Its train_loss of 40 samples and its test_loss of 12 are no two measures of one thing."""
    TASKS["own"] = table(loss)
    runs = [spec(rule=rule, seed=seed) for seed in range(2)]
    told = (
        r"task own: its loss of 8 samples is .*, and of each of them twice .*, as of a sum: expected the mean"
    )
    for refused in (Sweep(runs, tmp_path).run, lambda: train(runs[0]), lambda: train_population(runs)):
        with pytest.raises(SpecError, match=told):
            refused()
    with pytest.raises(SpecError, match="as of a sum"):
        train(spec(task="xor", rule=rule), task=table(loss))
    assert list(tmp_path.iterdir()) == []


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    """InfoNCE: each sample against all others of the batch."""
    return cross_entropy(output @ output.T, torch.arange(len(output)))


@pytest.mark.parametrize(
    "content",
    [
        weighted(),
        table(among),
        table(contrastive),
        table(lambda o, t: squared(o, t).sqrt()),
        table(lambda o, t: torch.zeros(()) * o.sum()),
        table(lambda o, t: 1e-10 * squared(o, t)),
    ],
    ids=["weights", "among", "contrastive", "root", "nothing", "tiny"],
)
def test_a_loss_that_is_neither_a_mean_of_single_ones_nor_a_sum_is_learned_by_rules_that_send_errors(
    content: Task, tmp_path: Path
) -> None:
    TASKS["own"] = content
    assert Sweep([spec(rule=rule) for rule in ("bp", "fa", "dfa")], tmp_path).run() == 3


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_sample_of_no_class_is_refused_where_it_would_count_as_wrong_or_as_right(where: str) -> None:
    """Populations took cross-entropy's mean over the ignored samples too, and accuracies counted them as wrong."""
    classes = labelled(2, 0, 1)
    targets = classes.train.targets.clone()
    targets[7] = -100  # cross_entropy's ignore_index
    split = {where: Split(classes.train.inputs, targets)}
    wrong = replace(classes, **split), replace(classes, **split, has_accuracy=False)
    for task in (*wrong, replace(classes, **split, loss=nn.CrossEntropyLoss())):
        for refused in (lambda t: train(spec(), task=t), lambda t: train_population([spec()], task=t)):
            TASKS["own"] = task
            with pytest.raises(
                SpecError, match=rf"1 {where} targets are no class \(-100\), and classes are 0 to 1"
            ):
                refused(task)
            with pytest.raises(SpecError, match="are no class"):
                Sweep([spec()]).run()
            del TASKS["own"]


def test_classes_that_begin_at_1_are_refused() -> None:
    """Cross-entropy stumbles over the last one; another loss may not, and its accuracy would be that of other classes."""
    classes = labelled(2, 0, 1)
    train_split = Split(classes.train.inputs, classes.train.targets + 1)
    shifted = replace(classes, train=train_split, loss=lambda o, t: (o[:, 0] - t).square().mean())
    with pytest.raises(SpecError, match=r"no class \(2\), and classes are 0 to 1"):
        train(spec(task="xor"), task=shifted)


def test_samples_that_a_loss_leaves_out_of_its_mean_are_left_out_by_populations_too() -> None:
    classes = labelled(2, 0, 1)
    targets = classes.train.targets.clone()
    targets[7] = -100
    ignoring = replace(classes, train=Split(classes.train.inputs, targets), has_accuracy=False)
    TASKS["own"] = replace(ignoring, loss=nn.CrossEntropyLoss())
    specs = [spec(seed=seed) for seed in range(2)]
    for one, run in zip(specs, train_population(specs), strict=True):
        np.testing.assert_allclose(run["train_loss"], train(one)["train_loss"], rtol=1e-5)


def test_a_hole_in_the_targets_is_told_where_the_loss_does_not_leave_it_out(tmp_path: Path) -> None:
    """It was a run that diverged."""
    whole = splits()[0]
    targets = whole.targets.clone()
    targets[3] = torch.nan

    def filled(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().nanmean()

    TASKS["own"] = table(train=Split(whole.inputs, targets))
    with pytest.raises(SpecError, match="train targets are not all finite, and the loss of them is nan"):
        Sweep([spec()], tmp_path).run()
    del TASKS["own"]
    TASKS["own"] = table(filled, train=Split(whole.inputs, targets))
    assert Sweep([spec()], tmp_path).run() == 1


def test_a_task_that_seeds_leaves_the_callers_random_state() -> None:
    def seeding(seed_data: int) -> Task:
        torch.manual_seed(seed_data)
        return table()

    TASKS["seeding"] = seeding
    before = torch.get_rng_state()
    tasks.load("seeding", 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_that_a_teacher_made_are_numbers_without_its_graph() -> None:
    teacher = nn.Linear(4, 1)
    made = [Split(split.inputs, teacher(split.inputs)) for split in splits()]
    assert not made[0].targets.requires_grad
    TASKS["own"] = table(of=made)
    assert train(spec())["status"] == "finished"
    assert teacher.weight.grad is None


def test_data_made_in_inference_mode_can_be_learned_from(tmp_path: Path) -> None:
    with torch.inference_mode():
        TASKS["own"] = table(of=[Split(split.inputs * 1, split.targets * 1) for split in splits()])
    assert Sweep([spec()], tmp_path).run() == 1


def test_a_split_of_arrays_says_what_to_give() -> None:
    with pytest.raises(
        ValueError, match=r"a split's targets are a ndarray, expected a tensor: torch.as_tensor"
    ):
        Split(torch.ones(2, 4), np.ones((2, 1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        table(),
        labelled(3, 0, 2),
        table(threshold=0.5, has_accuracy=True),
        table(Weighted()),
        table(of=[Split(split.inputs.double(), split.targets.double()) for split in splits()]),
        table(
            binary_cross_entropy_with_logits, of=[Split(x.inputs, (x.targets > 0).float()) for x in splits()]
        ),
    ],
    ids=["values", "classes", "threshold", "instance", "double", "logits without an accuracy"],
)
def test_what_fits_is_swept(content: Task, tmp_path: Path) -> None:
    TASKS["own"] = content
    sweep = Sweep([spec(), spec(seed=1)], tmp_path)
    assert sweep.run() == 2
    stored = Segments(tmp_path).read(sweep.names[spec()])
    assert ("test_accuracy" in stored) == content.has_accuracy
