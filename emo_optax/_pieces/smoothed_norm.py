"""The learning rate of one tensor, from the smoothed norm of its gradients."""

import jax
import jax.numpy as jnp

from emo_optax._checks.validation import check_precision, hyperparameter

NO_NORM = -1.0
"""The value of a smoothed norm before the first norm."""


def smooth_norm(
    before: jax.Array, norm: jax.Array, schedulefree_alpha: jax.typing.ArrayLike = 0.05
) -> jax.Array:
    r"""Averages the norm of a tensor's gradients.

    .. math:: e \leftarrow (1-A)\,e + A\,\lVert g \rVert_2

    Args:
        before: e, shape `[]`; below 0 where there was no norm yet, and then e starts at `norm`.
        norm: the norm of this step, shape `[]`, same dtype; where it is not finite, e stays.
        schedulefree_alpha: A, in (0, 1].

    Returns:
        The new e, shape `[]`.

    Raises:
        TypeError: for a number in a dtype of less than 32 bits, which is too coarse for it.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> e = emo_optax.smooth_norm(jnp.asarray(-1.0), jnp.asarray(2.0))
        >>> print(f"{emo_optax.smooth_norm(e, jnp.asarray(4.0)):.2f}")
        2.10

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    check_precision("schedulefree_alpha", schedulefree_alpha)
    share = hyperparameter(schedulefree_alpha, norm.dtype)
    smoothed = jnp.where(before < 0.0, norm, (1.0 - share) * before + share * norm)
    return jnp.where(jnp.isfinite(norm), smoothed, before)


def learning_rate_from_norm(
    learning_rate: jax.typing.ArrayLike,
    smoothed: jax.Array,
    norm: jax.Array,
    *,
    min_lr: jax.typing.ArrayLike = 1e-6,
    max_lr: jax.typing.ArrayLike = 1e-2,
) -> jax.Array:
    r"""Lengthens the steps where a gradient is smaller than usual, and shortens them where it is larger.

    .. math:: \eta' = \max(\min(\eta_{max}, \frac{\eta\,e}{\lVert g \rVert_2 + 10^{-12}}), \eta_{min})

    A gradient of zeros takes the largest learning rate, or the least one where all were zeros so far. A
    learning rate of 0 stays 0.

    Args:
        learning_rate: eta, >= 0.
        smoothed: e, shape `[]`; not float16, in which 1e-12 is 0.
        norm: the norm of this step's gradient, shape `[]`, same dtype.
        min_lr: the least learning rate, >= 0.
        max_lr: the largest learning rate of a tensor, >= `min_lr`.

    Returns:
        The learning rate of this tensor and step, shape `[]`.

    Raises:
        TypeError: for a number in a dtype of less than 32 bits, which is too coarse for it.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(f"{emo_optax.learning_rate_from_norm(1e-3, jnp.asarray(2.0), jnp.asarray(1.0)):.4f}")
        0.0020

    Source: RefAdamWMiniScheduleFree by muooon.
    """
    check_precision("learning_rate", learning_rate, may_be_schedule=True)
    check_precision("min_lr", min_lr)
    check_precision("max_lr", max_lr)
    rate = hyperparameter(learning_rate, norm.dtype) * smoothed / (norm + 1e-12)
    least, greatest = hyperparameter(min_lr, norm.dtype), hyperparameter(max_lr, norm.dtype)
    rate = jnp.maximum(jnp.minimum(greatest, rate), least)
    return jnp.where(hyperparameter(learning_rate, norm.dtype) > 0.0, rate, jnp.zeros([], norm.dtype))
