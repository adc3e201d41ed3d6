"""What holds for every rule that takes hold of the whole model: perturbation, soap, noise at a given cosine."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rule_cases import ALL_RULES, WHOLE, RuleCase, close, convnet, gradients, mlp, normal
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab import rules

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
over_rules = pytest.mark.parametrize("rule", WHOLE, ids=str)
CLOSURES = [rule for rule in WHOLE if rules.RULES[rule.name].closure]
over_closures = pytest.mark.parametrize("rule", CLOSURES, ids=str)
X, Y = normal(6, 5), normal(6, 2, seed=2)
IMAGES, TARGETS = normal(6, 1, 4, 4).float(), normal(6, 3, seed=2).float()


def errors(rule: RuleCase, output: Tensor, target: Tensor, factor: float = 1.0) -> Tensor:
    """The squared error in the form that the rule wants: soap needs it sample by sample."""
    each = factor * (output - target).square().mean(1)
    return each if rule.name == "soap" else each.mean()


def teach(rule: RuleCase, net: nn.Module, x: Tensor = X, y: Tensor = Y, factor: float = 1.0) -> Tensor:
    return rules.backward(net, lambda: errors(rule, net(x), y, factor))


def train(rule: RuleCase, net: nn.Module, steps: range, lr: float = 1e-3) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for step in steps:
        optimizer.zero_grad()
        teach(rule, net, IMAGES + step, TARGETS)
        optimizer.step()


def restless(seed: int = 0) -> nn.Sequential:
    """A net with a dropout mask and running statistics."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.4), nn.Linear(8, 6), nn.Tanh(),
        nn.Linear(6, 2),
    ).double()  # fmt: skip


# --- the call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [None, *ALL_RULES, WHOLE[-1]], ids=str)
def test_for_ordinary_rules_it_is_a_forward_and_a_backward_pass(rule: RuleCase | None) -> None:
    net = restless() if rule is None else rule.convert(restless())
    twin, third = copy.deepcopy(net), copy.deepcopy(net)
    torch.manual_seed(3)
    found = rules.backward(net, lambda: F.mse_loss(net(X), Y))
    torch.manual_seed(3)
    expected = F.mse_loss(twin(X), Y)
    expected.backward()
    torch.manual_seed(3)
    rules.backward(third, lambda: (third(X) - Y).square().mean(1))
    assert torch.equal(found, expected.detach())
    assert not found.requires_grad
    for name, gradient in gradients(twin).items():
        assert torch.equal(net.get_parameter(name).grad, gradient), name
        close(third.get_parameter(name).grad, gradient)


