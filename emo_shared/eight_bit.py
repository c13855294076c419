r"""Moments in 8 bits: the tables of the code, and the code itself in plain Python.

An array of moments becomes `uint8` codes and one float32 scale for each block, where `moment_dtype` is
`EIGHT_BIT`. A block is `BLOCK` consecutive elements of an array in C order; the last block may be shorter.

.. math:: scale = \max_{i \in block} |x_i|, \qquad x_i \approx table[code_i] \cdot scale

`SIGNED` is the table of first moments and `UNSIGNED` that of second moments. Both are sorted. `encode` and
`decode` below are slow. They are the reference for faster code, which can give the same codes and scales,
because every step is defined in float32:

1. A value below `TINY` in size (2^-126, the smallest normal number) counts as 0. Some processors and
   compilers replace such values by 0, others do not.
2. A value above `LARGEST` in size (2^126), or infinite, counts as `LARGEST`.
3. The scale is the largest size in the block. With a NaN in the block, the scale is NaN.
4. If the scale is 0 or NaN, every code is that of the value 0. Such a block decodes to 0, or to NaN.
5. Otherwise the code is the number of midpoints that are below `x * (1 / scale)`. A midpoint is the mean of
   two neighbours in the table, rounded to float32; at the midpoint itself the lower neighbour is chosen.
6. In `UNSIGNED`, a value above 0 gets at least code 1, also where the product rounds to 0.

Rule 5 multiplies, because compilers such as XLA replace a division of a block by a product.
Rule 6 is needed because a step is divided by the root of its second moment. If a small second moment became
0, the step would be m / eps, 10^8 times too large. With rule 6 the divisor is too large instead, and the
step is too small.

The largest value of a block is kept exactly, because both tables have 1 and `SIGNED` has -1. Decoding and
encoding again gives the same codes and scales (for values above 2^-125). Therefore a moment that a step
does not change does not drift, and decoded float32 values carry a state between the packages without loss.
The published table of signed values has no -1; here -1 replaces the negative value next to 0.

Small arrays keep the dtype that `moment_dtype=None` gives them (`is_coded`): they take little memory, and 8
bits would harm biases and norms most.

Source: the division into blocks, and the tables (dynamic tree quantization) except -1, are those of
Dettmers et al., 2022, "8-bit Optimizers via Block-wise Quantization". Rules 1 to 6 are ours.
"""

import bisect
import functools
import itertools
import math
import struct
from collections.abc import Sequence

EIGHT_BIT = "8bit"
"""The value of `moment_dtype` for moments in 8 bits."""
BLOCK = 256
"""The number of elements that share a scale."""
SMALLEST = 4096
"""The smallest number of elements of an array that is kept in codes."""
TINY = 2.0**-126
"""The smallest normal float32 number."""
LARGEST = 2.0**126
"""The largest scale: the reciprocals of larger numbers are below the normal float32 numbers."""

LARGEST_BESIDE_SQUARE = 2.0**63
"""The largest first moment that is stored beside a second moment: the root of `LARGEST`.

A gradient above 1e19 has a square that float32 cannot hold, and its second moment is stored as `LARGEST`. A
larger first moment would make the quotient, and so the step, up to 10^19 times too large.
"""


def to_float32(value: float) -> float:
    """Returns the nearest float32 number.

    Example:
        >>> to_float32(0.1)
        0.10000000149011612
    """
    try:
        rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded


def _tree(fraction_bits: int) -> list[float]:
    """Returns the positive values of the tree: 7 decades, each with twice the values of the one below.

    The highest decade, from 0.1 to 1, is divided into 2^fraction_bits equal parts, and the middle of each
    part is a value. The next lower decade has half as many parts, and so on.
    """
    values = []
    for decade in range(7):
        parts = 2 ** (fraction_bits - decade)
        for part in range(parts):
            values.append((0.1 + 0.9 * (part + 0.5) / parts) * 10.0**-decade)
    return values


def _table(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted(to_float32(value) for value in values))


SIGNED = _table([0.0, 1.0, -1.0, *_tree(6), *(-value for value in _tree(6)[:-1])])
"""The table of first moments: 0, and values of either sign from 5.5e-7 (-3.25e-6) to 0.993, and 1."""
UNSIGNED = _table([0.0, 1.0, *_tree(7)])
"""The table of second moments: 0, 1, and 254 values from 3.25e-7 to 0.996."""


def midpoints(table: Sequence[float]) -> tuple[float, ...]:
    """Returns the 255 means of neighbours in a table, in float32.

    Example:
        >>> from emo_shared.eight_bit import UNSIGNED, midpoints
        >>> len(midpoints(UNSIGNED))
        255
    """
    return tuple(to_float32((low + high) / 2.0) for low, high in itertools.pairwise(table))


FIRST_BUCKET = (127 - 23) << 8
"""The number of the bucket of 2^-23; smaller values are in the bucket below it."""
BUCKETS = 23 * 256 + 2
"""The number of buckets of one sign, from 0 to 1."""
BUCKET_SHIFT = 15
"""The bits of a float32 number, without the sign, shifted right by so many are the number of its bucket."""


