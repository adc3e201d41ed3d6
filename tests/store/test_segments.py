"""Segments are named, whole, durable, and never overwritten; what cannot be written leaves nothing behind."""

import errno
import fcntl
import multiprocessing
import os
import resource
import time

import pytest
import xarray as xr

from alignlab.store import ContractError, Segments, StoreError, atomic

fork = multiprocessing.get_context("fork")


def in_child(task, *args):
    """Run `task` in a forked process and return what it returns."""
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(task(*args)))
    child.start()
    assert receiver.poll(30), "the child told nothing"
    result = receiver.recv()
    child.join(30)
    return result


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("first", "other"), [("axb", "a.b"), ("a-000003", "a"), (".", "%2E")])
def test_runs_of_names_that_look_alike_are_counted_by_themselves(make_run, tmp_path, first, other):
    for _ in range(2):
        Segments(tmp_path).append(make_run(first))
    path = Segments(tmp_path).append(make_run(other, seed=1))
    assert path.stem.endswith("-000000")
    assert len(Segments(tmp_path).pieces(other)) == 1


def test_names_count_on_from_the_last_whatever_is_missing_and_however_many_there_are(make_run, tmp_path):
    gone = Segments(tmp_path).append(make_run(steps=[0], status="running"), number=0)
    Segments(tmp_path).append(make_run(steps=[1], status="running"), number=999_999)
    gone.unlink()
    for step in (2, 3):
        last = Segments(tmp_path).append(make_run(steps=[step], status="running"))
    assert last.stem == "run-1000001"


def test_default_names_count_on(make_run, tmp_path):
    first = Segments(tmp_path / "new" / "store")
    assert first.names() == []
    assert [first.append(make_run()).name for _ in range(2)] == ["run-000000.nc", "run-000001.nc"]
    again = Segments(tmp_path / "new" / "store")
    again.append(make_run("run-000001"))
    again.append(make_run())
    assert again.names() == ["run-000000", "run-000001", "run-000001-000000", "run-000002"]


@pytest.mark.parametrize("run_id", ["a/b c=1", ".hidden", "é ∠", "..", "%2E", "x" * 200])
def test_any_run_id_makes_a_file_name(make_run, tmp_path, run_id):
    segments = Segments(tmp_path)
    segments.append(make_run(run_id, status="running"))
    segments.append(make_run(run_id))
    assert len(segments.names()) == len(list(tmp_path.iterdir())) == 2
    assert segments.latest_status(run_id) == "finished"


def test_a_run_stays_in_one_folder_wherever_its_writer_goes(make_run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    segments = Segments("store")
    segments.append(make_run(steps=[0], status="running"))
    monkeypatch.chdir("elsewhere")
    segments.append(make_run(steps=[1]))
    assert Segments(tmp_path / "store").names() == ["run-000000", "run-000001"]


def test_a_name_is_never_overwritten(make_run, tmp_path):
    segments = Segments(tmp_path)
    path = segments.append(make_run(seed=0), "cell")
    content = path.read_bytes()
    with pytest.raises(StoreError, match=r"'cell' exists in .*another name"):
        segments.append(make_run(seed=1), "cell")
    assert segments.append(make_run(seed=1), "cell", exist_ok=True) == path
    assert path.read_bytes() == content
    assert segments.has("cell")
    assert not segments.has("cel")


def test_a_name_taken_while_writing_is_not_overwritten(make_run, tmp_path, monkeypatch):
    segments = Segments(tmp_path)
    content = segments.append(make_run(seed=0), "cell").read_bytes()
    monkeypatch.setattr(Segments, "has", lambda self, name: False)
    with pytest.raises(StoreError, match="exists"):
        segments.append(make_run(seed=1), "cell")
    segments.append(make_run(seed=1), "cell", exist_ok=True)
    assert segments.file("cell").read_bytes() == content
    assert hidden(tmp_path) == []


def test_a_file_system_without_links_is_written_by_renaming(make_run, tmp_path, monkeypatch):
    def no_link(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_link)
    segments = Segments(tmp_path)
    segments.append(make_run(), "cell")
    xr.testing.assert_equal(segments.read("cell"), make_run())
    with pytest.raises(StoreError, match="exists"):
        segments.append(make_run(), "cell")
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "a\0"])
def test_a_name_that_is_no_file_name_is_refused(make_run, tmp_path, name):
    with pytest.raises(StoreError, match="file name"):
        Segments(tmp_path).append(make_run(), name)


