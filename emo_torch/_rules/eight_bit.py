"""Moments in 8 bits: codes and scales as tensors. `emo_shared/eight_bit.py` defines the code."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import functools

import torch
from torch import Tensor

from emo_shared.eight_bit import (
    BLOCK,
    BUCKET_SHIFT,
    BUCKETS,
    EIGHT_BIT,
    FIRST_BUCKET,
    LARGEST,
    SIGNED,
    TINY,
    UNSIGNED,
    block_count,
    buckets,
    midpoints,
    table_of,
    zero_code,
)
from emo_torch._sharded import is_sharded

Table = tuple[float, ...]

_SCALE = "_scale"
# torch.compile does not trace a function with a cache, as `buckets` is.
_BUCKETS_OF = {table: buckets(table) for table in (SIGNED, UNSIGNED)}


def scale_name(name: str) -> str:
    """Returns the name under which the scales of a moment are stored."""
    return name + _SCALE


@functools.lru_cache(maxsize=64)
def _kept_numbers(table: Table, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    return _numbers(table, device)


def _numbers(table: Table, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the values and the midpoints of a table, float32, and the least codes of buckets, uint8."""
    values = torch.tensor(table, dtype=torch.float32, device=device)
    middle = torch.tensor(midpoints(table), dtype=torch.float32, device=device)
    return values, middle, torch.tensor(_BUCKETS_OF[table], dtype=torch.uint8, device=device)


def _numbers_on(table: Table, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    # A traced step must not keep the tensors of the tracer.
    return _numbers(table, device) if torch.compiler.is_compiling() else _kept_numbers(table, device)


def check_is_whole(param: Tensor) -> None:
    """Raises a `ValueError` for a parameter of which this process holds a part: blocks would be cut."""
    if is_sharded(param) or getattr(param, "_fsdp_flattened", False):
        raise ValueError(
            f"moment_dtype={EIGHT_BIT!r} does not support sharded parameters, and a parameter of the shape "
            f"{tuple(param.shape)} is sharded: use moment_dtype=torch.bfloat16"
        )


def zeros(param: Tensor, name: str) -> dict[str, Tensor]:
    """Returns the codes and the scales of a moment of zeros, by name."""
    check_is_whole(param)
    codes = torch.full_like(param, zero_code(table_of(name)), dtype=torch.uint8)
    return {name: codes, scale_name(name): torch.zeros_like(blank_scale(param), device=param.device)}


def blank_scale(param: Tensor) -> Tensor:
    """Returns a tensor without data, with the shape and the dtype of the scales of a parameter's moment."""
    return torch.empty(block_count(param.numel()), dtype=torch.float32, device="meta")


def encode(values: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Returns the codes and the scales of a tensor, by the rules of `emo_shared.eight_bit`.

    Args:
        values: the elements, any shape; they are rounded to float32.
        table: `SIGNED` or `UNSIGNED`; for the latter the values are >= 0.

    Returns:
        The codes, uint8 of the same shape, and one float32 scale for each block.
    """
    flat = values.to(torch.float32).reshape(-1)
    flat = torch.where(flat.abs() < TINY, torch.zeros_like(flat), flat).clamp(-LARGEST, LARGEST)
    size, blocks = flat.numel(), block_count(flat.numel())
    rows = torch.nn.functional.pad(flat, (0, blocks * BLOCK - size)).view(blocks, BLOCK)
    scale = rows.abs().amax(dim=1, keepdim=True)
    is_known = scale > 0.0  # False for NaN.
    _, middle, least = _numbers_on(table, values.device)
    shares = rows * torch.where(is_known, scale, torch.ones_like(scale)).reciprocal_()
    # Two look-ups in place of a search: eight look-ups.
    bits = shares.view(torch.int32)
    places = (((bits & 0x7FFFFFFF) >> BUCKET_SHIFT) - (FIRST_BUCKET - 1)).clamp_(0, BUCKETS - 1)
    places.add_(bits < 0, alpha=BUCKETS)
    codes = least.index_select(0, places.view(-1)).to(torch.int32)
    codes += shares.view(-1) > middle.index_select(0, codes)
    codes = codes.view(blocks, BLOCK)
    if table[0] == 0.0:
        codes = torch.where(rows > 0.0, codes.clamp(min=1), codes)
    codes = torch.where(is_known, codes, torch.full_like(codes, zero_code(table)))
    return codes.to(torch.uint8).view(-1)[:size].reshape(values.shape), scale.view(-1)


def decode(codes: Tensor, scale: Tensor, table: Table) -> Tensor:
    """Returns the values of a tensor in codes, `table[code] * scale`, float32 of the shape of the codes."""
    values, _, _ = _numbers_on(table, codes.device)
    flat = values.index_select(0, codes.reshape(-1).to(torch.int32))
    whole = flat.numel() // BLOCK * BLOCK  # All blocks but a short last block.
    flat[:whole].view(-1, BLOCK).mul_(scale[: whole // BLOCK, None])
    flat[whole:].mul_(scale[whole // BLOCK :])
    return flat.view(codes.shape)
