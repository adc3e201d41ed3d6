"""Recurrent cells and attention: modules that hold several maps, each of which becomes a layer with feedback."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import (
    ALL_RULES,
    HOSTS,
    LAYERWISE,
    HostCase,
    RuleCase,
    as_it_is,
    close,
    gradients,
    normal,
    suit_signs,
)
from torch import Tensor, nn

from alignlab import rules
from alignlab.rules.convertible import CONVERTIBLE
from alignlab.rules.hosts import FeedbackHost, HostedLinear

over_layerwise = pytest.mark.parametrize("rule", LAYERWISE, ids=str)
over_rules = pytest.mark.parametrize("rule", ALL_RULES, ids=str)
over_hosts = pytest.mark.parametrize("case", HOSTS, ids=str)
CELLS = [case for case in HOSTS if case.width == 3]


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    output = model(x)
    output.backward(normal(*output.shape, seed=7))
    return output.detach(), gradients(model)


def assert_same(got: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    """Feedback that learns has gradients beside."""
    assert [name for name in got if not name.endswith("feedback")] == list(expected)
    for name, gradient in expected.items():
        close(got[name], gradient)


def hosts(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, FeedbackHost)]


def plain_hosts(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.rnn.RNNCellBase | nn.MultiheadAttention)]


@over_layerwise
@over_hosts
def test_feedback_equal_to_the_weights_gives_backprop(case: HostCase, rule: RuleCase) -> None:
    net = case.build()
    for holder in rules.feedback_layers(rules.convert(copy.deepcopy(net), "bp")):
        host, _, name = holder.rpartition(".")
        module = net.get_submodule(host)
        if isinstance(module, nn.modules.rnn.RNNCellBase):
            _suit(rule, getattr(module, f"weight_{name}"))
        elif name == "in_proj":
            _suit(rule, module.in_proj_weight)
        else:
            suit_signs(rule, net.get_submodule(holder))
    plain = copy.deepcopy(net)
    rule.convert(net, init=as_it_is)
    expected, got = run(plain, case.input()), run(net, case.input())
    close(got[0], expected[0])
    assert_same(got[1], expected[1])


def _suit(rule: RuleCase, weight: Tensor) -> None:
    holder = nn.Linear(1, 1)
    holder.weight = weight  # type: ignore[assignment]
    suit_signs(rule, holder)


@over_hosts
def test_other_feedback_gives_other_gradients_below(case: HostCase) -> None:
    """The law above would hold for a conversion that changes nothing. Each map's B has a part in what is learnt."""
    found = []
    for scaled in [None, *rules.feedback_layers(rules.convert(case.build(), "fa"))]:
        net = rules.convert(case.build(), "fa", generator=torch.Generator().manual_seed(0))
        if scaled is not None:
            rules.feedback_layers(net)[scaled].feedback.mul_(-2)
        found.append((scaled, run(net, case.input())[1]))
    first = found[0][1]
    for name, got in found[1:]:
        differ = [n for n, g in got.items() if g is not None and not torch.equal(g, first[n])]  # type: ignore[arg-type]
        nothing_below = name in ("cell.ih", "first.in_proj", "0")
        assert bool(differ) != nothing_below, name


@over_hosts
@over_rules
def test_no_rule_changes_the_forward_value(case: HostCase, rule: RuleCase) -> None:
    net, x = case.build(), case.input()
    expected = net(x).detach()
    rule.convert(net)
    close(net(x).detach(), expected)
    for inference in (torch.no_grad, torch.inference_mode):
        with inference():
            close(net.eval()(x), expected)
            close(net.train()(x), expected)


@over_hosts
def test_names_parameters_and_checkpoints_stay_those_of_the_plain_model(case: HostCase) -> None:
    net, plain = rules.convert(case.build(), "fa"), case.build()
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in plain.parameters())
    state, before = net.state_dict(), plain.state_dict()
    assert set(before) <= set(state)
    added = set(state) - set(before)
    assert {name.rpartition(".")[2] for name in added} == {"feedback", "_extra_state"}
    plain.load_state_dict({n: v for n, v in state.items() if n in before})
    for m in plain_hosts(net):
        assert type(m) in CONVERTIBLE.values()


