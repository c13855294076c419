"""Runaway detection: a number from the gradient's moments that detects a sudden one-sided change."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import first_node_of, with_arrays, with_new_arrays
from emo_optax._checks.validation import (
    check_bounds,
    check_not_negative,
    check_precision,
    hyperparameter,
    takes_extra_args,
)
from emo_optax._pieces.emotion import wide_dtype
from emo_optax._pieces.pilot import PilotState

Bounds = tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]
"""The least and the largest factor of a step."""


class Runaway(NamedTuple):
    """The numbers of the last gradient.

    Attributes:
        moments: the means of g, g^2, g^3 and g^4 over all elements of the gradient, shape `[4]`, in powers
            of the gradient's unit; not finite if the gradient is not finite.
        emotion: m3 / (m2 + eps) exp(-m4), shape `[]`; always finite.
        scale: the factor of a step, shape `[]`: 1 - emotion, within the bounds if there are any.
    """

    moments: jax.Array
    emotion: jax.Array
    scale: jax.Array


def gradient_moments(gradient: optax.Updates) -> jax.Array:
    r"""Returns the first four moments of a gradient, over all elements of all its tensors.

    .. math:: m_k = \operatorname{E}[g^k], \quad k = 1 \dots 4

    Args:
        gradient: a tree of real arrays of any shapes; none or empty ones are fine.

    Returns:
        The moments, shape `[4]`, in float32, or float64 where a tensor is; zeros without elements.

    Raises:
        ValueError: for a complex gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import gradient_moments
        >>> gradient = {"weight": jnp.asarray([1.0, 2.0]), "bias": jnp.asarray(0.0)}
        >>> print(gradient_moments(gradient).round(2))
        [1.   1.67 3.   5.67]

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    dtype = wide_dtype(gradient)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in leaves):
        raise ValueError(
            "Runaway detection does not support complex gradients: pass real and imaginary parts"
        )
    sums = jnp.zeros([4], dtype)
    for leaf in leaves:
        values = leaf.astype(dtype)
        squares = values * values
        powers = (values, squares, squares * values, squares * squares)
        sums = sums + jnp.stack([jnp.sum(power) for power in powers])
    return sums / max(sum(leaf.size for leaf in leaves), 1)


