"""A ceiling on the step of a parameter, from the size of its elements."""

import jax
import jax.numpy as jnp


def step_ceiling(mean_square: jax.Array) -> jax.Array:
    r"""Returns the largest step of a parameter whose direction has elements of about 1.

    .. math:: C = 0.08\,\min\bigl(0.1,\, \max(0.02,\, \mathrm{RMS}(p))\bigr)

    Args:
        mean_square: the mean of the squared elements of the parameter, >= 0, shape `[]`.

    Returns:
        The ceiling C, in [0.0016, 0.008], shape `[]`.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> for size in (0.0, 0.05, 1.0):
        ...     print(f"{emo_optax.step_ceiling(jnp.float32(size**2)):.4f}")
        0.0016
        0.0040
        0.0080

    Source: ours (EmoPilot), after Adafactor (Shazeer and Stern, 2018), LARS and LAMB (You et al.).
    """
    # The root of 0 has no derivative, and the limit of 0.02 is far above the root of 1e-8.
    return 0.08 * jnp.clip(jnp.sqrt(jnp.maximum(mean_square, 1e-8)), 0.02, 0.1)
