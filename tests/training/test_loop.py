"""train: the same spec is the same run, recording changes nothing, and what it reports is true."""

from __future__ import annotations

import random
import warnings
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import cross_entropy
from training_runs import TINY, images, parameters, trained

from alignlab.probes import Loss, Probe
from alignlab.rules import RULES
from alignlab.store import Segments, check
from alignlab.training import RunSpec, Split, Task, models, tasks, train
from alignlab.training.evaluation import accuracy
from alignlab.training.spec import ADAMS_LARGEST, LARGEST, STREAMS

LENET = {"model": "lenet", "hidden": (128, 64)}
EVALUATED = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


def spec(**fields: Any) -> RunSpec:
    defaults = {
        "hidden": (9, 7),
        "rule": "fa",
        "batch_size": 8,
        "steps": 8,
        "record_every": 3,
        "evaluations": 3,
        "lr": 0.1,
    }
    return RunSpec(**{**defaults, **fields})


def outcomes(run: xr.Dataset) -> xr.Dataset:
    """The evaluations alone, at the steps that have them."""
    return run[[name for name in EVALUATED if name in run]].dropna("step").drop_vars(["status", "run_id"])


def without_time(run: xr.Dataset) -> xr.Dataset:
    return run.drop_vars("wall_time")


# The same run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, LENET, {"rule": "rerandomised"}, {"optimizer": "adam"}, {"rule": "dfa"}], ids=str
)
def test_the_same_spec_is_the_same_run_to_the_bit(fields: dict[str, Any]) -> None:
    run = spec(**fields)
    first = train(run, task=TINY)
    torch.manual_seed(99)  # whatever went on in between
    np.random.seed(99)  # noqa: NPY002
    xr.testing.assert_identical(without_time(first), without_time(train(run, task=TINY)))
    assert float(first["train_loss"][0]) != float(first["train_loss"][-1])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", [{}, LENET], ids=["mlp", "lenet"])
def test_every_rule_trains_every_model_and_recording_changes_no_bit(rule: str, model: dict[str, Any]) -> None:
    run = spec(rule=rule, **model, steps=3, lr=0.001)
    if rule == "ifa" and model:
        with pytest.raises(RuntimeError, match=r"pooling.*dfa"):
            train(run, task=TINY)
        return
    before = parameters(models.build(run, TINY))
    bare = parameters(trained(run.changed(record_every=0), TINY))
    assert all(not torch.equal(bare[name], p) and bare[name].isfinite().all() for name, p in before.items())
    for every in (1, 2):
        recorded = train(run.changed(record_every=every), task=TINY)
        assert recorded["gradient_angle"].dropna("step").sizes["step"] == len(range(0, 3, every))
        check(recorded)
        xr.testing.assert_equal(outcomes(recorded), outcomes(train(run.changed(record_every=0), task=TINY)))
        assert str(recorded["status"].values) == "finished"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_recording_changes_no_weight(optimizer: str) -> None:
    run = spec(optimizer=optimizer, lr=0.01, steps=7, weight_decay=0.01)
    bare = parameters(trained(run.changed(record_every=0), TINY))
    recorded = parameters(trained(run.changed(record_every=5), TINY))
    assert all(torch.equal(recorded[name], p) for name, p in bare.items())


def random_states() -> list[Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist()]


def test_the_global_random_states_stay_as_they_were() -> None:
    torch.manual_seed(123)
    before = random_states()
    train(spec(steps=3), task=TINY)
    assert random_states() == before


