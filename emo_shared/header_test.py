"""The header of the safetensors format: headers that are refused, also by the package safetensors."""

import json
from typing import Any

import pytest
import safetensors

from emo_shared.header import CODES, Part, decode_header, encode_header, width


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN = {
    "no JSON": ("x", "Expecting value"),
    "no object": ("[]", "no JSON object"),
    "no UTF-8": (b'{"\xff": 1}', "can't decode"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "NaN": ('{"x": NaN}', "NaN is not valid JSON"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "x": entry()}, "not texts"),
    "metadata of a list": ({"__metadata__": [], "x": entry()}, "not texts"),
    "a name twice": ('{"x": %s, "x": %s}' % ((json.dumps(entry()),) * 2), "occurs twice"),
    "half of a surrogate pair": ({"\ud800": entry()}, "surrogates not allowed"),
    "an unknown dtype": ({"x": entry("F33")}, "dtype 'F33' of 'x' is unknown"),
    "a dtype that is no text": ({"x": entry([])}, "is unknown"),
    "a shape of floats": ({"x": entry(shape=[2.0])}, "no whole numbers"),
    "a shape of booleans": ({"x": entry(shape=[2, True])}, "no whole numbers"),
    "a shape below 0": ({"x": entry(shape=[-2])}, "no whole numbers"),
    "three offsets": ({"x": entry(offsets=[0, 4, 8])}, "no whole numbers"),
    "too many elements": ({"x": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}, "too many elements"),
    "offsets the wrong way round": ({"x": entry(offsets=[8, 0])}, "which its shape does not need"),
    "a shape of another size": ({"x": entry(shape=[3])}, "which its shape does not need"),
    "a gap before": ({"x": entry(offsets=[4, 12])}, "begins at byte 4, and not at 0"),
    "a gap between": ({"x": entry(), "y": entry(offsets=[12, 20])}, "begins at byte 12, and not at 8"),
    "an overlap": ({"x": entry(), "y": entry(offsets=[4, 12])}, "begins at byte 4, and not at 8"),
    "another key": ({"x": {**entry(), "more": 1}}, "not a dtype, a shape and two offsets"),
    "a missing key": ({"x": {"dtype": "F32", "shape": [2]}}, "not a dtype, a shape and two offsets"),
    "more data": ({}, "need 0 bytes, and the file has 8"),
    "less data": ({"x": entry(shape=[4], offsets=[0, 16])}, "need 16 bytes, and the file has 8"),
}
LENIENT = {"a name twice", "another key", "metadata of a list", "a shape of booleans"}
"""The headers that the package safetensors may accept."""


@pytest.mark.parametrize("what", BROKEN)
def test_a_header_that_breaks_a_rule_is_refused(what: str) -> None:
    told, message = BROKEN[what]
    text = (
        told if isinstance(told, bytes) else (told if isinstance(told, str) else json.dumps(told)).encode()
    )
    with pytest.raises(ValueError, match=message):
        decode_header(text, 8)
    if what not in LENIENT:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(len(text).to_bytes(8, "little") + text + b"\0" * 8)


@pytest.mark.parametrize("dtype", CODES)
def test_every_dtype_is_one_of_the_package_safetensors_too(dtype: str) -> None:
    size = width(Part("x", dtype, (), b""))
    header = encode_header({}, [Part("x", dtype, (2,), bytes(2 * size))])
    ((name, told),) = safetensors.deserialize(header + bytes(2 * size))
    assert (name, told["dtype"], told["shape"]) == ("x", CODES[dtype], [2])


@pytest.mark.parametrize(
    ("metadata", "parts", "error", "message"),
    [
        ({"a": 1}, (), TypeError, "the metadata 'a' must be a string, and is 1"),
        ({1: "a"}, (), TypeError, "a name in the metadata must be a string"),
        ({"a": "\udfff"}, (), ValueError, "the metadata 'a' contains a lone surrogate"),
        ({}, [Part("x", "int8", (1,), b"1")] * 2, ValueError, "'x' of an array occurs twice"),
        ({}, [Part("x", "int8", (2,), b"1")], ValueError, "'x' has 1 bytes; its shape and dtype need 2"),
        ({}, [Part("x", "int8", (2**33, 2**33, 0), b"")], ValueError, "too many elements"),
    ],
)
def test_a_header_that_no_reader_takes_is_not_made(
    metadata: Any, parts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encode_header(metadata, parts)