def test_a_broken_contract_leaves_no_file(make_run, tmp_path):
    with pytest.raises(ContractError, match="status"):
        Segments(tmp_path / "store").append(make_run(status="done"))
    assert not (tmp_path / "store").exists()


def test_several_runs_need_a_name(make_run, tmp_path):
    runs = xr.concat([make_run("a"), make_run("b")], dim="run")
    with pytest.raises(StoreError, match="pass name="):
        Segments(tmp_path).append(runs)
    Segments(tmp_path).append(runs, "both")
    assert Segments(tmp_path).latest_status("b") == "finished"


def test_a_missing_segment_is_named_with_those_that_are_there(make_run, tmp_path):
    segments = Segments(tmp_path)
    for i in range(5):
        segments.append(make_run(), f"cell{i}")
    with pytest.raises(StoreError, match=r"no segment 'cell9' .* cell0, cell1, cell2 and 2 more"):
        segments.read("cell9")


def test_a_segment_that_is_a_link_which_leads_nowhere_says_so(make_run, tmp_path):
    (tmp_path / "cell.nc").symlink_to("elsewhere.nc")
    with pytest.raises(
        StoreError, match=r"cell.nc: it is a link to elsewhere.nc, which is not there; restore it"
    ):
        Segments(tmp_path).read("cell")


def test_a_name_that_is_too_long_is_told_with_the_way_out(make_run, tmp_path):
    segments = Segments(tmp_path)
    for how in ({"name": "x" * 300}, {"number": 0}):
        with pytest.raises(StoreError, match="File name too long; choose a shorter run_id or name"):
            segments.append(make_run("x" * 300), **how)
    with pytest.raises(StoreError, match=f"{'x' * 300}-000000.nc: File name too long"):
        segments.prepare("x" * 300)
    assert not segments.has("x" * 300)


def test_the_latest_status_is_the_last_that_was_written(make_run, tmp_path):
    segments = Segments(tmp_path)
    assert segments.latest_status("run") is None
    segments.append(make_run(status="running"), "z")
    assert segments.latest_status("run") == "running"
    segments.append(make_run(status="crashed"), "a")
    assert segments.latest_status("run") == "crashed"
    segments.append(make_run("other"))
    assert segments.latest_status("run") == "crashed"


def test_files_are_as_readable_as_the_umask_says(make_run, tmp_path):
    before = os.umask(0o027)
    try:
        path = Segments(tmp_path).append(make_run())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_is_appended_was_brought_to_disk_before_it_got_its_name(make_run, tmp_path, monkeypatch):
    events, fsync, link = [], os.fsync, os.link
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd)
    )
    monkeypatch.setattr(os, "link", lambda a, b: events.append("link") or link(a, b))
    Segments(tmp_path).append(make_run())
    assert [event.endswith(".tmp") for event in events] == [True, False, False]
    assert events[1:] == ["link", str(tmp_path)]


UNWRITABLE = {
    "a file": (lambda tmp: tmp / "file", "a file lies in the way"),
    "a folder below a file": (lambda tmp: tmp / "file" / "store", "a file lies in the way"),
    "a place where no folder can be": (lambda tmp: atomic.Path("/proc/store"), "choose a folder"),
}


