"""Kinds of layers as probes read them: their names and sizes, their matrices, and what leaves the usual path."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from probe_worlds import KINDS, WORLDS, loss_of, measurable, seeded, sgd
from torch import Tensor, nn

from alignlab.probes import FeedbackSpectrum, GradientAngle, Recorder, WeightAngle, geometry
from alignlab.rules import LocallyConnected2d, convert, feedback_layers

WORLD = WORLDS["every_kind"]


def record(model: nn.Module, probes: list[Any], *batch: Tensor) -> Any:
    with Recorder(model, sgd(model), probes) as recorder:
        loss_of(model, *batch).backward()
        recorder.optimizer.step()
    return recorder.to_dataset()


def test_every_kind_that_can_be_measured_is_in_the_worlds() -> None:
    assert set(geometry.KINDS) == set(KINDS)
    assert {type(m) for w in WORLDS.values() for m in w.model().modules()} >= set(KINDS)


def test_layers_are_told_apart_by_kind_and_size() -> None:
    run = record(WORLD.model("fa"), [WeightAngle()], *WORLD.batch(0))
    kinds = ["conv1d", "conv_transpose2d", "locally_connected2d", "conv3d", "linear"]
    assert run.kind.values.tolist() == kinds
    assert run.fan_in.values.tolist() == [3, 1, 36, 24, 72]
    assert run.fan_out.values.tolist() == [4, 24, 4, 3, 4]


@pytest.mark.parametrize("name", ["sequence", "attention"])
def test_the_maps_of_cells_and_attention_are_linear_layers_of_their_own(name: str) -> None:
    model = WORLDS[name].model("fa")
    run = record(model, [WeightAngle(), GradientAngle()], *WORLDS[name].batch(0))
    assert run.layer.values.tolist() == list(feedback_layers(model))
    assert set(run.kind.values) == {"linear"}
    inner = {
        "sequence": ["cell.ih", "cell.hh"],
        "attention": ["encoder.self_attn.in_proj", "encoder.self_attn.out_proj"],
    }[name]
    assert np.isfinite(run.gradient_angle.sel(step=0, layer=inner)).all()
    assert np.isfinite(run.weight_angle.sel(step=0, layer=inner)).all()


def _patch_map(layer: nn.Module, weight: Tensor) -> Tensor:
    """The layer's maps along a diagonal, entry by entry from what the layer does to unit inputs."""
    twin: Any = copy.deepcopy(layer)
    twin.weight.data = weight.clone()
    twin.bias = None
    if isinstance(twin, nn.ConvTranspose2d):  # one position of the input, and all that comes of it
        twin.padding, twin.output_padding = (0, 0), (0, 0)
        basis = torch.eye(twin.in_channels, dtype=weight.dtype).reshape(twin.in_channels, -1, 1, 1)
        return twin(basis).detach().flatten(1).T
    twin.padding = tuple(0 for _ in twin.kernel_size)  # one position of the output, and all that it sees
    twin.padding_mode = "zeros"
    shape = (twin.in_channels, *twin.kernel_size)
    size = torch.Size(shape).numel()
    return twin(torch.eye(size, dtype=weight.dtype).reshape(size, *shape)).detach().flatten(1).T


@pytest.mark.parametrize("name", ["0", "3", "8"])
def test_a_convolutions_matrix_is_its_map_of_one_position(name: str) -> None:
    layer = measurable(WORLD.model())[name]
    W: Tensor = layer.weight.detach()  # type: ignore[assignment, operator]
    matrix, expected = geometry.as_matrix(layer, W), _patch_map(layer, W)
    blocks = geometry.blocks(layer, W)
    assert matrix.shape == expected.shape
    assert torch.equal(matrix, torch.block_diag(*blocks))
    # one group after the other: the same entries in each row, channels and kernel in the layer's order
    assert torch.equal(matrix.sort(1).values, expected.sort(1).values)
    assert torch.equal(matrix.sort(0).values, expected.sort(0).values)


