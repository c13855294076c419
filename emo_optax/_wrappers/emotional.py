"""Any optimizer made emotional, and access to its emotion."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.hints import with_hints
from emo_optax._checks.states import first_node_of, with_new_arrays
from emo_optax._checks.validation import (
    check_factor,
    check_flag,
    check_function,
    check_learning_rate,
    check_not_negative,
    check_shadow_ratio,
    takes_extra_args,
)
from emo_optax._pieces.compact_chain import compact_chain, stateless
from emo_optax._pieces.dtypes import keep_dtypes, scale_by_learning_rate
from emo_optax._pieces.early_stop import went_quiet
from emo_optax._pieces.emotion import Emotion, EmotionState, ShareEmotionState, share_with_numbers
from emo_optax._pieces.pulse import PulseState
from emo_optax._pieces.replicas import AxisName
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.shadow_effect import (
    Keep,
    filter_with_options,
    keep_elements,
    options_of_filter,
    scale_by_emotion,
    step_scale,
)
from emo_optax._pieces.shadow_system import BlendWithShadowState, ShadowRatio, blend_with_shadow
from emo_optax._pieces.weight_decay import WeightDecayMode, place_weight_decay
from emo_optax._rules.switch import step_first


@with_hints
def emotional(
    inner: optax.GradientTransformation,
    *,
    shadow_effect: bool = True,
    theta: jax.typing.ArrayLike = 1e-4,
    keep: Keep = keep_elements,
    use_shadow: bool = False,
    shadow_ratio: ShadowRatio = "v2.0",
    shadow_rate: jax.typing.ArrayLike = 0.05,
    short_factor: jax.typing.ArrayLike = 0.3,
    long_factor: jax.typing.ArrayLike = 0.01,
    gain: jax.typing.ArrayLike = 5.0,
    rounding: Rounding = "nearest",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes any Optax optimizer emotional.

    One emotion, felt once a step; with the shadow, `inner` sees the blended parameters
    :math:`p' = (1-r)\,p + r\,shadow`; then its update :math:`u` is filtered and scaled:

    .. math:: p \leftarrow p' + (1 - |s|)\,[\,|g|^{1/3} \ge \theta\,(1+|s|)\,]\,u

    The pieces that need an emotion (`filter_by_emotion`, `scale_by_emotion`, `blend_with_shadow`,
    `switch_by_emotion`) take this emotion if they are inside of `inner`. The members of the family are
    built in this way, with `shadow_effect=False`, so that weight decay is neither filtered nor scaled.

    Put a wrapper that keeps its own parameters outside, and not into `inner`: write
    `optax.contrib.schedule_free(emotional(base), learning_rate)`. Inside, the wrapper's own parameters
    would take the whole step, and the model's parameters a part of the step.

    Args:
        inner: the optimizer, learning rate included.
        shadow_effect: whether to filter and scale the whole update of `inner`.
        theta: the filter's threshold on the cube root of the gradient's size, >= 0; 0: no filter.
        keep: which elements the filter keeps, `keep_elements` or `keep_rows_and_columns(eps)`.
        use_shadow: whether to pull the weights back to their shadow.
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar array to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        rounding: how a step is rounded into parameters below float32: "nearest", "kahan" (see
            `round_with_kahan`) or "stochastic" (see `round_stochastically`).
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.

    Returns:
        A transformation whose `update` takes the loss as `value`; its updates have the parameters'
        dtypes. It needs `params` for a shadow, for a rounding other than "nearest", and if `inner` needs
        them; without them its updates have the gradients' dtypes.

    Raises:
        ValueError: for a hyperparameter out of its range; from `init`, for complex parameters; from
            `update`, for a loss that is not a scalar, and without `params` where they are needed.
        TypeError: from `init`, for an inner optimizer that is emotional already.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.emotional(optax.adabelief(1e-1))
        >>> params = jnp.asarray([1.0, -2.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(3):
        ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        ...     updates, state = optimizer.update(grads, state, params, value=loss)
        ...     params = optax.apply_updates(params, updates)
        >>> print(f"{params[0]:.2f} {params[1]:.2f}")
        0.85 -1.85

    Source: EmoSens v2.0 by muooon.
    """
    check_flag("shadow_effect", shadow_effect)
    check_not_negative("theta", theta)
    check_function("keep", keep)
    piece: optax.GradientTransformation = takes_extra_args(inner)
    options: list[jax.typing.ArrayLike] = []
    if shadow_effect:
        pieces, options = _with_effect(piece, theta, keep)
        piece = compact_chain(*pieces)
    return _with_emotion(
        piece,
        options,
        use_shadow=use_shadow,
        shadow_ratio=shadow_ratio,
        shadow_rate=shadow_rate,
        short_factor=short_factor,
        long_factor=long_factor,
        gain=gain,
        rounding=rounding,
        axis_name=axis_name,
    )


def _with_effect(
    inner: optax.GradientTransformation, theta: jax.typing.ArrayLike, keep: Keep
) -> tuple[list[optax.GradientTransformation], list[jax.typing.ArrayLike]]:
    """Returns the pieces that filter and scale a transformation, and the options that its emotion keeps."""
    filtered = filter_with_options(inner, theta, keep, in_emotion=True)
    return [filtered, stateless(scale_by_emotion())], options_of_filter(theta, keep)