@over_rules
@over_hosts
def test_revert_undoes_convert(case: HostCase, rule: RuleCase) -> None:
    net = case.build()
    before = _snapshot(net)
    rule.convert(net)
    if not rule.direct:
        run(net, case.input())
    assert _snapshot(net) != before
    net.zero_grad()
    assert _snapshot(rules.revert(net)) == before


def _snapshot(model: nn.Module) -> Any:
    return (
        [(name, type(m), sorted(vars(m)), sorted(m._buffers)) for name, m in model.named_modules()],
        [(name, id(p)) for name, p in model.named_parameters()],
        list(model.state_dict()),
    )


@over_hosts
def test_an_initialisation_that_fails_midway_leaves_the_model_as_it_was(case: HostCase) -> None:
    names = list(rules.feedback_layers(rules.convert(case.build(), "bp")))
    for fails_at in range(len(names)):
        calls = iter(range(len(names)))

        def fails(
            like: Tensor, generator: torch.Generator, calls: Any = calls, fails_at: int = fails_at
        ) -> Tensor:
            return torch.zeros(7) if next(calls) == fails_at else like

        net = case.build()
        before = _snapshot(net)
        with pytest.raises(ValueError, match=r"returned \(7,\)"):
            rules.convert(net, "fa", init=fails)
        assert _snapshot(net) == before


@pytest.mark.parametrize("way", ["state_dict", "assign", "deepcopy", "pickle"])
@pytest.mark.parametrize("rule", ["fa", "brsf", "sign_sync"])
@pytest.mark.parametrize("case", [HOSTS[0], HOSTS[4], HOSTS[8]], ids=str)
def test_a_run_goes_on_after_it_was_saved_or_copied(case: HostCase, rule: str, way: str) -> None:
    arguments: dict[str, Any] = {"period": 3} if rule == "sign_sync" else {}

    def start(seed: int) -> Any:
        return rules.convert(
            case.build(seed), rule, generator=torch.Generator().manual_seed(seed), **arguments
        )

    def train(net: Any, steps: range) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in steps:
            optimizer.zero_grad()
            net(case.input(seed=20 + step)).square().mean().backward()
            optimizer.step()

    whole = start(0)
    train(whole, range(4))
    if way == "deepcopy":
        twin = copy.deepcopy(whole)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(whole))
    else:
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        twin = start(5)
        twin.load_state_dict(torch.load(file, weights_only=True), assign=way == "assign")
        if way == "assign" and case.label == "transformer-tied":
            twin.out.weight = twin.table.weight  # a checkpoint that is assigned unties plain models too
    train(whole, range(4, 8))
    train(twin, range(4, 8))
    for (name, p), q in zip(whole.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name
    first, second = rules.feedback_layers(whole), rules.feedback_layers(twin)
    assert all(torch.equal(first[n].feedback, second[n].feedback) for n in first)  # type: ignore[arg-type]
    assert not any(a is b for a, b in zip(whole.parameters(), twin.parameters(), strict=True))


@over_hosts
def test_children_share_the_hosts_parameters_whatever_is_done_to_them(case: HostCase) -> None:
    def check(net: nn.Module) -> None:
        for host in hosts(net):
            for name, parameters in host.maps.items():
                child = host._modules[name]
                assert isinstance(child, HostedLinear)
                assert [child.weight, child.bias][0] is getattr(host, parameters[0])
                assert child.bias is getattr(host, parameters[1])

    net = rules.convert(case.build(), "fa")
    check(net)
    check(copy.deepcopy(net))
    check(pickle.loads(pickle.dumps(net)))
    before = [id(p) for p in net.parameters()]
    net.float().bfloat16()
    check(net)
    assert [id(p) for p in net.parameters()] == before
    assert all(m.feedback.dtype == torch.bfloat16 for m in rules.feedback_layers(net).values())
    check(rules.convert(case.build(), "fa").to("meta"))


@over_hosts
def test_a_feedback_that_learns_follows_to_another_dtype(case: HostCase) -> None:
    net, x = rules.convert(case.build(), "kolen_pollack").float(), case.input().float()
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    names = [name for name, _ in net.named_parameters()]
    net(x).square().mean().backward()
    learning = [m for m in rules.feedback_layers(net).values() if m.feedback.grad is not None]
    assert learning
    assert all(m.feedback.grad.dtype == torch.float32 for m in learning)
    assert names == [name for name, _ in rules.convert(case.build(), "kolen_pollack").named_parameters()]


@pytest.mark.parametrize("case", [HOSTS[0], HOSTS[4]], ids=str)
def test_a_replaced_parameter_is_followed(case: HostCase) -> None:
    net = rules.convert(case.build(), "fa")
    host = hosts(net)[0]
    weight, _ = next(iter(host.maps.values()))
    setattr(host, weight, nn.Parameter(getattr(host, weight).detach() * 2))
    run(net, case.input())
    assert getattr(host, weight).grad.norm() > 0


def test_a_weight_reparametrised_after_conversion_is_an_error() -> None:
    net = rules.convert(HOSTS[0].build(), "fa")
    nn.utils.parametrizations.weight_norm(net.cell, "weight_hh")
    with pytest.raises(RuntimeError, match=r"weight_hh of a .*RNNCell is made anew"):
        net(HOSTS[0].input())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@over_hosts
def test_signals_have_the_models_dtype(case: HostCase, dtype: torch.dtype) -> None:
    net = rules.convert(case.build().to(dtype), "fa")
    plain = case.build().to(dtype)
    x = case.input().to(dtype)
    output = net(x)
    output.sum().backward()
    assert output.dtype == dtype
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(output, plain(x), rtol=tolerance, atol=tolerance)
    for p in net.parameters():
        assert p.grad is not None
        assert p.grad.dtype == dtype
        assert p.grad.isfinite().all()


@over_hosts
def test_autocast_gives_plain_autocasts_gradients_under_backprop(case: HostCase) -> None:
    plain = case.build().float()
    net = rules.convert(copy.deepcopy(plain), "bp")
    found = []
    for model in (plain, net):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(case.input().float())
        output.float().square().mean().backward()
        found.append((output.dtype, gradients(model)))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=0.1, atol=3e-2)


