"""When feedback is brought up to date: steps are changes of the weights, and nothing else counts."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import ALL_RULES, RuleCase, mlp, normal, plain_parameters, train
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab import rules
from alignlab.rules import compiling

X, Y = normal(4, 5), normal(4, 2, seed=2)
PERIOD = 3


def _loss(net: nn.Module) -> Tensor:
    return F.mse_loss(net(X), Y)


def _net(preserve: bool = False, **arguments: Any) -> Any:
    return rules.convert(
        mlp(), "sign_sync", period=PERIOD, preserve_magnitude=preserve, generator=_seeded(), **arguments
    )


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _signs(net: nn.Module) -> list[Tensor]:
    return [m.weight.detach().sign() for m in rules.feedback_layers(net).values()]


def _feedback(net: nn.Module) -> list[Tensor]:
    return [m.feedback.clone() for m in rules.feedback_layers(net).values() if m.feedback is not None]


def _learnt(net: nn.Module) -> list[Tensor]:
    return list(plain_parameters(net).values())


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- the plain loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preserve", [False, True])
def test_feedback_takes_the_signs_at_steps_0_T_2T_and_stays_in_between(preserve: bool) -> None:
    net = _net(preserve)
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    magnitudes = [B.abs() for B in _feedback(net)]
    synced: list[Tensor] = []
    moved = 0
    for step in range(3 * PERIOD + 1):
        signs = _signs(net)
        optimizer.zero_grad()
        _loss(net).backward()
        if step % PERIOD == 0:
            synced = signs
        else:
            moved += not _same(signs, synced)
        assert _same([B.sign() for B in _feedback(net)], synced)
        expected = magnitudes if preserve else [torch.ones_like(m) for m in magnitudes]
        assert _same([B.abs() for B in _feedback(net)], expected)
        optimizer.step()
    assert moved >= PERIOD  # the signs of W did change in between: staying is not trivial


def test_a_period_of_one_follows_the_signs_at_every_step() -> None:
    net = rules.convert(mlp(), "sign_sync", period=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    for _ in range(4):
        train(net, optimizer, [(X, Y)])
        signs = _signs(net)
        _loss(net)
        assert _same(_feedback(net), signs)


def test_unscaled_feedback_is_loud_and_preserved_magnitudes_are_those_drawn() -> None:
    loud, kept = _net(), _net(preserve=True)
    drawn = rules.convert(mlp(), "fa", generator=_seeded())
    for net in (loud, kept):
        _loss(net)
    assert all((B.abs() == 1).all() for B in _feedback(loud))
    assert _same([B.abs() for B in _feedback(kept)], [B.abs() for B in _feedback(drawn)])


def test_a_zero_weight_has_sign_zero() -> None:
    for rule in ("sign_sync", "usf", "frsf", "brsf"):
        net = mlp()
        with torch.no_grad():
            net[2].weight[0, 0] = 0
        rules.convert(net, rule)
        _loss(net)
        assert net[2].feedback[0, 0] == 0
        assert net[2].feedback[1, 1] != 0


# --- what does not count ----------------------------------------------------------------------------------------------


def _accumulate(net: nn.Module) -> None:
    for _ in range(3):
        _loss(net).backward()


def _evaluate(net: nn.Module) -> None:
    net.eval()
    with torch.no_grad():
        _loss(net)
    net.train()


def _evaluate_in_inference_mode(net: nn.Module) -> None:
    with torch.inference_mode():
        _loss(net)


def _evaluate_with_gradients(net: nn.Module) -> None:
    _loss(net)


def _checkpoint(reentrant: bool) -> Callable[[nn.Module], None]:
    def run(net: nn.Module) -> None:
        F.mse_loss(checkpoint(net, X.clone().requires_grad_(), use_reentrant=reentrant), Y).backward()

    return run


def _skip_a_step(net: nn.Module) -> None:
    """As a gradient scaler does where a gradient overflows."""
    _loss(net).backward()
    for p in net.parameters():
        p.grad = None


def _step_without_gradients(net: nn.Module) -> None:
    net.zero_grad()
    torch.optim.SGD(net.parameters(), lr=1.0).step()


def _save(net: nn.Module) -> None:
    net.state_dict()
    copy.deepcopy(net)


DISTURBANCES: dict[str, Callable[[nn.Module], None]] = {
    "gradient accumulation": _accumulate,
    "evaluation": _evaluate,
    "inference mode": _evaluate_in_inference_mode,
    "evaluation with gradients": _evaluate_with_gradients,
    "reentrant checkpointing": _checkpoint(True),
    "checkpointing": _checkpoint(False),
    "a skipped step": _skip_a_step,
    "a step without gradients": _step_without_gradients,
    "saving": _save,
}


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("rule", [c for c in ALL_RULES if not c.direct and not c.made.every_forward], ids=str)
def test_only_a_change_of_the_weights_counts_as_a_step(rule: RuleCase, name: str) -> None:
    """The run with and the run without the disturbance, before and after each backward pass, end bitwise equal."""
    bare, disturbed = rule.convert(mlp()), rule.convert(mlp())
    optimizers = [torch.optim.SGD(net.parameters(), lr=1.0) for net in (bare, disturbed)]
    for _ in range(2 * PERIOD + 1):
        DISTURBANCES[name](disturbed)
        for net, optimizer in zip((bare, disturbed), optimizers, strict=True):
            optimizer.zero_grad()
            _loss(net).backward()
        if name not in (
            "gradient accumulation",
            "reentrant checkpointing",
            "checkpointing",
            "a skipped step",
        ):
            kept = [None if p.grad is None else p.grad.clone() for p in disturbed.parameters()]
            DISTURBANCES[name](disturbed)
            for p, gradient in zip(disturbed.parameters(), kept, strict=True):
                p.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    assert _same(_learnt(bare), _learnt(disturbed))
    assert _same(_feedback(bare)[1:], _feedback(disturbed)[1:])
    by_use = rule.learns_feedback or rule.made.rests
    if not (by_use and "checkpointing" in name):  # which asks for the input's gradient, by that B
        assert _same(_feedback(bare), _feedback(disturbed))
    assert disturbed[0].clock == 2 * PERIOD


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rule", [c for c in ALL_RULES if not c.direct and not c.made.every_forward], ids=str)
def test_training_under_checkpointing_is_training(rule: RuleCase, reentrant: bool) -> None:
    bare, saving = rule.convert(mlp()), rule.convert(mlp())
    optimizers = [torch.optim.SGD(net.parameters(), lr=1.0) for net in (bare, saving)]
    for _ in range(2 * PERIOD + 1):
        for optimizer in optimizers:
            optimizer.zero_grad()
        _loss(bare).backward()
        _checkpoint(reentrant)(saving)
        for optimizer in optimizers:
            optimizer.step()
    assert _same(_learnt(bare), _learnt(saving))
    assert _same(_feedback(bare)[1:], _feedback(saving)[1:])
    assert saving[0].clock == 2 * PERIOD


class _ThroughData(torch.optim.Optimizer):
    """As many optimizers outside PyTorch do it."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad.data, alpha=-0.1)


