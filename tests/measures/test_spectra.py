"""Spectra of W Bᵀ: the backprop control, thin and wide layers, large ones, broken ones, and the errors that descend."""

import pytest
import torch

from alignlab import measures
from alignlab.measures.spectra import compress, exact_symmetric

SHAPES = [(1, 1), (6, 6), (5, 40), (40, 5), (12, 8)]  # (out, in)
SUMMARIES = ("positive_fraction", "symmetric_min", "symmetric_max", "symmetric_positive_fraction", "trace")


def weights(n_out, n_in, seed=0, alignment=0.0):
    generator = torch.Generator().manual_seed(seed)
    W, other = (torch.randn(n_out, n_in, generator=generator) / n_in**0.5 for _ in range(2))
    return W, alignment * W + other


@pytest.mark.parametrize("shape", [*SHAPES, (128, 200)])
def test_backprop_is_real_and_nonnegative_and_descends_everywhere(shape):
    W, _ = weights(*shape)
    spectrum = measures.feedback_spectrum(W, W)
    scale = spectrum.real.max().item()
    assert spectrum.imag.abs().max() < 1e-12 * scale
    assert spectrum.real.min() > -1e-12 * scale
    assert spectrum.positive_fraction == 1
    assert spectrum.symmetric_positive_fraction == 1
    errors = torch.randn(50, shape[0], generator=torch.Generator().manual_seed(1))
    assert measures.descent_fraction(errors, W, W) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_opposite_of_backprop_climbs_everywhere(shape):
    W, _ = weights(*shape)
    spectrum = measures.feedback_spectrum(W, -W)
    assert spectrum.positive_fraction == 0
    assert spectrum.symmetric_max <= 0
    assert measures.descent_fraction(torch.ones(3, shape[0]), W, -W) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_there_are_out_modes_and_those_beyond_the_rank_are_exactly_zero(shape):
    n_out, n_in = shape
    spectrum = measures.feedback_spectrum(*weights(*shape))
    assert spectrum.real.shape == spectrum.imag.shape == (n_out,)
    modulus = torch.hypot(spectrum.real, spectrum.imag)
    assert (modulus.diff() <= 1e-12).all()
    assert int((modulus == 0).sum()) == max(0, n_out - n_in)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_trace_is_the_sum_of_either_spectrum(shape):
    W, B = weights(*shape)
    spectrum = measures.feedback_spectrum(W, B)
    assert spectrum.real.sum().item() == pytest.approx(spectrum.trace.item(), abs=1e-5)
    assert exact_symmetric(W, B).sum().item() == pytest.approx(spectrum.trace.item(), abs=1e-5)


def test_feedback_that_some_error_does_not_reach_has_symmetric_min_at_most_zero():
    W, _ = weights(12, 8)  # rank 8 of 12: exact zeros, not rounding's ±1e-17
    assert measures.feedback_spectrum(W, W).symmetric_min == 0
    assert measures.feedback_spectrum(*weights(40, 5)).symmetric_min < 0


