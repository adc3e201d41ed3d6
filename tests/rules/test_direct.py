"""Direct feedback: each layer gets its own error, once, whatever leads around it; and nobody pays for the chain."""

from __future__ import annotations

import copy
import gc
import itertools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import DIRECT, RuleCase, close, gradients, mlp, normal, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from alignlab import rules
from alignlab.probes.truth import asking
from alignlab.rules import direct

over_direct = pytest.mark.parametrize("rule", DIRECT, ids=str)


# --- architectures ----------------------------------------------------------------------------------------------------
# Each net says in tensor algebra (and torch.func for what has no short formula) what reaches its layers: `deltas` takes
# the input, the error e at the output and the Bs, and gives delta and h of every layer. B enters at the *activation*.


class Net(nn.Module):
    shape: tuple[int, ...] = (4, 6)
    a: Any
    b: Any
    c: Any
    out: Any

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.build()
        self.double()

    def build(self) -> None:
        self.a, self.b, self.c, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def norms(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the parameters outside converted layers."""
        return {}


def _pull(function: Callable[[Tensor], Tensor], z: Tensor, signal: Tensor) -> Tensor:
    """The signal through the derivative of ``function`` at z."""
    result: Tensor = torch.func.vjp(function, z)[1](signal)[0]
    return result


class Plain(Net):
    def forward(self, x: Tensor) -> Any:
        return self.out(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        zb = self.b(za.relu())
        zc = self.c(zb.relu())
        return {
            "a": (e @ B["a"] * (za > 0), x),
            "b": (e @ B["b"] * (zb > 0), za.relu()),
            "c": (e @ B["c"] * (zc > 0), zb.relu()),
            "out": (e, zc.relu()),
        }


class InPlace(Plain):
    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.a(x), inplace=True)
        h = F.relu(self.b(h), inplace=True)
        return self.out(F.relu_(self.c(h)))


class NoActivation(Net):
    """Layers that meet without anything in between."""

    def forward(self, x: Tensor) -> Any:
        return self.out(self.b(self.a(x)))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        return {"a": (e @ B["a"], x), "b": (e @ B["b"], za), "out": (e, self.b(za))}


class Residual(Net):
    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.a(x))
        h = h + F.relu(self.b(h))
        h = h + F.relu(self.c(h))
        return self.out(h)

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        ha = za.relu()
        zb = self.b(ha)
        hb = ha + zb.relu()
        zc = self.c(hb)
        return {
            "a": (e @ B["a"] * (za > 0), x),
            "b": (e @ B["b"] * (zb > 0), ha),
            "c": (e @ B["c"] * (zc > 0), hb),
            "out": (e, hb + zc.relu()),
        }


class ResidualInPlace(Residual):
    """The skip is added into the layer's own output."""

    def forward(self, x: Tensor) -> Any:
        ha = F.relu(self.a(x))
        zb = F.relu_(self.b(ha))
        zb = zb + ha
        zc = F.relu(self.c(zb))
        zc = zc.add(zb)
        return self.out(zc)


class PreNorm(Net):
    """The block of a transformer's feed-forward part: x + c(relu(b(norm(x))))."""

    def build(self) -> None:
        super().build()
        self.norm, self.last = nn.LayerNorm(6), nn.LayerNorm(6)
        for norm in (self.norm, self.last):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        h = h + self.c(F.relu(self.b(self.norm(h))))
        return self.out(self.last(h))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        zb = self.b(self.norm(za))
        h = za + self.c(zb.relu())
        return {
            "a": (_pull(self.norm, za, e @ B["a"]), x),
            "b": (e @ B["b"] * (zb > 0), self.norm(za)),
            "c": (_pull(self.last, h, e @ B["c"]), zb.relu()),
            "out": (e, self.last(h)),
        }

    def norms(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
        za = self.a(x)
        h = za + self.c(self.b(self.norm(za)).relu())
        whitened = [F.layer_norm(z, (6,)) for z in (za, h)]
        return {
            "norm.weight": (e @ B["a"] * whitened[0]).sum(0),
            "norm.bias": (e @ B["a"]).sum(0),
            "last.weight": (e @ B["c"] * whitened[1]).sum(0),
            "last.bias": (e @ B["c"]).sum(0),
        }


class PostNorm(Net):
    """norm(h + relu(b(h))): the skip passes one normalisation after the other, each of which learns once."""

    def build(self) -> None:
        super().build()
        self.norms_ = nn.ModuleList([nn.LayerNorm(6), nn.LayerNorm(6)])

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        h = self.norms_[0](h + F.relu(self.b(h)))
        h = self.norms_[1](h + F.relu(self.c(h)))
        return self.out(h)

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        zb = self.b(za)
        hb = self.norms_[0](za + zb.relu())
        zc = self.c(hb)
        return {
            "a": (e @ B["a"], x),
            "b": (_pull(self.norms_[0], za + zb.relu(), e @ B["b"]) * (zb > 0), za),
            "c": (_pull(self.norms_[1], hb + zc.relu(), e @ B["c"]) * (zc > 0), hb),
            "out": (e, self.norms_[1](hb + zc.relu())),
        }

    def norms(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
        za = self.a(x)
        sb = za + self.b(za).relu()
        hb = self.norms_[0](sb)
        sc = hb + self.c(hb).relu()
        return {
            "norms_.0.weight": (e @ B["b"] * F.layer_norm(sb, (6,))).sum(0),
            "norms_.0.bias": (e @ B["b"]).sum(0),
            "norms_.1.weight": (e @ B["c"] * F.layer_norm(sc, (6,))).sum(0),
            "norms_.1.bias": (e @ B["c"]).sum(0),
        }


class Concatenated(Net):
    """As in a DenseNet: a layer's B is as wide as what the next layer takes in; the layer gets its own part."""

    def build(self) -> None:
        super().build()
        self.c = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Any:
        ha = F.relu(self.a(x))
        hb = F.relu(self.b(ha))
        return self.out(F.relu(self.c(torch.cat([ha, hb], dim=-1))))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        zb = self.b(za.relu())
        both = torch.cat([za.relu(), zb.relu()], dim=-1)
        zc = self.c(both)
        return {
            "a": (e @ B["a"] * (za > 0), x),
            "b": (e @ B["b"][:, 6:] * (zb > 0), za.relu()),
            "c": (e @ B["c"] * (zc > 0), both),
            "out": (e, zc.relu()),
        }


class HiddenToOutput(Net):
    """A hidden layer also adds straight to the output: it still learns from its own B alone."""

    def build(self) -> None:
        self.a, self.b, self.out = nn.Linear(6, 2), nn.Linear(2, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        return self.out(torch.tanh(self.b(h))) + h

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        h = self.a(x).tanh()
        g = self.b(h).tanh()
        return {
            "a": (e @ B["a"] * (1 - h**2), x),
            "b": (e @ B["b"] * (1 - g**2), h),
            "out": (e, g),
        }


class TwoHeads(Net):
    """Two layers feed the output directly: both get the true error."""

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        return self.out(torch.tanh(self.b(h))) + self.c(h)[..., :2].exp()

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        h = self.a(x).tanh()
        g = self.b(h).tanh()
        through_exp = torch.zeros(len(x), 6, dtype=x.dtype)
        through_exp[:, :2] = e * self.c(h)[:, :2].exp()
        return {
            "a": (e @ B["a"] * (1 - h**2), x),
            "b": (e @ B["b"] * (1 - g**2), h),
            "c": (through_exp, h),
            "out": (e, g),
        }


class Attention(Net):
    """Queries, keys and values: three layers whose outputs meet in one activation, each with a B of its own."""

    shape = (2, 5, 6)

    def build(self) -> None:
        self.a, self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(4))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        return self.out(self.attend(self.q(h), self.k(h), self.v(h)))

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(-1, -2), dim=-1) @ v

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        h = self.a(x).tanh()
        q, k, v = self.q(h), self.k(h), self.v(h)
        return {
            "a": (e @ B["a"] * (1 - h**2), x),
            "q": (_pull(lambda q: self.attend(q, k, v), q, e @ B["q"]), h),
            "k": (_pull(lambda k: self.attend(q, k, v), k, e @ B["k"]), h),
            "v": (_pull(lambda v: self.attend(q, k, v), v, e @ B["v"]), h),
            "out": (e, self.attend(q, k, v)),
        }


class Chunked(Net):
    """One layer whose output is cut in two."""

    def forward(self, x: Tensor) -> Any:
        gate, value = self.a(x).chunk(2, dim=-1)
        return self.out(F.pad(torch.sigmoid(gate) * value, (0, 3)))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        def local(z: Tensor) -> Tensor:
            return F.pad(torch.sigmoid(z[:, :3]) * z[:, 3:], (0, 3))

        z = self.a(x)
        return {"a": (_pull(local, z, e @ B["a"]), x), "out": (e, local(z))}


class Pooled(Net):
    """Batch normalisation and max pooling lie between a convolution and the next layer."""

    shape = (4, 2, 6, 6)

    def build(self) -> None:
        self.a, self.bn = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.b, self.out = nn.Conv2d(3, 4, 2), nn.Linear(16, 2)
        nn.init.normal_(self.bn.weight)

    def local(self, z: Tensor) -> Tensor:
        normed = F.batch_norm(z, None, None, self.bn.weight.detach(), self.bn.bias.detach(), training=True)
        return F.max_pool2d(normed.relu(), 2)

    def forward(self, x: Tensor) -> Any:
        h = F.max_pool2d(F.relu_(self.bn(self.a(x))), 2)
        return self.out(torch.tanh(self.b(h)).flatten(1))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        h = self.local(za)
        g = self.b(h).tanh()
        return {
            "a": (_pull(self.local, za, (e @ B["a"]).reshape(h.shape)), x),
            "b": ((e @ B["b"]).reshape(g.shape) * (1 - g**2), h),
            "out": (e, g.flatten(1)),
        }

    def norms(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
        za = self.a(x)
        white = F.batch_norm(za, None, None, training=True)
        normed = white * self.bn.weight.detach()[:, None, None] + self.bn.bias.detach()[:, None, None]
        signal = (e @ B["a"]).reshape(self.local(za).shape)
        at_norm = _pull(lambda n: F.max_pool2d(n.relu(), 2), normed, signal)
        return {"bn.weight": (at_norm * white).sum((0, 2, 3)), "bn.bias": at_norm.sum((0, 2, 3))}


class Dropped(Net):
    """Dropout: the signal passes the units that were on."""

    def forward(self, x: Tensor) -> Any:
        torch.manual_seed(5)
        ha = F.dropout(torch.tanh(self.a(x)), 0.5)
        return self.out(F.dropout(torch.tanh(self.b(ha)), 0.5))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        torch.manual_seed(5)
        on_a, on_b = (F.dropout(torch.ones(4, 6, dtype=x.dtype), 0.5) for _ in range(2))
        assert {0.0, 2.0} == set(on_a.unique().tolist())
        ta = self.a(x).tanh()
        tb = self.b(ta * on_a).tanh()
        return {
            "a": (e @ B["a"] * on_a * (1 - ta**2), x),
            "b": (e @ B["b"] * on_b * (1 - tb**2), ta * on_a),
            "out": (e, tb * on_b),
        }


class SharedPReLU(Net):
    """One PReLU behind two layers learns from both."""

    def build(self) -> None:
        super().build()
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Any:
        return self.out(self.act(self.b(self.act(self.a(x)))))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        za = self.a(x)
        zb = self.b(self.act(za))
        slope = self.act.weight.detach()
        return {
            "a": (e @ B["a"] * torch.where(za > 0, 1.0, slope), x),
            "b": (e @ B["b"] * torch.where(zb > 0, 1.0, slope), self.act(za)),
            "out": (e, self.act(zb)),
        }

    def norms(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
        za = self.a(x)
        zb = self.b(self.act(za))
        return {
            "act.weight": ((e @ B["a"] * za.clamp(max=0)).sum() + (e @ B["b"] * zb.clamp(max=0)).sum())[None]
        }


class NormAfterOutput(Net):
    """What lies above the last layer is passed by the true error."""

    def build(self) -> None:
        super().build()
        self.top = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Any:
        return self.top(self.out(torch.tanh(self.a(x))))

    def deltas(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        h = self.a(x).tanh()
        return {"a": (e @ B["a"] * (1 - h**2), x), "out": (_pull(self.top, self.out(h), e), h)}

    def norms(self, x: Tensor, e: Tensor, B: dict[str, Tensor]) -> dict[str, Tensor]:
        z = self.out(self.a(x).tanh())
        return {"top.weight": (e * F.layer_norm(z, (2,))).sum(0), "top.bias": e.sum(0)}


ARCHITECTURES = [
    Plain, InPlace, NoActivation, Residual, ResidualInPlace, PreNorm, PostNorm, Concatenated, HiddenToOutput, TwoHeads,
    Attention, Chunked, Pooled, Dropped, SharedPReLU, NormAfterOutput,
]  # fmt: skip


def _weight_gradient(layer: nn.Module, delta: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(layer, nn.Conv2d):
        unfolded = F.unfold(h, layer.kernel_size, padding=layer.padding)  # type: ignore[arg-type]
        flat = delta.flatten(2)
        return torch.einsum("nop,nip->oi", flat, unfolded).reshape(layer.weight.shape), flat.sum((0, 2))
    delta, h = delta.flatten(0, -2), h.flatten(0, -2)
    return delta.T @ h, delta.sum(0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("make", ARCHITECTURES)
def test_each_layer_gets_its_own_error_once(make: type[Net], reduction: str) -> None:
    net = make()
    rules.convert(net, "dfa", generator=torch.Generator().manual_seed(3))
    x = normal(*net.shape)
    output = net(x)
    y = normal(*output.shape, seed=8)
    F.mse_loss(output, y, reduction=reduction).backward()
    with torch.no_grad():
        twin = make()  # normalisations in the state before the step
        B = {name: m.feedback for name, m in rules.feedback_layers(net).items() if m.feedback is not None}
        e = 2 * (twin(x) - y) / (y.numel() if reduction == "mean" else 1)
        expected = twin.deltas(x, e, B)
        others = twin.norms(x, e, B)
    assert set(B) == set(expected) - _feed_output(make)
    for name, (delta, h) in expected.items():
        weight, bias = _weight_gradient(twin.get_submodule(name), delta, h)
        close(net.get_parameter(f"{name}.weight").grad, weight)
        close(net.get_parameter(f"{name}.bias").grad, bias)
        assert weight.norm() > 0
    for name, gradient in others.items():
        close(net.get_parameter(name).grad, gradient)
        assert gradient.norm() > 0
    learnt = {n for n, p in net.named_parameters() if p.grad is not None}
    assert learnt == {f"{n}.{part}" for n in expected for part in ("weight", "bias")} | set(others)


def _feed_output(make: type[Net]) -> set[str]:
    return {"out", "c"} if make is TwoHeads else {"out"}


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_true_mode_gives_backprops_errors_in_every_architecture(make: type[Net]) -> None:
    net, plain = rules.convert(make(), "dfa"), make()
    x = normal(*net.shape)
    outputs: list[Tensor] = []
    found: list[dict[str, Tensor]] = []
    for model in (net, plain):
        kept: dict[str, Tensor] = {}
        edges: dict[str, Any] = {}
        for name, m in model.named_modules():
            if isinstance(m, nn.Linear | nn.Conv2d):
                m.register_forward_hook(
                    lambda m, i, out, name=name, edges=edges: edges.__setitem__(
                        name, torch.autograd.graph.get_gradient_edge(out)
                    )
                )
        output = model(x)
        outputs.append(output)
        loss = output.square().sum()
        with asking([net.out.credit], true=True):
            kept.update(zip(edges, torch.autograd.grad(loss, list(edges.values())), strict=True))
        found.append(kept)
    assert torch.equal(outputs[0], outputs[1])
    for name, expected in found[1].items():
        close(found[0][name], expected)


# --- the price --------------------------------------------------------------------------------------------------------


def _backward_flops(model: nn.Module, x: Tensor) -> int:
    model(x)  # draws the feedback
    loss = model(x).square().mean()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return int(counter.get_total_flops())


def test_the_backward_pass_costs_weight_gradients_and_projections_only() -> None:
    sizes, n = (30, 20, 24, 16, 5), 8
    net = mlp(sizes)
    rules.convert(net, "dfa")
    weights = sum(2 * n * i * o for i, o in itertools.pairwise(sizes))
    projections = sum(2 * n * sizes[-1] * o for o in sizes[1:-1])
    assert _backward_flops(net, normal(n, 30)) == weights + projections
    chain = sum(2 * n * i * o for i, o in itertools.pairwise(sizes[1:]))
    assert _backward_flops(mlp(sizes), normal(n, 30)) == weights + chain


class _Products(TorchDispatchMode):
    """Keeps the operands of every matrix product and the masks of every convolution's backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: set[int] = set()
        self.input_gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.operands |= {a.untyped_storage().data_ptr() for a in args}
        if func is torch.ops.aten.convolution_backward.default:
            self.input_gradients += args[-1][0]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_no_product_with_a_weight_is_formed_on_the_way_back(make: type[Net]) -> None:
    net = make()
    x = normal(*net.shape)
    weights = {m.weight.untyped_storage().data_ptr() for m in net.modules() if isinstance(m, nn.Linear)}
    assert weights & _products(net, x).operands  # backprop does
    rules.convert(net, "dfa")
    found = _products(net, x)
    assert not weights & found.operands
    assert found.input_gradients == 0


def _products(net: Net, x: Tensor) -> _Products:
    loss, found = net(x).square().mean(), _Products()
    with found:
        loss.backward()
    return found


def test_a_shared_normalisation_costs_no_more_than_two() -> None:
    """Its gradient is looked for below each activation, and the search must not run on through the layers there."""

    class Separate(SharedPReLU):
        def build(self) -> None:
            super().build()
            self.other = nn.PReLU()

        def forward(self, x: Tensor) -> Any:
            return self.out(self.other(self.b(self.act(self.a(x)))))

    shared, separate = (
        _backward_flops(rules.convert(make(), "dfa"), normal(4, 6)) for make in (SharedPReLU, Separate)
    )
    assert shared == separate


@over_direct
def test_a_pass_is_freed_as_soon_as_its_output_is(rule: RuleCase) -> None:
    """No cycle through the graph: activations must not wait for the garbage collector, let alone stay for ever."""

    class Kept(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            self.seen = weakref.ref(h.grad_fn)
            return h.clone()

    net: Any = nn.Sequential(*list(mlp())[:3], Kept(), *list(mlp())[3:])
    rule.convert(net)
    gc.collect()
    gc.disable()
    try:
        for backward in (False, True):
            output = net(normal(4, 5))
            gradient_function = weakref.ref(output.grad_fn)
            if backward:
                output.sum().backward()
            del output
            assert gradient_function() is None
            assert net[3].seen() is None
    finally:
        gc.enable()


# --- the feedback -----------------------------------------------------------------------------------------------------


def test_feedback_is_as_wide_as_the_activation_that_it_feeds() -> None:
    net = rules.convert(Pooled(), "dfa")
    assert net.a.feedback is None  # drawn when the sizes are known
    net(normal(*net.shape))
    assert net.a.feedback is not None
    assert net.a.feedback.shape == (2, 3 * 3 * 3)
    assert net.b.feedback.shape == (2, 16)
    assert net.out.feedback is None


def test_positions_share_one_feedback_where_the_output_has_the_same_positions() -> None:
    net = rules.convert(mlp(), "dfa")
    net(normal(2, 7, 5))
    assert net[0].feedback.shape == (2, 4)
    net(normal(3, 5))
    net(normal(5))
    assert net[0].feedback.shape == (2, 4)


def test_images_do_not_count_as_positions() -> None:
    """An output of the activation's own size: the last dimension is a column of pixels, not a layer of units."""
    net = rules.convert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 1)), "dfa")
    net(torch.zeros(2, 3, 4, 5))
    assert net[0].feedback is not None
    assert net[0].feedback.shape == (60, 60)


@pytest.mark.parametrize("second", [nn.Conv2d, rules.LocallyConnected2d])
def test_one_image_without_a_batch_dimension_is_one_sample(second: Any) -> None:
    torch.manual_seed(0)
    middle = second(5, 2, kernel_size=2, **{} if second is nn.Conv2d else {"input_size": 4})
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), middle, nn.Flatten(-3), nn.Tanh(), nn.Linear(18, 5))
    rules.convert(net.double(), "dfa")
    x = normal(3, 6, 6)
    net(x).square().sum().backward()
    single = gradients(net)
    assert net[0].feedback.shape == (5, 5 * 4 * 4)
    net.zero_grad()
    net(x[None]).square().sum().backward()
    for name, gradient in gradients(net).items():
        close(gradient, single[name])


def test_inputs_of_another_size_are_an_error_that_names_both() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    rules.convert(net, "dfa")
    net(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"dfa: the feedback of a layer is \(1, 36\).*ask for \(1, 49\)"):
        net(torch.zeros(2, 1, 9, 9))


def test_a_batch_dimension_that_changes_place_is_an_error() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x).transpose(0, 1)).transpose(0, 1)

    with pytest.raises(ValueError, match="one batch dimension throughout"):
        rules.convert(Turned(), "dfa")(torch.zeros(5, 3))


