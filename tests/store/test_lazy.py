"""A compacted store opens without reading a value, and computes to what its segments hold, however it came to be."""

import os
import pickle
import shutil

import dask
import numpy as np
import pytest
import xarray as xr

from alignlab.store import Segments, StoreError, chunking, compact, open_runs, zarrs


def population(make_run, ids, **how):
    return xr.concat([make_run(run_id, seed=i, **how) for i, run_id in enumerate(ids)], dim="run")


def with_flag(run, values):
    return run.assign(flag=("layer", values))


# what is compacted, and what the store grows by afterwards: (dataset, name of the segment or None)
HISTORIES = {
    "alike": lambda m: ([(m(i, seed=s), None) for s, i in enumerate("bdac")], [(m("aa", seed=9), None)]),
    "other steps and layers": lambda m: (
        [(m("b", steps=[0, 5]), None), (m("c", layers=("conv", "fc2"), modes=5), None)],
        [(m("a", steps=[2, 5, 30], layers=("fc2", "new", "conv")), None), (m("d", steps=[]), None)],
    ),
    "other variables": lambda m: (
        [(m("a"), None), (m("b")[["loss"]], None), (with_flag(m("c"), [True, False]), None)],
        [(m("d").assign(own=("step", np.arange(3))), None), (with_flag(m("b2"), [False, False]), None)],
    ),
    "a run that goes on": lambda m: (
        [(m("a", steps=[0, 1], status="running"), None), (m("b", steps=[0, 1, 2, 3]), None)],
        [(m("a", steps=[2, 3], status="crashed"), None)],
    ),
    "a run that was taken up again before its end": lambda m: (
        [(m("a", steps=[0, 1, 7], status="running"), None), (m("b", steps=[0, 1]), None)],
        [(m("a", steps=[2, 3]), None)],
    ),
    "attributes": lambda m: (
        [(m("a", attrs={"v": 1}), None), (m("b", attrs={"v": None})[["loss"]], None)],
        [(m("c", attrs={"w": float("nan"), "v": True}).assign_attrs(device="cuda"), None)],
    ),
    "a variable whose method differs": lambda m: (
        [(m("a"), None), (m("b")[["loss"]], None)],
        [
            (
                m("c").assign(spectrum_real=lambda r: r.spectrum_real.assign_attrs(method="arnoldi", k=3)),
                None,
            )
        ],
    ),
    "coordinates of some": lambda m: (
        [(m("a", beta=0.9, depth=3), None), (m("b", note="x"), None)],
        [(m("c", depth=2, epochs=7), None)],
    ),
    "a coordinate that all have in the end": lambda m: (
        [(m("a", depth=3), None), (m("b", steps=[0]), None)],
        [(m("b", steps=[10], depth=4), None)],
    ),
    "coordinates along a dim": lambda m: (
        [(m("a").assign_coords(fan_in=("layer", [8, 9])), None), (m("b"), None)],
        [(m("c").assign_coords(epoch=("step", [0, 0, 1])), None)],
    ),
    "populations": lambda m: (
        [(population(m, "ab", steps=[0, 1]), "p"), (population(m, "dc", steps=[0, 2]), "q")],
        [(population(m, "ab", steps=[4, 5]), "r"), (m("e", seed=3), None)],
    ),
    "one run": lambda m: ([(m("a", steps=[0, 1], status="running"), None)], [(m("a", steps=[2]), None)]),
    "one run with a number without dims": lambda m: (
        [(m("a", steps=[0, 1], status="running").assign(total=5.0, count=3), None)],
        [(m("a", steps=[2]).assign(total=6.0, count=4), None)],
    ),
    "a population of one": lambda m: (
        [(population(m, "ab", steps=[0, 1]).isel(run=[0]).assign(total=("run", [5.0])), "p")],
        [(population(m, "ab", steps=[2]).isel(run=[0]).assign(total=("run", [6.0])), "q")],
    ),
    "numbers without dims": lambda m: (
        [(m("a").assign(total=3), None), (m("b"), None)],
        [(m("c").assign(total=2.5), None)],
    ),
    "wide and narrow numbers": lambda m: (
        [(m("a"), None), (m("b").assign(loss=lambda r: r.loss.astype(np.float64) / 3), None)],
        [(m("c").assign(few=("step", np.int8([1, 2, 3]))), None)],
    ),
}
SIZES = {"one chunk": (4 << 20, 64 << 20), "chunks of two runs": (200, 2000), "a chunk a run": (64, 64)}