@pytest.mark.parametrize("name", ["0", "3", "5", "8"])
def test_a_layers_spectrum_is_that_of_all_its_maps(name: str) -> None:
    model = WORLD.model("fa")
    layer: Any = model.get_submodule(name)
    W, B = layer.weight.detach().clone(), layer.feedback.clone()
    maps: list[tuple[Tensor, Tensor]]
    if isinstance(layer, LocallyConnected2d):
        maps = [
            (W[p, q].flatten(1), B[p, q].flatten(1)) for p in range(W.shape[0]) for q in range(W.shape[1])
        ]
    elif isinstance(layer, nn.ConvTranspose2d):
        maps = [
            (w.flatten(1).T, b.flatten(1).T)
            for w, b in zip(W.chunk(layer.groups), B.chunk(layer.groups), strict=True)
        ]
    else:
        maps = [
            (w.flatten(1), b.flatten(1))
            for w, b in zip(W.chunk(layer.groups), B.chunk(layer.groups), strict=True)
        ]
    expected = torch.cat([torch.linalg.eigvals(w @ b.T) for w, b in maps])
    x = WORLD.batch(0)[0].requires_grad_()  # so that the first layer's B is in use
    run = record(model, [FeedbackSpectrum()], x, WORLD.batch(0)[1]).sel(step=0, layer=name)
    got = run.spectrum_real.values[: len(expected)]
    assert np.sort(got) == pytest.approx(np.sort(expected.real.numpy()), rel=1e-4, abs=1e-4)
    assert run.spectrum_trace == pytest.approx(float(expected.real.sum()), rel=1e-4, abs=1e-5)
    discs = [float(w.norm() * b.norm()) / (w.shape[0] * w.shape[1]) ** 0.5 for w, b in maps]
    assert run.chance_radius == pytest.approx(max(discs), rel=1e-5)
    symmetric = torch.cat([torch.linalg.eigvalsh((w @ b.T + b @ w.T) / 2) for w, b in maps])
    assert run.symmetric_min == pytest.approx(float(symmetric.min()), rel=1e-4, abs=1e-6)


