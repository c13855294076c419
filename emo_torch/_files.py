"""Files that are whole or not there: written beside and moved into their place, with a digest inside."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from emo_torch._errors import CheckpointError

DIGEST = "sha256"
"""The name of the digest among a file's metadata."""
CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""What the format calls the dtypes that it has a place for."""
LEFT_OVER_AFTER = 3600.0
"""After how many seconds of rest a file that a killed writer left is taken away."""


class Part(NamedTuple):
    """One array of a file, as its digest sees it.

    Attributes:
        name: its name.
        dtype: the name of its dtype, such as "float32".
        shape: its shape.
        data: its bytes, in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any


def write_file(path: str | Path, metadata: Mapping[str, str], parts: Iterable[Part]) -> None:
    """Writes arrays, and text beside them, to a file in the safetensors format, with a digest of all.

    Args:
        path: where the file goes.
        metadata: the text beside the arrays.
        parts: the arrays.

    Raises:
        ValueError: for a dtype that the format has no place for, before anything is written.
    """
    # Wide ones first, so that each begins where its dtype may lie in memory.
    ordered = sorted(parts, key=lambda part: (-_width(part), part.name))
    header: dict[str, Any] = {"__metadata__": {**metadata, DIGEST: _digest(metadata, ordered)}}
    begin = 0
    for part in ordered:
        end = begin + memoryview(part.data).nbytes
        header[part.name] = {
            "dtype": CODES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in ordered:
            file.write(part.data)

    write_atomically(path, write)


def _width(part: Part) -> int:
    """Returns the bytes of an element."""
    if part.dtype not in CODES:
        raise ValueError(
            f"{part.name!r} has the dtype {part.dtype}, for which the file has no place; it has for "
            f"{', '.join(CODES)}"
        )
    digits = "".join(letter for letter in CODES[part.dtype].split("_")[0] if letter.isdigit())
    return int(digits or 8) // 8


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that its name leads to a whole one at every moment: the old one or the new.

    What `write` wrote is on the disk before it gets the name. A writer that is killed leaves a file
    `.NAME.*.tmp` beside, which a later call takes away once it has rested for an hour.

    Args:
        path: where the file goes; a link stays, and what it leads to is written anew.
        write: writes to the file that it is given.
    """
    target = Path(os.path.realpath(path))
    _remove_left_overs(target)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    # The name, too, has to survive a power cut. Not every file system can be asked for that.
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_left_overs(target: Path) -> None:
    """Takes away what killed writers of the same file left; a living one's file is young."""
    for path in target.parent.glob(f".{_literally(target.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_OVER_AFTER:
                path.unlink()


def _literally(name: str) -> str:
    """Returns a pattern of `glob` that a name alone fits."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def read_file(path: str | Path, framework: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Reads a file in the safetensors format: its metadata, and its arrays by their names.

    Args:
        path: where the file is.
        framework: whose arrays, as safetensors names it: "np" or "pt".

    Raises:
        CheckpointError: for what is no whole file of that format.
        OSError: where there is no file, or none that may be read.
    """
    from safetensors import SafetensorError, safe_open

    if Path(path).stat().st_size == 0:  # Which cannot be mapped into memory.
        raise CheckpointError(f"{path} is empty: {_DAMAGED}")
    try:
        with safe_open(os.fspath(path), framework=framework) as file:
            names = list(file.keys())
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        # Beside safetensors' own error there are those of a dtype that a damaged header made up.
        raise CheckpointError(f"{path} is not a whole file of safetensors ({error}): {_DAMAGED}") from error


def check_digest(path: str | Path, metadata: Mapping[str, str], parts: Iterable[Part]) -> None:
    """Raises a `CheckpointError` where a file does not hold what was written to it."""
    if metadata.get(DIGEST) != _digest(metadata, parts):
        raise CheckpointError(f"{path} does not hold what was written to it: {_DAMAGED}")


_DAMAGED = "it was cut off or altered since. Nothing was loaded; take an earlier one, or a copy."


def _digest(metadata: Mapping[str, str], parts: Iterable[Part]) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and data, whatever order a file has them in."""
    digest = hashlib.sha256()
    told = sorted((name, text) for name, text in metadata.items() if name != DIGEST)
    digest.update(json.dumps(told).encode() + b"\n")
    for part in sorted(parts, key=lambda part: part.name):
        digest.update(json.dumps([part.name, part.dtype, list(part.shape)]).encode() + b"\n")
        digest.update(part.data)
    return digest.hexdigest()
