"""A gate on the norm of the gradient: an extreme gradient is cut to the usual size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.validation import check_not_negative, hyperparameter
from emo_optax._pieces.emotion import real_dtype


def gate(
    norm: jax.Array, average: jax.Array, step: jax.Array, limit: jax.typing.ArrayLike = 2.5
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the factor for the gradient, and the new running average of its norm.

    .. math::
        f &= \min(1,\, limit\,N / n) \\
        N &\leftarrow N + \max(0.05,\, 1/t)\,(f\,n - N), \qquad N = n \text{ at } t = 1

    An average of 0 gates nothing: a run may begin with gradients of 0.

    Args:
        norm: n, the norm of the whole gradient; finite, >= 0, shape `[]`.
        average: N, the running average of norms, shape `[]`.
        step: t, the number of this step, counted from 1, an integer array of shape `[]`.
        limit: how many times the average a norm may be, > 0.

    Returns:
        The factor f in [0, 1] and the average after this step, each of shape `[]`.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> factor, average = emo_optax.gate(jnp.float32(100.0), jnp.float32(1.0), jnp.int32(10))
        >>> print(factor, average)
        0.025 1.15

    Source: ours (EmoPilot), after ZClip (arXiv 2504.02507) and AdaGC (arXiv 2502.11034).
    """
    dtype = norm.dtype
    most = hyperparameter(limit, dtype) * average
    is_cut = (norm > most) & (average > 0.0) & (step > 1)
    passed = jnp.where(is_cut, most, norm)
    factor = jnp.where(is_cut, most / norm, jnp.ones([], dtype))
    rate = jnp.maximum(0.05, 1.0 / step.astype(dtype))
    return factor, jnp.where(step == 1, norm, average + rate * (passed - average))


class GateByNormState(NamedTuple):
    """The state of the gate.

    Attributes:
        step: steps so far, int32 of shape `[]`.
        norm: the running average of the gradient's norm, shape `[]`.
    """

    step: jax.Array
    norm: jax.Array


def gate_by_norm(limit: jax.typing.ArrayLike = 2.5) -> optax.GradientTransformation:
    r"""Cuts a gradient whose norm is far above the running average of norms.

    .. math:: g \leftarrow g\,\min(1,\, limit\,N / \lVert g \rVert)

    See `gate` for the average N. A gradient that is not finite passes and changes no state: put
    `optax.apply_if_finite` around the optimizer where gradients may overflow.

    Args:
        limit: how many times the average a norm may be, > 0.

    Returns:
        A transformation; it needs no loss and no parameters.

    Raises:
        ValueError: for a limit of 0 or less.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> piece = emo_optax.gate_by_norm()
        >>> state = piece.init(jnp.ones(2))
        >>> for size in (1.0, 1.0, 100.0):
        ...     updates, state = piece.update(jnp.asarray([size, 0.0]), state)
        >>> print(updates)
        [2.5 0. ]

    Source: ours (EmoPilot).
    """
    check_not_negative("limit", limit)

    def init_fn(params: optax.Params) -> GateByNormState:
        return GateByNormState(jnp.zeros([], jnp.int32), jnp.zeros([], real_dtype(params)))

    def update_fn(
        updates: optax.Updates, state: GateByNormState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, GateByNormState]:
        del params, extra
        dtype = state.norm.dtype
        squares = (jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in jax.tree.leaves(updates))
        norm = jnp.sqrt(sum(squares, jnp.zeros([], dtype)))
        step = optax.safe_increment(state.step)
        factor, average = gate(norm, state.norm, step, limit)
        new = GateByNormState(step, average)
        is_finite = jnp.isfinite(norm)
        new = jax.tree.map(lambda after, before: jnp.where(is_finite, after, before), new, state)
        factor = jnp.where(is_finite, factor, jnp.ones([], dtype))
        return jax.tree.map(lambda g: (g.astype(dtype) * factor).astype(g.dtype), updates), new

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
