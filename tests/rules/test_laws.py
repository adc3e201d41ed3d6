"""What holds for every rule and every kind of layer. First of all: feedback that equals W gives backprop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import (
    ALL_LAYERS,
    ALL_RULES,
    CONV_LAYERS,
    DIRECT,
    LAYERWISE,
    LINEAR_LAYERS,
    TARGETED,
    WHOLE,
    LayerCase,
    RuleCase,
    as_it_is,
    close,
    convnet,
    gradients,
    mlp,
    normal,
    plain_parameters,
    suit_signs,
    train,
)
from torch import Tensor, nn

from alignlab import rules
from alignlab.probes.truth import asking
from alignlab.rules.initialisation import Init

over_rules = pytest.mark.parametrize("rule", ALL_RULES, ids=str)
over_layerwise = pytest.mark.parametrize("rule", LAYERWISE, ids=str)
over_direct = pytest.mark.parametrize("rule", DIRECT, ids=str)
over_layers = pytest.mark.parametrize("case", ALL_LAYERS, ids=str)


KEYS = (("direction", "rule"), ("scale", "weight"))  # of a rescaled rule, with their defaults


def test_the_lists_leave_no_rule_out() -> None:
    assert {rule.name for rule in ALL_RULES + TARGETED + WHOLE} == set(rules.RULES)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor | None]]:
    """Output, gradient at the input, gradients of the parameters, for a fixed random error at the output."""
    x = x.clone().requires_grad_()
    output = model(x)
    output.backward(normal(*output.shape, seed=7))
    return output.detach(), x.grad, gradients(model)


@over_layerwise
@over_layers
def test_feedback_equal_to_the_weight_gives_backprop(case: LayerCase, rule: RuleCase) -> None:
    layer = case.build()
    suit_signs(rule, layer)
    plain = copy.deepcopy(layer)
    rule.convert(layer, init=as_it_is)
    expected, got = run(plain, case.input()), run(layer, case.input())
    assert torch.equal(got[0], expected[0])
    close(got[1], expected[1])
    for name, gradient in expected[2].items():
        close(got[2][name], gradient)
    assert isinstance(layer, rules.FeedbackLayer)
    assert torch.equal(layer.carrier(), layer.weight)


def _jacobian(layer: nn.Module, shape: torch.Size, one_sample: bool) -> Tensor:
    """The layer without its bias as a matrix (outputs, inputs) on one flattened sample."""
    single = shape if one_sample else shape[1:]
    basis = torch.eye(single.numel(), dtype=torch.float64).reshape(-1, *single)
    with torch.no_grad():
        columns: Tensor = layer(basis) - layer(torch.zeros_like(basis[:1]))
    return columns.flatten(1).T


@over_direct
@over_layers
def test_direct_feedback_equal_to_the_layer_above_gives_backprop(case: LayerCase, rule: RuleCase) -> None:
    """B₁ is the matrix of the second layer: of any kind, here as the top of a two-layer net."""
    torch.manual_seed(3)
    top, x = case.build(), case.input()
    net = nn.Sequential(case.below().double(), nn.Tanh(), top)
    matrix = top.weight.detach() if isinstance(top, nn.Linear) else _jacobian(top, x.shape, case.one_sample)
    _assert_like_backprop(net, x, rule, matrix)


@over_direct
@over_layers
def test_direct_feedback_reaches_every_kind_of_layer(case: LayerCase, rule: RuleCase) -> None:
    """The same with each kind of layer at the bottom."""
    layer, x = case.build(), case.input()
    z = layer(x)
    top = nn.Linear(z.numel() if case.one_sample else z[0].numel(), 2).double()
    net = nn.Sequential(layer, nn.Tanh(), nn.Flatten(0 if case.one_sample else 1), top)
    _assert_like_backprop(net, x, rule, top.weight.detach())


def _assert_like_backprop(net: nn.Sequential, x: Tensor, rule: RuleCase, matrix: Tensor) -> None:
    plain = copy.deepcopy(net)
    rule.convert(net, init=lambda like, generator: matrix)
    expected, got = run(plain, x), run(net, x)
    assert torch.equal(got[0], expected[0])
    for name, gradient in expected[2].items():
        close(got[2][name], gradient)


def test_direct_feedback_in_a_deep_linear_net_can_be_backprop() -> None:
    net = mlp((5, 4, 3, 3, 2), nn.Identity)
    weights = [net[i].weight.detach() for i in (2, 4, 6)]
    above = iter([weights[2] @ weights[1] @ weights[0], weights[2] @ weights[1], weights[2]])
    plain = copy.deepcopy(net)
    rules.convert(net, "dfa", init=lambda like, generator: next(above))
    expected, got = run(plain, normal(6, 5)), run(net, normal(6, 5))
    for name, gradient in expected[2].items():
        close(got[2][name], gradient)


@over_layers
def test_no_rule_changes_the_forward_value(case: LayerCase) -> None:
    one_entry = case.label == "linear-1x1"  # has no direction to turn to
    for rule in ALL_RULES + [r for r in WHOLE if not (one_entry and r.name == "noisy_backprop")]:
        layer = case.build()
        expected = layer(case.input()).detach()
        rule.convert(layer)
        assert torch.equal(layer(case.input()), expected)
        with torch.no_grad():
            assert torch.equal(layer(case.input()), expected)
        with torch.inference_mode():
            assert torch.equal(layer(case.input()), expected)


@over_layerwise
@pytest.mark.parametrize("case", [LINEAR_LAYERS[0], CONV_LAYERS[0], CONV_LAYERS[8]], ids=str)
def test_other_feedback_gives_another_signal(case: LayerCase, rule: RuleCase) -> None:
    """The law above would hold for a rule that ignores its B. Here B is not W, and only the input's gradient knows."""
    layer = case.build()
    plain = copy.deepcopy(layer)
    rule.convert(layer)
    expected, got = run(plain, case.input()), run(layer, case.input())
    for name, gradient in expected[2].items():
        close(got[2][name], gradient)
    assert expected[1] is not None
    assert got[1] is not None
    same = torch.allclose(got[1], expected[1], rtol=1e-3)
    assert same == (rule.name == "bp")


