"""Angles at their edges: zero, parallel, opposite, tiny, huge and broken vectors, and what may not leak in."""

import math

import pytest
import torch

from alignlab import measures
from alignlab.measures import _host, angles
from alignlab.testing import naive

GRAM, EXPLICIT = (8, 30, 20), (60, 12, 10)  # (N, in, out) below and above the crossover


def signals(shape=GRAM, seed=0, dtype=torch.float32):
    n, n_in, n_out = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((n, n_out), (n, n_out), (n, n_in))
    return [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]


def rotated(shape, degrees, seed=0):
    """Two float64 error signals whose gradients are exactly ``degrees`` apart, and the input."""
    delta, other, h = signals(shape, seed, torch.float64)
    G, G_other = delta.mT @ h, other.mT @ h
    other = other - (G * G_other).sum() / (G * G).sum() * delta
    other = other * G.norm() / (other.mT @ h).norm()
    turn = math.radians(degrees)
    return delta, math.cos(turn) * delta + math.sin(turn) * other, h


@pytest.mark.parametrize("shape", [GRAM, EXPLICIT])
@pytest.mark.parametrize("factor", [1.0, 3.7, 1e-3, 1e4])
def test_parallel_gradients_are_at_zero_and_opposite_ones_at_180(shape, factor):
    delta, _, h = signals(shape)
    assert measures.gradient_angle(delta, factor * delta, h).item() < 1e-4
    assert measures.gradient_angle(delta, -factor * delta, h).item() > 180 - 1e-4


