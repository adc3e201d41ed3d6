"""`open_runs` gives every value that was appended, where it belongs, and nothing else."""

import itertools
import re
import shutil
import time
import warnings

import numpy as np
import pytest
import xarray as xr

from alignlab.store import Segments, StoreError, check, compact, open_runs, open_segments, record, shelf


def cells(dataset):
    """Naive twin of joining: every value of a dataset of one run under (variable, run_id, step, layer, mode)."""
    run_id, found = dataset.run_id.item(), {}
    for name, variable in dataset.data_vars.items():
        axes = [dataset[dim].values.tolist() for dim in variable.dims]
        for labels, value in zip(itertools.product(*axes), variable.values.ravel(), strict=True):
            found[name, run_id, labels] = value
    return found


def all_cells(joined):
    if "run" not in joined.dims:
        return cells(joined)
    return {
        key: value for i in range(joined.sizes["run"]) for key, value in cells(joined.isel(run=i)).items()
    }


def assert_holds(joined, expected):
    """`joined` has exactly the `expected` cells; all others are NaN."""
    found = all_cells(joined)
    assert set(expected) <= set(found)
    for key, value in found.items():
        np.testing.assert_equal(float(value), float(expected.get(key, np.nan)), err_msg=str(key))


def append_all(path, *datasets):
    segments = Segments(path)
    for dataset in datasets:
        segments.append(dataset)
    return path


def test_one_run_has_no_dim_run_and_scalars(make_run, tmp_path):
    run = open_runs(append_all(tmp_path, make_run()))
    assert dict(run.sizes) == {"step": 3, "layer": 2, "mode": 3}
    assert run.status.item() == "finished"
    assert run.lr.dims == ()
    xr.testing.assert_identical(run, make_run().assign_attrs(schema_version=1))
    check(run)


def test_segments_of_one_run_follow_each_other(make_run, tmp_path):
    parts = [make_run(steps=[10 * i, 10 * i + 5], seed=0, status="running") for i in range(11)]
    parts[-1] = parts[-1].assign_coords(status="finished")
    run = open_runs(append_all(tmp_path, *parts))
    xr.testing.assert_equal(
        run.drop_vars(["status", "last_step"]),
        xr.concat([part.drop_vars(["status", "last_step"]) for part in parts], dim="step"),
    )
    assert (run.status.item(), run.last_step.item()) == ("finished", 105)


def test_a_run_without_a_last_word_reads_as_running(make_run, tmp_path):
    parts = [make_run(steps=[i], seed=0, status="running") for i in range(2)]
    run = open_runs(append_all(tmp_path, *parts))
    assert (run.status.item(), run.last_step.item()) == ("running", 1)


def test_more_than_a_million_segments_stay_in_order(make_run, tmp_path):
    segments = Segments(tmp_path)
    segments.append(make_run(steps=[0], status="running"))
    segments.file("run-000000").rename(segments.file("run-999999"))
    segments.append(make_run(steps=[1]))
    assert segments.names() == ["run-1000000", "run-999999"]
    assert open_runs(tmp_path).status.item() == "finished"


def test_numbered_segments_follow_by_number_whatever_the_clock_says(make_run, tmp_path, monkeypatch):
    for now, status in ((2_000, "running"), (1_000, "finished")):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        append_all(tmp_path, make_run(steps=[0, 1], status=status).assign(loss=("step", [float(now)] * 2)))
    run = open_runs(tmp_path)
    assert run.status.item() == "finished"
    assert run.loss.values.tolist() == [1_000.0, 1_000.0]


def test_named_segments_of_one_run_follow_in_the_order_of_writing(make_run, tmp_path):
    segments = Segments(tmp_path)
    segments.append(make_run(steps=[0, 1], status="running"), "z")
    segments.append(make_run(steps=[2, 3], status="running"))
    segments.append(make_run(steps=[4, 5], status="crashed"), "a")
    run = open_runs(tmp_path)
    assert run.step.values.tolist() == [0, 1, 2, 3, 4, 5]
    assert run.status.item() == "crashed"


