"""A scheduler and workers as processes of their own: the numbers of one process, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import xarray as xr
from worker_jobs import alive, gone

import alignlab
from alignlab import cli
from alignlab.store import Segments, StoreError
from alignlab.training import RunSpec, planner, sweep, workers
from alignlab.training.errors import SweepError
from alignlab.training.sweep import Sweep
from alignlab.training.workers import Workers

BASE = RunSpec(
    task="xor", hidden=(3,), rule="fa", batch_size=2, steps=8, evaluations=2, record_every=4, lr=0.1
)
LOUD = BASE.changed(rule="sign_sync", graft={"direction": "rule", "magnitude": "bp"})
CELLS = [*(BASE.changed(seed=seed) for seed in range(4)), LOUD]
LONG = [BASE.changed(seed=seed, steps=250, record_every=125) for seed in range(6)]  # long enough to be killed
IMPOSSIBLE = RunSpec(task="xor", model="lenet", steps=2)  # xor is no image: fails when its model is built
ROOT = Path(alignlab.__file__).parent.parent


class Cluster:
    """A scheduler, and workers as they are wanted, on loopback."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.processes = [self._start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")]
        deadline = time.monotonic() + 60
        while not self.file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.address: str = json.loads(self.file.read_text())["address"]

    def add_worker(self) -> None:
        self.processes.append(self._start("dask_worker", "--nthreads", "1", "--memory-limit", "0"))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        call = [sys.executable, "-m", f"distributed.cli.{command}", "--scheduler-file", str(self.file)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DASK_LOGGING__DISTRIBUTED": "critical"}
        return subprocess.Popen(
            [*call, "--no-dashboard", *options], env=environment, cwd=self.file.parent,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    started.add_worker()
    yield started
    started.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs as one process makes them."""
    store = tmp_path_factory.mktemp("alone")
    assert Sweep([*CELLS, *LONG], store).run() == len(CELLS) + len(LONG)
    return store


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, each by itself."""
    store = tmp_path_factory.mktemp("apart")
    assert singly([*CELLS, *LONG], store).run() == len(CELLS) + len(LONG)
    return store


def singly(cells: Sequence[RunSpec], store: Path) -> Sweep:
    """Cell by cell, so that there is a middle of the sweep to kill something in."""
    return Sweep(cells, store, lockstep=False)


def same(store: Path, alone: Path, cells: Sequence[RunSpec]) -> None:
    """Bit for bit, but for the time that it took, and for probes: they measure those that trained together at once, and
    formulas over so many numbers are rounded otherwise than over others. (An angle near 0 is known to 0.03 degrees.)"""
    for name in Sweep(cells, store).names.values():
        here, there = (Segments(where).read(name).drop_vars("wall_time") for where in (store, alone))
        measured = [key for key in there.data_vars if not str(key).endswith(("_loss", "_accuracy"))]
        xr.testing.assert_identical(here.drop_vars(measured), there.drop_vars(measured))
        xr.testing.assert_allclose(here[measured], there[measured], rtol=1e-4, atol=0.05)


def test_one_worker_and_two_give_the_numbers_of_one_process(
    cluster: Cluster, alone: Path, tmp_path: Path
) -> None:
    counted: list[int] = []
    with pytest.raises(
        SweepError, match=r"^1 of 6 runs failed.*bp lr=0.05 seed=0: SpecError: lenet needs im"
    ):
        Sweep([*CELLS, IMPOSSIBLE], tmp_path / "one").run(cluster.address, notify=counted.append)
    assert sum(counted) == 6
    same(tmp_path / "one", alone, CELLS)
    cluster.add_worker()
    with Workers(cluster.address) as both:
        both._started().wait_for_workers(2, timeout=60)
        assert Sweep(LONG, tmp_path / "two").run(both) == len(LONG)
    same(tmp_path / "two", alone, LONG)
    assert Sweep([*CELLS, IMPOSSIBLE], tmp_path / "one").missing() == [IMPOSSIBLE]


def test_how_many_train_together_is_measured_where_they_train(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[RunSpec] = []
    decide = planner._best_size

    def heard(spec: RunSpec, number: int, largest: int, device: torch.device) -> int:
        here.append(spec)
        return decide(spec, number, largest, device)

    monkeypatch.setattr(planner, "_best_size", heard)
    assert Sweep(CELLS, tmp_path / "there").run(cluster.address) == len(CELLS)
    assert here == []
    assert Sweep(CELLS, tmp_path / "here").run() == len(CELLS)
    assert here


def test_two_sweeps_at_once_share_the_cells(cluster: Cluster, alone: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(Sweep(own, tmp_path).run, cluster.address) for own in (CELLS[:4], CELLS[1:])]
        assert sum(call.result(timeout=60) for call in calls) == len(CELLS)
    same(tmp_path, alone, CELLS)


def test_a_worker_with_other_code_is_refused_by_both_hashes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = sweep.code_hash()
    monkeypatch.setattr(sweep, "code_hash", lambda: "other")
    with pytest.raises(SweepError, match=rf"the worker on .* other code \(hash {own}\) .* \(hash other\)"):
        Sweep(CELLS, tmp_path).run(cluster.address)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_of_several_threads_is_refused(tmp_path: Path) -> None:
    from distributed import Client

    with (
        Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as client,
        pytest.raises(SweepError, match=r"the worker .* has 2 threads: .*--nthreads 1"),
    ):
        Sweep(CELLS, tmp_path).run(client)


def test_a_command_runs_on_a_cluster(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "claim.yaml").write_text(
        "{statement: a, treatment: {rule: fa}, baseline: {rule: bp}, task: xor, smallest_effect: 0.05, seeds: 2, "
        "controls: [placebo], setup: {hidden: [3], lr: 0.1, batch_size: 4, steps: 5, record_every: 0}}"
    )
    call = ["alignlab", "audit", str(tmp_path / "claim.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(workers, "CONNECT", 0.3)
    for options, code, told in (
        (["--scheduler", "tcp://127.0.0.1:1"], 2, "no dask scheduler answers at tcp://127.0.0.1:1"),
        (["--scheduler", cluster.address, "--workers", "2"], 2, "leave out --workers"),
        (["--workers", "0"], 2, "--workers"),
    ):
        monkeypatch.setattr(sys, "argv", [*call, *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        error = capsys.readouterr().err
        assert stop.value.code == code
        assert "Traceback" not in error
        assert told in error.splitlines()[-1]
    monkeypatch.setattr(workers, "CONNECT", 5.0)
    monkeypatch.setattr(sys, "argv", [*call, "--scheduler", cluster.address])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "6 of 6 runs computed" in capsys.readouterr().out


def test_a_worker_killed_in_mid_sweep_costs_no_run(cluster: Cluster, apart: Path, tmp_path: Path) -> None:
    with Workers(cluster.address) as both:
        left = list(both._started().run(os.getpid).values())

        def kill_one(count: int) -> None:
            if len(left) > 1:
                os.kill(left.pop(), signal.SIGKILL)

        computed = singly(LONG, tmp_path).run(both, notify=kill_one)
    assert computed == len(LONG)
    assert len(left) == 1
    assert singly(LONG, tmp_path).missing() == []
    same(tmp_path, apart, LONG)


def test_a_full_disk_costs_only_the_runs_that_had_no_room(
    cluster: Cluster, apart: Path, tmp_path: Path
) -> None:
    store = tmp_path / "small"
    store.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", store], capture_output=True
    ).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        with pytest.raises(
            SweepError, match=r"^\d of 5 runs failed.*No space left on device; free some space"
        ):
            singly(CELLS, store).run(cluster.address)
        kept = len(Segments(store).names())
        assert 0 < kept < len(CELLS)
        same(store, apart, [cell for cell in CELLS if cell not in singly(CELLS, store).missing()])
        subprocess.run(["mount", "-o", "remount,size=10m", store], check=True)
        assert singly(CELLS, store).run(cluster.address) == len(CELLS) - kept
        same(store, apart, CELLS)
        assert {path.suffix for path in store.iterdir()} == {".nc"}
        subprocess.run(["mount", "-o", "remount,ro", store], check=True)
        with pytest.raises(StoreError, match="Read-only file system"):
            singly(LONG, store).run(cluster.address)
    finally:
        subprocess.run(["umount", store], check=True)


def test_a_sweep_killed_with_all_its_workers_goes_on_where_it_was(apart: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, test_cluster\nfrom alignlab.training.sweep import Sweep\nfrom alignlab.training.workers import Workers\n"
        "def tell(n):\n    print(*(nanny.pid for nanny in two._cluster.workers.values()), flush=True)\n"
        "if __name__ == '__main__':\n    with Workers(2) as two:\n"
        "        Sweep(test_cluster.LONG, sys.argv[1], lockstep=False).run(two, notify=tell)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    store = tmp_path / "store"
    caller = subprocess.Popen(
        [sys.executable, str(script), str(store)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert caller.stdout is not None
    children = [int(pid) for pid in caller.stdout.readline().split()]
    assert all(map(alive, children))
    caller.kill()
    caller.wait()
    assert len(children) == 2
    assert gone(children)
    kept = len(Segments(store).names())
    assert 0 < kept < len(LONG)
    assert singly(LONG, store).run() == len(LONG) - kept
    same(store, apart, LONG)


def test_a_scheduler_killed_in_mid_sweep_leaves_a_store_that_goes_on(
    cluster: Cluster, apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # the last one of this module: the scheduler is its own
    monkeypatch.setattr(workers, "CONNECT", 1.0)
    with pytest.raises(
        SweepError, match=r"of 6 runs failed.*fa lr=0.1 seed=.*the connection to the dask scheduler"
    ):
        singly(LONG, tmp_path).run(cluster.address, notify=lambda n: cluster.processes[0].kill())
    cluster.close()
    kept = len(Segments(tmp_path).names())
    assert 0 < kept < len(LONG)
    assert singly(LONG, tmp_path).run() == len(LONG) - kept
    same(tmp_path, apart, LONG)
