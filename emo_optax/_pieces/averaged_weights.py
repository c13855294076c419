"""Averaged weights: train on the parameters, evaluate and export their average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.validation import check_params, takes_extra_args
from emo_optax._pieces.emotion import wide_dtype


def average_rate(step: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    r"""Returns how far the average follows the parameters in one step.

    .. math:: \min\bigl(1,\, \tfrac{9}{t+8}\bigr)

    Args:
        step: t, the number of the step, counted from 1, an integer array of shape `[]`.
        dtype: the floating-point dtype of the result.

    Returns:
        The rate, in (0, 1], shape `[]`.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.average_rate(jnp.int32(1), jnp.float32))
        1.0

    Source: polynomial-decay averaging, Shamir and Zhang, 2013.
    """
    return jnp.minimum(1.0, 9.0 / (step.astype(dtype) + 8.0)).astype(dtype)


def move_average(average: optax.Params, params: optax.Params, rate: jax.Array) -> optax.Params:
    """Moves an average of parameters towards them; both trees stay in the dtype of the average."""
    return jax.tree.map(lambda a, p: a + rate.astype(a.dtype) * (p.astype(a.dtype) - a), average, params)


class AverageWeightsState(NamedTuple):
    """The average of the parameters, and the state of the optimizer whose steps are averaged.

    Attributes:
        step: steps so far, int32 of shape `[]`.
        average: the averaged parameters, a tree like the parameters, float32 at least.
        inner_state: the state of the optimizer.
    """

    step: jax.Array
    average: optax.Params
    inner_state: optax.OptState


def average_weights(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Keeps an average of the parameters beside any optimizer, with a window that grows with the run.

    .. math:: A \leftarrow A + \min\bigl(1,\, \tfrac{9}{t+8}\bigr)\,(p_{t+1} - A)

    The updates of `inner` do not change. `eval_params` finds the average in the state.

    Args:
        inner: the whole optimizer, learning rate included; the average does not include later
            transformations of a chain.

    Returns:
        A transformation whose `update` needs `params`.

    Raises:
        ValueError: from `update`, without `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.average_weights(optax.sgd(1.0))
        >>> params = jnp.asarray([0.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jnp.asarray([-1.0]), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params, emo_optax.eval_params(state, params).round(2))
        [3.] [2.8]

    Source: Shamir and Zhang, 2013.
    """
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> AverageWeightsState:
        return AverageWeightsState(jnp.zeros([], jnp.int32), init_average(params), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: AverageWeightsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AverageWeightsState]:
        check_params(params)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        step = optax.safe_increment(state.step)
        moved = jax.tree.map(
            lambda p, u, a: p.astype(a.dtype) + u.astype(a.dtype), params, updates, state.average
        )
        average = move_average(state.average, moved, average_rate(step, _rate_dtype(params)))
        return updates, AverageWeightsState(step, average, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def init_average(params: optax.Params) -> optax.Params:
    """Returns the average before any step: a copy of the parameters, float32 at least."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
        raise TypeError(
            "The average starts at the values of the parameters, and a jax.ShapeDtypeStruct has no values. "
            "For the shapes and dtypes of the state, call jax.eval_shape(optimizer.init, params)."
        )

    def start(p: Any) -> jax.Array:
        is_complex = jnp.issubdtype(jnp.result_type(p), jnp.complexfloating)
        return jnp.array(p, jnp.result_type(p) if is_complex else wide_dtype(p))

    return jax.tree.map(start, params)


def _rate_dtype(params: optax.Params) -> Any:
    """Returns the dtype of the rate: float64 if a leaf, or its real part, is float64, else float32."""
    wide = (jnp.float64, jnp.complex128)
    return jnp.float64 if any(jnp.result_type(p) in wide for p in jax.tree.leaves(params)) else jnp.float32
