"""A population equals its runs trained one by one, whatever the rule; what it cannot train it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from training_runs import TINY, Model, images, parameters

from alignlab.rules import RULES, Rule, backward
from alignlab.store import open_runs
from alignlab.training import RunSpec, SpecError, Split, Sweep, Task, optimizers, stacking, tasks, train
from alignlab.training.evaluation import losses_of_runs
from alignlab.training.loop import built, standard_probes
from alignlab.training.population import Population, alone, check, train_population

XOR: dict[str, Any] = {
    "task": "xor_bits", "hidden": (10, 10), "bias": False, "weight_init": "gaussian", "loss": "absolute", "lr": 0.01,
    "batch_size": 1, "sampling": "replacement", "steps": 200, "evaluations": 5, "record_every": 0,
}  # fmt: skip
READOUT_ONLY = {"frozen": ("1.*", "3.*")}
ARMS = [{"rule": rule} for rule in ("bp", "fa", "rerandomised", "usf", "brsf", "frsf", "sign_sync")] + [
    READOUT_ONLY,
    {"rule": "brsf", "frozen": ("3.*",)},
    {"rule": "rerandomised", "frozen": ("3.*",)},
    {"rule": "sign_sync", "rule_args": {"period": 7}, "bias": True, "weight_init": "pytorch"},
    {"rule": {"3": "bp", "*": "rerandomised"}, "optimizer": "adam", "weight_scale": 0.3},
    {
        "task": "xor",
        "loss": "task",
        "rule": "fa",
        "bias": True,
        "batch_size": 3,
        "sampling": "epochs",
        "momentum": 0.9,
    },
]


def specs(n: int = 3, **fields: Any) -> list[RunSpec]:
    return [RunSpec(**{**XOR, **fields}, seed=seed) for seed in range(n)]


MIXED: list[dict[str, Any]] = [  # side by side in one population
    {"rule": "bp", "lr": 0.05},
    {"rule": "bp", "lr": 0.2, "lr_schedule": "cosine", "clip": 0.3},
    {"rule": "fa", "rule_args": {"init": "nokland"}, "lr": 0.1, "warmup": 5, "weight_decay": 0.01},
    {"rule": "fa", "lr": 0.01, "weight_init": "gaussian", "weight_scale": 0.2},
    {"rule": "sign_sync", "rule_args": {"period": 4}, "lr": 0.003, "clip": 0.1},
    {"rule": "sign_sync", "rule_args": {"period": 7, "preserve_magnitude": True}, "lr": 0.02, "order": 3},
    {"rule": "usf", "lr": 0.05, "lr_schedule": "linear"},
    {"rule": "brsf", "lr": 0.05},
    {"rule": "frsf", "lr": 0.05},
    {"rule": "rerandomised", "lr": 0.02},
    {"rule": "weight_mirror", "rule_args": {"samples": 9, "period": 2}, "lr": 0.05},
    {"rule": "weight_mirror", "rule_args": {"samples": 9, "growth_control": True}, "lr": 0.05},
    {
        "rule": "weight_mirror",
        "rule_args": {"samples": 9, "growth_control": True},
        "lr": 0.1,
        "weight_scale": 2,
    },
    {"rule": {"5": "fa", "*": "bp"}, "lr": 0.05},
    {"rule": "rescaled", "rule_args": {"of": "fa"}, "lr": 0.05},
    {"rule": "rescaled", "rule_args": {"of": "fa"}, "lr": 0.05, "weight_scale": 3},
    {"rule": "rescaled", "rule_args": {"of": {"rule": "weight_mirror", "samples": 9}}, "lr": 0.05},
    {
        "rule": "rescaled",
        "rule_args": {"of": {"rule": "sign_sync", "period": 4}, "direction": "weight", "scale": "rule"},
        "lr": 0.003,
    },
]
GRAFTS = [{"direction": d, "magnitude": m} for d, m in (("rule", "bp"), ("bp", "rule"), ("bp", "bp"))]
GRAFTS += [{**graft, "scope": "global"} for graft in GRAFTS[:2]]
SIZES = [
    {"sizes": 0.02, "relative": True},
    {"sizes": {"1": [0.1, 0.02, 0.3], "5": [0.0, 0.2, 0.1]}, "steps": [2, 9, 20]},
]


def of_one_rule(rule: str, rate: float = 0.05, **rule_args: Any) -> list[dict[str, Any]]:
    """Members by one rule and setting, which differ in all else that they may."""
    own = [
        {"lr": rate / 2},
        {"momentum": 0.9, "order": 3},
        {"lr": 2 * rate, "clip": 0.05, "weight_decay": 0.1},
        {"lr_schedule": "cosine", "weight_init": "gaussian", "weight_scale": 0.2},
        *({"graft": graft} for graft in GRAFTS),
        *({"step_sizes": sizes} for sizes in SIZES),
    ]
    return [{"rule": rule, "rule_args": rule_args, "lr": rate, **fields} for fields in own]


RECORDED = {  # what replayed_noise makes of a run
    "cosine": {"1": [0.9, 0.1, -0.4], "3": [0.2, 0.3, 0.5]},
    "gain": {"1": [1.0, 2.0, 0.5], "3": [4.0, 1.0, 0.0]},
    "steps": [0, 6, 12],
}
TOGETHER: list[list[dict[str, Any]]] = [
    MIXED,
    [
        {"rule": rule, "lr": 0.02, "graft": graft}
        for rule in ("fa", "sign_sync", "weight_mirror")
        for graft in (None, *GRAFTS)
    ],
    [
        {
            "rule": "kolen_pollack",
            "weight_decay": 0.05,
            "lr": lr,
            "graft": {"direction": "bp", "magnitude": "rule"},
        }
        for lr in (0.02, 0.1)
    ],
    [{"rule": "dfa", "lr": lr, "graft": {"direction": "rule", "magnitude": "bp"}} for lr in (0.02, 0.1)],
    [{"rule": "kolen_pollack", "weight_decay": 0.05, "lr": lr} for lr in (0.02, 0.1)],
    [{"rule": "dfa", "lr": lr} for lr in (0.02, 0.1)],
    [{"rule": rule, "lr": 0.05, "step_sizes": sizes} for rule in ("bp", "fa") for sizes in (None, *SIZES)],
    [{"rule": "kolen_pollack", "lr": 0.05, "step_sizes": sizes} for sizes in (None, *SIZES)],
    of_one_rule("drtp"),
    of_one_rule("soap"),
    [
        *of_one_rule("noisy_backprop", **RECORDED),
        *of_one_rule("noisy_backprop", cosine=-0.2, gain=3.0)[:2],
        {"rule": "noisy_backprop", "rule_args": {"cosine": {"5": [0.7, -0.1]}}, "lr": 0.1},
    ],
    of_one_rule("weight_perturbation", rate=0.001),  # its noise would magnify what rounding differs by
    of_one_rule("weight_perturbation", rate=0.001, antithetic=True, samples=2, sigma=0.1)[1:4],
    of_one_rule("node_perturbation"),
    of_one_rule("node_perturbation", antithetic=True, samples=2, sigma=0.1)[1:4],
    of_one_rule("soap", form="rescaled", guide="brsf", step=0.5)[1:4],
    [
        {"rule": "ifa", "rule_args": {"init": "lillicrap"}, "lr": lr, "weight_decay": 0.1}
        for lr in (0.02, 0.1)
    ],
]
BESIDE = [
    ("bp", "fa", "sign_sync"),
    ("drtp",),
    ("soap",),
    ("node_perturbation",),
    ("weight_perturbation",),
    ("noisy_backprop",),
]  # rules that stand side by side, and those that do not
OPTIMIZERS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"optimizer": "sgd"}, [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "weight_decay": 1}]),
    ({"optimizer": "adam"}, [{"lr": 0.01}, {"lr": 0.001, "weight_decay": 0.1}]),
    ({"optimizer": "rmsprop"}, [{"lr": 0.001}, {"lr": 0.001, "momentum": 0.9}, {"lr": 0.003, "weight_decay": 0.1}]),
]  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_every_member_is_its_own_sequential_run(arm: dict[str, Any]) -> None:
    members = specs(**arm)
    for together, spec in zip(train_population(members), members, strict=True):
        alone = train(spec)
        xr.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
        assert together.attrs == alone.attrs
        assert float(alone["train_loss"][0]) != float(alone["train_loss"][-1])


def doubled(task: Task = TINY, dtype: torch.dtype = torch.float64) -> Task:
    splits = {name: getattr(task, name) for name in ("train", "validation", "test")}
    made = {name: Split(split.inputs.to(dtype), split.targets) for name, split in splits.items()}
    return replace(task, **made)


@pytest.fixture
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def of_one_shape(own: list[dict[str, Any]], **common: Any) -> list[RunSpec]:
    base = {
        "hidden": (12, 9),
        "activation": "tanh",
        "batch_size": 8,
        "steps": 25,
        "record_every": 6,
        "spectra_every": 2,
        "evaluations": 4,
    }
    return [RunSpec(**{**base, **common, **fields}, seed=i // 2) for i, fields in enumerate(own)]


@pytest.mark.parametrize(
    "own", TOGETHER, ids=lambda own: ", ".join(sorted({str(fields["rule"]) for fields in own}))
)
def test_members_of_any_rule_and_rate_equal_their_sequential_runs_in_double_to_1e_10(
    own: Any, double: None
) -> None:
    agree(of_one_shape(own))


def test_grafted_runs_of_half_precision_stand_beside_others() -> None:
    """A gradient of float32 fell to a weight of half precision: an error of torch's."""
    graft = {"direction": "bp", "magnitude": "rule"}
    members = of_one_shape([{"rule": "fa"}, {"rule": "fa", "graft": graft}], steps=3, record_every=0)
    half = doubled(dtype=torch.bfloat16)
    for together, spec in zip(train_population(members, task=half), members, strict=True):
        np.testing.assert_allclose(together["train_loss"], train(spec, task=half)["train_loss"], rtol=0.05)