# --- indirect ---------------------------------------------------------------------------------------------------------


def test_indirect_feedback_has_one_matrix_and_goes_forward() -> None:
    net = rules.convert(mlp((5, 4, 3, 6, 2)), "ifa")
    x = normal(4, 5)
    net(x).square().sum().backward()
    assert net[0].feedback is not None
    assert all(net[i].feedback is None for i in (2, 4, 6))
    h1 = net[0](x).detach().tanh()
    h2 = net[2](h1).detach().tanh()
    h3 = net[4](h2).detach().tanh()
    e = 2 * net[6](h3).detach()
    delta1 = e @ net[0].feedback * (1 - h1**2)
    delta2 = delta1 @ net[2].weight.detach().T * (1 - h2**2)
    delta3 = delta2 @ net[4].weight.detach().T * (1 - h3**2)
    for i, delta, h in ((0, delta1, x), (2, delta2, h1), (4, delta3, h2), (6, e, h3)):
        close(net[i].weight.grad, delta.T @ h)


@pytest.mark.parametrize("depth", range(1, 8))
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_indirect_feedback_goes_forward_through_any_depth(activation: type[nn.Module], depth: int) -> None:
    """By hand, with 1 to 7 hidden layers; a ReLU's derivative is at every layer once."""
    sizes = (5, *range(9, 9 + depth), 3)
    net = rules.convert(mlp(sizes, activation), "ifa", generator=torch.Generator().manual_seed(2))
    x = normal(6, 5)
    net(x).square().sum().backward()
    with torch.no_grad():
        z, h = [], [x]
        for layer in net[::2]:
            z.append(layer(h[-1]))
            h.append(activation()(z[-1]))
        signal = 2 * z[-1] @ net[0].feedback
        for layer, above, zl, hl in zip(net[:-1:2], net[2::2], z[:-1], h[:-2], strict=True):
            delta = signal * (1 - zl.tanh() ** 2 if activation is nn.Tanh else zl > 0)
            close(layer.weight.grad, delta.T @ hl)
            close(layer.bias.grad, delta.sum(0))
            signal = delta @ above.weight.T
        close(net[-1].weight.grad, 2 * z[-1].T @ h[-2])
    assert len(rules.feedback_layers(net)) == depth + 1
    assert [m.feedback is not None for m in rules.feedback_layers(net).values()] == [True, *[False] * depth]


