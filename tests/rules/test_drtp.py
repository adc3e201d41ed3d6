"""Direct random target projection: hidden layers get the target at the loss's own scale, or the error is refused."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import close, convnet, gradients, mlp, normal
from torch import Tensor, nn

from alignlab import rules
from alignlab.probes.truth import asking

SIZES = (5, 7, 6, 4)
X = normal(8, 5)
CLASSES = torch.tensor([0, 3, 1, 2, 3, 3, 0, 1])
BITS = (normal(8, 4, seed=9) > 0).double()


def _net(loss: str = "cross_entropy", sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Any:
    return rules.convert(mlp(sizes), "drtp", loss=loss, generator=torch.Generator().manual_seed(seed))


def _by_hand(net: Any, y: Tensor, p_of: Callable[[Tensor], Tensor], scale: Any) -> dict[str, Tensor]:
    """Weight gradients of a net with two tanh layers under ``scale * (p − y)``; ``scale`` a number or a column."""
    with torch.no_grad():
        h1 = net[0](X).tanh()
        h2 = net[2](h1).tanh()
        e = scale * (p_of(net[4](h2)) - y)
        delta1 = -scale * y @ net[0].feedback * (1 - h1**2)
        delta2 = -scale * y @ net[2].feedback * (1 - h2**2)
        return {
            "0.weight": delta1.T @ X, "2.weight": delta2.T @ h1, "4.weight": e.T @ h2,
            "0.bias": delta1.sum(0), "2.bias": delta2.sum(0), "4.bias": e.sum(0),
        }  # fmt: skip


def _assert_by_hand(net: Any, y: Tensor, p_of: Callable[[Tensor], Tensor], scale: Any) -> None:
    for name, expected in _by_hand(net, y, p_of, scale).items():
        close(net.get_parameter(name).grad, expected)
        assert expected.norm() > 0


def _softmax(z: Tensor) -> Tensor:
    return z.softmax(-1)


# --- the signal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "scale"), [("mean", 1 / 8), ("sum", 1.0)])
def test_cross_entropy_sends_the_target_at_the_losss_own_scale(reduction: str, scale: float) -> None:
    net = _net()
    F.cross_entropy(net(X), CLASSES, reduction=reduction).backward()
    _assert_by_hand(net, F.one_hot(CLASSES, 4).double(), _softmax, scale)


@pytest.mark.parametrize("bits", [BITS, torch.ones_like(BITS)])
@pytest.mark.parametrize(("reduction", "scale"), [("mean", 1 / 32), ("sum", 1.0)])
def test_binary_cross_entropy_sends_every_target(reduction: str, scale: float, bits: Tensor) -> None:
    net = _net("binary_cross_entropy")
    F.binary_cross_entropy_with_logits(net(X), bits, reduction=reduction).backward()
    _assert_by_hand(net, bits, torch.sigmoid, scale)


@pytest.mark.parametrize("factor", [2.0**16, 2.0**-20, 1e-30, 0.5])
def test_any_factor_on_the_loss_acts_on_all_layers_alike(factor: float) -> None:
    """A gradient scaler's, or the share of an accumulated batch."""
    bare, scaled = _net(), _net()
    F.cross_entropy(bare(X), CLASSES).backward()
    (F.cross_entropy(scaled(X), CLASSES) * factor).backward()
    for name, gradient in gradients(bare).items():
        assert gradient is not None
        torch.testing.assert_close(scaled.get_parameter(name).grad / factor, gradient, rtol=1e-10, atol=1e-14)


def test_two_half_batches_add_up_to_the_whole() -> None:
    whole, halves = _net(), _net()
    F.cross_entropy(whole(X), CLASSES).backward()
    for half in (slice(0, 4), slice(4, 8)):
        (F.cross_entropy(halves(X[half]), CLASSES[half]) / 2).backward()
    for name, gradient in gradients(whole).items():
        close(halves.get_parameter(name).grad, gradient)


def test_rows_that_the_loss_ignores_send_nothing() -> None:
    net, ignored = _net(), torch.tensor([2, 5])
    targets = CLASSES.clone()
    targets[ignored] = -100
    F.cross_entropy(net(X), targets).backward()
    y, scale = F.one_hot(CLASSES, 4).double(), torch.full((8, 1), 1 / 6, dtype=torch.float64)
    scale[ignored] = 0
    _assert_by_hand(net, y, _softmax, scale)


def test_an_error_of_zero_is_a_signal_of_zero() -> None:
    net = _net()
    (F.cross_entropy(net(X), CLASSES) * 0).backward()
    for gradient in gradients(net).values():
        assert gradient is not None
        assert not gradient.any()


def test_positions_have_targets_of_their_own() -> None:
    net, flat = _net(), _net()
    F.cross_entropy(net(X.reshape(2, 4, 5)).flatten(0, 1), CLASSES).backward()
    F.cross_entropy(flat(X), CLASSES).backward()
    for name, gradient in gradients(flat).items():
        close(net.get_parameter(name).grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 10.0, 30.0, 60.0, 200.0])
