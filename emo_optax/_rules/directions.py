"""The directions that EmoPilot's scalars steer: Adam's moments, or factors with a momentum."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.validation import (
    check_decay_rate,
    check_moment_dtype,
    check_not_negative,
    hyperparameter,
    is_number,
)
from emo_optax._pieces.replicas import AxisName, split_axes
from emo_optax._pieces.shadow_effect import row_and_column_means
from emo_optax._pieces.sums import mean_square_by_rows
from emo_optax._rules.factors import init_factors
from emo_optax._rules.moments import average, zero_moments

LEAST_SQUARE = 1e-30
"""Adafactor's number beside the squares: rows and columns of zeros have a quotient, too."""


class PilotMomentsState(NamedTuple):
    """Adam's moments: `mu` of the gradients, `nu` of their squares, trees like the parameters.

    Attributes:
        mu: the running averages of the gradients.
        nu: the running averages of their squares.
    """

    mu: optax.Updates
    nu: optax.Updates


class PilotFactorsState(NamedTuple):
    """A momentum, and the averages of the squared gradients over rows and columns.

    Attributes:
        mu: the momentum of the direction, a tree like the parameters.
        row: for a parameter of the shape `[n, m, ...]` the averages over rows, of the shape `[n, 1, ...]`;
            for a parameter of 0 or 1 dimensions a single 0, so that shardings map onto all three trees.
        column: for a parameter of the shape `[n, m, ...]` the averages over columns, of the shape
            `[1, m, ...]`; for a parameter of 0 or 1 dimensions the averages of its squared elements.
    """

    mu: optax.Updates
    row: optax.Updates
    column: optax.Updates


class Direction(NamedTuple):
    """The way from gradients to a direction, for a step that EmoPilot's scalars steer.

    Attributes:
        init: from the parameters to the moments before the first gradient: trees, of which the first one,
            `mu`, is compared with the next gradients.
        move: from the gradient of one parameter, the factor of the gate, the number of this step, and the
            moments of the parameter, in the dtype of the computation, to the moved moments.
        turn: from the number of this step and the moved moments to the direction.
        are_squares: for each tree of moments, whether it has averages of squares.
        is_rounded: whether the moments may be kept in another dtype than that of the computation.
    """

    init: Callable[[optax.Params], Any]
    move: Callable[..., tuple[jax.Array, ...]]
    turn: Callable[..., jax.Array]
    are_squares: tuple[bool, ...]
    is_rounded: bool