def test_a_resumed_run_tells_what_the_later_segment_says(make_run, tmp_path):
    first = make_run(steps=[0, 10, 20, 30], seed=3, status="running")
    second = make_run(steps=[10, 20, 25], seed=3).assign(loss=("step", [7.0, np.nan, 9.0]))
    expected = cells(first.sel(step=[0, 10, 20])) | cells(second)
    run = open_runs(append_all(tmp_path, first, second))
    assert_holds(run, expected)
    assert run.step.values.tolist() == [0, 10, 20, 25]  # step 30 was of the attempt that was given up
    assert np.isnan(run.loss.sel(step=20))
    check(run)


def test_what_was_told_before_a_run_was_taken_up_again_does_not_come_back(make_run, tmp_path):
    first = make_run(steps=[0, 10], seed=3, status="running").assign_attrs(note="kept")
    dropped = make_run(steps=[20, 30], modes=5, seed=3, status="crashed")
    dropped = dropped.assign(odd=dropped.loss).assign_attrs(left="behind")
    again = first.isel(step=[]).assign_coords(last_step=12)
    last = make_run(steps=[25, 35], seed=3).assign_attrs(note="kept")
    runs = append_all(tmp_path, first, dropped, again, last)
    expected = open_runs(append_all(tmp_path / "plain", first, last))
    xr.testing.assert_identical(open_runs(runs), expected)
    xr.testing.assert_identical(open_runs(compact(runs)).load(), expected)


def recorded(path, make_run, *tokens, steps=(0, 1, 2)):
    """A segment a step, each with the tokens that were told last."""
    segments = Segments(path)
    for step, own in zip(steps, (tokens + (tokens[-1],) * len(steps))[: len(steps)], strict=True):
        segments.append(make_run(steps=[step], status="running"), tokens=own.split())
    return path


def test_segments_that_are_missing_before_others_are_told(make_run, tmp_path):
    whole = recorded(tmp_path / "whole", make_run, "a", steps=range(9))
    Segments(whole).append(make_run("other"))
    named = make_run("run", steps=[3], last_step=8, status="running")[["loss"]].rename(loss="test_loss")
    Segments(whole).append(named, "seed-000007")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_runs(whole)
    path = shutil.copytree(whole, tmp_path / "part", ignore=lambda *_: ["run-000000.nc", "run-000005.nc"])
    told = "run 'run' in .*part lacks 2 of its segments, 000000, 000005: what was measured in them is missing"
    for read in (open_runs, compact, open_runs):  # from segments, and from their compaction
        with pytest.warns(UserWarning, match=told):
            read(path)
    assert open_runs(path).step.values.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 10, 20]


@pytest.mark.filterwarnings("error")
def test_a_compaction_of_an_older_version_tells_nothing_of_gaps(make_run, tmp_path, monkeypatch):
    def noted(pieces, stamp, note=shelf._note):
        return {key: value for key, value in note(pieces, stamp).items() if key != "sequence"}

    monkeypatch.setattr(shelf, "_note", noted)
    compact(recorded(tmp_path, make_run, "a"))
    monkeypatch.undo()
    recorded(tmp_path, make_run, "a", steps=[3])
    for read in (open_runs, compact, open_runs):
        read(tmp_path)


@pytest.mark.parametrize(("first", "second"), [(4, 2), (3, 1)])
def test_two_recordings_whose_files_are_mixed_are_told_with_the_files(make_run, tmp_path, first, second):
    here = recorded(tmp_path / "here", make_run, "one", steps=range(first))
    there = recorded(tmp_path / "there", make_run, "two", steps=range(second))
    expected = open_runs(there)
    compact(here)
    shutil.copytree(there, here, dirs_exist_ok=True)
    told = (
        f"run 'run' is two recordings.*: .*here/run-{second:06d}.nc does not go on with what .*here/run-{second - 1:06d}.nc "
        "tells. Copy each"
    )
    for read in (open_runs, compact, lambda path: Segments(path).latest_status("run")):
        with pytest.raises(StoreError, match=told):
            read(here)
    shutil.rmtree(here / "compact.zarr")
    for number in range(second, first):
        (here / f"run-{number:06d}.nc").unlink()
    xr.testing.assert_identical(open_runs(here), expected)