# --- cells ------------------------------------------------------------------------------------------------------------


def test_a_cell_unrolled_over_three_steps_learns_by_hand() -> None:
    """Feedback alignment through time: δ_t = (δ_{t+1} B_hh) ∘ f'(z_t), from δ_3 = (e B_out) ∘ f'(z_3)."""
    net, x = rules.convert(HOSTS[0].build(), "fa"), normal(5, 3, 3)
    error = normal(5, 2, seed=7)
    net(x).backward(error)
    cell = net.cell
    W_ih, W_hh, b = cell.weight_ih.detach(), cell.weight_hh.detach(), (cell.bias_ih + cell.bias_hh).detach()
    h = [torch.zeros(5, 4, dtype=torch.float64)]
    for t in range(3):
        h.append((x[:, t] @ W_ih.T + h[-1] @ W_hh.T + b).tanh())
    delta = [error @ net.out.feedback * (1 - h[3] ** 2)]
    for t in (2, 1):
        delta.insert(0, delta[0] @ cell.hh.feedback * (1 - h[t] ** 2))
    close(cell.weight_ih.grad, sum(d.T @ x[:, t] for t, d in enumerate(delta)))
    close(cell.weight_hh.grad, sum(d.T @ h[t] for t, d in enumerate(delta)))
    close(cell.bias_ih.grad, sum(d.sum(0) for d in delta))
    close(cell.bias_hh.grad, cell.bias_ih.grad)
    close(net.out.weight.grad, error.T @ h[3])


def test_the_input_of_a_cell_gets_its_errors_through_the_input_map() -> None:
    cell, x = rules.convert(nn.RNNCell(3, 4).double(), "fa"), normal(5, 3).requires_grad_()
    h = cell(x)
    error = normal(5, 4, seed=7)
    h.backward(error)
    close(x.grad, error * (1 - h.detach() ** 2) @ cell.ih.feedback)