# --- gradients by hand ------------------------------------------------------------------------------------------------


def _activate(z: Tensor, activation: type[nn.Module]) -> tuple[Tensor, Tensor]:
    """f(z) and f'(z)."""
    if activation is nn.Tanh:
        return z.tanh(), 1 - z.tanh() ** 2
    return z.clamp(min=0), (z > 0).double()


def by_hand(net: Any, rule: RuleCase, x: Tensor, y: Tensor, activation: type[nn.Module]) -> list[Tensor]:
    """The gradients of a three-layer net under the mean squared error, in tensor algebra: W₁, b₁, W₂, b₂, W₃, b₃."""
    layers = [net[i] for i in (0, 2, 4)]
    (W1, W2, W3), (b1, b2, b3) = [m.weight.detach() for m in layers], [m.bias.detach() for m in layers]
    B1, B2, B3 = (m.weight.detach() if m.feedback is None else m.feedback for m in layers)
    z1 = x @ W1.T + b1
    h1, slope1 = _activate(z1, activation)
    z2 = h1 @ W2.T + b2
    h2, slope2 = _activate(z2, activation)
    e = 2 * (h2 @ W3.T + b3 - y) / y.numel()
    if rule.name == "dfa":
        delta2, delta1 = (e @ B2) * slope2, (e @ B1) * slope1
    elif rule.name == "ifa":
        delta1 = (e @ B1) * slope1
        delta2 = (delta1 @ W2.T) * slope2
    else:
        delta2 = (e @ B3) * slope2
        delta1 = (delta2 @ B2) * slope1
    pairs = [(delta1, x), (delta2, h1), (e, h2)]
    return [g for delta, h in pairs for g in (delta.T @ h, delta.sum(0))]