@functools.cache
def buckets(table: Sequence[float]) -> tuple[int, ...]:
    """Returns the least code in each bucket of values, so that a code needs no search among the midpoints.

    A bucket has the values of one exponent and of the same highest 8 bits of the mantissa. At most one
    midpoint lies in a bucket, so the code of a value x is `code + (x > midpoint[code])`, with the least
    `code` of its bucket.

    Args:
        table: `SIGNED` or `UNSIGNED`.

    Returns:
        The codes of the buckets of values >= 0, then those of values <= 0, each from 0 to 1 in size.

    Example:
        >>> from emo_shared.eight_bit import BUCKETS, SIGNED, buckets
        >>> codes = buckets(SIGNED)
        >>> codes[0], codes[BUCKETS - 1], len(codes) == 2 * BUCKETS
        (127, 254, True)
    """
    middle = midpoints(table)
    first = FIRST_BUCKET << BUCKET_SHIFT
    begins = [0.0, *(_from_bits(first + (place << BUCKET_SHIFT)) for place in range(BUCKETS))]
    above = [bisect.bisect_left(middle, begin) for begin in begins[:-1]]
    below = [bisect.bisect_right(middle, -end) for end in begins[1:]]
    return tuple(min(code, len(middle) - 1) for code in above + below)


def _from_bits(bits: int) -> float:
    value: float = struct.unpack("f", struct.pack("I", bits))[0]
    return value


def table_of(name: str) -> tuple[float, ...]:
    """Returns the table of a moment, by the name of the moment.

    Example:
        >>> from emo_shared.eight_bit import UNSIGNED, table_of
        >>> table_of("exp_avg_sq") is UNSIGNED
        True
    """
    return UNSIGNED if name.endswith("exp_avg_sq") else SIGNED


def zero_code(table: Sequence[float]) -> int:
    """Returns the code of the value 0.

    Example:
        >>> from emo_shared.eight_bit import SIGNED, UNSIGNED, zero_code
        >>> zero_code(SIGNED), zero_code(UNSIGNED)
        (127, 0)
    """
    return table.index(0.0)


def is_coded(size: int) -> bool:
    """Returns whether the moments of an array of so many elements are kept in codes.

    Example:
        >>> from emo_shared.eight_bit import is_coded
        >>> is_coded(4095), is_coded(4096)
        (False, True)
    """
    return size >= SMALLEST


def block_count(size: int) -> int:
    """Returns the number of blocks, and so of scales, of an array of so many elements.

    Example:
        >>> from emo_shared.eight_bit import block_count
        >>> block_count(4096), block_count(4097)
        (16, 17)
    """
    return -(-size // BLOCK)


def check_may_be_coded(owner: str, *, may_be: bool) -> None:
    """Raises a `ValueError` for an optimizer or a rule whose moments cannot be kept in codes.

    Example:
        >>> from emo_shared.eight_bit import check_may_be_coded
        >>> check_may_be_coded("EmoSens", may_be=True)
    """
    if not may_be:
        raise ValueError(
            f"Invalid moment_dtype: {EIGHT_BIT!r} is not for {owner}. It needs a rule whose moments all "
            "have the shape of the parameter and are read once a step, as those of EmoSens and EmoCats. "
            "Use such an optimizer, or a floating-point dtype such as bfloat16"
        )


def encode(values: Sequence[float], table: Sequence[float]) -> tuple[list[int], list[float]]:
    """Returns the codes and the scales of an array, by the rules of this module.

    Args:
        values: the elements of the array in C order; they are rounded to float32.
        table: `SIGNED` or `UNSIGNED`; for the latter the values are >= 0.

    Returns:
        One code, 0 to 255, for each value; one float32 scale for each block.

    Example:
        >>> from emo_shared.eight_bit import SIGNED, decode, encode
        >>> codes, scales = encode([2.0, -0.5, 0.0, 1e-9], SIGNED)
        >>> codes, scales
        ([255, 54, 127, 127], [2.0])
        >>> [round(value, 3) for value in decode(codes, scales, SIGNED)]
        [2.0, -0.495, 0.0, 0.0]
    """
    codes, scales = [], []
    middle = midpoints(table)
    least = 1 if table[0] == 0.0 else 0
    for begin in range(0, len(values), BLOCK):
        block = [_counted(value) for value in values[begin : begin + BLOCK]]
        scale = math.nan if any(map(math.isnan, block)) else max(map(abs, block))
        scales.append(scale)
        for value in block:
            if math.isnan(scale) or scale == 0.0:
                codes.append(zero_code(table))
            else:
                code = bisect.bisect_left(middle, to_float32(value * to_float32(1.0 / scale)))
                codes.append(max(code, least) if value > 0.0 else code)
    return codes, scales


def _counted(value: float) -> float:
    """Returns the value that is encoded: 0 below `TINY` in size, and at most `LARGEST`."""
    value = to_float32(value)
    if math.isnan(value):
        return value
    return 0.0 if abs(value) < TINY else max(-LARGEST, min(LARGEST, value))


def decode(codes: Sequence[int], scales: Sequence[float], table: Sequence[float]) -> list[float]:
    """Returns the values of an array in codes: `table[code] * scale`, in float32.

    Args:
        codes: the codes of the elements in C order, 0 to 255.
        scales: the scale of each block.
        table: `SIGNED` or `UNSIGNED`, with which the array was encoded.

    Returns:
        One float32 number for each code.
    """
    return [to_float32(table[code] * scales[place // BLOCK]) for place, code in enumerate(codes)]