def runaway_emotion(moments: jax.Array, eps: jax.typing.ArrayLike = 1e-8) -> jax.Array:
    r"""Returns how much a gradient looks like a sudden, one-sided change.

    .. math:: \frac{m_3}{m_2 + \epsilon}\,\exp(-m_4)

    The number is large if most of the gradient has one sign; the exponential damps it for extreme peaks.
    The formula depends on the gradient's unit: it responds to gradients of a size of about 0.1 to 2.

    Args:
        moments: the first four moments, shape `[4]`.
        eps: the number added to the second moment, >= 0.

    Returns:
        The number, shape `[]`. Its absolute value is below 0.551 if all elements are equally large, and up
        to 0.551 f^(-1/4) if only a share f of the elements is not 0. The number is 0 for a gradient without
        elements, for zeros, for a gradient whose powers are too large for the dtype (then the exponential
        is 0), and for a gradient with a NaN.

    Raises:
        TypeError: for a number in a dtype of less than 32 bits, which is too coarse for it.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import gradient_moments, runaway_emotion
        >>> gradient = jnp.asarray([1.0, 1.0, 1.0, -0.5])
        >>> print(f"{runaway_emotion(gradient_moments(gradient)):.4f}")
        0.4114

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    check_precision("eps", eps)
    _, second, third, fourth = moments
    emotion = third / (second + hyperparameter(eps, moments.dtype)) * jnp.exp(-fourth)
    return jnp.where(jnp.isfinite(emotion), emotion, jnp.zeros([], moments.dtype))


class ScaleByRunawayState(NamedTuple):
    """The numbers of the last gradient, and the state of the inner optimizer.

    Attributes:
        runaway: the numbers of the last gradient.
        inner_state: the state of the inner transformation.
    """

    runaway: Runaway
    inner_state: optax.OptState


def scale_by_runaway(
    inner: optax.GradientTransformation | None = None,
    *,
    eps: jax.typing.ArrayLike = 1e-8,
    bounds: Bounds | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies each step by a factor that is below 1 if the gradient looks like a runaway.

    .. math:: u \leftarrow \left(1 - \frac{m_3}{m_2 + \epsilon}\,\exp(-m_4)\right) u

    The moments are computed over all leaves of the incoming gradient: one number for all leaves. Put a clip
    inside, or in front if the moments of the clipped gradient are wanted. The learning rate is part of
    `inner`: scaling the update scales the learning rate, also in weight decay. A gradient with a negative
    third moment makes steps longer.

    Args:
        inner: the optimizer whose steps are scaled; without it the gradient itself is scaled.
        eps: the number added to the second moment, >= 0.
        bounds: the least and the largest factor, the first below the second; `None` for no bounds. Without
            bounds the factor is between 0.449 and 1.551 if all elements are equally large. If most elements
            are 0, the factor can be negative and reverse the step (one element of 20 in a million: a factor
            of -16); `bounds=(0.0, 2.0)` prevents this.

    Returns:
        A transformation; `get_runaway` returns its `Runaway`.

    Raises:
        ValueError: for an option out of its range.
        TypeError: from `init`, for an inner optimizer that steers its steps already, as `emo_pilot`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.scale_by_runaway(optax.sgd(1.0))
        >>> params = jnp.zeros(2)
        >>> gradient = jnp.asarray([0.5, 0.5])
        >>> updates, state = optimizer.update(gradient, optimizer.init(params), params)
        >>> print(updates.round(4), f"{emo_optax.get_runaway(state).scale:.4f}")
        [-0.2651 -0.2651] 0.5303

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    check_not_negative("eps", eps)
    check_bounds("bounds", bounds)
    inner = takes_extra_args(optax.identity() if inner is None else inner)

    def init_fn(params: optax.Params) -> ScaleByRunawayState:
        dtype = wide_dtype(params)
        fresh = Runaway(jnp.zeros([4], dtype), jnp.zeros([], dtype), jnp.ones([], dtype))
        inner_state = inner.init(params)
        if first_node_of(inner_state, PilotState) is not None:
            raise TypeError(
                "EmoPilot and autopilot steer their steps already, and average the weights after their own "
                "steps; scale_by_runaway would make this average wrong. Use them without scale_by_runaway. "
                "To measure only, put track_runaway in front of them"
            )
        return ScaleByRunawayState(fresh, inner_state)

    def update_fn(
        updates: optax.Updates,
        state: ScaleByRunawayState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByRunawayState]:
        state = with_arrays(state, init_fn, updates if params is None else params)
        dtype = state.runaway.emotion.dtype
        moments = gradient_moments(updates).astype(dtype)
        emotion = runaway_emotion(moments, eps)
        scale = 1.0 - emotion
        if bounds is not None:
            scale = jnp.clip(scale, *(hyperparameter(bound, dtype) for bound in bounds))
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        updates = jax.tree.map(lambda update: update * scale.astype(update.dtype), updates)
        return updates, ScaleByRunawayState(Runaway(moments, emotion, scale), inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def track_runaway(
    *, eps: jax.typing.ArrayLike = 1e-8, bounds: Bounds | None = None
) -> optax.GradientTransformationExtraArgs:
    """Measures the gradient's moments, and does not change the updates.

    Put it in front of the optimizer, where the updates are still the gradient. See
    `scale_by_runaway` for the formula.

    Args:
        eps: the number added to the second moment, >= 0.
        bounds: the least and the largest factor that is shown, the first below the second; `None` for no
            bounds.

    Returns:
        A transformation for `optax.chain`; `get_runaway` returns its `Runaway`.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.chain(emo_optax.track_runaway(), optax.adam(1e-3))
        >>> params = jnp.zeros(2)
        >>> updates, state = optimizer.update(jnp.asarray([0.5, 0.5]), optimizer.init(params), params)
        >>> print(f"{emo_optax.get_runaway(state).emotion:.4f}")
        0.4697

    Source: the runaway detection of the Emo documents, an idea of muooon's.
    """
    monitor = scale_by_runaway(eps=eps, bounds=bounds)

    def update_fn(
        updates: optax.Updates,
        state: ScaleByRunawayState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByRunawayState]:
        _, state = monitor.update(updates, state, params, **extra_args)
        return updates, state

    return optax.GradientTransformationExtraArgs(monitor.init, update_fn)


def get_runaway(state: optax.OptState) -> Runaway:
    """Finds the numbers of the last gradient in any nested optimizer state, inside or outside of jit.

    Args:
        state: the state of an optimizer with `scale_by_runaway` or `track_runaway` in it.

    Returns:
        Its moments, emotion and scale; the values of the first one if there are several.

    Raises:
        ValueError: if the state holds none.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> monitor = emo_optax.track_runaway()
        >>> print(emo_optax.get_runaway(monitor.init(jnp.zeros(2))).scale)
        1.0
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Runaway))
    for leaf in leaves:
        if isinstance(leaf, Runaway):
            runaway: Runaway = with_new_arrays(leaf)
            return runaway
    raise ValueError(
        "There is no runaway detection in this state. Put emo_optax.track_runaway() in front of the "
        "optimizer in an optax.chain, or emo_optax.scale_by_runaway(...) around it."
    )
