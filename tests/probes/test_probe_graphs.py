"""Wherever the graph is unusual the angles are those of the plain case, or there is an error that names the layer."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from probe_worlds import ALL_RULES, CLASSES, WORLDS, World, loss_of, sgd
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab.probes import (
    EffectiveLR,
    FeedbackSpectrum,
    GradientAngle,
    Loss,
    ProbeError,
    Recorder,
    WeightAngle,
    every,
)
from alignlab.rules import convert
from alignlab.training import Graft
from alignlab.training.graft import GradientGraft

MLP = WORLDS["mlp"]


class Chain(nn.Module):
    """Three linear layers; a subclass says what else a forward pass does."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, CLASSES)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.hidden(x))


CHAIN = World(Chain, (6,))


def record(
    model: nn.Module,
    loss: Callable[[Any, int], Tensor] | None = None,
    steps: int = 3,
    called: Any = None,
    **kwargs: Any,
) -> xr.Dataset:
    """Train ``model``, which the loop may call through a wrapper, ``called``."""
    called = model if called is None else called
    probes = kwargs.pop("probes", None) or [GradientAngle(), WeightAngle(), EffectiveLR(), FeedbackSpectrum()]
    optimizer = sgd(model)
    with Recorder(model, optimizer, probes, **kwargs) as recorder:
        for step in range(steps):
            torch.manual_seed(step)
            optimizer.zero_grad()
            (loss or chain_loss)(called, step).backward()
            optimizer.step()
    return recorder.to_dataset()


def chain_loss(model: Any, step: int) -> Tensor:
    return loss_of(model, *CHAIN.batch(step))


def assert_same(a: xr.Dataset, b: xr.Dataset, atol: float = 2e-5) -> None:
    names = set(a.data_vars) - {"wall_time"}
    assert names == set(b.data_vars) - {"wall_time"}
    assert a.layer.values.tolist() == b.layer.values.tolist()
    for name in names:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=atol, err_msg=str(name))


# checkpoints


class Checkpointed(Chain):
    reentrant = False

    def forward(self, x: Tensor) -> Any:
        x = x.requires_grad_(self.reentrant)
        h = checkpoint(lambda x: F.dropout(torch.tanh(self.first(x)), 0.2), x, use_reentrant=self.reentrant)
        return self.last(checkpoint(lambda h: torch.tanh(self.second(h)), h, use_reentrant=self.reentrant))


class Unchecked(Checkpointed):
    def forward(self, x: Tensor) -> Any:
        return self.last(torch.tanh(self.second(F.dropout(torch.tanh(self.first(x)), 0.2))))


class Reentrant(Checkpointed):
    reentrant = True


@pytest.mark.parametrize("rule", ["fa", "bp", "sign_sync", None])
def test_checkpointed_layers_have_the_same_angles(rule: str | None) -> None:
    checked, plain = (record(World(kind, (6,)).model(rule)) for kind in (Checkpointed, Unchecked))
    assert_same(checked, plain)


def test_a_model_that_is_checkpointed_as_a_whole_has_the_same_angles() -> None:
    def whole(model: Any, step: int) -> Tensor:
        x, y = CHAIN.batch(step)
        return F.cross_entropy(checkpoint(model, x, use_reentrant=False), y)

    assert_same(record(CHAIN.model("fa"), whole), record(CHAIN.model("fa")))


def test_reentrant_checkpoints_are_an_error_that_names_the_layer() -> None:
    with pytest.raises(ProbeError, match=r"layer 'first' .*use_reentrant=False"):
        record(World(Reentrant, (6,)).model("fa"))


# compiled models


@pytest.mark.parametrize(
    ("rule", "how"),
    [
        ("fa", "wrapper"),
        ("fa", "in place"),
        ("fa", "unknown to the recorder"),
        ("fa", "block"),
        ("dfa", "wrapper"),
    ],
)
def test_compiled_models_have_the_angles_of_uncompiled_ones(rule: str, how: str) -> None:
    torch._dynamo.reset()
    plain = record(CHAIN.model(rule), schedule=every(2), steps=4, probes=[GradientAngle(), WeightAngle()])
    model = CHAIN.model(rule)
    called, watched = model, model
    if how == "in place":
        model.compile(backend="eager")
    elif how == "block":
        model.second.compile(backend="eager")
    else:
        called = torch.compile(model, backend="eager")
        watched = called if how == "wrapper" else model
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = record(
            watched, called=called, schedule=every(2), steps=4, probes=[GradientAngle(), WeightAngle()]
        )
    notices = [w for w in told if "measured steps run uncompiled" in str(w.message)]
    assert len(notices) == (how != "unknown to the recorder")
    assert all("not bit for bit" in str(notice.message) for notice in notices)
    assert_same(run, plain, atol=1e-4)


