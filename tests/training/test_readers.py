"""The IDX and CIFAR-10 readers: what they read, and what they refuse."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from alignlab.training import cifar, idx
from alignlab.training.errors import DataError


@pytest.mark.parametrize("shape", [(5,), (0, 3), (2, 3, 4), (300, 1, 1)])
def test_idx_packs_and_parses_back(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int64).astype(np.uint8).reshape(shape)
    np.testing.assert_array_equal(idx.parse(idx.pack(array), "x"), array)


def test_idx_reads_the_header_of_the_format_description() -> None:
    content = bytes.fromhex("00000802 00000002 00000003") + bytes([1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(idx.parse(content, "x"), [[1, 2, 3], [4, 5, 6]])


BAD_IDX = {
    "nothing": b"",
    "floats": bytes.fromhex("00000d01 00000001 00000000"),
    "not idx": b"<html>",
    "no rank": bytes.fromhex("00000800"),
    "header cut": bytes.fromhex("00000803 00000001"),
    "data cut": bytes.fromhex("00000801 00000003") + b"ab",
    "data left over": bytes.fromhex("00000801 00000001") + b"ab",
}


@pytest.mark.parametrize("kind", BAD_IDX)
def test_a_broken_idx_file_is_an_error_with_its_name(kind: str) -> None:
    with pytest.raises(DataError, match="broken-file"):
        idx.parse(BAD_IDX[kind], "broken-file")


def test_idx_refuses_to_pack_anything_but_bytes() -> None:
    with pytest.raises(DataError, match="float32"):
        idx.pack(np.zeros(3, dtype=np.float32))  # type: ignore[arg-type]


def cifar_batches() -> dict[str, tuple[idx.Pixels, idx.Pixels]]:
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {
        name: (random.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8), random.integers(0, 10, 4, np.uint8))
        for name in names
    }


def as_python(images: idx.Pixels, labels: idx.Pixels) -> bytes:
    batch = {b"data": images.reshape(len(images), -1), b"labels": labels.tolist(), b"batch_label": b"x"}
    return pickle.dumps(batch, protocol=2)


def as_binary(images: idx.Pixels, labels: idx.Pixels) -> bytes:
    return np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1).tobytes()


def as_archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def cifar_variants() -> dict[str, dict[str, bytes]]:
    batches = cifar_batches()
    python = {f"cifar-10-batches-py/{name}": as_python(*batch) for name, batch in batches.items()}
    binary = {f"cifar-10-batches-bin/{name}.bin": as_binary(*batch) for name, batch in batches.items()}
    extras = {"cifar-10-batches-py/batches.meta": b"meta", "readme.html": b"<html>"}
    return {
        "unpacked": python,
        "python": {"cifar-10-python.tar.gz": as_archive(python | extras)},
        "binary": {"cifar-10-binary.tar.gz": as_archive(binary)},
    }


@pytest.mark.parametrize("variant", ["unpacked", "python", "binary"])
def test_every_form_of_cifar10_reads_the_same(variant: str) -> None:
    train, train_labels, test, test_labels = cifar.read(cifar_variants()[variant])
    batches = cifar_batches()
    first, last = batches["data_batch_1"], batches["data_batch_5"]
    assert train.shape == (20, 3, 32, 32)
    np.testing.assert_array_equal(train[:4], first[0])
    np.testing.assert_array_equal(train[-4:], last[0])
    np.testing.assert_array_equal(train_labels[[0, -1]], [first[1][0], last[1][-1]])
    np.testing.assert_array_equal(test, batches["test_batch"][0])
    np.testing.assert_array_equal(test_labels, batches["test_batch"][1])


def test_a_python_batch_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    files = cifar_variants()["unpacked"] | {"data_batch_3": pickle.dumps(Evil(), protocol=2)}
    with pytest.raises(DataError, match=r"data_batch_3.*only numpy arrays"):
        cifar.read(files)
    assert not (tmp_path / "ran").exists()


def test_broken_cifar_files_are_errors_that_name_them() -> None:
    unpacked = cifar_variants()["unpacked"]
    for files, name in (
        ({k: v for k, v in unpacked.items() if "batch_4" not in k}, "data_batch_4"),
        (unpacked | {"data_batch_2": b"\x80\x02"}, "data_batch_2"),
        (unpacked | {"data_batch_2": pickle.dumps([1], protocol=2)}, "data_batch_2"),
        (unpacked | {"test_batch": b"\x01" * 5}, "test_batch"),
        ({"cifar-10-python.tar.gz": b"no archive"}, "cifar-10-python.tar.gz"),
    ):
        with pytest.raises(DataError, match=name):
            cifar.read(files)
