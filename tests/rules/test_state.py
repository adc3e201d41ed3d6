"""A run that is saved and continued elsewhere is, bit for bit, the run that was never interrupted."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import (
    ALL_RULES,
    DIRECT,
    LAYERWISE,
    RuleCase,
    as_it_is,
    convnet,
    mlp,
    normal,
    plain_parameters,
    train,
)
from torch import Tensor, nn

from alignlab import rules
from alignlab.probes.truth import asking

over_rules = pytest.mark.parametrize("rule", ALL_RULES, ids=str)

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}
STEPS = 7  # with sign_sync's period of 3, steps 2, 3 and 4 lie before, on and behind a boundary


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(11)
    return [
        (torch.randn(4, 1, 4, 4, generator=generator), torch.randn(4, 3, generator=generator))
        for _ in range(STEPS)
    ]


def _through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _assert_same_state(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


@over_rules
@pytest.mark.parametrize(
    ("optimizer", "saved_at"), [("momentum", 0), ("momentum", 2), ("momentum", 3), ("adam", 3), ("adam", 4)]
)
def test_a_run_resumed_from_a_state_dict_is_the_uninterrupted_run(
    rule: RuleCase, optimizer: str, saved_at: int
) -> None:
    make, batches = OPTIMIZERS[optimizer], _batches()
    whole = rule.convert(convnet(seed=0), seed=1)
    train(whole, make(whole.parameters()), batches)

    begun = rule.convert(convnet(seed=0), seed=1)
    first = make(begun.parameters())
    train(begun, first, batches[:saved_at])
    resumed = rule.convert(convnet(seed=5), seed=6)
    second = make(resumed.parameters())
    resumed.load_state_dict(_through_file(begun.state_dict()))
    second.load_state_dict(_through_file(first.state_dict()))
    train(resumed, second, batches[saved_at:])
    _assert_same_state(resumed, whole)


@over_rules
@pytest.mark.parametrize("saved_at", [2, 3])
@pytest.mark.parametrize("moment", ["after_evaluation", "between_backward_and_step", "after_forward"])
def test_a_run_may_be_saved_at_any_moment(rule: RuleCase, saved_at: int, moment: str) -> None:
    """Saving changes nothing in the run that goes on; and the copy, set to the same moment, goes on alike."""
    batches = _batches()
    whole = rule.convert(convnet(), seed=1)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05)
    train(whole, optimizer, batches[:saved_at])
    x, y = batches[saved_at]
    if moment == "after_evaluation":
        F.mse_loss(whole(x), y)
    elif moment == "after_forward":
        whole(x).sum().backward()
        optimizer.zero_grad()
    else:
        optimizer.zero_grad()
        F.mse_loss(whole(x), y).backward()
    resumed = rule.convert(convnet(seed=5), seed=6)
    resumed.load_state_dict(_through_file(whole.state_dict()))
    if moment == "between_backward_and_step":
        optimizer.zero_grad()
    train(whole, optimizer, batches[saved_at:])
    train(resumed, torch.optim.SGD(resumed.parameters(), lr=0.05), batches[saved_at:])
    _assert_same_state(resumed, whole)


@over_rules
@pytest.mark.parametrize(
    ("way", "saved_at"), [("deepcopy", 0), ("deepcopy", 2), ("deepcopy", 3), ("pickle", 2), ("torch.save", 3)]
)
def test_a_copied_model_continues_like_its_original(rule: RuleCase, saved_at: int, way: str) -> None:
    batches = _batches()
    whole = rule.convert(convnet(), seed=1)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05)
    train(whole, optimizer, batches[:saved_at])
    if way == "deepcopy":
        copied = copy.deepcopy(whole)
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(whole))
    else:
        file = io.BytesIO()
        torch.save(whole, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    untouched = copy.deepcopy(whole.state_dict())
    train(copied, torch.optim.SGD(copied.parameters(), lr=0.05), batches[saved_at:])
    assert all(torch.equal(v, untouched[n]) for n, v in whole.state_dict().items() if isinstance(v, Tensor))
    train(whole, optimizer, batches[saved_at:])
    _assert_same_state(copied, whole)


@over_rules
def test_a_checkpoint_holds_tensors_alone(rule: RuleCase) -> None:
    """As loops take it that keep the best model, average or cast weights, or write safetensors."""
    best, kept = rule.convert(mlp()), rule.convert(mlp(), seed=6)
    train(best, torch.optim.SGD(best.parameters(), lr=0.05), [(normal(6, 5), normal(6, 2))] * 2)
    kept.load_state_dict({name: value.cpu().double() for name, value in best.state_dict().items()})
    _assert_same_state(best, kept)


@over_rules
def test_a_checkpoint_from_before_these_were_tensors_is_read(rule: RuleCase) -> None:
    trained, resumed = rule.convert(mlp()), rule.convert(mlp(), seed=6)
    train(trained, torch.optim.SGD(trained.parameters(), lr=0.05), [(normal(6, 5), normal(6, 2))] * 2)
    state = trained.state_dict()
    for name in [name for name in state if name.endswith("_extra_state")]:
        state[name] = json.loads(bytes(state[name].tolist()))
    resumed.load_state_dict(state)
    _assert_same_state(trained, resumed)


@over_rules
def test_a_copied_model_shares_nothing_with_its_original(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    net(normal(2, 5)).sum().backward()
    copied = copy.deepcopy(net)
    assert copied[0].credit is copied[2].credit
    assert copied[0].credit is not net[0].credit
    with asking([copied[0].credit], true=True):
        assert not net[0].credit.true
    own = {t.data_ptr() for t in (*net.parameters(), *net.buffers())}
    assert not own & {t.data_ptr() for t in (*copied.parameters(), *copied.buffers())}


@over_rules
def test_a_model_can_be_copied_between_its_forward_and_its_backward_pass(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    loss = net(normal(2, 5)).sum()
    copied = copy.deepcopy(net)
    loss.backward()
    copied(normal(2, 5)).sum().backward()
    assert net[0].weight.grad.norm() > 0
    assert copied[0].weight.grad.norm() > 0


@over_rules
def test_loading_a_models_first_state_starts_it_again(rule: RuleCase) -> None:
    net = rule.convert(convnet())
    start = copy.deepcopy(net.state_dict())
    train(net, torch.optim.SGD(net.parameters(), lr=0.05), _batches())
    once = copy.deepcopy(net)
    net.load_state_dict(start)
    train(net, torch.optim.SGD(net.parameters(), lr=0.05), _batches())
    _assert_same_state(net, once)


@over_rules
def test_a_state_dict_can_be_assigned(rule: RuleCase) -> None:
    begun = rule.convert(convnet())
    train(begun, torch.optim.SGD(begun.parameters(), lr=0.05), _batches()[:2])
    resumed = rule.convert(convnet(seed=5), seed=6)
    resumed(torch.ones(2, 1, 4, 4))
    resumed.load_state_dict(_through_file(begun.state_dict()), assign=True)
    train(begun, torch.optim.SGD(begun.parameters(), lr=0.05), _batches()[2:])
    train(resumed, torch.optim.SGD(resumed.parameters(), lr=0.05), _batches()[2:])
    _assert_same_state(resumed, begun)


@over_rules
def test_a_state_dict_is_loaded_in_the_models_own_dtype(rule: RuleCase) -> None:
    begun = rule.convert(mlp().float())
    begun(torch.ones(2, 5)).sum().backward()
    resumed = rule.convert(mlp(seed=3))
    resumed.load_state_dict(begun.state_dict())
    resumed(normal(2, 5)).sum().backward()
    for name, tensor in resumed.state_dict().items():
        if not name.endswith("_extra_state"):  # text
            assert tensor.dtype == torch.float64, name


def test_a_checkpoint_of_another_rule_is_refused() -> None:
    fa, sync = rules.convert(mlp(), "fa"), rules.convert(mlp(), "sign_sync")
    with pytest.raises(
        ValueError, match=r"learn by 'fa', this model's by sign_sync\(.*convert the model to 'fa'"
    ):
        sync.load_state_dict(fa.state_dict())


def test_a_checkpoint_without_feedback_is_refused() -> None:
    with pytest.raises(RuntimeError, match="feedback"):
        rules.convert(mlp(), "fa").load_state_dict(mlp().state_dict())


@pytest.mark.parametrize("rule", DIRECT, ids=str)
def test_lazily_drawn_feedback_does_not_depend_on_when_it_is_drawn(rule: RuleCase) -> None:
    early, late = rule.convert(mlp()), rule.convert(mlp())
    early(normal(1, 5))
    torch.manual_seed(99)
    late(normal(7, 5))
    assert torch.equal(early[0].feedback, late[0].feedback)


@over_rules
def test_the_feedback_follows_the_generator_alone(rule: RuleCase) -> None:
    def drawn(seed: int, global_seed: int) -> Tensor:
        net = mlp(seed=0)
        torch.manual_seed(global_seed)
        rule.convert(net, seed)
        net(normal(2, 5))
        found = next(
            (m.feedback for m in rules.feedback_layers(net).values() if m.feedback is not None), None
        )
        return torch.zeros(()) if found is None else found

    assert torch.equal(drawn(0, 1), drawn(0, 2))
    assert torch.equal(drawn(0, 1), drawn(3, 1)) == (not rule.made.draws)


@over_rules
def test_without_a_generator_the_global_seed_decides(rule: RuleCase) -> None:
    found = []
    for _ in range(2):
        net = mlp()
        torch.manual_seed(4)
        rules.convert(net, rule.name, **rule.args)
        net(normal(2, 5))
        found.append(net)
    _assert_same_state(*found)


@over_rules
def test_a_training_step_takes_no_number_from_the_global_generator(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    before = torch.get_rng_state()
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), [(normal(2, 5), normal(2, 2))] * 3)
    assert torch.equal(torch.get_rng_state(), before)


@over_rules
def test_buffers_follow_the_model_to_another_dtype(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    net(normal(2, 5))
    net.to(torch.float32)
    assert all(b.dtype == torch.float32 for b in net.buffers())
    before = [m.clock for m in rules.feedback_layers(net).values()]
    net(torch.ones(2, 5)).sum().backward()
    if not net[0].rule.every_forward:
        assert [m.clock for m in rules.feedback_layers(net).values()] == before


@over_rules
def test_feedback_that_is_the_weight_stays_behind_when_the_weight_moves(rule: RuleCase) -> None:
    """An initialisation may return W itself: what is kept is a copy."""
    net = mlp((3, 3, 3))
    start = net[2].weight.detach().clone()
    rule.convert(
        net, init=lambda like, generator: net[2].weight if like.shape == (3, 3) else as_it_is(like, generator)
    )
    assert torch.equal(net[2].weight, start)
    train(net, torch.optim.SGD(net.parameters(), lr=0.5), [(normal(4, 3), normal(4, 3, seed=2))] * 2)
    weights = plain_parameters(net).values()
    for m in rules.feedback_layers(net).values():
        for buffer in (m.feedback, m.feedback_magnitude, m.feedback_unscaled):
            assert buffer is None or buffer.requires_grad == (rule.learns_feedback and buffer is m.feedback)
            assert buffer is None or buffer.data_ptr() not in {p.data_ptr() for p in weights}
    if rule.name == "fa":
        assert torch.equal(net[2].feedback, start)


@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [
        ("sign_sync", {"period": 3}, {"period": 4}),
        ("sign_sync", {"preserve_magnitude": True}, {"preserve_magnitude": False}),
        ("brsf", {"init": "xavier"}, {"init": "lillicrap"}),
        ("rescaled", {"scale": "rule"}, {"scale": "weight"}),
        ("rescaled", {"of": {"rule": "sign_sync", "period": 3}}, {"of": {"rule": "sign_sync", "period": 4}}),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    rule: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    saved = rules.convert(mlp(), rule, **first).state_dict()
    with pytest.raises(ValueError, match=next(iter(first))):
        rules.convert(mlp(), rule, **second).load_state_dict(saved)
    rules.convert(mlp(), rule, **first).load_state_dict(saved)


RESTING = [rule for rule in LAYERWISE if rule.made.rests and rule.source != "weight_mirror"]


@pytest.mark.parametrize("rule", RESTING, ids=str)
@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize("reloaded", [False, True])
def test_feedback_that_no_error_passes_rests_until_one_does(
    rule: RuleCase, passed: bool, reloaded: bool
) -> None:
    """The first layer's: nothing below it learns. As soon as its input asks for a gradient, B is what it would have been."""
    nets = [rule.convert(mlp()) for _ in range(2)]
    for net, asks in zip(nets, (False, True), strict=True):
        batches = [(normal(4, 5, seed=s).requires_grad_(asks), normal(4, 2, seed=s + 9)) for s in range(3)]
        at_first = net[0].feedback
        train(net, torch.optim.SGD(net.parameters(), lr=1.0), batches)
        assert (net[0].feedback is at_first) == (not asks)
    if passed:
        for net, asks in zip(nets, (False, True), strict=True):
            net(normal(4, 5, seed=8).requires_grad_(asks))
    if reloaded:
        other = rule.convert(mlp(seed=3))
        other.load_state_dict(nets[0].state_dict())
        nets[0] = other
    x = normal(4, 5, seed=7).requires_grad_()
    expected, found = (torch.autograd.grad(net(x).square().sum(), x)[0] for net in nets[::-1])
    assert torch.equal(found, expected)
    assert torch.equal(nets[0][0].feedback, nets[1][0].feedback)
    nets[0](x)
    if not rule.made.every_forward:
        assert torch.equal(nets[0][0].feedback, nets[1][0].feedback)


@pytest.mark.parametrize("rule", LAYERWISE, ids=str)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("copied", [False, True])
def test_feedback_that_a_pass_brought_up_to_date_is_so_in_its_copy_and_checkpoint(
    rule: RuleCase, steps: int, copied: bool
) -> None:
    """A phase of a mirror must not be had twice."""
    net, other = rule.convert(mlp()), rule.convert(mlp(seed=3))
    batches = [(normal(4, 5, seed=s), normal(4, 2, seed=s + 9)) for s in range(steps)]
    train(net, torch.optim.SGD(net.parameters(), lr=1.0, weight_decay=0.1), batches)
    net(normal(4, 5, seed=8))
    if copied:
        other = copy.deepcopy(net)
    else:
        other.load_state_dict(net.state_dict())
    for each in (net, other):
        each(normal(4, 5, seed=8))
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_a_mirror_spares_the_layer_whose_feedback_no_error_passes() -> None:
    net = rules.convert(mlp(), "weight_mirror", samples=3)
    first, second = net[0].feedback, net[2].feedback
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), [(normal(4, 5), normal(4, 2))] * 3)
    assert net[0].feedback is first
    assert not torch.equal(net[2].feedback, second)