@pytest.mark.parametrize("shape", [GRAM, EXPLICIT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degrees", [1e-3, 0.01, 1.0, 45.0, 90.0, 135.0, 179.0, 179.999])
def test_small_and_large_gradient_angles_are_resolved(shape, dtype, degrees):
    delta, other, h = (x.to(dtype) for x in rotated(shape, degrees))
    assert measures.gradient_angle(delta, other, h).item() == pytest.approx(degrees, abs=5e-5)


@pytest.mark.parametrize("degrees", [1e-4, 1e-2, 30.0, 90.0, 150.0, 179.9999])
def test_angle_of_vectors_keeps_its_digits_near_0_and_180(degrees):
    turn = math.radians(degrees)
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    assert measures.angle(a, b).item() == pytest.approx(degrees, abs=1e-11)
    assert measures.angle(a.float(), b.float()).item() == pytest.approx(degrees, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_vector_is_at_zero_to_itself_and_at_180_to_its_opposite(dtype):
    x = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(measures.angle(x, x), torch.zeros(5, dtype=torch.float64))
    assert torch.equal(measures.angle(x, -x), torch.full((5,), 180.0, dtype=torch.float64))


def test_zero_vector_has_no_angle():
    zero, one = torch.zeros(3, 2), torch.ones(3, 2)
    assert measures.angle(zero, one).isnan().all()
    assert measures.angle(one, zero).isnan().all()
    assert measures.cosine(zero, zero).isnan().all()
    assert measures.weight_angle(zero, one).isnan()


@pytest.mark.parametrize(("shape", "dims"), [((0,), 1), ((3, 0), 1), ((2, 3, 0), 2), ((2, 0, 3), 2)])
def test_a_vector_without_entries_has_no_angle(shape, dims):
    empty = torch.zeros(shape)
    for found in (measures.angle(empty, empty, dims), measures.cosine(empty, empty, dims)):
        assert found.shape == shape[:-dims]
        assert found.isnan().all()


@pytest.mark.parametrize("shape", [GRAM, EXPLICIT, (1, 1, 1)])
def test_zero_gradient_has_no_angle(shape):
    delta, _, h = signals(shape)
    for rule, bp in ((torch.zeros_like(delta), delta), (delta, torch.zeros_like(delta))):
        assert measures.gradient_angle(rule, bp, h).isnan()
    n11, n12, n22 = measures.gradient_products(torch.zeros_like(delta), delta, h)
    assert (n11.item(), n12.item()) == (0, 0)
    assert n22.item() == pytest.approx(((delta.mT @ h) ** 2).sum().item(), rel=1e-5)


def test_gradients_that_cancel_over_the_batch_have_no_angle_although_no_delta_is_zero():
    delta, h = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    assert measures.gradient_angle(delta, torch.ones(2, 1), h).isnan()
    assert measures.delta_angle(delta, torch.ones(2, 1))[2] == 0


def test_samples_without_an_angle_are_left_out_and_counted():
    rule, bp, _ = signals((5, 4, 3))
    rule[0], bp[3] = 0, 0
    mean, std, zeros = measures.delta_angle(rule, bp)
    known = measures.angle(rule, bp)[[1, 2, 4]]
    assert mean.item() == pytest.approx(known.mean().item())
    assert std.item() == pytest.approx(known.std(correction=0).item())
    assert zeros.item() == pytest.approx(0.4)


def test_a_batch_of_zero_signals_has_zero_fraction_one():
    mean, std, zeros = measures.delta_angle(torch.zeros(4, 3), torch.ones(4, 3))
    assert mean.isnan()
    assert std.isnan()
    assert zeros == 1


def test_a_broken_sample_shows_instead_of_being_left_out():
    rule, bp, h = signals()
    rule[2, 0] = torch.nan
    assert measures.delta_angle(rule, bp)[0].isnan()
    assert measures.gradient_angle(rule, bp, h).isnan()


def test_local_angle_asks_for_directions_whatever_the_scales():
    delta, B, W = torch.tensor([[1.0], [1e-3]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    for size in (1.0, 1e-25, 1e25):
        mean, std, zeros = measures.local_angle(size * delta, size * B, size * W)
        assert (float(mean), float(std), float(zeros)) == pytest.approx((45, 0, 0), abs=1e-5)


def test_local_angle_is_zero_where_the_feedback_is_the_weight():
    delta, _, _ = signals()
    W = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    mean, std, zeros = measures.local_angle(delta, W, W)
    assert (mean.item(), std.item(), zeros.item()) == (0, 0, 0)


@pytest.mark.parametrize("shape", [GRAM, EXPLICIT])
@pytest.mark.parametrize(
    "scales", [(1e-25, 1.0, 1.0), (1.0, 1e-25, 1.0), (1e-15, 1e-22, 1e-3), (1e18, 1e3, 1.0)]
)
def test_vanishing_and_exploding_signals_keep_their_angle(shape, scales):
    rule, bp, h = signals(shape)
    expected = measures.gradient_angle(rule.double(), bp.double(), h.double()).item()
    scaled = [x * scale for x, scale in zip((rule, bp, h), scales, strict=True)]
    assert measures.gradient_angle(*scaled).item() == pytest.approx(expected, abs=1e-3)
    assert measures.delta_angle(*scaled[:2])[0].item() == pytest.approx(
        measures.delta_angle(rule, bp)[0].item(), abs=1e-3
    )


def test_tiny_inputs_keep_the_gram_form_exact():
    rule, bp, h = signals(GRAM)
    expected = measures.gradient_angle(rule, bp, h).item()
    assert measures.gradient_angle(rule, bp, h * 1e-22).item() == pytest.approx(expected, abs=1e-3)


def test_doubles_that_nearly_cancel_over_the_batch_leave_the_gradient_that_is_left():
    """As on the plateau of XOR: hhᵀ squares what is left, 1e-8 of the samples', and had half of its norm wrong."""
    one, _, h = signals((1, 30, 20), dtype=torch.float64)
    delta, h = torch.cat([one, -one]), torch.cat([h, h * (1 + 1e-8)])
    G = delta.mT @ h
    n11, _, _ = measures.gradient_products(delta, delta + 0, h)
    assert n11.sqrt().item() == pytest.approx(G.norm().item(), rel=1e-6)


def test_float64_signals_beyond_float32_keep_their_products():
    rule, bp, h = signals(GRAM, dtype=torch.float64)
    n11, n12, n22 = measures.gradient_products(rule, bp, h)
    tiny = measures.gradient_products(rule * 1e-60, bp, h)
    assert tiny[0].item() == pytest.approx(n11.item() * 1e-120, rel=1e-9)
    assert tiny[1].item() == pytest.approx(n12.item() * 1e-60, rel=1e-9)
    assert tiny[2].item() == pytest.approx(n22.item(), rel=1e-9)


def test_a_gradient_whose_square_overflows_has_no_angle_and_no_gain():
    h, small = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    large = 1e160 * small
    for rule, bp in ((small, large), (large, small), (large, large)):
        assert measures.gradient_angle(rule, bp, h).isnan()
    assert measures.feedback_gain(small, large, h).isnan()


def test_vectors_too_long_for_float32_have_no_angle_rather_than_a_wrong_one():
    a = torch.full((100,), 3e38)
    assert measures.angle(a, torch.ones(100)).isnan()


@pytest.mark.parametrize(("n", "form"), [(17, "gram"), (18, "explicit")])
def test_the_cheaper_form_is_chosen_by_count(monkeypatch, n, form):
    made = []
    monkeypatch.setattr(angles, "matmul", lambda a, b: made.append(tuple((a @ b).shape)) or a @ b)
    measures.gradient_products(*signals((n, 30, 20)))
    assert made == {"gram": [(n, n), (n, 20), (n, 20)], "explicit": [(20, 30), (20, 30)]}[form]


def test_measures_stay_out_of_the_graph():
    rule, bp, h = (x.requires_grad_() for x in signals())
    results = [
        *measures.gradient_products(rule, bp, h),
        *measures.delta_angle(rule, bp),
        measures.angle(rule, bp),
    ]
    assert not any(x.requires_grad for x in results)


def test_autocast_does_not_round_a_measure():
    rule, bp, h = signals()
    expected = measures.gradient_angle(rule, bp, h)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(measures.gradient_angle(rule, bp, h), expected)


@pytest.mark.parametrize(
    ("rule", "bp", "h", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), torch.ones(4, 5), "3 error rows, 4 input rows"),
        (torch.ones(4, 2), torch.ones(4, 3), torch.ones(4, 5), "differ in width"),
        (torch.ones(0, 2), torch.ones(0, 2), torch.ones(0, 5), "empty batch"),
    ],
)
def test_signals_that_do_not_fit_together_are_named(rule, bp, h, message):
    with pytest.raises(ValueError, match=message):
        measures.gradient_products(rule, bp, h)


@pytest.mark.parametrize("measure", ["update_products", "update_angle", "projected_lr"])
@pytest.mark.parametrize(
    ("n", "message"), [(3, "3 error rows, 4 input rows"), (0, "0 error rows, 4 input rows")]
)
def test_a_step_is_compared_with_the_gradient_of_whole_samples(measure, n, message):
    with pytest.raises(ValueError, match=message):
        getattr(measures, measure)(torch.ones(2, 5), torch.ones(n, 2), torch.ones(4, 5))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="int64"):
        measures.angle(torch.ones(3, dtype=torch.int64), torch.ones(3))


def test_arrays_are_told_to_become_tensors():
    with pytest.raises(TypeError, match=r"need tensors, got ndarray; use torch\.as_tensor"):
        measures.angle(torch.ones(3).numpy(), torch.ones(3).numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_the_cpu_angles():
    for shape in (GRAM, EXPLICIT):
        inputs = signals(shape)
        on_gpu = measures.gradient_angle(*(x.cuda() for x in inputs))
        assert on_gpu.item() == pytest.approx(measures.gradient_angle(*inputs).item(), abs=1e-3)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30, 1e37])
def test_angles_of_single_errors_survive_any_scale(scale):
    """The squares of such entries are 0 or infinite in float32."""
    generator = torch.Generator().manual_seed(0)
    rule, bp = (torch.randn(50, 7, generator=generator) for _ in range(2))
    rule[3], bp[4], rule[5] = 0, 0, 0
    rule[5, 0] = -1  # its largest entry, by size
    loud = scale * rule
    mean, std, zeros = (x.item() for x in measures.delta_angle(loud, bp))
    expected = naive.delta_angle(loud.double(), bp.double())
    assert (mean, std, zeros) == pytest.approx(expected, abs=2e-3)
    assert zeros == pytest.approx(0.04)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_angles_of_weights_survive_any_scale(scale):
    generator = torch.Generator().manual_seed(0)
    B, W = (torch.randn(30, 20, generator=generator) for _ in range(2))
    inhibiting = [-scale * x.abs().triu() for x in (B, W)]  # the largest entry, by size, is negative
    for a, b in ((scale * B, W), (B, scale * W), (scale * B, scale * W), inhibiting):
        expected = naive.weight_angle(a.double(), b.double())
        assert measures.weight_angle(a, b).item() == pytest.approx(expected, abs=1e-4)


def test_large_matrices_are_measured_block_by_block_like_small_ones(monkeypatch):
    monkeypatch.setattr(_host, "takes", lambda *matrices: False)
    generator = torch.Generator().manual_seed(0)
    W, noise = (torch.randn(2, 700, 301, generator=generator) for _ in range(2))
    for B in (W, -W, W + 1e-4 * noise, noise):
        expected = [naive.weight_angle(b.double(), w.double()) for b, w in zip(B, W, strict=True)]
        assert measures.weight_angle(B, W).tolist() == pytest.approx(expected, abs=1e-5)
    rule, bp, h = (torch.randn(2, 900, n, generator=generator) for n in (300, 300, 450))
    every = zip(rule.double(), bp.double(), h.double(), strict=True)
    expected = [naive.gradient_angle(*layer) for layer in every]
    assert measures.gradient_angle(rule, bp, h).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [3e-12, 1e-11, 1e-9, 1e-6, 1.0, 1e6, 1e9, 1e10])