def append_all(path, told):
    for dataset, name in told:
        Segments(path).append(dataset, name)


def eager(path):
    """The store without its compaction."""
    plain = shutil.copytree(path, path.with_name(path.name + "-plain"))
    shutil.rmtree(plain / "compact.zarr", ignore_errors=True)
    runs = open_runs(plain)
    shutil.rmtree(plain)
    return runs


def lazy_names(runs):
    return {str(name) for name, variable in runs.variables.items() if dask.is_dask_collection(variable.data)}


def assert_same(found, expected):
    xr.testing.assert_identical(found, expected)
    assert {k: v.dtype for k, v in found.variables.items()} == {
        k: v.dtype for k, v in expected.variables.items()
    }


@pytest.mark.parametrize(
    ("history", "size"),
    [*((history, "a chunk a run") for history in HISTORIES), *(("alike", size) for size in SIZES)][:-1],
)
def test_a_compaction_holds_what_the_segments_hold_before_and_after_the_store_grew(
    make_run, tmp_path, monkeypatch, history, size
):
    path = tmp_path / "store"
    for home, name, value in zip((chunking, zarrs), ("CHUNK_BYTES", "BATCH_BYTES"), SIZES[size], strict=True):
        monkeypatch.setattr(home, name, value)
    first, later = HISTORIES[history](make_run)
    append_all(path, first)
    assert_same(open_runs(compact(path)), eager(path))
    append_all(path, later)
    assert_same(open_runs(path), eager(path))
    compact(path)
    assert_same(open_runs(path), eager(path))


@pytest.fixture
def grown(make_run, tmp_path, monkeypatch):
    """A store of ten compacted runs in chunks of two, and a new one."""
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 200)
    runs = [make_run(f"r{i}", seed=i, lr=0.1 * (i % 2), steps=range(3 + i % 3)) for i in range(10)]
    append_all(tmp_path / "store", [(run, None) for run in runs])
    compact(tmp_path / "store")
    append_all(tmp_path / "store", [(make_run("new", seed=11, steps=range(6)), None)])
    return tmp_path / "store"


SELECTIONS = {
    "one run": lambda r: r.isel(run=3),
    "one step of all runs": lambda r: r.sel(step=2),
    "one layer of some runs": lambda r: r.isel(run=[7, 2]).sel(layer="fc2"),
    "runs by a coordinate": lambda r: r.where(r.lr > 0.05, drop=True),
    "every third run backwards": lambda r: r.isel(run=slice(None, None, -3)),
    "mean over runs": lambda r: r.mean("run", skipna=True),
    "spread over seeds": lambda r: r[["loss", "gradient_angle"]].sel(step=[0, 2]).groupby("lr").std("run"),
    "the last loss": lambda r: r.loss.sel(step=r.last_step),
}


@pytest.mark.parametrize("where", ["store", "store/compact.zarr"])
@pytest.mark.parametrize("what", SELECTIONS)
def test_a_selection_of_lazy_runs_is_the_selection_of_the_runs(grown, what, where):
    runs = open_runs(grown.parent / where)
    before = runs.copy(deep=True).load()
    found, expected = SELECTIONS[what](runs), SELECTIONS[what](before)
    assert lazy_names(found) if isinstance(found, xr.Dataset) else dask.is_dask_collection(found.data)
    xr.testing.assert_allclose(found.compute(), expected, rtol=1e-6)
    assert lazy_names(runs) == set(runs.data_vars)


