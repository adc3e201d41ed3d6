"""Data files: what is found where, what is refused, and what a broken transfer leaves behind."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from alignlab.training import build_subset, catalogue, datafiles, embedded, fetching, idx
from alignlab.training.errors import DataError

NAMES = embedded.IDX_NAMES


# A small data set of MNIST's form, known to the catalogue under MNIST's name ----------------------------------------


def idx_files(seed: int, per_class: int = 7) -> dict[str, bytes]:
    random = np.random.default_rng(seed)
    files = {}
    for images, labels, count in ((NAMES[0], NAMES[1], 10 * per_class), (NAMES[2], NAMES[3], 30)):
        files[images] = idx.pack(random.integers(0, 256, (count, 4, 4), dtype=np.uint8))
        files[labels] = idx.pack(random.permutation(np.arange(count) % 10).astype(np.uint8))
    return files


def entry(name: str, files: dict[str, bytes], **changes: object) -> catalogue.DataSet:
    known = tuple(
        catalogue.DataFile(n, f"sha256:{hashlib.sha256(c).hexdigest()}", gz=True) for n, c in files.items()
    )
    defaults = {"folders": (name, f"{name}-raw"), "mirrors": (), "download_size": 1}
    return catalogue.DataSet(name=name, variants=(known,), **(defaults | changes))  # type: ignore[arg-type]


def lay(files: dict[str, bytes], folder: Path, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


@dataclass
class World:
    files: dict[str, bytes]
    other: dict[str, bytes]
    root: Path
    cache: Path


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two known sets that name their files alike, an empty user folder and an empty cache."""
    files, other = idx_files(1), idx_files(2)
    monkeypatch.setitem(catalogue.SETS, "mnist", entry("mnist", files))
    monkeypatch.setitem(catalogue.SETS, "fashion_mnist", entry("fashion_mnist", other))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "cache_folder", lambda name: tmp_path / "cache" / name)
    (tmp_path / "user").mkdir()
    monkeypatch.setenv("ALIGNLAB_DATA", str(tmp_path / "user"))
    monkeypatch.setenv("ALIGNLAB_OFFLINE", "")
    return World(files, other, tmp_path / "user", tmp_path / "cache")


# Finding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["mnist", "mnist-raw", "."])
def test_a_set_is_found_under_each_of_its_folders_packed_or_not(
    world: World, place: str, packed: bool
) -> None:
    folder = lay(world.files, world.root / place, packed)
    assert datafiles.locate("mnist") == folder
    assert datafiles.read("mnist") == world.files


def test_the_user_folder_comes_before_the_package_and_the_package_before_the_cache(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = tmp_path / "packaged"
    monkeypatch.setitem(catalogue.SETS, "mnist", entry("mnist", world.files, packaged=packaged, package="p"))
    for folder in (world.cache / "mnist", packaged, world.root / "mnist"):
        assert datafiles.locate("mnist") != folder
        lay(world.files, folder)
        assert datafiles.locate("mnist") == folder


def test_files_of_another_set_in_the_user_folder_itself_are_passed_over(world: World) -> None:
    lay(world.other, world.root)
    assert datafiles.locate("mnist") is None
    assert datafiles.locate("fashion_mnist") == world.root


def test_the_debian_package_holds_fashion_mnist_only() -> None:
    packaged = {name: dataset.packaged for name, dataset in catalogue.SETS.items()}
    assert packaged["fashion_mnist"] == Path("/usr/share/datasets/fashion-mnist")
    assert packaged["mnist"] is None
    assert packaged["cifar10"] is None


def test_a_missing_set_says_which_file_where_it_looked_and_how_to_get_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNLAB_OFFLINE", "1")
    partial = dict(list(world.files.items())[:3])
    lay(partial, world.root / "mnist")
    with pytest.raises(DataError) as caught:
        datafiles.read("mnist")
    message = str(caught.value)
    assert f"{world.root / 'mnist'}: lacks t10k-labels-idx1-ubyte.gz" in message
    assert str(world.cache / "mnist") in message
    assert "ALIGNLAB_DATA" in message
    assert "alignlab data fetch mnist" in message


def test_a_set_with_a_debian_package_names_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLAB_OFFLINE", "1")
    gone = entry("fashion_mnist", world.other, package="dataset-fashion-mnist", packaged=world.root / "none")
    monkeypatch.setitem(catalogue.SETS, "fashion_mnist", gone)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        datafiles.read("fashion_mnist")


def test_a_user_folder_that_does_not_exist_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLAB_DATA", str(world.root / "nowhere"))
    with pytest.raises(DataError, match=r"ALIGNLAB_DATA=.*nowhere is no folder"):
        datafiles.locate("mnist")


def test_downloads_are_kept_in_the_cache_folder_of_the_machine() -> None:
    import pooch

    assert fetching.cache_folder("mnist") == Path(pooch.os_cache("alignlab")) / "mnist"


def test_an_unknown_set_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'svhn'.*mnist, fashion_mnist, cifar10"):
        datafiles.locate("svhn")


# Checking -----------------------------------------------------------------------------------------------------------


def flip_a_bit(content: bytes) -> bytes:
    raw = bytearray(gzip.decompress(content))
    raw[-1] ^= 1
    return gzip.compress(bytes(raw))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "one bit": flip_a_bit,
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a web page": lambda content: b"<html>sign in</html>",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_file_is_an_error_that_names_it_and_never_falls_through_to_the_next_place(
    world: World, damage: str
) -> None:
    lay(world.files, world.cache / "mnist")
    broken = lay(world.files, world.root / "mnist") / f"{NAMES[0]}.gz"
    broken.write_bytes(DAMAGE[damage](broken.read_bytes()))
    with pytest.raises(DataError) as caught:
        datafiles.read("mnist")
    assert f"{broken} is corrupt" in str(caught.value)
    assert "alignlab data fetch mnist" in str(caught.value)