def test_direct_errors_reach_a_cell_at_every_step() -> None:
    """By hand: each of the two maps has a B, and each step's error is (e B) ∘ f'(z_t); the last feeds the readout."""
    net, x, error = rules.convert(HOSTS[0].build(), "dfa"), normal(5, 3, 3), normal(5, 2, seed=7)
    net(x).backward(error)
    h: list[Any] = [torch.zeros(5, 4, dtype=torch.float64)]
    for t in range(3):
        h.append(net.cell(x[:, t], h[-1]).detach())
    deltas = {m: [error @ getattr(net.cell, m).feedback * (1 - a**2) for a in h[1:]] for m in ("ih", "hh")}
    close(net.cell.weight_ih.grad, sum(d.T @ x[:, t] for t, d in enumerate(deltas["ih"])))
    close(net.cell.weight_hh.grad, sum(d.T @ h[t] for t, d in enumerate(deltas["hh"])))


@pytest.mark.parametrize("case", CELLS, ids=str)
def test_a_cell_takes_one_sample(case: HostCase) -> None:
    cell = case.build().cell
    plain = copy.deepcopy(cell)
    rules.convert(cell, "fa")
    x = normal(3)
    a, b = cell(x), plain(x)
    for got, expected in zip((a, b), (b, a), strict=True):
        assert isinstance(got, tuple) == isinstance(expected, tuple)
    a, b = (y if isinstance(y, tuple) else (y,) for y in (cell(x, a), plain(x, b)))
    for got, expected in zip(a, b, strict=True):
        close(got.detach(), expected.detach())


@pytest.mark.parametrize("case", CELLS, ids=str)
def test_a_state_that_does_not_fit_is_an_error(case: HostCase) -> None:
    cell = rules.convert(case.build().cell, "fa")
    state: Any = normal(4)
    state = (state, state) if isinstance(cell, nn.LSTMCell) else state
    with pytest.raises(ValueError, match=r"the input is \(2, 3\) with a state of \(4,\)"):
        cell(normal(2, 3), state)
    with pytest.raises(ValueError, match=r"the input is \(1, 2, 3\)"):
        cell(normal(1, 2, 3))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_whole_sequences_are_refused_with_a_hint_to_the_cells(kind: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match=rf"0: {kind.__name__} \(.*loop over nn\.RNNCell, nn\.GRUCell"):
        rules.convert(nn.Sequential(kind(3, 4), nn.Linear(4, 2)), "fa")


# --- attention --------------------------------------------------------------------------------------------------------


def test_keys_of_another_width_are_refused() -> None:
    net = nn.ModuleList([nn.MultiheadAttention(4, 2, kdim=3), nn.Linear(2, 2)])
    with pytest.raises(TypeError, match=r"0: MultiheadAttention \(kdim and vdim must be embed_dim\)"):
        rules.convert(net, "fa")
    assert type(net[0]) is nn.MultiheadAttention
    assert type(net[1]) is nn.Linear


MASKS = ["none", "bool", "float", "causal", "padding", "padding-causal", "both"]


