"""A record comes back from a netCDF file exactly, or not at all."""

import h5py
import numpy as np
import pytest
import xarray as xr

from alignlab.store import StoreError, netcdf, record
from alignlab.store.segments import Segments

ATTRIBUTES = {
    "none": None, "true": True, "false": False, "int": 3, "big": 2**80, "float": 0.1, "infinite": float("inf"),
    "empty": "", "text": "naïve ∠ text", "lines": "a: 1\nb: 2\n", "null": "null", "looks_like_json": "true", "nul": "a\0b",
    "surrogate": "\ud800", "huge": 2**64, "list": [1, 2.5, "x", None], "empty_list": [], "numbers": [0.0, 180.0],
    "nested": {"momentum": 0.9, "betas": [0.9, 0.999], "nesterov": False, "none": None}, "long": "spec: " * 40_000,
}  # fmt: skip


def round_trip(dataset, folder):
    segments = Segments(folder)
    return segments.read(segments.append(dataset).stem)


VARIANTS = {
    "as it is": lambda r: r,
    "float64": lambda r: r.assign(loss=r.loss.astype(np.float64) / 3),
    "integers and bools": lambda r: r.assign(
        mine=("layer", [True, False]), n=((), 7), few=("step", np.int8([1, 2, 3]))
    ),
    "no steps": lambda r: r.isel(step=[]),
    "bools without steps": lambda r: r.assign(flag=("step", [True, False, True])).isel(step=[]),
    "one step": lambda r: r.isel(step=[1]),
    "no layers": lambda r: r[["loss"]],
    "NaN and infinity": lambda r: r.assign(loss=("step", np.float32([np.nan, np.inf, -np.inf]))),
    "own coordinates": lambda r: r.assign_coords(epoch=("step", [0, 0, 1]), beta=0.9, on=True, word="ψ"),
    "attributes of variables": lambda r: r.assign(loss=r.loss.assign_attrs(ATTRIBUTES)),
    "attributes of coordinates": lambda r: r.assign_coords(
        step=r.step.assign_attrs(units="steps", flag=None)
    ),
}


@pytest.mark.parametrize("what", VARIANTS)
def test_a_segment_comes_back_as_it_was(make_run, tmp_path, what):
    run = VARIANTS[what](make_run())
    run.attrs["schema_version"] = 1
    back = round_trip(run, tmp_path)
    xr.testing.assert_identical(back, run)
    assert {name: v.dtype for name, v in back.data_vars.items()} == {
        n: v.dtype for n, v in run.data_vars.items()
    }


@pytest.mark.parametrize("key", ATTRIBUTES)
def test_an_attribute_comes_back_with_value_and_type(make_run, tmp_path, key):
    back = round_trip(make_run(attrs={key: ATTRIBUTES[key]}), tmp_path).attrs[key]
    assert back == ATTRIBUTES[key]
    assert type(back) is type(ATTRIBUTES[key])


def test_a_large_variable_is_compressed_and_comes_back(make_run, tmp_path):
    run = make_run(steps=range(400), modes=300)
    run["spectrum_real"][1:] = np.nan
    back = round_trip(run, tmp_path)
    np.testing.assert_array_equal(back.spectrum_real, run.spectrum_real)
    (file,) = tmp_path.iterdir()
    assert run.spectrum_real.nbytes >= netcdf.COMPRESS_FROM
    assert file.stat().st_size < run.spectrum_real.nbytes / 2


@pytest.mark.parametrize("n", [3, netcdf.COMPRESS_FROM])
def test_truths_are_stored_as_netcdf_has_them_however_many_there_are(make_run, tmp_path, n):
    """As int8: HDF5's own truths are of a type that the netCDF library does not read."""
    run = make_run(steps=range(n), layers=("fc1",), modes=1)[["loss"]].assign(
        own=("step", np.arange(n) % 3 == 0)
    )
    back = round_trip(run, tmp_path)
    assert back.own.dtype == bool
    assert back.own.identical(run.own)
    (path,) = tmp_path.iterdir()
    with h5py.File(path) as file:
        assert file["own"].id.get_type().get_class() == h5py.h5t.INTEGER


def test_dims_are_stored_in_the_order_of_the_contract(make_run, tmp_path):
    back = round_trip(make_run().transpose("mode", "layer", "step"), tmp_path)
    assert back.spectrum_real.dims == ("step", "layer", "mode")
    np.testing.assert_array_equal(back.spectrum_real, make_run().spectrum_real)


def test_other_readers_of_netcdf_see_the_same_dataset(make_run, tmp_path):
    run = make_run(attrs={"nesterov": True, "spec": None}).assign(flag=("step", [True, False, True]))
    run["gradient_angle"].attrs["valid_range"] = [0.0, 180.0]
    path = Segments(tmp_path).append(run)
    with xr.open_dataset(path, engine="h5netcdf") as other:
        xr.testing.assert_equal(other, run)
        assert set(other.coords) == set(run.coords)
        assert other.flag.dtype == bool
        assert (other.attrs["nesterov"], other.attrs["spec"]) == ("true", "null")
        assert other.gradient_angle.attrs["units"] == "degree"
        np.testing.assert_array_equal(other.gradient_angle.attrs["valid_range"], np.float32([0, 180]))


