"""Moments in 8 bits: codes and scales as arrays. `emo_shared/eight_bit.py` defines the code."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emo_optax._checks.errors import STATE_OF_ANOTHER
from emo_shared.eight_bit import (
    BLOCK,
    BUCKET_SHIFT,
    BUCKETS,
    EIGHT_BIT,
    FIRST_BUCKET,
    LARGEST,
    TINY,
    block_count,
    buckets,
    midpoints,
    zero_code,
)

Table = tuple[float, ...]


class CodedMoment(NamedTuple):
    """A moment of one parameter in 8 bits; stands in the state in the place of an array.

    Attributes:
        codes: uint8, of the shape of the parameter.
        scales: float32, one for each block of 256 elements in C order.
    """

    codes: jax.Array
    scales: jax.Array


def is_coded_moment(node: Any) -> bool:
    """Returns whether a node of a tree is a moment in 8 bits."""
    return isinstance(node, CodedMoment)


def check_sharding(param: jax.Array) -> None:
    """Raises a `ValueError` for a parameter that is sharded over mesh axes of the type Explicit."""
    spec = jax.typeof(param).sharding.spec if isinstance(param, jax.Array) else ()
    if any(axis is not None for axis in spec):
        raise ValueError(
            f"moment_dtype={EIGHT_BIT!r} does not support parameters sharded over mesh axes of the type "
            f"Explicit. A parameter of the shape {param.shape} has the sharding {spec}. Use axes of "
            "AxisType.Auto, or moment_dtype=jnp.bfloat16"
        )


def zeros(param: jax.Array, table: Table) -> CodedMoment:
    """Returns the codes and the scales of a moment of zeros."""
    check_sharding(param)
    codes = jnp.full_like(param, zero_code(table), dtype=jnp.uint8)
    return CodedMoment(codes, jnp.zeros(block_count(codes.size), jnp.float32))


def encode(values: jax.Array, table: Table) -> CodedMoment:
    """Returns the codes and the scales of an array, by the rules of `emo_shared.eight_bit`.

    Args:
        values: the elements, any shape; they are rounded to float32.
        table: `SIGNED` or `UNSIGNED`; for the latter the values are >= 0.

    Returns:
        The codes, uint8 of the same shape, and one float32 scale for each block.
    """
    flat = values.astype(jnp.float32).reshape(-1)
    flat = jnp.clip(jnp.where(jnp.abs(flat) < TINY, 0.0, flat), -LARGEST, LARGEST)
    size, blocks = flat.size, block_count(flat.size)
    rows = jnp.pad(flat, (0, blocks * BLOCK - size)).reshape(blocks, BLOCK)
    scale = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    is_known = scale > 0.0  # False for NaN.
    shares = rows * (1.0 / jnp.where(is_known, scale, 1.0))
    # Two look-ups in place of a search: eight look-ups, or 255 comparisons.
    bits = jax.lax.bitcast_convert_type(shares, jnp.int32)
    places = jnp.clip(((bits & 0x7FFFFFFF) >> BUCKET_SHIFT) - FIRST_BUCKET + 1, 0, BUCKETS - 1)
    least = np.asarray(buckets(table), np.uint8)
    codes = jnp.asarray(least)[jnp.where(bits < 0, places + BUCKETS, places)].astype(jnp.int32)
    is_above = shares > jnp.asarray(midpoints(table), jnp.float32)[codes]
    codes = codes + is_above.astype(jnp.int32)
    if table[0] == 0.0:
        codes = jnp.where(rows > 0.0, jnp.maximum(codes, 1), codes)
    codes = jnp.where(is_known, codes, zero_code(table)).astype(jnp.uint8)
    return CodedMoment(codes.reshape(-1)[:size].reshape(values.shape), scale.reshape(-1))


def after(moment: Any, before: jax.Array | None) -> Any:
    """Returns a moment, unchanged, that XLA cannot decode before the scale of another one is known."""
    if before is None or not (is_coded_moment(moment) and isinstance(moment.codes, jax.core.Tracer)):
        return moment
    # A scale is never below 0, which XLA does not know. It takes an optimization barrier away too early.
    return moment._replace(codes=moment.codes + (before < 0.0).astype(jnp.uint8))


def decode(moment: CodedMoment, table: Table) -> jax.Array:
    """Returns the values of a moment in codes, `table[code] * scale`, float32 of the shape of the codes.

    Raises:
        ValueError: for scales of another number than the codes need.
    """
    codes, scales = moment
    size, blocks = codes.size, block_count(codes.size)
    if codes.dtype != jnp.uint8 or scales.shape != (blocks,) or scales.dtype != jnp.float32:
        has = f"{codes.dtype} codes of the shape {codes.shape} and {scales.dtype} scales {scales.shape}"
        raise ValueError(STATE_OF_ANOTHER.format(problem=f"a moment in 8 bits has {has}"))
    rows = jnp.pad(codes.reshape(-1), (0, blocks * BLOCK - size)).reshape(blocks, BLOCK)
    values: jax.Array = jnp.asarray(table, jnp.float32)[rows] * scales[:, None]
    return values.reshape(-1)[:size].reshape(codes.shape)
