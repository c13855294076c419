"""The signal that training has gone quiet. It stops nothing by itself."""

import jax
import jax.numpy as jnp

from emo_optax._checks.validation import check_precisions

WINDOW = 32
"""The number of the last scalars, one a step, that the signal reads."""


def went_quiet(
    history: jax.Array,
    felt: jax.Array,
    *,
    mean_below: jax.typing.ArrayLike = 0.05,
    variance_below: jax.typing.ArrayLike = 0.005,
) -> jax.Array:
    r"""Returns whether the emotion has been close to 0, and steady, over the last 32 losses.

    .. math::
        \frac{1}{32} \sum_i |s_i| < 0.05 \quad\text{and}\quad
        \frac{1}{32} \sum_i (s_i - \bar{s})^2 < 0.005

    Args:
        history: the last 32 scalars, oldest first; shape `[32]`, floating point, each in [-1, 1].
        felt: how many losses have been felt; shape `[]`, integer. Below 32 the result is false.
        mean_below: the bound on the mean of the absolute scalars, in (0, 1].
        variance_below: the bound on their variance (over 32, not 31), in (0, 1].

    Returns:
        A boolean of shape `[]`.

    Raises:
        TypeError: for a number in a dtype of less than 32 bits, which is too coarse for it.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import went_quiet
        >>> print(went_quiet(jnp.full(32, 0.01), jnp.asarray(32)))
        True
        >>> print(went_quiet(jnp.full(32, 0.01), jnp.asarray(31)))
        False

    Source: the early-stop notice of EmoNavi and EmoSens v2.0, with a window of 32 steps; the
    published code appends once per parameter tensor.
    """
    check_precisions(mean_below=mean_below, variance_below=variance_below)
    return quiet(history, felt, mean_below=mean_below, variance_below=variance_below)


def quiet(
    history: jax.Array,
    felt: jax.Array,
    *,
    mean_below: jax.typing.ArrayLike = 0.05,
    variance_below: jax.typing.ArrayLike = 0.005,
) -> jax.Array:
    """As `went_quiet`, for bounds that are checked."""
    mean = jnp.mean(jnp.abs(history))
    variance = jnp.mean(jnp.square(history - jnp.mean(history)))
    return (felt >= WINDOW) & (mean < mean_below) & (variance < variance_below)