def _masks(kind: str, n: int, L: int, S: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "causal" in kind:
        found |= {"attn_mask": torch.ones(L, S).triu(1).bool(), "is_causal": True}
    if kind in ("bool", "both"):
        found["attn_mask"] = torch.ones(L, S).triu(2).bool()
    if kind == "float":
        found["attn_mask"] = normal(2 * n, L, S, seed=9)
    if kind.startswith("padding") or kind == "both":
        padded = torch.zeros(n, S, dtype=torch.bool)
        padded[0, -1] = True
        found["key_padding_mask"] = padded
    return found


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("extended", [False, True])
def test_attention_computes_what_the_plain_module_does(
    mask: str, batch_first: bool, need_weights: bool, extended: bool
) -> None:
    """Values, weights and gradients under B = W, dropout included: to itself, to a memory, and with three inputs."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(
        4, 2, dropout=0.3, batch_first=batch_first, add_bias_kv=extended, add_zero_attn=extended
    ).double()
    net = rules.convert(copy.deepcopy(plain), "fa", init=as_it_is)
    for inputs, S in ((1, 3), (2, 5), (3, 5)):
        shapes = [(2, 3, 4), (2, S, 4), (2, S, 4)]
        x = [normal(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)][:inputs]
        args = [x[0], x[min(1, inputs - 1)], x[-1]]
        if not batch_first:
            turned = {id(t): t.transpose(0, 1) for t in x}
            args = [turned[id(t)] for t in args]
        found = []
        for model in (plain, net):
            torch.manual_seed(1)
            output, weights = model(*args, need_weights=need_weights, **_masks(mask, 2, 3, S))
            assert (weights is not None) == need_weights
            loss = output.square().sum() + (0 if weights is None else weights.square().sum())
            found.append([output, weights, *torch.autograd.grad(loss, [*x, *model.parameters()])])
        for a, b in zip(*found, strict=True):
            close(a, b)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_drops_nothing_in_evaluation(need_weights: bool) -> None:
    plain = nn.MultiheadAttention(4, 2, dropout=0.5).double().eval()
    net, x = rules.convert(copy.deepcopy(plain), "fa"), normal(3, 2, 4)
    for a, b in zip(
        net(x, x, x, need_weights=need_weights), plain(x, x, x, need_weights=need_weights), strict=True
    ):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_takes_one_sample(need_weights: bool) -> None:
    plain = nn.MultiheadAttention(4, 2).double()
    net = rules.convert(copy.deepcopy(plain), "fa")
    x, memory, padded = normal(3, 4), normal(5, 4), torch.tensor([False] * 4 + [True])
    settings = {"key_padding_mask": padded, "average_attn_weights": False, "need_weights": need_weights}
    for a, b in zip(net(x, memory, memory, **settings), plain(x, memory, memory, **settings), strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"key_padding_mask": torch.zeros(3, 1, dtype=torch.bool)}, "key_padding_mask"),
        ({"attn_mask": torch.zeros(1, 4)}, "attn_mask"),
        ({"is_causal": True}, "is_causal"),
        ({"key": torch.zeros(1, 4, 4)}, "key"),
        ({"value": torch.zeros(3, 3, 4)}, "value"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(wrong: dict[str, Any], named: str) -> None:
    net = rules.convert(nn.MultiheadAttention(4, 2, batch_first=True), "fa")
    x = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match=f"attention: {named}"):
        net(**{"query": x, "key": wrong.get("key", x), "value": x, **wrong})


def test_products_are_as_few_as_the_inputs_allow() -> None:
    """Keys and values of one memory share a product, and no row of the weight is used that is not asked for."""
    net = rules.convert(nn.MultiheadAttention(4, 2).double(), "fa")
    x, memory = normal(3, 2, 4), normal(5, 2, 4)
    seen: list[Tensor] = []
    net.in_proj.register_forward_hook(lambda m, args, z: seen.append(z))
    net(x, memory, memory)[0].sum().backward()
    assert [tuple(z.shape) for z in seen] == [(3, 2, 12), (5, 2, 12)]
    assert not seen[0][..., 4:].any()
    assert not seen[1][..., :4].any()
    seen.clear()
    net(x, x, x)
    assert len(seen) == 1


def test_the_errors_at_the_projections_are_those_by_hand() -> None:
    """One head, one query: δ at out_proj is the error, at its input error B_out; in_proj's input gets δ_in B_in."""
    net, x = rules.convert(nn.MultiheadAttention(3, 1).double(), "fa"), normal(1, 1, 3).requires_grad_()
    error = normal(1, 1, 3, seed=7)
    net(x, x, x)[0].backward(error)
    # with one key the weights are 1 whatever q and k are: the value alone carries an error
    delta_v = error[0] @ net.out_proj.feedback
    close(
        net.in_proj_weight.grad,
        torch.cat([torch.zeros(6, 3, dtype=torch.float64), delta_v.T @ x.detach()[0]]),
    )
    close(x.grad, (delta_v @ net.in_proj.feedback[6:])[None])


def test_the_encoders_fast_path_stays_right() -> None:
    """In evaluation it reads the weights past all modules."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    plain = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    net = rules.convert(copy.deepcopy(plain), "fa")
    x, padded = (
        torch.randn(3, 4, 8),
        torch.tensor([[False] * 4, [False] * 3 + [True], [False] * 2 + [True] * 2]),
    )
    for mask in (None, padded):
        with torch.no_grad():
            torch.testing.assert_close(net(x, src_key_padding_mask=mask), plain(x, src_key_padding_mask=mask))
        slow = net(x, src_key_padding_mask=mask)
        assert slow.requires_grad
        keep = torch.ones(3, 4, dtype=torch.bool) if mask is None else ~mask
        torch.testing.assert_close(
            slow[keep], plain(x, src_key_padding_mask=mask)[keep], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("case", [HOSTS[6], HOSTS[7]], ids=str)
def test_direct_rules_teach_an_encoder(case: HostCase) -> None:
    net = rules.convert(case.build(), "dfa")
    run(net, case.input())
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.norm() > 0, name
    close(net[2].bias.grad, normal(3, 4, 2, seed=7).sum((0, 1)))
    assert all(m.feedback is None or m.feedback.shape[0] == 2 for m in rules.feedback_layers(net).values())


def test_direct_feedback_equal_to_the_readout_is_backprop_for_a_projection() -> None:
    """out_proj feeds the readout: B = W_out makes its error backprop's."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return self.out(self.attention(x, x, x)[0].tanh())

    torch.manual_seed(0)
    net = Net().double()
    plain = copy.deepcopy(net)
    out_in = net.out.weight.detach() @ torch.eye(4, dtype=torch.float64)
    rules.convert(net, "dfa", init=lambda like, generator: out_in)
    expected, got = run(plain, normal(3, 4, 4))[1], run(net, normal(3, 4, 4))[1]
    for name in ("attention.out_proj.weight", "attention.out_proj.bias", "out.weight"):
        close(got[name], expected[name])
    assert not torch.allclose(got["attention.in_proj_weight"], expected["attention.in_proj_weight"])  # type: ignore[arg-type]


# --- embeddings -------------------------------------------------------------------------------------------------------


@over_layerwise
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_stays_and_learns_from_the_signal_that_reaches_it(kind: Any, rule: RuleCase) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(kind(5, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    rule.convert(net)
    tokens = torch.tensor([[0, 2, 2], [3, 0, 1]])
    output = net(tokens)
    error = normal(*output.shape, seed=3)
    output.backward(error)
    assert type(net[0]) is kind
    below = error @ net[2].carrier().detach() * (1 - net[0](tokens).detach().tanh() ** 2)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for row, word in zip(tokens.tolist(), below, strict=True):
        for place, token in enumerate(row):
            expected[token] += word[place] if kind is nn.Embedding else word / 3
    close(net[0].weight.grad, expected)


def test_an_embedding_learns_from_the_direct_signal_that_passes_a_skip_connection() -> None:
    net = rules.convert(HOSTS[8].build(), "dfa")
    net.out.weight = nn.Parameter(net.out.weight.detach().clone())  # of its own
    run(net, HOSTS[8].input())
    assert net.table.weight.grad.norm() > 0


@pytest.mark.parametrize("rule", ["dfa", "ifa"])
def test_an_embedding_below_the_first_layer_has_to_be_frozen_under_a_direct_rule(rule: str) -> None:
    net = rules.convert(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), rule)
    with pytest.raises(RuntimeError, match=r"sends no error to 0\.weight.*freeze it"):
        net(torch.tensor([[0, 1]]))
    net[0].requires_grad_(False)
    net(torch.tensor([[0, 1]])).sum().backward()
    assert net[1].weight.grad.norm() > 0


def test_a_readout_tied_to_an_embedding_stays_tied() -> None:
    net = rules.convert(HOSTS[8].build(), "fa")
    assert net.out.weight is net.table.weight
    F.mse_loss(net(HOSTS[8].input()), normal(3, 3, 5)).backward()
    assert net.table.weight.grad.norm() > 0
    assert rules.revert(net).out.weight is net.table.weight


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_attentions_output_lies_in_memory_as_the_plain_ones_so_that_a_dropout_after_it_draws_the_same(
    batch_first: bool, need_weights: bool
) -> None:
    plain = nn.MultiheadAttention(4, 2, batch_first=batch_first)
    converted = rules.convert(copy.deepcopy(plain), "bp")
    x = torch.ones(3, 5, 4)
    strides = [net(x, x, x, need_weights=need_weights)[0].stride() for net in (plain, converted)]
    assert strides[0] == strides[1]


def test_a_converted_transformer_layer_draws_the_same_dropout() -> None:
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
    outputs = []
    for net in (plain, rules.convert(copy.deepcopy(plain), "bp")):
        torch.manual_seed(1)
        outputs.append(net(torch.ones(3, 5, 4)))
    torch.testing.assert_close(outputs[1], outputs[0])
