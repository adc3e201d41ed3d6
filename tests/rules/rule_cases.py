"""The lists that the laws of the rules are looped over: every rule, every kind of layer, and small nets for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab import rules


@dataclass(frozen=True)
class RuleCase:
    """A rule with its arguments; ``exponents``: by which power of a factor on every B each layer's gradient grows."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    exponents: tuple[int, int, int] = (2, 1, 0)

    def __str__(self) -> str:
        return "-".join((self.name, *(f"{k}={v}" for k, v in self.args.items())))

    @property
    def made(self) -> rules.Rule:
        return rules.make_rule(self.name, **self.args)

    @property
    def source(self) -> str:
        """The rule that makes B what it is, also where another rescales it."""
        return self.made.made_of[-1].name

    @property
    def direct(self) -> bool:
        return rules.RULES[self.name].direct

    @property
    def learns_feedback(self) -> bool:
        """Whether B is a parameter, which gets the gradient of W and has to be the optimizer's."""
        return rules.RULES[self.name].learns_feedback

    def convert(self, model: nn.Module, seed: int = 0, init: Any = None) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return rules.convert(model, self.name, init=init, generator=generator, **self.args)


ALL_RULES = [
    RuleCase("bp", exponents=(0, 0, 0)),
    RuleCase("fa"),
    RuleCase("dfa", exponents=(1, 1, 0)),
    RuleCase("ifa", exponents=(1, 1, 0)),
    RuleCase("usf"),
    RuleCase("brsf"),
    RuleCase("frsf"),
    RuleCase("sign_sync", {"period": 3}, exponents=(0, 0, 0)),
    RuleCase("sign_sync", {"period": 3, "preserve_magnitude": True}),
    RuleCase("rerandomised"),
    RuleCase("kolen_pollack"),
    RuleCase("weight_mirror", {"period": 2, "samples": 3}),
    RuleCase("weight_mirror", {"samples": 3, "growth_control": True}),
    RuleCase("rescaled", {"of": "fa"}, exponents=(0, 0, 0)),
    RuleCase("rescaled", {"of": "rerandomised"}, exponents=(0, 0, 0)),
    RuleCase("rescaled", {"of": {"rule": "weight_mirror", "period": 2, "samples": 3}}, exponents=(0, 0, 0)),
    RuleCase(
        "rescaled",
        {"of": {"rule": "sign_sync", "period": 3}, "direction": "weight", "scale": "rule"},
        exponents=(0, 0, 0),
    ),
    RuleCase("rescaled", {"of": "brsf", "direction": "weight", "scale": "rule"}),
]
TARGETED = [RuleCase("drtp")]  # which must have the error of a classification: tests of their own
WHOLE = [  # that take hold of the whole model: they have laws of their own
    RuleCase("node_perturbation"),
    RuleCase("node_perturbation", {"samples": 2, "antithetic": True}),
    RuleCase("weight_perturbation"),
    RuleCase("weight_perturbation", {"samples": 2, "antithetic": True}),
    RuleCase("soap"),
    RuleCase("soap", {"guide": "bp", "form": "plain"}),
    RuleCase("noisy_backprop"),
]
LAYERWISE = [case for case in ALL_RULES if not case.direct]
DIRECT = [case for case in ALL_RULES if case.direct]


