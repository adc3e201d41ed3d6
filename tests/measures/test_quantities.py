"""The table of quantities: complete, well formed, and writable as it is."""

import json

import pytest

from alignlab.measures import QUANTITIES

NAMES = [
    "gradient_angle", "delta_angle", "delta_angle_std", "zero_fraction", "local_angle", "weight_angle",
    "feedback_gain", "effective_lr", "applied_gain", "projected_lr", "update_angle", "relative_update",
    "angular_update", "weight_norm", "feedback_norm", "gradient_norm", "gradient_norm_bp", "update_norm",
    "spectrum_real", "spectrum_imag", "spectrum_positive_fraction", "symmetric_min", "symmetric_max",
    "symmetric_error",
    "symmetric_positive_fraction", "spectrum_trace", "chance_radius", "descent_fraction", "loss", "learning_rate",
    "wall_time", "samples_seen", "clip_fraction", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
    "test_loss", "test_accuracy",
]  # fmt: skip


def test_the_table_holds_the_whole_data_contract():
    assert sorted(QUANTITIES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_quantity_says_what_it_is(name):
    quantity = QUANTITIES[name]
    assert quantity.name == name
    assert quantity.low < quantity.high
    assert quantity.null is None or quantity.low <= quantity.null <= quantity.high
    assert quantity.dims[0] == "step"
    attrs = quantity.attrs()
    assert attrs.keys() >= {"long_name", "symbol", "units", "null", "source"}
    assert all(value != "" for value in attrs.values())
    json.dumps(attrs, allow_nan=False)


def test_every_symbol_can_be_drawn():
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    assert all(parser.parse(quantity.symbol).width > 0 for quantity in QUANTITIES.values())


def test_only_modes_have_the_mode_dimension():
    with_mode = {name for name, quantity in QUANTITIES.items() if "mode" in quantity.dims}
    assert with_mode == {"spectrum_real", "spectrum_imag"}


def test_one_sided_ranges_give_the_side_that_exists():
    assert QUANTITIES["feedback_gain"].attrs()["valid_min"] == 0
    assert "valid_max" not in QUANTITIES["feedback_gain"].attrs()
    assert not {"valid_min", "valid_max", "valid_range"} & QUANTITIES["projected_lr"].attrs().keys()


BY_CHANCE = {
    **dict.fromkeys(("gradient_angle", "delta_angle", "local_angle", "weight_angle", "update_angle"), 90),
    **dict.fromkeys(("projected_lr", "spectrum_trace"), 0),
    **dict.fromkeys(("spectrum_positive_fraction", "symmetric_positive_fraction", "descent_fraction"), 0.5),
}


def test_units_and_nulls_are_those_of_the_definitions():
    for name, quantity in QUANTITIES.items():
        assert quantity.null == BY_CHANCE.get(name), name
        degrees = "angle" in name or name == "angular_update"
        expected = {"wall_time": "s", "samples_seen": "samples"}.get(name, "degree" if degrees else "1")
        assert quantity.units == expected, name