@over_closures
def test_backward_on_the_loss_alone_is_an_error_that_shows_the_way_out(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    with pytest.raises(RuntimeError, match=rf"{rule.name} .*alignlab\.rules\.backward\(model, closure\)"):
        F.mse_loss(net(X), Y).backward()
    assert all(p.grad is None for p in net.parameters())
    teach(rule, net)  # and nothing is broken by it


@over_rules
def test_a_part_of_the_model_cannot_be_trained_alone(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    with pytest.raises(RuntimeError, match=f"{rule.name}.*call the converted model itself"):
        net[0](X)
    with torch.no_grad():
        net[0](X)


@over_rules
def test_it_returns_the_loss_without_noise_and_leaves_weights_and_versions_alone(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    before = [(p.clone(), p._version, p.data_ptr()) for p in net.parameters()]
    loss = teach(rule, net)
    assert loss.shape == ()
    with torch.no_grad():
        close(loss, F.mse_loss(net(X), Y))
    for p, (value, version, place) in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, value)
        assert (p._version, p.data_ptr()) == (version, place)


@over_rules
def test_gradients_add_to_what_is_there(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    twin = copy.deepcopy(net)
    for p in twin.parameters():
        p.grad = torch.ones_like(p)
    teach(rule, net)
    teach(rule, twin)
    for name, gradient in gradients(net).items():
        assert gradient is not None
        assert gradient.norm() > 0
        assert torch.equal(twin.get_parameter(name).grad, gradient + 1)


@over_rules
@pytest.mark.parametrize("frozen", ["0.weight", "2.weight", "2.bias", "4.weight", "0"])
def test_a_frozen_parameter_stays_without_gradient(rule: RuleCase, frozen: str) -> None:
    net = rule.convert(mlp())
    chosen = [p for n, p in net.named_parameters() if n.startswith(frozen)]
    for p in chosen:
        p.requires_grad_(False)
    values = [p.clone() for p in chosen]
    teach(rule, net)
    assert all(p.grad is None for p in chosen)
    assert all(torch.equal(p, v) for p, v in zip(chosen, values, strict=True))
    assert all(p.grad is not None and p.grad.any() for p in net.parameters() if p.requires_grad)


@over_rules
def test_the_input_gets_an_error_from_soap_alone(rule: RuleCase) -> None:
    """Which sends one down; perturbation knows none, and its layers do not compute one in vain."""
    net, x = rule.convert(mlp()), X.clone().requires_grad_()
    teach(rule, net, x)
    assert (x.grad is None) == (rule.name != "soap")


@over_rules
def test_an_unused_parameter_gets_no_gradient(rule: RuleCase) -> None:
    net = mlp()
    net.idle = nn.Linear(3, 3).double()
    net.forward = lambda x: nn.Sequential(*list(net)[:5])(x)
    teach(rule, rule.convert(net))
    assert net.idle.weight.grad is None
    assert net.idle.bias.grad is None


@over_rules
def test_random_state_and_running_statistics_end_as_after_one_pass(rule: RuleCase) -> None:
    net, plain = rule.convert(restless()), restless()
    torch.manual_seed(3)
    teach(rule, net)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    F.mse_loss(plain(X), Y).backward()
    assert torch.equal(state, torch.get_rng_state())
    for name, buffer in plain.named_buffers():
        assert torch.equal(net.get_buffer(name), buffer), name


@over_closures
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_further_passes_repeat_the_first_one_exactly(rule: RuleCase, device: str) -> None:
    """Were a mask or a statistic drawn anew, the losses would differ by far more than such a noise makes them."""
    small = {k: v for k, v in rule.args.items() if k != "form"}
    small["step" if rule.name == "soap" else "sigma"] = 1e-9
    net = RuleCase(rule.name, small).convert(restless().to(device))
    seen: list[Tensor] = []

    def closure() -> Tensor:
        loss = errors(rule, net(X.to(device)), Y.to(device))
        seen.append(loss.detach().mean())
        return loss

    torch.manual_seed(3)
    rules.backward(net, closure)
    assert len(seen) > 1
    for loss in seen:
        assert abs(float(loss - seen[0])) < 1e-7


@over_rules
def test_a_layer_used_twice_learns_from_both_uses(rule: RuleCase) -> None:
    net = mlp((5, 4, 4, 4, 2))
    net[4] = net[2]
    net = rule.convert(net)
    teach(rule, net)
    assert net[2].weight.grad.norm() > 0


# --- what the rules leave as it was -----------------------------------------------------------------------------------


@over_rules
def test_reverted_it_is_the_plain_model_again(rule: RuleCase) -> None:
    net, plain = restless(), restless()
    parameters = list(net.parameters())
    rules.revert(rule.convert(net))
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    for model in (net, plain):
        torch.manual_seed(3)
        F.mse_loss(model(X), Y).backward()
    for name, gradient in gradients(plain).items():
        assert torch.equal(net.get_parameter(name).grad, gradient)


@over_rules
def test_the_loss_scales_all_layers_alike(rule: RuleCase) -> None:
    if rule.name == "soap":
        pytest.skip("a step of Newton's kind does not grow with the loss: see test_soap.py")
    found = []
    for factor in (1.0, 8.0):
        net = rule.convert(mlp())
        teach(rule, net, factor=factor)
        found.append(gradients(net))
    for name, gradient in found[0].items():
        assert gradient is not None
        assert torch.equal(gradient * 8, found[1][name])  # a power of two: exact


@over_rules
def test_outputs_in_a_nesting_are_handled(rule: RuleCase) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> dict[str, Any]:
            z = self.net(x)
            return {"z": z, "both": (z.square(), 3)}

    nested, plain = rule.convert(Pair()), rule.convert(mlp())
    rules.backward(nested, lambda: errors(rule, nested(X)["z"] + nested(X)["both"][0] * 0, Y))
    teach(rule, plain)
    assert all(p.grad is not None and p.grad.any() for p in nested.parameters())


# --- number formats ---------------------------------------------------------------------------------------------------


@over_rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_the_models_dtype(rule: RuleCase, dtype: torch.dtype) -> None:
    net = rule.convert(mlp().to(dtype))
    teach(rule, net, X.to(dtype), Y.to(dtype))
    for p in net.parameters():
        assert p.grad is not None
        assert p.grad.dtype == dtype
        assert p.grad.isfinite().all()


@over_rules
def test_half_precision_needs_a_noise_above_its_rounding(rule: RuleCase) -> None:
    perturbs = "perturbation" in rule.name
    if perturbs:
        net = rule.convert(mlp().bfloat16())
        with pytest.raises(ValueError, match=r"sigma=0.001 is below the rounding of torch.bfloat16"):
            teach(rule, net, X.bfloat16(), Y.bfloat16())
        assert all(p.grad is None for p in net.parameters())
    louder = RuleCase(rule.name, {**rule.args, **({"sigma": 0.05} if perturbs else {})})
    net = louder.convert(mlp().bfloat16())
    teach(rule, net, X.bfloat16(), Y.bfloat16())
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["node_perturbation", "weight_perturbation"])
def test_a_loss_in_half_precision_needs_a_noise_above_its_rounding_too(name: str) -> None:
    """Changes of the loss were rounded to its eighth bit: a cosine of 0.59 to the true gradient, for 0.97."""
    net = RuleCase(name).convert(mlp().float())
    with pytest.raises(ValueError, match=r"sigma=0.001 is below the rounding of torch.bfloat16"):
        rules.backward(net, lambda: F.mse_loss(net(X.float()), Y.float()).bfloat16())
    assert all(p.grad is None for p in net.parameters())


@over_rules
def test_under_autocast_gradients_arrive_in_float32(rule: RuleCase) -> None:
    args = {**rule.args, **({"sigma": 0.05} if "perturbation" in rule.name else {})}
    net = RuleCase(rule.name, args).convert(mlp().float())

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output = net(X.float())
        return errors(rule, output.float(), Y.float())

    rules.backward(net, closure)
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in net.parameters())


# --- checkpoints and compiled models ----------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A net whose middle is computed again in the backward pass, or not (None)."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(*s).double() for s in ((5, 6), (6, 6), (6, 2)))

    def middle(self, h: Tensor) -> Tensor:
        return F.dropout(self.second(h).tanh(), 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        if self.reentrant is None:
            return self.third(self.middle(h))
        return self.third(checkpoint(self.middle, h, use_reentrant=self.reentrant))


@over_rules
def test_a_checkpoint_changes_nothing_or_is_refused(rule: RuleCase) -> None:
    found = []
    for reentrant in (None, False):
        net = rule.convert(Checkpointed(reentrant))
        torch.manual_seed(3)
        if rule.name == "soap" and reentrant is not None:
            with pytest.raises(RuntimeError, match=r"soap: layer 'second' runs in an activation checkpoint"):
                teach(rule, net)
            continue
        teach(rule, net)
        found.append(gradients(net))
    for name, gradient in found[0].items():
        assert torch.equal(found[-1][name], gradient)
    net = rule.convert(Checkpointed(True))
    with pytest.raises(RuntimeError, match=r"use_reentrant=False|not compatible with \.grad\(\)"):
        teach(rule, net)


@over_closures
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_learns_alike(rule: RuleCase, in_place: bool) -> None:
    plain, net = rule.convert(restless()), rule.convert(restless())
    compiled = net
    if in_place:
        net.compile(backend="aot_eager")
    else:
        compiled = torch.compile(net, backend="aot_eager")
    for model in (plain, compiled):
        torch.manual_seed(3)
        teach(rule, model)
    for name, gradient in gradients(plain).items():
        assert torch.equal(net.get_parameter(name).grad, gradient), name


# --- saved and continued ----------------------------------------------------------------------------------------------


def _through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _same(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q) if isinstance(p, Tensor) else p == q, name


@over_rules
@pytest.mark.parametrize("saved_at", [0, 2])
def test_a_run_resumed_from_a_state_dict_is_the_uninterrupted_run(rule: RuleCase, saved_at: int) -> None:
    whole, begun = (rule.convert(convnet(seed=0), seed=1) for _ in range(2))
    train(rule, whole, range(4))
    train(rule, begun, range(saved_at))
    resumed = rule.convert(convnet(seed=5), seed=6)
    resumed.load_state_dict(_through_file(begun.state_dict()))
    train(rule, resumed, range(saved_at, 4))
    _same(resumed, whole)


@over_rules
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_continues_like_its_original(rule: RuleCase, copied: Callable[[Any], Any]) -> None:
    net = rule.convert(convnet(), seed=1)
    train(rule, net, range(2))
    twin = copied(net)
    train(rule, net, range(2, 4))
    train(rule, twin, range(2, 4))
    _same(twin, net)
    assert rules.feedback_layers(twin)["0"].credit is not net[0].credit


@over_rules
def test_each_step_has_noise_of_its_own_and_a_seed_repeats_it(rule: RuleCase) -> None:
    def two(seed: int) -> list[Tensor]:
        net = rule.convert(mlp(), seed=seed)
        found = []
        for _ in range(2):
            net.zero_grad()
            teach(rule, net)
            with torch.no_grad():
                for layer in rules.feedback_layers(net).values():
                    layer.weight.add_(0)  # an update that changes nothing
            found.append(net[2].weight.grad.clone())
        return found

    first, again, other = two(0), two(0), two(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], first[1]) == (rule.name == "soap")
    if rule.args.get("guide") != "bp":
        assert not torch.allclose(first[0], other[0])


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*CLOSURES, *map(RuleCase, ("bp", "fa", "dfa", "noisy_backprop"))], ids=str)
def test_a_closure_that_returns_no_loss_is_an_error(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    who = rule.name if rules.RULES[rule.name].closure else "alignlab.rules.backward"
    for returned in (None, torch.ones(2, 2), torch.ones(0), torch.tensor(1), "loss"):
        with pytest.raises(ValueError, match=f"{who}: the closure returned .*expected the loss"):
            rules.backward(net, lambda returned=returned: returned)  # type: ignore[misc]
    with pytest.raises(ValueError, match="depends on no trained parameter"):
        rules.backward(net, lambda: torch.ones(3))
    assert all(p.grad is None for p in net.parameters())
    teach(rule, net)


def test_a_table_of_losses_is_an_error_in_a_model_without_a_rule() -> None:
    net = mlp()
    with pytest.raises(
        ValueError, match=r"a tensor of shape \(6, 2\), expected the loss: one number, or one for"
    ):
        rules.backward(net, lambda: (net(X) - Y).square())


@over_closures
def test_a_closure_that_does_something_else_the_second_time_is_an_error(rule: RuleCase) -> None:
    net, calls = rule.convert(mlp()), iter(range(9))

    def growing() -> Tensor:
        outputs = [net(X) for _ in range(1 + next(calls))]
        return errors(rule, sum(outputs, torch.zeros(())), Y)

    with pytest.raises(RuntimeError, match=rf"{rule.name}: the closure ran .*same batch"):
        rules.backward(net, growing)
    assert all(p.grad is None for p in net.parameters())
    teach(rule, net)


@pytest.mark.parametrize("name", ["node_perturbation", "soap"])
def test_a_batch_of_another_size_the_second_time_is_an_error(name: str) -> None:
    rule, sizes = RuleCase(name), iter([6, 3])
    net = rule.convert(mlp())

    def shrinking() -> Tensor:
        n = next(sizes)
        return errors(rule, net(X[:n]), Y[:n])

    with pytest.raises(RuntimeError, match=r"layer '0', .*another size.*same batch"):
        rules.backward(net, shrinking)


@over_closures
def test_an_interrupted_closure_leaves_weights_and_hooks_as_they_were(rule: RuleCase) -> None:
    net, calls = rule.convert(restless()), iter([False, True])
    before = copy.deepcopy(net.state_dict())
    hooks = [len(m._forward_hooks) for m in net.modules()]

    def closure() -> Tensor:
        loss = errors(rule, net(X), Y)
        if next(calls):
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        rules.backward(net, closure)
    assert [len(m._forward_hooks) for m in net.modules()] == hooks
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name])
    teach(rule, net)


