"""What a file survives: a writer that dies, a power cut, a cut, a flipped bit."""

import os
import pickle
import random
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import emo_torch
from emo_torch._files import LEFT_OVER_AFTER, write_atomically

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
    emo_torch.save_arrays(link, ARRAYS)
    assert link.is_symlink()
    assert same(emo_torch.load_arrays(target), ARRAYS)
    assert target.stat().st_mode == plain.stat().st_mode
    target.chmod(0o600)
    emo_torch.save_arrays(link, ARRAYS)
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_dtype_without_a_place_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'far' has the dtype complex128.*no place"):
        emo_torch.save_arrays(tmp_path / "run", {"far": np.ones(2, np.complex128)})
    assert not os.listdir(tmp_path)


# Damage.


def test_arrays_come_back_to_the_last_bit(tmp_path: Path) -> None:
    turned = {name: array.T for name, array in ARRAYS.items()} | {"big": np.arange(3, dtype=">i8")}
    for arrays in (ARRAYS, turned, {}):
        emo_torch.save_arrays(tmp_path / "run", arrays)
        loaded = emo_torch.load_arrays(tmp_path / "run")
        assert loaded.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)
            assert loaded[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")


def test_arrays_that_were_cut_off_anywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    emo_torch.save_arrays(path, ARRAYS)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(emo_torch.CheckpointError, match="cut off or altered"):
            emo_torch.load_arrays(path)


def test_arrays_with_a_flipped_bit_are_refused(tmp_path: Path) -> None:
    path, chance, refused = tmp_path / "run", random.Random(0), 0
    emo_torch.save_arrays(path, ARRAYS)
    whole = path.read_bytes()
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = emo_torch.load_arrays(path)
        except emo_torch.CheckpointError:
            refused += 1
        else:
            assert same(loaded, ARRAYS)
    assert refused > 0.95 * len(whole)


def test_arrays_written_before_there_was_a_digest_are_read(tmp_path: Path) -> None:
    for metadata in (None, {"format": "np"}):
        save_file(ARRAYS, tmp_path / "run", metadata)
        assert same(emo_torch.load_arrays(tmp_path / "run"), ARRAYS)


def test_other_readers_find_plain_arrays(tmp_path: Path) -> None:
    emo_torch.save_arrays(tmp_path / "run", ARRAYS)
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
    with pytest.raises(emo_torch.CheckpointError, match="cut off or altered"):
        emo_torch.load_arrays(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # It was a bomb.


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        emo_torch.load_arrays(tmp_path / "run")