@pytest.mark.parametrize("what", UNWRITABLE)
def test_an_unwritable_place_is_one_clear_line(make_run, tmp_path, what):
    (tmp_path / "file").touch()
    where, way_out = UNWRITABLE[what]
    path = where(tmp_path)
    for attempt in (lambda: Segments(path).append(make_run()), lambda: Segments(path).prepare()):
        with pytest.raises(StoreError) as error:
            attempt()
        assert str(path) in str(error.value)
        assert way_out in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_is_no_folder_to_list(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file.*folder"):
        Segments(tmp_path / "file").names()


def test_preparing_proves_that_the_folder_can_be_written(tmp_path, monkeypatch):
    segments = Segments(tmp_path / "store").prepare()
    assert segments.path.is_dir()
    assert list(segments.path.iterdir()) == []

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(atomic.Path, "touch", read_only)
    with pytest.raises(StoreError, match="Read-only file system; choose a folder that you may write to"):
        segments.prepare()


def full_after(n_bytes):
    """An os.write for a disk with room for `n_bytes`."""
    write, room = os.write, [n_bytes]

    def limited(descriptor, data):
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    return limited


@pytest.mark.parametrize("room", [0, 1, 5000])
def test_a_full_disk_is_an_error_and_leaves_nothing(make_run, tmp_path, monkeypatch, room):
    segments = Segments(tmp_path)
    segments.append(make_run())
    with monkeypatch.context() as full:
        full.setattr(os, "write", full_after(room))
        with pytest.raises(StoreError, match=r"run-000001\.nc: No space left on device; free some space"):
            segments.append(make_run())
    assert os.listdir(tmp_path) == ["run-000000.nc"]
    assert segments.append(make_run()).name == "run-000001.nc"


def test_a_disk_that_is_full_only_at_fsync_leaves_nothing(make_run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        Segments(tmp_path).append(make_run())
    assert os.listdir(tmp_path) == []


def test_a_disk_that_takes_a_little_at_a_time_gets_it_all(make_run, tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    segments = Segments(tmp_path)
    segments.append(make_run())
    xr.testing.assert_equal(segments.read("run-000000"), make_run())


def test_a_limit_on_file_sizes_is_an_error_and_leaves_nothing(make_run, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            Segments(tmp_path).append(make_run())
        except StoreError as error:
            return str(error)

    message = in_child(limited)
    assert "run-000000.nc: File too large" in message
    assert "ulimit" in message


def test_a_process_that_has_all_files_open_that_it_may_is_told_so(make_run, tmp_path, monkeypatch):
    def none_left(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(StoreError, match=r"Too many open files; close some, or raise .*ulimit -n"):
        Segments(tmp_path).append(make_run())
    assert os.listdir(tmp_path) == []


def test_two_processes_write_two_runs_into_one_folder(make_run, tmp_path):
    def write(run_id, seed):
        segments = Segments(tmp_path)
        for i in range(10):
            segments.append(make_run(run_id, steps=[i], seed=seed))

    writers = [fork.Process(target=write, args=args) for args in (("a", 1), ("b", 2))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert Segments(tmp_path).names() == [f"{run}-{i:06d}" for run in "ab" for i in range(10)]
    for run_id, seed in (("a", 1), ("b", 2)):
        for i in range(10):
            xr.testing.assert_equal(
                Segments(tmp_path).read(f"{run_id}-{i:06d}"), make_run(run_id, steps=[i], seed=seed)
            )


def test_of_many_processes_that_write_one_name_exactly_one_does(make_run, tmp_path):
    receiver, sender = fork.Pipe(duplex=False)
    start = fork.Event()

    def write(seed):
        run = make_run(seed=seed)
        start.wait(30)
        try:
            Segments(tmp_path).append(run, "cell")
            sender.send(seed)
        except StoreError as error:
            sender.send(str(error))

    writers = [fork.Process(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    told = [receiver.recv() for _ in writers if receiver.poll(60)]
    for writer in writers:
        writer.join(60)
    (winner,) = [seed for seed in told if isinstance(seed, int)]
    assert len(told) == 4
    assert all("exists" in message for message in told if message != winner)
    xr.testing.assert_equal(Segments(tmp_path).read("cell"), make_run(seed=winner))
    assert hidden(tmp_path) == []


def leftover(folder, age=3600.0):
    path = folder / f".run-000000.nc.0123456789ab{atomic.SUFFIX}"
    path.write_bytes(b"half a segment")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_run_that_numbers_its_segments_has_one_writer(make_run, tmp_path, monkeypatch):
    first, second = Segments(tmp_path), Segments(tmp_path)
    assert first.append(make_run(status="running"), number=0).stem == "run-000000"
    assert second.append(make_run(status="running"), number=1).stem == "run-000001"
    with pytest.raises(
        StoreError, match=r"'run' is recorded by another process too, which wrote .*run-000001\.nc"
    ):
        first.append(make_run(), number=1)
    looks = iter([False, True])  # the other writes in between
    monkeypatch.setattr(first, "has", lambda name: next(looks))
    with pytest.raises(StoreError, match="recorded by another process too"):
        first.append(make_run(), number=1)
    assert first.names() == ["run-000000", "run-000001"]


def test_a_segment_of_a_number_is_ones_own_by_its_tokens(make_run, tmp_path):
    segments = Segments(tmp_path)
    segments.append(make_run(), number=0, tokens=["first", "second"])
    asked = [(["first", "second"], 0), (["first"], 0), (["other"], 0), (["first", "second"], 1)]
    assert [segments.is_by(tokens, "run", number) for tokens, number in asked] == [True, False, False, False]


def test_the_leftover_of_a_dead_writer_is_swept_at_the_next_append(make_run, tmp_path):
    path = leftover(tmp_path)
    segments = Segments(tmp_path)
    assert segments.names() == []
    segments.append(make_run())
    assert not path.exists()
    assert segments.names() == ["run-000000"]


def test_what_was_written_read_and_swept_is_not_left_open(make_run, tmp_path):
    open_files = []
    for _ in range(2):  # the first opens what stays, such as imports
        leftover(tmp_path)
        segments = Segments(tmp_path)
        segments.read(segments.append(make_run()).stem)
        open_files.append(len(os.listdir("/proc/self/fd")))
    assert open_files[0] == open_files[1]


def test_leftovers_that_cannot_be_looked_at_keep_nobody_from_writing(make_run, tmp_path, monkeypatch):
    def no_clock(folder):
        raise OSError(errno.EDQUOT, "no room for a clock")

    monkeypatch.setattr(atomic, "_now", no_clock)
    path = leftover(tmp_path)
    Segments(tmp_path).append(make_run())
    assert path.exists()


def test_the_temporary_of_a_living_writer_is_left_alone(make_run, tmp_path):
    path = leftover(tmp_path, age=10 * atomic.ABANDONED)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Segments(tmp_path).append(make_run())
        assert path.exists()
    Segments(tmp_path).append(make_run())
    assert not path.exists()


def test_the_temporary_of_a_living_writer_keeps_no_leftover_of_another(tmp_path):
    old = time.time() - 2 * atomic.FRESH
    leftovers = [tmp_path / f".{i}.nc.abc.tmp" for i in range(9)]
    for path in leftovers:
        path.touch()
        os.utime(path, (old, old))
    with leftovers[4].open("rb") as living:
        assert atomic.lock(living.fileno())
        atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [leftovers[4]]


def test_a_temporary_just_made_is_left_alone(make_run, tmp_path):
    path = leftover(tmp_path, age=1.0)
    Segments(tmp_path).append(make_run())
    assert path.exists()


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_what_is_fresh_goes_by_the_clock_that_dates_files(tmp_path, monkeypatch, ahead):
    fresh, left = (tmp_path / f".{name}.nc.0123456789ab.tmp" for name in ("fresh", "left"))
    fresh.touch()
    left.touch()
    os.utime(left, (time.time() - 3600,) * 2)
    here = time.time() + ahead
    monkeypatch.setattr(time, "time", lambda: here)
    atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [fresh]


def test_a_writer_holds_the_lock_of_its_temporary(make_run, tmp_path, monkeypatch):
    seen, write = [], os.write

    def watched(descriptor, data):
        (temporary,) = tmp_path.glob(f".*{atomic.SUFFIX}")
        os.utime(temporary, (0, 0))
        atomic.sweep(tmp_path)
        seen.append(temporary.exists())
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", watched)
    Segments(tmp_path).append(make_run())
    assert seen == [True]


def test_a_segment_is_unlocked_from_the_moment_it_can_be_seen(make_run, tmp_path, monkeypatch):
    read, link = [], os.link

    def watched(source, target):
        link(source, target)
        with xr.open_dataset(target, engine="h5netcdf") as other:  # HDF5 locks what it reads
            read.append(other.load())

    monkeypatch.setattr(os, "link", watched)
    Segments(tmp_path).append(make_run())
    xr.testing.assert_equal(read[0], make_run())


def test_a_segment_is_read_although_another_holds_its_lock(make_run, tmp_path):
    path = Segments(tmp_path).append(make_run())
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        xr.testing.assert_equal(Segments(tmp_path).read("run-000000"), make_run())


def test_without_locks_only_an_old_temporary_is_swept(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = leftover(tmp_path, age=3600.0)
    atomic.sweep(tmp_path)
    assert path.exists()
    leftover(tmp_path, age=2 * atomic.ABANDONED)
    atomic.sweep(tmp_path)
    assert not path.exists()
