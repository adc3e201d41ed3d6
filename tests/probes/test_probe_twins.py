"""Every measured value equals what a plain twin's ordinary autograd says, for every rule and kind of layer."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import xarray as xr
from probe_worlds import ALL_RULES, CLASSES, DIRECT, HOSTS, WORLDS, loss_of, measurable, sgd
from torch import Tensor, nn

from alignlab import rules
from alignlab.probes import EffectiveLR, FeedbackSpectrum, GradientAngle, Recorder, WeightAngle
from alignlab.store import check

STEPS, LR = 3, 0.05
REFUSED = {("ifa", "conv"), ("ifa", "positions"), ("ifa", "attention")}  # by the rule itself
REFUSED |= {("ifa", "sequence"), ("sign_sync", "attention")}  # and where signs of unit size explode
REFUSED |= {(None, name) for name in HOSTS}  # plain, their maps are no layers
CASES = [(rule, world) for rule in ALL_RULES for world in WORLDS if (rule, world) not in REFUSED]
CASES += [("mixed", "mlp"), ("mixed", "conv")]


def dot(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() * b.detach().double()).sum())


def norm(a: Tensor) -> float:
    return math.sqrt(dot(a, a))


def angle(a: Tensor, b: Tensor) -> float:
    """By the parts of b along a and across it, which keeps small angles; NaN for a zero vector."""
    if not norm(a) or not norm(b):
        return math.nan
    along = a.detach().double() / norm(a)
    part = dot(along, b)
    return math.degrees(math.atan2(norm(b - part * along), part))


def angles_of_rows(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Mean, standard deviation, and the share of rows without an angle."""
    a, b = a.detach().double().numpy(), b.detach().double().numpy()
    has = (a != 0).any(1) & (b != 0).any(1)
    u, v = (x[has] / np.linalg.norm(x[has], axis=1, keepdims=True) for x in (a, b))
    angles = np.degrees(2 * np.arctan2(np.linalg.norm(u - v, axis=1), np.linalg.norm(u + v, axis=1)))
    return (angles.mean(), angles.std(), 1 - has.mean()) if has.any() else (math.nan, math.nan, 1.0)


class Calls:
    """What plain forward hooks see of a model without in-place operations: each layer's inputs and outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.clear()
        for name, layer in measurable(model).items():
            layer.register_forward_hook(
                lambda m, args, z, name=name: self._note(name, args[0], z, getattr(m, "feedback", None))
            )

    def _note(self, name: str, x: Tensor, z: Tensor, B: Tensor | None) -> None:
        z.retain_grad()
        self.by_layer[name].append((x, z))
        self.feedback[name].append(None if B is None else B.clone())

    def clear(self) -> None:
        self.by_layer: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.feedback: dict[str, list[Tensor | None]] = defaultdict(list)

    def errors(self, name: str) -> list[Tensor]:
        return [z.grad for _, z in self.by_layer[name]]


def rows(layer: nn.Module, parts: list[Tensor]) -> Tensor:
    return torch.cat(
        [p.reshape(-1, p.shape[-1]) if isinstance(layer, nn.Linear) else p.flatten(1) for p in parts]
    )


def carried(
    layer: nn.Module, calls: list[tuple[Tensor, Tensor]], errors: list[Tensor], weights: list[Tensor]
) -> Tensor:
    """The errors at a layer's inputs by autograd, had the plain layer these weights in its calls."""
    found = []
    for (x, _), error, weight in zip(calls, errors, weights, strict=True):
        x = x.detach().requires_grad_()
        z = torch.func.functional_call(layer, {"weight": weight}, x)
        found.append(torch.autograd.grad(z, x, error)[0])
    return rows(layer, found)


def direct_errors(twin: nn.Module, calls: Calls, reference: nn.Module, e: Tensor) -> dict[str, list[Tensor]]:
    """dfa by its definition, on the twin's activations: (e B) at the next layer's input, then the true local derivative."""
    names = list(calls.by_layer)
    found = {names[-1]: calls.errors(names[-1])}
    for name, above in itertools.pairwise(names):
        (_, z), (target, _) = calls.by_layer[name][0], calls.by_layer[above][0]
        signal = (e @ measurable(reference)[name].feedback).reshape(target.shape)
        found[name] = [torch.autograd.grad(target, z, signal, retain_graph=True)[0]]
    return found