def test_every_axis_has_its_dimension_scale(make_run, tmp_path):
    runs = xr.concat(
        [make_run("a"), make_run("b"), make_run("c")], dim="run"
    )  # run, step and mode of one size
    path = Segments(tmp_path).append(runs, "all")
    with h5py.File(path) as file:
        for name, variable in runs.variables.items():
            if name not in runs.dims:
                assert tuple(axis[0].name for axis in file[name].dims) == tuple(
                    f"/{dim}" for dim in variable.dims
                )
        assert all(file[dim].is_scale for dim in runs.dims)


def test_the_stored_arrays_may_be_changed_in_memory(make_run, tmp_path):
    back = round_trip(make_run(), tmp_path)
    back["loss"][0] = 7.0
    assert back.loss[0] == 7.0


def test_a_file_cut_short_is_never_read(make_run, tmp_path):
    segments = Segments(tmp_path)
    path = segments.append(make_run())
    content = path.read_bytes()
    for n in [0, 1, 100, *range(512, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:n])
        with pytest.raises(StoreError, match=r"run-000000\.nc: damaged.*move it out"):
            segments.read("run-000000")


@pytest.mark.parametrize("libver", ["earliest", "latest", "ours"])
def test_a_file_cut_short_is_known_by_its_head(make_run, tmp_path, libver):
    path = tmp_path / "file.nc"
    if libver == "ours":
        Segments(tmp_path).append(make_run(), "file")
    else:
        with h5py.File(path, "w", libver=libver) as file:
            file["x"] = np.arange(1000)
    content = path.read_bytes()
    assert netcdf.is_whole(path)
    for end in (0, 1, 20, 47, 48, 51, 52, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert not netcdf.is_whole(path), end
    path.write_bytes(bytes(len(content)))
    assert not netcdf.is_whole(path)
    assert netcdf.is_whole(tmp_path)  # no file that could be read


def test_a_flipped_bit_is_found_or_harmless(make_run, tmp_path):
    segments = Segments(tmp_path)
    path = segments.append(make_run())
    content, run = path.read_bytes(), segments.read("run-000000")
    rng, refused = np.random.default_rng(0), 0
    for position in rng.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            back = segments.read("run-000000")
        except StoreError:
            refused += 1
        else:
            xr.testing.assert_identical(back, run)
    assert refused > 10


def test_every_changed_value_is_found(make_run, tmp_path):
    segments = Segments(tmp_path)
    run = make_run()
    path = segments.append(run)
    content = path.read_bytes()
    for name in ("loss", "gradient_angle", "spectrum_real", "step"):
        values = run[name].values.tobytes()
        assert content.count(values) == 1
        path.write_bytes(content.replace(values, values[:-1] + bytes([values[-1] ^ 1])))
        with pytest.raises(StoreError, match=f"values of '{name}'"):
            segments.read("run-000000")


def test_a_checksum_is_of_shape_and_of_each_text():
    assert record.checksum(np.zeros((2, 3))) != record.checksum(np.zeros((3, 2)))
    assert record.checksum(np.array(["ab", "c"])) != record.checksum(np.array(["a", "bc"]))


def test_a_foreign_file_is_refused_by_name(make_run, tmp_path):
    make_run().to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(StoreError, match=r"foreign\.nc.*no alignlab segment"):
        Segments(tmp_path).read("foreign")


def test_a_newer_schema_is_refused_with_the_way_out(make_run, tmp_path, monkeypatch):
    segments = Segments(tmp_path)
    with monkeypatch.context() as newer:
        newer.setattr(record, "SCHEMA_VERSION", 2)
        segments.append(make_run())
    with pytest.raises(StoreError, match=r"run-000000\.nc: it has schema 2.*upgrade alignlab"):
        segments.read("run-000000")


def test_files_of_one_layout_hold_each_their_own(make_run, tmp_path):
    """They begin as copies of one mould."""
    runs = [
        make_run(
            run_id,
            seed=i,
            steps=[i, i + 5],
            status=status,
            rule=rule,
            attrs={"nesterov": bool(i), "note": note},
        )
        for i, (run_id, status, rule, note) in enumerate(
            [
                ("a", "finished", "bp", "x"),
                ("a longer name", "crashed", "sign_sync", "y" * 100),
                ("c", "diverged", "fa", ""),
            ]
        )
    ]
    runs = [
        run.assign(flag=("layer", [True, i == 1]), whole=("step", np.arange(2) + i))
        for i, run in enumerate(runs)
    ]
    before = netcdf._mould.cache_info().hits
    paths = [Segments(tmp_path).append(run) for run in runs]
    assert netcdf._mould.cache_info().hits >= before + 2
    for path, run in zip(paths, runs, strict=True):
        xr.testing.assert_identical(Segments(tmp_path).read(path.stem), run.assign_attrs(schema_version=1))
        with xr.open_dataset(path, engine="h5netcdf") as plain:
            xr.testing.assert_equal(plain.load(), run)
            assert plain.attrs["note"] == run.attrs["note"]