def test_indirect_feedback_passes_strides_where_it_cannot_pass_pooling() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Conv2d(2, 3, 2, stride=2, groups=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2),
    ).double()  # fmt: skip
    rules.convert(net, "ifa")
    x = normal(4, 1, 9, 9)
    net(x).square().sum().backward()
    with torch.no_grad():
        z1 = net[0](x)
        z2 = net[2](z1.relu())
        h3 = net[5](z2.relu().flatten(1)).tanh()
        delta1 = (2 * net[7](h3) @ net[0].feedback).reshape(z1.shape) * (z1 > 0)
        delta2 = F.conv2d(delta1, net[2].weight, stride=2) * (z2 > 0)
        delta3 = delta2.flatten(1) @ net[5].weight.T * (1 - h3**2)
    close(net[0].bias.grad, delta1.sum((0, 2, 3)))
    close(net[2].bias.grad, delta2.sum((0, 2, 3)))
    close(net[5].weight.grad, delta3.T @ z2.relu().flatten(1))


def test_indirect_feedback_comes_from_the_last_layer_that_reaches_the_input() -> None:
    """Around a skip connection: from the layer that it leads around."""
    net = rules.convert(Residual(), "ifa")
    x = normal(4, 6)
    net(x).square().sum().backward()
    with torch.no_grad():
        za = net.a(x)
        zb = net.b(za.relu())
        hb = za.relu() + zb.relu()
        zc = net.c(hb)
        e = 2 * net.out(hb + zc.relu())
        delta_a = e @ net.a.feedback * (za > 0)
        delta_b = delta_a @ net.b.weight.T * (zb > 0)
        delta_c = delta_b @ net.c.weight.T * (zc > 0)
    close(net.b.weight.grad, delta_b.T @ za.relu())
    close(net.c.weight.grad, delta_c.T @ hb)