def test_targets_are_read_however_sure_the_network_is(size: float, dtype: torch.dtype) -> None:
    """Near a minimum p − 1 is lost to rounding at the target: there the signal must not vanish, turn, or be refused."""
    z = (normal(8, 4, seed=5) * 0.1).scatter_add(1, CLASSES[:, None], torch.full((8, 1), size).double())
    for right in (True, False):
        output = z.to(dtype, copy=True).requires_grad_()
        targets = CLASSES if right else CLASSES.roll(1)
        F.cross_entropy(output, targets).backward()
        error = output.grad
        assert error is not None
        sent = rules.make_rule("drtp").broadcast(error, output.detach())  # type: ignore[attr-defined]
        expected = -F.one_hot(targets, 4).to(dtype) / 8 * (error != 0).any(1, keepdim=True)
        torch.testing.assert_close(sent, expected, rtol=0.05, atol=0)


def test_a_target_whose_error_is_rounded_away_is_told_from_classes_that_are_out_of_the_question() -> None:
    """Both have an error of exactly 0, and the impossible class comes first."""
    output = torch.tensor([[-100.0, 20.0, 0.0, 0.0]], requires_grad=True)
    F.cross_entropy(output, torch.tensor([1])).backward()
    assert output.grad is not None
    assert (output.grad == 0).tolist() == [[True, True, False, False]]
    rule: Any = rules.make_rule("drtp")
    sent = rule.broadcast(output.grad, output.detach())
    torch.testing.assert_close(sent, torch.tensor([[0.0, -1.0, 0.0, 0.0]]), rtol=0.05, atol=0)


@pytest.mark.parametrize("size", [1e-3, 1.0, 5.0, 12.0])
def test_binary_targets_are_read_however_sure_the_network_is(size: float) -> None:
    output = ((2 * BITS - 1) * size + 0.1 * normal(8, 4)).float().requires_grad_()
    F.binary_cross_entropy_with_logits(output, BITS.float()).backward()
    assert output.grad is not None
    rule: Any = rules.make_rule("drtp", loss="binary_cross_entropy")
    expected = -BITS.float() / 32
    torch.testing.assert_close(rule.broadcast(output.grad, output.detach()), expected, rtol=0.05, atol=0)


def test_each_of_several_runs_has_a_scale_of_its_own_and_is_refused_by_its_own_error() -> None:
    rule: Any = rules.make_rule("drtp")
    output = torch.stack([normal(8, 4, seed=seed) for seed in range(3)]).requires_grad_()
    for z, c in zip(output, (1.0, 1e-6, 30.0), strict=True):
        (F.cross_entropy(z, CLASSES) * c).backward()
    assert output.grad is not None
    errors, outputs = output.grad, output.detach()
    alone = [rule.broadcast(e, z) for e, z in zip(errors, outputs, strict=True)]
    torch.testing.assert_close(rule.broadcast(errors, outputs, 3), torch.stack(alone), rtol=1e-12, atol=0)
    errors[1, 0, 0] *= 2
    with pytest.raises(RuntimeError, match="not that of cross_entropy"):
        rule.broadcast(errors, outputs, 3)


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "squared error": lambda z: F.mse_loss(z, F.one_hot(CLASSES, 4).double()),
    "soft labels": lambda z: F.cross_entropy(z, normal(8, 4, seed=3).softmax(-1)),
    "label smoothing": lambda z: F.cross_entropy(z, CLASSES, label_smoothing=0.1),
    "class weights": lambda z: F.cross_entropy(z, CLASSES, torch.tensor([1.0, 2.0, 3.0, 4.0]).double()),
    "binary cross-entropy": lambda z: F.binary_cross_entropy_with_logits(z, BITS),
    "a penalty": lambda z: F.cross_entropy(z, CLASSES) + 0.1 * z.square().mean(),
    "a loss to be maximised": lambda z: -F.cross_entropy(z, CLASSES),
    "a plain sum": lambda z: z.sum(),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("factor", [1e-14, 1.0, 1e14])
def test_an_error_of_another_form_is_refused_at_any_scale(name: str, factor: float) -> None:
    net = _net()
    with pytest.raises(RuntimeError, match=r"drtp: the error .* is not that of cross_entropy.*there is dfa"):
        (factor * REFUSED[name](net(X))).backward()
    net.zero_grad()
    F.cross_entropy(net(X), CLASSES).backward()  # and the next pass is as good as new
    _assert_by_hand(net, F.one_hot(CLASSES, 4).double(), _softmax, 1 / 8)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: F.cross_entropy(z, CLASSES),
        lambda z: F.mse_loss(z, BITS),
        lambda z: F.binary_cross_entropy_with_logits(z, 0.8 * BITS + 0.1),
        lambda z: F.binary_cross_entropy_with_logits(z, BITS, pos_weight=torch.full((4,), 3.0).double()),
    ],
    ids=["cross-entropy", "squared error", "soft labels", "weights"],
)
def test_an_error_of_another_form_than_binary_cross_entropy_is_refused(loss: Any) -> None:
    with pytest.raises(RuntimeError, match="not that of binary_cross_entropy"):
        loss(_net("binary_cross_entropy")(X)).backward()


