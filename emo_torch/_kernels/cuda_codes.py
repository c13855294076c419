"""Moments in 8 bits in the kernels of `cuda_kernels.py`: a program decodes one block, and encodes it again.

The codes and the scales are the same as from ../_rules/eight_bit.py; ../../emo_shared/eight_bit.py has the
rules.
"""

# Annotations are not evaluated, so that this module can be imported without Triton.
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emo_shared import eight_bit
from emo_shared.eight_bit import SIGNED, UNSIGNED, buckets, midpoints, zero_code

try:
    import triton
    import triton.language as tl
except ImportError:  # `cuda.is_available` returns False.
    triton = tl = None


def jit(function: Callable[..., Any]) -> Any:
    """Returns a function as a kernel of Triton; the function itself without Triton."""
    return function if triton is None else triton.jit(function)


def _constant(number: float) -> Any:
    """Returns a number in the type that Triton requires for global numbers in a kernel."""
    return number if tl is None else tl.constexpr(number)


TABLE = 256
"""The room of one row of numbers: the values of a table, or its midpoints."""
_ROOM = _constant(TABLE)
_BUCKETS, _SHIFT = _constant(eight_bit.BUCKETS), _constant(eight_bit.BUCKET_SHIFT)
_BELOW = _constant(eight_bit.FIRST_BUCKET - 1)
_TINY, _LARGEST = _constant(eight_bit.TINY), _constant(eight_bit.LARGEST)
_BESIDE = _constant(eight_bit.LARGEST_BESIDE_SQUARE)
_ZERO = _constant(zero_code(SIGNED))


@functools.lru_cache(maxsize=64)
def tables_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the tables of first and of second moments on a device.

    Returns:
        The values and the midpoints of each table, float32 of shape `[2, 2, TABLE]`, and the least codes of
        the buckets of each table, uint8 of shape `[2, 2 * BUCKETS]`.
    """
    rows = [[list(table), [*midpoints(table), 0.0]] for table in (SIGNED, UNSIGNED)]
    least = [list(buckets(table)) for table in (SIGNED, UNSIGNED)]
    numbers = torch.tensor(rows, dtype=torch.float32, device=device)
    return numbers, torch.tensor(least, dtype=torch.uint8, device=device)


@jit
def loaded(  # type: ignore[no-untyped-def]
    at,
    scale_at,
    offsets,
    mask,
    numbers,
    SQUARES: tl.constexpr,
    KIND: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Returns the moments of a block in the dtype of the computation.

    Args:
        at: the address of the tensor of the moments, or of their codes.
        scale_at: the address of the scale of the block; read for codes only.
        offsets: the elements of the block.
        mask: which of these elements exist.
        numbers: the tables of `tables_on`.
        SQUARES: 1 for second moments, and otherwise 0.
        KIND: the dtype of the stored moments; uint8 for codes.
        WIDE: the dtype of the computation.
    """
    if tl.uint8 == KIND:
        codes = tl.load(at + offsets, mask=mask, other=0).to(tl.int32)
        value = tl.load(numbers + SQUARES * 2 * _ROOM + codes) * tl.load(scale_at)
    else:
        value = tl.load(at + offsets, mask=mask, other=0.0)
    return value.to(WIDE)


@jit
def encode(  # type: ignore[no-untyped-def]
    at,
    scale_at,
    offsets,
    mask,
    value,
    numbers,
    least,
    SQUARES: tl.constexpr,
    IS_BESIDE: tl.constexpr,
):
    """Stores the codes and the scale of a block.

    Args:
        at: the address of the tensor of codes.
        scale_at: the address of the scale of the block.
        offsets: the elements of the block.
        mask: which of these elements exist; if none does, the scale stays, too.
        value: the moments.
        numbers: the tables of `tables_on`.
        least: the least codes of `tables_on`.
        SQUARES: 1 for second moments, and otherwise 0.
        IS_BESIDE: whether these are first moments beside second moments, which have a smaller range.
    """
    if IS_BESIDE:
        value = tl.where(value > _BESIDE, _BESIDE, tl.where(value < -_BESIDE, -_BESIDE, value))
    value = tl.where(mask, value, 0.0).to(tl.float32)
    value = tl.where(tl.abs(value) < _TINY, 0.0, value)
    value = tl.where(value > _LARGEST, _LARGEST, tl.where(value < -_LARGEST, -_LARGEST, value))
    is_nan = value != value
    # The sum of the NaN in the block makes the scale NaN, too.
    scale = tl.max(tl.where(is_nan, 0.0, tl.abs(value)), axis=0) + tl.sum(
        tl.where(is_nan, value, 0.0), axis=0
    )
    is_known = scale > 0.0
    divisor = tl.where(is_known, scale, 1.0)
    # The default division of Triton is not the nearest number.
    share = value * tl.div_rn(tl.full((), 1.0, tl.float32), divisor)
    bits = share.to(tl.int32, bitcast=True)
    place = ((bits & 0x7FFFFFFF) >> _SHIFT) - _BELOW
    place = tl.minimum(tl.maximum(place, 0), _BUCKETS - 1) + tl.where(bits < 0, _BUCKETS, 0)
    codes = tl.load(least + SQUARES * 2 * _BUCKETS + place).to(tl.int32)
    middle = tl.load(numbers + (SQUARES * 2 + 1) * _ROOM + codes)
    codes += (share > middle).to(tl.int32)
    if SQUARES:
        codes = tl.where((value > 0.0) & (codes == 0), 1, codes)
        codes = tl.where(is_known, codes, 0)
    else:
        codes = tl.where(is_known, codes, _ZERO)
    tl.store(at + offsets, codes.to(tl.uint8), mask=mask)
    tl.store(scale_at, scale, mask=tl.max(mask.to(tl.int32), axis=0) > 0)