def _with_emotion(
    piece: optax.GradientTransformation,
    options: Sequence[jax.typing.ArrayLike],
    *,
    use_shadow: bool,
    shadow_ratio: ShadowRatio,
    shadow_rate: jax.typing.ArrayLike,
    rounding: Rounding,
    **emotion: Any,
) -> optax.GradientTransformationExtraArgs:
    """Puts an emotion, and a shadow, around a transformation."""
    check_flag("use_shadow", use_shadow)
    check_shadow_ratio(shadow_ratio)
    check_factor("shadow_rate", shadow_rate)
    if use_shadow:
        piece = blend_with_shadow(piece, shadow_ratio, shadow_rate=shadow_rate)
    return keep_dtypes(share_with_numbers(piece, options, **emotion), rounding)


_OF_EMOTION = (
    *("use_shadow", "shadow_ratio", "shadow_rate", "short_factor", "long_factor", "gain"),
    *("rounding", "axis_name"),
)
"""The options of `emotional` that `emotional_rule` takes too, with the same defaults."""


def emotional_rule(
    rule: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any | Callable[[optax.Params], Any] | None,
    *,
    shadow_effect: bool = True,
    theta: jax.typing.ArrayLike = 1e-4,
    keep: Keep = keep_elements,
    weight_decay_mode: WeightDecayMode = "decoupled",
    decoupled_weight_decay: bool = False,
    first: optax.GradientTransformation | None = None,
    **emotion: Any,
) -> optax.GradientTransformationExtraArgs:
    """Builds a member of the family from its rule: emotion, shadow, first step, weight decay, update.

    A member passes its options with `options_of(locals())`.
    """
    check_flag("decoupled_weight_decay", decoupled_weight_decay)
    check_learning_rate(learning_rate)
    divisor = learning_rate if decoupled_weight_decay else None
    decay = place_weight_decay(weight_decay_mode, weight_decay, mask, divisor)
    step, options = _with_effect(rule, theta, keep) if shadow_effect else ([rule], [])
    rate = scale_by_learning_rate(learning_rate)
    pieces = [*step, decay["decoupled"], rate, decay["absolute"]]
    if first is not None:
        pieces = [step_first(compact_chain(first, rate), compact_chain(*pieces))]
    known = inspect.signature(emotional).parameters
    usual = {name: known[name].default for name in _OF_EMOTION}
    return _with_emotion(compact_chain(decay["l2"], *pieces), options, **{**usual, **emotion})


def get_emotion(state: optax.OptState) -> Emotion:
    """Looks up the emotion in any nested optimizer state, inside or outside of jit.

    Args:
        state: the state of an optimizer with an emotion in it, at any depth inside of wrappers.

    Returns:
        Its averages, scalar, step scale, shadow ratio, stop signal (whether it was ever set, and now) and
        counts, as arrays. If several optimizers are combined (`optax.partition`), the values of the first
        one.

    Raises:
        ValueError: if there is no emotion in the state.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), emo_optax.emo_sens(1e-3))
        >>> params = jnp.ones(2)
        >>> _, state = optimizer.update(params, optimizer.init(params), params, value=0.7)
        >>> emotion = emo_optax.get_emotion(state)
        >>> print(emotion.scalar, emotion.step_scale, emotion.should_stop)
        0.0 1.0 False
    """
    shared = first_node_of(state, ShareEmotionState)
    felt = first_node_of(state, EmotionState) if shared is None else shared.emotion
    if felt is None:
        raise ValueError(
            "There is no emotion in this state. Pass the state of an optimizer made by emo_optax, or "
            "of a chain or wrapper around one. get_pulse is for the third generation."
        )
    felt = with_new_arrays(felt)
    shadow = first_node_of(state if shared is None else shared.inner_state, BlendWithShadowState)
    return Emotion(
        short=felt.short,
        long=felt.long,
        scalar=felt.scalar,
        step_scale=step_scale(felt.scalar),
        shadow_ratio=jnp.zeros_like(felt.scalar) if shadow is None else jnp.asarray(shadow.ratio),
        should_stop=felt.should_stop,
        is_quiet=went_quiet(felt.history, felt.felt),
        felt=felt.felt,
        held=felt.held,
    )


def set_emotion(state: optax.OptState, **values: Any) -> optax.OptState:
    """Returns a nested optimizer state with other values in its emotion, or in its pulse.

    Args:
        state: the state of an optimizer with an emotion or a pulse in it, at any depth inside of wrappers.
        **values: the new values by the names of `EmotionState` or of `PulseState`, such as
            `should_stop=False`: arrays, Python's or NumPy's numbers, each of the shape of the old value.

    Returns:
        The new state, on the same devices. If several optimizers are combined (`optax.partition`), each has
        the new values.

    Raises:
        ValueError: if there is no emotion and no pulse in the state, for a number that is not finite or too
            large, and for a negative count.
        TypeError: for a name that the emotion lacks, for a value of another kind, such as a float for a
            count, and for a value of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> state = emo_optax.emo_sens().init(jnp.ones(2))
        >>> state = emo_optax.set_emotion(state, short=2.5, felt=3)
        >>> print(emo_optax.get_emotion(state).short, emo_optax.get_emotion(state).felt)
        2.5 3
    """
    kinds = (EmotionState, PulseState)

    def change(node: Any) -> Any:
        return node.replace(**values) if isinstance(node, kinds) else node

    def is_leaf(node: Any) -> bool:
        return isinstance(node, kinds)

    if not any(map(is_leaf, jax.tree.leaves(state, is_leaf=is_leaf))):
        raise ValueError(
            "There is no emotion and no pulse in this state. Pass the state of an optimizer with an "
            "emotion or a pulse, such as emo_sens, or of a chain or wrapper around one."
        )
    return jax.tree.map(change, state, is_leaf=is_leaf)
