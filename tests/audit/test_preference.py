"""What a search prefers, against means worked out by hand; and what others published, against the file."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from alignlab.audit.preference import Preferred, preferred, told
from alignlab.audit.published import published

CELLS = [(lr, decay) for lr in (0.1, 0.3, 0.9) for decay in (0.0, 0.01)]
BP = {
    (0.3, 0.0): (2.0, 4.0),
    (0.3, 0.01): (1.0, 4.0),
    (0.1, 0.0): (0.5, 9.0),
}  # means 3, 2.5, 4.75; elsewhere 8
FA = {(0.9, 0.01): (1.0, 1.0)}


def search(*lost: int) -> xr.Dataset:
    rows = [(rule, *cell, seed, own.get(cell, (8.0, 8.0))[seed])
            for rule, own in (("bp", BP), ("fa", FA)) for cell in CELLS for seed in (0, 1)]  # fmt: skip
    columns = dict(
        zip(("rule", "lr", "weight_decay", "seed"), zip(*(row[:4] for row in rows), strict=True), strict=True)
    )
    status = np.where(np.isin(np.arange(len(rows)), lost), "diverged", "finished")
    return xr.Dataset(
        {"validation_loss": (("run", "step"), [[9.0, row[4]] for row in rows])},
        {name: ("run", list(own)) for name, own in columns.items()}
        | {"status": ("run", status), "step": [0, 5]},
    )


def test_the_preferred_cell_has_the_best_mean_and_tells_its_edges() -> None:
    found = preferred(search(), "validation_loss")
    assert found == {"bp": Preferred((0.3, 0.01), ()), "fa": Preferred((0.9, 0.01), ("lr",))}
    rising = search()
    rising = rising.assign(validation_accuracy=-rising["validation_loss"])
    assert preferred(rising, "validation_accuracy") == found


def test_the_least_of_three_values_is_an_edge_as_the_greatest_is() -> None:
    runs = search()
    mirrored = runs.assign_coords(lr=1 - runs["lr"])  # fa's best, 0.9, is the least now
    assert preferred(mirrored, "validation_loss")["fa"] == Preferred((pytest.approx(0.1), 0.01), ("lr",))


def test_a_cell_with_a_lost_run_is_not_preferred() -> None:
    runs = search()
    place = int(
        np.flatnonzero((runs["lr"] == 0.3) & (runs["weight_decay"] == 0.01) & (runs["rule"] == "bp"))[0]
    )
    assert preferred(search(place), "validation_loss")["bp"].values == (0.3, 0.0)


def test_a_preference_says_whether_it_was_used() -> None:
    text = told(preferred(search(), "validation_loss"), {"bp": (0.3, 0.0), "fa": (0.9, 0.01)})
    assert text == "bp 0.3/0.01 (NOT the one used), fa 0.9/0.01 (edge)"


def test_published_accuracies_are_shares_and_errors_percent() -> None:
    akrout = published("akrout2019 reference code", "test_accuracy")
    assert akrout == pytest.approx(
        {"bp": 0.985, "fa": 0.978, "weight_mirror": 0.9849, "kolen_pollack": 0.9845}
    )
    assert published("nokland2016", "test_error", task="mnist") == {"dfa": 1.45}
    table = published("nokland2016", "test_error", verified=False, locator="table 1", task="mnist")
    assert table == {"bp": 2.16, "fa": 2.2, "dfa": 2.32}
    assert (
        published("nokland2016", "test_error", verified=False, locator="table 1", task="fashion_mnist") == {}
    )


@pytest.mark.parametrize(
    ("source", "metric", "where", "wrong"),
    [
        ("nobody", "test_error", {}, "no published source 'nobody': there are akrout2019"),
        ("nokland2016", "test_error", {"task": "imagenet"}, "no published task 'imagenet'"),
        ("nokland2016", "test_error", {"colour": "red"}, "no column 'colour' .* there are source, locator"),
        ("nokland2016", "test_error", {"verified": False}, "reported several test_error of bp"),
        ("lillicrap2016", "test_error", {}, "lillicrap2016 has no test_error with verified=True"),
    ],
)  # fmt: skip
def test_what_was_not_published_is_told(source: str, metric: str, where: dict, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        published(source, metric, **where)