def turn_by_adam(owner: str, b1: Any, b2: Any, eps: Any, moment_dtype: Any) -> Direction:
    r"""Returns Adam's direction.

    .. math::
        m \leftarrow m + (1-b_1)(g - m), \quad v \leftarrow b_2 v + (1-b_2)\,g^2, \qquad
        u = \frac{m / (1 - b_1^t)}{\sqrt{v / (1 - b_2^t)} + \epsilon}

    Args:
        owner: the name of the optimizer.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least.
    """
    moment_dtype = _checked(owner, b1, b2, eps, moment_dtype)

    def init(params: optax.Params) -> PilotMomentsState:
        return PilotMomentsState(zero_moments(params, moment_dtype), zero_moments(params, moment_dtype))

    def move(
        g: jax.Array, gate: jax.Array, step: jax.Array, m: jax.Array, v: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del step
        dtype = g.dtype
        g = g * gate
        m = m + (1.0 - hyperparameter(b1, dtype)) * (g - m)
        return m, hyperparameter(b2, dtype) * v + (1.0 - hyperparameter(b2, dtype)) * (g * g)

    def turn(step: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        dtype = m.dtype
        first, second = (correction(rate, step, dtype) for rate in (b1, b2))
        u: jax.Array = (m / first) / (jnp.sqrt(v / second) + hyperparameter(eps, dtype))
        return u

    return Direction(init, move, turn, (False, True), moment_dtype is not None)


def turn_by_factors(
    owner: str, b1: Any, b2: Any, eps: Any, moment_dtype: Any, shard_axis_name: AxisName = None
) -> Direction:
    r"""Returns the momentum of Adafactor's direction.

    .. math::
        R &\leftarrow b_2 R + (1-b_2) \operatorname{mean}_{\text{all but first}} g^2, \quad
            C \leftarrow b_2 C + (1-b_2) \operatorname{mean}_{\text{first}} g^2, \quad
            v = \frac{R\,C}{\operatorname{mean} R} \\
        u &= \frac{g}{\sqrt{v / (1 - b_2^t)} + \epsilon}, \qquad
            m \leftarrow m + (1-b_1)\Bigl(\frac{u}{\max(1, \mathrm{RMS}(u))} - m\Bigr)

    The direction is :math:`m / (1 - b_1^t)`. The means have 1e-30 added. With 0 or 1 dimensions v is the
    running average of g^2.

    Args:
        owner: the name of the optimizer.
        b1: decay rate of the momentum, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.
        moment_dtype: the floating-point dtype of the moments; `None` for the parameters' dtype, float32 at
            least.
        shard_axis_name: the mapped axes over which the parameters are split along their first axis.
    """
    moment_dtype = _checked(owner, b1, b2, eps, moment_dtype)

    def whole(mean: jax.Array) -> jax.Array:
        if shard_axis_name is None:
            return mean
        (own,) = split_axes([mean], shard_axis_name)  # A parameter may be split over some of the axes.
        found: jax.Array = jax.lax.pmean(mean, own) if own else mean
        return found

    def init(params: optax.Params) -> PilotFactorsState:
        def without_vectors(row: jax.Array) -> jax.Array:
            return jnp.sum(row, keepdims=True) if row.ndim < 2 else row

        row, column = init_factors(params, moment_dtype)
        momentum = zero_moments(params, moment_dtype)
        return PilotFactorsState(momentum, jax.tree.map(without_vectors, row), column)

    def move(
        g: jax.Array, gate: jax.Array, step: jax.Array, m: jax.Array, row: jax.Array, column: jax.Array
    ) -> tuple[jax.Array, ...]:
        dtype = g.dtype
        if g.size == 0:  # A mean over nothing is NaN: an empty tensor's factors rest.
            return m, row, column
        least, corrected = hyperparameter(eps, dtype), correction(b2, step, dtype)
        if g.ndim < 2:
            gated = g * gate
            column = average(gated * gated, column, b2)
            u = gated / (jnp.sqrt(column / corrected) + least)
            size = whole(jnp.mean(u * u))
        else:
            # The means of the gradient as it is given: XLA on a CPU would store the gated gradient first.
            rows, columns = row_and_column_means(g, 0.0)
            columns = whole(columns)
            # Twice by the gate, whose square can be below all numbers.
            row = average(gate * (gate * rows.reshape(row.shape)) + LEAST_SQUARE, row, b2)
            column = average(gate * (gate * columns.reshape(column.shape)) + LEAST_SQUARE, column, b2)
            # Divided first: the product of two small factors would be 0.
            by_row, by_column = jnp.sqrt(row / whole(jnp.mean(row)) / corrected), jnp.sqrt(column)

            def update(g: jax.Array, by_row: jax.Array, by_column: jax.Array) -> jax.Array:
                updated: jax.Array = g * gate / (by_row * by_column + least)
                return updated

            u = update(g, by_row, by_column)
            size = whole(mean_square_by_rows(update, g, by_row, by_column))
        u = u / jnp.maximum(jnp.sqrt(size), 1.0)
        return m + (1.0 - hyperparameter(b1, dtype)) * (u - m), row, column

    def turn(step: jax.Array, m: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        del row, column
        u: jax.Array = m / correction(b1, step, m.dtype)
        return u

    return Direction(init, move, turn, (False, True, True), moment_dtype is not None)


def _checked(owner: str, b1: Any, b2: Any, eps: Any, moment_dtype: Any) -> Any:
    """Returns the dtype of the moments; raises an error for a number that is out of its range."""
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    check_not_negative("eps", eps)
    return check_moment_dtype(moment_dtype, owner)


def correction(rate: Any, step: jax.Array, dtype: Any) -> jax.Array:
    r"""Returns :math:`1 - b^t`, whose direct form loses 5 digits of float32 where b is near 1."""
    if is_number(rate):
        exponent = jnp.asarray(math.inf if rate == 0 else -math.log(rate), dtype)
    else:
        exponent = -jnp.log(jnp.asarray(rate, dtype))
    return -jnp.expm1(-exponent * step.astype(dtype))
