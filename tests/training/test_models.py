"""The networks that specs name: their shapes, their first weights, and that building them leaves no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alignlab.training import models, tasks
from alignlab.training.errors import SpecError
from alignlab.training.spec import RunSpec
from alignlab.training.task import Split, Task

RULES = ("bp", "fa", "dfa", "sign_sync")


def image_task(*n_in: int) -> Task:
    some = Split(torch.zeros(2, *n_in), torch.tensor([0, 1]))
    return Task("images", some, some, some, nn.functional.cross_entropy, n_in, 10, has_accuracy=True)


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]


def weights(spec: RunSpec, task: Task | None = None) -> dict[str, Tensor]:
    return models.build(spec, task or tasks.load("xor")).state_dict()


def test_the_mlp_of_the_default_spec_is_784_128_64_10() -> None:
    task = tasks.load("mnist_small")
    model = models.build(RunSpec(), task)
    assert shapes(model) == [(128, 784), (64, 128), (10, 64)]
    assert [type(m) for m in model.children()] == [
        nn.Flatten,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert model(task.train.inputs[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", torch.relu), ("tanh", torch.tanh), ("sigmoid", torch.sigmoid), ("linear", lambda z: z)],
)
def test_an_mlp_computes_what_its_formula_says(activation: str, function: Callable[[Tensor], Tensor]) -> None:
    model = models.build(RunSpec(task="xor", hidden=(5, 4), activation=activation), tasks.load("xor"))  # type: ignore[arg-type]
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    W1, b1, W2, b2, W3, b3 = model.parameters()
    expected = function(function(x @ W1.T + b1) @ W2.T + b2) @ W3.T + b3
    torch.testing.assert_close(model(x), expected)


def test_an_mlp_without_hidden_layers_is_a_linear_readout() -> None:
    assert shapes(models.build(RunSpec(hidden=()), image_task(1, 28, 28))) == [(10, 784)]


@pytest.mark.parametrize(
    ("n_in", "flat"), [((1, 28, 28), 400), ((3, 32, 32), 576), ((1, 16, 16), 64), ((2, 20, 28), 16 * 3 * 5)]
)
def test_a_lenet_fits_its_images(n_in: tuple[int, ...], flat: int) -> None:
    model = models.build(RunSpec(model="lenet"), image_task(*n_in))
    assert shapes(model) == [(6, n_in[0], 5, 5), (16, 6, 5, 5), (120, flat), (84, 120), (10, 84)]
    assert model(torch.zeros(2, *n_in)).shape == (2, 10)


@pytest.mark.parametrize("n_in", [(2,), (1, 15, 28), (28, 28)])
def test_a_lenet_says_what_it_needs(n_in: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="at least 16×16 pixels"):
        models.build(RunSpec(model="lenet"), image_task(*n_in))


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_the_first_weights_are_pytorchs_own_for_the_init_stream(model: str) -> None:
    spec = RunSpec(model=model, seed=5)  # type: ignore[arg-type]
    built = models.build(spec, image_task(1, 28, 28))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.stream("init"))
        for module in built.modules():
            if isinstance(module, nn.Linear):
                fresh: nn.Module = nn.Linear(module.in_features, module.out_features)
            elif isinstance(module, nn.Conv2d):
                fresh = nn.Conv2d(module.in_channels, module.out_channels, 5)
            else:
                continue
            for name, parameter in fresh.named_parameters():
                assert torch.equal(parameter, module.get_parameter(name))


def test_the_first_weights_depend_on_the_seed_alone() -> None:
    first = weights(RunSpec(task="xor", seed=1))
    others = [
        RunSpec(task="xor", seed=1, rule=rule, order=order, lr=lr)
        for rule in RULES
        for order in (0, 3)
        for lr in (0.1, 1)
    ]
    for spec in others:
        assert all(torch.equal(w, first[name]) for name, w in weights(spec).items())
    second = weights(RunSpec(task="xor", seed=2))
    assert not any(torch.equal(w, first[name]) for name, w in second.items())


@pytest.mark.parametrize("scale", [0.0, 0.05, 2.0])
def test_weight_scale_multiplies_weights_and_leaves_biases(scale: float) -> None:
    for task, model in ((tasks.load("xor"), "mlp"), (image_task(1, 16, 16), "lenet")):
        plain = weights(RunSpec(model=model), task)  # type: ignore[arg-type]
        scaled = weights(RunSpec(model=model, weight_scale=scale), task)  # type: ignore[arg-type]
        for name, w in plain.items():
            factor = scale if name.endswith("weight") else 1
            assert torch.equal(scaled[name], w * factor)


def test_threads_that_draw_meanwhile_do_not_reach_the_first_weights() -> None:
    """Weights were drawn from the global generator: of twenty runs beside such a thread five began elsewhere."""
    spec, ended = RunSpec(task="xor", hidden=(64,)), threading.Event()

    def draws() -> None:
        while not ended.is_set():
            torch.randn(1000)

    alone = weights(spec)
    other = threading.Thread(target=draws)
    other.start()
    try:
        beside = [weights(spec) for _ in range(30)]
    finally:
        ended.set()
        other.join()
    for found in beside:
        assert all(torch.equal(found[name], own) for name, own in alone.items())


def test_building_leaves_the_global_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = weights(RunSpec(task="xor"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)  # and does not depend on it
    assert all(torch.equal(w, one[name]) for name, w in weights(RunSpec(task="xor")).items())
