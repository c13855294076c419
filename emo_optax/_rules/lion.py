"""The sign of an interpolated momentum."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import check_class, with_arrays
from emo_optax._checks.validation import check_decay_rate, check_moment_dtype
from emo_optax._rules.moments import average, interpolate, map_leaves, step_and_store, widened, zero_moments


class ScaleByLionState(NamedTuple):
    """The momentum `mu`, a tree like the parameters.

    Attributes:
        mu: the running averages of the gradients.
    """

    mu: optax.Updates


def scale_by_lion(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    *,
    moment_dtype: Any | None = None,
) -> optax.GradientTransformation:
    r"""Takes the sign of an interpolated momentum, the rule of EmoCats.

    .. math:: u = \operatorname{sign}((1-b_1)\,g + b_1 m), \quad m \leftarrow b_2 m + (1-b_2)\,g

    As `optax.scale_by_lion`, but each leaf's momentum has its own dtype, float32 at least: a
    bfloat16 momentum stops decaying.

    Args:
        b1: decay rate of the interpolation, in [0, 1).
        b2: decay rate of the momentum, in [0, 1).
        moment_dtype: the momentum's floating-point dtype; `None` for the parameters' dtype, float32 at
            least; "8bit" for codes of 8 bits (see `docs/low_precision.md`).

    Returns:
        A transformation whose updates have the gradients' dtype, float32 at least.

    Raises:
        ValueError: for a hyperparameter out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> rule = emo_optax.scale_by_lion()
        >>> updates, state = rule.update(jnp.asarray([2.0, 0.0, -3.0]), rule.init(jnp.ones(3)))
        >>> print(updates)
        [ 1.  0. -1.]

    Source: EmoCats v2.0 by muooon; Chen et al., 2023.
    """
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    moment_dtype = check_moment_dtype(moment_dtype, "scale_by_lion", may_be_8bit=True)

    def lion(g: jax.Array, m: jax.Array, is_chosen: jax.Array | None) -> tuple[Any, ...]:
        moved = average(g, m, b2, is_chosen)
        return jnp.sign(interpolate(g, m, moved, b1, b2)), moved

    take_sign = map_leaves(lion, 2, b1, b2)

    def init_fn(params: optax.Params) -> ScaleByLionState:
        return ScaleByLionState(zero_moments(params, moment_dtype))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByLionState,
        params: optax.Params | None = None,
        *,
        is_chosen: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLionState]:
        del params, extra_args
        check_class(state, ScaleByLionState)
        state = with_arrays(state, init_fn, updates)
        step = functools.partial(take_sign, is_chosen=is_chosen)
        updates, moved = step_and_store(step, widened(updates), (state.mu,))
        return updates, ScaleByLionState(*moved)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
