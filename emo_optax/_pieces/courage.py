"""Courage: a factor on the step that grows while steps agree with new gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emo_optax._checks.validation import hyperparameter
from emo_optax._pieces.relative_emotion import QUIET_STEPS, quotient, root

USUAL_STEP = 0.008
"""The step to which the warm-up brings a smaller learning rate: the largest of `step_ceiling`."""


class CourageState(NamedTuple):
    """Courage, and the size of the agreements so far; every field has the shape `[]`.

    Attributes:
        agreement: the cosine a of the last gradient and the direction before it, in [-1, 1]; the direction
            is the first moments of EmoPilot, or the last change by the optimizer in `autopilot`.
        agreement_square: the average of its square.
        courage: the factor k on the step, > 0.
    """

    agreement: jax.Array
    agreement_square: jax.Array
    courage: jax.Array


def init_courage(dtype: jax.typing.DTypeLike) -> CourageState:
    """Returns the courage before any step: 1.

    Args:
        dtype: the floating-point dtype of every field.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.init_courage(jnp.float32).courage)
        1.0
    """
    # An array for each field: a buffer that occurs twice in a state cannot be donated.
    return CourageState(jnp.zeros([], dtype), jnp.zeros([], dtype), jnp.ones([], dtype))


def move_courage(
    state: CourageState,
    agreement: jax.Array,
    scalar: jax.Array,
    step: jax.Array,
    min_courage: jax.typing.ArrayLike = 0.03,
    max_courage: jax.typing.ArrayLike = 1000.0,
    learning_rate: jax.typing.ArrayLike = 0.0,
) -> CourageState:
    r"""Moves the courage by the agreement of the step before and by the emotion of this step.

    .. math::
        a_2 &\leftarrow a_2 + 0.05\,(a^2 - a_2), \qquad z = \tanh(a / \sqrt{a_2}) \\
        rise &= \max(0,\, 2s - 1), \qquad fall = \max(0,\, -2s - 1) \\
        k &\leftarrow k\,\exp(-0.2\,rise) \quad\text{where } s > 0.5 \\
        k &\leftarrow k\,\exp\bigl(0.05\,(1 + \tfrac{40}{t+10})\,(z + 0.4\,fall)\bigr) \quad\text{else}

    The warm-up is added to the exponent of the second case (see `warm_up`). The courage moves from the 6th
    step on, and stays between its bounds. The average :math:`a_2` starts at 0, so that z is near -1 or 1 in
    the first steps. The emotion adds to the growth only while the loss falls, so that noise alone does not
    increase it.

    Args:
        state: the courage before this step.
        agreement: a, the agreement of the step before, in [-1, 1], shape `[]` (see `CourageState`).
        scalar: s, the scale-free emotion scalar, in [-1, 1], shape `[]` (see `feel_relative`).
        step: t, the number of this step, counted from 1, an integer array of shape `[]`. The first two
            steps have no agreement of the step before: `agreement` is 0.
        min_courage: the least courage, > 0.
        max_courage: the largest courage, >= `min_courage`; with 1 the learning rate never grows.
        learning_rate: eta, for the warm-up, >= 0; at 0 there is none.

    Returns:
        The courage after this step.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> courage = emo_optax.init_courage(jnp.float32)
        >>> for step in range(1, 31):
        ...     courage = emo_optax.move_courage(courage, jnp.float32(0.3), jnp.float32(0), jnp.int32(step))
        >>> print(f"{courage.courage:.1f}")
        16.1

    Source: ours (EmoPilot), after hypergradient descent (Baydin et al., 2018).
    """
    dtype = state.courage.dtype
    t = step.astype(dtype)
    square = agreement * agreement
    moved = state.agreement_square + 0.05 * (square - state.agreement_square)
    z = jnp.tanh(quotient(agreement, root(moved)))
    rise = jnp.maximum(0.0, 2.0 * scalar - 1.0)
    fall = jnp.maximum(0.0, -2.0 * scalar - 1.0)
    growth = 0.05 * (1.0 + 40.0 / (t + 10.0)) * (z + 0.4 * fall)
    growth = growth + warm_up(state.courage, learning_rate, step)
    exponent = jnp.where(scalar > 0.5, -0.2 * rise, growth)
    least, most = (hyperparameter(bound, dtype) for bound in (min_courage, max_courage))
    courage = jnp.clip(state.courage * jnp.exp(exponent), least, most)
    return CourageState(agreement, moved, jnp.where(step > QUIET_STEPS, courage, state.courage))


def warm_up(courage: jax.Array, learning_rate: jax.typing.ArrayLike, step: jax.Array) -> jax.Array:
    r"""Returns the growth that brings a small learning rate to the usual step within about 20 steps.

    .. math:: \frac{6}{t+20}\,\max\bigl(0,\, \log\tfrac{0.008}{k\,\eta}\bigr)

    Each step closes a share of the distance in the logarithm, and the share fades, so the warm-up has no
    effect in a long run.

    Args:
        courage: k, the courage before this step, > 0, shape `[]`.
        learning_rate: eta, >= 0, a number or shape `[]`; at 0 there is no warm-up.
        step: t, the number of this step, counted from 1, an integer array of shape `[]`.

    Returns:
        The number to add to the logarithm of the courage, >= 0, shape `[]`.

    Source: ours (EmoPilot).
    """
    length = courage * hyperparameter(learning_rate, courage.dtype)
    # For a step of 0 the distance of a step of 1 is taken, which is below 0: no warm-up.
    distance = jnp.log(USUAL_STEP / jnp.where(length > 0.0, length, jnp.ones_like(length)))
    return 6.0 / (step.astype(courage.dtype) + 20.0) * jnp.maximum(0.0, distance)
