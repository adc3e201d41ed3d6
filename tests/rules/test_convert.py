"""Converting and reverting: what happens to a model, and what is said when it cannot be done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import (
    ALL_RULES,
    LAYERWISE,
    RuleCase,
    as_it_is,
    close,
    convnet,
    gradients,
    mlp,
    normal,
    plain_parameters,
    train,
)
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from alignlab import rules
from alignlab.rules import FeedbackConv2d, FeedbackLinear

over_rules = pytest.mark.parametrize("rule", ALL_RULES, ids=str)


def snapshot(model: nn.Module) -> Any:
    """Everything that conversion could touch."""
    return (
        [(name, type(m), sorted(vars(m)), sorted(m._buffers)) for name, m in model.named_modules()],
        [(name, id(p), p.detach().clone().tolist()) for name, p in model.named_parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )


@over_rules
@pytest.mark.parametrize(
    ("make", "converted", "shape"),
    [
        (lambda: nn.Linear(3, 2), FeedbackLinear, (4, 3)),
        (lambda: nn.Conv2d(3, 2, 3), FeedbackConv2d, (4, 3, 5, 5)),
    ],
    ids=["linear", "conv"],
)
def test_a_single_layer_is_a_model_too(
    rule: RuleCase, make: Callable[[], nn.Module], converted: type, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    plain = copy.deepcopy(model)
    assert rule.convert(model) is model
    assert type(model) is converted
    for m in (model, plain):
        m(x).square().sum().backward()
    for p, q in zip(plain_parameters(model).values(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5)


def test_layers_take_their_input_by_name_as_before() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 2, 1), nn.ConvTranspose2d(2, 2, 1)).double()
    inputs = [normal(3, 3), normal(3, 3), normal(1, 2, 3, 3)]
    before = [layer(input=x) for layer, x in zip(model, inputs, strict=True)]
    rules.convert(model, "fa")
    for layer, x, output in zip(model, inputs, before, strict=True):
        close(layer(input=x), output)


@over_rules
def test_revert_undoes_convert(rule: RuleCase) -> None:
    model = convnet()
    before = snapshot(model)
    rule.convert(model)
    assert snapshot(model) != before
    assert rules.revert(model) is model
    assert snapshot(model) == before


@over_rules
def test_revert_keeps_what_was_learnt_and_goes_back_to_backprop(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), [(normal(4, 5), normal(4, 2))] * 2)
    plain = mlp()
    plain.load_state_dict(plain_parameters(net))
    rules.revert(net)
    for model in (net, plain):
        model.zero_grad()
        F.mse_loss(model(normal(4, 5)), normal(4, 2)).backward()
    for name, gradient in gradients(net).items():
        close(gradient, gradients(plain)[name])
    assert list(net.state_dict()) == list(plain.state_dict())


@over_rules
def test_a_model_can_go_from_rule_to_rule(rule: RuleCase) -> None:
    net = mlp()
    for other in ALL_RULES:
        other.convert(net)
        net(normal(2, 5)).sum().backward()
        rules.revert(net)
    rule.convert(net)
    assert net[0].rule.name == rule.name
    assert net[0].clock == 0


@over_rules
def test_reverting_a_model_around_the_converted_one_leaves_no_hooks(rule: RuleCase) -> None:
    inner = mlp()
    before = snapshot(inner)
    rule.convert(inner)
    rules.revert(nn.Sequential(inner, nn.Tanh()))
    assert snapshot(inner) == before


@pytest.mark.parametrize("rule", ["dfa", "noisy_backprop"])
def test_a_pass_that_fails_is_over(rule: str, recwarn: pytest.WarningsRecorder) -> None:
    class Failing(nn.Sequential):
        fails = True

        def forward(self, x: Tensor) -> Tensor:
            h = self[0](x)
            if self.fails:
                raise ValueError("in the middle")
            return self[1](h)

    net: Any = rules.convert(Failing(nn.Linear(3, 3), nn.Linear(3, 2)), rule)
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="in the middle"):
        net(x)
    assert net[0].credit.calls is None
    with pytest.raises(RuntimeError, match="outside its model's forward pass"):
        net[0](x).sum().backward()
    net.fails = False
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    rules.revert(net)
    assert not net._forward_hooks_always_called
    assert not recwarn.list


def test_reverting_a_plain_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="no converted layers"):
        rules.revert(mlp())


@over_rules
def test_converting_twice_is_an_error_and_changes_nothing(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    before = snapshot(net)
    with pytest.raises(ValueError, match=rf"converted already, to {rule.name}\(.*revert"):
        rules.convert(net, "fa")
    with pytest.raises(ValueError, match="converted already"):
        rules.convert(nn.Sequential(nn.Linear(5, 5), net), "fa")
    assert snapshot(net) == before


class _Scaled(nn.Linear):
    pass


class _WithScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))


def test_all_unsupported_modules_are_listed_in_one_error_and_none_is_converted() -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(3, 3))
    model.add_module("memory", nn.LSTM(3, 3))
    model.add_module("attention", nn.MultiheadAttention(4, 2, kdim=3))
    model.add_module("own", _Scaled(3, 3))
    model.add_module("scaled", _WithScale())
    model.add_module("lazy", nn.LazyLinear(3))
    model.add_module("upwards", nn.ConvTranspose3d(3, 3, 2))
    model.add_module("normed", nn.LayerNorm(3))
    model.add_module("last", nn.Linear(3, 3))
    types = [type(m) for m in model.modules()]
    with pytest.raises(TypeError) as error:
        rules.convert(model, "fa")
    for named in (
        "memory: LSTM",
        "attention: MultiheadAttention",
        "own: _Scaled",
        "scaled: _WithScale",
        "lazy: LazyLinear",
        "upwards: ConvTranspose3d",
    ):
        assert named in str(error.value)
    assert "Linear, Conv1d, Conv2d" in str(error.value)
    assert "first" not in str(error.value)
    assert "normed" not in str(error.value)
    assert [type(m) for m in model.modules()] == types


class Tokens(nn.Module):
    """A model with a token and positions of its own, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 3)), nn.Parameter(torch.zeros(1, 3, 3))
        self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.body(x)[:, 0])


