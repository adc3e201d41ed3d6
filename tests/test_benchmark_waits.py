"""What makes the host wait for a GPU is found in a profiler's trace, and counted where it was called; seen without a GPU."""

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def made():
    sys.path.insert(0, str(FOLDER))
    names = ("bench_synchronisation", "measuring", "waits")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(FOLDER))


def event(name, cat, ts, correlation=None, **more):
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": 1.0, "args": args} | more


EVENTS = [
    {"ph": "M", "name": "process_name"},
    event("steps", "user_annotation", 100.0, dur=100.0),
    event("steps", "gpu_user_annotation", 300.0, dur=900.0),  # the GPU lags behind
    event("cudaDeviceSynchronize", "cuda_runtime", 99.0, 1),  # before
    event("cudaLaunchKernel", "cuda_runtime", 110.0, 2),
    event("cudaStreamSynchronize", "cuda_runtime", 120.0, 3),
    event("cudaEventSynchronize", "cuda_runtime", 130.0, 4, tid=7),
    event("cudaStreamWaitEvent", "cuda_runtime", 131.0, 5),  # a stream waits, not the host
    event("cudaMemcpyAsync", "cuda_runtime", 140.0, 6),
    event("Memcpy DtoH (Device -> Pageable)", "gpu_memcpy", 320.0, 6),  # called within, done after
    event("cudaMemcpyAsync", "cuda_runtime", 150.0, 8),
    event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy", 330.0, 8),
    event("cudaMemcpyAsync", "cuda_runtime", 90.0, 9),
    event("Memcpy DtoH (Device -> Pageable)", "gpu_memcpy", 160.0, 9),  # called before, done within
    event("aten::item", "cpu_op", 119.0),
    event("Stream Sync", "cuda_sync", 120.0, 3),  # the same wait, as the GPU saw it
    event("cudaDeviceSynchronize", "cuda_runtime", 200.0, 10),  # after
    event("other", "user_annotation", 195.0, dur=50.0),
]


def test_waits_are_counted_where_the_host_called_them(made):
    assert made.waits.within(EVENTS, "steps") == 3
    assert made.waits.within(EVENTS, "other") == 1
    again = event("steps", "user_annotation", 195.0, dur=50.0)
    assert made.waits.within([*EVENTS, again], "steps") == 4
    with pytest.raises(ValueError, match="no stretch that is called 'absent'"):
        made.waits.within(EVENTS, "absent")


def test_a_trace_is_read_compressed_or_not(made, tmp_path):
    text = json.dumps({"traceEvents": EVENTS})
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text.encode()))
    assert made.waits.read(tmp_path / "a.json") == made.waits.read(tmp_path / "a.json.gz") == EVENTS


def test_torch_marks_a_stretch_as_the_count_expects(made, tmp_path):
    activities, named = [torch.profiler.ProfilerActivity.CPU], torch.profiler.record_function
    with torch.profiler.profile(activities=activities) as profile, named("steps"):
        torch.ones(2).sum()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    assert made.waits.within(made.waits.read(tmp_path / "trace.json"), "steps") == 0


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("recorder", [False, True])
def test_the_stretches_are_found_in_the_trace(made, monkeypatch, tmp_path, recorder):
    bench = made.bench_synchronisation
    for name, steps in (("TESTED", 4), ("STEPS", 2)):
        monkeypatch.setattr(bench, name, steps)
    flushed = []
    monkeypatch.setattr(bench.Recorder, "flush", lambda self: flushed.append(self.step))
    counts = bench.traced("fa", recorder, torch.device("cpu"), tmp_path / "trace.json")
    assert counts == dict.fromkeys((bench.BETWEEN, bench.TEST, bench.CONTROL), 0)  # a processor has none
    assert flushed == ([2, 5] if recorder else [])  # so that the step between them that tests is the 4th


def test_waits_are_those_that_a_bare_step_has_not(made):
    bench = made.bench_synchronisation
    names = (bench.BETWEEN, bench.TEST, bench.CONTROL)
    bare, probed = (dict(zip(names, counts, strict=True)) for counts in ((60, 1, 2), (180, 10, 2)))
    between, test = bench.rows("fa", bare, probed)
    assert (between["count"], between["reach"], test["count"], test["reach"]) == (2.0, 0, 9.0, None)
    assert made.measuring.reach(between) == "≤ 0, missed"
    between, _ = bench.rows("fa", bare, probed | {bench.BETWEEN: 60})
    assert (made.measuring.value(between), made.measuring.reach(between)) == ("0", "≤ 0")


def test_a_trace_without_the_wait_made_on_purpose_counts_for_nothing(made):
    bench = made.bench_synchronisation
    none = dict.fromkeys((bench.BETWEEN, bench.TEST, bench.CONTROL), 0)
    (row,) = bench.rows("fa", none, none)
    assert "CUPTI" in row["skipped"]
