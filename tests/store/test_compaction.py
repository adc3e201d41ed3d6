"""A compaction opens as its segments do, never stands in for segments that changed, and is whole or not there."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

from alignlab.store import (
    Segments,
    StoreError,
    atomic,
    chunking,
    compact,
    open_runs,
    record,
    surveying,
    zarrs,
)


@pytest.fixture(scope="module")
def template(make_run, tmp_path_factory):
    """Runs that differ in everything in which runs can differ, and their compaction."""
    path = tmp_path_factory.mktemp("template") / "store"
    segments = Segments(path)
    segments.append(make_run("a", steps=[0, 1], seed=1, status="running", attrs={"nesterov": True}))
    segments.append(make_run("a", steps=[2, 3], seed=1, attrs={"nesterov": True}))
    segments.append(
        make_run("b", steps=[0, 5], seed=2, layers=("conv", "fc2"), beta=0.5, attrs={"spec": "x: 1\n"})
    )
    other = make_run("c", steps=[3], seed=3, modes=5).assign_coords(fan_in=("layer", [8, 9]))
    other["loss"].attrs = {"method": None, "limit": float("inf")}
    segments.append(other)
    both = xr.concat([make_run("d", seed=4), make_run("e", seed=5)], dim="run").assign(
        flag=("layer", [True, False])
    )
    segments.append(both, "population")
    compact(path)
    return path


@pytest.fixture
def compacted(template, tmp_path):
    """A store of five runs with its compaction."""
    return shutil.copytree(template, tmp_path / "store")


@pytest.fixture
def store(compacted):
    """The same store without a compaction."""
    shutil.rmtree(compacted / "compact.zarr")
    return compacted


def test_a_compacted_store_opens_as_before(store):
    before = open_runs(store)
    files = sorted(store.iterdir())
    path = compact(store)
    assert path == store / "compact.zarr"
    assert sorted(store.iterdir()) == sorted([*files, path])
    xr.testing.assert_identical(open_runs(store), before)
    xr.testing.assert_identical(open_runs(path), before)
    assert {k: v.dtype for k, v in open_runs(store).variables.items()} == {
        k: v.dtype for k, v in before.variables.items()
    }


def test_a_single_run_is_compacted_without_the_dim_run(make_run, tmp_path):
    Segments(tmp_path).append(make_run())
    before = open_runs(tmp_path)
    xr.testing.assert_identical(open_runs(compact(tmp_path, tmp_path / "out" / "run.zarr")), before)
    assert not (tmp_path / "compact.zarr").exists()


def test_truths_so_many_that_they_are_compressed_are_truths_in_a_compaction_too(make_run, tmp_path):
    steps = np.arange(2**18)
    for i, run_id in enumerate("ab"):
        run = make_run(run_id, steps=steps, layers=("fc1",), modes=1)[["loss"]]
        Segments(tmp_path).append(run.assign(flag=("step", steps % (i + 2) == 0)))
    before = open_runs(tmp_path).flag
    compact(tmp_path)
    after = open_runs(tmp_path).flag.load()
    assert after.identical(before)
    assert after.dtype == before.dtype == bool


def test_a_run_without_steps_is_compacted(make_run, tmp_path):
    Segments(tmp_path).append(make_run(steps=[], status="crashed"))
    before = open_runs(tmp_path)
    xr.testing.assert_identical(open_runs(compact(tmp_path)), before)


def test_compacted_runs_of_which_none_has_steps_open_beside_one_that_has(make_run, tmp_path):
    for name in ("a", "b"):
        Segments(tmp_path).append(make_run(name, steps=[]))
    before = compact(tmp_path)
    Segments(tmp_path).append(make_run("c", steps=[0, 1]))
    runs = open_runs(tmp_path).load()
    before.rename(tmp_path / "elsewhere")
    xr.testing.assert_identical(runs, open_runs(tmp_path))


def test_xarray_reads_a_compaction_by_itself(store):
    before = open_runs(store)
    with xr.open_zarr(compact(store), chunks=None, consolidated=True) as zarr:
        assert zarr.chunks == {}
        xr.testing.assert_equal(zarr.load(), before)


@pytest.mark.parametrize("name", ["~", "a::b", "a b%20#?é"])
def test_a_store_of_any_name_is_compacted_where_it_is(name, store, tmp_path, monkeypatch):
    before = open_runs(store)
    store.rename(tmp_path / name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    compact(name)
    assert list(home.iterdir()) == []
    xr.testing.assert_identical(open_runs(name), before)
    xr.testing.assert_identical(open_runs(f"{name}/compact.zarr"), before)


def test_compacting_again_writes_nothing(store):
    path = compact(store)
    stamp = (path / "zarr.json").stat().st_ino
    assert compact(store) == compact(path) == path
    assert (path / "zarr.json").stat().st_ino == stamp


def test_a_compaction_elsewhere_is_kept_until_the_store_grew(store, make_run, tmp_path):
    out = compact(store, tmp_path / "out.zarr")
    stamp = (out / "zarr.json").stat().st_ino
    compact(store, out)
    assert (out / "zarr.json").stat().st_ino == stamp
    Segments(store).append(make_run("f", seed=6))
    xr.testing.assert_identical(open_runs(compact(store, out)), open_runs(store))


def test_a_copy_of_a_compaction_is_kept_where_it_holds_the_same(compacted, tmp_path):
    for path in compacted.glob("*.nc"):
        path.unlink()
    out = compact(compacted, tmp_path / "out.zarr")
    stamp = (out / "zarr.json").stat().st_ino
    for source in (compacted, compacted / "compact.zarr"):
        compact(source, out)
        assert (out / "zarr.json").stat().st_ino == stamp


def test_only_runs_with_new_segments_are_read_from_segments(compacted, make_run, tmp_path, monkeypatch):
    Segments(compacted).append(make_run("f", steps=[7], seed=6))
    Segments(compacted).append(make_run("a", steps=[4], seed=1, status="crashed", attrs={"nesterov": True}))
    plain = shutil.copytree(compacted, tmp_path / "plain")
    shutil.rmtree(plain / "compact.zarr")
    expected = open_runs(plain)
    read, names = Segments.read_record, []
    monkeypatch.setattr(
        Segments, "read_record", lambda self, n, *args, **how: names.append(n) or read(self, n, *args, **how)
    )
    joined = open_runs(compacted)
    xr.testing.assert_identical(joined, expected)
    assert joined.status.values.tolist()[0] == "crashed"
    assert sorted(names) == ["a-000000", "a-000001", "a-000002", "f-000000"]


def test_new_segments_are_compacted_at_the_next_call(compacted, make_run):
    Segments(compacted).append(make_run("f", seed=6))
    before = open_runs(compacted)
    xr.testing.assert_identical(open_runs(compact(compacted)), before)
    assert [p.name for p in compacted.iterdir() if p.name.startswith(".")] == []


def test_a_rewritten_segment_is_read_and_not_what_was_compacted(compacted, make_run):
    segments = Segments(compacted)
    segments.file("c-000000").unlink()
    segments.append(make_run("c", seed=9))
    assert open_runs(compacted).sel(run=2).seed.item() == 9
    assert open_runs(compact(compacted)).sel(run=2).seed.item() == 9


def test_a_copied_store_still_uses_its_compaction(compacted, monkeypatch):
    before = open_runs(compacted)
    for path in compacted.glob("*.nc"):
        os.utime(path, (1, 1))
    read, whole = Segments.read_record, []
    monkeypatch.setattr(
        Segments,
        "read_record",
        lambda self, n, only=None, **how: whole.append(only) or read(self, n, only, **how),
    )
    xr.testing.assert_identical(open_runs(compacted), before)
    assert whole == [()] * 5


def test_a_compaction_that_is_copied_over_another_leaves_nothing_of_it(make_run, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    Segments(here).append(make_run("a"))
    undefined = make_run("b")
    for name in undefined.data_vars:
        undefined[name] *= np.nan if undefined[name].dtype.kind == "f" else 0
    Segments(there).append(undefined.assign_coords(lr=np.nan))
    for store in (here, there):
        compact(store)
    shutil.copytree(there, here, dirs_exist_ok=True)
    xr.testing.assert_identical(open_runs(here / "compact.zarr").load(), open_runs(there).load())


def test_segments_that_went_missing_are_an_error(compacted):
    for name in ("a-000000", "c-000000"):
        Segments(compacted).file(name).unlink()
    for attempt in (open_runs, compact):
        with pytest.raises(
            StoreError, match=r"'a-000000' and 1 more; put them back, or move the compaction away"
        ):
            attempt(compacted)


def test_a_segment_that_is_gone_when_it_is_compacted_is_named(store, monkeypatch):
    listed = [*Segments(store).names(), "zz"]
    monkeypatch.setattr(Segments, "names", lambda self: listed)
    for read in (compact, open_runs):
        with pytest.raises(StoreError, match="no segment 'zz'"):
            read(store)


def test_a_compaction_may_be_a_link(compacted, make_run, tmp_path):
    (compacted / "compact.zarr").rename(tmp_path / "elsewhere")
    (compacted / "compact.zarr").symlink_to(tmp_path / "elsewhere")
    assert open_runs(compacted)["loss"].chunks is not None
    Segments(compacted).append(make_run("f", seed=6))
    compact(compacted)
    assert [file.name for file in compacted.iterdir() if file.name.startswith(".")] == []
    assert open_runs(compacted).load().sizes["run"] == 6


def test_a_compaction_alone_is_a_store(store):
    before = open_runs(store)
    compact(store)
    for path in store.glob("*.nc"):
        path.unlink()
    xr.testing.assert_identical(open_runs(store), before)
    assert compact(store) == store / "compact.zarr"
    xr.testing.assert_identical(open_runs(compact(store, store.parent / "copy.zarr")), before)


def test_a_compaction_and_another_store_open_as_a_list(store, make_run, tmp_path):
    path = compact(store, tmp_path / "old.zarr")
    Segments(tmp_path / "more").append(make_run("f", seed=6, attrs={"nesterov": True}))
    Segments(store).append(make_run("f", seed=6, attrs={"nesterov": True}))
    xr.testing.assert_identical(open_runs([path, tmp_path / "more"]), open_runs(store))


def test_something_else_in_the_way_is_left_alone(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("mine", "file", "link"):
        with pytest.raises(StoreError, match=f"{name} exists and is no compaction; choose another out"):
            compact(store, tmp_path / name)
    assert (tmp_path / "mine" / "notes").exists()
    foreign = tmp_path / "foreign.zarr"
    xr.Dataset({"x": ("y", [1])}).to_zarr(foreign, zarr_format=3, consolidated=False)
    for attempt in (lambda: compact(store, foreign), lambda: open_runs(foreign)):
        with pytest.raises(StoreError, match=r"foreign\.zarr: damaged, or no compaction of alignlab"):
            attempt()


def test_a_compaction_of_other_runs_is_left_alone(store, make_run, tmp_path):
    Segments(tmp_path / "others").append(make_run("f", seed=6))
    out = compact(tmp_path / "others", tmp_path / "out.zarr")
    alone = compact(store, tmp_path / "alone.zarr")
    for source in (store, alone):
        with pytest.raises(
            StoreError,
            match=r"out\.zarr is a compaction of other runs than those in .*'f-000000'.*another out",
        ):
            compact(source, out)
    assert open_runs(out).run_id.item() == "f"


def test_nothing_to_compact_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        compact(tmp_path / "missing")
    with pytest.raises(StoreError, match="no segments"):
        compact(tmp_path)
    with pytest.raises(StoreError, match="no such folder"):
        compact(tmp_path / ("a" * 300))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file: it is a file; give the folder"):
        compact(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unwritable_out_is_one_clear_line(store, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a file lies in the way"):
        compact(store, tmp_path / "file" / "out.zarr")


def test_all_of_a_compaction_is_on_disk_before_it_gets_its_name(store, monkeypatch):
    synced, fsync, replace = set(), os.fsync, os.replace
    written = {}

    def named(source, target):
        if str(target).endswith("compact.zarr"):
            written.update({str(path): str(path) in synced for path in [source, *source.rglob("*")]})
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", named)
    compact(store)
    assert len(written) > 50
    assert all(written.values())
    assert str(store) in synced


def test_a_full_disk_leaves_the_old_compaction(compacted, make_run, monkeypatch):
    path = compacted / "compact.zarr"
    old = open_runs(path)
    Segments(compacted).append(make_run("f", seed=6))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device; free some space"):
            compact(compacted)
    xr.testing.assert_identical(open_runs(path), old)
    assert [p.name for p in compacted.iterdir() if p.name.startswith(".")] == []


def test_a_compaction_that_cannot_be_named_leaves_the_old_one(compacted, make_run, monkeypatch):
    path = compacted / "compact.zarr"
    old = open_runs(path)
    Segments(compacted).append(make_run("f", seed=6))
    replace = os.replace

    def failing(source, target):
        if str(source).endswith(".tmp") and not str(source).endswith(".old.tmp"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", failing)
        with pytest.raises(StoreError, match="Input/output error"):
            compact(compacted)
    xr.testing.assert_identical(open_runs(path), old)
    assert [p.name for p in compacted.iterdir() if p.name.startswith(".")] == []


def test_the_leftover_of_a_dead_compaction_is_swept(store, make_run):
    left = store / f".compact.zarr.0123456789ab{atomic.SUFFIX}"
    left.mkdir()
    (left / "zarr.json").write_text("half")
    os.utime(left, (time.time() - 3600,) * 2)
    assert open_runs(store).sizes["run"] == 5
    Segments(store).append(make_run("f", seed=6))
    assert not left.exists()


def test_a_lost_chunk_is_found(compacted):
    path = compacted / "compact.zarr"
    whole = open_runs(path).load()
    chunks = [file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"]
    assert len(chunks) > 20
    for chunk in chunks:
        content = chunk.read_bytes()
        name = chunk.relative_to(path).parts[0]
        chunk.unlink()
        if (whole[name] == whole[name].dtype.type()).all():  # what a chunk reads as that is not there
            xr.testing.assert_identical(open_runs(path)[name].load(), whole[name])
            continue
        with pytest.raises(StoreError, match=f"values of '{name}'.*compact again"):
            open_runs(path)[name].load()
        chunk.write_bytes(content)
    assert open_runs(path).load().sizes["run"] == 5


def test_a_changed_chunk_never_gives_other_values(compacted):
    path = compacted / "compact.zarr"
    # of other seeds some make a text's length gigabytes, which zarr takes before it complains
    rng = np.random.default_rng(1)
    before, found = open_runs(path).load(), []
    for chunk in sorted(file for file in path.rglob("c/**/*") if file.is_file()):
        content = chunk.read_bytes()
        changed = bytearray(content)
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        chunk.write_bytes(changed)
        try:
            xr.testing.assert_identical(open_runs(path).load(), before)
        except StoreError as error:
            found.append(str(error))
        chunk.write_bytes(content)
    assert len(found) > 20
    assert all("cannot read" in error for error in found)


def test_a_newer_compaction_is_refused_with_the_way_out(store, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(record, "SCHEMA_VERSION", 2)
        compact(store)
    with pytest.raises(StoreError, match=r"compact\.zarr: it has schema 2.*upgrade alignlab"):
        open_runs(store)


@pytest.mark.parametrize(
    "shape", [(), (0,), (5,), (200, 1000, 4, 64), (200, 10**6), (1, 1, 3, 10**7), (10**7, 2)]
)
def test_chunks_have_at_most_four_mebibytes_and_no_less_than_one_where_there_are(shape):
    chunks = chunking.chunks(shape, 4)
    size = 4 * np.prod(chunks, dtype=int)
    assert len(chunks) == len(shape)
    assert size <= chunking.CHUNK_BYTES
    assert all(chunk <= max(n, 1) for chunk, n in zip(chunks, shape, strict=True))
    assert size >= min(1 << 20, 4 * np.prod(shape, dtype=int))


def test_a_store_opens_while_its_compaction_is_replaced(store, monkeypatch):
    """Between the old one's going and the new one's coming there is an instant without."""
    compact(store)
    expected = open_runs(store).load()

    def gone(path):
        shutil.rmtree(path)
        raise StoreError(f"{path} is damaged")

    monkeypatch.setattr("alignlab.store.surveying.read_compaction", gone)
    xr.testing.assert_identical(open_runs(store), expected)


def swapped_while_read(monkeypatch, swap, times):
    """Have `swap` called after the index of a compaction was read, so many times; returns how often one was read."""
    looks, read, values = [], zarrs.read, zarrs._values

    def reading(path):
        looks.append(path)
        if len(looks) <= times:
            monkeypatch.setattr(zarrs, "_values", swapping)
        return read(path)

    def swapping(array):
        monkeypatch.setattr(zarrs, "_values", values)
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr(zarrs, "read", read)
            swap()
        return values(array)

    monkeypatch.setattr(zarrs, "read", reading)
    return looks


@pytest.mark.parametrize("where", ["", "compact.zarr"])
def test_a_compaction_that_is_replaced_while_it_is_read_is_read_again(
    compacted, make_run, monkeypatch, where
):
    def grow():
        Segments(compacted).append(make_run("f", seed=6))
        compact(compacted)

    looks = swapped_while_read(monkeypatch, grow, times=1)
    runs = open_runs(compacted / where)
    assert runs.run.size == 6
    assert runs.loss.chunks
    assert len(looks) == 2


def test_a_compaction_that_is_replaced_at_every_look_leaves_the_segments(compacted, make_run, monkeypatch):
    monkeypatch.setattr(surveying, "PAUSE", 0.0)

    def grow():
        Segments(compacted).append(make_run(f"f{len(looks)}"))
        compact(compacted)

    looks = swapped_while_read(monkeypatch, grow, times=99)
    runs = open_runs(compacted)
    assert runs.run.size == 5 + len(looks)
    assert not runs.loss.chunks


def test_segments_that_another_compacted_since_they_were_listed_are_not_missed(
    compacted, make_run, monkeypatch
):
    names = Segments.names

    def listed(self):
        found = names(self)
        monkeypatch.setattr(Segments, "names", names)
        Segments(compacted).append(make_run("f", seed=6))
        compact(compacted)
        return found

    monkeypatch.setattr(Segments, "names", listed)
    assert open_runs(compacted).sizes["run"] == 5
    assert open_runs(compacted).sizes["run"] == 6


def test_who_compacts_what_another_is_at_waits_and_finds_it_done(store, monkeypatch):
    written, write = [], zarrs.write
    arrived, go_on = threading.Event(), threading.Event()

    def slow(path, *what):
        written.append(path)
        arrived.set()
        assert go_on.wait(30)
        write(path, *what)

    monkeypatch.setattr(zarrs, "write", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(compact, store)
        assert arrived.wait(30)
        second = threads.submit(compact, store)
        time.sleep(0.2)
        assert not second.done()
        go_on.set()
        assert first.result(30) == second.result(30) == store / "compact.zarr"
    assert len(written) == 1
    assert [p.name for p in store.iterdir() if p.name.startswith(".")] == []


def test_a_store_that_cannot_be_written_and_is_compacted_needs_no_more(compacted, monkeypatch):
    monkeypatch.setattr("alignlab.store.compaction.Claims", lambda folder: pytest.fail(f"wrote to {folder}"))
    assert compact(compacted) == compacted / "compact.zarr"