def test_indirect_feedback_goes_forward_through_a_convolution() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 2, stride=2, padding=1, padding_mode="circular")
    net: Any = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding="same"), nn.Tanh(), conv, nn.Tanh(), nn.Flatten(), nn.Linear(27, 2)
    ).double()
    rules.convert(net, "ifa")
    x = normal(4, 1, 4, 4)
    net(x).square().sum().backward()
    with torch.no_grad():
        h1 = net[0](x).tanh()
        h2 = net[2](h1).tanh()
        e = 2 * net[5](h2.flatten(1))
        delta1 = (e @ net[0].feedback).reshape(h1.shape) * (1 - h1**2)
        forward = F.conv2d(F.pad(delta1, (1, 1, 1, 1), mode="circular"), conv.weight, stride=2)
        delta2 = forward * (1 - h2**2)
    close(net[2].bias.grad, delta2.sum((0, 2, 3)))
    close(net[0].bias.grad, delta1.sum((0, 2, 3)))


def test_indirect_feedback_cannot_pass_pooling_and_says_so() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    rules.convert(net, "ifa")
    with pytest.raises(RuntimeError, match=r"ifa: a signal of shape \(2, 2, 4, 4\) meets the input.*use dfa"):
        net(torch.ones(2, 1, 6, 6)).sum().backward()