def test_a_run_that_fails_leaves_no_trace() -> None:
    class Guest(Probe):
        there = False

        def attach(self, model: Any) -> None:
            self.there = True

        def detach(self) -> None:
            self.there = False

    def broken(output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            assert guest.there
            raise ZeroDivisionError
        return output.mean()

    task = Task("broken", TINY.train, TINY.validation, TINY.test, broken, TINY.n_in, 3, has_accuracy=True)
    guest = Guest()
    torch.manual_seed(123)
    before = random_states()
    with pytest.raises(ZeroDivisionError):
        train(spec(), probes=[guest, Loss()], task=task)
    assert not guest.there
    assert random_states() == before


def test_arms_that_share_a_seed_start_from_one_point() -> None:
    runs = [train(spec(rule=rule, seed=4, steps=2), task=TINY) for rule in RULES]
    first = {name: [float(run[name][0]) for run in runs] for name in EVALUATED}
    assert all(len(set(values)) == 1 for values in first.values())
    assert len({float(run["train_loss"][-1]) for run in runs}) > 5
    other = train(spec(seed=5, steps=2), task=TINY)
    assert float(other["train_loss"][0]) != first["train_loss"][0]


def test_the_feedback_depends_on_the_seed_alone() -> None:
    def feedback(**fields: Any) -> Tensor:
        made = trained(spec(**fields, steps=1), TINY).get_submodule("3").feedback
        assert isinstance(made, Tensor)
        return made

    assert torch.equal(feedback(lr=0.1), feedback(lr=0.2, order=3))
    assert not torch.equal(feedback(seed=0), feedback(seed=1))


# Batches --------------------------------------------------------------------------------------------------------------


def seen(n: int, **fields: Any) -> list[list[int]]:
    """The samples of each batch: a task whose inputs are their own indices."""
    batches: list[list[int]] = []

    def listening(output: Tensor, target: Tensor) -> Tensor:
        if output.requires_grad:
            batches.append(target.tolist())
        return output.square().mean()

    split = Split(torch.zeros(n, 2), torch.arange(n))
    task = Task("listening", split, split, split, listening, (2,), 2, has_accuracy=False)
    train(spec(**fields, record_every=0), task=task)
    return batches


def test_an_epoch_is_a_new_order_of_all_samples_without_the_incomplete_batch() -> None:
    batches = seen(11, batch_size=3, steps=7)
    assert [len(batch) for batch in batches] == [3] * 7
    epochs = [list(chain(*batches[:3])), list(chain(*batches[3:6]))]
    assert all(len(set(epoch)) == 9 and set(epoch) <= set(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert batches[6] not in (batches[0], batches[3])


def test_over_many_epochs_no_sample_is_left_out() -> None:
    counts = np.bincount(list(chain(*seen(11, batch_size=3, steps=300))), minlength=11)
    assert counts.sum() == 900
    assert counts.min() > 60  # 82 on average


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    batches = seen(5, batch_size=64, steps=3)
    assert [sorted(batch) for batch in batches] == [[0, 1, 2, 3, 4]] * 3
    assert batches[0] != batches[1]


def test_the_order_of_batches_follows_seed_and_order_alone() -> None:
    base = seen(20, batch_size=4, steps=6)
    assert seen(20, batch_size=4, steps=6, rule="dfa", lr=0.7) == base
    assert seen(20, batch_size=4, steps=9)[:6] == base
    assert seen(20, batch_size=4, steps=6, order=1) != base
    assert seen(20, batch_size=4, steps=6, seed=1) != base


# What is reported -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0), ("rmsprop", 0.0), ("rmsprop", 0.9)]
)
def test_a_run_of_backprop_is_the_plain_pytorch_loop(optimizer: str, momentum: float) -> None:
    run = spec(rule="bp", optimizer=optimizer, momentum=momentum, weight_decay=0.02, lr=0.01, steps=7)
    model = models.build(run, TINY)
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.02} | (
        {} if optimizer == "adam" else {"momentum": momentum}
    )
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    plain = kinds[optimizer](model.parameters(), **settings)
    generator = torch.Generator().manual_seed(run.stream("order"))
    batches = [b for _ in range(3) for b in torch.randperm(24, generator=generator).view(3, 8)][:7]
    for batch in batches:
        plain.zero_grad()
        cross_entropy(model(TINY.train.inputs[batch]), TINY.train.targets[batch]).backward()  # type: ignore[no-untyped-call]
        plain.step()
    found = parameters(trained(run, TINY))
    for name, p in parameters(model).items():
        torch.testing.assert_close(found[name], p, rtol=1e-5, atol=1e-7)


def test_evaluations_are_loss_and_accuracy_of_the_whole_splits() -> None:
    run = spec(steps=6, evaluations=3)
    dataset = train(run, task=TINY)
    for step in (0, 3, 6):
        model = models.build(run, TINY) if step == 0 else trained(run.changed(steps=step), TINY)
        for name in ("train", "validation", "test"):
            split: Split = getattr(TINY, name)
            with torch.no_grad():
                output = model(split.inputs)
            found = dataset.sel(step=step)
            assert float(found[f"{name}_loss"]) == pytest.approx(
                float(cross_entropy(output, split.targets)), rel=1e-5
            )
            right = sum(
                int(row.argmax()) == int(label) for row, label in zip(output, split.targets, strict=True)
            )
            assert float(found[f"{name}_accuracy"]) == pytest.approx(right / len(split))


def test_evaluations_come_in_pieces_but_count_as_one() -> None:
    task = images(4101, side=16)  # more than one piece
    run = train(RunSpec(hidden=(3,), steps=1, evaluations=2, record_every=0), task=task)
    model = models.build(RunSpec(hidden=(3,)), task)
    with torch.no_grad():
        expected = float(cross_entropy(model(task.train.inputs), task.train.targets))
    assert float(run["train_loss"][0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "evaluations", "at"),
    [(8, 2, [0, 8]), (8, 3, [0, 4, 8]), (10, 4, [0, 3, 7, 10]), (2, 9, [0, 1, 2]), (1, 2, [0, 1])],
)
def test_evaluations_are_even_with_the_first_and_the_last_step(
    steps: int, evaluations: int, at: list[int]
) -> None:
    run = train(spec(steps=steps, evaluations=evaluations, record_every=0), task=TINY)
    assert run["step"].values.tolist() == at
    assert run["train_loss"].notnull().all()
    assert int(run["last_step"]) == steps


def test_probes_are_recorded_at_their_steps_and_evaluations_at_theirs() -> None:
    run = train(spec(steps=8, record_every=3, evaluations=3), task=TINY)
    assert run["step"].values.tolist() == [0, 3, 4, 6, 8]
    assert run["gradient_angle"].dropna("step", how="all")["step"].values.tolist() == [0, 3, 6]
    assert run["train_loss"].dropna("step")["step"].values.tolist() == [0, 4, 8]
    assert run["samples_seen"].dropna("step").values.tolist() == [8, 32, 56]  # each step's own batch included
    assert run["feedback_gain"].dims == ("step", "layer")
    assert run["layer"].values.tolist() == ["1", "3", "5"]
    assert run["spectrum_real"].dims == ("step", "layer", "mode")


def test_probes_also_look_at_log_spaced_steps_and_at_eigenvalues_as_often_as_told() -> None:
    run = train(spec(steps=40, record_every=0, record_log=5, spectra_every=2, evaluations=2), task=TINY)
    assert run["gradient_angle"].dropna("step", how="all")["step"].values.tolist() == [0, 2, 5, 15, 39]
    spectra = run["spectrum_real"].dropna("step", how="all")
    assert spectra["step"].values.tolist() == [0, 5, 39]
    both = train(spec(steps=40, record_every=20, record_log=5, evaluations=2), task=TINY)
    assert both["gradient_angle"].dropna("step", how="all")["step"].values.tolist() == [0, 2, 5, 15, 20, 39]


def test_splits_are_evaluated_and_eigenvalues_taken_as_told_and_the_training_stays_the_same() -> None:
    whole = train(spec(steps=8, record_every=4), task=TINY)
    less = train(spec(steps=8, record_every=4, splits=["test"], spectra_every=0), task=TINY)
    assert set(whole) - set(less) >= {"train_loss", "validation_accuracy", "spectrum_real"}
    for name in ("test_loss", "gradient_angle"):
        np.testing.assert_array_equal(whole[name], less[name])


def test_the_recorded_loss_is_that_of_the_steps_batch() -> None:
    everything = train(
        spec(batch_size=24, steps=4, record_every=1, evaluations=5), probes=[Loss()], task=TINY
    )
    np.testing.assert_allclose(everything["loss"][:4], everything["train_loss"][:4], rtol=1e-5)


def test_a_run_keeps_the_data_contract(tmp_path: Any) -> None:
    run = spec(graft={"direction": "rule", "magnitude": "bp"}, rule="sign_sync", seed=3)
    dataset = train(run, task=TINY)
    check(dataset)
    Segments(tmp_path).append(dataset, name="run")
    xr.testing.assert_identical(Segments(tmp_path).read("run").drop_attrs(), dataset.drop_attrs())
    coords = {
        name: dataset[name].item()
        for name in ("run_id", "rule", "lr", "seed", "task", "arm", "control", "status", "last_step")
    }
    assert coords == {
        "run_id": run.digest(), "rule": "sign_sync", "lr": 0.1, "seed": 3, "task": "images", "arm": "sign_sync",
        "control": "rule direction, bp magnitude", "status": "finished", "last_step": 8,
    }  # fmt: skip
    assert RunSpec.from_yaml(dataset.attrs["spec"]) == run
    assert dataset.attrs["spec_hash"] == run.digest()
    assert dataset.attrs["data_hash"] == TINY.fingerprint
    assert all(str(run.stream(name)) in dataset.attrs["seed_streams"] for name in STREAMS)
    assert dataset["train_loss"].attrs["long_name"]
    assert {dataset[name].dtype for name in EVALUATED} == {np.dtype(np.float32)}


def test_no_step_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(spec(), task=TINY)


def test_progress_counts_the_steps() -> None:
    counted: list[int] = []
    train(spec(steps=5), task=TINY, progress=counted.append)
    assert counted == [1] * 5


def test_probes_can_be_chosen() -> None:
    class Steps(Probe):
        quantities = ("my_steps",)

        def measure_step(self, observation: Any) -> dict[str, Tensor | float]:
            return {"my_steps": float(observation.step)}

    run = train(spec(steps=4, record_every=2), probes=[Steps()], task=TINY)
    assert run["my_steps"].dropna("step").values.tolist() == [0, 2]
    assert "gradient_angle" not in run


def test_accuracy_is_the_share_of_right_classes() -> None:
    output = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(output, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("output", "targets"),
    [((4, 1), torch.zeros(4)), ((4, 2), torch.zeros(4, 2)), ((4, 1), torch.zeros(4, 1).long())],
)
def test_accuracy_of_what_has_no_classes_is_refused(output: tuple[int, ...], targets: Tensor) -> None:
    with pytest.raises(ValueError, match="has_accuracy=False"):
        accuracy(torch.zeros(output), targets)


# Tasks by name --------------------------------------------------------------------------------------------------------


def test_a_small_network_learns_xor() -> None:
    run = train(
        RunSpec(
            task="xor",
            hidden=(8,),
            activation="tanh",
            lr=0.3,
            momentum=0.9,
            batch_size=4,
            steps=200,
            record_every=100,
        )
    )
    assert float(run["test_accuracy"][-1]) == 1
    assert float(run["train_loss"][-1]) < 0.05 < 0.5 < float(run["train_loss"][0])
    check(run)


def test_the_linear_toy_is_learnt_and_has_no_accuracy() -> None:
    run = train(
        RunSpec(
            task="linear_toy",
            hidden=(20,),
            activation="linear",
            rule="fa",
            lr=0.02,
            steps=100,
            record_every=50,
        )
    )
    assert "test_accuracy" not in run
    assert float(run["test_loss"][-1]) < 0.1 * float(run["test_loss"][0])
    check(run)


def test_digits_are_learnt() -> None:
    run = train(RunSpec(task="mnist_small", steps=60, record_every=0, evaluations=2, lr=0.1))
    assert float(run["test_accuracy"][-1]) > 0.7
    assert 0 < float(run["test_accuracy"][0]) < 0.3


# Divergence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graft", [None, {"direction": "bp", "magnitude": "rule"}, {"direction": "rule", "magnitude": "bp"}]
)
@pytest.mark.parametrize(("rule", "activation"), [("fa", "relu"), ("sign_sync", "tanh"), ("dfa", "linear")])
def test_a_run_that_leaves_the_finite_is_kept_and_says_so(
    rule: str, activation: str, graft: dict[str, str] | None, tmp_path: Any
) -> None:
    toy = tasks.load("linear_toy")
    for number, lr in enumerate((1.0, 1e15, 3e38)):
        run = spec(
            rule=rule, activation=activation, task="linear_toy", lr=lr, steps=30, record_every=1, graft=graft
        )
        dataset = train(run, task=toy)
        check(dataset)
        Segments(tmp_path).append(dataset, name=str(number))
        again = Segments(tmp_path).read(str(number))
        status, last = str(again["status"].values), int(again["last_step"])
        loss = again["train_loss"].values
        ended = loss[again["step"].values == last].item()
        assert status == ("finished" if np.isfinite(ended) else "diverged")
        assert int(again["step"].max()) == last
        assert last == 30 or status == "diverged"
        assert np.isfinite(loss[0])