def test_a_recording_that_was_taken_up_again_is_one(make_run, tmp_path):
    whole = open_runs(recorded(tmp_path / "plain", make_run, "", steps=range(5)))
    path = recorded(tmp_path / "store", make_run, "a", "a", "a b", "a b", "a b c", steps=range(5))
    xr.testing.assert_identical(open_runs(path), whole)
    xr.testing.assert_identical(open_runs(compact(path)).load(), whole)


def test_a_recording_that_went_on_in_two_copies_of_its_store_is_two(make_run, tmp_path):
    here = recorded(tmp_path / "here", make_run, "a", "a", "a b")
    there = recorded(tmp_path / "there", make_run, "a", "a", "a c", steps=range(4))
    shutil.copy(there / "run-000003.nc", here)
    with pytest.raises(StoreError, match=r"run-000003.nc does not go on with what .*run-000002.nc tells"):
        open_runs(here)
    shutil.copy(there / "run-000002.nc", here)
    xr.testing.assert_identical(open_runs(here), open_runs(there))


def test_segments_without_tokens_go_with_any(make_run, tmp_path):
    path = recorded(tmp_path, make_run, "", "a", "", "a b", steps=range(4))
    assert open_runs(path).step.values.tolist() == [0, 1, 2, 3]
    Segments(path).append(make_run(steps=[0, 3])[["loss"]].rename(loss="test_loss"))
    assert open_runs(path)["test_loss"].notnull().values.tolist() == [True, False, False, True]


def test_a_later_segment_may_add_variables_at_the_same_steps(make_run, tmp_path):
    first = make_run(steps=[0, 10, 20], status="running")
    second = first[["loss"]].rename(loss="test_loss").isel(step=[0, 2]).assign_coords(status="finished")
    run = open_runs(append_all(tmp_path, first, second))
    assert_holds(run, cells(first) | cells(second))


def test_layers_of_nets_of_several_depths_stand_in_their_order(make_run, tmp_path):
    """The shallowest net first, the hidden layers of deeper ones stood behind the readout."""
    nets = [("fc1", "out"), ("fc1", "fc2", "fc3", "out"), ("fc1", "fc2", "out"), ("conv", "fc1", "out")]
    runs = [make_run(f"r{i}", layers=net, seed=i) for i, net in enumerate(nets)]
    joined = open_runs(append_all(tmp_path, *runs))
    assert joined.layer.values.tolist() == ["conv", "fc1", "fc2", "fc3", "out"]
    assert_holds(joined, {key: value for run in runs for key, value in cells(run).items()})


def test_layers_of_runs_that_recorded_parts_of_a_net_stand_in_its_order(make_run, tmp_path):
    parts = [("out",), ("fc1",), ("conv", "fc1", "out")]
    runs = [make_run(f"r{i}", layers=part, seed=i) for i, part in enumerate(parts)]
    assert open_runs(append_all(tmp_path, *runs)).layer.values.tolist() == ["conv", "fc1", "out"]


def test_different_runs_are_joined_by_what_they_have(make_run, tmp_path):
    runs = [
        make_run("b", steps=[0, 10, 20], layers=("fc1", "fc2"), modes=2, seed=1),
        make_run("a", steps=[5, 10], layers=("conv", "fc2"), modes=4, seed=2, lr=0.5, status="diverged"),
        make_run("c", steps=[20], layers=("fc2",), seed=3)
        .drop_vars("gradient_angle")
        .assign(mine=("layer", [1.5])),
        make_run("d", steps=[0], seed=4)[["loss"]],
    ]
    joined = open_runs(append_all(tmp_path, *runs))
    expected = {key: value for run in runs for key, value in cells(run).items()}
    assert_holds(joined, expected)
    assert joined.run_id.values.tolist() == ["a", "b", "c", "d"]
    assert joined.step.values.tolist() == [0, 5, 10, 20]
    assert joined.layer.values.tolist() == ["conv", "fc1", "fc2"]  # fc1 lies below fc2
    assert joined.seed.values.tolist() == [2, 1, 3, 4]
    assert joined.seed.dtype == np.int64
    assert joined.status.sel(run=0).item() == "diverged"
    assert joined.gradient_angle.dims == ("run", "step", "layer")
    assert joined.gradient_angle.dtype == np.float32
    assert joined.gradient_angle.attrs == {"units": "degree"}
    check(joined)