def test_indirect_feedback_works_under_autocast() -> None:
    net = rules.convert(mlp((8, 8, 8, 4)).float(), "ifa")
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(torch.ones(4, 8)).square().mean()
    loss.backward()
    assert net[2].weight.grad.norm() > 0


# --- what cannot work says so -----------------------------------------------------------------------------------------


@over_direct
def test_a_normalisation_that_no_signal_passes_is_an_error_that_names_it(rule: RuleCase) -> None:
    net = rule.convert(nn.Sequential(nn.LayerNorm(5), *mlp()).double())
    with pytest.raises(RuntimeError, match=r"sends no error to 0\.weight, 0\.bias: .*freeze it"):
        net(normal(2, 5))
    net[0].requires_grad_(False)
    net(normal(2, 5)).sum().backward()
    assert net[1].weight.grad.norm() > 0


def test_one_module_on_both_ways_around_a_skip_connection_is_an_error() -> None:
    class Ambiguous(SharedPReLU):
        def forward(self, x: Tensor) -> Any:
            h = self.act(self.a(x))
            return self.out(h + self.act(self.b(h)))

    with pytest.raises(RuntimeError, match=r"cannot separate the uses of act\.weight.*module of its own"):
        rules.convert(Ambiguous(), "dfa")(normal(4, 6))