def test_parameters_of_a_module_of_ones_own_are_named_with_the_way_out() -> None:
    model = Tokens()
    with pytest.raises(
        TypeError, match=r"\(the model itself\): Tokens \(its own token, places\).*one by one"
    ) as error:
        rules.convert(model, "fa")
    assert str(error.value).count("nn.Embedding") == 1
    for part in (model.body, model.head):
        rules.convert(part, "fa")
    model(torch.ones(2, 2, 3)).sum().backward()
    at_body = 2 * model.head.feedback.sum(0)  # of two samples
    handed = (at_body @ model.body[2].feedback) * (1 - torch.tanh(model.body[0].bias).square())
    torch.testing.assert_close(model.token.grad[0, 0], handed @ model.body[0].feedback)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "reparametrise",
    [weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm],
    ids=["weight_norm", "spectral_norm", "parametrization"],
)
def test_a_reparametrised_weight_is_unsupported(reparametrise: Callable[[nn.Module], nn.Module]) -> None:
    """Its tensor is made anew at every forward pass: no clock could see it change."""
    model = nn.Sequential(nn.Linear(3, 3), reparametrise(nn.Linear(3, 3)))
    with pytest.raises(TypeError, match="cannot convert 1"):
        rules.convert(model, "sign_sync")
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "kolen_pollack"])
def test_complex_weights_are_refused(rule: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"cannot convert 1: Linear \(complex weights\)"):
        rules.convert(model, rule)
    assert type(model[0]) is nn.Linear


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="Sequential has no layer to convert"):
        rules.convert(nn.Sequential(nn.ReLU(), nn.LayerNorm(3)), "fa")


# --- failures midway --------------------------------------------------------------------------------------------------


def _wrong_shape(like: Tensor, generator: torch.Generator) -> Tensor:
    return like.new_zeros(7) if like.shape[1] == 4 else like


def _fails(like: Tensor, generator: torch.Generator) -> Tensor:
    if like.shape[1] == 4:
        raise ZeroDivisionError("in the initialisation")
    return like


def _no_tensor(like: Tensor, generator: torch.Generator) -> Any:
    return None if like.shape[1] == 4 else like


@pytest.mark.parametrize("rule", [case for case in LAYERWISE if case.name != "bp"], ids=str)
@pytest.mark.parametrize(
    ("init", "error", "words"),
    [
        (_wrong_shape, ValueError, r"returned \(7,\), expected a tensor of \(3, 4\)"),
        (_no_tensor, ValueError, "returned NoneType"),
        (_fails, ZeroDivisionError, "in the initialisation"),
    ],
)
def test_an_initialisation_that_fails_midway_leaves_the_model_as_it_was(
    rule: RuleCase, init: Any, error: type[Exception], words: str
) -> None:
    model = mlp()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        rule.convert(model, init=init)
    assert snapshot(model) == before