def test_opening_reads_no_values(grown, monkeypatch):
    def read(self, number, chunk):
        raise AssertionError(f"read {self.name}")

    with monkeypatch.context() as patch:
        patch.setattr(zarrs.Stored, "_read", read)
        for path in (grown, grown / "compact.zarr", [grown]):
            runs = open_runs(path)
            assert lazy_names(runs) == set(runs.data_vars)
            assert runs.lr.values.tolist()
    assert open_runs(grown).load().sizes["run"] == 11


def test_a_copy_of_a_compaction_holds_the_same(grown):
    copy = compact(grown / "compact.zarr", grown / "copy.zarr")
    assert_same(open_runs(copy), open_runs(grown / "compact.zarr"))


def test_segments_that_were_not_compacted_are_loaded(grown):
    assert lazy_names(eager(grown)) == set()


def test_one_run_reads_one_chunk_of_each_variable(grown, monkeypatch):
    read, chunks = zarrs.Stored._read, []
    monkeypatch.setattr(
        zarrs.Stored, "_read", lambda self, n, c: chunks.append(self.name) or read(self, n, c)
    )
    runs = open_runs(grown / "compact.zarr")
    runs.isel(run=5).load()
    assert sorted(chunks) == sorted(runs.data_vars)


@pytest.mark.parametrize("where", ["store", "store/compact.zarr"])
def test_runs_opened_by_a_relative_path_are_read_from_wherever_the_caller_is_then(grown, where, monkeypatch):
    monkeypatch.chdir(grown.parent)
    runs = open_runs(where)
    monkeypatch.chdir("/")
    assert_same(runs, open_runs(grown.parent / where))


def test_lazy_runs_can_be_sent_to_another_process(grown):
    for path in (grown, grown / "compact.zarr"):
        runs = open_runs(path)
        xr.testing.assert_identical(pickle.loads(pickle.dumps(runs)), runs.load())


def test_runs_opened_before_a_new_compaction_give_no_other_values(grown):
    before = open_runs(grown / "compact.zarr")
    expected = before.copy(deep=True).load()
    compact(grown)
    told = []
    for name in before.data_vars:
        try:
            xr.testing.assert_identical(before[name].compute(), expected[name])
        except StoreError as error:
            told.append(str(error))
    assert told
    assert all("open it again" in error for error in told)


def test_memory_is_that_of_a_batch(make_run, tmp_path, monkeypatch):
    """No block that is written has more than the batch's bytes, and none is held when the next is made."""
    monkeypatch.setattr(zarrs, "BATCH_BYTES", 1000)
    path = tmp_path / "store"
    append_all(path, [(make_run(f"r{i:02d}", seed=i), None) for i in range(30)])
    sizes, write = [], zarrs.write

    def watched(path, record, blocks):
        def weighed():
            for block in blocks:
                sizes.append(sum(values.nbytes for values in block.values()))
                yield block

        write(path, record, weighed())

    monkeypatch.setattr(zarrs, "write", watched)
    compact(path)
    assert len(sizes) > 3
    assert max(sizes) <= 1000
    assert_same(open_runs(path), eager(path))


def test_progress_is_told(make_run, tmp_path):
    from contextlib import contextmanager

    told = {}

    @contextmanager
    def phase(what, total):
        counts = []
        yield counts.append
        told[what] = (total, sum(counts))

    append_all(tmp_path, [(make_run(f"r{i}"), None) for i in range(5)])
    compact(tmp_path, phase=phase)
    assert told == {"reading segments": (5, 5), "compacting runs": (5, 5)}


def test_a_copied_store_is_known_again_after_compacting_once_more(grown, monkeypatch):
    compact(grown)
    for path in grown.glob("*.nc"):
        os.utime(path, (1, 1))
    compact(grown)
    monkeypatch.setattr(Segments, "read_record", lambda *args, **how: pytest.fail("read a segment"))
    assert open_runs(grown).load().sizes["run"] == 11
