"""The graft: each layer's step has one method's direction and the other's size, by hand and in whole runs."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_runs import TINY, parameters, trained

from alignlab.probes import EffectiveLR
from alignlab.rules import RULES, LocallyConnected2d, convert, feedback_layers
from alignlab.training import Graft, RunSpec, models, tasks, train
from alignlab.training.graft import GradientGraft

SOURCES = ("rule", "bp")
PAIRS = [{"direction": d, "magnitude": m} for d, m in itertools.product(SOURCES, SOURCES)]
CROSSED = [pair for pair in PAIRS if pair["direction"] != pair["magnitude"]]
LOUD = {"rule": "sign_sync", "rule_args": {"period": 1}}  # B = sign(W): far larger than W


def spec(**fields: Any) -> RunSpec:
    defaults = {
        "hidden": (9, 7),
        "rule": "fa",
        "batch_size": 8,
        "steps": 1,
        "record_every": 0,
        "evaluations": 2,
        "lr": 0.1,
    }
    return RunSpec(**{**defaults, **fields})


# One step, by hand ----------------------------------------------------------------------------------------------------


def by_hand(run: RunSpec, feedback: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Gradients of the run's first batch by plain autograd: backprop's, or with ``feedback`` those of feedback alignment.

    A layer's forward value is W h; its derivative by the input is made B by adding B h − (B h).detach() to W h.detach().
    """
    model = models.build(run, TINY)
    order = torch.randperm(len(TINY.train), generator=torch.Generator().manual_seed(run.stream("order")))
    batch = order[: run.batch_size]
    x = TINY.train.inputs[batch]
    assert isinstance(model, nn.Sequential)
    for name, layer in model.named_children():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or feedback is None:
            x = layer(x)
            continue
        z, B = layer(x.detach()), feedback[name]
        below = F.linear(x, B) if isinstance(layer, nn.Linear) else F.conv2d(x, B, padding=layer.padding)
        x = z + below - below.detach()
    TINY.loss(x, TINY.train.targets[batch]).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.values()))
@pytest.mark.parametrize(
    "model", [{"activation": "tanh"}, {"model": "lenet", "hidden": (128, 64)}], ids=["mlp", "lenet"]
)
def test_a_step_has_the_direction_of_one_and_the_size_of_the_other(
    model: dict[str, Any], pair: dict[str, Any]
) -> None:
    run = spec(**model, graft=pair)
    after = trained(run, TINY)
    feedback = {name: layer.carrier().detach() for name, layer in feedback_layers(after).items()}
    found = {"rule": by_hand(run, feedback), "bp": by_hand(run, None)}
    before = parameters(models.build(run, TINY))
    different = 0
    for name, parameter in after.named_parameters():
        weight = name.rpartition(".")[0] + ".weight"
        direction, size = found[pair["direction"]], found[pair["magnitude"]]
        expected = direction[name] * (size[weight].norm() / direction[weight].norm())
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            parameter.detach() - before[name], -run.lr * expected, rtol=1e-4, atol=1e-6
        )
        different += not torch.allclose(found["rule"][name], found["bp"][name], rtol=0.3)
    assert different >= len(before) - 2  # all but the last layer's: there is something to tell apart


@pytest.mark.parametrize("rule", [name for name in RULES if name != "bp"])
def test_every_rule_can_be_grafted(rule: str) -> None:
    run = spec(rule=rule)
    own = {n: p.grad for n, p in trained(run, TINY).named_parameters()}
    true = {n: p.grad for n, p in trained(run.changed(rule="bp"), TINY).named_parameters()}
    gradients = {"rule": own, "bp": true}
    for pair in CROSSED:
        direction, size = gradients[pair["direction"]], gradients[pair["magnitude"]]
        for name, parameter in trained(run.changed(graft=pair), TINY).named_parameters():
            if name.endswith("weight"):
                d, m = direction[name], size[name]
                assert d is not None
                assert m is not None
                torch.testing.assert_close(parameter.grad, d / d.norm() * m.norm(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.values()))
