"""Rules by name pattern: which layer learns by which, and that each part does what it would do alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import close, convnet, gradients, mlp, normal

from alignlab import rules


def names(model: Any) -> dict[str, str]:
    return {name: layer.rule.name for name, layer in rules.feedback_layers(model).items()}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_first_pattern_that_matches_decides() -> None:
    net = rules.convert(mlp(), {"2": "usf", "[24]": "fa", "*": "bp"})
    assert names(net) == {"0": "bp", "2": "usf", "4": "fa"}


def test_layers_that_no_pattern_matches_learn_by_backprop() -> None:
    assert names(rules.convert(mlp(), {"2": "fa"})) == {"0": "bp", "2": "fa", "4": "bp"}


def test_each_pattern_takes_its_own_arguments() -> None:
    net = rules.convert(
        mlp(), {"2": {"rule": "sign_sync", "period": 7}, "4": {"rule": "fa", "init": "nokland"}}
    )
    assert net[2].rule.period == 7
    assert net[4].rule.init == "nokland"


def test_an_init_beside_the_patterns_serves_all_that_name_none() -> None:
    net = rules.convert(mlp(), {"2": "fa", "4": {"rule": "fa", "init": "nokland"}}, init="lillicrap")
    assert (net[2].rule.init, net[4].rule.init) == ("lillicrap", "nokland")


def test_a_rule_object_may_stand_for_a_name() -> None:
    made = rules.make_rule("fa")
    assert rules.convert(mlp(), {"4": made})[4].rule is made


def test_a_layer_gets_the_same_feedback_whatever_rules_the_others_have() -> None:
    whole, part = (
        rules.convert(mlp(), "fa", generator=seeded()),
        rules.convert(mlp(), {"4": "fa"}, generator=seeded()),
    )
    assert torch.equal(whole[4].feedback, part[4].feedback)


def test_gradients_of_a_mixed_net_equal_those_derived_by_hand() -> None:
    """W₁ and W₂ hand down by W, the top by B: delta₂ = (e B) ∘ f'(z₂), delta₁ = (delta₂ W₂) ∘ f'(z₁)."""
    net = rules.convert(mlp(), {"4": "fa"})
    x, y = normal(6, 5), normal(6, 2, seed=2)
    F.mse_loss(net(x), y).backward()
    h1 = net[0](x).tanh().detach()
    h2 = net[2](h1).tanh().detach()
    e = 2 * (net[4](h2).detach() - y) / y.numel()
    delta2 = (e @ net[4].feedback) * (1 - h2**2)
    delta1 = (delta2 @ net[2].weight.detach()) * (1 - h1**2)
    for layer, delta, h in ((0, delta1, x), (2, delta2, h1), (4, e, h2)):
        close(net[layer].weight.grad, delta.T @ h)
    assert not torch.allclose(net[4].feedback, net[4].weight)


def test_random_feedback_in_the_dense_layers_leaves_a_convnets_top_as_backprop_has_it() -> None:
    plain, net = convnet(), convnet()
    rules.convert(net, {"[46]": "fa"})
    x = torch.randn(3, 1, 4, 4, generator=seeded(1))
    for model in (plain, net):
        model(x).square().sum().backward()
    expected, got = gradients(plain), gradients(net)
    torch.testing.assert_close(got["6.weight"], expected["6.weight"])
    assert not torch.allclose(got["0.weight"], expected["0.weight"], rtol=1e-2)  # type: ignore[arg-type]


def test_a_mixed_net_saves_loads_and_reverts() -> None:
    choice = {"0": "bp", "2": "usf", "*": {"rule": "sign_sync", "period": 2}}
    net, plain = rules.convert(mlp(), choice, generator=seeded()), mlp()
    other = rules.convert(mlp(seed=5), choice, generator=seeded(9))
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    for model in (net, other):
        model(normal(4, 5)).sum().backward()
    for name, gradient in gradients(net).items():
        assert gradient is not None
        assert torch.equal(gradient, gradients(other)[name])  # type: ignore[arg-type]
    rules.revert(net)
    assert [type(m) for m in net] == [type(m) for m in plain]


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({}, "patterns of layer names"),
        ({"9": "fa"}, "'9' decides about no layer.*there are 0, 2, 4"),
        ({"*": "bp", "2": "fa"}, "'2' decides about no layer"),
        ({"2": "fb"}, "did you mean 'fa'"),
        ({"2": {"init": "nokland"}}, "rule for layers '2'"),
        ({"2": {"rule": "sign_sync", "period": 0}}, "period is 0"),
        ({"2": {"rule": "fa", "perod": 3}}, "does not take"),
        ({"2": 3}, "rule for layers '2' is 3"),
        ({"2": "dfa", "*": "bp"}, "dfa cannot share a model"),
        ({"2": "dfa"}, "dfa cannot share a model"),
        ({"2": "soap", "*": "fa"}, "soap cannot share a model"),
        (7, "expected a name"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_and_nothing_is_converted(choice: Any, complaint: str) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=complaint):
        rules.convert(net, choice)
    assert not rules.feedback_layers(net)


def test_arguments_beside_the_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="period: with a rule for each pattern"):
        rules.convert(mlp(), {"*": "sign_sync"}, period=3)


@pytest.mark.parametrize(
    ("rule", "given", "complaint"),
    [
        (
            "sign_sync",
            {"perod": 3},
            "'sign_sync' does not take perod=3: did you mean period\\? it takes period=100, pres",
        ),
        ("fa", {"tempo": 3}, "'fa' does not take tempo=3: it takes init='kaiming'$"),
        ("bp", {"period": 3}, "'bp' does not take period=3: it takes no arguments"),
        ("FA", {}, "did you mean 'fa'"),
        (rules.Rule, {}, "give an instance, Rule\\(\\)"),
        ({"2": type(rules.make_rule("fa"))}, {}, "give an instance, FeedbackAlignment\\(\\)"),
    ],
)
def test_a_wrong_argument_or_a_class_is_told_with_the_way_out(rule: Any, given: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rules.convert(mlp(), rule, **given)
    if isinstance(rule, type):
        with pytest.raises(ValueError, match=complaint):
            rules.make_rule(rule)  # type: ignore[arg-type]


def test_what_is_no_model_or_generator_is_told() -> None:
    for call in (rules.revert, lambda model: rules.convert(model, "fa")):
        with pytest.raises(TypeError, match=r"model is int, expected an nn\.Module"):
            call(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"generator is 0, expected a torch\.Generator"):
        rules.convert(mlp(), "fa", generator=0)  # type: ignore[arg-type]