def expected_values(
    layer: nn.Module, twin: nn.Module, W: Tensor, dW: Tensor, calls: list[tuple[Tensor, Tensor]],
    rule_errors: list[Tensor] | None, bp_errors: list[Tensor], direct: bool, feedback: list[Tensor | None],
) -> dict[str, float]:  # fmt: skip
    G, G_bp = layer.weight.grad, twin.weight.grad
    bp = norm(G_bp)
    gain = norm(G) / bp if bp else math.nan
    found = {
        "gradient_angle": angle(G, G_bp),
        "gradient_norm": norm(G),
        "gradient_norm_bp": bp,
        "feedback_gain": gain,
        "effective_lr": LR * gain,
        "projected_lr": -dot(dW, G_bp) / bp**2,
        "update_angle": angle(-dW, G_bp),
        "applied_gain": norm(dW) / (LR * bp),
        "relative_update": norm(dW) / norm(W),
        "angular_update": angle(W, W + dW),
        "update_norm": norm(dW),
        "weight_norm": norm(W),
    }
    if rule_errors is not None:
        angles = angles_of_rows(rows(twin, rule_errors), rows(twin, bp_errors))
        found |= dict(zip(("delta_angle", "delta_angle_std", "zero_fraction"), angles, strict=True))
    if direct or not calls[0][0].requires_grad:
        return found
    assert rule_errors is not None
    used = [W if B is None else B for B in feedback]  # rerandomised: another one at each call
    B = used[-1]
    by_B, by_W = carried(twin, calls, rule_errors, used), carried(twin, calls, rule_errors, [W] * len(used))
    inner = [dot(b, w) for b, w in zip(by_B, by_W, strict=True) if norm(w)]
    return found | {
        "weight_angle": angle(B, W),
        "feedback_norm": norm(B),
        "local_angle": angles_of_rows(by_B, by_W)[0],
        "descent_fraction": sum(value > 0 for value in inner) / len(inner) if inner else math.nan,
    }


def _is_plain(key: str) -> bool:
    return key.rpartition(".")[2] not in ("feedback", "feedback_magnitude", "_extra_state")


def recorded_and_expected(
    rule: str | None, name: str, dtype: torch.dtype
) -> tuple[xr.Dataset, list[dict[str, dict[str, float]]]]:
    """One run under a recorder, and the same run on a copy without one beside a plain twin."""
    world = WORLDS[name]
    probed, reference, twin = (
        world.model(rule, dtype=dtype),
        world.model(rule, inplace=False, dtype=dtype),
        world.model("bp" if name in HOSTS else None, False, dtype),
    )
    optimizers = [sgd(m, LR, momentum=0.9, weight_decay=0.01) for m in (probed, reference)]
    calls, true_calls = Calls(reference), Calls(twin)
    expected = []
    probes = [GradientAngle(), EffectiveLR(), WeightAngle(), FeedbackSpectrum()]
    with Recorder(probed, optimizers[0], probes, flush_every=2) as recorder:
        for step in range(STEPS):
            x, y = world.batch(step, dtype=dtype)
            for model, optimizer in zip((probed, reference), optimizers, strict=True):
                torch.manual_seed(step)
                optimizer.zero_grad()
                if model is probed:
                    loss_of(model, x, y).backward()
                    optimizer.step()
            twin.load_state_dict(
                {k: v for k, v in reference.state_dict().items() if _is_plain(k)}, strict=False
            )
            twin.zero_grad()
            calls.clear(), true_calls.clear()
            torch.manual_seed(step)
            loss_of(reference, x, y).backward()
            torch.manual_seed(step)
            output = twin(x)
            output.retain_grad()
            torch.nn.functional.cross_entropy(output, y).backward(retain_graph=True)
            layers = measurable(reference)
            errors = {n: calls.errors(n) for n in layers}
            true_errors = {n: [e.clone() for e in true_calls.errors(n)] for n in layers}
            if rule in DIRECT:
                plain = rule != "ifa" and name not in ("twice", *HOSTS)
                targets = -torch.nn.functional.one_hot(y, CLASSES).to(dtype) / len(y)
                sent = targets if rule == "drtp" else output.grad
                errors = direct_errors(twin, true_calls, reference, sent) if plain else dict.fromkeys(layers)
            before = {n: layer.weight.detach().clone() for n, layer in layers.items()}
            optimizers[1].step()
            expected.append({
                n: expected_values(
                    layer, measurable(twin)[n], before[n], layer.weight.detach() - before[n], list(true_calls.by_layer[n]),
                    errors[n], true_errors[n], rule in DIRECT, calls.feedback[n],
                )
                for n, layer in layers.items()
            })  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(probed.parameters(), reference.parameters(), strict=True))
    return recorder.to_dataset(), expected


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_every_value_equals_a_plain_twins(rule: str | None, name: str) -> None:
    run, expected = recorded_and_expected(rule, name, torch.float64)
    check(run)
    for step, layers in enumerate(expected):
        for layer, values in layers.items():
            for variable, value in values.items():
                got = float(run[variable].sel(step=step, layer=layer))
                assert got == pytest.approx(value, abs=1e-5, rel=1e-6, nan_ok=True), (variable, layer, step)
    if rule in DIRECT:
        assert "local_angle" not in run


