"""Shadow-system: pulls the weights back to a slow copy of themselves."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.states import check_kind, with_arrays
from emo_optax._checks.validation import check_factor, check_params, check_shadow_ratio, takes_extra_args
from emo_optax._pieces.emotion import EmotionState, real_dtype, shared_scalar, wide_dtype

ShadowRatio = Literal["v2.0", "v1.0"] | Callable[[jax.Array], jax.Array]
""" "v2.0", "v1.0", or a function of the scalar (shape `[]`) to a ratio in [0, 1]."""


def shadow_ratio_v2(scalar: jax.Array) -> jax.Array:
    r"""Returns the ratio of v2.0: :math:`|s|` where :math:`|s| > 0.1`, else 0.

    Args:
        scalar: the emotion scalar s in [-1, 1], a floating-point array of any shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import shadow_ratio_v2
        >>> print(shadow_ratio_v2(jnp.asarray([-0.5, 0.05, 0.75])))
        [0.5  0.   0.75]

    Source: EmoSens and EmoNavi v2.0 by muooon.
    """
    size = jnp.abs(scalar)
    return jnp.where(size > 0.1, size, jnp.zeros([], scalar.dtype))


def shadow_ratio_v1(scalar: jax.Array) -> jax.Array:
    r"""Returns the ratio of v1.0.

    .. math:: 0.7 + 0.2 s \;(s > 0.6), \quad 0.1 \;(s < -0.6), \quad 0.3 \;(|s| > 0.3), \quad 0

    Args:
        scalar: the emotion scalar s in [-1, 1], a floating-point array of any shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from emo_optax import shadow_ratio_v1
        >>> print(shadow_ratio_v1(jnp.asarray([-0.7, -0.4, 0.2, 0.5, 0.75])))
        [0.1  0.3  0.   0.3  0.85]

    Source: EmoNavi v1.0 by muooon.
    """
    ratio = jnp.where(jnp.abs(scalar) > 0.3, 0.3, 0.0)
    ratio = jnp.where(scalar < -0.6, 0.1, ratio)
    return jnp.where(scalar > 0.6, 0.7 + 0.2 * scalar, ratio).astype(scalar.dtype)


def shadow_ratio_function(ratio: ShadowRatio) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that a ratio's name stands for, or the function itself."""
    if callable(ratio):
        return ratio
    return {"v2.0": shadow_ratio_v2, "v1.0": shadow_ratio_v1}[ratio]


class BlendWithShadowState(NamedTuple):
    """The shadow, and the state of the transformation that moves the blended weights.

    Attributes:
        ratio: how far the last step pulled the weights to the shadow, shape `[]`, in [0, 1].
        exists: whether the shadow has been made, bool of shape `[]`.
        shadow: a slow copy of the parameters, in float32 or wider; zeros until it is made.
        inner_state: the state of the inner transformation.
    """

    ratio: jax.Array
    exists: jax.Array
    shadow: optax.Params
    inner_state: optax.OptState


def blend_with_shadow(
    inner: optax.GradientTransformation | None = None,
    ratio: ShadowRatio = "v2.0",
    *,
    shadow_rate: jax.typing.ArrayLike = 0.05,
) -> optax.GradientTransformationExtraArgs:
    r"""Pulls the parameters towards their shadow before `inner` moves them.

    .. math::
        p &\leftarrow (1 - r(s))\,p + r(s)\,shadow \\
        shadow &\leftarrow shadow + 0.05\,(p - shadow)

    The first time that :math:`r(s) > 0` the shadow becomes a copy of :math:`p`, and nothing else
    happens; if :math:`r(s) = 0`, the shadow does not change. `inner` sees the blended parameters, and the
    resulting update contains the blending, too: `optax.apply_updates` adds it to the unblended parameters.
    Moments are not blended.

    Args:
        inner: the transformation that moves the blended parameters; none leaves the updates as
            they come.
        ratio: r(s): "v2.0", "v1.0", or a function from a scalar array to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].

    Returns:
        A transformation for inside of `share_emotion` or `emotional`; its `update` needs `params`.

    Raises:
        ValueError: for a hyperparameter out of its range; from `update`, without `params`.
        EmotionMissingError: from `update`, outside of `share_emotion` and `emotional`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> pieces = optax.chain(optax.sgd(1.0), emo_optax.blend_with_shadow())
        >>> optimizer = emo_optax.share_emotion(pieces)
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for loss in (1.0, 3.0, 3.0):
        ...     updates, state = optimizer.update(jnp.ones(2), state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> print(emo_optax.get_emotion(state).shadow_ratio > 0.99, params.round(2))
        True [-1. -1.]

    Source: the shadow-system of EmoNavi and EmoSens v2.0 by muooon.
    """
    check_shadow_ratio(ratio)
    check_factor("shadow_rate", shadow_rate)
    inner = takes_extra_args(optax.identity() if inner is None else inner)
    ratio_of = shadow_ratio_function(ratio)

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
        emotion: EmotionState | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, BlendWithShadowState]:
        check_params(params)
        state = with_arrays(state, init_fn, params)
        scalar = shared_scalar(emotion)
        wanted = jnp.asarray(ratio_of(scalar), state.ratio.dtype)
        wakes = wanted > 0
        pulls = wakes & state.exists
        applied = jnp.where(pulls, wanted, jnp.zeros([], wanted.dtype))

        def blend(param: jax.Array, shadow: jax.Array, r: jax.Array) -> jax.Array:
            r = r.astype(shadow.dtype)
            return (1.0 - r) * param.astype(shadow.dtype) + r * shadow

        check_kind("exists", state.exists, jnp.bool_, ())
        check_kind("ratio", state.ratio, jnp.floating, ())

        def follow(param: jax.Array, shadow: jax.Array) -> jax.Array:
            check_kind("shadow", shadow, jnp.floating, param.shape)
            rate = jnp.asarray(shadow_rate, shadow.dtype)
            blended = blend(param, shadow, applied)
            moved = jnp.where(state.exists, shadow + rate * (blended - shadow), blended)
            return jnp.where(wakes, moved, shadow)

        shadow = jax.tree.map(follow, params, state.shadow)
        # The blend, from the shadow that has followed: (1 - r) p + r shadow = (1 - r') p + r' shadow'
        # with r' = r / (1 - a + a r) and a = shadow_rate. From the old one, which is overwritten, XLA
        # on a CPU would copy both shadow and parameters first.
        rate = jnp.asarray(shadow_rate, applied.dtype)
        share = applied / jnp.where(pulls, 1.0 - rate + rate * applied, jnp.ones([], applied.dtype))
        blended = jax.tree.map(lambda p, s: blend(p, s, share), params, shadow)
        inner_params = jax.tree.map(lambda b, p: b.astype(p.dtype), blended, params)
        updates, inner_state = inner.update(
            updates, state.inner_state, inner_params, emotion=emotion, **extra_args
        )

        def carry(update: jax.Array, moved: jax.Array, param: jax.Array) -> jax.Array:
            return update.astype(moved.dtype) + (moved - param.astype(moved.dtype))

        updates = jax.tree.map(carry, updates, blended, params)
        new_state = BlendWithShadowState(applied, state.exists | wakes, shadow, inner_state)
        return updates, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