MAPS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [  # of convolutional nets: in common, side by side
    ({}, [fields | {"lr": 0.05} for fields in MIXED[::2] + MIXED[9:12:2]] + [{"rule": {"[23]": "usf", "*": "fa"}}]),
    (
        {"frozen": ("0.*", "*.bias")},
        [{"rule": "sign_sync", "rule_args": {"period": 3}}, {"rule": "brsf"}, {"rule": "brsf"}, {"rule": "bp"}],
    ),
    (
        {"optimizer": "adam", "bias": False, "clip": 0.3},
        [{"rule": "rerandomised", "lr": 0.01}, {"rule": "fa", "lr": 0.02}, {"rule": "rerandomised", "lr": 0.01}],
    ),
    ({}, TOGETHER[1][:4]),
    ({}, TOGETHER[2] + TOGETHER[4]),
    ({}, TOGETHER[3] + TOGETHER[5]),
    (
        {"frozen": ("0.*",)},
        [
            {"rule": "fa", "lr": 0.05, "step_sizes": {"sizes": 0.02, "relative": True}},
            {"rule": "fa", "lr": 0.05, "graft": {"direction": "rule", "magnitude": "bp", "scope": "global"}},
            {"rule": "usf", "lr": 0.05, "graft": {"direction": "bp", "magnitude": "rule", "scope": "global"}},
            {"rule": "usf", "lr": 0.05},
        ],
    ),
    *(({}, of_one_rule(rule)[:2]) for rule in ("drtp", "soap", "node_perturbation", "noisy_backprop")),
]  # fmt: skip
LENETS = [({"model": "lenet", "hidden": (128, 64), "activation": "relu"}, [{"rule": "usf"}, {"rule": "bp"}])]


