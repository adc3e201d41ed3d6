"""Every measure against its naive float64 twin, over shapes and dtypes, on the same rounded inputs."""

import math

import pytest
import torch

from alignlab import measures
from alignlab.testing import naive

# (N, in, out); the Gram form serves N·(in + 2·out) < 2·in·out, which for 30-20 is N ≤ 17
SHAPES = [(1, 1, 1), (6, 1, 1), (1, 5, 3), (9, 2, 7), (4, 30, 20), (17, 30, 20), (18, 30, 20), (50, 6, 5)]
# relative error of numbers, and error of angles in degrees; half precision is computed in float32
TOLERANCES = {
    torch.float64: (1e-11, 1e-6),
    torch.float32: (2e-5, 1e-3),
    torch.bfloat16: (2e-5, 1e-3),
    torch.float16: (2e-5, 1e-3),
}


def example(shape, dtype, seed=0):
    """Arguments of every measure for one layer, rounded to dtype; a zero row in each error signal where N allows."""
    n, n_in, n_out = shape
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    delta_bp = randn(n, n_out)
    delta_rule = 3 * (delta_bp + randn(n, n_out))
    if n > 3:
        delta_rule[1] = 0
        delta_bp[2] = 0
    W, B, dW = randn(n_out, n_in), randn(n_out, n_in), 0.1 * randn(n_out, n_in)
    values = {
        "delta_rule": delta_rule, "delta_bp": delta_bp, "h": randn(n, n_in).relu() + 0.1, "W": W, "B": B,
        "dW": dW, "W_after": W + dW,
    }  # fmt: skip
    return {name: value.to(dtype) for name, value in values.items()}


ANGLES = {
    "gradient_angle": ("delta_rule", "delta_bp", "h"),
    "weight_angle": ("B", "W"),
    "update_angle": ("dW", "delta_bp", "h"),
    "angular_update": ("W", "W_after"),
}
SAMPLE_ANGLES = {"delta_angle": ("delta_rule", "delta_bp"), "local_angle": ("delta_rule", "B", "W")}
NUMBERS = {
    "feedback_gain": ("delta_rule", "delta_bp", "h"),
    "relative_update": ("dW", "W"),
    "frobenius": ("W",),
    "descent_fraction": ("delta_rule", "W", "B"),
}
# these can be near zero by cancellation, so their error is relative to a bound of theirs
SIGNED = {"update_products": ("dW", "delta_bp", "h"), "projected_lr": ("dW", "delta_bp", "h")}
CASES = [(shape, dtype) for shape in SHAPES for dtype in TOLERANCES]


def both(name, arguments):
    return getattr(measures, name)(*arguments), getattr(naive, name)(*arguments)


