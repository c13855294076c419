"""A scale-free emotion: the loss against its trend, in units of the noise of the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

QUIET_STEPS = 5
"""For so many steps the scalar stays 0: the averages know too little of the loss."""


class RelativeEmotionState(NamedTuple):
    """The statistics of the losses of the scale-free emotion; every field has the shape `[]`.

    Attributes:
        previous: the loss of the last step, in the unit of the loss.
        short: the short average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        square: the average of half the squared differences between the losses of neighbouring steps.
        weight: the sum of the weights in `square`, in [0, 1).
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is above its trend.
    """

    previous: jax.Array
    short: jax.Array
    long: jax.Array
    square: jax.Array
    weight: jax.Array
    scalar: jax.Array


def root(value: jax.Array) -> jax.Array:
    """Returns the square root of a number >= 0; its derivative at 0 is 0, so that gradients stay finite."""
    is_positive = value > 0.0
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, value, 1.0)), value)


def quotient(value: jax.Array, size: jax.Array) -> jax.Array:
    """Returns a quotient, or 0 where the size is 0; its derivative there is 0, too."""
    is_zero = size == 0.0
    return jnp.where(is_zero, jnp.zeros_like(value), value / jnp.where(is_zero, 1.0, size))


def init_relative_emotion(dtype: jax.typing.DTypeLike) -> RelativeEmotionState:
    """Returns the emotion before any loss.

    Args:
        dtype: the floating-point dtype of every field.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.init_relative_emotion(jnp.float32).scalar)
        0.0
    """
    return RelativeEmotionState(*(jnp.zeros([], dtype) for _ in RelativeEmotionState._fields))


def feel_relative(state: RelativeEmotionState, loss: jax.Array, step: jax.Array) -> RelativeEmotionState:
    r"""Updates the state with the loss of one step.

    .. math::
        d &= \min(|L - L_{prev}|,\, 4\,\sigma), \quad L' = \min(L,\, short + 8\,\sigma)
            \quad\text{(both limits for } t > 5) \\
        short &\leftarrow short + 0.3\,(L' - short) \\
        long &\leftarrow long + \max(0.05,\, \tfrac{1}{t+1})\,(L' - long) \\
        q &\leftarrow 0.95\,q + 0.05\,d^2/2, \quad c \leftarrow 0.95\,c + 0.05, \quad \sigma = \sqrt{q/c} \\
        s &= \tanh\frac{short - long}{2\,\sigma} \quad\text{for } t > 5, \text{ else } 0

    The noise :math:`\sigma` comes from differences between neighbouring steps, so that a trend does not
    inflate it. A loss in another unit gives the same scalar, up to rounding.

    Args:
        state: the emotion before this step.
        loss: the loss of this step; finite, shape `[]`, in the dtype of the state.
        step: the number of this step, counted from 1, an integer array of shape `[]`.

    Returns:
        The emotion after this step.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> for unit in (1.0, 1000.0):
        ...     emotion = emo_optax.init_relative_emotion(jnp.float32)
        ...     for step, loss in enumerate((5.0, 4.0, 4.5, 3.0, 3.5, 2.0, 2.5)):
        ...         emotion = emo_optax.feel_relative(
        ...             emotion, jnp.float32(unit * loss), jnp.int32(step + 1)
        ...         )
        ...     print(f"{emotion.scalar:.3f}")
        -0.404
        -0.404

    Source: ours (EmoPilot), after the averages of EmoSens by muooon.
    """
    dtype = state.scalar.dtype
    tiny = jnp.finfo(dtype).tiny  # type: ignore[no-untyped-call]
    t = step.astype(dtype)
    is_first, is_late = step == 1, step > QUIET_STEPS
    previous, short, long = (
        jnp.where(is_first, loss, old) for old in (state.previous, state.short, state.long)
    )
    noise = root(state.square / jnp.maximum(state.weight, tiny))
    difference = jnp.abs(loss - previous)
    difference = jnp.where(is_late, jnp.minimum(difference, 4.0 * noise), difference)
    limited = jnp.where(is_late, jnp.minimum(loss, short + 8.0 * noise), loss)
    short = short + 0.3 * (limited - short)
    long = long + jnp.maximum(0.05, 1.0 / (t + 1.0)) * (limited - long)
    square = 0.95 * state.square + 0.025 * difference * difference
    # An infinite average would never fall again.
    square = jnp.minimum(square, jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]
    weight = 0.95 * state.weight + 0.05
    # Where the loss never changes, rounding alone must not look like a trend.
    unit = 2.0 * root(square / weight) + 1e-7 * jnp.abs(long) + tiny
    scalar = jnp.where(is_late, jnp.tanh((short - long) / unit), jnp.zeros([], dtype))
    return RelativeEmotionState(loss, short, long, square, weight, scalar)