def test_a_model_that_is_compiled_while_recording_has_no_false_angles() -> None:
    torch._dynamo.reset()
    model = CHAIN.model("fa")
    compiled = []

    def loss(model: Any, step: int) -> Tensor:
        if not compiled:
            compiled.append(torch.compile(model, backend="aot_eager"))
        return loss_of(compiled[0], *CHAIN.batch(step))

    assert_same(record(model, loss), record(CHAIN.model("fa")))


def test_steps_off_the_schedule_stay_compiled_and_the_stance_comes_back() -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = CHAIN.model("fa")
    with torch.compiler.set_stance("eager_on_recompile"):
        record(model, called=torch.compile(model, backend=backend), schedule=every(2), steps=1)
        assert not graphs
        assert torch._dynamo.eval_frame._stance.stance == "eager_on_recompile"
    record(
        model,
        called=torch.compile(model, backend=backend),
        schedule=every(2),
        steps=2,
        probes=[GradientAngle(), Loss()],
    )
    assert graphs
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_the_steps_of_a_compiled_optimizer_are_counted_and_measured() -> None:
    """The hook that counts was traced into its graph, where no stance can be set."""
    torch._dynamo.reset()

    def record_steps(compiled: bool) -> xr.Dataset:
        model = CHAIN.model("fa")
        optimizer = sgd(model)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        with Recorder(
            model, optimizer, [GradientAngle(), EffectiveLR()], lambda step: step in (1, 4)
        ) as recorder:
            for i in range(6):
                optimizer.zero_grad()
                loss_of(model, *CHAIN.batch(i)).backward()
                step()
        assert recorder.step == 6
        return recorder.to_dataset()

    found = record_steps(True)
    assert found.step.values.tolist() == [1, 4]
    assert_same(found, record_steps(False))