def test_describe_tells_complete_corrupt_and_absent_sets_apart(world: World) -> None:
    lay(world.files, world.root / "mnist")
    broken = lay(world.other, world.root / "fashion_mnist") / f"{NAMES[3]}.gz"
    broken.write_bytes(b"\x1f\x8b")
    rows = {row.name: row for row in datafiles.describe()}
    assert list(rows) == ["mnist_small", *datafiles.NAMES]
    assert rows["mnist_small"].status == "embedded"
    size = sum(path.stat().st_size for path in (world.root / "mnist").iterdir())
    assert rows["mnist"] == ("mnist", world.root / "mnist", "complete", size)
    assert rows["fashion_mnist"].status == f"corrupt: {NAMES[3]}"
    assert rows["cifar10"] == ("cifar10", None, "not here", 170_498_071)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files_agree_with_the_catalogue(name: str) -> None:
    folder = real(name)
    contents = datafiles.read_folder(name, folder)
    shapes = [idx.parse(contents[file], file).shape for file in NAMES]
    assert shapes == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]


def real(name: str) -> Path:
    """The folder of the full set `name` in ALIGNLAB_DATA; skips where there is none."""
    if not os.environ.get("ALIGNLAB_DATA"):
        pytest.skip(f"ALIGNLAB_DATA is not set, so there is no full {name} to check against")
    folder = datafiles.locate(name)
    if folder is None:
        pytest.skip(f"ALIGNLAB_DATA={os.environ['ALIGNLAB_DATA']} holds no full {name}")
    return folder


# Fetching, from a server on this machine ----------------------------------------------------------------------------