def test_a_diverged_run_ends_where_the_loss_stopped_being_finite() -> None:
    counted: list[int] = []
    run = spec(rule="bp", activation="linear", task="linear_toy", lr=10.0, steps=200, record_every=1)
    dataset = train(run, progress=counted.append)
    last = int(dataset["last_step"])
    assert str(dataset["status"].values) == "diverged"
    assert 0 < last < 200
    assert len(counted) == last  # the updates made
    assert dataset["loss"].dropna("step")["step"].values.tolist() == list(range(last))
    assert np.isfinite(dataset["loss"].dropna("step").values).all()
    assert not np.isfinite(dataset["train_loss"].sel(step=last))
    assert np.isfinite(dataset["train_loss"].sel(step=0))


def test_a_run_whose_last_update_is_one_too_many_has_diverged() -> None:
    task = tasks.load("linear_toy")
    run = spec(rule="bp", activation="linear", task="linear_toy", lr=10.0, steps=200, record_every=0)
    last = int(train(run, task=task)["last_step"])
    short = train(run.changed(steps=last), task=task)  # every loss of a batch was finite
    assert str(short["status"].values) == "diverged"
    assert int(short["last_step"]) == last


@pytest.mark.parametrize(
    "largest",
    [
        {"lr": LARGEST, "weight_decay": LARGEST},
        {"lr": ADAMS_LARGEST, "weight_decay": LARGEST, "optimizer": "adam"},
        {"lr": LARGEST, "optimizer": "rmsprop"},
    ],
    ids=str,
)
def test_the_largest_numbers_that_a_spec_takes_are_trained_with(largest: dict[str, Any]) -> None:
    assert int(train(spec(**largest), task=TINY)["last_step"]) >= 1


def test_a_task_without_a_finite_loss_diverges_at_once() -> None:
    def endless(output: Tensor, target: Tensor) -> Tensor:
        return output.sum() * torch.inf

    task = Task("endless", TINY.train, TINY.validation, TINY.test, endless, TINY.n_in, 3, has_accuracy=False)
    run = train(spec(record_every=1), task=task)
    check(run)
    assert (str(run["status"].values), int(run["last_step"])) == ("diverged", 0)
    assert run["step"].values.tolist() == [0]


# Devices --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graft", [None, {"direction": "bp", "magnitude": "rule"}])
def test_a_run_on_a_gpu_is_that_of_the_cpu_to_rounding(graft: dict[str, str] | None) -> None:
    run = spec(rule="sign_sync", graft=graft, lr=0.01)  # its feedback is no draw
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    on_gpu, on_cpu = train(run, task=TINY, device="cuda"), train(run, task=TINY)
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    for name in ("train_loss", "feedback_gain", "update_angle"):
        np.testing.assert_allclose(on_gpu[name], on_cpu[name], rtol=1e-2, atol=1e-2)