@pytest.mark.parametrize("converted", [False, True])
def test_a_loop_that_has_converted_nothing_finds_its_counters_as_they_were(
    converted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing the rules made the second pass of such a loop "modified by an inplace operation"."""
    monkeypatch.setattr(compiling, "_LAYERS", {0: None} if converted else {})
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    loss = net(torch.ones(5, 3)).square().mean()
    loss.backward(retain_graph=True)
    versions = [p._version for p in net.parameters()]
    _ThroughData(net.parameters(), {}).step()
    assert [p._version - before for p, before in zip(net.parameters(), versions, strict=True)] == [
        converted
    ] * 4
    with pytest.raises(RuntimeError, match="inplace") if converted else contextlib.nullcontext():
        loss.backward()


def test_momentum_moves_weights_without_a_new_gradient_and_that_counts() -> None:
    net = _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    _loss(net).backward()
    for expected in range(1, 4):
        optimizer.step()
        _loss(net)
        assert net[0].clock == expected


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
        lambda p: _ThroughData(p, {}),
    ],
    ids=str.split(
        "sgd one-by-one adam rmsprop adagrad fused-sgd fused-adam fused-adamw fused-adagrad through-data"
    ),
)
def test_a_step_of_any_optimizer_counts_once(optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    net = _net()
    made = optimizer(net.parameters())
    for step in range(PERIOD + 2):
        signs = _signs(net)
        train(net, made, [(X, Y)])
        assert net[0].clock == step
        if step % PERIOD == 0:
            assert _same(_feedback(net), signs)


def test_a_loop_by_hand_counts_too() -> None:
    net = _net()
    for _ in range(PERIOD):
        _loss(net).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    signs = _signs(net)
    _loss(net)
    assert net[0].clock == PERIOD
    assert _same(_feedback(net), signs)


def test_the_clock_stands_still_in_a_frozen_layer() -> None:
    net = _net()
    net[2].requires_grad_(False)
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), [(X, Y)] * 4)
    assert [net[i].clock for i in (0, 2, 4)] == [3, 0, 3]


# --- the other rules' schedules ---------------------------------------------------------------------------------------


def test_batch_random_magnitudes_change_with_the_weights_and_belong_to_the_step() -> None:
    net = rules.convert(mlp(), "brsf", generator=_seeded())
    again = rules.convert(mlp(), "brsf", generator=_seeded())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = []
    for _ in range(4):
        train(net, optimizer, [(X, Y)])
        seen.append(net[2].feedback.abs())
    assert len({tuple(B.flatten().tolist()) for B in seen}) == 4
    train(
        again, torch.optim.SGD(again.parameters(), lr=0.3), [(X, Y)] * 4
    )  # other weights, the same magnitudes
    assert torch.equal(again[2].feedback.abs(), seen[-1])


def test_rerandomised_feedback_is_new_at_every_pass_and_never_comes_back() -> None:
    net = rules.convert(mlp(), "rerandomised", generator=_seeded())
    seen = []
    for _ in range(5):
        _loss(net).backward()
        seen.append(tuple(net[2].feedback.flatten().tolist()))
    assert len(set(seen)) == 5
    with torch.no_grad():
        _loss(net)
    assert tuple(net[2].feedback.flatten().tolist()) == seen[-1]


def test_uniform_magnitude_is_the_root_mean_square_of_the_draw() -> None:
    net = rules.convert(mlp((50, 60, 40)), "usf", init="lillicrap", generator=_seeded())
    _loss_free = net[2].feedback
    assert torch.equal(_loss_free, net[2].weight.detach().sign() * net[2].feedback_magnitude)
    assert net[2].feedback_magnitude.item() == pytest.approx(0.5 / 3**0.5, rel=0.02)


def test_a_weight_that_was_replaced_is_a_changed_weight() -> None:
    net = rules.convert(mlp(), "usf")
    _loss(net).backward()
    new = nn.Parameter(-net[2].weight.detach())
    with torch.no_grad():
        for _ in range(net[2].weight._version - new._version):
            new.add_(0)  # the same version as the weight before
    net[2].weight = new
    _loss(net).backward()
    assert torch.equal(net[2].feedback.sign(), new.detach().sign())


def test_unscaled_signs_make_errors_louder_at_every_layer_by_what_the_docstring_says() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(*[nn.Linear(192, 192) for _ in range(3)]).double()
    net = rules.convert(copy.deepcopy(plain), "sign_sync", generator=_seeded())
    errors = normal(64, 192, seed=2)
    norms = []
    for model in (net, plain):
        x = normal(64, 192).requires_grad_()
        (model(x) * errors).sum().backward()
        assert x.grad is not None
        norms.append(float(x.grad.norm()))
    assert norms[0] / norms[1] == pytest.approx((3 * 192) ** 1.5, rel=0.05)
