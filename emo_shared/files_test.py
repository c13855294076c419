"""Files after a failure: a writer that dies, a power cut, a cut, a flipped bit."""

import hashlib
import os
import pickle
import random
import stat
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from emo_shared import files, header
from emo_shared.arrays import load_arrays, save_arrays
from emo_shared.errors import CheckpointError
from emo_shared.files import LEFT_OVER_AFTER, write_atomically

ARRAYS: dict[str, Any] = {
    "version": np.asarray(1, np.int32),
    "exp_avg/weight": np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4),
    "emotion/should_stop": np.asarray(True),
    "empty": np.zeros((0, 2)),
}


def same(ours: Any, theirs: Any) -> bool:
    return ours.keys() == theirs.keys() and all(
        (array.dtype, array.shape, array.tobytes())
        == (theirs[name].dtype, theirs[name].shape, theirs[name].tobytes())
        for name, array in ours.items()
    )


# Atomic.


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_then_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fsync(number: int) -> None:
        calls.append(("fsync", Path(f"/dev/fd/{number}").resolve()))

    def replace(source: Path, target: Path, own: Any = os.replace) -> None:
        assert source.read_bytes() == b"new"
        assert target.read_bytes() == b"old"
        calls.append(("replace", source))
        own(source, target)

    path = tmp_path / "run"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(path, lambda file: file.write(b"new"))
    beside = calls[1][1]
    assert calls == [("fsync", beside), ("replace", beside), ("fsync", tmp_path)]
    assert beside.parent == tmp_path
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["run"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run"]


def test_what_a_killed_writer_left_is_taken_away_when_it_is_old(tmp_path: Path) -> None:
    old, young, other = (tmp_path / f".{name}.tmp" for name in ("r[1]*.aa", "r[1]*.bb", "r1x.aa"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    before = time.time() - LEFT_OVER_AFTER - 60
    for path in (old, other):
        os.utime(path, (before, before))
    write_atomically(tmp_path / "r[1]*", lambda file: file.write(b"new"))
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


def test_a_link_stays_and_a_file_is_as_open_as_any(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target, plain = tmp_path / "run", tmp_path / "there" / "run", tmp_path / "plain"
    plain.write_bytes(b"")
    link.symlink_to(target)
    save_arrays(link, ARRAYS)
    assert link.is_symlink()
    assert same(load_arrays(target), ARRAYS)
    assert target.stat().st_mode == plain.stat().st_mode
    target.chmod(0o600)
    save_arrays(link, ARRAYS)
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_dtype_without_a_place_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot hold the dtype complex128 of 'far'"):
        save_arrays(tmp_path / "run", {"far": np.ones(2, np.complex128)})
    assert not os.listdir(tmp_path)


# Damage.


def test_arrays_come_back_to_the_last_bit(tmp_path: Path) -> None:
    turned = {name: array.T for name, array in ARRAYS.items()} | {"big": np.arange(3, dtype=">i8")}
    for arrays in (ARRAYS, turned, {}):
        save_arrays(tmp_path / "run", arrays)
        loaded = load_arrays(tmp_path / "run")
        assert loaded.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)
            assert loaded[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


def test_arrays_that_were_cut_off_anywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    save_arrays(path, ARRAYS)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cut off or changed"):
            load_arrays(path)


def test_arrays_with_a_flipped_bit_are_refused(tmp_path: Path) -> None:
    path, chance, refused = tmp_path / "run", random.Random(0), 0
    save_arrays(path, ARRAYS)
    whole = path.read_bytes()
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load_arrays(path)
        except CheckpointError:
            refused += 1
        else:
            assert same(loaded, ARRAYS)
    assert refused > 0.95 * len(whole)


def test_arrays_written_before_there_was_a_digest_are_read(tmp_path: Path) -> None:
    for metadata in (None, {"format": "np"}):
        save_file(ARRAYS, tmp_path / "run", metadata)
        assert same(load_arrays(tmp_path / "run"), ARRAYS)


def test_other_readers_find_plain_arrays(tmp_path: Path) -> None:
    save_arrays(tmp_path / "run", ARRAYS)
    assert same(load_file(tmp_path / "run"), ARRAYS)


class Bomb:
    """Leaves a trace when it comes out of a pickle."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "run", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(CheckpointError, match="cut off or changed"):
        load_arrays(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # It was a bomb.


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "run")


# Refused before an older file is replaced.

GOOD = {"good": np.ones(3)}


def refused(path: Path, arrays: Any, error: type[Exception], message: str) -> None:
    """Asserts that arrays are refused over a good file, which stays alone in its folder."""
    save_arrays(path, GOOD)
    with pytest.raises(error, match=message):
        save_arrays(path, arrays)
    assert same(load_arrays(path), GOOD)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (
            {"a\ud800": np.ones(1)},
            ValueError,
            r"name of an array contains a lone surrogate, '\\ud800'.*Rename it",
        ),
        ({1: np.ones(1)}, TypeError, "must be a string, and is 1: use '1'"),
        ({None: np.ones(1)}, TypeError, "must be a string, and is None"),
        ({b"a": np.ones(1)}, TypeError, "must be a string, and is b'a'"),
        ([np.ones(1)], TypeError, "in a dictionary"),
        ({"__metadata__": np.ones(1)}, ValueError, "the format's own"),
        ({"a": np.array([None])}, ValueError, "the dtype object of 'a'"),
        ({"a": np.array(["x"])}, ValueError, "the dtype str[0-9]* of 'a'"),
        ({"a": np.zeros(2, [("x", "i4")])}, ValueError, "the dtype void[0-9]* of 'a'"),
        ({"a": np.ma.masked_array([1.0], [True])}, TypeError, "'a' is a masked array"),
    ],
)
def test_arrays_that_no_reader_could_read_replace_nothing(
    arrays: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    refused(tmp_path / "run", arrays, error, message)


def test_a_header_above_the_limit_of_the_format_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    many = {f"{index:0100}": np.ones(0) for index in range(100)}
    save_arrays(path, many)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr(header, "LONGEST", size)
    save_arrays(path, many)
    monkeypatch.setattr(header, "LONGEST", size - 1)
    refused(path, many, ValueError, f"would have {size} bytes.*as arrays. Nothing was written")


def test_the_limit_is_that_of_other_readers(tmp_path: Path) -> None:
    for more, error in ((0, "invalid JSON"), (8, "header too large")):
        length = header.LONGEST + more
        (tmp_path / "run").write_bytes(length.to_bytes(8, "little") + b"x" * length)
        with pytest.raises(SafetensorError, match=error):
            load_file(tmp_path / "run")


def test_a_full_disk_replaces_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="NO LIMIT OF A FILE'S SIZE CAN BE SET HERE")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        refused(tmp_path / "run", {"big": np.ones(10_000)}, OSError, "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_read_back_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, damaged = tmp_path / "run", list[bool]()

    def fsync(number: int, own: Any = os.fsync) -> None:
        own(number)
        if damaged:
            os.ftruncate(number, 100)  # A disk that lost the end of it.

    monkeypatch.setattr(os, "fsync", fsync)
    save_arrays(path, GOOD)
    damaged.append(True)
    with pytest.raises(ValueError, match="header has"):
        save_arrays(path, {"new": np.zeros(100)})
    damaged.clear()
    assert same(load_arrays(path), GOOD)
    assert os.listdir(tmp_path) == ["run"]


def test_an_array_that_is_changed_while_it_is_written_leaves_a_file_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, path = np.zeros(50), tmp_path / "run"
    monkeypatch.setattr(files, "_CHUNK", 80)
    whole, calls = hashlib.sha256, []

    class Digest:
        def __init__(self) -> None:
            self.own = whole()

        def update(self, data: Any) -> None:
            self.own.update(data)
            calls.append(1)
            array[:] = len(calls)

        def hexdigest(self) -> str:
            return self.own.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Digest)
    save_arrays(path, {"moving": array})
    monkeypatch.setattr(hashlib, "sha256", whole)
    assert len(set(load_arrays(path)["moving"])) > 1


# Where the file goes.


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    folder, pipe, loop = tmp_path / "folder", tmp_path / "pipe", tmp_path / "loop"
    folder.mkdir()
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    with pytest.raises(IsADirectoryError, match="the path is a folder, not a file"):
        save_arrays(folder, GOOD)
    for path in (pipe, loop, Path(os.devnull)):
        with pytest.raises(OSError, match="another special file"):
            save_arrays(path, GOOD)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert not Path(os.devnull).is_file()
    assert sorted(os.listdir(tmp_path)) == ["folder", "loop", "pipe"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="ROOT MAY WRITE EVERYWHERE")
def test_a_folder_that_may_not_be_written_to_is_said_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        save_arrays(tmp_path / "run", GOOD)


@pytest.mark.parametrize("letters", [121, 240, 255])
def test_a_long_name_is_written_and_its_left_overs_are_removed(letters: int, tmp_path: Path) -> None:
    path = tmp_path / ("n" * letters)
    written: list[Path] = []

    def write(file: BinaryIO) -> None:
        (beside,) = tmp_path.glob(".*.tmp")
        written.append(beside)
        file.write(b"new")

    write_atomically(path, write)
    before = time.time() - LEFT_OVER_AFTER - 60
    written[0].write_bytes(b"half")
    os.utime(written[0], (before, before))
    save_arrays(path, GOOD)
    assert same(load_arrays(path), GOOD)
    assert os.listdir(tmp_path) == [path.name]