@pytest.mark.parametrize("model", [{}, {"model": "lenet", "hidden": (128, 64)}], ids=["mlp", "lenet"])
def test_feedback_that_learns_takes_the_grafted_step_of_its_weight(
    model: dict[str, Any], pair: dict[str, str]
) -> None:
    run = spec(
        **model, rule="kolen_pollack", graft=pair, steps=3, weight_decay=0.1, rule_args={"init": "nokland"}
    )
    first, *above = feedback_layers(trained(run, TINY)).values()
    assert first.feedback is not None
    assert first.feedback.grad is None
    for layer in above:
        assert layer.feedback is not None
        assert layer.weight.grad is not None
        assert layer.weight.grad.any()
        assert torch.equal(layer.feedback.grad, layer.weight.grad)  # type: ignore[arg-type]


def test_layers_of_every_kind_can_be_given_backprops_gradient() -> None:
    """Direction and size of backprop in a net with feedback: its gradients, biases included."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Unflatten(1, (2, 2)), nn.ConvTranspose2d(2, 2, 2), nn.Tanh(),
        LocallyConnected2d(2, 3, (3, 5), 2), nn.Tanh(), nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 2), nn.Flatten(),
        nn.Unflatten(1, (2, 6)), nn.TransformerEncoderLayer(6, 2, 5, dropout=0.0, batch_first=True), nn.Linear(6, 2),
    ).double()  # fmt: skip
    net = convert(copy.deepcopy(plain), "fa")
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    graft = GradientGraft(net, Graft(direction="bp", magnitude="bp"))
    for model in (net, plain):
        model(x).square().sum().backward()
    norms = [name for name, _ in net.named_parameters() if ".norm" in name]
    graft.apply()
    graft.close()
    expected = dict(plain.named_parameters())
    for name, parameter in net.named_parameters():
        if name not in norms:  # they learn from the rule's signal
            torch.testing.assert_close(parameter.grad, expected[name].grad)


@pytest.mark.parametrize(("frozen", "learn"), [("3.*", 4), ("3.weight", 5)])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.values()))
def test_a_global_graft_gives_every_layer_the_one_factor(
    pair: dict[str, Any], frozen: str, learn: int
) -> None:
    run = spec(frozen=(frozen,), graft={**pair, "scope": "global"})
    after = trained(run, TINY)
    feedback = {name: layer.carrier().detach() for name, layer in feedback_layers(after).items()}
    found = {"rule": by_hand(run, feedback), "bp": by_hand(run, None)}
    learning = [name for name, p in after.named_parameters() if p.requires_grad]
    assert len(learning) == learn
    size, length = (
        torch.stack([found[pair[part]][name].norm() for name in learning if name.endswith("weight")]).norm()
        for part in ("magnitude", "direction")
    )
    for name in learning:
        expected = found[pair["direction"]][name] * (size / length)
        torch.testing.assert_close(after.get_parameter(name).grad, expected, rtol=1e-4, atol=1e-6)
    assert pair["direction"] == pair["magnitude"] or abs(float(size / length) - 1) > 0.1


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_biases_that_learn_alone_are_grafted_too(scope: str) -> None:
    run = spec(frozen=("*.weight",), **LOUD, graft={"direction": "bp", "magnitude": "bp", "scope": scope})
    grads = {name: p.grad for name, p in trained(run, TINY).named_parameters() if p.grad is not None}
    assert set(grads) == {"1.bias", "3.bias", "5.bias"}
    for name, expected in by_hand(run, None).items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-4, atol=1e-6)


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, {"model": "lenet", "hidden": (128, 64)}], ids=["mlp", "lenet"])
def test_the_rules_direction_at_the_rules_size_is_no_graft(model: dict[str, Any]) -> None:
    run = spec(**model, **LOUD, steps=4, momentum=0.5)
    bare = parameters(trained(run, TINY))
    grafted = parameters(trained(run.changed(graft={"direction": "rule", "magnitude": "rule"}), TINY))
    assert all(torch.equal(grafted[name], p) for name, p in bare.items())


@pytest.mark.parametrize("model", [{}, {"model": "lenet", "hidden": (128, 64)}], ids=["mlp", "lenet"])
def test_backprops_direction_at_backprops_size_is_backprop(model: dict[str, Any]) -> None:
    run = spec(**model, **LOUD, steps=4)
    plain = parameters(trained(run.changed(rule="bp", rule_args={}), TINY))
    grafted = parameters(trained(run.changed(graft={"direction": "bp", "magnitude": "bp"}), TINY))
    ungrafted = parameters(trained(run, TINY))
    for name, p in plain.items():
        torch.testing.assert_close(grafted[name], p, rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(ungrafted[name], p, rtol=1e-2) for name, p in plain.items())


@pytest.mark.parametrize("rule", [LOUD, {"rule": "fa"}, {"rule": "dfa"}], ids=["sign_sync", "fa", "dfa"])
@pytest.mark.parametrize("pair", CROSSED, ids=lambda pair: "-".join(pair.values()))
def test_a_recorder_sees_steps_of_the_grafted_size(pair: dict[str, Any], rule: dict[str, Any]) -> None:
    run = train(spec(**rule, hidden=(64, 32), steps=5, record_every=1, graft=pair), task=TINY)
    steps = run.isel(step=slice(0, 5))
    gain, applied = steps["feedback_gain"].values, steps["applied_gain"].values
    assert np.isfinite(applied).all()
    assert np.abs(gain[:, 0] - 1).min() > 0.1  # so that the two differ where it counts
    np.testing.assert_allclose(applied, np.ones_like(gain) if pair["magnitude"] == "bp" else gain, rtol=1e-3)
    along = "update_angle" if pair["direction"] == "bp" else "gradient_angle"
    other = np.zeros_like(gain) if pair["direction"] == "bp" else steps["update_angle"].values
    np.testing.assert_allclose(steps[along].values, other, atol=0.2)  # degrees; ΔW is rounded


def test_a_recorder_does_not_disturb_the_graft() -> None:
    run = spec(**LOUD, steps=6, graft=CROSSED[0])
    bare = parameters(trained(run, TINY))
    again = parameters(trained(run.changed(record_every=2), TINY))
    assert all(torch.equal(again[name], p) for name, p in bare.items())


def test_momentum_carries_grafted_gradients_on() -> None:
    run = spec(**LOUD, steps=2, momentum=0.9, graft={"direction": "rule", "magnitude": "bp"})
    first = trained(run.changed(steps=1), TINY)
    second = trained(run, TINY)
    before, after = parameters(first), parameters(second)
    for name, p in second.named_parameters():
        g1, g2 = first.get_parameter(name).grad, p.grad
        assert g1 is not None
        assert g2 is not None
        torch.testing.assert_close(after[name], before[name] - run.lr * (g2 + 0.9 * g1), rtol=1e-4, atol=1e-6)
    gains = train(run.changed(steps=3, record_every=1), probes=[EffectiveLR()], task=TINY)["applied_gain"]
    np.testing.assert_allclose(gains[0], 1, rtol=1e-3)
    assert (abs(gains[1] - 1) > 0.01).all()


# Corners --------------------------------------------------------------------------------------------------------------


def grafted(pair: dict[str, Any], feedback: float, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a 4-5-3 network whose feedback is a constant, after the graft."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    convert(net, "fa", init=lambda like, generator: torch.full_like(like, feedback))
    graft = GradientGraft(net, Graft(**pair))
    net(x).square().sum().backward()
    graft.apply()
    graft.close()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pair", CROSSED, ids=lambda pair: "-".join(pair.values()))
def test_no_direction_or_no_size_is_no_step(pair: dict[str, Any]) -> None:
    found = grafted(pair, 0.0, torch.ones(2, 4))
    assert torch.equal(found["0.weight"], torch.zeros(5, 4))
    assert torch.equal(found["0.bias"], torch.zeros(5))
    assert all(found[name].isfinite().all() and found[name].any() for name in ("2.weight", "2.bias"))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.values()))
def test_two_zero_gradients_are_of_one_size(pair: dict[str, Any]) -> None:
    found = grafted(pair, 1.0, torch.zeros(2, 4))  # no input: no weight gradient, but one of the bias
    assert torch.equal(found["0.weight"], torch.zeros(5, 4))
    assert found["0.bias"].isfinite().all()
    assert found["0.bias"].any()


@pytest.mark.parametrize("pair", CROSSED, ids=lambda pair: "-".join(pair.values()))
def test_what_overflows_is_not_hidden(pair: dict[str, Any]) -> None:
    found = grafted(
        pair, 3e38, torch.ones(2, 4)
    )  # the rule's gradient is infinite: the run must not stand still instead
    assert not found["0.weight"].isfinite().all()
    run = train(spec(**LOUD, lr=1e20, steps=5, record_every=1, graft=pair), task=TINY)
    assert str(run["status"].values) == "diverged"


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_the_scale_of_the_signals_does_not_matter(scale: float) -> None:
    def gradients(scale: float, pair: dict[str, Any]) -> Tensor:
        torch.manual_seed(0)
        net = convert(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), "fa")
        graft = GradientGraft(net, Graft(**pair))
        (net(torch.ones(2, 4)).square().sum() * scale).backward()
        graft.apply()
        found = net.get_parameter("0.weight").grad
        assert found is not None
        return found

    for pair in CROSSED:
        torch.testing.assert_close(gradients(scale, pair) / scale, gradients(1.0, pair), rtol=1e-4, atol=1e-7)


def test_a_graft_leaves_no_hook_behind() -> None:
    net = convert(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), "fa")
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    graft = GradientGraft(net, Graft(direction="rule", magnitude="bp"))
    net(torch.ones(2, 4)).sum().backward()
    graft.apply()
    graft.close()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks


# Lillicrap's linear problem -------------------------------------------------------------------------------------------


def test_feedback_alignment_looks_100_times_better_than_backprop_until_backprop_gets_its_norm() -> None:
    """30-20-10, forward weights of about U(±0.01), feedback U(±0.5), as in Lillicrap et al. 2016: W₂ starts 50 times smaller
    than B, so that backprop's hidden layer hardly moves at first. It needs nothing of the feedback but its size."""
    toy = RunSpec(
        task="linear_toy",
        hidden=(20,),
        activation="linear",
        weight_scale=0.05,
        lr=0.02,
        steps=200,
        evaluations=2,
        record_every=0,
    )
    for seed in range(3):
        fa = toy.changed(rule="fa", rule_args={"init": "lillicrap"}, seed=seed)
        bp, louder = toy.changed(seed=seed), fa.changed(graft={"direction": "bp", "magnitude": "rule"})
        loss = {name: final_loss(run) for name, run in (("fa", fa), ("bp", bp), ("louder bp", louder))}
        assert loss["bp"] > 100 * loss["fa"]
        assert loss["louder bp"] < 2 * loss["fa"]


def final_loss(run: RunSpec) -> float:
    return float(train(run)["train_loss"][-1])


def test_the_toy_starts_where_lillicrap_started() -> None:
    task = tasks.load("linear_toy")
    weights = [
        p
        for p in models.build(RunSpec(task="linear_toy", hidden=(20,), weight_scale=0.05), task).parameters()
        if p.dim() == 2
    ]
    assert [tuple(w.shape) for w in weights] == [(20, 30), (10, 20)]
    assert all(0.008 < float(w.detach().abs().max()) < 0.012 for w in weights)