@pytest.mark.parametrize("name", ["mlp", "conv", "positions"])
def test_angles_and_norms_hold_in_single_precision(name: str) -> None:
    run, expected = recorded_and_expected("fa", name, torch.float32)
    for step, layers in enumerate(expected):
        for layer, values in layers.items():
            for variable in ("gradient_angle", "delta_angle", "local_angle", "update_angle", "weight_angle"):
                got, value = float(run[variable].sel(step=step, layer=layer)), values.get(variable, math.nan)
                cosines = np.cos(np.radians([got, value]))
                assert cosines[0] == pytest.approx(cosines[1], abs=1e-5, nan_ok=True), (variable, layer, step)
            for variable in ("gradient_norm", "feedback_norm", "weight_norm", "update_norm"):
                got, value = float(run[variable].sel(step=step, layer=layer)), values.get(variable, math.nan)
                assert got == pytest.approx(value, rel=1e-5, nan_ok=True), (variable, layer, step)


def test_the_spectrum_of_a_grouped_convolution_is_that_of_its_blocks() -> None:
    world = WORLDS["conv"]
    model = world.model("fa")
    layer = model[3]
    W, B = layer.weight.detach().clone(), layer.feedback.clone()
    with Recorder(model, sgd(model), [FeedbackSpectrum()], layers=["3"]) as recorder:
        loss_of(model, *world.batch(0)).backward()
        recorder.optimizer.step()
    blocks = [w.flatten(1) @ b.flatten(1).T for w, b in zip(W.chunk(2), B.chunk(2), strict=True)]
    expected = torch.cat([torch.linalg.eigvals(block) for block in blocks])
    run = recorder.to_dataset().sel(step=0, layer="3")
    got = torch.complex(*(torch.tensor(run[f"spectrum_{part}"].values) for part in ("real", "imag")))
    assert run["spectrum_trace"] == pytest.approx(float(expected.real.sum()), rel=1e-5)
    torch.testing.assert_close(
        got.abs().sort().values, expected.abs().float().sort().values, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rule", ["dfa", "fa"])
def test_feedback_is_compared_with_the_weights_before_the_update(rule: str) -> None:
    world = WORLDS["twice" if rule == "fa" else "mlp"]
    for probes in ([WeightAngle()], [WeightAngle(), EffectiveLR()]):  # without and with a copy of the weights
        model = world.model(rule)
        with Recorder(model, sgd(model, 5.0), probes) as recorder:
            loss_of(model, *world.batch(0)).backward()
            layers = measurable(model)
            if rule == "fa":
                name, W, B = "again", layers["again"].weight.detach().clone(), layers["again"].feedback
            else:  # the product of the weights above
                W = layers["6"].weight.detach() @ layers["4"].weight.detach()
                name, B = "0", layers["0"].feedback
            recorder.optimizer.step()
        assert float(recorder.to_dataset().weight_angle.sel(step=0, layer=name)) == pytest.approx(
            angle(B, W), abs=1e-5
        )


def test_double_precision_tells_feedback_from_weights_that_it_all_but_equals() -> None:
    world = WORLDS["mlp"]
    model = world.model("fa", dtype=torch.float64)
    layer = measurable(model)["4"]
    W = layer.weight.detach().clone()
    noise = torch.randn(W.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    across = noise - (noise * W).sum() / W.square().sum() * W
    layer.feedback = W + 1e-10 * W.norm() / across.norm() * across
    with Recorder(model, sgd(model), [WeightAngle()]) as recorder:
        loss_of(model, *world.batch(0, dtype=torch.float64)).backward()
        recorder.optimizer.step()
    found = float(recorder.to_dataset().weight_angle.sel(step=0, layer="4"))
    assert math.radians(found) == pytest.approx(1e-10, rel=1e-3)


def test_a_skip_connection_leaves_no_product_of_weights_to_compare_direct_feedback_with() -> None:
    world = WORLDS["residual"]
    model = world.model("dfa")
    with Recorder(model, sgd(model), [WeightAngle(), GradientAngle()]) as recorder:
        loss_of(model, *world.batch(0)).backward()
        recorder.optimizer.step()
    run = recorder.to_dataset()
    assert np.isfinite(run.gradient_angle).all()

    assert "weight_angle" not in run


def test_a_layer_used_at_two_depths_has_no_one_product_of_weights_above_its_direct_feedback() -> None:
    world = WORLDS["twice"]
    model = world.model("dfa")
    with Recorder(model, sgd(model), [WeightAngle(), FeedbackSpectrum()]) as recorder:
        for micro_batch in (0, 1):
            loss_of(model, *world.batch(micro_batch)).backward()
        W = {name: layer.weight.detach().clone() for name, layer in measurable(model).items()}
        recorder.optimizer.step()
    run = recorder.to_dataset().sel(step=0)
    above, B = W["leave"] @ W["again"] @ W["again"], model.get_submodule("enter").feedback
    assert float(run.weight_angle.sel(layer="enter")) == pytest.approx(angle(B, above), abs=1e-4)
    for name in ("weight_angle", "feedback_norm", "spectrum_trace", "descent_fraction"):
        assert np.isnan(run[name].sel(layer="again")), name


@pytest.mark.parametrize(("between", "width"), [(nn.Flatten(), 24), (nn.GLU(), 4)])
def test_weights_that_do_not_meet_unit_by_unit_have_no_product_to_compare_direct_feedback_with(
    between: nn.Module, width: int
) -> None:
    torch.manual_seed(0)
    parts = nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 8), between, nn.Linear(width, CLASSES)
    model = rules.convert(nn.Sequential(*parts), "dfa", generator=torch.Generator().manual_seed(1))
    x = torch.randn(9, 3, 6, generator=torch.Generator().manual_seed(2))
    with Recorder(model, sgd(model), [WeightAngle(), FeedbackSpectrum()]) as recorder:
        model(x).square().mean().backward()
        expected = angle(model[2].feedback, model[4].weight)
        recorder.optimizer.step()
    found = recorder.to_dataset().weight_angle.sel(step=0)
    assert np.isnan(found.sel(layer="0"))
    assert float(found.sel(layer="2")) == pytest.approx(expected, abs=1e-4)


class Turned(nn.Module):
    """A layer along time, channels first, and one along channels, time first."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).mT)


@pytest.mark.parametrize("first", [nn.Conv1d(6, 6, 3, padding=1), nn.Linear(3, 3)])
def test_direct_errors_are_those_of_the_positions_at_which_a_turned_layer_meets_the_next(
    first: nn.Module,
) -> None:
    model = rules.convert(Turned(first), "dfa", generator=torch.Generator().manual_seed(1))
    x = torch.randn(9, 6, 3, generator=torch.Generator().manual_seed(2))
    with Recorder(model, sgd(model), [FeedbackSpectrum()]) as recorder:
        output = model(x)
        output.retain_grad()
        output.square().mean().backward()
        W, B = model.last.weight.detach().clone(), model.first.feedback
        recorder.optimizer.step()
    share = np.mean([dot(e @ W, e @ B) > 0 for e in output.grad.flatten(0, 1)])
    found = recorder.to_dataset().descent_fraction.sel(step=0, layer="first")
    assert float(found) == pytest.approx(share, abs=1e-6)


def test_direct_errors_descend_as_often_as_their_definition_says() -> None:
    world = WORLDS["mlp"]
    model = world.model("dfa")
    with Recorder(model, sgd(model), [FeedbackSpectrum()]) as recorder:
        x, y = world.batch(0)
        output = model(x)
        output.retain_grad()
        torch.nn.functional.cross_entropy(output, y).backward()
        layers = {name: layer.weight.detach().clone() for name, layer in measurable(model).items()}
        above = {"0": layers["6"] @ layers["4"], "4": layers["6"]}
        recorder.optimizer.step()
    assert output.grad.shape == (9, CLASSES)
    for name, W in above.items():
        inner = [dot(e @ W, e @ measurable(model)[name].feedback) for e in output.grad]
        share = sum(value > 0 for value in inner) / len(inner)
        assert float(recorder.to_dataset().descent_fraction.sel(step=0, layer=name)) == pytest.approx(
            share, abs=1e-6
        )


def test_chance_of_direct_feedback_is_that_of_the_product_of_the_weights_above() -> None:
    world = WORLDS["mlp"]
    model = world.model("dfa")
    with Recorder(model, sgd(model), [FeedbackSpectrum()]) as recorder:
        loss_of(model, *world.batch(0)).backward()
        layers = measurable(model)
        W = layers["6"].weight.detach() @ layers["4"].weight.detach()
        expected = float(W.norm() * layers["0"].feedback.norm()) / W.numel() ** 0.5
        recorder.optimizer.step()
    assert float(recorder.to_dataset().chance_radius.sel(step=0, layer="0")) == pytest.approx(expected)
