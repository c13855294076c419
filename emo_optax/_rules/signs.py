"""Softened and cautious signs of a momentum."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import check_class, with_arrays
from emo_optax._checks.validation import check_decay_rate, check_moment_dtype, check_not_negative
from emo_optax._rules.moments import average, interpolate, map_leaves, step_and_store, widened, zero_moments


class ScaleByMomentumState(NamedTuple):
    """The momentum `mu`, a tree like the parameters; `()` where there is none.

    Attributes:
        mu: the running averages of the gradients.
    """

    mu: optax.Updates


def _scale_by_momentum(
    direction: Callable[[jax.Array, jax.Array], jax.Array],
    b1: jax.typing.ArrayLike,
    b2: jax.typing.ArrayLike | None,
    moment_dtype: Any | None,
    *others: Any,
) -> optax.GradientTransformation:
    """Takes a direction from the interpolated momentum, the gradient and `others`; moves the momentum."""
    check_decay_rate("b1", b1)
    if b2 is not None:
        check_decay_rate("b2", b2)
    moment_dtype = check_moment_dtype(moment_dtype, "this rule", may_be_8bit=True)

    def at_rest(g: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        del is_chosen
        return (direction(average(g, jnp.zeros_like(g), b1), g),)

    def moving(g: jax.Array, m: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        moved = average(g, m, b2, is_chosen)
        return direction(interpolate(g, m, moved, b1, b2), g), moved

    direct = map_leaves(at_rest, 1, b1, *others) if b2 is None else map_leaves(moving, 2, b1, b2, *others)

    def init_fn(params: optax.Params) -> ScaleByMomentumState:
        return ScaleByMomentumState(() if b2 is None else zero_moments(params, moment_dtype))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByMomentumState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByMomentumState]:
        del params, extra_args
        check_class(state, ScaleByMomentumState)
        state = with_arrays(state, init_fn, updates)
        gradients = widened(updates)
        if b2 is None:
            return direct(gradients)[0], state
        step = functools.partial(direct, is_chosen=is_chosen)
        updates, moved = step_and_store(step, gradients, (state.mu,))
        return updates, ScaleByMomentumState(*moved)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_cautious_sign(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike | None = 0.99,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Takes the sign of an interpolated momentum where the gradient has the same sign, a rule of EmoNeco.

    .. math::
        w = (1-b_1)\,g + b_1 m, \quad
        u = \operatorname{sign}(w)\,[\,\operatorname{sign}(w) = \operatorname{sign}(g)\,], \quad
        m \leftarrow b_2 m + (1-b_2)\,g

    Args:
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1); `None` keeps no momentum: m stays 0.
        moment_dtype: the momentum's floating-point dtype; `None` for the parameters' dtype, float32 at
            least; "8bit" for codes of 8 bits (see `docs/low_precision.md`).

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_cautious_sign()
        >>> state = rule.init(jnp.ones(2))
        >>> for gradient in (jnp.asarray([9.0, 9.0]), jnp.asarray([0.1, -0.1])):
        ...     updates, state = rule.update(gradient, state)
        >>> print(updates)
        [1. 0.]

    Source: EmoNeco v2.0 by muooon; Liang et al., 2024, for the caution.
    """

    def direction(mixed: jax.Array, gradient: jax.Array) -> jax.Array:
        sign = jnp.sign(mixed)
        return jnp.where(sign == jnp.sign(gradient), sign, jnp.zeros([], sign.dtype))

    return _scale_by_momentum(direction, b1, b2, moment_dtype)


def scale_by_softsign(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike | None = 0.99,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Softens an interpolated momentum and gives it the gradient's length, a rule of EmoNeco.

    .. math::
        w = (1-b_1)\,g + b_1 m, \quad
        u = \frac{w}{1 + |w|}\,(\lVert g \rVert_2 + \epsilon), \quad
        m \leftarrow b_2 m + (1-b_2)\,g

    The norm is taken over each whole parameter, so the step grows with the parameter's size.

    Args:
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1); `None` keeps no momentum: m stays 0.
        eps: the number added to the norm, >= 0.
        moment_dtype: the momentum's floating-point dtype; `None` for the parameters' dtype, float32 at
            least; "8bit" for codes of 8 bits (see `docs/low_precision.md`).

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_softsign()
        >>> updates, state = rule.update(jnp.asarray([30.0, -40.0]), rule.init(jnp.ones(2)))
        >>> print(updates.round(3))
        [ 37.5 -40. ]

    Source: EmoNeco v2.0 by muooon.
    """
    check_not_negative("eps", eps)

    def direction(mixed: jax.Array, gradient: jax.Array) -> jax.Array:
        length = jnp.sqrt(jnp.sum(jnp.square(gradient))) + jnp.asarray(eps, gradient.dtype)
        return mixed / (1.0 + jnp.abs(mixed)) * length

    return _scale_by_momentum(direction, b1, b2, moment_dtype, eps)
