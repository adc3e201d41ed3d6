"""A compiled model learns what the model itself learns, in one graph that is made once; or says that it cannot."""

from __future__ import annotations

import copy
import gc
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import DIRECT, KINDS, LAYERWISE, RuleCase, convnet, mlp, net_of_kind, normal, train
from torch import Tensor, nn
from torch._dynamo.utils import counters

from alignlab import rules

over_layerwise = pytest.mark.parametrize("rule", LAYERWISE, ids=str)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
X, Y = normal(4, 5), normal(4, 2, seed=2)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    gc.collect()  # recorders that were abandoned hold compiled modules eager
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _learn(net: nn.Module, called: Any, steps: int = 5) -> list[Tensor]:
    """Gradients of each step; with two backward passes in one step, a forward pass alone, and an evaluation."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(2 if step == 2 else 1):
            F.mse_loss(called(X), Y).backward()
        if step == 3:
            called(X)
        found += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        optimizer.step()
    return found


def _same_buffers_and_clocks(a: nn.Module, b: nn.Module) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers(), strict=True))
    for x, y in zip(rules.feedback_layers(a).values(), rules.feedback_layers(b).values(), strict=True):
        assert x.clock == y.clock or not x.rule.has_clock


@over_layerwise
def test_a_compiled_model_learns_as_the_model_itself_from_one_graph(rule: RuleCase) -> None:
    eager, net = rule.convert(mlp()), rule.convert(mlp())
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    expected, found = _learn(eager, eager), _learn(net, compiled)
    assert len(found) == len(expected) == (40 if net[2].rule.learns_feedback else 30)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    _same_buffers_and_clocks(net, eager)
    assert counters["stats"]["unique_graphs"] == (2 if net[2].rule.learns_feedback else 1)  # B comes into use
    assert not counters["graph_break"]


@over_layerwise
def test_a_compiled_convnet_learns_as_the_model_itself(rule: RuleCase) -> None:
    eager, net = rule.convert(convnet()), rule.convert(convnet())
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for model, called in ((eager, eager), (net, compiled)):
        train(called, torch.optim.SGD(model.parameters(), lr=0.1), [(x, x.flatten(1)[:, :3])] * 2)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), eager.parameters(), strict=True))
    _same_buffers_and_clocks(net, eager)


@pytest.mark.parametrize("rule", ["fa", "brsf", "kolen_pollack"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_learns_the_same_from_one_graph(kind: str, rule: str) -> None:
    learnt = []
    for compiled in (False, True):
        net, x = net_of_kind(kind)
        net = rules.convert(net, rule, generator=torch.Generator().manual_seed(1))
        called = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            called(x).square().mean().backward()
            optimizer.step()
        learnt.append(net)
    eager, net = learnt
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), eager.parameters(), strict=True))
    _same_buffers_and_clocks(net, eager)
    assert counters["stats"]["unique_graphs"] == (2 if rule == "kolen_pollack" else 1)


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)
@pytest.mark.parametrize("rule", [c for c in LAYERWISE if c.name in ("fa", "brsf")], ids=str)
def test_inductors_code_learns_as_the_model_itself(rule: RuleCase) -> None:
    eager, net = rule.convert(mlp()), rule.convert(mlp())
    expected, found = _learn(eager, eager), _learn(net, torch.compile(net, fullgraph=True))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    _same_buffers_and_clocks(net, eager)


@over_layerwise
def test_a_compiled_layers_feedback_at_the_forward_pass_is_the_one_that_counts(rule: RuleCase) -> None:
    """The weights change between the forward and the backward pass: B does not follow."""
    found = []
    for compile_it in (False, True):
        net = rule.convert(mlp())
        output = (torch.compile(net, backend="aot_eager") if compile_it else net)(X)
        for m in rules.feedback_layers(net).values():
            m.weight.data.neg_()
        output.square().sum().backward()
        found.append(net[0].bias.grad)
    if rule.name != "bp":
        assert torch.equal(*found)


def test_a_copy_of_a_compiled_model_has_feedback_of_its_own() -> None:
    net = rules.convert(mlp(), "brsf", generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(net, backend="aot_eager")
    _learn(net, compiled, 2)
    other = copy.deepcopy(net)
    before = net[2].feedback.clone()
    _learn(other, torch.compile(other, backend="aot_eager"), 3)
    assert torch.equal(net[2].feedback, before)
    assert not torch.equal(other[2].feedback, before)


class _Functional(nn.Module):
    """Its nonlinearity is code of its own, which Dynamo compiles where it can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = mlp((5, 4))[0], mlp((4, 2))[0]

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(torch.tanh(self.first(x)) * 2)
        return z


@pytest.mark.parametrize("rule", DIRECT, ids=str)
def test_a_direct_rule_says_that_it_cannot_be_compiled(rule: RuleCase) -> None:
    """It would learn nothing in its hidden layers, without a word."""
    net = rule.convert(_Functional())
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"direct rule .*compiled part.*without torch.compile"):
            compiled(X)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="direct rules read autograd's graph: call the model itself"):
        torch.compile(net, backend="aot_eager", fullgraph=True)(X)
    with torch.no_grad():
        assert torch.equal(compiled(X), net(X))
    net(X).sum().backward()
    assert net.first.weight.grad.norm() > 0


@pytest.mark.parametrize("rule", DIRECT, ids=str)
@pytest.mark.parametrize(("make", "backend"), [(mlp, "aot_eager"), (mlp, "eager"), (_Functional, "eager")])
def test_a_direct_rule_learns_where_autograds_graph_is_kept(rule: RuleCase, make: Any, backend: str) -> None:
    eager, net = rule.convert(make()), rule.convert(make())
    expected, found = _learn(eager, eager), _learn(net, torch.compile(net, backend=backend))
    assert len(found) == len(expected) >= 20
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_direct_rule_does_not_look_through_a_compiled_part() -> None:
    net = mlp()
    net[1] = torch.compile(net[1], backend="aot_eager")
    with pytest.raises(RuntimeError, match="compiled part"):
        rules.convert(net, "dfa")(X)


@pytest.mark.gpu
@needs_gpu
@over_layerwise
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_the_gpu_runs_compiled_what_it_runs(rule: RuleCase, mode: str) -> None:
    """Graphs that CUDA replays without Python included."""
    eager, net = (rule.convert(mlp().cuda()) for _ in range(2))
    compiled = torch.compile(net, mode=mode)
    for model, called in ((eager, eager), (net, compiled)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(7):
            optimizer.zero_grad()
            F.mse_loss(called(X.cuda()), Y.cuda()).backward()
            optimizer.step()
    for p, q in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
    for p, q in zip(net.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)
