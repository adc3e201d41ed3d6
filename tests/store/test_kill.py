"""A recording process may be killed at any moment: what it flushed is there, and nothing half-written is."""

import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest

from alignlab.store import Segments, atomic, compact, open_runs

fork = multiprocessing.get_context("fork")
N_KILLS = 24


def loss_at(step):
    return np.float32(np.sin(step))


def flush(make_run, segments, i, status="running"):
    """Segment number i of a run: steps 2i and 2i + 1, with a loss that tells which step it is."""
    steps = [2 * i, 2 * i + 1]
    return segments.append(
        make_run(steps=steps, status=status).assign(loss=("step", loss_at(np.array(steps))))
    )


def record_forever(make_run, path, acknowledge):
    """Append segments as fast as can be, telling the number of each once `append` has returned."""
    segments, i = Segments(path), 0
    while True:
        flush(make_run, segments, i)
        os.write(acknowledge, b"%d\n" % i)
        i += 1


def write_forever(contents, path, acknowledge):
    """The same with nothing but the writing: the files' contents are made beforehand."""
    for i, content in enumerate(contents):
        atomic.write_new(Segments(path).file(f"run-{i:06d}"), content)
        os.write(acknowledge, b"%d\n" % i)
    time.sleep(60)


def kill_while(task, what, path, delay):
    """Let a process do `task`, kill it `delay` seconds after its first flush, and return how many flushes it told."""
    told, acknowledge = os.pipe()
    child = fork.Process(target=task, args=(what, path, acknowledge))
    child.start()
    os.close(acknowledge)
    with os.fdopen(told, "rb") as pipe:
        first = pipe.readline()
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        child.join(30)
        numbers = [first, *pipe.readlines()]
    assert child.exitcode == -signal.SIGKILL
    assert [int(n) for n in numbers if n.endswith(b"\n")] == list(range(len(numbers)))
    return len(numbers)


def assert_whole(path, flushed):
    """The run at `path` has all `flushed` segments, at most one more that was not told, and only true values."""
    run = open_runs(path)
    written, odd = divmod(run.sizes["step"], 2)
    assert odd == 0
    assert flushed <= written <= flushed + 1
    assert run.step.values.tolist() == list(range(2 * written))
    np.testing.assert_array_equal(run.loss, loss_at(run.step.values))
    assert run.gradient_angle.notnull().all()
    assert run.status.item() == "running"
    assert Segments(path).names() == [f"run-{i:06d}" for i in range(written)]
    return written


def age(path):
    for left in path.glob(f".*{atomic.SUFFIX}"):
        os.utime(left, (time.time() - 3600,) * 2)


def test_a_recorder_killed_at_any_moment_loses_nothing_that_was_flushed(make_run, tmp_path):
    delays = random.Random(0)
    for attempt in range(N_KILLS):
        path = tmp_path / str(attempt)
        flushed = kill_while(record_forever, make_run, path, delays.uniform(0.0, 0.08))
        assert flushed >= 1
        written = assert_whole(path, flushed)
        assert len(list(path.glob(f".*{atomic.SUFFIX}"))) <= 1
        age(path)
        flush(make_run, Segments(path), written, status="crashed")
        assert list(path.glob(f".*{atomic.SUFFIX}")) == []
        assert open_runs(path).status.item() == "crashed"


def test_a_writer_killed_at_any_moment_leaves_whole_segments_only(make_run, tmp_path):
    segments = Segments(tmp_path / "made")
    contents = [flush(make_run, segments, i).read_bytes() for i in range(60)]
    delays = random.Random(1)
    for attempt in range(N_KILLS):
        path = tmp_path / str(attempt)
        path.mkdir()
        flushed = kill_while(write_forever, contents, path, delays.uniform(0.0, 0.04))
        assert_whole(path, flushed)
        age(path)
        atomic.sweep(path)
        assert all(name.endswith(".nc") for name in os.listdir(path))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dies_before(call):
    def replacement(*args, **kwargs):
        die()

    return replacement


def dies_after(call):
    def replacement(*args, **kwargs):
        call(*args, **kwargs)
        die()

    return replacement


def dies_halfway(write):
    def replacement(descriptor, data):
        write(descriptor, data[: len(data) // 2])
        die()

    return replacement


MOMENTS = {
    "before the temporary is made": ("open", dies_before, 0),
    "after the temporary is made": ("open", dies_after, 0),
    "before anything is written": ("write", dies_before, 0),
    "after half of it is written": ("write", dies_halfway, 0),
    "after all of it is written": ("write", dies_after, 0),
    "before it is on disk": ("fsync", dies_before, 0),
    "after it is on disk": ("fsync", dies_after, 0),
    "before it has its name": ("link", dies_before, 0),
    "after it has its name": ("link", dies_after, 1),
    "before the temporary is removed": ("unlink", dies_before, 1),
    "after the temporary is removed": ("unlink", dies_after, 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_writer_that_dies_at_any_step_of_writing_leaves_all_or_nothing(make_run, tmp_path, moment):
    name, dies, there = MOMENTS[moment]
    flush(make_run, Segments(tmp_path), 0)

    def record():
        setattr(os, name, dies(getattr(os, name)))
        flush(make_run, Segments(tmp_path), 1)

    child = fork.Process(target=record)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert assert_whole(tmp_path, flushed=1) == 1 + there
    age(tmp_path)
    flush(make_run, Segments(tmp_path), 1 + there)
    assert assert_whole(tmp_path, flushed=2 + there) == 2 + there
    assert sorted(os.listdir(tmp_path)) == [f"run-{i:06d}.nc" for i in range(2 + there)]


COMPACTION_MOMENTS = {
    "while it is written": ("fsync", dies_before),
    "before the old one is moved aside": ("replace", dies_before),
    "between the two names": ("replace", dies_after),
}


@pytest.mark.parametrize("moment", COMPACTION_MOMENTS)
def test_a_compaction_that_dies_leaves_a_store_that_opens(make_run, tmp_path, moment):
    name, dies = COMPACTION_MOMENTS[moment]
    flush(make_run, Segments(tmp_path), 0)
    compact(tmp_path)
    flush(make_run, Segments(tmp_path), 1)

    def record():
        setattr(os, name, dies(getattr(os, name)))
        compact(tmp_path)

    child = fork.Process(target=record)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert assert_whole(tmp_path, flushed=2) == 2
    age(tmp_path)
    compact(tmp_path)
    assert assert_whole(tmp_path, flushed=2) == 2
    assert sorted(os.listdir(tmp_path)) == ["compact.zarr", "run-000000.nc", "run-000001.nc"]