@pytest.mark.parametrize("model", ["lenet", "convnet", "untied"])
@pytest.mark.parametrize(("common", "own"), MAPS, ids=lambda x: str(len(x)))
def test_members_with_convolutions_equal_their_sequential_runs_in_double_to_1e_10(
    model: str, common: Any, own: Any, double: None
) -> None:
    shape = {"model": model, "hidden": (128, 64), "activation": "relu", "steps": 5, "record_every": 2}
    agree(of_one_shape(own, **shape, **common))


@pytest.mark.parametrize(
    ("common", "own"), OPTIMIZERS, ids=lambda x: x["optimizer"] if isinstance(x, dict) else ""
)
def test_stacked_optimizers_equal_those_of_single_runs_in_double_to_1e_10(
    common: Any, own: Any, double: None
) -> None:
    agree(of_one_shape([{**fields, "rule": rule} for fields in own for rule in ("bp", "fa")], **common))


@pytest.mark.parametrize("common", [{"optimizer": name} for name in ("sgd", "adam", "rmsprop")], ids=str)
def test_updates_of_a_few_runs_at_a_time_are_those_of_all(
    common: Any, double: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(optimizers, "AT_ONCE", 1000)  # numbers: the first layer has 12 × 256
    agree(
        of_one_shape(
            [{"rule": rule, "weight_decay": 0.1, "lr": 0.003} for rule in ("bp", "fa", "usf", "brsf")],
            **common,
        )
    )


def same_record(together: xr.Dataset, alone: xr.Dataset) -> None:
    """What was recorded of a member and of its run; angles near 0 and 180 degrees are known to 1e-5 at best."""
    assert together.attrs == alone.attrs
    assert together.sizes == alone.sizes
    assert set(together.variables) == set(alone.variables)
    names = [name for name in alone.data_vars if name != "wall_time"]
    xr.testing.assert_allclose(together[names], alone[names], rtol=1e-5, atol=2e-5)


def agree(members: list[RunSpec], task: Task | None = None) -> Population:
    """Final weights of each member against those of its run; both in double precision. Of those that ended, the records."""
    check(members)
    task = doubled() if task is None else task
    population = Population(members, task, torch.device("cpu"))
    together = population.go()
    carried = [population.places[k] for k in population.here.tolist()]
    stacks = {name: dict(zip(carried, p, strict=True)) for name, p in population.model.named_parameters()}
    for k, spec in enumerate(members):
        keeper = Model()
        same_record(
            together[k], train(spec, task=task, probes=[*standard_probes(spec.spectra_every), keeper])
        )
        if str(together[k]["status"].values) == "finished":
            for name, parameter in parameters(keeper.model).items():
                torch.testing.assert_close(stacks[name][k].detach(), parameter, rtol=1e-10, atol=1e-10)
    finished = [k for k in carried if str(together[k]["status"].values) == "finished"]
    learning = next(p for p in stacks.values() if next(iter(p.values())).requires_grad)
    first, *others = (learning[k] for k in finished)
    assert all((other - first).norm() > 1e-3 for other in others), (
        "members must differ, or this shows nothing"
    )
    return population


def test_members_whose_learning_feedback_has_no_decay_are_told_of() -> None:
    fields = {"rule": "kolen_pollack", "steps": 3}
    with pytest.warns(UserWarning, match="weight_decay=0 in 2 of 3 runs") as told:
        train_population([*specs(2, **fields), *specs(1, **fields, weight_decay=0.1)])
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_population(specs(2, **fields, weight_decay=0.1))


@pytest.mark.parametrize("at_once", [10, 256])
def test_images_and_their_three_splits_are_evaluated_alike(at_once: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("alignlab.training.population.EVALUATED_AT_ONCE", at_once)  # of 24
    members = specs(
        task="mnist_small", loss="task", batch_size=8, sampling="epochs", steps=5, rule="fa", lr=0.001
    )
    for together, spec in zip(train_population(members, task=TINY), members, strict=True):
        alone = train(spec, task=TINY)
        for name in ("train_loss", "validation_accuracy", "test_loss"):
            np.testing.assert_allclose(together[name], alone[name], rtol=1e-4)


def test_what_is_recorded_of_a_member_that_diverges_ends_with_it() -> None:
    fields = {
        "task": "linear_toy",
        "activation": "linear",
        "loss": "task",
        "steps": 40,
        "weight_scale": 0.1,
        "rule": "fa",
    }
    members = specs(4, **fields, lr=0.03, record_every=3)
    for together, spec in zip(train_population(members), members, strict=True):
        alone = train(spec)
        assert together["step"].values.tolist() == alone["step"].values.tolist()
        assert together["gradient_norm"].notnull().sum() == alone["gradient_norm"].notnull().sum() > 0
        assert str(together["status"].values) == str(alone["status"].values)


@pytest.mark.parametrize("model", ["untied", "convnet"])
def test_eigenvalues_of_others_are_recorded_beside_a_member_whose_weights_have_overflowed(model: str) -> None:
    """An untied layer's NaN were as many as one position's modes, and did not stack with those of all positions."""
    members = [
        RunSpec(
            model=model,
            optimizer="rmsprop",
            batch_size=4,
            steps=3,
            record_every=1,
            spectra_every=1,
            lr=lr,
        )
        for lr in (0.001, 3e38)
    ]
    found = train_population(members, task=TINY)
    assert [int(run["last_step"]) for run in found] == [3, 1]
    for together, spec in zip(found, members, strict=True):
        np.testing.assert_allclose(together.spectrum_real, train(spec, task=TINY).spectrum_real, atol=1e-5)


@pytest.mark.filterwarnings("error:nothing was recorded")
@pytest.mark.parametrize("beside", [{"lr": 0.02}, {"weight_scale": 1e25}], ids=["others", "nobody"])
@pytest.mark.parametrize("rule", ["bp", "node_perturbation"])
def test_a_run_that_ends_before_its_first_step_is_recorded_as_alone(rule: str, beside: Any) -> None:
    fields = {"rule": rule, "loss": "task", "steps": 5, "record_every": 1}
    lost = specs(1, **fields, weight_scale=1e25)
    alone = train(lost[0])
    assert (str(alone["status"].values), int(alone["last_step"])) == ("diverged", 0)
    together = train_population([*lost, *specs(2, **fields, **beside)])[0]
    xr.testing.assert_identical(together, alone)


def test_the_size_of_a_step_by_an_absurd_rate_is_recorded_as_alone() -> None:
    """The rate's square left float32, and the gain was 0."""
    spec = RunSpec(task="xor", hidden=(4,), steps=2, record_every=1, lr=1e25)
    (member,) = train_population([spec])
    np.testing.assert_allclose(member.applied_gain[0], 1, rtol=1e-6)
    np.testing.assert_allclose(member.applied_gain, train(spec).applied_gain, rtol=1e-6)


def test_once_all_have_ended_nothing_more_is_computed(monkeypatch: Any) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError("an update of runs that have ended")

    monkeypatch.setattr(optimizers.StackedSGD, "step", fails)
    found = train_population(specs(3, loss="task", clip=1.0, weight_scale=1e25, record_every=1))
    assert [int(run["last_step"]) for run in found] == [0, 0, 0]


def test_a_member_that_diverges_ends_and_leaves_the_others_alone() -> None:
    members = specs(
        6, task="linear_toy", activation="linear", loss="task", lr=0.03, steps=40, weight_scale=0.1
    )
    found, alone = train_population(members), [train(spec) for spec in members]
    ends = [(str(run["status"].values), int(run["last_step"])) for run in found]
    assert ends == [(str(run["status"].values), int(run["last_step"])) for run in alone]
    assert {status for status, _ in ends} == {"finished", "diverged"}
    for together, own in zip(found, alone, strict=True):
        assert together["step"].values.tolist() == own["step"].values.tolist()


def test_whose_weights_or_losses_overflow_in_the_last_step_is_told_from_those_beside_it_in_a_smaller_network() -> (
    None
):
    first, *_ = of_rates = [
        RunSpec(task="xor", hidden=(4,), steps=2, record_every=0, lr=lr) for lr in (1e25, 0.1, 1e20, 1e12)
    ]
    assert train(first).last_step == 1  # so that the others go on by themselves
    found = [(str(run["status"].values), int(run["last_step"])) for run in train_population(of_rates)]
    assert found == [("diverged", 1), ("finished", 2), ("diverged", 2), ("diverged", 2)]


def with_a_poisoned_sample() -> Task:
    """A run ends when its batch has it: of 25 batches of 8, about every second's."""
    task = doubled(images(400))
    task.train.inputs[7] = torch.nan
    return task


@pytest.mark.parametrize(
    ("common", "own"),
    [({}, own) for own in TOGETHER] + OPTIMIZERS + LENETS,
    ids=lambda x: ", ".join(sorted({str(f.get("rule")) for f in x})) if isinstance(x, list) else str(x),
)
def test_those_who_go_on_in_a_smaller_network_equal_their_sequential_runs_in_double_to_1e_10(
    common: Any, own: Any, double: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(optimizers, "AT_ONCE", 10_000)  # numbers: the first layer has 12 × 256
    common = {**common, "splits": ("validation", "test")}
    members = of_one_shape(4 * own if len(own) < 9 else own, **common)
    population = agree(members, with_a_poisoned_sample())
    ends = sorted(step for step, status in population.ended.values() if status == "diverged")
    assert 0 < len(population.here) < len(members)
    assert ends[0] < ends[-1] < 25


def test_the_global_random_state_stays() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train_population(specs(2, rule="rerandomised", steps=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_members_without_a_largest_norm_have_none_beside_those_with_one() -> None:
    members = [
        RunSpec(task="xor", hidden=(4,), steps=3, record_every=1, lr=1e-3, weight_scale=1e4, clip=clip)
        for clip in (None, 1.0)
    ]
    for spec, together in zip(members, train_population(members), strict=True):
        same_record(together, alone := train(spec))
        assert float(alone["gradient_norm"].min()) > 1e3


class Lonely(Rule):
    """A rule written outside the package for single runs."""

    name = "lonely"
    stacks = False


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rule": "lonely"}, "lonely acts on single runs alone"),
    ],
)
def test_what_it_cannot_train_is_refused(fields: dict[str, Any], told: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(RULES, "lonely", Lonely)
    with pytest.raises(SpecError, match=f"no population: .*{told}.*one by one"):
        train_population(specs(2, **fields))


class UnitNorm(RULES["fa"]):  # type: ignore[name-defined, misc]
    """A rule written outside the package, whose norm would be one over all runs of a population."""

    name = "unit_norm"

    def refresh(self, layer: Any) -> None:
        layer.feedback = layer.weight.detach() / layer.weight.detach().norm()


def test_a_rule_from_outside_stands_in_populations_only_where_its_own_class_says_so(
    monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setitem(RULES, "unit_norm", UnitNorm)
    cells = specs(2, rule="unit_norm", steps=20)
    Sweep(cells, tmp_path).run()
    together = open_runs(tmp_path).sortby("seed")["train_loss"].isel(step=-1).values
    assert together.tolist() == [float(train(spec)["train_loss"][-1]) for spec in cells]
    monkeypatch.setattr(UnitNorm, "stacks", True)
    assert not alone(cells[0])


class Careless(Rule):
    """Takes the mean over runs too."""

    name = "careless"
    closure = True
    stacks = True

    def teach(self, passes: Any) -> Tensor:
        passes.land(loss := passes.first().mean())
        return loss.detach()


def test_a_rule_that_takes_runs_for_samples_is_an_error(monkeypatch: Any) -> None:
    monkeypatch.setitem(RULES, "careless", Careless)
    with pytest.raises(
        RuntimeError, match=r"careless: the objective is \(\), expected one number for each of the 2 runs"
    ):
        train_population(specs(2, rule="careless"))


def two_nets(rule: str) -> tuple[Any, list[nn.Module], Tensor, Tensor]:
    """A stack, what it is of, and a batch."""
    task = doubled()
    members = [built(RunSpec(hidden=(5,), rule=rule, seed=seed), task) for seed in range(2)]
    return stacking.stacked_model(members), members, task.train.inputs[:6], task.train.targets[:6]


@pytest.mark.parametrize("rule", ["fa", "node_perturbation", "weight_perturbation"])
def test_a_closure_may_return_one_number_a_run(rule: str, double: None) -> None:
    stack, members, x, y = two_nets(rule)
    losses = backward(stack, lambda: losses_of_runs(TINY.loss, stack(x.expand(2, *x.shape)), y.expand(2, -1)))
    for k, model in enumerate(members):
        loss = backward(model, lambda model=model: TINY.loss(model(x), y))  # type: ignore[misc]
        torch.testing.assert_close(losses[k], loss, rtol=1e-12, atol=1e-12)
        for own, p in zip(stack.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own.grad[k], p.grad, rtol=1e-9, atol=1e-9)


def test_a_closure_that_returns_one_number_for_all_runs_is_refused(double: None) -> None:
    stack, _, x, y = two_nets("node_perturbation")
    with pytest.raises(ValueError, match=r"shape \(\), expected the loss: .* of each of the 2 runs"):
        backward(
            stack, lambda: losses_of_runs(TINY.loss, stack(x.expand(2, *x.shape)), y.expand(2, -1)).sum()
        )


def test_runs_of_other_shapes_are_refused_and_told_what_differs() -> None:
    with pytest.raises(
        SpecError, match=r"no population: .*they differ in hidden \(\(10, 10\), \(7,\)\), steps \(200, 9\)"
    ):
        train_population([*specs(1), *specs(1, hidden=(7,), steps=9)])


@pytest.mark.parametrize(
    "other", [{"rule": "fa"}, {"rule": "dfa", "rule_args": {"init": "nokland"}}], ids=str
)
def test_rules_that_cannot_stand_side_by_side_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"no population: .*cannot stand side by side: dfa"):
        train_population([*specs(1, rule="dfa"), *specs(1, **other)])


def test_runs_that_freeze_other_layers_or_learn_feedback_in_one_stand_apart() -> None:
    with pytest.raises(SpecError, match=r"they differ in frozen \(\('1\.\*',\), \(\)\)"):
        check([*specs(1, frozen=("1.*",)), *specs(1)])
    with pytest.raises(SpecError, match=r"cannot stand side by side: .*kolen_pollack"):
        check([*specs(1, rule="fa"), *specs(1, rule={"1": "fa", "*": "kolen_pollack"})])


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_has_a_place_in_a_population(rule: str) -> None:
    assert stacking.family(RunSpec(rule=rule))
    assert any(rule == fields["rule"] for own in TOGETHER for fields in own), "and is held to the law above"


def weights(members: list[RunSpec], task: Task | None = None) -> dict[str, list[Tensor]]:
    """Of those who are carried to the end."""
    population = Population(members, task or tasks.load(members[0].task), torch.device("cpu"))
    population.go()
    return {
        population.specs[k].digest(): [p.detach()[place] for p in population.parameters]
        for place, k in enumerate(population.here.tolist())
    }


@pytest.mark.parametrize("model", ["lenet", "untied"])
def test_who_stands_beside_a_convolutional_net_changes_no_bit_of_it(model: str) -> None:
    fields: dict[str, Any] = {"model": model, "batch_size": 8, "steps": 3, "spectra_every": 0}
    members = [RunSpec(**fields, rule=rule, seed=seed) for rule in ("bp", "frsf") for seed in range(3)]
    together = weights(members, TINY)
    some = weights(members[2:5:2], TINY) | weights(members[5:], TINY)
    assert len(some) == 3
    for name, values in some.items():
        assert all(torch.equal(a, b) for a, b in zip(values, together[name], strict=True))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


IMAGES: dict[str, Any] = {
    "task": "mnist_small", "hidden": (128, 64), "batch_size": 64, "steps": 4, "evaluations": 2, "splits": ("validation",),
    "record_every": 3, "spectra_every": 0,
}  # fmt: skip
PARTS = (slice(0, 4), slice(3, 4), slice(None, None, 2), slice(None, None, -1))


def same_bits(some: dict[str, list[Tensor]], together: dict[str, list[Tensor]]) -> None:
    for name, values in some.items():
        assert all(torch.equal(a, b) for a, b in zip(values, together[name], strict=True))


@pytest.mark.parametrize("rules", BESIDE, ids=str)
def test_who_stands_beside_a_member_changes_no_bit_of_it(rules: Any, one_thread: None) -> None:
    seeds = range(6 // len(rules))
    members = [RunSpec(**IMAGES, rule=rule, seed=seed) for seed in seeds for rule in rules]
    together = weights(members)
    for part in PARTS:
        some = weights(members[part])
        assert len(some) == len(members[part])
        same_bits(some, together)


POINTS = tasks.load("xor_bits")  # in single precision, whatever the tests' default is later
TO_ROUNDING: list[dict[str, Any]] = [
    {"activation": "sigmoid"},  # rounds by an element's place in the tensor
    {"hidden": (128,)},  # with one output the product of a run left alone is another routine's
    {"activation": "sigmoid", "optimizer": "adam", "lr": 0.01, "clip": 0.05},
    {"activation": "sigmoid", "rule": "node_perturbation", "rule_args": {"sigma": 0.1}},
]


def beside_others(fields: dict[str, Any]) -> list[RunSpec]:
    base = {
        "task": "xor_bits",
        "hidden": (10, 7),
        "batch_size": 4,
        "steps": 60,
        "record_every": 20,
        "lr": 0.1,
    }
    arms = [{}] if "rule" in fields else [{"rule": "bp"}, {"rule": "fa"}]
    return [RunSpec(**{**base, **fields, **arm}, seed=seed) for seed in range(6 // len(arms)) for arm in arms]


@pytest.mark.parametrize("fields", TO_ROUNDING, ids=str)
def test_who_stands_beside_a_member_changes_it_by_rounding_at_most(fields: Any, double: None) -> None:
    members = beside_others(fields)
    points = Split(POINTS.train.inputs.double(), POINTS.train.targets.double())
    task = replace(POINTS, train=points, validation=points, test=points)
    together, records = weights(members, task), train_population(members, task=task)
    for part in PARTS:
        for name, values in weights(members[part], task).items():
            torch.testing.assert_close(values, together[name], rtol=1e-10, atol=1e-10)
        for own, record in zip(train_population(members[part], task=task), records[part], strict=True):
            same_record(own, record)


@pytest.mark.parametrize("fields", TO_ROUNDING, ids=str)
def test_the_same_runs_packed_alike_are_the_same_to_the_bit(fields: Any) -> None:
    members = beside_others(fields)
    first = train_population(members)
    torch.manual_seed(99)  # whatever went on in between
    again = train_population(members)
    for a, b in zip(first, again, strict=True):
        xr.testing.assert_identical(a.drop_vars("wall_time"), b.drop_vars("wall_time"))
    same_bits(weights(members), weights(members))


@pytest.mark.parametrize("rule", [rules[0] for rules in BESIDE])
def test_who_diverges_beside_a_member_changes_no_bit_of_it(rule: str, one_thread: None) -> None:
    rates = enumerate((0.05, 1e38, 0.1))
    members = [RunSpec(**IMAGES, rule=rule, seed=seed, lr=lr) for seed, lr in rates]
    ends = [str(run["status"].values) for run in train_population(members)]
    assert ends == ["finished", "diverged", "finished"]
    same_bits(weights(members[::2]), weights(members))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_who_ends_beside_a_member_changes_no_bit_of_it(optimizer: str) -> None:
    rules = ["bp", "fa", "sign_sync", "brsf", "rerandomised", "weight_mirror"]
    fields: dict[str, Any] = {
        "task": "xor",
        "hidden": (33, 9),
        "batch_size": 4,
        "steps": 30,
        "optimizer": optimizer,
    }
    members = [RunSpec(**fields, rule=rule, seed=seed, lr=0.01) for seed in range(2) for rule in rules]
    doomed = [RunSpec(**fields, rule=rule, lr=lr, clip=1e9) for rule in rules[1:] for lr in (1e30, 1e37)]
    found, without = weights([*members, *doomed]), weights(members)
    assert sorted(found) == sorted(without)
    for name, values in without.items():
        assert all(torch.equal(a, b) for a, b in zip(values, found[name], strict=True))