# --- names and arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("signsync", "sign_sync"), ("dfaa", "dfa"), ("usff", "usf"), ("rerandomized", "rerandomised")],
)
def test_a_misspelt_rule_gets_the_nearest_names(typo: str, meant: str) -> None:
    with pytest.raises(
        ValueError, match=rf"unknown rule '{typo}': did you mean .*'{meant}'.*known are bp, fa"
    ):
        rules.convert(mlp(), typo)


def test_a_name_that_is_near_none_gets_the_whole_list() -> None:
    with pytest.raises(ValueError, match=r"unknown rule 'hebb': known are bp, fa, dfa, .*rerandomised"):
        rules.convert(mlp(), "hebb")


@pytest.mark.parametrize("period", [0, -1, 2.5, True, None, "3"])
def test_a_period_is_a_whole_number_of_steps(period: Any) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=r"sign_sync: period is .*whole number of steps, at least 1"):
        rules.convert(net, "sign_sync", period=period)
    assert type(net[0]) is nn.Linear


@over_rules
def test_an_unknown_argument_is_an_error_that_names_rule_and_argument(rule: RuleCase) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=rf"the rule '{rule.name}' does not take .*tempo=3"):
        rules.convert(net, rule.name, tempo=3)
    assert type(net[0]) is nn.Linear


@over_rules
def test_an_unknown_initialisation_is_an_error_with_the_nearest_names(rule: RuleCase) -> None:
    with pytest.raises(ValueError, match=r"unknown feedback initialisation 'kaimin': did you mean 'kaiming'"):
        rules.convert(mlp(), rule.name, init="kaimin")


def test_a_made_rule_takes_no_more_arguments() -> None:
    made = rules.make_rule("sign_sync", period=7)
    assert rules.convert(mlp(), made)[0].rule is made
    with pytest.raises(ValueError, match="is made already"):
        rules.convert(mlp(), made, period=8)
    with pytest.raises(ValueError, match="is made already"):
        rules.convert(mlp(), made, init="xavier")


@over_rules
def test_a_rules_settings_make_it_again(rule: RuleCase) -> None:
    made = rules.make_rule(rule.name, **rule.args)
    again = rules.make_rule(made.name, **made.settings())
    assert again.settings() == made.settings()
    assert repr(made).startswith(rule.name + "(")
    for key, value in rule.args.items():
        own = made.settings()[key]
        assert own == value or (key == "of" and own["rule"] == rule.source)
        assert f"{key}={own!r}" in repr(made)


# --- ties -------------------------------------------------------------------------------------------------------------


