"""Tasks: sizes, splits, scales, and that the same name always means the same data."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from alignlab.training import catalogue, datafiles, embedded, idx, tasks
from alignlab.training.errors import DataError
from alignlab.training.images import _balanced_split, _image_task
from alignlab.training.task import Split, Task, half_squared_error

LOCAL = ("xor", "linear_toy", "mnist_small")  # these need no data set


@pytest.fixture
def no_cache() -> Iterator[None]:
    tasks._cached.cache_clear()
    yield
    tasks._cached.cache_clear()


# Laws of every task that needs no download --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
def test_a_task_keeps_its_contract(name: str) -> None:
    task = tasks.load(name)
    assert task.name == name
    for split in (task.train, task.validation, task.test):
        assert split.inputs.dtype == torch.float32
        assert split.inputs.shape == (len(split), *task.n_in)
        assert split.targets.dtype == (torch.int64 if task.has_accuracy else torch.float32)
        assert split.targets.shape == ((len(split),) if task.has_accuracy else (len(split), task.n_out))
        assert torch.isfinite(split.inputs).all()
        loss = task.loss(torch.zeros(len(split), task.n_out), split.targets)
        assert loss.shape == ()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("name", LOCAL)
def test_the_same_name_gives_the_same_data(name: str, no_cache: None) -> None:
    first = tasks.load(name)
    assert tasks.load(name) is first
    tasks._cached.cache_clear()
    again = tasks.load(name, seed_data=0)
    assert again is not first
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", LOCAL)
def test_a_task_can_be_sent_to_another_process(name: str) -> None:
    task = tasks.load(name)
    copy = pickle.loads(pickle.dumps(task))
    assert copy.loss is task.loss
    assert replace(copy).fingerprint == task.fingerprint


FINGERPRINTS = {
    "xor": "a8bc8adfaa2672a072edd4cc48c4a936346d94a3db783dddd5a45557cf36e6f9",
    "mnist_small": "6d4d325f0ba1fb599f4cdba57d83de63eb338d6b89ce6b7349725e01d461850f",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprints_stay_what_they_are_from_one_version_and_machine_to_the_next(name: str) -> None:
    assert tasks.load(name).fingerprint == FINGERPRINTS[name]


# The small ones -----------------------------------------------------------------------------------------------------


def test_xor_is_xor() -> None:
    task = tasks.load("xor")
    expected = [int(a != b) for a, b in task.train.inputs.tolist()]
    assert task.train.targets.tolist() == expected
    assert sorted(task.train.inputs.tolist()) == [[-1, -1], [-1, 1], [1, -1], [1, 1]]
    assert task.validation is task.train
    assert task.test is task.train


def test_linear_toy_is_one_linear_map_of_normal_inputs() -> None:
    task = tasks.load("linear_toy")
    assert (task.n_in, task.n_out, task.has_accuracy) == ((30,), 10, False)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [1000, 200, 200]
    x, y = task.train.inputs.double(), task.train.targets.double()
    T_io = torch.linalg.lstsq(x, y).solution
    for split in (task.train, task.validation, task.test):
        assert (split.inputs.double() @ T_io - split.targets).abs().max() < 1e-5
    drawn = np.random.RandomState(0).uniform(-1, 1, (10, 30))
    np.testing.assert_allclose(T_io.T.numpy(), drawn, rtol=0, atol=1e-5)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02


def test_linear_toy_splits_share_no_input() -> None:
    task = tasks.load("linear_toy")
    everything = torch.cat([s.inputs for s in (task.train, task.validation, task.test)])
    assert len(torch.unique(everything, dim=0)) == 1400


def test_half_squared_error_is_half_the_mean_squared_norm() -> None:
    output, target = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert half_squared_error(output, target).item() == pytest.approx((5 + 25) / 4)
    with pytest.raises(ValueError, match=r"\(2, 2\) and target \(2,\)"):
        half_squared_error(output, target[0])


# Images -------------------------------------------------------------------------------------------------------------


def test_mnist_small_has_its_sizes_and_balanced_classes() -> None:
    task = tasks.load("mnist_small")
    assert (task.n_in, task.n_out, task.classes) == ((1, 28, 28), 10, tuple("0123456789"))
    for split, per_class in ((task.train, 800), (task.validation, 200), (task.test, 200)):
        assert torch.bincount(split.targets).tolist() == [per_class] * 10


def test_mnist_small_is_standardised_by_its_train_split() -> None:
    task = tasks.load("mnist_small")
    train = task.train.inputs.double()
    assert abs(train.mean()) < 1e-6
    assert abs(train.std(correction=0) - 1) < 1e-6
    assert abs(task.test.inputs.mean()) > 1e-4  # by train's mean, not by its own


def test_mnist_small_splits_the_embedded_images_without_loss() -> None:
    task = tasks.load("mnist_small")
    train, labels, test, test_labels = embedded.read_subset()
    held = torch.cat([task.train.inputs, task.validation.inputs]).flatten(1)
    scale = held.max() - held.min()
    pixels = ((held - held.min()) / scale * 255).round().to(torch.uint8).numpy()
    targets = torch.cat([task.train.targets, task.validation.targets]).numpy()
    found = sorted(row.tobytes() + bytes([y]) for row, y in zip(pixels, targets, strict=True))
    assert found == sorted(row.tobytes() + bytes([y]) for row, y in zip(train, labels, strict=True))
    np.testing.assert_array_equal(task.test.targets.numpy(), test_labels)
    assert task.test.inputs.shape == (len(test), 1, 28, 28)


def test_the_data_seed_moves_the_validation_split_and_leaves_the_test_images() -> None:
    one, two = tasks.load("mnist_small", seed_data=0), tasks.load("mnist_small", seed_data=1)
    assert one.fingerprint != two.fingerprint
    assert torch.equal(one.test.targets, two.test.targets)
    assert torch.bincount(two.validation.targets).tolist() == [200] * 10
    assert not torch.equal(one.validation.inputs, two.validation.inputs)


def colour_images(count: int, seed: int) -> tuple[idx.Pixels, idx.Pixels]:
    """Images whose channels differ in mean and spread; classes are unequal in number."""
    random = np.random.default_rng(seed)
    highs = np.array([40, 120, 256])[None, :, None, None]
    images = random.integers(0, np.broadcast_to(highs, (count, 3, 4, 4))).astype(np.uint8)
    return images, np.sort(random.integers(0, 3, count)).astype(np.uint8)


def test_every_channel_is_standardised_by_its_own_train_scale() -> None:
    train, test = colour_images(60, 0), colour_images(20, 1)
    task = _image_task("toy", (*train, *test), 4, seed_data=0, classes=("a", "b", "c"))
    inputs = task.train.inputs.double()
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-6
    assert (inputs.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    kept, held_out = _balanced_split(train[1], 4, 0)
    for split, pixels in (
        (task.train, train[0][kept]),
        (task.validation, train[0][held_out]),
        (task.test, test[0]),
    ):
        scaled = pixels / 255.0
        base = train[0][kept] / 255.0
        mean, std = base.mean((0, 2, 3), keepdims=True), base.std((0, 2, 3), keepdims=True)
        np.testing.assert_allclose(split.inputs.numpy(), (scaled - mean) / std, rtol=0, atol=1e-6)


def test_the_split_is_balanced_disjoint_and_keeps_the_order() -> None:
    labels = colour_images(60, 0)[1]
    kept, held_out = _balanced_split(labels, 4, seed=3)
    assert np.bincount(labels[held_out]).tolist() == [4, 4, 4]
    assert sorted([*kept, *held_out]) == list(range(60))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert held_out.tolist() != _balanced_split(labels, 4, seed=4)[1].tolist()


def test_images_without_contrast_have_no_scale() -> None:
    blank, labels = np.zeros((6, 1, 2, 2), np.uint8), np.array([0, 1] * 3, np.uint8)
    with pytest.raises(DataError, match="channel 0"):
        _image_task("blank", (blank, labels, blank, labels), 1, 0, ("a", "b"))


# Full sets, on stand-ins and on the real files ----------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_cache: None) -> None:
    """A set of MNIST's form with 1,100 images of 2×2 pixels a class, under MNIST's name."""
    random = np.random.default_rng(0)
    known = []
    (tmp_path / "mnist").mkdir()
    for images, labels, count in ((*embedded.IDX_NAMES[:2], 11000), (*embedded.IDX_NAMES[2:], 100)):
        arrays = (
            random.integers(0, 256, (count, 2, 2), dtype=np.uint8),
            (np.arange(count) % 10).astype(np.uint8),
        )
        for name, array in zip((images, labels), arrays, strict=True):
            content = idx.pack(array)
            (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(content, 1))
            digest = hashlib.sha256(content).hexdigest()
            known.append(catalogue.DataFile(name, f"sha256:{digest}", gz=True))
    dataset = replace(catalogue.SETS["mnist"], variants=(tuple(known),))
    monkeypatch.setitem(catalogue.SETS, "mnist", dataset)
    monkeypatch.setenv("ALIGNLAB_DATA", str(tmp_path))


def test_a_full_idx_set_becomes_a_task(stand_in: None) -> None:
    task = tasks.load("mnist")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [1000, 10000, 100]
    assert torch.bincount(task.validation.targets).tolist() == [1000] * 10
    assert task.n_in == (1, 2, 2)


def test_a_set_that_is_nowhere_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_cache: None
) -> None:
    monkeypatch.setenv("ALIGNLAB_DATA", str(tmp_path))
    monkeypatch.setenv("ALIGNLAB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="cifar10 not found"):
        tasks.load("cifar10")


def test_a_full_cifar10_becomes_a_task(monkeypatch: pytest.MonkeyPatch, no_cache: None) -> None:
    random = np.random.default_rng(0)
    per_batch = 1020  # 510 a class in all
    records = random.integers(0, 256, (per_batch, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(per_batch) % 10
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    monkeypatch.setattr(datafiles, "read", lambda name: dict.fromkeys(names, records.tobytes()))
    task = tasks.load("cifar10")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [100, 5000, 1020]
    assert (task.n_in, task.n_out, task.classes[0]) == ((3, 32, 32), 10, "airplane")
    assert torch.bincount(task.validation.targets).tolist() == [500] * 10


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)]
)
def test_the_real_sets_have_the_published_sizes_and_scales(
    name: str, mean: float, std: float, no_cache: None
) -> None:
    if not os.environ.get("ALIGNLAB_DATA") or datafiles.locate(name) is None:
        pytest.skip(f"ALIGNLAB_DATA holds no full {name}")
    task = tasks.load(name)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [50000, 10000, 10000]
    assert torch.bincount(task.validation.targets).tolist() == [1000] * 10
    low, high = task.train.inputs.min().item(), task.train.inputs.max().item()
    assert 1 / (high - low) == pytest.approx(
        std, abs=1e-3
    )  # pixel 0 lies at −mean/std, pixel 1 at (1 − mean)/std
    assert -low / (high - low) == pytest.approx(mean, abs=1e-3)


# Names, hands and errors --------------------------------------------------------------------------------------------


def test_an_unknown_task_is_an_error_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"'mnst': did you mean 'mnist' or 'mnist_small'\?.*cifar10"):
        tasks.load("mnst")
    with pytest.raises(ValueError, match=r"unknown task '': The tasks are xor"):
        tasks.load("")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_data_seed_out_of_range_is_an_error(seed: int) -> None:
    with pytest.raises(ValueError, match="seed_data"):
        tasks.load("linear_toy", seed_data=seed)


def by_hand(**changes: object) -> Task:
    split = Split(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
    fields = {
        "name": "mine",
        "train": split,
        "validation": split,
        "test": split,
        "loss": torch.nn.functional.cross_entropy,
        "n_in": (5,),
        "n_out": 2,
        "has_accuracy": True,
    }
    return Task(**(fields | changes))  # type: ignore[arg-type]


def test_a_task_is_built_by_hand() -> None:
    task = by_hand()
    assert len(task.fingerprint) == 64
    assert by_hand().fingerprint == task.fingerprint


def test_the_fingerprint_sees_every_value_shape_and_place() -> None:
    changed = torch.zeros(3, 5)
    changed[2, 4] = 1e-9
    labels = torch.zeros(3, dtype=torch.int64)
    variants = [
        by_hand(),
        by_hand(train=Split(changed, labels)),
        by_hand(test=Split(changed, labels)),
        by_hand(test=Split(torch.zeros(3, 5), torch.tensor([0, 0, 1]))),
        by_hand(test=Split(torch.zeros(2, 5), labels[:2])),
        by_hand(test=Split(torch.zeros(3, 5, dtype=torch.float64), labels)),
    ]
    assert len({task.fingerprint for task in variants}) == len(variants)


def test_one_sample_that_is_cut_out_of_a_table_has_a_fingerprint() -> None:
    table = torch.zeros(3, 6, dtype=torch.int64)
    cut, whole = (
        by_hand(test=Split(torch.zeros(1, 5), y)) for y in (table[:1, 5], torch.zeros_like(table[0, :1]))
    )
    assert cut.fingerprint == whole.fingerprint


def test_a_task_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task mine: train inputs have shape \(5,\), not n_in = \(1, 5\)"):
        by_hand(n_in=(1, 5))
    nothing = Split(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    for name in ("train", "validation", "test"):
        with pytest.raises(ValueError, match=f"task mine: the {name} split is empty"):
            by_hand(**{name: nothing})
    with pytest.raises(ValueError, match="3 classes for n_out = 2"):
        by_hand(classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="not 2 for 3"):
        Split(torch.zeros(3, 5), torch.zeros(2))
