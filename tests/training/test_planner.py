"""What is trained together: runs of one shape, as many at a time as are cheapest and fit the memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch

from alignlab.rules import RULES, Rule
from alignlab.training import RunSpec, planner, tasks
from alignlab.training.planner import fitting, packs

SHAPE: dict[str, Any] = {"task": "xor_bits", "hidden": (5,), "batch_size": 1, "steps": 20, "record_every": 0}


class Lonely(Rule):
    """A rule written outside the package for single runs."""

    name = "lonely"
    stacks = False


def specs(n: int, **fields: Any) -> list[RunSpec]:
    return [RunSpec(**{**SHAPE, **fields}, seed=seed) for seed in range(n)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_packs_hold_what_can_be_trained_together_and_each_worker_gets_some(
    workers: int, monkeypatch: Any
) -> None:
    monkeypatch.setitem(RULES, "lonely", Lonely)
    others = [*specs(2, rule="dfa"), *specs(2, hidden=(7,)), *specs(2, rule="lonely")]
    given = [*specs(7), *specs(5, lr=0.3, rule="fa"), *others]
    found = packs(given[::-1], workers)
    assert sorted(map(len, found))[-workers:] == [12 // workers] * workers
    assert [len(pack) for pack in found if pack[0].rule == "lonely"] == [1, 1]
    assert {spec.rule for pack in found if len(pack) > 2 for spec in pack} == {"bp", "fa"}
    assert sorted(spec.digest() for pack in found for spec in pack) == sorted(spec.digest() for spec in given)


def test_packs_for_no_worker_are_refused() -> None:
    with pytest.raises(ValueError, match="workers is 0, expected a whole number, at least 1"):
        packs(specs(2), 0)


def test_runs_of_one_rule_stand_next_to_each_other() -> None:
    given = [spec for pair in zip(specs(4, rule="fa"), specs(4, rule="bp"), strict=True) for spec in pair]
    (pack,) = packs(given)
    assert [spec.rule for spec in pack] in (["bp"] * 4 + ["fa"] * 4, ["fa"] * 4 + ["bp"] * 4)


@pytest.mark.parametrize(("prices", "size"), [((1, 0.5, 0.4), 40), ((1, 0.5, 0.49), 16), ((1, 1.2, 0.1), 4)])
def test_packs_grow_as_long_as_a_run_gets_cheaper(prices: Any, size: int, monkeypatch: Any) -> None:
    told = dict(zip((4, 16, 40), prices, strict=True))
    monkeypatch.setattr(planner, "price_of", lambda shape, size, device: told[size])
    monkeypatch.setattr(planner, "WORTH", 0)
    assert max(map(len, packs(specs(40)))) in (size, -(-40 // -(-40 // size)))
    assert len(packs(specs(40))) == -(-40 // size)


@pytest.mark.parametrize(
    ("n", "workers", "sizes"),
    [(72, 2, {12}), (72, 1, {14, 15}), (7, 3, {2, 3}), (33, 2, {8, 9}), (2, 4, {1})],
)
def test_every_worker_gets_as_many_packs(n: int, workers: int, sizes: set[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(planner, "_best_size", lambda spec, number, largest, device: 16)
    found = [len(pack) for pack in packs(specs(n), workers)]
    assert set(found) == sizes
    assert sum(found) == n
    assert len(found) % workers == 0 or len(found) == n


@pytest.mark.parametrize(("room", "held", "size"), [(100, 0, 4), (3, 0, 3), (100, 16, 16), (100, 999, 50)])
def test_no_more_stand_together_than_could_be_measured(
    room: int, held: int, size: int, monkeypatch: Any
) -> None:
    """A size for which there was no memory was followed by the largest of all, though smaller ones had been measured."""

    def price(shape: RunSpec, size: int, device: torch.device) -> float:
        if size > held:
            raise RuntimeError("can't allocate memory")
        return 1 / size

    monkeypatch.setattr(planner, "fitting", lambda spec, workers, device: room)
    monkeypatch.setattr(planner, "price_of", price)
    monkeypatch.setattr(planner, "WORTH", 0)
    assert planner.best_size(planner.Question(specs(1)[0], 100, 2)) == size


def test_what_cannot_be_asked_stands_in_small_packs(monkeypatch: Any) -> None:
    def fails(spec: RunSpec, workers: int, device: torch.device) -> int:
        raise ValueError("no such task")

    monkeypatch.setattr(planner, "fitting", fails)
    assert planner.best_size(planner.Question(specs(1)[0], 100, 2)) == 4
    assert planner.best_size(planner.Question(specs(1)[0], 5, 2)) == 3


def test_whoever_is_asked_decides_how_many_train_together() -> None:
    asked: list[planner.Question] = []

    def ask(questions: Sequence[planner.Question]) -> list[int]:
        asked.extend(questions)
        return [2 * (i + 1) for i in range(len(questions))]

    found = packs([*specs(8), *specs(8, hidden=(7,)), *specs(2, hidden=(9,))], 2, ask)
    assert [(question.number, question.workers) for question in asked] == [(8, 2), (8, 2)]
    assert [len(pack) for pack in found] == [2] * 4 + [4] * 2 + [1] * 2


def test_prices_are_measured_on_the_shape_itself() -> None:
    assert 0 < planner.price_of(specs(1)[0], 3) < 1


def test_a_price_is_that_of_a_step_shared_by_the_runs(monkeypatch: Any) -> None:
    monkeypatch.setattr(planner.time, "perf_counter", count().__next__)  # a second between looks
    assert planner.price_of.__wrapped__(specs(1)[0], 4) == 1 / 4


def test_packs_are_no_larger_than_memory_allows(monkeypatch: Any) -> None:
    monkeypatch.setattr(planner, "fitting", lambda spec, workers, device: 3)
    assert sorted(map(len, packs(specs(8)))) == [2, 3, 3]


def test_packs_stay_below_the_links_that_a_file_may_have_however_cheap_a_run_gets(monkeypatch: Any) -> None:
    measured: list[int] = []

    def cheaper(shape: RunSpec, size: int, device: torch.device) -> float:
        measured.append(size)
        return 1 / size

    monkeypatch.setattr(planner, "price_of", cheaper)
    assert planner.best_size(planner.Question(specs(1)[0], 1_000_000, 2)) == planner.MOST == max(measured)
    assert planner.MOST < 65_000


@pytest.mark.parametrize(
    ("prices", "steps", "size"),
    [
        ((1, 0.9, 0.8), 1, 40),  # s a step and run
        ((1, 0.9, 0.8), 20, 16),  # 640 s, and 288 s for an eighth more
        ((1, 0.9, 0.8), 200, 4),  # 800 s: the smallest that costs no more than a quarter
        ((4, 1, 0.4), 10**6, 40),  # so small that a smaller one takes as long
    ],
)
def test_packs_whose_end_is_far_are_smaller_where_that_costs_little(
    prices: Any, steps: int, size: int, monkeypatch: Any
) -> None:
    told = dict(zip((4, 16, 40), prices, strict=True))
    monkeypatch.setattr(planner, "price_of", lambda shape, size, device: told[size])
    monkeypatch.setattr(planner, "WORTH", 0)
    assert planner.best_size(planner.Question(specs(1, steps=steps)[0], 40, 1)) == size


def test_the_device_that_trains_is_the_one_that_is_measured(monkeypatch: Any) -> None:
    asked: list[torch.device] = []

    def price_of(shape: RunSpec, size: int, device: torch.device) -> float:
        asked.append(device)
        return 1 / size

    def free_memory(device: torch.device) -> int:
        asked.append(device)
        return 10**9

    monkeypatch.setattr(planner, "price_of", price_of)
    monkeypatch.setattr(planner.devices, "free_memory", free_memory)
    monkeypatch.setattr(planner, "WORTH", 0)
    packs(specs(40), device=torch.device("cuda:1"))
    assert len(asked) > 2
    assert set(asked) == {torch.device("cuda:1")}


def test_fewer_of_larger_networks_fit_and_of_what_more_workers_share() -> None:
    small, large = specs(1)[0], specs(1, hidden=(500, 500))[0]
    assert fitting(small, 1) > 50 * fitting(large, 1) > 0
    assert fitting(small, 1) > 1.5 * fitting(small, 2)


def test_a_batch_takes_room_for_as_many_samples_as_there_are() -> None:
    one, all_of_it, more = (specs(1, task="linear_toy", batch_size=n)[0] for n in (1, 1000, 10**6))
    assert len(tasks.load("linear_toy").train) <= 1000
    assert fitting(one, 1) > 5 * fitting(all_of_it, 1)
    assert fitting(more, 1) > 0.5 * fitting(all_of_it, 1)  # of what is free at the moment


@pytest.mark.parametrize(("prices", "size"), [((1, 0.8, 0.7), 16), ((1, 0.8, 0.79), 4), ((1, 0.99, 0.1), 1)])
def test_convolutional_nets_stand_together_only_where_that_is_measured_to_be_cheaper(
    prices: Any, size: int, monkeypatch: Any
) -> None:
    told = {size: price / 1000 for size, price in zip((1, 4, 16), prices, strict=True)}
    monkeypatch.setattr(planner, "price_of", lambda shape, size, device: told[size])
    given = [RunSpec(model="convnet", steps=200, seed=seed) for seed in range(16)]
    assert {len(pack) for pack in packs(given)} == {size}
    assert {len(pack) for pack in packs([spec.changed(steps=20) for spec in given])} == {4}, (
        "too short to measure"
    )


def test_runs_that_cannot_be_are_left_to_say_so_themselves() -> None:
    (pack,) = packs([RunSpec(task="xor", model="lenet", seed=seed) for seed in range(3)])
    assert len(pack) == 3
