"""The header of the safetensors format: made from arrays, and read with every check of the format.

A file is the header's length (8 bytes, little-endian), the header (JSON), and the arrays' bytes without
gaps. It is written and read here, not with the package safetensors, for three reasons: NumPy alone has no
bfloat16 and no float8; releases of safetensors before 0.7 cannot read complex64, and releases before 0.4.3
cannot read float8; and safetensors opens a file twice, for the header and for the data, which mixes two
files if another process replaces the file in between.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
"""The format's names of its dtypes."""
LONGEST = 100_000_000
"""The most bytes of a header; other readers of the format refuse a longer one."""
LENGTH_BYTES = 8
"""The number of bytes before the header, which hold its length."""

_DTYPES = {code: dtype for dtype, code in CODES.items()}
_METADATA = "__metadata__"
# Other readers count elements in 64 bits.
_MOST_ELEMENTS = 2**64 - 1


class Part(NamedTuple):
    """One array of a file.

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


class Place(NamedTuple):
    """The place of the bytes of one array, counted from the end of the header.

    Attributes:
        dtype: the name of its dtype, such as "float32".
        shape: its shape.
        begin: its first byte.
        end: the byte after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def width(part: Part) -> int:
    """Returns the bytes of an element; raises a `ValueError` for a dtype that the format lacks."""
    if part.dtype not in CODES:
        raise ValueError(
            f"The file format cannot hold the dtype {part.dtype} of {part.name!r}; it holds "
            f"{', '.join(CODES)}"
        )
    return _width(part.dtype)


def encode_header(metadata: Mapping[str, str], parts: Sequence[Part]) -> bytes:
    """Returns the beginning of a file, the header's length and the header.

    Args:
        metadata: text beside the arrays.
        parts: the arrays, in the order of their bytes in the file.

    Raises:
        TypeError: for a name or a text that is no string.
        ValueError: for a dtype that the format lacks, a name or a text that has no UTF-8, a name
            that occurs twice or is reserved by the format, data of another size than the shape says, and a
            header above the format's limit.
    """
    for name, text in metadata.items():
        _check_text(name, "a name in the metadata")
        _check_text(text, f"the metadata {name!r}")
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    begin = 0
    for part in parts:
        _check_text(part.name, "the name of an array")
        if part.name in header:
            reason = "is the format's own" if part.name == _METADATA else "occurs twice"
            raise ValueError(f"The name {part.name!r} of an array {reason}: give that array another name")
        size = width(part) * math.prod(part.shape)
        end = begin + memoryview(part.data).nbytes
        if end - begin != size:
            raise ValueError(f"{part.name!r} has {end - begin} bytes; its shape and dtype need {size}")
        header[part.name] = {
            "dtype": CODES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    header_text = json.dumps(header).encode()
    header_text += b" " * (-len(header_text) % LENGTH_BYTES)
    if len(header_text) > LONGEST:
        raise ValueError(
            f"The header of this file would have {len(header_text)} bytes: names, shapes, and everything "
            f"that is not an array. The safetensors format allows {LONGEST}, and no program could read the "
            "file. Save long lists of numbers as arrays. Nothing was written"
        )
    # Checked by the function that reads files: an unreadable header must not replace a good file.
    decode_header(header_text, begin)
    return len(header_text).to_bytes(LENGTH_BYTES, "little") + header_text


def decode_header(text: bytes, size: int) -> tuple[dict[str, str], dict[str, Place]]:
    """Returns the metadata of a header, and the place of each array.

    Args:
        text: the header, without its length.
        size: the bytes after the header.

    Raises:
        ValueError: for a header that breaks a rule of the format, or does not fit the size.
    """
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_doubles, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("the header is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    metadata = header.pop(_METADATA, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata are not texts by their names")
    places = {name: _place(name, entry) for name, entry in header.items()}
    for text_ in (*metadata, *metadata.values(), *places):
        text_.encode()  # A lone surrogate may stand in JSON, but has no UTF-8.
    expected = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != expected:
            raise ValueError(f"{name!r} begins at byte {place.begin}, and not at {expected}")
        expected = place.end
    if expected != size:
        raise ValueError(f"the arrays need {expected} bytes, and the file has {size}")
    return metadata, places


def _place(name: str, entry: Any) -> Place:
    """Returns the place of an array, from its entry in the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} is not a dtype, a shape and two offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"the dtype {dtype!r} of {name!r} is unknown")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or the offsets of {name!r} are no whole numbers from 0")
    elements = 1
    for length in shape:
        elements *= length
        if elements > _MOST_ELEMENTS:
            raise ValueError(f"{name!r} has too many elements: {tuple(shape)}")
    place = Place(_DTYPES[dtype], tuple(shape), *offsets)
    if place.end - place.begin != elements * _width(place.dtype):
        raise ValueError(f"{name!r} has {place.end - place.begin} bytes, which its shape does not need")
    return place


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _width(dtype: str) -> int:
    digits = "".join(letter for letter in CODES[dtype].split("_")[0] if letter.isdigit())
    return int(digits or 8) // 8


def _check_text(text: object, title: str) -> None:
    """Raises an error for a text that cannot stand in a header."""
    if not isinstance(text, str):
        raise TypeError(f"{title} must be a string, and is {text!r}, of the type {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{title} contains a lone surrogate, {text[error.start]!r}, which cannot be written as UTF-8: "
            f"{text!r}. Rename it, for example with `name.encode('utf-8', 'backslashreplace').decode()`"
        ) from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    header = dict(pairs)
    if len(header) != len(pairs):
        raise ValueError("a name occurs twice in the header")
    return header


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not valid JSON")