@dataclass(frozen=True)
class LayerCase:
    """A kind of layer (in float64) with the shape of an input to it; ``below``: a plain layer that could feed it."""

    label: str
    make: Callable[[], Any]
    shape: tuple[int, ...]
    below: Callable[[], nn.Module]

    def __str__(self) -> str:
        return self.label

    @property
    def one_sample(self) -> bool:
        """Whether the input has no batch dimension."""
        return self.label == "linear-1d" or "unbatched" in self.label

    def build(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return self.make().double()

    def input(self, seed: int = 1) -> Tensor:
        return torch.randn(self.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _linear(
    label: str, shape: tuple[int, ...] = (4, 5), sizes: tuple[int, int] = (5, 3), **arguments: Any
) -> LayerCase:
    return LayerCase(
        label, lambda: nn.Linear(*sizes, **arguments), shape, lambda: nn.Linear(sizes[0], sizes[0])
    )


def _conv(
    label: str, shape: tuple[int, ...] = (3, 4, 6, 5), kind: type[nn.Module] = nn.Conv2d, **arguments: Any
) -> LayerCase:
    arguments = {"kernel_size": 3, **arguments}
    return LayerCase(label, lambda: kind(4, 6, **arguments), shape, _conv_below(shape, "unbatched" in label))


def _conv_below(shape: tuple[int, ...], one_sample: bool) -> Callable[[], nn.Module]:
    kinds: list[Any] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    kind = kinds[len(shape) - 2 - (not one_sample)]
    return lambda: kind(4, 4, 3, padding=1)


def _up(label: str, shape: tuple[int, ...] = (3, 4, 4, 3), **arguments: Any) -> LayerCase:
    return _conv(f"up-{label}", shape, nn.ConvTranspose2d, **arguments)


def _local(label: str, shape: tuple[int, ...] = (3, 4, 5, 4), **arguments: Any) -> LayerCase:
    arguments = {"input_size": shape[-2:], **arguments}
    return _conv(f"local-{label}", shape, rules.LocallyConnected2d, **arguments)


LINEAR_LAYERS = [
    _linear("linear"),
    _linear("linear-3d", (2, 4, 5)),
    _linear("linear-1d", (5,)),
    _linear("linear-no-bias", bias=False),
    _linear("linear-1x1", (4, 1), (1, 1)),
    _linear("linear-one-sample", (1, 5)),
]
CONV_LAYERS = [
    _conv("conv-plain"),
    _conv("conv-no-bias", bias=False),
    _conv("conv-1x1", kernel_size=1),
    _conv("conv-stride", stride=2),
    _conv("conv-stride-that-leaves-a-rest", stride=(2, 3), padding=1),
    _conv("conv-dilation", dilation=2, padding=2),
    _conv("conv-unequal-padding", padding=(2, 0)),
    _conv("conv-groups", groups=2, padding=1),
    _conv("conv-groups-stride-dilation", groups=2, padding=2, stride=2, dilation=2),
    _conv("conv-even-kernel", kernel_size=(2, 4), padding=1),
    _conv("conv-valid", padding="valid"),
    _conv("conv-same", padding="same"),
    _conv("conv-same-even-kernel", kernel_size=(2, 4), padding="same"),
    _conv("conv-same-dilation", kernel_size=(3, 2), padding="same", dilation=2, groups=2),
    *(
        _conv(f"conv-{mode}", padding=(1, 2), padding_mode=mode)
        for mode in ("reflect", "replicate", "circular")
    ),
    *(
        _conv(f"conv-{mode}-same-even-kernel", kernel_size=(2, 4), padding="same", padding_mode=mode)
        for mode in ("reflect", "replicate", "circular")
    ),
    _conv("conv-unbatched", shape=(4, 6, 5), padding=1),
    _conv("conv-unbatched-reflect", shape=(4, 6, 5), padding=1, padding_mode="reflect"),
    _conv("conv1d", (3, 4, 7), nn.Conv1d, groups=2, stride=2, dilation=2, padding=2),
    _conv("conv1d-circular", (3, 4, 7), nn.Conv1d, padding=2, padding_mode="circular", bias=False),
    _conv(
        "conv1d-same-even-kernel", (3, 4, 7), nn.Conv1d, kernel_size=4, padding="same", padding_mode="reflect"
    ),
    _conv("conv1d-unbatched", (4, 7), nn.Conv1d, padding=1, padding_mode="replicate"),
    _conv("conv3d", (2, 4, 3, 4, 3), nn.Conv3d, kernel_size=(1, 3, 2), groups=2, stride=(1, 2, 1), padding=1),
    _conv("conv3d-replicate", (2, 4, 3, 4, 3), nn.Conv3d, padding=(1, 0, 2), padding_mode="replicate"),
    _conv(
        "conv3d-reflect-same",
        (2, 4, 3, 4, 3),
        nn.Conv3d,
        kernel_size=(2, 3, 1),
        padding="same",
        padding_mode="reflect",
    ),
    _conv("conv3d-circular-unbatched", (4, 3, 4, 3), nn.Conv3d, padding=1, padding_mode="circular"),
]
UPWARD_LAYERS = [
    _up("plain"),
    _up("no-bias-1x1", kernel_size=1, bias=False),
    _up("stride", stride=(2, 3), padding=1, output_padding=(1, 2)),
    _up("groups-dilation", groups=2, dilation=(2, 1), padding=(0, 1), kernel_size=(2, 3)),
    _up("unbatched", shape=(4, 4, 3), stride=2, padding=1),
]
LOCAL_LAYERS = [
    _local("plain"),
    _local("no-bias-1x1", kernel_size=1, bias=False),
    _local("stride-padding", stride=(2, 1), padding=(1, 2)),
    _local("dilation", kernel_size=(2, 3), dilation=(2, 1), padding=1),
    _local("unbatched", shape=(4, 5, 4), padding=1),
]
ALL_LAYERS = LINEAR_LAYERS + CONV_LAYERS + UPWARD_LAYERS + LOCAL_LAYERS


class Recurrent(nn.Module):
    """A cell unrolled over the steps of (N, T, 3), and a readout of its last hidden state."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.out = cell, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Attentive(nn.Module):
    """A sequence of 4 features through attention to itself, then to another sequence, and a readout of every position."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        arguments = {"batch_first": True, **arguments}
        self.first = nn.MultiheadAttention(4, 2, **arguments)
        self.second = nn.MultiheadAttention(4, 2, **arguments)
        self.third = nn.MultiheadAttention(4, 2, **arguments)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        h, _ = self.first(x, x, x)
        other = h.narrow(int(self.first.batch_first), 0, 2).tanh()  # the first two positions
        h, weights = self.second(h, other, other, average_attn_weights=False)
        h, _ = self.third(h.tanh(), h, h.sin(), need_weights=False)
        return self.out(h) + weights.square().mean()


class Translator(nn.Module):
    """Tokens to tokens by nn.Transformer, whose embedding is tied to the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.out.weight = self.table.weight
        self.inner = nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        tokens = x[..., 0].abs().mul(10).long() % 5
        return self.out(self.inner(self.table(tokens), self.table(tokens[:, 1:])))


@dataclass(frozen=True)
class HostCase:
    """A small net around modules that hold several maps each; its input is (N, T, width)."""

    label: str
    make: Callable[[], nn.Module]
    width: int = 4

    def __str__(self) -> str:
        return self.label

    def build(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return self.make().double()

    def input(self, seed: int = 1) -> Tensor:
        return normal(3, 4, self.width, seed=seed)


def _encoder(**arguments: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, **arguments)
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))


HOSTS = [
    HostCase("rnn", lambda: Recurrent(nn.RNNCell(3, 4)), 3),
    HostCase("rnn-relu-no-bias", lambda: Recurrent(nn.RNNCell(3, 4, False, "relu")), 3),
    HostCase("gru", lambda: Recurrent(nn.GRUCell(3, 4)), 3),
    HostCase("lstm", lambda: Recurrent(nn.LSTMCell(3, 4)), 3),
    HostCase("attention", Attentive),
    HostCase(
        "attention-with-everything",
        lambda: Attentive(batch_first=False, bias=False, add_bias_kv=True, add_zero_attn=True),
    ),
    HostCase("encoder", _encoder),
    HostCase("encoder-norm-first", lambda: _encoder(norm_first=True)),
    HostCase("transformer-tied", Translator),
]


def _chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Flatten(), nn.LazyLinear(2))


KINDS: dict[
    str, tuple[Callable[[], nn.Module], tuple[int, ...]]
] = {  # a small net of each kind, and its input's shape
    "conv1d": (lambda: _chain(nn.Conv1d(2, 3, 3), nn.Conv1d(3, 2, 2)), (4, 2, 7)),
    "conv3d": (lambda: _chain(nn.Conv3d(1, 2, 2), nn.Conv3d(2, 2, 2)), (4, 1, 4, 4, 4)),
    "up": (lambda: _chain(nn.ConvTranspose2d(1, 2, 2), nn.ConvTranspose2d(2, 2, 2, stride=2)), (4, 1, 2, 2)),
    "untied": (
        lambda: _chain(
            rules.LocallyConnected2d(1, 2, kernel_size=3, input_size=5),
            rules.LocallyConnected2d(2, 2, kernel_size=2, input_size=3),
        ),
        (4, 1, 5, 5),
    ),
    "rnn": (lambda: Recurrent(nn.RNNCell(3, 4)), (4, 3, 3)),
    "gru": (lambda: Recurrent(nn.GRUCell(3, 4)), (4, 3, 3)),
    "lstm": (lambda: Recurrent(nn.LSTMCell(3, 4)), (4, 3, 3)),
    "transformer": (lambda: _encoder(), (4, 3, 4)),
}


def net_of_kind(kind: str, seed: int = 0) -> tuple[Any, Tensor]:
    """A plain net of this kind in float64, and an input."""
    make, shape = KINDS[kind]
    torch.manual_seed(seed)
    net, x = make().double(), normal(*shape)
    net(x)  # gives its lazy readout a size
    return net, x


def as_it_is(like: Tensor, generator: torch.Generator) -> Tensor:
    """The initialisation that makes B = W."""
    return like


def suit_signs(rule: RuleCase, layer: Any) -> None:
    """Give a layer weights that the rule's B can equal: of one magnitude for rules that know only signs."""
    magnitude = {"usf": 0.25, "sign_sync": 1.0}.get(rule.source)
    if magnitude is not None and "preserve_magnitude" not in rule.args:
        with torch.no_grad():
            layer.weight.copy_(layer.weight.sign() * magnitude)


def mlp(sizes: tuple[int, ...] = (5, 4, 3, 2), activation: type[nn.Module] = nn.Tanh, seed: int = 0) -> Any:
    """Linear layers (at 0, 2, 4, …) with an activation between each two, in float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def convnet(seed: int = 0) -> Any:
    """A small net with every kind of module that a rule meets: convolution, normalisation, PReLU, linear."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(2 * 4 * 4, 6),
        nn.PReLU(),
        nn.Linear(6, 3),
    )


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Seeded standard normals in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
    """The plain loop."""
    for x, y in batches:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Copies of ``.grad`` by name; of a model that learnt nothing there is nothing to compare.

    A learning feedback without a gradient, as that of the first layer, is left out.
    """
    assert any(p.grad is not None for p in model.parameters())
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return {n: g for n, g in found.items() if g is not None or not n.endswith("feedback")}


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those of the plain model, without feedback that learns."""
    return {n: p for n, p in model.named_parameters() if not n.endswith("feedback")}


def close(a: Tensor | None, b: Tensor | None) -> None:
    """Equal to float64's rounding."""
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