def test_whole_numbers_stay_whole_unless_there_are_gaps(make_run, tmp_path):
    append_all(tmp_path / "same", make_run("a"), make_run("b"))
    append_all(tmp_path / "gaps", make_run("a"), make_run("b", steps=[0, 10]))
    assert open_runs(tmp_path / "same").samples_seen.dtype == np.int64
    assert open_runs(tmp_path / "gaps").samples_seen.dtype == np.float64


def test_whole_numbers_and_truths_that_a_run_has_not_are_no_zeros_there(make_run, tmp_path):
    has = make_run("a").assign(mine=("layer", [3, 4]), flag=("layer", [True, False]))
    joined = open_runs(append_all(tmp_path, has, make_run("b")))
    np.testing.assert_array_equal(joined.mine, [[3, 4], [np.nan, np.nan]])
    np.testing.assert_array_equal(joined.flag, [[1, 0], [np.nan, np.nan]])


def test_names_whose_letters_are_alike_when_written_together_are_layers_of_their_own(make_run, tmp_path):
    first, second = make_run("a", layers=("a", "b")), make_run("b", layers=("ab",), seed=1)
    joined = open_runs(append_all(tmp_path, first, second))
    assert joined.layer.values.tolist() == ["a", "b", "ab"]
    assert_holds(joined, cells(first) | cells(second))
    compact(tmp_path)
    third = make_run("c", layers=("b",), seed=2)
    assert_holds(open_runs(append_all(tmp_path, third)).load(), cells(first) | cells(second) | cells(third))


def test_layers_in_another_order_lie_at_their_own_names(make_run, tmp_path):
    runs = [
        make_run("a", layers=("a", "b", "c", "d")),
        make_run("b", layers=("a", "c", "b", "d"), seed=1),  # from the first to the last, as without a gap
        make_run("c", layers=("d", "b"), seed=2),
    ]
    joined = open_runs(append_all(tmp_path, *runs))
    assert_holds(joined, {key: value for run in runs for key, value in cells(run).items()})


def test_what_layers_share_over_runs_stays_on_layer(make_run, tmp_path):
    append_all(tmp_path / "same", make_run("a"), make_run("b", layers=("fc1",)))
    same = open_runs(tmp_path / "same")
    assert same.fan_in.dims == same.kind.dims == ("layer",)
    assert (same.fan_in.dtype, same.fan_in.values.tolist()) == (np.int64, [4, 5])
    append_all(tmp_path / "other", make_run("a"), make_run("b").assign_coords(fan_in=("layer", [4, 99])))
    other = open_runs(tmp_path / "other")
    assert other.fan_in.dims == ("run", "layer")
    assert other.fan_in.values.tolist() == [[4, 5], [4, 99]]
    check(other)
    append_all(tmp_path / "bare", make_run("a"), make_run("b", layers=("fc9",)).drop_vars("fan_in"))
    bare = open_runs(tmp_path / "bare")
    np.testing.assert_array_equal(bare.fan_in, [4, 5, np.nan])  # unknown, not 0


def test_scalars_that_only_some_runs_have_are_empty_elsewhere(make_run, tmp_path):
    joined = open_runs(append_all(tmp_path, make_run("a", beta=0.9, depth=3, note="x"), make_run("b")))
    np.testing.assert_array_equal(joined.beta, [0.9, np.nan])
    np.testing.assert_array_equal(joined.depth, [3, np.nan])
    assert joined.note.values.tolist() == ["x", ""]


