"""The tables of moments in 8 bits, as a structure of C. `emo_shared/eight_bit.py` defines the code."""

import ctypes
import functools
import math

from emo_shared.eight_bit import BUCKETS, SIGNED, UNSIGNED, buckets, midpoints, zero_code

_EXPONENTS = 32
"""The exponents of shares from 2^-31 to 1, by their last five bits."""
_MOST_DECADES = 16
_UNITS, _DOUBT = 65536, 8
"""The same numbers as in cpu_codes.h."""
_DECADES = 7
"""The decades of a table, from 10^-7 to 1."""


class _Lines(ctypes.Structure):
    """The structure `Lines` of cpu_codes.h."""

    _fields_ = (
        ("edges", ctypes.c_float * _MOST_DECADES),
        ("slopes", ctypes.c_float * _MOST_DECADES),
        ("offsets", ctypes.c_float * _MOST_DECADES),
        ("caps", ctypes.c_float * _MOST_DECADES),
    )


class Code(ctypes.Structure):
    """The structure `Code` of cpu_codes.h: one table."""

    _fields_ = (
        ("values", ctypes.c_float * 256),
        ("middles", ctypes.c_float * 256),
        ("least", ctypes.c_uint8 * (2 * BUCKETS)),
        ("bytes", ctypes.c_uint8 * 256 * 4),
        ("borders", ctypes.c_float * _EXPONENTS),
        ("decades", ctypes.c_int32 * _EXPONENTS),
        ("lines", _Lines),
    )


def _code(table: tuple[float, ...]) -> Code:
    """Returns a table, with the linear function of each decade.

    Codes are counted from the code of 0. Decade 0 is the value 0 alone, and decade 8 is the value 1 alone.
    Decade d between them has values at equal distances, from 10^(d - 8) to 10^(d - 7), and each decade has
    twice as many values as the decade below it. A linear function of a share is a whole number at each
    midpoint inside a decade: the code above the midpoint. The caps keep the function below the first code
    of the next decade, because the last midpoint of a decade is farther away.
    """
    code = Code()
    middle = midpoints(table)
    code.values[:], code.middles[:255], code.least[:] = table, middle, buckets(table)
    for place, own in enumerate(code.bytes):
        own[:] = bytes(code.values)[place::4]
    above = middle[zero_code(table) :]
    smallest = (len(above) + 1) // 2**_DECADES  # The number of values in the lowest decade: 1 or 2.
    parts = [0, *(smallest * 2**decade for decade in range(_DECADES)), 0]
    firsts = [sum((1, *parts[1:decade])) if decade else 0 for decade in range(len(parts))]
    for decade, (first, many) in enumerate(zip(firsts, parts, strict=True)):
        code.lines.slopes[decade] = _UNITS * many / 0.9 * 10.0 ** (_DECADES - decade)
        # Half a code away from whole numbers where the function is constant.
        code.lines.offsets[decade] = _UNITS * (first - many / 9.0 if many else first + 0.5) + _DOUBT
        code.lines.caps[decade] = _UNITS * (first + max(many, 1) - 0.25)
    code.borders[:] = [math.inf] * _EXPONENTS
    for first in firsts[1:]:
        border = above[first - 1]
        exponent = math.frexp(border)[1] - 1
        code.borders[(exponent + 127) % _EXPONENTS] = border
        code.lines.edges[firsts.index(first)] = border
        for higher in range(exponent + 1, 1):
            code.decades[(higher + 127) % _EXPONENTS] += 1
    return code


@functools.cache
def codes() -> ctypes.Array[Code]:
    """Returns the tables of first moments and of second moments, in this order."""
    return (Code * 2)(_code(SIGNED), _code(UNSIGNED))