def test_a_parameter_that_the_output_does_not_depend_on_is_no_error() -> None:
    class Unused(NormAfterOutput):
        def forward(self, x: Tensor) -> Any:
            self.seen = self.b(self.top(self.out(x)).repeat(1, 3))
            return self.out(torch.tanh(self.a(x)))

    net = rules.convert(Unused(), "dfa")
    net(normal(4, 6)).square().sum().backward()
    assert net.top.weight.grad is None
    assert net.b.weight.grad is None
    h = net.a(normal(4, 6)).detach().tanh()
    close(net.out.weight.grad, 2 * net.out(h).detach().T @ h)


def test_a_branch_that_leads_nowhere_carries_no_signal() -> None:
    """Here the first layer that meets the hidden activation is one that the output does not depend on."""

    class Probed(Plain):
        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.a(x))
            self.seen = self.c(h.square())
            return self.out(F.relu(self.b(h)))

    net = rules.convert(Probed(), "dfa")
    x = normal(4, 6)
    e = 2 * net(x).detach()
    net(x).square().sum().backward()
    assert net.c.weight.grad is None
    close(net.a.bias.grad, (e @ net.a.feedback * (net.a(x) > 0)).sum(0))


@over_direct
def test_a_layer_called_past_its_model_is_an_error_and_no_silence(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    h = net[1](net[0](normal(4, 5)))
    with pytest.raises(RuntimeError, match="call the converted model itself"):
        h.sum().backward()
    net(normal(4, 5)).sum().backward()
    assert net[0].weight.grad.norm() > 0


@over_direct
def test_a_model_that_returns_several_tensors_is_an_error(rule: RuleCase) -> None:
    class Pair(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    net = rule.convert(Pair())
    with pytest.raises(TypeError, match="returns one tensor, this one returns tuple: concatenate"):
        net(normal(4, 6))
    with torch.no_grad():
        assert len(net(normal(4, 6))) == 2


@over_direct
def test_a_forward_pass_that_fails_does_not_spoil_the_next(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    twin = copy.deepcopy(net)
    with pytest.raises(RuntimeError):
        net[2](net[0](normal(4, 5))[:, :2])
    with pytest.raises(RuntimeError):
        net(normal(4, 3))
    for model in (net, twin):
        model(normal(4, 5)).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("rule", ["dfa", "ifa"])
@pytest.mark.parametrize("last", [nn.LogSoftmax(-1), nn.Softmax(-1), nn.Sigmoid(), nn.Tanh()], ids=str)
def test_a_model_whose_error_is_not_that_of_its_logits_is_told_once(rule: str, last: nn.Module) -> None:
    net = rules.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), last), rule)
    with pytest.warns(UserWarning, match=f"^{rule}: the model ends in a {type(last).__name__}, .*at logits"):
        net(torch.ones(5, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(torch.ones(5, 4))
        rules.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), rule)(torch.ones(5, 4))
        rules.convert(nn.Sequential(nn.Linear(4, 2), last), rule)(torch.ones(5, 4))  # nothing hidden