def test_attributes_that_differ_become_coordinates_and_none_is_lost(make_run, tmp_path):
    runs = [
        make_run("a", attrs={"torch_version": "2.6", "same": [1, 2], "nesterov": True, "nan": float("nan")}),
        make_run("b", attrs={"torch_version": "2.7", "same": [1, 2], "rule": "fa!", "nan": float("nan")}),
    ]
    runs[1].spectrum_real.attrs["method"] = "arnoldi"
    joined = open_runs(append_all(tmp_path, *runs))
    np.testing.assert_equal(
        joined.attrs, {"schema_version": 1, "device": "cpu", "same": [1, 2], "nan": float("nan")}
    )
    assert joined.torch_version.values.tolist() == ["2.6", "2.7"]
    assert joined.nesterov.values.tolist() == ["true", ""]
    assert joined.attr_rule.values.tolist() == ["", "fa!"]
    assert joined.spectrum_real_method.values.tolist() == ["exact", "arnoldi"]
    assert "method" not in joined.spectrum_real.attrs
    check(joined)


def test_of_an_attribute_that_segments_of_a_run_tell_the_last_word_counts(make_run, tmp_path):
    first = make_run(steps=[0], status="running", attrs={"note": "early", "kept": 1})
    second = make_run(steps=[1], attrs={"note": "late", "added": 2})
    run = open_runs(append_all(tmp_path, first, second))
    assert {name: run.attrs[name] for name in ("note", "kept", "added")} == {
        "note": "late",
        "kept": 1,
        "added": 2,
    }


def test_an_attribute_that_differs_gets_a_name_that_a_coordinate_may_have(make_run, tmp_path):
    runs = [
        make_run(name, attrs={"git commit/branch": name, "run": name, "mode": name}).drop_dims("mode")
        for name in "ab"
    ]
    joined = open_runs(append_all(tmp_path, *runs))
    for name in ("git_commit_branch", "attr_run", "attr_mode"):
        assert joined[name].values.tolist() == ["a", "b"]
    check(joined)


def test_true_and_one_are_different_attributes(make_run, tmp_path):
    joined = open_runs(
        append_all(tmp_path, make_run("a", attrs={"flag": True}), make_run("b", attrs={"flag": 1}))
    )
    assert joined.flag.values.tolist() == ["true", "1"]


def test_a_run_without_a_variable_has_no_say_on_its_attributes(make_run, tmp_path):
    joined = open_runs(append_all(tmp_path, make_run("a"), make_run("b")[["loss"]]))
    assert joined.spectrum_real.attrs == {"method": "exact"}


def test_a_segment_of_many_runs_is_read_as_those_runs(make_run, tmp_path):
    runs = [make_run(run_id, seed=i, lr=0.1 * i, last_step=20 - 10 * i) for i, run_id in enumerate("ba")]
    runs = [run.drop_vars("samples_seen").where(run.step <= run.last_step) for run in runs]
    both = xr.concat(runs, dim="run")
    Segments(tmp_path).append(both, "population")
    joined = open_runs(tmp_path)
    assert_holds(joined, {key: value for run in runs for key, value in cells(run).items()})
    assert joined.run_id.values.tolist() == ["a", "b"]
    assert joined.lr.values.tolist() == [0.1, 0.0]
    assert joined.rule.dims == ("run",)  # also where it was a scalar
    check(joined)


def test_a_population_goes_on_in_segments(make_run, tmp_path):
    def population(steps, status):
        return xr.concat([make_run(run_id, steps=steps, status=status) for run_id in "ab"], dim="run")

    segments = Segments(tmp_path)
    segments.append(population([0, 1], "running"), "flush-0")
    segments.append(population([2, 3], "finished"), "flush-1")
    joined = open_runs(tmp_path)
    assert dict(joined.sizes) == {"run": 2, "step": 4, "layer": 2, "mode": 3}
    assert joined.status.values.tolist() == ["finished", "finished"]
    assert joined.loss.notnull().all()


