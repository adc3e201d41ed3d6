"""What users allow training to round, measures do not."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from alignlab import measures
from alignlab.measures import precision
from alignlab.measures.precision import PARENTS, SWITCHES, full_precision, is_full, switches


@pytest.fixture(params=["high", "medium"])
def rough(request: pytest.FixtureRequest) -> Iterator[str]:
    """float32 products in TF32 or bfloat16, where the device can."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def is_switched(kind: str) -> bool:
    """Whether the settings themselves ask for full precision; ``is_full`` takes a block's word for it."""
    return all(switch.get() in precision.FULL for switch in SWITCHES[kind])


def test_within_the_block_no_product_rounds_and_after_it_all_is_as_it_was(rough: str) -> None:
    before = {kind: [switch.get() for switch in found] for kind, found in SWITCHES.items()}
    assert not is_full("cuda")
    with pytest.raises(KeyError):
        _fails_within()
    assert {kind: [switch.get() for switch in found] for kind, found in SWITCHES.items()} == before
    assert torch.get_float32_matmul_precision() == rough


def _fails_within() -> None:
    with full_precision():
        assert is_switched("cpu")
        assert is_switched("cuda")
        raise KeyError


def test_a_gpus_convolutions_round_by_default_and_are_switched_too() -> None:
    assert not is_full("cuda")
    with full_precision():
        assert is_switched("cuda")


def test_a_device_without_such_settings_is_of_full_precision() -> None:
    assert is_full("mps")


@pytest.fixture
def untouched() -> Iterator[None]:
    """The default settings, from the topmost down, after the test too."""
    yield
    torch.set_float32_matmul_precision("highest")
    for switch, value in zip(PARENTS, ["none", "none"], strict=True):
        switch.set(value)


@pytest.mark.skipif(not PARENTS, reason="before torch 2.9 no setting inherits")
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("first", ["tf32", "bf16"])
def test_a_setting_that_was_inherited_still_follows_its_parent_after_the_block(first: str) -> None:
    """It had become one of its own: who later asked for "ieee" everywhere went on with TF32."""
    PARENTS[0].set(first)
    with full_precision():
        assert is_switched("cpu")
        assert is_switched("cuda")
    assert PARENTS[0].get() == first
    PARENTS[0].set("ieee")
    assert is_full("cpu")
    assert is_full("cuda")


@pytest.mark.skipif(not PARENTS, reason="before torch 2.9 no setting inherits")
@pytest.mark.usefixtures("untouched")
def test_a_parents_own_setting_is_switched_and_set_again() -> None:
    PARENTS[1].set("tf32")
    with full_precision():
        assert is_switched("cuda")
    assert PARENTS[1].get() == "tf32"
    PARENTS[1].set("ieee")
    assert is_full("cuda")


def test_what_one_thread_ends_does_not_let_another_round(rough: str) -> None:
    """A run that was trained while another thread recorded a step went on in bfloat16."""
    recorded = full_precision()
    recorded.__enter__()
    with full_precision():
        thread = Thread(target=recorded.__exit__, args=(None, None, None))
        thread.start()
        thread.join()
        assert is_switched("cpu")
        assert is_switched("cuda")
    assert torch.get_float32_matmul_precision() == rough
    assert not is_full("cpu")


def test_an_older_torch_is_switched_by_its_one_setting(monkeypatch: pytest.MonkeyPatch, rough: str) -> None:
    """Of "medium" its ``allow_tf32`` would have made "high"."""
    backends = SimpleNamespace(cudnn=SimpleNamespace(allow_tf32=True))
    parents, found = switches(backends)
    monkeypatch.setattr(precision, "PARENTS", parents)
    monkeypatch.setattr(precision, "SWITCHES", found)
    with full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == rough
    assert backends.cudnn.allow_tf32


def test_an_older_torch_whose_convolutions_alone_round_is_switched_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends = SimpleNamespace(cudnn=SimpleNamespace(allow_tf32=True))
    monkeypatch.setattr(precision, "SWITCHES", switches(backends)[1])
    with full_precision():
        assert not backends.cudnn.allow_tf32
    assert backends.cudnn.allow_tf32


def test_measures_do_not_round_where_training_may(rough: str) -> None:
    """On a CPU that has bfloat16, or emulates it, the angle was 1.6° where it is 0."""
    delta, h = normal(128, 512, seed=0), normal(128, 256, seed=1)
    update = delta.double().mT @ h.double()
    B, W = normal(300, 200, seed=2), normal(300, 200, seed=3)

    def found() -> list[Tensor]:
        return [
            measures.gradient_angle(delta, delta + 1e-4 * normal(128, 512, seed=4), h),
            measures.local_angle(delta[:, :300], B, W)[0],
            measures.update_angle(-update.float(), delta, h),
        ]

    in_rough = found()
    torch.set_float32_matmul_precision("highest")
    for one, exact in zip(in_rough, found(), strict=True):
        assert torch.equal(one, exact)
    assert in_rough[2] < 0.03
