"""Feedback of one direction at another scale: the four corners, what the rule behind it keeps, zeros, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_cases import close, mlp, normal, train
from torch import Tensor, nn

from alignlab import rules
from alignlab.training import RunSpec
from alignlab.training import train as train_run
from alignlab.training.naming import cell_name
from alignlab.training.population import train_population

BATCHES = [(normal(6, 5, seed=i), normal(6, 2, seed=50 + i)) for i in range(6)]
LAYERWISE: list[Any] = [
    "fa",
    "usf",
    "brsf",
    "frsf",
    "rerandomised",
    {"rule": "sign_sync", "period": 3},
    {"rule": "sign_sync", "period": 3, "preserve_magnitude": True},
    {"rule": "weight_mirror", "period": 2, "samples": 3},
    {"rule": "weight_mirror", "samples": 3, "growth_control": True},
]
over_layerwise = pytest.mark.parametrize("of", LAYERWISE, ids=str)


def made(rule: str, **arguments: Any) -> Any:
    return rules.convert(mlp(), rule, generator=torch.Generator().manual_seed(1), **arguments)


def plain(of: Any) -> Any:
    arguments = {} if isinstance(of, str) else {k: v for k, v in of.items() if k != "rule"}
    return made(of if isinstance(of, str) else of["rule"], **arguments)


def learn(net: Any) -> Any:
    train(net, torch.optim.SGD(net.parameters(), lr=0.3), BATCHES)
    return net


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


@over_layerwise
def test_direction_and_scale_of_the_rule_are_the_rule(of: Any) -> None:
    net, own = learn(made("rescaled", of=of, direction="rule", scale="rule")), learn(plain(of))
    for p, q in zip(net.parameters(), own.parameters(), strict=True):
        assert torch.equal(p, q)


@over_layerwise
def test_direction_and_scale_of_the_weight_are_backprop(of: Any) -> None:
    net, own = learn(made("rescaled", of=of, direction="weight", scale="weight")), learn(made("bp"))
    for p, q in zip(net.parameters(), own.parameters(), strict=True):
        assert torch.equal(p, q)


@over_layerwise
def test_the_rules_own_feedback_is_what_it_would_be_on_the_same_weights(of: Any) -> None:
    """Rescaling leaves no trace in what a rule keeps: signs between two syncs, magnitudes, what a mirror has learned."""
    nets = [made("rescaled", of=of), made("rescaled", of=of, direction="weight", scale="rule"), plain(of)]
    for step in range(7):
        for net in nets:
            with torch.no_grad():
                for i in (0, 2, 4):
                    net[i].weight.copy_(normal(*net[i].weight.shape, seed=100 * step + i))
            net(normal(2, 5).requires_grad_())
        for i in (0, 2, 4):
            at_weights, at_rule, own = (net[i] for net in nets)
            W, B = own.weight.detach(), own.feedback
            assert torch.equal(at_weights.feedback_unscaled, B)
            close(at_weights.feedback, B * rms(W) / rms(B))
            close(at_rule.feedback, W * rms(B) / rms(W))


def test_the_scale_is_that_of_this_steps_weights() -> None:
    """Also between the refreshes of a rule, and of one that is never refreshed."""
    for of in ("fa", {"rule": "sign_sync", "period": 100}):
        net = made("rescaled", of=of)
        seen = []
        for batch in BATCHES:
            net(batch[0])
            seen.append((rms(net[2].feedback), rms(net[2].weight)))
            train(net, torch.optim.SGD(net.parameters(), lr=1.0), [batch])
        assert [b for b, _ in seen] == pytest.approx([w for _, w in seen])
        assert len({round(w, 6) for _, w in seen}) == len(BATCHES)


@pytest.mark.parametrize(("direction", "scale"), [("rule", "weight"), ("weight", "rule")])
def test_zeros_stay_zeros_and_nothing_becomes_nan(direction: str, scale: str) -> None:
    def zeros(like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(like)

    net = learn(made("rescaled", of="fa", init=zeros, direction=direction, scale=scale))
    assert not net[2].feedback.any()
    assert all(p.isfinite().all() for p in net.parameters())


def test_feedback_comes_back_when_a_weight_of_zeros_begins_to_learn() -> None:
    net = made("rescaled", of="fa")
    with torch.no_grad():
        net[4].weight.zero_()
    net(BATCHES[0][0])
    assert not net[4].feedback.any()
    learn(net)
    net(BATCHES[0][0])
    assert rms(net[4].feedback) == pytest.approx(rms(net[4].weight))
    assert rms(net[4].weight) > 0


def test_many_steps_in_half_precision_do_not_turn_the_feedback() -> None:
    """As they would if each step rescaled what the last one had rounded."""
    net = made("rescaled", of="fa").bfloat16()
    net(normal(2, 5).bfloat16())
    start = net[2].feedback.double().flatten()
    for step in range(400):
        with torch.no_grad():
            net[2].weight.mul_(1.3 if step % 2 else 1 / 1.3)
        net(normal(2, 5).bfloat16())
    assert float(torch.cosine_similarity(net[2].feedback.double().flatten(), start, 0)) > 0.9999


def test_each_run_of_a_population_has_its_own_scale() -> None:
    shape: dict[str, Any] = {"task": "xor", "hidden": (6, 5), "batch_size": 2, "steps": 6, "record_every": 1}
    specs = [
        RunSpec(**shape, rule="rescaled", rule_args={"of": of} | where, weight_scale=scale, seed=i)
        for i, (of, where, scale) in enumerate(
            [
                ("fa", {}, 1.0),
                ("fa", {}, 3.0),
                ("fa", {}, 0.2),
                ("weight_mirror", {}, 2.0),
                ("usf", {"direction": "weight", "scale": "rule"}, 2.0),
                ("usf", {"direction": "weight", "scale": "rule"}, 0.5),
            ]
        )
    ]
    for spec, run in zip(specs, train_population(specs), strict=True):
        alone = train_run(spec)
        for name in ("feedback_norm", "weight_angle", "train_loss"):
            torch.testing.assert_close(
                *(torch.tensor(r[name].values) for r in (run, alone)), rtol=1e-4, atol=1e-4, equal_nan=True
            )
        if spec.rule_args.get("scale") != "rule":
            ratio = (run["feedback_norm"] / run["weight_norm"]).values
            assert abs(ratio[ratio == ratio] - 1).max() < 1e-5


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ("bp", "bp has no B of its own"),
        ("dfa", "dfa sends the error straight"),
        ("drtp", "drtp sends the error straight"),
        ("kolen_pollack", "kolen_pollack has a B that the optimizer steps"),
        ("soap", "soap does not learn by what a B alone"),
        ("node_perturbation", "node_perturbation does not learn by what a B alone"),
        ("noisy_backprop", "noisy_backprop does not learn by what a B alone"),
        ("rescaled", "rescaled is rescaled already"),
        ("sign_snyc", "unknown rule 'sign_snyc'"),
        ({"rule": "sign_sync", "period": 0}, "period is 0"),
        ({"period": 3}, r"of is \{'period': 3\}, expected a rule's name"),
        (3, "the rule is 3"),
    ],
)
def test_what_has_no_feedback_to_rescale_is_refused(of: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        rules.make_rule("rescaled", of=of)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["direction", "scale"])
def test_only_the_rule_and_the_weight_have_a_direction_and_a_scale(key: str) -> None:
    with pytest.raises(ValueError, match=f"rescaled: {key} is 'bp', expected 'rule' or 'weight'"):
        rules.make_rule("rescaled", **{key: "bp"})


def test_it_ticks_and_rests_as_the_rule_behind_it() -> None:
    def flags(of: Any) -> tuple[bool, bool]:
        rule = rules.make_rule("rescaled", of=of)
        return rule.every_forward, rule.rests

    assert flags("rerandomised") == (True, True)
    assert flags("brsf") == (False, True)
    assert flags("sign_sync") == (False, False)  # whose B depends on when it was synced
    assert flags("fa") == (False, True)


class Doubled(rules.Rule):
    """From outside the package: B = 2 W at the last refresh."""

    name = "doubled"

    def refresh(self, layer: rules.FeedbackLayer) -> None:
        layer.feedback = 2 * layer.weight.detach()


def test_a_rule_of_ones_own_can_stand_behind_it() -> None:
    rule = rules.make_rule("rescaled", of=Doubled())
    assert not rule.stacks
    net, backprop = mlp(), learn(made("bp"))
    learn(rules.convert(net, rule))
    for p, q in zip(net.parameters(), backprop.parameters(), strict=True):
        close(p, q)
    rules.revert(net)
    assert [type(m) for m in net] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert not [name for name, _ in net.named_buffers()]


def test_the_code_of_a_rule_of_ones_own_behind_it_is_part_of_a_runs_name(monkeypatch: Any) -> None:
    from alignlab.training import naming

    monkeypatch.setitem(rules.RULES, "doubled", Doubled)
    spec = RunSpec(task="xor", rule="rescaled", rule_args={"of": "doubled"})
    before = cell_name(spec)
    monkeypatch.setattr(naming, "identity", lambda thing: "changed")
    assert cell_name(spec) != before
