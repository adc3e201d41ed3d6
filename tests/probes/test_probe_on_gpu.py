"""On a GPU: recorded steps do not wait for it between flushes, and it measures what the CPU measures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import nn

from alignlab.probes import EffectiveLR, GradientAngle, Loss, Probe, Recorder, WeightAngle, kept
from alignlab.probes.selftest import GradientTest
from alignlab.rules import convert

NEVER = 10_000  # measured steps until a flush
TESTED = 64  # a measured step that tests the recording and reads numbers for it; the next is 128


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    skipped = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(skipped(test))


def standard() -> list[Probe]:
    return [GradientAngle(), EffectiveLR(), WeightAngle(), Loss()]


def attached(rule: str, device: str, flush_every: int = NEVER) -> tuple[Recorder, Callable[[], None]]:
    """A recorder of every step, and the step of a loop whose data are on the device."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    model = convert(net, rule, generator=torch.Generator().manual_seed(1)).to(device)
    generator = torch.Generator().manual_seed(2)
    x, y = (
        torch.randn(8, 12, generator=generator).to(device),
        torch.randint(4, (8,), generator=generator).to(device),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recorder = Recorder(model, optimizer, standard(), flush_every=flush_every)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return recorder.attach(), step


@contextlib.contextmanager
def nothing_waits() -> Iterator[None]:
    """Within the block, what makes the host wait for the GPU is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@on_gpu
def test_what_waits_for_the_gpu_is_noticed() -> None:
    number = torch.ones((), device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"), nothing_waits():
        number.item()


@on_gpu
@pytest.mark.parametrize(
    "limit", [kept.LIMIT, 1000]
)  # of what is kept until formulas are applied: none, many between the two
@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_recorded_steps_do_not_wait_for_the_gpu_between_flushes(
    rule: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "LIMIT", limit)
    recorder, step = attached(rule, "cuda")
    for _ in range(TESTED + 1):
        step()
    recorder.flush()
    with nothing_waits():
        for _ in range(TESTED - 1):
            step()
    recorder.flush()
    recorder.detach()
    run = recorder.to_dataset()
    assert run.sizes["step"] == 2 * TESTED
    assert run["loss"].notnull().all()
    assert run["feedback_gain"].notnull().all()


@on_gpu
@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_the_gpu_measures_what_the_cpu_measures(rule: str) -> None:
    """In five steps, to a twentieth of a degree (the arc cosine of 1 − 1e-7 is 0.03°), and a thousandth of all else."""
    there, here = (recorded(rule, device) for device in ("cuda", "cpu"))
    assert set(there) == set(here)
    for name in here:
        if name == "wall_time":
            continue
        close = (
            {"rtol": 0, "atol": 0.05}
            if name.endswith(("_angle", "_angle_std"))
            else {"rtol": 1e-3, "atol": 1e-6}
        )
        xr.testing.assert_allclose(there[name], here[name], **close)


def recorded(rule: str, device: str) -> xr.Dataset:
    recorder, step = attached(rule, device)
    for _ in range(5):
        step()
    recorder.detach()
    return recorder.to_dataset().drop_vars("run_id", errors="ignore")


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_recorded_step_asks_no_device_but_the_host_for_a_number(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on ``meta`` have no numbers: to ask for one is an error. Steps that test the recording are left out."""
    monkeypatch.setattr(GradientTest, "due", False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: contextlib.nullcontext())  # knows no meta
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    recorder, step = attached(rule, "meta")
    for _ in range(3):
        step()
    assert recorder.step == 3
    assert len(recorder._recording._tape) == 3
    recorder._steps.disarm()  # detach() would write numbers, and there are none
    for probe in recorder.probes:
        probe.detach()