def test_a_compiled_step_that_makes_its_base_classes_step_is_an_error() -> None:
    """Its steps were counted twice, and all but the first measured one were missing."""
    torch._dynamo.reset()

    class Derived(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = CHAIN.model("fa")
    assert sgd(model).step  # SGD.step has hooks from here on
    optimizer = Derived(model.parameters(), lr=0.05)
    step = torch.compile(optimizer.step, backend="eager")
    loss_of(model, *CHAIN.batch(0)).backward()
    with (
        pytest.raises(ProbeError, match="the step of Derived calls its base class's and is compiled"),
        Recorder(model, optimizer, [GradientAngle()], lambda step: step == 1),
    ):
        step()


def test_two_recorders_that_end_in_any_order_share_the_stance() -> None:
    first, second = (CHAIN.model("fa") for _ in range(2))
    a, b = (Recorder(model, sgd(model), [GradientAngle()]).attach() for model in (first, second))
    a.detach()
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    b.detach()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_layer_that_ignores_the_switch_is_found_out() -> None:
    class Deaf(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
            ctx.layer = layer
            ctx.save_for_backward(x)
            return F.linear(x, layer.weight, layer.bias)

        @staticmethod
        def backward(ctx: Any, *deltas: Tensor) -> Any:
            return deltas[0] @ ctx.layer.feedback, None

    model = CHAIN.model("fa")
    for layer in (model.first, model.second, model.last):
        layer.forward = lambda x, layer=layer: Deaf.apply(x.requires_grad_(), layer)
    with pytest.raises(ProbeError, match="did not look at the switch"):
        record(model)


# outputs


class Outputs(NamedTuple):
    main: Any
    other: Any


class Structured(Chain):
    """Returns the logits in some structure, beside the hidden activations that they are computed from."""

    wrap: Any = None

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.wrap(self.last(h), h)


STRUCTURES: dict[str, tuple[Any, Any]] = {
    "tuple": (lambda z, h: (z, h), lambda out: out),
    "nested": (lambda z, h: {"a": [z], "b": {"c": h}, "d": None}, lambda out: (out["a"][0], out["b"]["c"])),
    "named tuple": (Outputs, lambda out: (out.main, out.other)),
    "the same twice": (lambda z, h: (z, z, h), lambda out: (out[1], out[2])),
    "with a view": (lambda z, h: (z.view(-1, 2, 2), z, h), lambda out: (out[1], out[2])),
}


@pytest.mark.parametrize("rule", ["fa", "bp", "usf"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_outputs_may_be_nested_and_depend_on_each_other(rule: str, structure: str, weight: float) -> None:
    wrap, parts = STRUCTURES[structure]

    def loss(model: Any, step: int) -> Tensor:
        x, y = CHAIN.batch(step)
        logits, hidden = parts(model(x))
        return F.cross_entropy(logits, y) + weight * hidden.square().mean()

    def twin_loss(step: int) -> Tensor:
        hidden = twin.hidden(CHAIN.batch(step)[0])
        return F.cross_entropy(twin.last(hidden), CHAIN.batch(step)[1]) + weight * hidden.square().mean()

    model = World(Structured, (6,)).model(rule)
    model.wrap = wrap
    twin = CHAIN.model()
    twin_loss(0).backward()
    run = record(model, loss, steps=1)
    for name in ("first", "second", "last"):
        size = float(getattr(twin, name).weight.grad.norm())
        assert float(run.gradient_norm_bp.sel(step=0, layer=name)) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize("rule", ["fa", "dfa", "bp"])
def test_an_output_may_be_changed_in_place_and_by_hooks(rule: str) -> None:
    def changed(model: Any, step: int) -> Tensor:
        x, y = CHAIN.batch(step)
        return F.cross_entropy(model(x).mul_(2.0).tanh_(), y)

    def plainly(model: Any, step: int) -> Tensor:
        x, y = CHAIN.batch(step)
        return F.cross_entropy(torch.tanh(model(x) * 2.0), y)

    assert_same(record(CHAIN.model(rule), changed), record(CHAIN.model(rule), plainly))
    hooked = CHAIN.model(rule)
    hooked.register_forward_hook(lambda m, args, out: torch.tanh(out * 2.0))
    assert_same(record(hooked), record(CHAIN.model(rule), plainly))


def test_a_layers_output_may_be_changed_by_a_hook() -> None:
    def twice(m: nn.Module, args: Any, z: Tensor) -> Tensor:
        return 2 * z

    class Doubled(Chain):
        def hidden(self, x: Tensor) -> Tensor:
            return torch.tanh(2 * self.second(torch.tanh(self.first(x))))

    hooked = CHAIN.model("fa")
    hooked.second.register_forward_hook(twice)
    assert_same(record(hooked), record(World(Doubled, (6,)).model("fa")))


class InPlace(nn.Module):
    """In-place nonlinearities on outputs that are views of what the layers computed: positions, a single image."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.first, self.last = nn.Conv2d(2, 3, 3), nn.Linear(6, 5), nn.Linear(5, CLASSES)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Any:
        maps = self.relu(self.conv(x))  # (3, 6, 6)
        return self.last(self.relu(self.first(maps))).mean((0, 1))[None]


@pytest.mark.parametrize("rule", [None, "bp", "fa"])
def test_views_may_be_changed_in_place(rule: str | None) -> None:
    def loss(model: Any, step: int) -> Tensor:
        x, y = World(InPlace, (2, 8, 8)).batch(step, 1)
        return F.cross_entropy(model(x[0]), y)

    changed, kept = (
        record(World(InPlace, (2, 8, 8)).model(rule, inplace), loss) for inplace in (True, False)
    )
    assert changed.sizes["layer"] == 3
    assert np.isfinite(changed.gradient_angle).all()
    assert_same(changed, kept)


def test_maps_of_two_sizes_through_one_convolution_are_measured_together() -> None:
    class Pyramid(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.enter, self.conv, self.leave = (
                nn.Conv2d(2, 3, 1),
                nn.Conv2d(3, 3, 3, padding=1),
                nn.Linear(6, CLASSES),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.enter(x))
            scales = [torch.tanh(self.conv(part)).mean((2, 3)) for part in (x, F.avg_pool2d(x, 2))]
            return self.leave(torch.cat(scales, 1))

    world = World(Pyramid, (2, 6, 6))
    model, twin = world.model("fa"), world.model()
    loss_of(twin, *world.batch(0)).backward()
    run = record(model, lambda m, step: loss_of(m, *world.batch(step)), steps=1)
    assert float(run.gradient_norm_bp.sel(step=0, layer="conv")) == pytest.approx(
        float(twin.conv.weight.grad.norm()), rel=1e-5
    )
    assert np.isfinite(run.delta_angle).all()


# what cannot be measured is an error


def test_a_model_whose_parts_are_called_is_an_error() -> None:
    def parts(model: Any, step: int) -> Tensor:
        x, y = CHAIN.batch(step)
        return F.cross_entropy(model.last(model.hidden(x)), y)

    with pytest.raises(ProbeError, match=r"layer 'first' got its error signal without .*not its parts"):
        record(CHAIN.model("fa"), parts)
    record(CHAIN.model("bp"), parts)  # under backprop nothing else needs to be known


def test_a_loss_on_hidden_activations_is_an_error_unless_they_are_returned() -> None:
    class Regularised(Chain):
        def forward(self, x: Tensor) -> Any:
            self.kept = self.hidden(x)
            return self.last(self.kept)

    def loss(model: Any, step: int) -> Tensor:
        return chain_loss(model, step) + model.kept.abs().mean()

    with pytest.raises(ProbeError, match=r"layer 'first' received another error .*Return such activations"):
        record(World(Regularised, (6,)).model("fa"), loss)


def test_a_model_that_is_called_on_its_own_output_is_an_error() -> None:
    cell = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    convert(cell, "fa")
    with pytest.raises(ProbeError, match="called on its own output"):
        record(cell, lambda m, step: m(m(CHAIN.batch(step)[0])).square().mean())


def test_a_model_may_be_called_twice_on_inputs() -> None:
    def siamese(model: Any, step: int) -> Tensor:
        return (model(CHAIN.batch(step)[0]) - model(CHAIN.batch(step + 9)[0])).square().mean()

    model, twin = CHAIN.model("fa"), CHAIN.model()
    siamese(twin, 0).backward()
    run = record(model, siamese, steps=1)
    for name in ("first", "second", "last"):
        size = float(getattr(twin, name).weight.grad.norm())
        assert float(run.gradient_norm_bp.sel(step=0, layer=name)) == pytest.approx(size, rel=1e-5)


def test_a_layer_whose_weight_is_used_without_it_is_an_error() -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.leave = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.attention(x, x, x)[0].mean(1))

    model = Attentive()
    x, y = torch.randn(4, 3, 6), torch.tensor([0, 1, 2, 3])
    loss = lambda m, step: F.cross_entropy(m(x), y)  # noqa: E731
    with pytest.raises(
        ProbeError,
        match=r"layer 'attention\.out_proj' learns, but no call of it was seen.*convert\(model, 'bp'\)",
    ):
        record(model, loss)
    assert record(model, loss, layers=["leave"]).layer.values.tolist() == ["leave"]
    names = ["attention.in_proj", "attention.out_proj", "leave"]
    assert record(convert(Attentive(), "bp"), loss).layer.values.tolist() == names


def test_the_self_test_trips_when_a_hook_changes_gradients_at_the_last_layer() -> None:
    class Crooked(Chain):
        def forward(self, x: Tensor) -> Any:
            output = self.last(self.hidden(x))
            output.register_hook(self.bend)
            return output

        def bend(self, g: Tensor) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return g * self.calls  # another factor in the true pass than in the rule's

    with pytest.raises(ProbeError, match=r"layer '(first|last)'"):
        record(World(Crooked, (6,)).model("fa"))


def test_a_crooked_run_stays_without_data() -> None:
    model = CHAIN.model("fa")
    optimizer = sgd(model)
    recorder = Recorder(model, optimizer, [GradientAngle()]).attach()
    seen = []

    def bend(g: Tensor) -> Tensor:
        seen.append(1)
        return g * (1 + (len(seen) > 26))

    def output_hook(m: nn.Module, args: Any, z: Tensor) -> None:
        z.register_hook(bend)

    model.last.register_forward_hook(output_hook)
    for step in range(15):
        optimizer.zero_grad()
        chain_loss(model, step).backward()
        optimizer.step()
    for _ in range(2):
        with pytest.raises(ProbeError, match=r"layer 'last', step 10: it feeds the output"):
            recorder.to_dataset()


# company


def test_two_recorders_and_a_graft_do_not_see_each_other() -> None:
    alone = record(CHAIN.model("fa"))
    model = CHAIN.model("fa")
    optimizer = sgd(model)
    probes = [[GradientAngle(), WeightAngle(), EffectiveLR(), FeedbackSpectrum()] for _ in range(2)]
    with Recorder(model, optimizer, probes[0]) as a, Recorder(model, optimizer, probes[1], every(2)) as b:
        for step in range(3):
            optimizer.zero_grad()
            chain_loss(model, step).backward()
            optimizer.step()
    assert_same(a.to_dataset(), alone)
    assert_same(b.to_dataset(), alone.isel(step=[0, 2]))


def test_a_recorder_sees_the_graft_in_the_update_and_the_rule_in_the_signals() -> None:
    model = CHAIN.model("fa")
    optimizer = sgd(model)
    graft = GradientGraft(model, Graft(direction="rule", magnitude="bp"))
    with Recorder(model, optimizer, [GradientAngle(), EffectiveLR()]) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            chain_loss(model, step).backward()
            graft.apply()
            optimizer.step()
    graft.close()
    run, free = recorder.to_dataset(), record(CHAIN.model("fa"))
    np.testing.assert_allclose(run.applied_gain, 1.0, rtol=1e-5)
    np.testing.assert_allclose(run.gradient_norm.isel(step=0), free.gradient_norm.isel(step=0), rtol=1e-5)
    np.testing.assert_allclose(run.update_angle, run.gradient_angle, atol=1e-3)


def test_the_angles_are_those_of_the_process_under_distributed_training(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = CHAIN.model("fa")
        wrapped = nn.parallel.DistributedDataParallel(model)
        run = record(wrapped)
    finally:
        torch.distributed.destroy_process_group()
    assert run.attrs["gradients"] == "of this process only"
    assert_same(run, record(CHAIN.model("fa")))


def test_weights_split_over_processes_are_refused(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model, plain = CHAIN.model("fa"), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        for net in (model, plain):
            torch.distributed.fsdp.fully_shard(net, mesh=mesh)
        with pytest.raises(ValueError, match=r"a process holds but a part of each weight \(fully_shard"):
            record(model)
        with pytest.raises(TypeError, match=r"cannot convert 0: Linear \(weights split over processes\); 1"):
            convert(plain, "fa")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("around", ["forward", "everything"])
def test_autocast_changes_angles_by_its_rounding_alone(around: str) -> None:
    def cast(model: Any, step: int) -> Tensor:
        x, y = CHAIN.batch(step, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        return F.cross_entropy(output.float(), y)

    def plainly(model: Any, step: int) -> Tensor:
        return loss_of(model, *CHAIN.batch(step, dtype=torch.float32))

    with torch.autocast("cpu", torch.bfloat16, enabled=around == "everything"):
        run = record(CHAIN.model("fa", dtype=torch.float32), cast)
    plain = record(CHAIN.model("fa", dtype=torch.float32), plainly)
    for name in ("gradient_angle", "delta_angle", "local_angle"):
        np.testing.assert_allclose(run[name], plain[name], atol=1.5)
    # no rounding of half precision where only weights are compared
    np.testing.assert_allclose(run.weight_angle.isel(step=0), plain.weight_angle.isel(step=0), atol=1e-3)


def test_every_rule_on_a_dead_layer_has_no_angle() -> None:
    for rule in [r for r in ALL_RULES if r not in (None, "ifa")]:
        model = MLP.model(rule)
        with torch.no_grad():
            model[4].bias.fill_(-1e3)  # its ReLU passes nothing
        run = record(model, lambda m, step: loss_of(m, *MLP.batch(step)), steps=1)
        dead = run.sel(layer="4", step=0)
        assert np.isnan(dead.gradient_angle), rule
        assert np.isnan(dead.delta_angle), rule
        assert dead.zero_fraction == 1, rule
        assert dead.gradient_norm_bp == 0, rule
        assert np.isnan(dead.feedback_gain), rule


def test_a_converted_model_after_the_recorder_was_made_is_noticed() -> None:
    model = CHAIN.model()
    recorder = Recorder(model, sgd(model), [GradientAngle()])
    convert(model, "fa")
    with recorder:
        chain_loss(model, 0).backward()
        recorder.optimizer.step()
    run = recorder.to_dataset()
    assert run.rule == "fa"
    assert (run.gradient_angle.sel(layer=["first", "second"]) > 1).all()


def test_an_abandoned_recorder_does_not_hold_compiled_modules_eager() -> None:
    """Attached, armed and forgotten, as by a run that raised outside of ``with``."""
    from alignlab.probes import compiled

    before = compiled._holders
    model = nn.Linear(3, 2)
    Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), [GradientAngle()]).attach()
    assert compiled._holders == before + 1
    del model
    gc.collect()
    assert compiled._holders <= before