@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 30, 20), (60, 12, 10)])
def test_the_size_of_signal_and_input_does_not_reach_the_angle(shape, size):
    """Squares of gradients are fourth powers of this size."""
    n, n_in, n_out = shape
    generator = torch.Generator().manual_seed(0)
    h, bp, noise = (size * torch.randn(n, k, generator=generator) for k in (n_in, n_out, n_out))
    rule = bp + noise
    G, G_bp = rule.double().T @ h.double(), bp.double().T @ h.double()
    dW = (-0.1 * G).float()
    degrees = measures.angle(G, G_bp, dims=2).item()
    assert measures.gradient_angle(rule, bp, h).item() == pytest.approx(degrees, abs=1e-3)
    assert measures.feedback_gain(rule, bp, h).item() == pytest.approx(
        (G.norm() / G_bp.norm()).item(), rel=1e-4
    )
    assert measures.update_angle(dW, bp, h).item() == pytest.approx(degrees, abs=1e-2)
    lr = 0.1 * ((G * G_bp).sum() / G_bp.square().sum()).item()
    assert measures.projected_lr(dW, bp, h).item() == pytest.approx(lr, rel=1e-3)


@pytest.mark.parametrize(
    "compare",
    [
        lambda: measures.weight_angle(torch.ones(1, 1), torch.eye(3)),
        lambda: measures.delta_angle(torch.ones(4, 3), torch.ones(1, 3)),
        lambda: measures.cosine(torch.ones(4), torch.ones(1)),
        lambda: measures.angle(torch.ones(2, 3), torch.ones(2, 1), dims=2),
        lambda: measures.update_angle(torch.ones(3, 1), torch.ones(4, 3), torch.ones(4, 5)),
        lambda: measures.update_products(torch.ones(1, 5), torch.ones(4, 3), torch.ones(4, 5)),
    ],
)
def test_what_does_not_match_has_no_angle(compare):
    with pytest.raises(ValueError, match=r"must be equal|is not of the layer"):
        compare()


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 1e-11])
def test_double_precision_resolves_the_angles_that_it_can(step):
    generator = torch.Generator().manual_seed(0)
    W, other = (torch.randn(30, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    across = other - (other * W).sum() / W.square().sum() * W
    after = W + step * W.norm() / across.norm() * across
    for found in (measures.weight_angle(W, after), measures.angular_update(W, after)):
        assert math.radians(found.item()) == pytest.approx(step, rel=1e-4)


def test_one_vanishing_row_leaves_the_other_rows_their_digits():
    """A row whose squares vanish goes another way; a zero row too."""
    rule, bp, _ = signals((6, 4, 50))
    expected = [measures.angle(rule[i], bp[i]).item() for i in range(6)]
    for row, scale in ((rule, 1e-30), (bp, 1e-30), (rule, 1e25), (bp, 0.0)):
        row[3] *= scale
        products = measures.delta_products(rule, bp)
        for i in range(3):
            mean = measures.delta_angle_from_products(products[:, i : i + 1])[0].item()
            assert mean == pytest.approx(expected[i], abs=1e-4)


@pytest.mark.parametrize("degrees", [1e-3, 0.1, 18.3, 18.5, 90.0, 161.5, 161.7, 179.999])
def test_matrices_near_and_far_from_parallel_have_their_angle(degrees):
    """Far ones need no residual: the two ways meet where the squared cosine is 0.9, at 18.4 degrees."""
    a, across, _ = rotated((20, 30, 20), 90.0)
    a, across = a / a.norm(), across - (a * across).sum() / a.square().sum() * a
    turn = math.radians(degrees)
    b = 3 * (math.cos(turn) * a + math.sin(turn) * across / across.norm())
    products = measures.products_from_tied(measures.tied_weight_products(a.float(), b.float()))
    assert measures.angle_from_products(*products).item() == pytest.approx(degrees, abs=5e-5)
    assert products[2].item() == pytest.approx(9, rel=1e-5)


def several_runs(unusual, generator):
    """Error signals and inputs of four runs, the third of them ``unusual``."""
    rule, bp, h = (torch.randn(4, 12, n, generator=generator) for n in (20, 20, 30))
    bp[1] = rule[1] + 1e-4 * bp[1]  # nearly parallel: products are too coarse
    unusual(rule, bp, h)
    return rule, bp, h


def cancelling(rule, bp, h):
    """Make two errors, 1e-5 apart, whose samples all but cancel in the gradient: saturated units, centred errors."""
    h.mul_(2e-4).add_(1)
    rule.sub_(rule.mean(0))
    bp.copy_(rule * (1 + 1e-5 * bp)).sub_(bp.mean(0))


UNUSUAL = {
    "none": lambda rule, bp, h: None,
    "diverged": lambda rule, bp, h: rule[2].fill_(math.nan),
    "no error": lambda rule, bp, h: bp[2].zero_(),
    "tiny": lambda rule, bp, h: rule[2].mul_(1e-30),
    "tiny and huge": lambda rule, bp, h: (h[2].mul_(1e-25), rule[2].mul_(1e25), bp[2].mul_(1e25)),
    "samples that cancel": lambda rule, bp, h: cancelling(rule[2], bp[2], h[2]),
    "true errors that cancel": lambda rule, bp, h: cancelling(rule[2].clone(), bp[2], h[2]),
    "a sample of each": lambda rule, bp, h: (rule[2, 0].zero_(), rule[2, 1].mul_(1e25), bp[2, 2].mul_(1e-30)),
}


@pytest.mark.parametrize("what", UNUSUAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_way_gives_what_the_careful_way_gives(monkeypatch, what, dtype):
    rule, bp, h = (x.to(dtype) for x in several_runs(UNUSUAL[what], torch.Generator().manual_seed(0)))
    compared = {
        "gram": lambda: measures.angle_from_products(*measures.gradient_products(rule, bp, h)),
        "explicit": lambda: measures.angle_from_products(
            *measures.gradient_products(rule[..., :3], bp[..., :3], h[..., :4])
        ),
        "sizes": lambda: torch.stack(measures.gradient_products(rule, bp, h)).sqrt(),
        "rows": lambda: torch.stack(measures.delta_angle(rule, bp)),
        "matrices": lambda: measures.weight_angle(rule, bp),
        "update": lambda: measures.update_products(bp.mT @ h, rule, h),
    }
    tolerance = 1e-4 if "cancel" in what and dtype is torch.float32 else 3e-6  # what is left is rounding
    fast = {name: compare() for name, compare in compared.items()}
    monkeypatch.setattr(_host, "takes", lambda *matrices: False)
    for name, compare in compared.items():
        slow = compare()
        scale = 180 if name in ("gram", "explicit", "rows", "matrices") else slow.abs()
        off = ((fast[name] - slow).abs() / scale)[~slow.isnan()]
        assert fast[name].isnan().equal(slow.isnan()), name
        assert off.nan_to_num(0.0).max() < tolerance, name


@pytest.mark.parametrize("what", [what for what in UNUSUAL if what != "none"])
def test_no_bit_of_a_run_depends_on_the_runs_beside_it(what):
    generator = torch.Generator()
    plain = several_runs(UNUSUAL["none"], generator.manual_seed(0))
    beside = several_runs(UNUSUAL[what], generator.manual_seed(0))
    others = [0, 1, 3]
    for measure in (
        measures.tied_gradient_products,
        lambda rule, bp, h: measures.delta_products(rule, bp),
        lambda rule, bp, h: measures.tied_weight_products(rule, bp),
        lambda rule, bp, h: measures.update_products(rule.mT @ h, bp, h),
    ):
        assert measure(*plain)[others].equal(measure(*beside)[others])


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("of_metric", [1e-12, 1.0, 1e21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_run_in_plain_numbers_is_judged_as_it_is_among_others(monkeypatch, dtype, of_metric, scale):
    generator = torch.Generator().manual_seed(0)
    a, other, x = (torch.randn(6, 5, generator=generator, dtype=dtype) for _ in range(3))
    metric = of_metric * x @ x.mT
    size = metric.diagonal().max().reshape(1).double().numpy()
    pairs = [scale * b for b in (other, a + 0.1 * other, a + 1e-5 * other, -a, 0 * a, a / 0 * 0)]
    for b in (*pairs, scale * a):
        for way in ({}, {"lift": lambda delta: metric @ delta, "size": size}):
            first = b if b.equal(scale * a) else scale * a
            one = _host.tied(first, b, **way)
            with monkeypatch.context() as patched:
                patched.setattr(_host, "_tied_of_one", lambda *given: None)
                among = _host.tied(first, b, **way)
            assert (one[1] == among[1]).all()
            if one[1].all():
                assert one[0][0, :3] == pytest.approx(among[0][0, :3], rel=1e-6)
                assert one[0][0, 3] == pytest.approx(among[0][0, 3], rel=1e-3, abs=1e-12 * one[0][0, 0])


@pytest.mark.parametrize("seed", range(8))
def test_gradients_whose_samples_cancel_have_no_angle_of_rounding(seed):
    rule, bp, h = signals((8, 30, 20), seed)
    cancelling(rule, bp, h)
    expected = naive.gradient_angle(rule.double(), bp.double(), h.double())
    assert expected < 0.05
    assert measures.gradient_angle(rule, bp, h).item() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_whose_samples_cancel_has_its_angle_to_one_whose_do_not(seed, size, runs):
    rule, bp, h = signals((8, 30, 20), seed)
    rest = [x.expand(runs - 1, *x.shape) for x in (rule, bp, h)]
    other = rule.clone()
    cancelling(rule, bp, h)
    h *= size
    expected = naive.gradient_angle(other.double(), bp.double(), h.double())
    for pair in ((other, bp), (bp, other)):
        given = [torch.cat([many, x[None]]) for many, x in zip(rest, (*pair, h), strict=True)]
        found = measures.gradient_angle(*(given if runs > 1 else (*pair, h))).flatten()[-1]
        assert found.item() == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("left", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("way", ["alone", "among others", "careful"])
def test_what_is_left_of_samples_that_cancel_has_its_own_angle_and_size(monkeypatch, way, left):
    rule, bp, h = signals()
    h = 1 + left * h  # inputs that are nearly alike, as on the plateau that small weights begin on
    rule, bp = (delta - delta.mean(0) for delta in (rule, bp + rule))
    given = [torch.stack([other, x]) for other, x in zip(signals(seed=1), (rule, bp, h), strict=True)]
    if way != "among others":
        given = [x[1] for x in given]
    if way == "careful":
        monkeypatch.setattr(_host, "takes", lambda *matrices: False)
    exact = [x.double() for x in (rule, bp, h)]
    found = measures.gradient_angle(*given).flatten()[-1].item()
    assert found == pytest.approx(naive.gradient_angle(*exact), abs=1e-2)
    for delta, delta_64 in zip(given, exact[:2], strict=False):
        square = measures.gradient_products(delta, delta, given[2])[0].flatten()[-1].item()
        assert square**0.5 == pytest.approx(naive.frobenius(naive.gradient(delta_64, exact[2])), rel=1e-4)
    gain = measures.feedback_gain(*given).flatten()[-1].item()
    assert gain == pytest.approx(naive.feedback_gain(*exact), rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (2, 9000), (2, 4, 7)])
@pytest.mark.parametrize("size", [1e-30, 1.0])
def test_a_matrix_is_at_exactly_zero_to_itself_by_either_way(monkeypatch, shape, size):
    x = size * torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(_host, "takes", lambda *matrices: False)
        n11, n12, n22 = measures.weight_products(x, x)
        assert n11.equal(n12)
        assert n11.equal(n22)
        assert (n11 > 0).all()


def test_rows_of_any_length_and_layout_are_measured():
    generator = torch.Generator().manual_seed(0)
    long = [torch.randn(3, 9000, generator=generator) for _ in range(2)]
    turned = [torch.randn(40, 3, generator=generator).T for _ in range(2)]
    spread = [torch.randn(3, 1, generator=generator).expand(3, 40), turned[0]]
    for a, b in (long, turned, spread):
        expected = [measures.angle(x.double(), y.double()).item() for x, y in zip(a, b, strict=True)]
        assert measures.delta_angle(a, b)[0].item() == pytest.approx(sum(expected) / 3, abs=1e-4)
        flat = measures.angle(a.double().flatten(), b.double().flatten()).item()
        assert measures.weight_angle(a, b).item() == pytest.approx(flat, abs=1e-4)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_cosines_and_angles_are_of_all_the_dimensions_asked_for(dims):
    a, b = (torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    flat = [x.double().flatten(3 - dims) for x in (a, b)]
    expected = (flat[0] * flat[1]).sum(-1) / (flat[0].norm(dim=-1) * flat[1].norm(dim=-1))
    assert torch.allclose(measures.cosine(a, b, dims), expected, atol=1e-6)
    assert torch.allclose(measures.angle(a, b, dims).deg2rad().cos(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_compared_with_itself_is_at_exactly_zero(dtype):
    delta, h = (torch.randn(2, 6, n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (4, 9))
    delta[0, 2] = 0
    mean, std, zeros = measures.delta_angle(delta, delta)
    assert (mean.tolist(), std.tolist()) == ([0, 0], [0, 0])
    assert zeros.tolist() == pytest.approx([1 / 6, 0])
    assert measures.gradient_angle(delta, delta, h).tolist() == [0, 0]
    assert measures.weight_angle(delta, delta).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_whose_copy_it_is_compared_with_is_at_zero_beside_one_that_is_not(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 6, 9, generator=generator, dtype=dtype) for _ in range(2))
    b[0] = a[0]
    expected = [0, measures.angle(a[1], b[1], dims=2).item()]
    products = measures.products_from_tied(measures.tied_weight_products(a, b))
    assert measures.angle_from_products(*products).tolist() == pytest.approx(expected, abs=1e-5)
    assert measures.weight_angle(a, b).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ratio", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("fast", [True, False])
def test_small_angles_of_samples_are_resolved_whatever_their_lengths(monkeypatch, fast, ratio):
    if not fast:
        monkeypatch.setattr(_host, "takes", lambda *matrices: False)
    generator = torch.Generator().manual_seed(0)
    a, other = (torch.randn(50, 7, generator=generator) for _ in range(2))
    b = ratio * (a + 1e-4 * other)
    expected = measures.angle(a.double(), b.double()).mean().item()
    assert 1e-3 < expected < 1e-1
    assert measures.delta_angle(a, b)[0].item() == pytest.approx(expected, rel=1e-2)


def test_the_largest_entry_on_a_diagonal_is_each_runs_own():
    x = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0))
    x[0, 4, 4], x[1, 2, 2], x[2, 0, 1] = 9, 8, 7
    assert _host.largest_on_diagonal(x).tolist() == x.diagonal(dim1=-2, dim2=-1).amax(-1).tolist()


def test_no_rounding_takes_a_cosine_beyond_one():
    x = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))
    assert measures.cosine(x, x).max() <= 1
    assert measures.cosine(x, -x).min() >= -1