def close(fast, slow, **tolerance):
    return fast == pytest.approx(slow, nan_ok=True, **tolerance)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_angles_equal_their_naive_twins(shape, dtype):
    values, (_, degrees) = example(shape, dtype), TOLERANCES[dtype]
    for name, arguments in ANGLES.items():
        fast, slow = both(name, [values[a] for a in arguments])
        assert close(fast.item(), slow, abs=degrees), name
    cosine = measures.cosine(values["B"], values["W"], dims=2).item()
    assert close(cosine, naive.cosine(values["B"], values["W"]), abs=math.radians(degrees))


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_sample_angles_equal_their_naive_twins(shape, dtype):
    values, (_, degrees) = example(shape, dtype), TOLERANCES[dtype]
    for name, arguments in SAMPLE_ANGLES.items():
        fast, slow = both(name, [values[a] for a in arguments])
        assert [x.item() for x in fast] == pytest.approx(list(slow), abs=degrees), name


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_gradient_products_equal_their_naive_twins(shape, dtype):
    values, (relative, _) = example(shape, dtype), TOLERANCES[dtype]
    fast, slow = both("gradient_products", [values[a] for a in ("delta_rule", "delta_bp", "h")])
    bound = relative * math.sqrt(slow[0] * slow[2])
    assert close(fast[0].item(), slow[0], rel=relative)
    assert close(fast[1].item(), slow[1], abs=bound)
    assert close(fast[2].item(), slow[2], rel=relative)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_sizes_equal_their_naive_twins(shape, dtype):
    values, (relative, _) = example(shape, dtype), TOLERANCES[dtype]
    for name, arguments in NUMBERS.items():
        fast, slow = both(name, [values[a] for a in arguments])
        assert close(fast.item(), slow, rel=relative), name
    size = naive.frobenius(naive.gradient(values["delta_bp"], values["h"]))
    fast = measures.applied_gain(values["dW"], 0.3, torch.tensor(size))
    assert close(fast.item(), naive.applied_gain(values["dW"], 0.3, size), rel=1e-6)
    bounds = {"update_products": naive.frobenius(values["dW"]) * size}
    bounds["projected_lr"] = bounds["update_products"] / size**2
    for name, arguments in SIGNED.items():
        fast, slow = both(name, [values[a] for a in arguments])
        assert close(fast.item(), slow, abs=relative * bounds[name]), name


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_spectra_equal_their_naive_twins(shape, dtype):
    values = example(shape, dtype)
    W, B = values["W"], values["B"]
    spectrum, slow = measures.feedback_spectrum(W, B), torch.from_numpy(naive.spectrum(W, B))
    modes, scale = torch.complex(spectrum.real, spectrum.imag), slow.abs().max().item()
    assert torch.allclose(modes.abs(), slow.abs(), rtol=0, atol=1e-9 * scale)
    # one to one: the nearest exact mode of each is near (conjugates share a modulus, so order alone does not match)
    distance = (modes[:, None] - slow[None, :]).abs()
    assert distance.min(0).values.max() < 1e-9 * scale
    assert distance.min(1).values.max() < 1e-9 * scale
    symmetric = naive.symmetric_spectrum(W, B)
    assert close(spectrum.symmetric_min.item(), symmetric[0], abs=1e-9 * scale)
    assert close(spectrum.symmetric_max.item(), symmetric[-1], abs=1e-9 * scale)
    assert close(spectrum.positive_fraction.item(), naive.positive_fraction(naive.spectrum(W, B)))
    assert close(spectrum.symmetric_positive_fraction.item(), naive.positive_fraction(symmetric))
    bound = TOLERANCES[dtype][0] * naive.frobenius(W) * naive.frobenius(B)
    assert close(spectrum.trace.item(), naive.spectrum_trace(W, B), abs=bound)


def test_effective_lr_equals_its_naive_twin():
    assert measures.effective_lr(0.2, torch.tensor(30.0)).item() == pytest.approx(
        naive.effective_lr(0.2, 30.0)
    )


def test_leading_run_dimensions_give_what_each_run_gives_alone():
    runs = [example((7, 11, 5), torch.float64, seed) for seed in range(6)]
    stacked = {name: torch.stack([run[name] for run in runs]).unflatten(0, (2, 3)) for name in runs[0]}
    for name, arguments in (ANGLES | SAMPLE_ANGLES | NUMBERS | SIGNED).items():
        measure = getattr(measures, name)
        together = measure(*(stacked[a] for a in arguments))
        alone = [measure(*(run[a] for a in arguments)) for run in runs]
        if isinstance(together, tuple):
            together, alone = torch.stack(together, -1), [torch.stack(result) for result in alone]
        assert together.shape[:2] == (2, 3), name
        assert torch.allclose(together.flatten(0, 1), torch.stack(alone), atol=1e-6), name
    together = measures.feedback_spectrum(stacked["W"], stacked["B"])
    for index, run in enumerate(runs):
        alone = measures.feedback_spectrum(run["W"], run["B"])
        for field in ("real", "imag", "positive_fraction", "symmetric_min", "symmetric_max", "trace"):
            got = getattr(together, field)[index // 3, index % 3]
            assert torch.allclose(got, getattr(alone, field)), field


def test_one_shared_input_serves_all_runs():
    runs = [example((4, 30, 20), torch.float64, seed) for seed in range(3)]
    rule, bp = (torch.stack([run[name] for run in runs]) for name in ("delta_rule", "delta_bp"))
    together = measures.gradient_angle(rule, bp, runs[0]["h"])
    alone = [measures.gradient_angle(run["delta_rule"], run["delta_bp"], runs[0]["h"]) for run in runs]
    assert torch.allclose(together, torch.stack(alone), atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_number_is_of_double_precision(dtype):
    values = example((9, 2, 7), dtype)
    for name, arguments in (ANGLES | SAMPLE_ANGLES | NUMBERS | SIGNED).items():
        found = getattr(measures, name)(*(values[key] for key in arguments))
        for number in found if isinstance(found, tuple) else (found,):
            assert number.dtype == torch.float64, name