def test_two_classes_with_soft_labels_are_refused() -> None:
    net = _net(sizes=(5, 4, 2))
    with pytest.raises(RuntimeError, match="not that of cross_entropy"):
        F.cross_entropy(net(X), CLASSES % 2, label_smoothing=0.2).backward()


def test_an_unknown_loss_is_an_error_that_names_those_known() -> None:
    net = mlp()
    with pytest.raises(
        ValueError, match="loss is 'mse', expected one of cross_entropy, binary_cross_entropy"
    ):
        rules.convert(net, "drtp", loss="mse")
    assert type(net[0]) is nn.Linear


def test_a_run_that_diverges_shows_it() -> None:
    net = _net()
    (F.cross_entropy(net(X), CLASSES) * float("inf")).backward()
    assert not net[0].weight.grad.isfinite().all()


def test_without_hidden_layers_any_loss_will_do() -> None:
    net, plain = rules.convert(mlp((5, 4)), "drtp"), mlp((5, 4))
    for model in (net, plain):
        F.mse_loss(model(X), BITS).backward()
    close(net[0].weight.grad, plain[0].weight.grad)


# --- the laws of direct rules -----------------------------------------------------------------------------------------


def test_true_mode_gives_backprops_errors() -> None:
    net, plain = _net(), mlp(SIZES)
    found = []
    for model in (net, plain):
        hidden: list[Tensor] = []
        model[2].register_forward_hook(lambda m, args, out, kept=hidden: kept.append(out))
        loss = F.cross_entropy(model(X), CLASSES)
        with asking([net[0].credit], true=True):
            found.append(torch.autograd.grad(loss, hidden)[0])
    close(*found)


def test_the_forward_value_and_the_parameters_stay() -> None:
    net, plain = rules.convert(convnet(), "drtp"), convnet()
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(net(x), plain(x))
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    rules.revert(net)
    assert list(net.state_dict()) == list(plain.state_dict())


def _train(net: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(X), CLASSES).backward()
        optimizer.step()


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    whole, begun, resumed = _net(), _net(), _net(seed=4)
    _train(whole, torch.optim.SGD(whole.parameters(), lr=0.5), 6)
    _train(begun, torch.optim.SGD(begun.parameters(), lr=0.5), 3)
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for net in (resumed, copy.deepcopy(begun)):
        _train(net, torch.optim.SGD(net.parameters(), lr=0.5), 3)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_for_another_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="loss='cross_entropy'"):
        _net("binary_cross_entropy").load_state_dict(_net().state_dict())


def test_a_pass_is_freed_as_soon_as_its_output_is() -> None:
    net = _net()
    gc.collect()
    gc.disable()
    try:
        output = net(X)
        node = weakref.ref(output.grad_fn)
        F.cross_entropy(output, CLASSES).backward()
        del output
        assert node() is None
    finally:
        gc.enable()


def test_an_output_may_be_changed_in_place() -> None:
    found = []
    for in_place in (False, True):
        net = _net()
        output = net(X)
        output = output.mul_(1) if in_place else output * 1
        F.cross_entropy(output, CLASSES).backward()
        found.append(gradients(net))
    for name, gradient in found[0].items():
        close(found[1][name], gradient)


@pytest.mark.parametrize("in_half", [False, True], ids=["autocast", "half"])
def test_half_precision_is_near_full_precision(in_half: bool) -> None:
    net = _net().float()
    F.cross_entropy(net(X.float()), CLASSES).backward()
    other = copy.deepcopy(net)
    other.zero_grad()
    if in_half:
        other.bfloat16()
        F.cross_entropy(other(X.bfloat16()), CLASSES).backward()
    else:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(other(X.float()), CLASSES)
        loss.backward()
    for name, gradient in gradients(net).items():
        assert gradient is not None
        half = other.get_parameter(name).grad
        assert half is not None
        assert F.cosine_similarity(half.float().flatten(), gradient.flatten(), 0) > 0.98


def test_it_learns_two_rings_with_units_that_saturate() -> None:
    """No linear readout of the input tells them apart. (ReLUs are pushed on for ever, and die.)"""
    torch.manual_seed(0)
    turn, ring = 6.283 * torch.rand(256), torch.arange(256) % 2
    x = (1.0 + 1.5 * ring)[:, None] * torch.stack([turn.cos(), turn.sin()], 1)
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    rules.convert(net, "drtp", generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(net(x), ring).backward()
        optimizer.step()
    assert (net(x).argmax(-1) == ring).float().mean() > 0.95
