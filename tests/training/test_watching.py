"""Whoever waits for a cluster's workers hears what for, and workers that are still to start are counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from distributed import Client, LocalCluster
from worker_jobs import parent

from alignlab.training import watching
from alignlab.training.watching import standstill
from alignlab.training.workers import Workers


@pytest.fixture
def empty() -> Iterator[Client]:
    """A cluster without workers."""
    with (
        LocalCluster(
            n_workers=0, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_workers_that_are_still_to_start_are_counted(empty: Client) -> None:
    assert Workers(empty).count() == 1
    empty.cluster.scale(3)
    assert Workers(empty).count() == 3
    empty.cluster.adapt(minimum=0, maximum=5, interval="1h")
    assert Workers(empty).count() == 5
    empty.cluster.adapt(minimum=0, interval="1h")
    assert Workers(empty).count() == 3
    empty.cluster.scale(2)
    assert Workers(empty).count() < 5


def test_a_sweep_that_waits_for_workers_says_so(
    empty: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "INTERVAL", 0.01)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(lambda: list(Workers(empty).each(parent, [0])))
        deadline = time.monotonic() + 30
        while "no workers are left" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not waiting.done()
        empty.cluster.scale(1)
        assert len(waiting.result(timeout=60)) == 1
    assert empty.scheduler_info()["address"] in caplog.text
    assert caplog.text.count("no workers are left") == 1


def test_who_waits_no_longer_looks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    class Cluster:
        def scheduler_info(self) -> dict[str, Any]:
            looks.append(time.monotonic())
            return {"address": "tcp://a", "workers": {}}

    monkeypatch.setattr(watching, "INTERVAL", 0.001)
    with watching.watched(Cluster()):  # type: ignore[arg-type]
        while len(looks) < 3:
            time.sleep(0.001)
    end = time.monotonic()
    time.sleep(0.1)
    assert all(look < end + 0.05 for look in looks)


def test_only_workers_that_work_are_no_news() -> None:
    running, paused = {"status": "running"}, {"status": "paused"}
    assert standstill({"tcp://a": running}) == ""
    told = standstill({"tcp://a": running, "tcp://b": paused, "tcp://c": paused})
    assert told.startswith("2 of 3 workers are paused by dask, near their memory limit")
    assert "(tcp://b)" in told