@over_direct
def test_an_output_without_gradient_is_left_alone(rule: RuleCase) -> None:
    class Choice(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).argmax(-1)

    assert rule.convert(Choice())(normal(4, 6)).shape == (4,)


def test_a_loss_on_a_hidden_activation_acts_on_the_layer_that_made_it() -> None:
    def step(penalty: float) -> dict[str, Any]:
        net = rules.convert(Plain(), "dfa", generator=torch.Generator().manual_seed(0))
        kept: list[Tensor] = []
        net.b.register_forward_hook(lambda m, i, out: kept.append(out))
        output = net(normal(4, 6))
        (output.square().sum() + penalty * kept[0].square().sum() / 2).backward()
        return {**gradients(net), "z": kept[0].detach()}

    bare, penalised = step(0), step(3)
    for name, gradient in bare.items():
        if name == "b.bias":
            close(penalised[name], gradient + 3 * bare["z"].sum(0))
        elif name != "b.weight":
            close(penalised[name], gradient)


def test_a_delivered_signal_is_not_delivered_again() -> None:
    """A second backward pass from a hidden activation alone brings its own error, not the output's old one."""
    net = rules.convert(Plain(), "dfa")
    kept: list[Tensor] = []
    net.b.register_forward_hook(lambda m, i, out: kept.append(out))
    net(normal(4, 6)).square().sum().backward(retain_graph=True)
    net.zero_grad()
    kept[0].sum().backward()
    close(net.b.bias.grad, torch.full((6,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_signals_that_flow_down_by_themselves_are_those_taken_one_by_one(
    make: type[Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(*make.shape)
    found = []
    for flows in (True, False):
        if not flows:
            monkeypatch.setattr(direct, "_can_flow", lambda call: False)
        net = rules.convert(make(), "dfa", generator=torch.Generator().manual_seed(1))
        net(x).square().sum().backward()
        found.append(gradients(net))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        close(found[0][name], found[1][name])


def test_a_plain_chain_needs_no_backward_pass_within_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = rules.convert(mlp(), "dfa")
    loss = net(normal(4, 5)).square().sum()
    monkeypatch.delattr(torch.autograd, "grad")  # what signals are taken with that do not flow by themselves
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_an_input_or_a_parameter_from_elsewhere_gets_nothing_of_a_signal() -> None:
    shift, x = torch.ones(6, dtype=torch.float64, requires_grad=True), normal(4, 6).requires_grad_()

    class Shifted(Net):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(torch.tanh(self.a(x)) * shift + x)
            return y

    rules.convert(net := Shifted(), "dfa")
    net(x).sum().backward()
    assert net.a.weight.grad is not None
    assert x.grad is None
    assert shift.grad is None


@pytest.mark.parametrize("flows", [True, False])
def test_a_pass_cut_short_leaves_no_signal_for_the_next(flows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not flows:  # signals are taken to their layers one by one
        monkeypatch.setattr(direct, "_can_flow", lambda call: False)

    class Inner(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.held = torch.tanh(self.b(torch.tanh(self.a(x))))
            y: Tensor = self.out(self.held)
            return y

    net = rules.convert(Inner(), "dfa")
    loss = net(normal(4, 6)).square().sum()
    torch.autograd.grad(loss, [net.out.weight], retain_graph=True)  # reaches neither a nor b
    net.held.sum().backward()  # a loss on b's output is b's alone
    assert net.a.weight.grad is None or not net.a.weight.grad.any()
    found = net.b.weight.grad
    net.zero_grad()
    net(normal(4, 6))
    net.held.sum().backward()
    close(found, net.b.weight.grad)


def test_a_hook_on_a_hidden_tensor_sees_its_signal_once() -> None:
    net = rules.convert(Residual(), "dfa")
    seen: dict[str, list[Tensor]] = {name: [] for name in rules.feedback_layers(net)}

    def watch(name: str) -> Callable[..., None]:
        def keep(signal: Tensor | None) -> None:
            if signal is not None:
                seen[name].append(signal)

        def attach(m: nn.Module, inputs: Any, output: Tensor) -> None:
            output.register_hook(keep)

        return attach

    for name, m in rules.feedback_layers(net).items():
        m.register_forward_hook(watch(name))
    net(normal(4, 6)).square().sum().backward()
    for name, signals in seen.items():
        assert len(signals) == 1
        close(net.get_submodule(name).bias.grad, signals[0].sum(0))  # type: ignore[arg-type]


# --- training loops ---------------------------------------------------------------------------------------------------


def _checkpointed(net: nn.Module, reentrant: bool) -> nn.Module:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Any:
            h = checkpoint(nn.Sequential(*net[:2]), x, use_reentrant=reentrant)  # type: ignore[index]
            return checkpoint(nn.Sequential(*net[2:]), h, use_reentrant=reentrant)  # type: ignore[index]

    return Outer()


@over_direct
def test_checkpointing_changes_nothing(rule: RuleCase) -> None:
    net: Any = mlp()
    outer: Any = _checkpointed(mlp(), reentrant=False)
    for model in (net, outer):
        rule.convert(model)
        model(normal(4, 5)).square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), outer.parameters(), strict=True))


@over_direct
def test_reentrant_checkpointing_is_an_error_and_no_silence(rule: RuleCase) -> None:
    outer = rule.convert(_checkpointed(mlp(), reentrant=True))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        outer(normal(4, 5).requires_grad_()).square().sum().backward()


def test_a_converted_model_may_feed_another_or_itself() -> None:
    lower, upper = mlp((5, 4, 5)), mlp((5, 4, 5))
    rules.convert(lower, "dfa")
    rules.convert(upper, "dfa")
    upper(lower(normal(4, 5))).sum().backward()
    assert upper[0].weight.grad.norm() > 0
    assert not any(
        p.grad is not None for p in lower.parameters()
    )  # a direct rule sends nothing below its model
    lower(lower(normal(4, 5))).sum().backward()
    assert lower[0].weight.grad.norm() > 0


def test_a_signal_passes_functions_that_fill_in_zeros() -> None:
    """A nonlinearity of the user's own, whose backward pass sees zeros where the chain brings nothing."""

    class Surrogate(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.save_for_backward(z)
            return (z > 0).to(z)

        @staticmethod
        def backward(ctx: Any, *signals: Tensor) -> Tensor:
            slope: Tensor = (1 + ctx.saved_tensors[0].abs()) ** -2
            return signals[0] * slope

    class Spiking(nn.Module):
        def forward(self, z: Tensor) -> Any:
            return Surrogate.apply(z)

    net = rules.convert(mlp(activation=Spiking), "dfa")
    x = normal(4, 5)
    net(x).square().sum().backward()
    z1 = net[0](x).detach()
    e = 2 * net(x).detach()
    close(net[0].bias.grad, (e @ net[0].feedback / (1 + z1.abs()) ** 2).sum(0))


def test_direct_feedback_learns() -> None:
    """A net that has to use its hidden layers: xor."""
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    y = torch.tensor([[0], [1], [1], [0]], dtype=torch.float64)
    for rule in ("dfa", "ifa"):
        net = rules.convert(mlp((2, 16, 16, 1)), rule, generator=torch.Generator().manual_seed(0))
        train(net, torch.optim.Adam(net.parameters(), lr=0.03), [(x, y)] * 120)
        assert F.mse_loss(net(x), y) < 0.01


@over_direct
def test_an_output_of_one_number_a_sample_keeps_the_samples_apart(rule: RuleCase) -> None:
    flat, column = (
        rule.convert(nn.Sequential(*mlp((5, 4, 3, 1)), nn.Flatten(0))),
        rule.convert(mlp((5, 4, 3, 1))),
    )
    x, y = normal(8, 5), normal(8, seed=2)
    F.mse_loss(flat(x), y).backward()
    F.mse_loss(column(x), y[:, None]).backward()
    assert flat[0].feedback.shape == (1, 4)
    for one, other in zip(flat.parameters(), column.parameters(), strict=True):
        close(one.grad, other.grad)
    flat(x[:3])  # a batch of another size is no other output


@over_direct
def test_a_model_that_returns_its_loss_has_no_error_of_a_sample(rule: RuleCase) -> None:
    class Loss(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.square().mean()

    net = rule.convert(nn.Sequential(*mlp(), Loss()))
    with pytest.raises(ValueError, match="batch dimension"):
        net(normal(8, 5))