@over_rules
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_gradients_equal_those_derived_by_hand(rule: RuleCase, activation: type[nn.Module]) -> None:
    """After two steps, so that the weights have left their feedback behind."""
    net = rule.convert(mlp(activation=activation))
    x, y = normal(6, 5), normal(6, 2, seed=2)
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), [(x, y)] * 2)
    net.zero_grad()
    F.mse_loss(net(x), y).backward()
    found, expected = plain_parameters(net).values(), by_hand(net, rule, x, y, activation)
    for parameter, gradient in zip(found, expected, strict=True):
        close(parameter.grad, gradient)
        assert gradient.norm() > 0


@over_rules
def test_every_rule_has_its_own_feedback(rule: RuleCase) -> None:
    """What the B in the derivation above is, said again independently of the layers' code."""
    net = rule.convert(mlp())
    x, y = normal(6, 5).requires_grad_(), normal(6, 2, seed=2)  # so that the first B is in use as well
    start = {name: m.weight.detach().clone() for name, m in rules.feedback_layers(net).items()}
    net(x)
    first = {name: _copy(m.feedback) for name, m in rules.feedback_layers(net).items()}
    train(net, torch.optim.SGD(net.parameters(), lr=2.0), [(x, y)] * 2)
    net(x)
    for name, m in rules.feedback_layers(net).items():
        B, B0, W, W0 = m.feedback, first[name], m.weight.detach(), start[name]
        if rule.name == "bp" or (rule.name == "ifa" and name != "0") or (rule.name == "dfa" and name == "4"):
            assert B is None
            continue
        assert B is not None
        assert B0 is not None
        if rule.name == "rescaled":
            assert not (B == B0).any()
            D, S = (m.feedback_unscaled if rule.args.get(key, own) == "rule" else W for key, own in KEYS)
            close(B / B.norm(), D / D.norm())
            close(B.norm(), S.norm())
        elif rule.name in ("fa", "dfa", "ifa"):
            assert torch.equal(B, B0)
        elif rule.name == "kolen_pollack":  # no decay: B takes the steps of W, where it plays a part
            close(B - B0, W - W0)
            assert not torch.equal(W, W0)
        elif rule.name == "weight_mirror" or rule.name == "rerandomised":
            assert not (B == B0).any()
        elif rule.name == "sign_sync":
            assert torch.equal(B, B0)
            assert torch.equal(B.sign(), W0.sign())
            assert (B.abs() == 1).all() == (not rule.args.get("preserve_magnitude"))
        else:
            assert torch.equal(B.sign(), W.sign())
            assert torch.equal(B.abs(), B0.abs()) == (rule.name != "brsf")
            assert (len(B.abs().unique()) == 1) == (rule.name == "usf")