def test_two_runs_under_one_run_id_are_refused(make_run, tmp_path):
    append_all(tmp_path, make_run(seed=0), make_run(seed=1))
    with pytest.raises(
        StoreError, match=r"'run' is two runs: seed is 0 in .*000000\.nc and 1 in .*000001\.nc; give"
    ):
        open_runs(tmp_path)


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize(
    ("names", "run_ids"), [(("a", "b"), "ab"), ((None, None), "ab"), ((None, None), "aa")], ids=str
)
@pytest.mark.parametrize("over", [True, False], ids=["in its place", "beside it"])
def test_a_copy_of_a_segment_is_named_lest_a_run_be_missing_unnoticed(
    make_run, tmp_path, names, run_ids, over, compacted
):
    segments = Segments(tmp_path)
    original, other = (
        segments.append(make_run(run_id, steps=[i]), name)
        for i, (run_id, name) in enumerate(zip(run_ids, names, strict=True))
    )
    if compacted:
        compact(tmp_path)
    copy = other if over else tmp_path / "zz.nc"
    copy.write_bytes(original.read_bytes())
    with pytest.raises(StoreError, match=re.escape(f"{copy} is a copy of {original}, where another")):
        open_runs(tmp_path)


def test_one_name_for_two_kinds_of_variable_is_refused(make_run, tmp_path):
    append_all(
        tmp_path, make_run("a").assign(mine=("step", [1, 2, 3])), make_run("b").assign(mine=("layer", [1, 2]))
    )
    with pytest.raises(StoreError, match=r"'mine' has dims \('step',\).*\('layer',\).*separately"):
        open_runs(tmp_path)
    append_all(tmp_path / "texts", make_run("a", beta=0.5), make_run("b", beta="x"))
    with pytest.raises(StoreError, match=r"'beta' has dims \(\) and dtype float64.*<U1.*separately"):
        open_runs(tmp_path / "texts")


def test_a_list_of_stores_is_opened_as_one(make_run, tmp_path):
    append_all(tmp_path / "x", make_run("a", seed=1), make_run("c", seed=2))
    append_all(tmp_path / "y", make_run("b", seed=3))
    joined = open_runs([tmp_path / "x", str(tmp_path / "y"), tmp_path / "x"])
    assert joined.run_id.values.tolist() == ["a", "b", "c"]
    assert joined.seed.values.tolist() == [1, 3, 2]
    append_all(tmp_path / "z", make_run("b", seed=3))
    with pytest.raises(StoreError, match=r"run 'b' is in .*y and in .*z"):
        open_runs([tmp_path / "x", tmp_path / "y", tmp_path / "z"])


def test_named_segments_are_opened_as_all_are_whatever_their_order(make_run, tmp_path):
    for run_id in "bca":
        Segments(tmp_path).append(make_run(run_id), run_id)
    assert open_segments(tmp_path, ["c", "a", "b"]).identical(open_runs(tmp_path))
    assert open_segments(tmp_path, ["b", "a"]).run_id.values.tolist() == ["a", "b"]


def test_no_store_is_an_error_that_says_what_to_do(make_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    append_all(tmp_path / "sweep" / "first", make_run())
    (tmp_path / "sweep" / "another").mkdir()  # with nothing in it to open
    cases = {
        tmp_path / "missing": "missing: there is no such folder",
        tmp_path / "file": "file: it is a file; give the folder",
        tmp_path / "empty": "died before its first flush",
        tmp_path / "sweep": "in its folders first: open one of them",
    }
    for path, message in cases.items():
        with pytest.raises(StoreError, match=message):
            open_runs(path)
    with pytest.raises(StoreError, match="the list of paths is empty"):
        open_runs([])


def test_a_damaged_segment_is_named_with_the_way_out(make_run, tmp_path):
    append_all(tmp_path, make_run("a"), make_run("b"))
    path = Segments(tmp_path).file("b-000000")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StoreError, match=r"b-000000\.nc: damaged.*move it out of the folder") as error:
        open_runs(tmp_path)
    assert "\n" not in str(error.value)
    path.unlink()
    assert open_runs(tmp_path).run_id.item() == "a"


