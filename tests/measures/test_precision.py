"""What users allow training to round, measures do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from alignlab import measures
from alignlab.measures.precision import SWITCHES, full_precision, is_full


@pytest.fixture(params=["high", "medium"])
def rough(request: pytest.FixtureRequest) -> Iterator[str]:
    """float32 products in TF32 or bfloat16, where the device can."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_within_the_block_no_product_rounds_and_after_it_all_is_as_it_was(rough: str) -> None:
    before = {kind: [switch.get() for switch in found] for kind, found in SWITCHES.items()}
    assert not is_full("cuda")
    with pytest.raises(KeyError):
        _fails_within()
    assert {kind: [switch.get() for switch in found] for kind, found in SWITCHES.items()} == before
    assert torch.get_float32_matmul_precision() == rough


def _fails_within() -> None:
    with full_precision("cpu", "cuda"):
        assert is_full("cpu")
        assert is_full("cuda")
        raise KeyError


def test_a_gpus_convolutions_round_by_default_and_are_switched_too() -> None:
    assert not is_full("cuda")
    with full_precision("cuda"):
        assert is_full("cuda")


def test_a_device_without_such_settings_is_left_alone() -> None:
    assert is_full("mps")
    with full_precision("mps"):
        pass


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