def test_a_rotation_by_ninety_degrees_has_imaginary_modes_and_no_symmetric_part():
    spectrum = measures.feedback_spectrum(torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert sorted(spectrum.imag.tolist()) == pytest.approx([-1, 1])
    assert spectrum.real.tolist() == pytest.approx([0, 0])
    assert spectrum.positive_fraction == 0
    assert (spectrum.symmetric_min.item(), spectrum.symmetric_max.item()) == (0, 0)
    assert spectrum.symmetric_positive_fraction.isnan()


def test_compression_loses_nothing_but_zeros():
    W, B = (x.double() for x in weights(40, 5, alignment=0.5))
    values = torch.linalg.eigvalsh((W @ B.mT + B @ W.mT) / 2)
    assert compress(W, B)[0].shape == (10, 5)
    assert torch.allclose(exact_symmetric(W, B), values, atol=1e-12)
    W, B = weights(10, 5)
    assert compress(W, B)[0] is W


@pytest.mark.parametrize("shape", [(90, 100), (150, 100), (300, 60)])
@pytest.mark.parametrize("control", [False, True])
def test_large_layers_give_nearly_what_the_exact_way_gives(shape, control):
    W, B = weights(*shape, alignment=0.3)
    B = W if control else B
    exact = measures.feedback_spectrum(W, B)
    large = measures.feedback_spectrum(W, B, exact_limit=20, k=16)
    assert (exact.method, large.method) == ("exact", "arnoldi+lanczos")
    scale = torch.hypot(exact.real, exact.imag)
    assert torch.allclose(torch.hypot(large.real, large.imag), scale[:16], atol=1e-3 * scale[0].item())
    assert large.symmetric_min.item() == pytest.approx(exact.symmetric_min.item(), abs=2e-3)
    assert large.symmetric_max.item() == pytest.approx(exact.symmetric_max.item(), abs=2e-3)
    share = exact.symmetric_positive_fraction.item()
    assert large.symmetric_positive_fraction.item() == pytest.approx(share, abs=0.0 if control else 0.05)
    assert torch.equal(large.trace, exact.trace)
    assert large.parameters["converged"] == large.parameters["k"] == 16
    if control:
        assert large.imag.abs().max() < 1e-3 * scale[0]
        assert large.positive_fraction == 1


def test_a_thin_layer_with_a_wide_symmetric_part_mixes_both_ways():
    W, B = weights(120, 50)
    spectrum = measures.feedback_spectrum(W, B, exact_limit=60, k=8)
    exact = measures.feedback_spectrum(W, B)
    assert spectrum.method == "exact+lanczos"
    assert torch.equal(spectrum.real, exact.real)
    assert spectrum.symmetric_min.item() == pytest.approx(exact.symmetric_min.item(), abs=1e-3)
    assert spectrum.parameters.keys() == {"exact_limit", "probes", "steps", "seed"}


def test_few_lanczos_steps_do_not_count_structural_zeros_as_signs():
    W, B = weights(300, 60, alignment=0.3)  # 180 of 300 eigenvalues are zero; the others are half and half
    few = measures.feedback_spectrum(W, B, exact_limit=20, k=16, steps=20)
    assert few.symmetric_positive_fraction.item() == pytest.approx(0.5, abs=0.05)


def test_few_lanczos_steps_do_not_claim_that_errors_out_of_reach_descend():
    W, _ = weights(300, 60)  # the smallest Ritz value is above 0, the smallest eigenvalue is 0
    assert measures.feedback_spectrum(W, W, exact_limit=20, k=16, steps=4).symmetric_min == 0


def test_iterative_spectra_repeat_themselves_and_leave_the_random_state_alone():
    W, B = weights(90, 100)
    state = torch.get_rng_state()
    first, second = (measures.feedback_spectrum(W, B, exact_limit=20) for _ in range(2))
    assert torch.equal(first.real, second.real)
    for name in SUMMARIES:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("exact_limit", [1024, 20])
def test_a_diverged_run_has_no_spectrum_and_leaves_its_neighbour_whole(exact_limit):
    W, B = weights(60, 60)
    runs = torch.stack([W, torch.full_like(W, torch.nan)])
    spectrum = measures.feedback_spectrum(runs, torch.stack([B, B]), exact_limit=exact_limit)
    alone = measures.feedback_spectrum(W, B, exact_limit=exact_limit)
    for name in ("real", "imag", *SUMMARIES):
        assert torch.equal(getattr(spectrum, name)[0], getattr(alone, name)), name
        assert getattr(spectrum, name)[1].isnan().all(), name
    assert spectrum.parameters.get("converged", 0) == 0


def test_units_that_are_lost_beside_others_leave_the_modes_of_these():
    """In double precision, of a run about to diverge: LAPACK's iteration did not converge, and that ended the training."""
    W, B = (x.double() for x in weights(11, 11))
    loud = torch.full((11, 1), 1e-186, dtype=torch.float64)
    loud[7] = 1.0
    spectrum = measures.feedback_spectrum(loud * W, B)
    torch.testing.assert_close(spectrum.real[0], (W @ B.mT)[7, 7])
    assert spectrum.real[1:].abs().max() < 1e-150


@pytest.mark.parametrize("exact_limit", [1024, 20])
@pytest.mark.parametrize("broken", [0, 1])
def test_one_entry_that_is_not_finite_leaves_no_spectrum(broken, exact_limit):
    pair = weights(60, 60)
    pair[broken][2, 3] = torch.inf
    spectrum = measures.feedback_spectrum(*pair, exact_limit=exact_limit)
    assert all(getattr(spectrum, name).isnan().all() for name in ("real", "imag", *SUMMARIES))


@pytest.mark.parametrize("exact_limit", [1024, 20])
def test_absent_feedback_has_a_spectrum_of_zeros_and_no_sign(exact_limit):
    W, _ = weights(60, 60)
    spectrum = measures.feedback_spectrum(W, torch.zeros_like(W), exact_limit=exact_limit)
    assert not spectrum.real.any()
    assert not spectrum.imag.any()
    assert spectrum.positive_fraction.isnan()
    assert spectrum.symmetric_positive_fraction.isnan()
    assert (spectrum.symmetric_min.item(), spectrum.symmetric_max.item(), spectrum.trace.item()) == (0, 0, 0)


def test_threads_are_given_back():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    measures.feedback_spectrum(*weights(6, 6))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


@pytest.mark.parametrize("shapes", [((3, 4), (4, 3)), ((2, 3, 4), (3, 4)), ((4,), (4,))])
def test_weights_of_different_shape_are_refused(shapes):
    with pytest.raises(ValueError, match="must share one shape"):
        measures.feedback_spectrum(*(torch.ones(shape) for shape in shapes))


def test_descent_fraction_leaves_out_zero_errors():
    errors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    B = torch.diag(torch.tensor([1.0, -2.0]))
    assert measures.descent_fraction(errors, torch.eye(2), B).item() == pytest.approx(1 / 3)
    assert measures.descent_fraction(torch.zeros(3, 2), torch.eye(2), B).isnan()


def test_descent_fraction_keeps_vanishing_signals_apart():
    W, B = weights(6, 9)
    errors = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    expected = measures.descent_fraction(errors, W, B)
    assert 0 < expected < 1
    assert measures.descent_fraction(errors * 1e-25, W * 1e-25, B * 1e-25) == expected
    signals = (errors @ W * 1e-25, errors @ B * 1e-25)
    assert measures.descent_fraction_from_signals(*signals) == expected


def test_a_vanishing_error_beside_a_large_one_descends_as_it_would_alone():
    W, B = weights(6, 9)
    errors = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    expected = measures.descent_fraction(errors, W, B)
    errors[::2] *= 1e-30  # products of such rows' signals underflow
    assert measures.descent_fraction(errors, W, B) == expected
    assert measures.descent_fraction_from_signals(errors @ W, errors @ B) == expected


def test_signals_of_half_precision_descend_as_the_numbers_that_they_are():
    """Products that are rounded to 11 bits have another sign now and then."""
    W, B = (x.half() for x in weights(20000, 9))
    expected = measures.descent_fraction_from_signals(W.double(), B.double())
    assert 0 < expected < 1
    assert measures.descent_fraction_from_signals(W, B) == expected
    errors = torch.randn(20000, 40, generator=torch.Generator().manual_seed(3)).half()
    expected = measures.descent_fraction(errors.double(), W[:40].double(), B[:40].double())
    assert measures.descent_fraction(errors, W[:40], B[:40]) == expected


def test_a_broken_error_shows_in_the_descent_fraction():
    errors = torch.ones(3, 2)
    errors[1] = torch.inf
    assert measures.descent_fraction(errors, torch.eye(2), torch.eye(2)).isnan()


def test_silent_feedback_descends_nowhere_and_silent_weights_ask_for_nothing():
    signals = torch.ones(2, 3)
    assert measures.descent_fraction_from_signals(signals, torch.zeros(2, 3)) == 0
    assert measures.descent_fraction_from_signals(torch.zeros(2, 3), signals).isnan()
    half = torch.diag(torch.tensor([1.0, 0.0]))  # of the two errors it hands one down
    assert measures.descent_fraction(torch.eye(2), half, torch.eye(2)) == 1
    assert measures.descent_fraction(torch.eye(2), torch.eye(2), half) == 0.5


def test_eigenvalues_are_found_on_one_thread(monkeypatch):
    seen, eigvals = [], torch.linalg.eigvals
    monkeypatch.setattr(torch.linalg, "eigvals", lambda m: seen.append(torch.get_num_threads()) or eigvals(m))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measures.feedback_spectrum(torch.eye(3), torch.eye(3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1]


def test_modes_that_did_not_converge_have_no_part_in_the_positive_fraction(monkeypatch):
    monkeypatch.setattr("alignlab.measures.iterative.RESTARTS", 1)
    W, B = weights(400, 400)
    spectrum = measures.feedback_spectrum(W, B, exact_limit=20, k=16)
    assert 0 < spectrum.parameters["converged"] < 16
    known = spectrum.real[~spectrum.real.isnan()]
    assert spectrum.positive_fraction.item() == pytest.approx((known > 0).double().mean().item())


def test_the_error_of_the_symmetric_edges_is_told_and_is_zero_where_they_are_exact():
    W, B = weights(200, 250)
    exact = measures.feedback_spectrum(W, B)
    assert exact.symmetric_error == 0
    few = measures.feedback_spectrum(W, B, exact_limit=20, k=16, steps=5)
    assert few.symmetric_error > 0
    for factor in (4, 1e-20):
        larger = measures.feedback_spectrum(factor * W, B, exact_limit=20, k=16, steps=5)
        assert larger.symmetric_error.item() == pytest.approx(factor * few.symmetric_error.item(), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e20])
@pytest.mark.parametrize("exact_limit", [1024, 20])
def test_spectra_scale_with_their_weights(scale, exact_limit):
    """Products of such float32 weights under- or overflow."""
    W, B = (x.float() for x in weights(60, 50))
    found = measures.feedback_spectrum(scale * W, scale * B, exact_limit=exact_limit, k=8)
    usual = measures.feedback_spectrum(W, B, exact_limit=exact_limit, k=8)
    largest = usual.real.abs().max().item()
    for name in ("real", "symmetric_min", "symmetric_max", "symmetric_error", "trace", "chance_radius"):
        scaled = getattr(found, name) / scale / scale
        assert torch.allclose(scaled, getattr(usual, name), atol=1e-3 * largest), name
    sizes = found.imag.abs() / scale / scale  # of a pair either may come first
    assert torch.allclose(sizes, usual.imag.abs(), atol=1e-3 * largest)
    assert sizes.max() > 0.1 * largest


@pytest.mark.parametrize("name", ["exact_limit", "k", "probes", "steps", "seed"])
@pytest.mark.parametrize("value", [-1, 2.5, "x", True])
def test_settings_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value!r}, expected a whole number, at least [01]"):
        measures.feedback_spectrum(*weights(6, 6), **{name: value})


@pytest.mark.parametrize("name", ["k", "probes", "steps"])
def test_nothing_is_estimated_from_no_samples(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected a whole number, at least 1"):
        measures.feedback_spectrum(*weights(6, 6), **{name: 0})


def test_no_modes_are_estimated_where_so_many_are_wanted_that_all_can_be_had():
    found = measures.feedback_spectrum(*weights(6, 5), exact_limit=2, k=3)
    assert (found.method, found.real.shape) == ("exact+lanczos", (6,))
    assert measures.feedback_spectrum(*weights(6, 5), exact_limit=2, k=2).method == "arnoldi+lanczos"
