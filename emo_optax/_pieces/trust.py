"""The emotion since v3: three averages, a relative scalar, its trust, and the shadow that trust moves.

EmoNavi, EmoFact and EmoLynx v3.6.1 and the third generation share these pieces.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import check_kind
from emo_optax._checks.validation import check_params, takes_extra_args
from emo_optax._pieces.emotion import real_dtype, wide_dtype
from emo_optax._pieces.shadow_system import BlendWithShadowState

FLOOR = 1e-5
"""The least base of the relative difference of the averages, in the unit of the loss."""


class Averages(NamedTuple):
    """Three exponential averages of the loss, arrays of shape `[]`."""

    short: jax.Array
    medium: jax.Array
    long: jax.Array


_FACTORS = (0.3, 0.05, 0.01)


def move_averages(
    before: Averages,
    loss: jax.Array,
    felt: jax.Array,
    held: jax.Array,
    most: jax.Array | None = None,
) -> tuple[Averages, jax.Array, jax.Array]:
    r"""Moves the three averages by one loss and counts that loss.

    .. math::
        short \leftarrow 0.3\,L + 0.7\,short, \quad medium \leftarrow 0.05\,L + 0.95\,medium, \quad
        long \leftarrow 0.01\,L + 0.99\,long

    All averages start at the first finite loss. A loss that is not finite, or that would make an average
    infinite, changes only the count of held losses.

    Args:
        before: the averages before this step, shape `[]`.
        loss: the loss of this step, shape `[]`, in the dtype of the averages.
        felt: how many losses were felt before, shape `[]`, integer.
        held: how many losses were held before, shape `[]`, integer.
        most: the most that a finite loss counts, shape `[]`; `None` for no limit.

    Returns:
        The averages, and both counts, after this step.
    """
    is_first = felt == 0
    is_finite = jnp.isfinite(loss)
    loss = jnp.where(is_finite, loss, jnp.zeros([], loss.dtype))
    if most is not None:
        loss = jnp.minimum(loss, most)
    # In this form a constant loss leaves the averages alone to the last bit.
    moved = [
        jnp.where(is_first, loss, old + factor * (loss - old))
        for old, factor in zip(before, _FACTORS, strict=True)
    ]
    is_felt = is_finite
    for average in moved:
        is_felt = is_felt & jnp.isfinite(average)
    averages = Averages(*(jnp.where(is_felt, new, old) for new, old in zip(moved, before, strict=True)))
    return (
        averages,
        jnp.where(is_felt, optax.safe_increment(felt), felt),
        jnp.where(is_felt, held, optax.safe_increment(held)),
    )


def relative_scalar(averages: Averages, base: jax.Array) -> jax.Array:
    r"""Returns the scalar :math:`s = \tanh((long - short) / base)`; above 0 the loss is below its trend."""
    return jnp.tanh((averages.long - averages.short) / base)


def trust_of(scalar: jax.Array) -> jax.Array:
    r"""Returns the trust, :math:`1 - |s|` with the sign of `s`.

    Args:
        scalar: the emotion scalar s, in [-1, 1], any shape.

    Returns:
        The trust, in [-1, 1], same shape and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import trust_of
        >>> print(trust_of(jnp.asarray([0.0, 0.25, -0.75])))
        [ 1.    0.75 -0.25]

    Source: EmoNavi v3.6.1 and EmoSens v3.9.1 by muooon.
    """
    return jnp.copysign(1.0 - jnp.abs(scalar), scalar)


def blend_by_trust(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Pulls the parameters to their shadow before `inner` moves them, by the rule of v3.6.1 and v3.9.1.

    .. math::
        p &\leftarrow |s|\,p + |trust|\,shadow & \text{where } |s| > 0.625 \\
        shadow &\leftarrow shadow + 0.1\,|trust|\,(p - shadow) & \text{else}

    The shadow is a copy of the parameters of the first step. The published bound :math:`|s| < 1` of v3.6.1
    changes nothing: with :math:`|s| = 1` the trust is 0, and both lines leave all values as they are.

    Args:
        inner: the transformation that moves the blended parameters.

    Returns:
        A transformation that takes the extra argument `emotion` or `pulse`, and needs `params`. It passes
        the unchanged `params` on as the extra argument `unblended`.
    """
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> BlendWithShadowState:
        return BlendWithShadowState(
            ratio=jnp.zeros([], wide_dtype(params)),
            exists=jnp.zeros([], jnp.bool_),
            shadow=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=real_dtype(p)), params),
            inner_state=inner.init(params),
        )

    def update_fn(
        updates: optax.Updates,
        state: BlendWithShadowState,
        params: optax.Params | None = None,
        *,
        emotion: Any = None,
        pulse: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, BlendWithShadowState]:
        check_params(params)
        check_kind("exists", state.exists, jnp.bool_, ())
        check_kind("ratio", state.ratio, jnp.floating, ())
        scalar = (emotion if pulse is None else pulse).scalar
        trust = 1.0 - jnp.abs(scalar)
        is_far, zero = jnp.abs(scalar) > 0.625, jnp.zeros([], scalar.dtype)
        ratio = jnp.where(is_far & state.exists, trust, zero)
        rate = jnp.where(is_far, zero, 0.1 * trust)

        def follow(param: jax.Array, shadow: jax.Array) -> jax.Array:
            check_kind("shadow", shadow, jnp.floating, param.shape)
            wide = param.astype(shadow.dtype)
            return jnp.where(state.exists, shadow + rate.astype(wide.dtype) * (wide - shadow), wide)

        def blend(param: jax.Array, shadow: jax.Array) -> jax.Array:
            share = ratio.astype(shadow.dtype)
            return (1.0 - share) * param.astype(shadow.dtype) + share * shadow

        # Where the shadow pulls it does not move: the blend may read the new shadow, which spares a copy.
        shadow = jax.tree.map(follow, params, state.shadow)
        blended = jax.tree.map(blend, params, shadow)
        inner_params = jax.tree.map(lambda b, p: b.astype(p.dtype), blended, params)
        extra_args = {"unblended": params, **extra_args, "emotion": emotion, "pulse": pulse}
        updates, inner_state = inner.update(updates, state.inner_state, inner_params, **extra_args)

        def carry(update: jax.Array, moved: jax.Array, param: jax.Array) -> jax.Array:
            return update.astype(moved.dtype) + (moved - param.astype(moved.dtype))

        updates = jax.tree.map(carry, updates, blended, params)
        exists = jnp.ones_like(state.exists)
        return updates, BlendWithShadowState(ratio.astype(state.ratio.dtype), exists, shadow, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
