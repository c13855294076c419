"""Sums over all elements of large arrays on the CPU, in blocks that stay in the cache.

XLA on a CPU makes a loop for each sum. It first writes values that several sums share, such as a direction,
to a temporary array of the size of the parameter. Here a loop over blocks computes these values for one
block at a time, and adds them to a block of sums: no temporary array is larger than a block.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 16384
"""The number of elements of a block: the blocks of all arrays together stay in the cache of a core."""
LARGE = 16 * BLOCK
"""The least number of elements of an array that is summed in blocks."""


def sums_of(function: Callable[..., tuple[jax.Array, ...]], *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the sums over all elements of the results of an elementwise function.

    Args:
        function: from arrays of the same shape, to one or more arrays of this shape.
        arrays: the arrays, all of the same shape.

    Returns:
        A sum for each result, shape `[]`.
    """
    if not _is_blocked(arrays[0]):
        return tuple(jnp.sum(each) for each in function(*arrays))
    flat = [array.reshape(-1) for array in arrays]
    count, rest = divmod(flat[0].size, BLOCK)

    def block(index: jax.typing.ArrayLike) -> tuple[jax.Array, ...]:
        return function(*(lax.dynamic_slice(each, (index * BLOCK,), (BLOCK,)) for each in flat))

    def add(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(total + each for total, each in zip(sums, block(index), strict=True))

    sums = [jnp.sum(each) for each in lax.fori_loop(1, count, add, block(0))]
    if rest:
        tail = function(*(each[-rest:] for each in flat))
        sums = [total + jnp.sum(each) for total, each in zip(sums, tail, strict=True)]
    return tuple(sums)


def mean_square_by_rows(
    function: Callable[..., jax.Array], array: jax.Array, by_row: jax.Array, by_column: jax.Array
) -> jax.Array:
    """Returns the mean of the squared results of a function of an array and its factors.

    Args:
        function: from the array, or some of its rows, and the factors, to an array of the same shape.
        array: shape `[n, m, ...]`.
        by_row: a factor of each row, shape `[n, 1, ...]`.
        by_column: a factor of each column, shape `[1, m, ...]`.

    Returns:
        The mean, shape `[]`.
    """
    columns = array.size // array.shape[0]
    if not _is_blocked(array) or columns > BLOCK:
        return jnp.mean(jnp.square(function(array, by_row, by_column)))
    matrix, by_row, by_column = array.reshape(-1, columns), by_row.reshape(-1, 1), by_column.reshape(1, -1)
    rows = BLOCK // columns
    count, rest = divmod(matrix.shape[0], rows)

    def block(index: jax.typing.ArrayLike) -> jax.Array:
        start = (index * rows, 0)
        some = lax.dynamic_slice(matrix, start, (rows, columns))
        return jnp.square(function(some, lax.dynamic_slice(by_row, start, (rows, 1)), by_column))

    total = jnp.sum(lax.fori_loop(1, count, lambda index, sums: sums + block(index), block(0)))
    if rest:
        total += jnp.sum(jnp.square(function(matrix[-rest:], by_row[-rest:], by_column)))
    return total / array.size


def _is_blocked(array: jax.Array) -> bool:
    """Returns whether an array is summed in blocks: a large array on a CPU that is one device."""
    # A block of an array that is split over devices would be collected from all of them.
    return array.size >= LARGE and jax.default_backend() == "cpu" and jax.device_count() == 1