def test_a_newer_segment_is_named_with_the_way_out(make_run, tmp_path, monkeypatch):
    append_all(tmp_path, make_run("a"))
    with monkeypatch.context() as newer:
        newer.setattr(record, "SCHEMA_VERSION", 2)
        append_all(tmp_path, make_run("b"))
    with pytest.raises(
        StoreError, match=r"b-000000\.nc: it has schema 2, this alignlab reads up to 1; upgrade"
    ):
        open_runs(tmp_path)


def test_other_files_in_the_folder_do_not_disturb(make_run, tmp_path):
    append_all(tmp_path, make_run())
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".run-000001.nc.0123456789ab.tmp").write_bytes(b"half a segment")
    (tmp_path / ".hidden.nc").write_bytes(b"not one of ours")
    assert open_runs(tmp_path).run_id.item() == "run"


def test_importing_the_store_is_light():
    import subprocess
    import sys

    code = (
        "import sys, alignlab.store; print({'xarray', 'h5py', 'zarr', 'pandas', 'dask'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_named_segments_follow_in_the_order_of_writing_even_within_one_tick_of_the_clock(
    make_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(time, "time_ns", lambda: 1_000)
    segments = Segments(tmp_path)
    segments.append(make_run(steps=[0, 1], status="running"), "z")
    segments.append(make_run(steps=[2, 3], status="crashed"), "a")
    assert open_runs(tmp_path).status.item() == "crashed"


@pytest.mark.parametrize(
    "other", [{"rule": "bp"}, {"lr": 0.2}, {"task": "mnist"}, {"arm": "b"}, {"control": "placebo"}]
)
def test_two_runs_under_one_run_id_are_refused_by_any_coordinate(make_run, tmp_path, other):
    for scalars in ({}, other):
        Segments(tmp_path).append(make_run(**scalars))
    with pytest.raises(StoreError, match=f"'run' is two runs: {next(iter(other))} is"):
        open_runs(tmp_path)


def test_a_run_without_a_learning_rate_is_one_run(make_run, tmp_path):
    for steps in ([0, 10], [20]):
        Segments(tmp_path).append(make_run(steps=steps, lr=np.nan))
    assert open_runs(tmp_path).step.values.tolist() == [0, 10, 20]
    Segments(tmp_path).append(make_run(steps=[30], lr=0.1))
    with pytest.raises(StoreError, match="'run' is two runs: lr is nan in"):
        open_runs(tmp_path)


def versions(make_run, *told):
    """Runs of these (spec, code), of which either may be missing."""
    return [
        make_run(f"{i}", attrs={k: v for k, v in (("spec_hash", spec), ("code_hash", code)) if v})
        for i, (spec, code) in enumerate(told)
    ]


@pytest.mark.parametrize("compacted", [False, True])
def test_runs_of_one_spec_by_two_versions_of_the_code_are_told_once(tmp_path, make_run, compacted):
    told = [("a", "old"), ("b", "old"), ("a", "new"), ("b", "new"), ("c", "new"), ("d", ""), ("d", "new")]
    append_all(tmp_path, *versions(make_run, *told))
    if compacted:
        compact(tmp_path)
    with pytest.warns(UserWarning, match="code") as warned:
        runs = open_runs(tmp_path)
    assert [str(w.message) for w in warned] == [
        "6 of 7 runs are of 3 specs, computed by several versions of the code each: they are no further seeds. Choose a "
        "version by the coordinate code_hash, runs.isel(run=runs['code_hash'] == ...)"
    ]
    assert runs.isel(run=runs["code_hash"] == "new").sizes["run"] == 4


@pytest.mark.parametrize("told", [
    [("", "old"), ("", "new")],  # a recorder's
    [("a", "old"), ("b", "new")],
    [("a", "old"), ("a", "old")],
    [("a", "old"), ("a", "old"), ("b", "new")],
    [("a", "old")],
])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_other_runs_open_without_a_word_on_versions(tmp_path, make_run, told):
    append_all(tmp_path, *versions(make_run, *told))
    open_runs(tmp_path)
