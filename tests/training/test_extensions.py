"""What a spec can ask for beside the plain loop: mixed rules, frozen parts, clipping, other losses, draws and first weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_runs import TINY, images, parameters, trained

from alignlab.rules import feedback_layers
from alignlab.store import check
from alignlab.training import RunSpec, SpecError, models, tasks, train
from alignlab.training.batches import batches
from alignlab.training.evaluation import accuracy, clip
from alignlab.training.spec import parse
from alignlab.training.task import absolute_error


def spec(**fields: Any) -> RunSpec:
    defaults = {
        "hidden": (9, 7),
        "rule": "fa",
        "batch_size": 8,
        "steps": 6,
        "record_every": 3,
        "evaluations": 3,
    }
    return RunSpec(**{**defaults, "lr": 0.1, **fields})


def test_rules_by_pattern_reach_their_layers_and_the_first_counts() -> None:
    run = spec(rule={"1": "bp", "*": {"rule": "sign_sync", "period": 2}}, steps=2)
    assert [m.rule.name for m in feedback_layers(trained(run, TINY)).values()] == [
        "bp",
        "sign_sync",
        "sign_sync",
    ]
    other = spec(rule={"*": {"rule": "sign_sync", "period": 2}, "1": "bp"}, steps=2)
    assert run.digest() != other.digest()
    assert RunSpec.from_yaml(run.to_yaml()) == run
    assert list(RunSpec.from_yaml(other.to_yaml()).rule) == ["*", "1"]
    assert str(train(run, task=TINY)["rule"].values) == "bp+sign_sync"
    assert run.rule_name == "1: bp, *: sign_sync"


def test_rules_that_do_not_fit_the_models_layers_are_refused() -> None:
    for rule, told in (
        ({"1": "dfa", "*": "bp"}, "dfa cannot share"),
        ({"4": "fa"}, "'4' decides about no layer"),
    ):
        with pytest.raises(SpecError, match=told):
            train(spec(rule=rule), task=TINY)


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "rerandomised"])
@pytest.mark.parametrize("every", [0, 1])
def test_frozen_parameters_stay_and_the_others_learn(rule: str, every: int) -> None:
    run = spec(rule=rule, frozen=("1.*", "3.weight"), weight_decay=0.01, record_every=every)
    before, after = parameters(models.build(run, TINY)), parameters(trained(run, TINY))
    moved = {name for name, p in before.items() if not torch.equal(p, after[name])}
    assert moved == {"3.bias", "5.weight", "5.bias"}
    check(train(run, task=TINY))


@pytest.mark.parametrize(
    ("frozen", "told"),
    [(("2.*",), "'2.*' names no parameter; there are 1.weight"), (("*",), "nothing is left")],
)
def test_frozen_must_name_something_and_leave_something(frozen: tuple[str, ...], told: str) -> None:
    with pytest.raises(SpecError, match=told.replace("*", r"\*")):
        models.build(spec(frozen=frozen), TINY)


def test_clipping_keeps_the_direction_and_bounds_the_norm() -> None:
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    for largest, bites, norm in ((1.0, True, 1.0), (5.0, False, 5.0), (9.0, False, 5.0)):
        holders = [torch.zeros_like(g).requires_grad_() for g in grads]
        for holder, g in zip(holders, grads, strict=True):
            holder.grad = g.clone()
        assert clip(holders, largest) is bites
        clipped = [h.grad for h in holders if h.grad is not None]
        assert float(torch.stack([c.norm() for c in clipped]).norm()) == pytest.approx(norm, rel=1e-4)
        assert float(clipped[0][0] / clipped[1][0, 0]) == pytest.approx(0.75)


def test_a_clipped_run_takes_steps_no_longer_than_lr_times_clip_and_says_how_often() -> None:
    run = spec(rule="bp", clip=0.01, steps=1, evaluations=2)
    before, after = parameters(models.build(run, TINY)), parameters(trained(run, TINY))
    step = torch.cat([(before[name] - after[name]).flatten() for name in before]).norm()
    assert float(step) == pytest.approx(0.1 * 0.01, rel=1e-3)
    for largest, share in ((1e-6, 1), (1e6, 0)):
        shares = train(spec(clip=largest), task=TINY)["clip_fraction"].dropna("step")
        assert shares["step"].values.tolist() == [3, 6]
        assert shares.values.tolist() == [share, share]
    loose, free = (trained(spec(clip=c), TINY) for c in (1e6, None))
    assert all(torch.equal(p, parameters(free)[name]) for name, p in parameters(loose).items())
    assert "clip_fraction" not in train(spec(), task=TINY)


def test_the_absolute_errors_derivative_is_the_sign() -> None:
    output = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0], [0.5, 5.0]])
    loss = absolute_error(output, target)
    assert loss.item() == pytest.approx((1 + 2 + 0 + 2) / 2)
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient.tolist() == [[0.5, -0.5], [0.0, -0.5]]
    with pytest.raises(ValueError, match="differ in shape"):
        absolute_error(output, target[:, :1])


def test_absolute_error_replaces_the_tasks_loss_and_needs_values() -> None:
    run = RunSpec(task="xor_bits", hidden=(5,), loss="absolute", steps=1, evaluations=2, record_every=0)
    task = tasks.load("xor_bits")
    with torch.no_grad():
        expected = (models.build(run, task)(task.train.inputs) - task.train.targets).abs().mean()
    assert float(train(run)["train_loss"][0]) == pytest.approx(float(expected))
    with pytest.raises(SpecError, match="targets of xor are classes"):
        train(run.changed(task="xor"))


def test_accuracy_of_values_counts_samples_whose_outputs_are_all_on_the_right_side() -> None:
    output = torch.tensor([[0.9, 0.1], [0.6, 0.6], [0.5, 0.0], [0.4, 0.2]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert float(accuracy(output, targets, threshold=0.5)) == 0.5


def test_drawing_with_replacement_is_independent_and_does_not_depend_on_the_length() -> None:
    drawn = torch.stack(list(batches(spec(sampling="replacement", batch_size=1, steps=4000), 4))).flatten()
    assert np.bincount(drawn, minlength=4).tolist() == pytest.approx([1000] * 4, abs=100)
    repeats = float((drawn[1:] == drawn[:-1]).double().mean())
    assert repeats == pytest.approx(0.25, abs=0.03)  # in epochs of 4 it would be 1/16
    short = list(batches(spec(sampling="replacement", batch_size=3, steps=1500), 4))
    long = list(batches(spec(sampling="replacement", batch_size=3, steps=3000), 4))
    assert len(short) == 1500
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=False))
    assert [len(b) for b in batches(spec(sampling="replacement", batch_size=9, steps=2), 4)] == [9, 9]


@pytest.mark.parametrize("model", ["mlp", "lenet", "convnet", "untied"])
def test_without_bias_there_is_none(model: str) -> None:
    shape = {"hidden": (9, 7)} if model == "mlp" else {"hidden": (128, 64)}
    built = models.build(spec(model=model, bias=False, **shape), TINY)
    assert all(name.endswith("weight") for name, _ in built.named_parameters())


@pytest.mark.parametrize(("name", "std"), [("gaussian", 1.0), ("lillicrap", 0.01 / 3**0.5), ("nokland", 0.0)])
def test_first_weights_by_name(name: str, std: float) -> None:
    task = images(side=28)
    made = parameters(models.build(RunSpec(weight_init=name), task))  # type: ignore[arg-type]
    again = parameters(models.build(RunSpec(weight_init=name), task))  # type: ignore[arg-type]
    other = parameters(models.build(RunSpec(weight_init=name, seed=1), task))  # type: ignore[arg-type]
    assert made["1.weight"].std().item() == pytest.approx(std, rel=0.02)
    assert made["1.weight"].abs().max() <= (0.01 if name != "gaussian" else 6)
    for key, p in made.items():
        assert torch.equal(p, again[key])
        if key.endswith("bias"):
            assert not p.any()
        elif std:
            assert not torch.equal(p, other[key])
    half = parameters(models.build(RunSpec(weight_init=name, weight_scale=0.5), task))  # type: ignore[arg-type]
    assert torch.equal(half["3.weight"], made["3.weight"] * 0.5)


@pytest.mark.parametrize(
    ("n_in", "flat"), [((1, 28, 28), 32 * 49), ((3, 32, 32), 32 * 64), ((1, 9, 14), 32 * 3 * 4)]
)
@pytest.mark.parametrize("untied", [False, True])
def test_a_convnet_fits_its_images(n_in: tuple[int, ...], flat: int, untied: bool) -> None:
    model = models.convnet(n_in, 10, untied=untied)
    dense = [m for m in model if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in dense] == [(flat, 128), (128, 10)]
    out: Tensor = model(torch.zeros(2, *n_in))
    assert out.shape == (2, 10)
    with pytest.raises(SpecError, match="at least 8×8"):
        models.convnet((2,), 1, untied=untied)


def test_untied_kernels_that_are_all_the_same_are_a_convolution() -> None:
    tied, untied = (models.convnet((1, 9, 12), 3, untied=own) for own in (False, True))
    with torch.no_grad():
        for a, b in zip(tied.parameters(), untied.parameters(), strict=True):
            if b.dim() == 6:
                b.copy_(a.expand_as(b))
            elif a.shape != b.shape:
                b.copy_(a[:, None, None].expand_as(b) if b.shape[0] == len(a) else a.expand_as(b))
            else:
                b.copy_(a)
    x = torch.randn(4, 1, 9, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(untied(x), tied(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["convnet", "untied"])
@pytest.mark.parametrize("rule", ["bp", "dfa", "ifa", {"[57]": "fa"}], ids=str)
def test_a_convnet_trains_by_every_way_of_sending_errors(rule: Any, model: Any) -> None:
    run = RunSpec(model=model, rule=rule, steps=2, lr=0.01, record_every=1, batch_size=8, evaluations=2)
    check(train(run, task=TINY))


def test_a_spec_tells_yaml_what_its_booleans_are() -> None:
    assert parse({"bias": False}).bias is False
    assert RunSpec.from_yaml("bias: false\nfrozen: ['1.*']").frozen == ("1.*",)