class _Tied(nn.Module):
    """Three layers, of which the two hidden ones have one weight in common."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.weight = self.a.weight
        self.double()

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class _Twice(_Tied):
    """The same with one module, used twice."""

    def __init__(self) -> None:
        super().__init__()
        del self.b

    def forward(self, x: Tensor) -> Any:
        return self.out(torch.tanh(self.a(torch.tanh(self.a(x)))))


@over_rules
def test_tied_weights_stay_tied_and_share_their_feedback(rule: RuleCase) -> None:
    net = rule.convert(_Tied())
    batches = [(normal(4, 3, seed=s).requires_grad_(), normal(4, 2, seed=s + 9)) for s in range(4)]
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), batches)
    copied = copy.deepcopy(net)
    copied.load_state_dict(net.state_dict())
    for model in (net, copied):
        assert model.a.weight is model.b.weight
        assert len(plain_parameters(model)) == 5
        if rule.name not in ("bp", "ifa"):  # ifa: B at the first layer alone
            assert model.a.feedback is not None
            assert torch.equal(model.a.feedback, model.b.feedback)
        assert model.a.clock == model.b.clock
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), batches)
    train(copied, torch.optim.SGD(copied.parameters(), lr=0.1), batches)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), copied.parameters(), strict=True))


@pytest.mark.parametrize("make", [_Tied, _Twice])
@pytest.mark.parametrize(
    "rule",
    ["bp", "fa", "frsf", "brsf", "rerandomised", "sign_sync", "kolen_pollack", "weight_mirror"],
)
def test_tied_layers_with_feedback_equal_to_the_weight_learn_by_backprop(
    make: type[_Tied], rule: str
) -> None:
    net, plain = make(), make()
    arguments: dict[str, Any] = {"preserve_magnitude": True} if rule == "sign_sync" else {}
    rules.convert(net, rule, init=as_it_is, **arguments)
    for model in (net, plain):
        model(normal(4, 3)).square().sum().backward()
    for name, gradient in gradients(plain).items():
        close(gradients(net)[name], gradient)


@pytest.mark.parametrize("make", [_Tied, _Twice])
@pytest.mark.parametrize("rule", [case for case in ALL_RULES if not case.made.every_forward], ids=str)
def test_a_module_used_twice_learns_from_both_uses(make: type[_Tied], rule: RuleCase) -> None:
    """By hand; a module that is used twice sends both signals by one B."""
    net = rule.convert(make())
    x = normal(4, 3)
    net(x).square().sum().backward()
    W, V = net.a.weight.detach(), net.out.weight.detach()
    b1 = net.a.bias.detach()
    b2 = b1 if make is _Twice else net.b.bias.detach()
    h1 = (x @ W.T + b1).tanh()
    h2 = (h1 @ W.T + b2).tanh()
    e = 2 * (h2 @ V.T + net.out.bias.detach())
    if rule.name == "dfa":
        signals = (e @ net.a.feedback, e @ net.a.feedback)
        delta1, delta2 = signals[0] * (1 - h1**2), signals[1] * (1 - h2**2)
    elif rule.name == "ifa":
        delta1 = e @ net.a.feedback * (1 - h1**2)
        delta2 = delta1 @ W.T * (1 - h2**2)
    else:
        B, C = (W, V) if rule.name == "bp" else (net.a.feedback, net.out.feedback)
        delta2 = e @ C * (1 - h2**2)
        delta1 = delta2 @ B * (1 - h1**2)
    close(net.a.weight.grad, delta1.T @ x + delta2.T @ h1)
    close(net.a.bias.grad, delta1.sum(0) + (delta2.sum(0) if make is _Twice else 0))
    close(net.out.weight.grad, e.T @ h2)


# --- a model's parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", LAYERWISE, ids=str)
def test_a_part_of_a_model_can_be_converted(rule: RuleCase) -> None:
    """The plain part below learns from what the converted part hands down."""
    net: Any = mlp()
    part = nn.Sequential(net[2], net[3], net[4])
    rule.convert(part)
    assert not isinstance(net[0], rules.FeedbackLayer)
    net(normal(4, 5)).square().sum().backward()
    assert net[0].weight.grad.norm() > 0


def test_feedback_layers_lists_them_by_name() -> None:
    net = rules.convert(convnet(), "fa")
    assert list(rules.feedback_layers(net)) == ["0", "4", "6"]
    assert rules.feedback_layers(convnet()) == {}


def test_a_weight_reparametrised_after_conversion_is_an_error() -> None:
    """Its version counts nothing: sign_sync would never synchronise again, and say nothing."""
    net = rules.convert(mlp(), "usf")
    torch.nn.utils.parametrizations.weight_norm(net[2])
    with pytest.raises(RuntimeError, match="made anew"):
        net(normal(2, 5))


def _autocast_net() -> nn.Sequential:
    torch.manual_seed(0)
    image = nn.Unflatten(1, (1, 4, 4))
    return nn.Sequential(nn.Linear(16, 16), image, nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_autocast_gives_the_plain_forward_value(rule: str, grad: bool, dtype: torch.dtype) -> None:
    """With gradients and without; double precision it leaves alone."""
    plain = _autocast_net().to(dtype)
    net = rules.convert(copy.deepcopy(plain), rule)
    x = normal(3, 16).to(dtype)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        assert torch.equal(net(x), plain(x))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "group": lambda: nn.GroupNorm(2, 4),
    "layer": lambda: nn.LayerNorm([4, 4, 4]),
    "rms": lambda: nn.RMSNorm([4, 4, 4]),
    "prelu": lambda: nn.PReLU(4),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_norms_stay_and_learn(kind: str, rule: RuleCase) -> None:
    torch.manual_seed(0)
    norm: Any = NORMS[kind]()
    net = rule.convert(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 2)))
    net(torch.randn(5, 1, 6, 6)).square().sum().backward()
    assert net[1] is norm
    assert norm.weight.grad.norm() > 0


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_rules_without_a_clock_bear_a_reparametrised_weight_and_a_replica(rule: str) -> None:
    net = rules.convert(mlp(), rule)
    net(normal(2, 5))
    torch.nn.utils.parametrizations.weight_norm(net[2])
    net(normal(2, 5)).sum().backward()
    assert net[2].parametrizations.weight.original1.grad.norm() > 0
    replica = net[0]._replicate_for_data_parallel()
    replica.weight, replica.bias = net[0].weight * 1, net[0].bias * 1
    assert torch.equal(replica(normal(2, 5)), net[0](normal(2, 5)))
