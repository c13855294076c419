"""Files that are written in full or not at all, with a digest inside.

A file is written under a temporary name beside its target, and then renamed. The old file is replaced only
after the new file was read back.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from emo_shared.errors import CheckpointError
from emo_shared.header import LENGTH_BYTES, LONGEST, Part, Place, decode_header, encode_header, width

DIGEST = "sha256"
"""The name of the digest in a file's metadata."""
LEFT_OVER_AFTER = 3600.0
"""The age, in seconds, at which the temporary file of a killed writer is removed."""

# File systems allow 143 bytes in a name at least; `.NAME.16 digits.tmp` must fit.
_LONGEST_NAME = 120
_CHUNK = 2**24
_NO_DIGEST = "0" * 64
_DAMAGED = (
    "the file was cut off or changed after it was written. Nothing was loaded. "
    "Use an earlier file or a copy."
)


def write_file(path: str | Path, metadata: Mapping[str, str], parts: Iterable[Part]) -> None:
    """Writes arrays, and text beside them, to a file in the safetensors format, with a digest of all.

    Args:
        path: the path of the file.
        metadata: the text beside the arrays.
        parts: the arrays.

    Raises:
        TypeError: for a name or a text that is no string.
        ValueError: for everything that the format does not support (see `encode_header`).
        OSError: for a path that is a folder or a device, and if the file cannot be written.

    All of these errors are raised before an older file is replaced.
    """
    # Wide dtypes first, so that each array begins at an address that is aligned for its dtype.
    ordered = sorted(parts, key=lambda part: (-width(part), part.name))
    begins: dict[str, int] = {}
    begin = len(encode_header({**metadata, DIGEST: _NO_DIGEST}, ordered))
    for part in ordered:
        begins[part.name] = begin
        begin += memoryview(part.data).nbytes

    def write(file: BinaryIO) -> None:
        # The digest is computed from the written bytes, also if another thread changes an array meanwhile.
        def put(part: Part) -> Iterable[bytes]:
            file.seek(begins[part.name])
            data = memoryview(part.data)
            data = data.cast("B") if data.nbytes else data[:0]
            for start in range(0, len(data), _CHUNK):
                chunk = bytes(data[start : start + _CHUNK])
                file.write(chunk)
                yield chunk

        digest = _digest(metadata, ordered, put)
        file.seek(0)
        file.write(encode_header({**metadata, DIGEST: digest}, ordered))

    def check(beside: Path) -> None:
        with beside.open("rb") as file:
            _read_header(file)

    write_atomically(path, write, check)


def write_atomically(
    path: str | Path, write: Callable[[BinaryIO], object], check: Callable[[Path], object] | None = None
) -> None:
    """Writes a file so that its name always leads to a complete file: the old file or the new file.

    The new file is on the disk before it gets the name. A writer that is killed leaves a temporary file
    `.NAME.*.tmp` in the folder (a digest replaces a long name). A later call removes it after an hour.

    Args:
        path: the path of the file; a symbolic link stays, and its target is replaced.
        write: writes to the file that it is given.
        check: raises an error for a file that must not replace the old one; `None` for no check.

    Raises:
        OSError: for a path that is a folder, a device or a loop of links; if the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    _check_target(target)
    _remove_left_overs(target)
    beside = target.with_name(f".{_short_name(target)}.{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(beside)
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    # The name, too, has to survive a power cut. Some file systems cannot flush a folder.
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _check_target(target: Path) -> None:
    """Raises an `OSError` for a folder or a device, which must not be replaced by a file."""
    try:
        mode = target.lstat().st_mode  # Links are resolved: a link that is left is part of a loop.
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "the path is a folder, not a file", str(target))
    if not stat.S_ISREG(mode):
        message = (
            "the path is a device, a loop of links or another special file, which must not be replaced"
        )
        raise OSError(errno.EINVAL, message, str(target))


def _short_name(target: Path) -> str:
    """Returns the name of the target, or a digest if the name is too long to get a suffix."""
    name = os.fsencode(target.name)
    return target.name if len(name) <= _LONGEST_NAME else hashlib.sha256(name).hexdigest()[:32]


def _remove_left_overs(target: Path) -> None:
    """Removes old temporary files of killed writers; a living writer's file is young."""
    for path in target.parent.glob(f".{_literally(_short_name(target))}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_OVER_AFTER:
                path.unlink()


def _literally(name: str) -> str:
    """Returns a pattern of `glob` that matches one name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def read_file(path: str | Path) -> tuple[dict[str, str], dict[str, Part]]:
    """Reads a file in the safetensors format: its metadata, and its arrays by their names.

    Header and data are read through one file descriptor. They belong to one file, also if another process
    replaces the file meanwhile. Each array has its own memory.

    Args:
        path: the path of the file.

    Raises:
        CheckpointError: for a file that is not whole, or of another format.
        OSError: if there is no file, or if the file may not be read.
    """
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError(f"{path} is empty: {_DAMAGED}")
        try:
            metadata, places, begin = _read_header(file)
            # In the order of the file: one pass over it.
            ordered = sorted(places.items(), key=lambda item: item[1].begin)
            parts = {name: _read_part(file, begin, name, place) for name, place in ordered}
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not a whole file of safetensors ({error}): {_DAMAGED}"
            ) from error
    return metadata, parts


def _read_header(file: BinaryIO) -> tuple[dict[str, str], dict[str, Place], int]:
    """Returns the metadata, the place of each array, and the beginning of the first array."""
    size = os.fstat(file.fileno()).st_size
    begin = file.read(LENGTH_BYTES)
    if begin.startswith(b"PK"):
        raise ValueError("it is a zip archive, as torch.save and NumPy's savez write it")
    length = int.from_bytes(begin, "little")
    if length > min(LONGEST, size - LENGTH_BYTES):
        raise ValueError(f"its header has {length} bytes")
    text = file.read(length)
    metadata, places = decode_header(text, size - LENGTH_BYTES - length)
    return metadata, places, LENGTH_BYTES + length


def _read_part(file: BinaryIO, begin: int, name: str, place: Place) -> Part:
    data = np.empty(place.end - place.begin, np.uint8)
    file.seek(begin + place.begin)
    if file.readinto(data.data) != data.size:  # type: ignore[attr-defined]
        raise ValueError(f"{name!r} was cut off while it was read")
    return Part(name, place.dtype, place.shape, data)


def check_digest(path: str | Path, metadata: Mapping[str, str], parts: Iterable[Part]) -> None:
    """Raises a `CheckpointError` if the contents of a file differ from the written contents."""
    if metadata.get(DIGEST) != _digest(metadata, parts, lambda part: (part.data,)):
        raise CheckpointError(f"{path} does not have the contents that were written to it: {_DAMAGED}")


def _digest(
    metadata: Mapping[str, str], parts: Iterable[Part], data_of: Callable[[Part], Iterable[Any]]
) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and data; the order in the file makes no difference."""
    digest = hashlib.sha256()
    record = sorted((name, text) for name, text in metadata.items() if name != DIGEST)
    digest.update(json.dumps(record).encode() + b"\n")
    for part in sorted(parts, key=lambda part: part.name):
        digest.update(json.dumps([part.name, part.dtype, list(part.shape)]).encode() + b"\n")
        for data in data_of(part):
            digest.update(data)
    return digest.hexdigest()
