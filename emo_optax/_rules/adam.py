"""Adam's moments without bias correction."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import check_decay_rate, check_moment_dtype, check_not_negative
from emo_optax._rules.moments import average, map_leaves, step_and_store, widened, zero_moments


class ScaleByUncorrectedAdamState(NamedTuple):
    """The moments: `mu` of the gradients, `nu` of their squares, trees like the parameters.

    Attributes:
        mu: the running averages of the gradients.
        nu: the running averages of their squares.
    """

    mu: optax.Updates
    nu: optax.Updates


def scale_by_uncorrected_adam(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Rescales by Adam's moments without bias correction, the rule of EmoSens.

    .. math::
        m \leftarrow b_1 m + (1-b_1)\,g, \quad v \leftarrow b_2 v + (1-b_2)\,g^2, \quad
        u = \frac{m}{\sqrt{v} + \epsilon}

    Without the correction the first steps are large: 3.2 times the learning rate at the first, up
    to 6.6 times near the twelfth, under a constant gradient. (`optax.scale_by_adam` corrects.)

    Args:
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: the number added to the root, >= 0.
        moment_dtype: the moments' floating-point dtype; `None` for the parameters' dtype, float32 at least;
            "8bit" for codes of 8 bits (see `docs/low_precision.md`).

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_uncorrected_adam()
        >>> updates, state = rule.update(jnp.asarray([2.0]), rule.init(jnp.ones(1)))
        >>> print(f"{updates[0]:.3f}")
        3.162

    Source: EmoSens v2.0 by muooon; Kingma and Ba, 2014.
    """
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    check_not_negative("eps", eps)
    moment_dtype = check_moment_dtype(moment_dtype, "scale_by_uncorrected_adam", may_be_8bit=True)

    def adam(g: jax.Array, m: jax.Array, v: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        m = average(g, m, b1, is_chosen)
        v = average(jnp.square(g), v, b2, is_chosen)
        return m / (jnp.sqrt(v) + jnp.asarray(eps, v.dtype)), m, v

    rescale = map_leaves(adam, 3, b1, b2, eps)

    def init_fn(params: optax.Params) -> ScaleByUncorrectedAdamState:
        return ScaleByUncorrectedAdamState(
            zero_moments(params, moment_dtype), zero_moments(params, moment_dtype, is_square=True)
        )

    def update_fn(
        updates: optax.Updates,
        state: ScaleByUncorrectedAdamState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByUncorrectedAdamState]:
        del params, extra_args
        state = with_arrays(state, init_fn, updates)
        step = functools.partial(rescale, is_chosen=is_chosen)
        updates, moved = step_and_store(step, widened(updates), (state.mu, state.nu), (False, True))
        return updates, ScaleByUncorrectedAdamState(*moved)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