def _copy(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()


# --- how signals scale ------------------------------------------------------------------------------------------------


@over_rules
def test_the_losses_reduction_scales_all_layers_alike(rule: RuleCase) -> None:
    x, y = normal(4, 5), normal(4, 2, seed=2)
    found = []
    for reduction in ("mean", "sum"):
        net = rule.convert(mlp())
        F.mse_loss(net(x), y, reduction=reduction).backward()
        found.append(gradients(net))
    for name, gradient in found[0].items():
        assert gradient is not None
        assert torch.equal(gradient * 8, _there(found[1][name]))  # a power of two: exact


@over_rules
def test_scaling_the_feedback_scales_the_signals_below(rule: RuleCase) -> None:
    x, y = normal(4, 5), normal(4, 2, seed=2)
    found = []
    for factor in (1, 4):
        net = rule.convert(mlp(), init=_scaled(factor))
        F.mse_loss(net(x), y).backward()
        found.append(gradients(net))
    for layer, exponent in zip("024", rule.exponents, strict=True):
        for part in ("weight", "bias"):
            gradient = found[0][f"{layer}.{part}"]
            assert gradient is not None
            assert torch.equal(gradient * 4**exponent, _there(found[1][f"{layer}.{part}"]))


def _scaled(factor: int) -> Init:
    return lambda like, generator: rules.INITS["xavier"](like, generator) * factor


def _there(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


@over_layerwise
def test_scaling_one_layers_feedback_leaves_the_layers_above_alone(rule: RuleCase) -> None:
    if rule.name == "bp":
        with pytest.raises(AttributeError):
            rule.convert(mlp())[2].feedback.mul_(4)
        return
    x, y = normal(4, 5), normal(4, 2, seed=2)
    net = rule.convert(mlp())
    found = []
    for factor in (1, 4):
        output = net(x)
        net.zero_grad()
        with torch.no_grad():
            net[2].feedback.data.mul_(factor)  # after the forward pass: what counts is B at the backward pass
        F.mse_loss(output, y).backward()
        found.append(gradients(net))
        if rule.source == "rerandomised":
            net[0].clock = net[2].clock = net[4].clock = net[0].clock - 1  # the same draw again
    for layer, exponent in zip("024", (1, 0, 0), strict=True):
        gradient = _there(found[0][f"{layer}.weight"])
        assert torch.equal(gradient * 4**exponent, _there(found[1][f"{layer}.weight"]))


# --- what does not learn ----------------------------------------------------------------------------------------------


@over_rules
def test_feedback_is_no_parameter_and_has_no_gradient_unless_the_rule_says_so(rule: RuleCase) -> None:
    net, plain = rule.convert(convnet()), convnet()
    assert list(plain_parameters(net)) == [n for n, _ in plain.named_parameters()]
    learnt = {n for n, _ in net.named_parameters()} - set(plain_parameters(net))
    assert learnt == ({"0.feedback", "4.feedback", "6.feedback"} if rule.learns_feedback else set())
    F.mse_loss(net(torch.ones(2, 1, 4, 4)), torch.ones(2, 3)).backward()
    for name, buffer in net.named_buffers():
        assert not buffer.requires_grad, name
        assert buffer.grad is None, name
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


@over_rules
def test_the_model_stays_what_it_was(rule: RuleCase) -> None:
    net, plain = rule.convert(convnet()), convnet()
    assert [n for n, _ in net.named_modules()] == [n for n, _ in plain.named_modules()]
    assert isinstance(net[0], nn.Conv2d)
    assert isinstance(net[4], nn.Linear)
    for p, q in zip(plain_parameters(net).values(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


@over_rules
@pytest.mark.parametrize("frozen", ["0.weight", "2.weight", "2.bias", "4.weight"])
def test_a_frozen_parameter_stays_without_gradient_and_the_others_do_not_notice(
    rule: RuleCase, frozen: str
) -> None:
    x, y = normal(4, 5), normal(4, 2, seed=2)
    found = []
    for name in (None, frozen):
        net = rule.convert(mlp())
        if name is not None:
            net.get_parameter(name).requires_grad_(False)
        F.mse_loss(net(x), y).backward()
        found.append(gradients(net))
    assert found[1].pop(frozen) is None
    without = {frozen.replace("weight", "feedback")} if frozen.endswith("weight") else set()
    assert found[0].keys() - found[1].keys() <= {frozen} | without  # a B that learns takes the steps of its W
    for name, gradient in found[1].items():
        assert torch.equal(_there(gradient), _there(found[0][name]))


@over_rules
def test_a_frozen_bottom_layer_gets_no_signal(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    net[0].requires_grad_(False)
    F.mse_loss(net(normal(4, 5)), normal(4, 2, seed=2)).backward()
    assert net[0].weight.grad is None
    assert net[2].weight.grad.norm() > 0


@over_rules
def test_the_input_gets_a_gradient_from_layerwise_rules_alone(rule: RuleCase) -> None:
    x = normal(4, 5).requires_grad_()
    net = rule.convert(mlp())
    net(x).sum().backward()
    assert (x.grad is None) == rule.direct
    assert net[0].weight.grad.norm() > 0


@pytest.mark.parametrize("case", [c for c in ALL_LAYERS if not c.one_sample], ids=str)
def test_an_empty_batch_gives_zero_gradients(case: LayerCase) -> None:
    for rule in ALL_RULES:
        layer = case.build()
        rule.convert(layer)
        layer(case.input()[:0]).sum().backward()
        assert layer.weight.grad is not None
        assert not layer.weight.grad.any()


@over_rules
def test_an_empty_batch_passes_a_net(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    net(normal(4, 5)[:0]).sum().backward()
    assert not net[0].weight.grad.any()


# --- number formats ---------------------------------------------------------------------------------------------------


@over_rules
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_signals_have_the_models_dtype(rule: RuleCase, dtype: torch.dtype) -> None:
    net = rule.convert(mlp().to(dtype))
    x = normal(4, 5).to(dtype)
    net(x).sum().backward()
    for m in rules.feedback_layers(net).values():
        assert m.weight.grad is not None
        assert m.weight.grad.dtype == dtype
        assert m.feedback is None or m.feedback.dtype == dtype


@over_rules
def test_half_precision_is_near_double_precision(rule: RuleCase) -> None:
    net = rule.convert(mlp((16, 16, 8, 4)))
    x, y = normal(8, 16), normal(8, 4, seed=2)
    F.mse_loss(net(x), y).backward()
    exact = gradients(net)
    half = copy.deepcopy(net).to(torch.bfloat16)
    half.zero_grad()
    if rule.source in ("rerandomised", "brsf"):
        for m in rules.feedback_layers(half).values():
            m._seen = None  # another dtype draws other numbers, so the draw that was copied has to stay
            m.rule = rules.make_rule("fa")
    F.mse_loss(half(x.bfloat16()), y.bfloat16()).backward()
    for name, gradient in gradients(half).items():
        assert (
            F.cosine_similarity(_there(gradient).double().flatten(), _there(exact[name]).flatten(), 0) > 0.99
        )


@over_rules
def test_autocast_is_near_full_precision(rule: RuleCase) -> None:
    _assert_autocast_near(rule.convert(mlp((16, 16, 8, 4)).float()), torch.randn(8, 16), rule)


@over_rules
def test_autocast_is_near_full_precision_in_a_convnet(rule: RuleCase) -> None:
    torch.manual_seed(5)
    x = torch.randn(8, 1, 4, 4)
    _assert_autocast_near(rule.convert(convnet()), x, rule)


def _assert_autocast_near(net: Any, x: Tensor, rule: RuleCase) -> None:
    twin = copy.deepcopy(net)
    net(x).float().square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        output = twin(x)
        loss = output.float().square().mean()
    loss.backward()
    assert output.dtype == torch.bfloat16
    pairs = zip(net.named_parameters(), twin.parameters(), strict=True)
    for (name, p), q in ((named, q) for named, q in pairs if named[0] != "0.feedback"):
        assert p.grad is not None
        assert q.grad is not None
        assert q.grad.dtype == torch.float32
        if p.grad.norm() > 1e-4:  # a bias before a normalisation has a gradient of rounding alone
            assert F.cosine_similarity(p.grad.flatten(), q.grad.flatten(), 0) > 0.98, name


def test_autocast_gives_plain_autocasts_gradients_under_backprop() -> None:
    torch.manual_seed(0)
    net = convnet()
    plain = copy.deepcopy(net)
    rules.convert(net, "bp")
    x = torch.randn(8, 1, 4, 4)
    for model in (net, plain):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert model(x).dtype == torch.bfloat16
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-4)


# --- graphs -----------------------------------------------------------------------------------------------------------


@over_rules
def test_two_backward_passes_through_one_graph_add_up(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    loss = F.mse_loss(net(normal(4, 5)), normal(4, 2, seed=2))
    loss.backward(retain_graph=True)
    once = gradients(net)
    loss.backward()
    for name, gradient in gradients(net).items():
        assert torch.equal(_there(gradient), 2 * _there(once[name]))


@over_rules
def test_gradients_of_two_half_batches_add_up_to_the_whole(rule: RuleCase) -> None:
    x, y = normal(8, 5), normal(8, 2, seed=2)
    net = rule.convert(mlp())
    twin = copy.deepcopy(net)
    F.mse_loss(net(x), y).backward()
    if rule.source == "rerandomised":
        assert net[2].feedback is not twin[2].feedback
        return  # each half has a B of its own
    for half in (slice(0, 4), slice(4, 8)):
        (F.mse_loss(twin(x[half]), y[half]) / 2).backward()
    for name, gradient in gradients(net).items():
        close(gradient, gradients(twin)[name])


@over_rules
def test_two_passes_before_one_backward_pass_are_kept_apart(rule: RuleCase) -> None:
    a, b = normal(4, 5), normal(4, 5, seed=9)
    net = rule.convert(mlp())
    separate = copy.deepcopy(net)
    (net(a) * net(b)).sum().backward()
    with torch.no_grad():
        out_a, out_b = separate(a), separate(b)
    (separate(a) * out_b).sum().backward()
    (separate(b) * out_a).sum().backward()
    for name, gradient in gradients(net).items():
        close(gradient, gradients(separate)[name])


@over_rules
def test_autograd_grad_gives_what_backward_leaves_in_grad(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    twin = copy.deepcopy(net)
    F.mse_loss(net(normal(4, 5)), normal(4, 2, seed=2)).backward()
    loss = F.mse_loss(twin(normal(4, 5)), normal(4, 2, seed=2))
    found = torch.autograd.grad(loss, list(twin.parameters()), allow_unused=True)
    for gradient, (name, p) in zip(found, net.named_parameters(), strict=True):
        if name == "0.feedback":
            assert gradient is None
            assert p.grad is None
        else:
            assert torch.equal(_there(gradient), _there(p.grad))


@over_layers
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_an_output_may_be_changed_in_place(case: LayerCase, rule: str) -> None:
    """By the caller of a model, or by the next layer: as the plain layer's may."""
    found = []
    for in_place in (False, True):
        layer = case.build()
        net = rules.convert(nn.Sequential(layer, nn.ReLU(in_place)), rule)
        net(case.input()).square().sum().backward()
        rules.revert(net)
        output = rules.convert(layer, rule)(case.input())
        output = output.mul_(3) if in_place else output * 3
        output.square().sum().backward()
        found.append(gradients(net))
    for name, gradient in found[0].items():
        assert gradient is not None
        close(gradient, found[1][name])


@over_rules
def test_in_true_mode_the_same_graph_gives_backprops_errors_and_no_weight_gradient(rule: RuleCase) -> None:
    net, plain = mlp(), mlp()
    rule.convert(net)
    x = normal(4, 5)
    true, loss = [], []
    for model in (net, plain):
        hidden: list[Tensor] = []
        for m in (model[0], model[2]):
            m.register_forward_hook(lambda m, args, out, kept=hidden: kept.append(out))
        loss.append(F.mse_loss(model(x), normal(4, 2, seed=2)))
        true.append((loss[-1], hidden))
    with asking([net[0].credit], true=True):
        found = torch.autograd.grad(*true[0], retain_graph=True)
        weights = torch.autograd.grad(
            loss[0], [net[0].weight, net[4].weight], retain_graph=True, allow_unused=True
        )
    for got, expected in zip(found, torch.autograd.grad(*true[1]), strict=True):
        close(got, expected)
    assert all(gradient is None for gradient in weights)
    loss[0].backward()
    twin = rule.convert(mlp())
    F.mse_loss(twin(x), normal(4, 2, seed=2)).backward()
    for name, gradient in gradients(net).items():
        assert torch.equal(_there(gradient), _there(gradients(twin)[name]))


@pytest.mark.parametrize("case", ALL_LAYERS, ids=str)
@pytest.mark.parametrize("rule", LAYERWISE, ids=str)
def test_switched_to_backprop_a_layer_hands_down_the_true_signal_and_forms_no_weight_gradient(
    rule: RuleCase, case: LayerCase
) -> None:
    """What a probe asks for: autograd would form all of them, and a step would cost twice as much."""
    layer = case.build()
    plain, x = copy.deepcopy(layer), case.input().requires_grad_()
    rule.convert(layer)
    expected = torch.autograd.grad(plain(x).mul(2).sum(), x)[0]
    with asking([layer.credit], true=True):
        found = torch.autograd.grad(layer(x).mul(2).sum(), [x, *layer.parameters()], allow_unused=True)
    close(found[0], expected)
    assert all(gradient is None for gradient in found[1:])