class Sized(nn.Module):
    """A transposed convolution that is asked for a size that its own output_padding does not give."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 2, 3, stride=2)
        self.again = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, dilation=2)
        self.leave = nn.Linear(3 * 12 * 11, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.up(x, output_size=(5, 5)))
        h = torch.tanh(self.again(h, output_size=[12, 11]))
        return self.leave(h.flatten(1))


def test_the_output_size_that_a_pass_asked_for_is_measured() -> None:
    with seeded(0):
        net = Sized().double()
    plain, y = copy.deepcopy(net), torch.tensor([0, 1, 3])
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    convert(net, "fa")
    assert torch.equal(net(x), plain(x))
    assert net.again.output_padding == plain.again.output_padding
    run = record(net, [GradientAngle()], x, y)
    loss_of(plain, x, y).backward()
    for name in ("up", "again"):
        G, G_bp = (m.get_submodule(name).weight.grad for m in (net, plain))
        cosine = torch.nn.functional.cosine_similarity(G.flatten(), G_bp.flatten(), 0)
        assert np.cos(np.radians(float(run.gradient_angle.sel(step=0, layer=name)))) == pytest.approx(
            float(cosine), abs=1e-6
        )
    assert run.gradient_angle.sel(step=0, layer="up") > 1
    assert np.isfinite(run.local_angle.sel(step=0, layer="again"))


@pytest.mark.parametrize("name", ["conv", "every_kind"])
def test_the_angles_of_a_pass_under_autocast_are_to_what_a_plain_net_learns_there(name: str) -> None:
    """Both errors are rounded as autocast rounds them; the angle between is not."""
    world = WORLDS[name]
    model, plain = (world.model(rule, dtype=torch.float32) for rule in ("fa", None))
    own = plain.state_dict().keys()
    plain.load_state_dict({key: value.clone() for key, value in model.state_dict().items() if key in own})
    optimizer = sgd(model)
    with Recorder(model, optimizer, [GradientAngle()]) as recorder:
        for net in (model, plain):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(net, *world.batch(0, dtype=torch.float32))
            loss.backward()
        optimizer.step()
    run = recorder.to_dataset().sel(step=0)
    for layer in measurable(plain):
        pair = [net.get_submodule(layer).weight.grad.flatten().double() for net in (model, plain)]
        degrees = float(nn.functional.cosine_similarity(*pair, 0).clamp(max=1).acos().rad2deg())
        assert float(run.gradient_angle.sel(layer=layer)) == pytest.approx(degrees, abs=0.3), layer


def test_convolutions_above_a_direct_layer_have_no_product_of_weights() -> None:
    with seeded(0):
        maps = [nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)]
    layers = [part for conv in maps for part in (conv, nn.Tanh())]
    model = nn.Sequential(*layers, nn.Conv2d(3, 4, 2), nn.Flatten())
    convert(model, "dfa")
    x, y = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 3])
    run = record(model, [GradientAngle(), WeightAngle(), FeedbackSpectrum()], x, y)
    assert np.isfinite(run.gradient_angle).all()
    assert "weight_angle" not in run
    assert "spectrum_real" not in run


class TwoSizes(nn.Module):
    """One convolution on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.shared = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1)
        self.leave = nn.Linear(2 * (36 + 9), 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        maps = [torch.tanh(self.shared(size)) for size in (h, nn.functional.avg_pool2d(h, 2))]
        return self.leave(torch.cat([m.flatten(1) for m in maps], 1))


def test_samples_have_their_angles_on_maps_of_every_size() -> None:
    with seeded(0):
        net = TwoSizes().double()
    plain, y = copy.deepcopy(net), torch.tensor([0, 1, 3])
    convert(net, "fa")
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    deltas = []
    for model in (net, plain):
        seen: list[Tensor] = []
        hook = model.shared.register_forward_hook(lambda m, args, z, seen=seen: seen.append(z))
        deltas.append(torch.autograd.grad(loss_of(model, x, y), seen))
        hook.remove()
    W, B = net.shared.weight.detach().clone(), net.shared.feedback.clone()
    carried = [[nn.functional.conv_transpose2d(d, by, padding=1) for d in deltas[0]] for by in (B, W)]
    run = record(net, [GradientAngle()], x, y).sel(step=0, layer="shared")
    for name, signals in (("delta_angle", deltas), ("local_angle", carried)):
        pairs = [[part.flatten(1) for part in pair] for pair in zip(*signals, strict=True)]
        cosines = torch.cat([nn.functional.cosine_similarity(*pair) for pair in pairs])
        assert float(run[name]) == pytest.approx(float(cosines.acos().rad2deg().mean()), abs=1e-4)


@pytest.mark.parametrize("name", list(measurable(WORLD.model())))
def test_an_error_summed_over_all_but_the_bias_is_the_biass_gradient(name: str) -> None:
    model = WORLD.model(inplace=False)
    seen: dict[str, Tensor] = {}
    layer: Any = model.get_submodule(name)
    layer.register_forward_hook(lambda m, args, z: seen.update(z=z, x=args[0]) or z.retain_grad())
    loss_of(model, *WORLD.batch(0)).backward()
    delta = seen["z"].grad
    assert delta is not None
    torch.testing.assert_close(geometry.summed(layer, delta), layer.bias.grad)
    G = geometry.gradient(layer, seen["x"].detach(), delta, layer.weight.detach())
    torch.testing.assert_close(G, layer.weight.grad)
    if not isinstance(layer, nn.Linear):
        single = geometry.gradient(layer, seen["x"].detach()[0], delta[0], layer.weight.detach())
        assert single.shape == layer.weight.shape
        assert len(geometry.samples(layer, delta[0])) == 1
        torch.testing.assert_close(geometry.summed(layer, delta[0]), geometry.summed(layer, delta[:1]))


@pytest.mark.parametrize("name", list(measurable(WORLD.model())))
def test_a_carried_error_is_the_inputs_gradient_entry_by_entry(name: str) -> None:
    """An angle would not see entries that are exchanged."""
    model = WORLD.model(inplace=False)
    layer: Any = model.get_submodule(name)
    seen: dict[str, Tensor] = {}
    layer.register_forward_hook(lambda m, args, z: seen.update(x=args[0].detach().requires_grad_()))
    model(WORLD.batch(0)[0])
    z = layer(x := seen["x"])
    delta = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad(z, x, delta)
    got = geometry.carried(layer, x.detach(), delta, layer.weight.detach())
    torch.testing.assert_close(got, expected.flatten(1))


def test_a_converted_layer_that_is_not_observed_stands_between_the_others_and_the_output() -> None:
    model = WORLD.model("fa")
    with Recorder(model, sgd(model), [GradientAngle()], layers=["3"]) as recorder:
        loss_of(model, *WORLD.batch(0)).backward()
        recorder.optimizer.step()
    assert recorder.to_dataset().gradient_angle.item() > 1

    torch.manual_seed(0)
    top = nn.Sequential(
        nn.Linear(4, 16), nn.Unflatten(1, (1, 4, 4)), LocallyConnected2d(1, 1, 4, 3), nn.Flatten()
    )
    net = convert(top.double(), "fa")
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    with Recorder(net, sgd(net), [GradientAngle()], layers=["0"]) as recorder:
        loss_of(net, x, y).backward()
        recorder.optimizer.step()  # it does not feed the output: another error than backprop's is no fault
    assert recorder.to_dataset().gradient_angle.item() > 1
