"""The last part of every optimizer: checks of its input, and updates in the dtypes of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._checks.states import check_state, nodes_of, with_arrays
from emo_optax._checks.validation import checked_gradients, checked_params
from emo_optax._pieces.compact_chain import stateless
from emo_optax._pieces.emotion import EmotionState, wide_dtype
from emo_optax._pieces.rounding import Rounding, add_rounding


def keep_dtypes(
    inner: optax.GradientTransformationExtraArgs, rounding: Rounding = "nearest"
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation that rounds its updates once, at the end, to the dtypes of the parameters."""
    inner = add_rounding(inner, rounding)

    def init_fn(params: optax.Params) -> optax.OptState:
        checked_params(params)
        state = inner.init(params)
        if len(nodes_of(state, EmotionState)) > 1:
            raise TypeError(
                "The inner optimizer is emotional already: use it without a wrapper such as "
                "emo_optax.emotional"
            )
        return state

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        # Without parameters the gradients give shapes and dtypes.
        like = _blank(updates) if params is None else checked_params(params)
        updates = checked_gradients(updates, like)
        state = with_arrays(state, inner.init, like)
        try:
            updates, new_state = inner.update(
                updates, state, None if params is None else like, **extra_args
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            check_state(state, inner.init, like)
            raise
        # If a state of other shapes was broadcast, the result has other shapes than the state.
        if _have_other_shapes((updates, like), (new_state, state)):
            check_state(state, inner.init, like)
        return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, like), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _blank(updates: optax.Updates) -> Any:
    """Returns the shapes of gradients, with the dtypes that parameters of these gradients have."""

    def blank(gradient: Any) -> Any:
        dtype = jnp.result_type(gradient)
        return jax.ShapeDtypeStruct(
            jnp.shape(gradient), dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
        )

    return jax.tree.map(blank, updates)


def _have_other_shapes(*pairs: tuple[Any, Any]) -> bool:
    """Returns whether the leaves of two trees of a pair have different shapes."""
    shapes = [[list(map(jnp.shape, jax.tree.leaves(tree))) for tree in pair] for pair in pairs]
    return any(new != old for new, old in shapes)


def scale_by_learning_rate(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """As `optax.scale_by_learning_rate`, without implicit promotion where the learning rate is an array."""
    if callable(learning_rate):
        return optax.scale_by_learning_rate(learning_rate)
    if not isinstance(learning_rate, jax.Array | np.ndarray):
        return stateless(optax.scale_by_learning_rate(learning_rate))

    def scale(update: jax.Array) -> jax.Array:
        dtype = wide_dtype((learning_rate, update))
        return -jnp.asarray(learning_rate, dtype) * update.astype(dtype)

    return stateless(optax.stateless(lambda updates, _: jax.tree.map(scale, updates)))