@over_closures
def test_what_only_the_first_pass_draws_is_not_lost(rule: RuleCase) -> None:
    net, states = rule.convert(restless()), []

    def closure() -> Tensor:
        loss = errors(rule, net(X), Y)
        if not states:
            torch.rand(3)
            states.append(torch.get_rng_state())
        return loss

    rules.backward(net, closure)
    assert torch.equal(torch.get_rng_state(), states[0])


@over_closures
def test_a_closure_within_a_closure_is_an_error(rule: RuleCase) -> None:
    net = rule.convert(mlp())
    with pytest.raises(RuntimeError, match="should only return the loss"):
        rules.backward(net, lambda: teach(rule, net))


def test_a_model_of_two_conversions_has_no_one_rule() -> None:
    first, second = WHOLE[0].convert(mlp()), ALL_RULES[1].convert(mlp((2, 3)))
    net = nn.Sequential(first, second)
    with pytest.raises(ValueError, match=r"node_perturbation needs the whole model.*fa, node_perturbation"):
        rules.backward(net, lambda: net(X).mean())


@pytest.mark.parametrize(
    ("name", "args", "complaint"),
    [
        ("node_perturbation", {"sigma": 0}, "sigma is 0"),
        ("weight_perturbation", {"sigma": -1e-3}, "sigma is -0.001"),
        ("weight_perturbation", {"sigma": float("nan")}, "sigma is nan"),
        ("node_perturbation", {"sigma": True}, "sigma is True"),
        ("node_perturbation", {"samples": 0}, "samples is 0"),
        ("weight_perturbation", {"samples": 1.5}, "samples is 1.5"),
        ("node_perturbation", {"antithetic": "no"}, "antithetic is 'no'"),
        ("soap", {"guide": "dfa"}, "guide is 'dfa', expected one of bp, fa"),
        ("soap", {"form": "safe"}, "form is 'safe'"),
        ("soap", {"step": 0}, "step is 0"),
        ("soap", {"damping": -1}, "damping is -1"),
        ("soap", {"bias": float("inf")}, "bias is inf"),
        ("soap", {"init": "kaming"}, "did you mean 'kaiming'"),
        ("noisy_backprop", {"cosine": 1.5}, "cosine is 1.5, expected a number between -1 and 1"),
        ("noisy_backprop", {"gain": -1}, "gain is -1"),
        ("noisy_backprop", {"cosine": {"0": []}}, "cosine of '0' is"),
        ("noisy_backprop", {"cosine": {"0": [0.5, float("nan")]}}, "cosine of '0' is nan"),
        ("noisy_backprop", {"cosine": {"0": [0.5]}, "steps": [0, 5]}, "1 entries for 2 steps"),
        ("noisy_backprop", {"cosine": {"0": [0.5, 0.2]}, "steps": [5, 0]}, "ascending order"),
        ("noisy_backprop", {"cosine": 0.5, "steps": [0]}, "there is none"),
        ("noisy_backprop", {"cosine": {"1": [0.5]}}, r"'1' names no converted layer; there are 0, 2, 4"),
        ("noisy_backprop", {"cosines": 0.5}, "does not take"),
    ],
    ids=str,
)
def test_bad_arguments_are_one_clear_error_and_nothing_is_converted(
    name: str, args: dict[str, Any], complaint: str
) -> None:
    net = mlp()
    with pytest.raises(ValueError, match=complaint):
        rules.convert(net, name, **args)
    assert not rules.feedback_layers(net)
    assert not net._forward_hooks


def test_what_is_no_model_or_closure_is_told() -> None:
    with pytest.raises(TypeError, match=r"model is int, expected an nn\.Module"):
        rules.backward(3, lambda: torch.ones(()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="closure is Tensor, expected a function that returns the loss"):
        rules.backward(torch.nn.Linear(2, 1), torch.ones(()))  # type: ignore[arg-type]