@dataclass
class Mirror:
    """Answers by path.

    Bytes are served, ("truncated", bytes) breaks off half way, ("stalled", bytes) stops there; else 404.
    """

    answers: dict[str, bytes | tuple[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""


def handler_of(mirror: Mirror) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.asked.append(self.path)
            answer = mirror.answers.get(self.path)
            if answer is None:
                self.send_error(404)
                return
            manner, content = answer if isinstance(answer, tuple) else ("whole", answer)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if manner == "whole" else content[: len(content) // 2])
            if manner == "stalled":
                self.wfile.flush()
                mirror.half_sent.set()
                mirror.release.wait(60)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(mirror))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield mirror
    mirror.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def serve(mirror: Mirror, base: str, files: dict[str, bytes]) -> str:
    mirror.answers |= {f"/{base}/{name}.gz": gzip.compress(content) for name, content in files.items()}
    return f"{mirror.url}/{base}/"


def test_a_good_mirror_fills_the_cache(world: World, mirror: Mirror) -> None:
    folder = datafiles.fetch("mnist", progress=False, mirrors=[serve(mirror, "a", world.files)])
    assert folder == world.cache / "mnist"
    assert datafiles.locate("mnist") == folder
    assert datafiles.read("mnist") == world.files
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in NAMES)


def test_fetching_again_asks_the_mirror_for_nothing(world: World, mirror: Mirror, tmp_path: Path) -> None:
    mirrors = [serve(mirror, "a", world.files)]
    datafiles.fetch("mnist", progress=False, mirrors=mirrors, folder=tmp_path / "here")
    assert len(mirror.asked) == 4
    assert datafiles.fetch("mnist", False, mirrors, tmp_path / "here") == tmp_path / "here"
    assert len(mirror.asked) == 4


def test_fetching_again_replaces_only_the_corrupt_file(world: World, mirror: Mirror) -> None:
    mirrors = [serve(mirror, "a", world.files)]
    folder = datafiles.fetch("mnist", progress=False, mirrors=mirrors)
    (folder / f"{NAMES[1]}.gz").write_bytes(b"damaged")
    mirror.asked.clear()
    datafiles.fetch("mnist", progress=False, mirrors=mirrors)
    assert mirror.asked == [f"/a/{NAMES[1]}.gz"]
    assert datafiles.read("mnist") == world.files


def test_fetching_into_the_folder_of_another_set_is_refused_and_replaces_nothing(
    world: World, mirror: Mirror, tmp_path: Path
) -> None:
    folder = lay(world.other, tmp_path / "here")
    with pytest.raises(DataError, match=r"mnist is not fetched: .*here holds files of another set"):
        datafiles.fetch("mnist", False, [serve(mirror, "a", world.files)], folder)
    assert mirror.asked == []
    assert datafiles.read_folder("fashion_mnist", folder) == world.other


@pytest.mark.parametrize("fault", ["absent", "corrupt", "truncated", "down"])
def test_the_second_mirror_serves_what_the_first_cannot(world: World, mirror: Mirror, fault: str) -> None:
    first, second = break_mirror(world, mirror, fault), serve(mirror, "good", world.files)
    datafiles.fetch("mnist", progress=False, mirrors=[first, second])
    assert datafiles.read("mnist") == world.files


@pytest.mark.parametrize("fault", ["absent", "corrupt", "truncated", "down"])
def test_a_failed_download_names_the_file_and_the_mirror_and_leaves_nothing_behind(
    world: World, mirror: Mirror, fault: str
) -> None:
    url = break_mirror(world, mirror, fault)
    with pytest.raises(DataError) as caught:
        datafiles.fetch("mnist", progress=False, mirrors=[url])
    message = str(caught.value)
    assert f"{NAMES[0]}.gz could not be fetched into {world.cache / 'mnist'}" in message
    assert url in message
    assert "ALIGNLAB_DATA" in message
    reason = {
        "absent": "404",
        "corrupt": "is corrupt",
        "truncated": "incomplete|Incomplete",
        "down": "refused",
    }
    assert any(word in message for word in reason[fault].split("|"))
    assert ".. " not in message
    assert list((world.cache / "mnist").iterdir()) == []
    assert datafiles.locate("mnist") is None


def break_mirror(world: World, mirror: Mirror, fault: str) -> str:
    """The address of a mirror with this fault."""
    if fault == "down":
        return "http://127.0.0.1:1/"  # nothing listens on port 1
    url = serve(mirror, "bad", world.files)
    packed = {path: content for path, content in mirror.answers.items() if path.startswith("/bad/")}
    for path, content in packed.items():
        assert isinstance(content, bytes)
        if fault == "absent":
            del mirror.answers[path]
        else:
            mirror.answers[path] = flip_a_bit(content) if fault == "corrupt" else ("truncated", content)
    return url


_FETCH_SCRIPT = """
import sys
from pathlib import Path
from alignlab.training import catalogue, fetching
from alignlab.training.catalogue import DataFile, DataSet
name, checksum, url, folder = sys.argv[1:]
known = DataSet("mnist", ((DataFile(name, checksum, gz=True),),), ("mnist",), (), 1)
fetching.download(known, Path(folder), [url], progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_leaves_no_file_under_the_real_name(
    world: World, mirror: Mirror, how: signal.Signals
) -> None:
    url = serve(mirror, "slow", world.files)
    path = f"/slow/{NAMES[0]}.gz"
    whole = mirror.answers[path]
    assert isinstance(whole, bytes)
    mirror.answers[path] = ("stalled", whole)
    checksum = catalogue.SETS["mnist"].variants[0][0].checksum
    command = [sys.executable, "-c", _FETCH_SCRIPT, NAMES[0], checksum, url, str(world.cache / "mnist")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert mirror.half_sent.wait(60)
    process.send_signal(how)
    assert process.wait(60) != 0
    assert not (world.cache / "mnist" / f"{NAMES[0]}.gz").exists()
    assert datafiles.locate("mnist") is None
    mirror.answers[path] = whole
    datafiles.fetch("mnist", progress=False, mirrors=[url])
    assert datafiles.read("mnist") == world.files


def test_what_is_nowhere_is_downloaded_with_a_word_about_it(
    world: World, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = serve(mirror, "a", world.files)
    monkeypatch.setitem(catalogue.SETS, "mnist", entry("mnist", world.files, mirrors=(url,)))
    assert datafiles.read("mnist") == world.files
    said = capsys.readouterr()
    assert "mnist not found" in said.err
    assert f"mnist/{NAMES[0]}.gz" in said.err  # the progress line
    assert said.out == ""


def test_a_failed_implicit_download_says_where_it_looked_too(world: World) -> None:
    with pytest.raises(DataError) as caught:
        datafiles.obtain("mnist", progress=False)
    assert str(world.root / "mnist") in str(caught.value)
    assert "the download failed" in str(caught.value)


def test_offline_forbids_every_download(
    world: World, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNLAB_OFFLINE", "1")
    with pytest.raises(DataError, match="ALIGNLAB_OFFLINE"):
        datafiles.fetch("mnist", mirrors=[serve(mirror, "a", world.files)])
    with pytest.raises(DataError, match="ALIGNLAB_OFFLINE"):
        datafiles.read("mnist")
    assert mirror.asked == []


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(world: World, mirror: Mirror) -> None:
    blocked = world.root / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match=f"cannot make the folder {blocked}"):
        datafiles.fetch("mnist", mirrors=[serve(mirror, "a", world.files)], folder=blocked / "mnist")


# The embedded subset ------------------------------------------------------------------------------------------------


def test_the_embedded_subset_is_small_balanced_and_whole() -> None:
    train, train_labels, test, test_labels = embedded.read_subset()
    assert (train.shape, test.shape) == ((10000, 28, 28), (2000, 28, 28))
    assert np.bincount(train_labels).tolist() == [1000] * 10
    assert np.bincount(test_labels).tolist() == [200] * 10
    assert sum(path.stat().st_size for path in embedded.embedded("mnist_small").iterdir()) <= 3_000_000


def test_the_readme_of_the_data_states_every_checksum() -> None:
    readme = embedded.embedded("README.md").read_text(encoding="utf-8")
    sums = (embedded.embedded("mnist_small") / embedded.CHECKSUMS).read_text().splitlines()
    assert len(sums) == 4
    assert [line for line in sums if line.split()[0] not in readme or line.split()[1] not in readme] == []


def test_a_damaged_embedded_file_is_refused(tmp_path: Path) -> None:
    build_subset.build(idx_files(3), tmp_path, train_per_class=5, test_per_class=2)
    assert [len(part) for part in embedded.read_subset(tmp_path)] == [50, 50, 20, 20]
    path = tmp_path / f"{NAMES[1]}.xz"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=f"{path} is corrupt"):
        embedded.read_subset(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"cannot read {path}"):
        embedded.read_subset(tmp_path)
    (tmp_path / embedded.CHECKSUMS).write_text("")
    with pytest.raises(DataError, match=f"lists no {NAMES[0]}"):
        embedded.read_subset(tmp_path)


def test_embedded_data_that_is_not_there_says_where_it_looked() -> None:
    with pytest.raises(DataError, match=r"'nonesuch' not found: looked for .*_data.*Reinstall"):
        embedded.embedded("nonesuch")


def test_the_packaged_copy_comes_before_the_one_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "alignlab" / "training" / "embedded.py"))
    for place in (tmp_path / "data", tmp_path / "alignlab" / "_data"):
        place.mkdir(parents=True)
        (place / "published.csv").touch()
        assert embedded.embedded("published.csv") == place / "published.csv"


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = build_subset.build(idx_files(3), tmp_path / "one", train_per_class=5, test_per_class=2)
    second = build_subset.build(idx_files(3), tmp_path / "two", train_per_class=5, test_per_class=2)
    assert len(first) == 5
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]


def test_the_subset_holds_exactly_the_selected_images(tmp_path: Path) -> None:
    files = idx_files(3)
    build_subset.build(files, tmp_path, train_per_class=5, test_per_class=2)
    train, train_labels, _, _ = embedded.read_subset(tmp_path)
    images, labels = idx.parse(files[NAMES[0]], "images"), idx.parse(files[NAMES[1]], "labels")
    members = [np.flatnonzero(labels == c) for c in range(10)]
    chosen = sorted(int(m[(i * len(m)) // 5]) for m in members for i in range(5))
    np.testing.assert_array_equal(train, images[chosen])
    np.testing.assert_array_equal(train_labels, labels[chosen])


def test_a_class_that_is_too_small_is_an_error() -> None:
    with pytest.raises(DataError, match="class 1 has 1 images, fewer than the 2"):
        build_subset.evenly_spread(np.array([0, 0, 1], dtype=np.uint8), 2)


def test_the_embedded_subset_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    assert build_subset.main([str(real("mnist")), str(tmp_path)]) == 0
    committed = sorted(embedded.embedded("mnist_small").iterdir())
    assert [path.name for path in committed] == sorted(path.name for path in tmp_path.iterdir())
    for path in committed:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_build_command_refuses_what_is_not_mnist(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lay(world.other, tmp_path / "source")
    assert build_subset.main([str(source), str(tmp_path / "out")]) == 2
    assert "is corrupt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
