"""Emotion: from the loss to one scalar, once a step for a whole optimizer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.errors import EMOTION_MISSING, EmotionMissingError
from emo_optax._checks.states import check_real, with_arrays
from emo_optax._checks.validation import (
    check_factor,
    check_loss,
    check_not_negative,
    check_precisions,
    hyperparameter,
    takes_extra_args,
)
from emo_optax._pieces.early_stop import WINDOW, quiet
from emo_optax._pieces.packed import PackedState, Part, check_packed
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name

_SCALARS = 3
"""The numbers of an emotion before its history."""
LENGTH = _SCALARS + WINDOW
"""The numbers of an emotion."""


class EmotionState(PackedState):
    """The statistics of the losses that an optimizer keeps, in two arrays.

    Each value is read by its name, as in `state.scalar`, and `state.replace(should_stop=False)` changes
    values. All have the shape `[]` but `history`:

    - `felt`: losses felt so far, int32.
    - `held`: losses skipped because they were not finite, int32.
    - `short`: the short average of the loss, in the loss's unit.
    - `long`: the long average of the loss, in the loss's unit.
    - `scalar`: the emotion scalar of the last finite loss, in [-1, 1]; 0 before any.
    - `history`: the last 32 scalars, oldest first, shape `[32]`; 0 for steps not taken yet.
    - `should_stop`: whether training has ever gone quiet, bool; stays set.

    Attributes:
        numbers: `short`, `long`, `scalar` and `history`, shape `[35]`; further numbers follow where other
            pieces of the optimizer keep theirs here.
        counts: `felt`, `held` and `should_stop`, int32, shape `[3]`.
    """

    __slots__ = ()
    felt = Part("counts", 0)
    held = Part("counts", 1)
    short = Part("numbers", 0)
    long = Part("numbers", 1)
    scalar = Part("numbers", 2)
    history = Part("numbers", slice(_SCALARS, LENGTH))
    should_stop = Part("counts", 2, is_flag=True)


class Emotion(NamedTuple):
    """The values of an emotion, to be read; every field is an array of shape `[]`.

    Attributes:
        short: the short average of the loss, in the loss's unit.
        long: the long average of the loss, in the loss's unit.
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is above its trend.
        step_scale: 1 - |s|, in [0, 1]: the factor of the update.
        shadow_ratio: how far the last step pulled the weights to their shadow, in [0, 1]; 0 without one.
        should_stop: whether training has ever gone quiet, bool; stays set.
        is_quiet: whether training is quiet now, over the last 32 losses, bool.
        felt: losses felt so far, int32.
        held: losses skipped because they were not finite, int32.
    """

    short: jax.Array
    long: jax.Array
    scalar: jax.Array
    step_scale: jax.Array
    shadow_ratio: jax.Array
    should_stop: jax.Array
    is_quiet: jax.Array
    felt: jax.Array
    held: jax.Array


def wide_dtype(tree: Any) -> Any:
    """Returns the dtype to compute in: float64 if a leaf is float64 (and x64 is on), else float32."""
    is_double = any(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves(tree))
    return jnp.float64 if is_double else jnp.float32


def real_dtype(tree: Any) -> Any:
    """Returns `wide_dtype(tree)`; raises a `ValueError` for a complex leaf."""
    check_real(tree)
    return wide_dtype(tree)


def init_emotion(dtype: Any) -> EmotionState:
    """Returns the emotion of an optimizer that has seen no loss, each array in its own buffer.

    Args:
        dtype: the floating-point dtype of the state, float32 or float64.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.init_emotion(jnp.float32).history.shape)
        (32,)

    Source: EmoSens and EmoNavi v2.0 by muooon.
    """
    return EmotionState(jnp.zeros([LENGTH], dtype), jnp.zeros([3], jnp.int32))


def feel(
    state: EmotionState,
    loss: jax.Array,
    *,
    short_factor: jax.typing.ArrayLike = 0.3,
    long_factor: jax.typing.ArrayLike = 0.01,
    gain: jax.typing.ArrayLike = 5.0,
    mean_below: jax.typing.ArrayLike = 0.05,
    variance_below: jax.typing.ArrayLike = 0.005,
) -> EmotionState:
    r"""Updates the state with the loss of one step.

    .. math::
        short &\leftarrow 0.3\,L + 0.7\,short \\
        long &\leftarrow 0.01\,L + 0.99\,long \\
        s &= \tanh(5\,(short - long))

    Both averages start at the first finite loss. A loss that is not finite, or that would make
    an average infinite, changes only the count of held losses.

    Args:
        state: the emotion before this step.
        loss: the loss at the parameters at which the gradient was taken; shape `[]`, in the state's
            dtype.
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        mean_below: the stop signal's bound on the mean of the last 32 |s|, in (0, 1].
        variance_below: its bound on their variance, in (0, 1].

    Returns:
        The emotion after this step.

    Raises:
        ValueError: for a state whose arrays have other shapes or dtypes.
        TypeError: for a number in a dtype of less than 32 bits, which is too coarse for it.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> emotion = emo_optax.init_emotion(jnp.float32)
        >>> for loss in (2.0, 1.0):
        ...     emotion = emo_optax.feel(emotion, jnp.asarray(loss))
        >>> print(f"{emotion.short:.2f} {emotion.long:.2f} {emotion.scalar:.4f}")
        1.70 1.99 -0.8957

    Source: EmoSens and EmoNavi v2.0 by muooon.
    """
    check_emotion(state)
    options = {"short_factor": short_factor, "long_factor": long_factor, "gain": gain}
    check_precisions(**options, mean_below=mean_below, variance_below=variance_below)
    return _move(state, loss, (), mean_below=mean_below, variance_below=variance_below, **options)


def _move(
    state: EmotionState,
    loss: jax.Array,
    more: Sequence[jax.Array],
    *,
    short_factor: jax.typing.ArrayLike,
    long_factor: jax.typing.ArrayLike,
    gain: jax.typing.ArrayLike,
    **bounds: jax.typing.ArrayLike,
) -> EmotionState:
    """As `feel`, with the numbers that follow the history; both arrays and the options are checked."""
    dtype = state.numbers.dtype
    # By their places: reading by names is slower where a step is traced.
    before_short, before_long = state.numbers[0], state.numbers[1]
    before_felt, before_held = state.counts[0], state.counts[1]
    is_first = before_felt == 0
    is_finite = jnp.isfinite(loss)
    loss = jnp.where(is_finite, loss, jnp.zeros([], dtype))

    def average(before: jax.Array, factor: Any) -> jax.Array:
        # In this form, and not `0.3 L + 0.7 before`, a constant loss leaves both averages alone to
        # the last bit, however large it is.
        rate = factor if type(factor) is float else hyperparameter(factor, dtype)
        moved = before + rate * (loss - before)
        return jnp.where(is_first, loss, moved)

    short = average(before_short, short_factor)
    long = average(before_long, long_factor)
    is_felt = is_finite & jnp.isfinite(short) & jnp.isfinite(long)
    short = jnp.where(is_felt, short, before_short)
    long = jnp.where(is_felt, long, before_long)
    steepness = gain if type(gain) is float else hyperparameter(gain, dtype)
    scalar = jnp.tanh(steepness * (short - long))
    felt = jnp.where(is_felt, optax.safe_increment(before_felt), before_felt)
    held = jnp.where(is_felt, before_held, optax.safe_increment(before_held))
    return remember(state, is_felt, short, long, scalar, felt, held, more, **bounds)


def remember(
    before: EmotionState,
    is_felt: jax.Array,
    short: jax.Array,
    long: jax.Array,
    scalar: jax.Array,
    felt: jax.Array,
    held: jax.Array,
    more: Sequence[jax.Array],
    **bounds: jax.typing.ArrayLike,
) -> EmotionState:
    """Returns the state with new values, the scalar in its history, and the stop signal of that history.

    All values have the shape `[]`. `more` are the numbers that follow the history, and `bounds` are the
    bounds of `went_quiet`.
    """
    known = before.numbers[_SCALARS:LENGTH]
    history = jnp.where(is_felt, jnp.concatenate([known[1:], scalar[None]]), known)
    numbers = jnp.concatenate([jnp.stack([short, long, scalar]), history, *(each[None] for each in more)])
    # The barrier makes XLA read the history from the array. Without it XLA computes the history again in
    # each loop that reads it, and compiles longer.
    numbers = jax.lax.optimization_barrier(numbers)
    is_quiet = quiet(numbers[_SCALARS:LENGTH], felt, **bounds)
    should_stop = (before.counts[2] != 0) | (is_felt & is_quiet)
    return EmotionState(numbers, jnp.stack([felt, held, should_stop.astype(felt.dtype)]))


def check_emotion(state: EmotionState, more: int = 0) -> None:
    """Raises a `ValueError` unless both arrays have their lengths and their kinds of numbers."""
    check_packed("emotion", state, EmotionState, LENGTH + more, 3)


class ShareEmotionState(NamedTuple):
    """The emotion, and the state of the transformation that shares it.

    Attributes:
        emotion: the emotion.
        inner_state: the state of the inner transformation.
    """

    emotion: EmotionState
    inner_state: optax.OptState


def share_emotion(
    inner: optax.GradientTransformation,
    *,
    short_factor: jax.typing.ArrayLike = 0.3,
    long_factor: jax.typing.ArrayLike = 0.01,
    gain: jax.typing.ArrayLike = 5.0,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Feels the loss once a step, and passes the emotion to all transformations inside.

    `inner` receives the extra argument `emotion`, an `EmotionState`; transformations without extra
    arguments may be part of it, too. See `feel` for the formula.

    Args:
        inner: the transformation that shares the emotion.
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.

    Returns:
        A transformation whose `update` takes the loss as `value`, a scalar of any float dtype.

    Raises:
        ValueError: for a hyperparameter out of its range; from `update`, for a loss of another shape.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.share_emotion(
        ...     optax.chain(optax.sgd(0.1), emo_optax.scale_by_emotion())
        ... )
        >>> params = jnp.ones(2)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
        >>> print(updates)
        [-0.1 -0.1]

    Source: EmoSens v2.0 by muooon.
    """
    return share_with_numbers(
        inner, (), short_factor=short_factor, long_factor=long_factor, gain=gain, axis_name=axis_name
    )


def share_with_numbers(
    inner: optax.GradientTransformation,
    more: Sequence[jax.typing.ArrayLike],
    *,
    short_factor: jax.typing.ArrayLike,
    long_factor: jax.typing.ArrayLike,
    gain: jax.typing.ArrayLike,
    axis_name: AxisName,
) -> optax.GradientTransformationExtraArgs:
    """As `share_emotion`; the array of numbers also keeps `more`, the options of other pieces."""
    check_factor("short_factor", short_factor)
    check_factor("long_factor", long_factor)
    check_not_negative("gain", gain)
    check_axis_name(axis_name)
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> ShareEmotionState:
        emotion = init_emotion(wide_dtype(params))
        if more:
            options = [jnp.asarray(option, emotion.numbers.dtype)[None] for option in more]
            emotion = emotion._replace(numbers=jnp.concatenate([emotion.numbers, *options]))
        return ShareEmotionState(emotion, inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: ShareEmotionState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ShareEmotionState]:
        state = with_arrays(state, init_fn, updates if params is None else params)
        dtype = state.emotion.numbers.dtype
        loss = check_loss(value, dtype)
        if axis_name is not None:
            loss = average_over_replicas(loss, axis_name)
        check_emotion(state.emotion, len(more))
        options = [jnp.asarray(option, dtype) for option in more]
        emotion = _move(
            state.emotion, loss, options, short_factor=short_factor, long_factor=long_factor, gain=gain
        )
        if axis_name is not None:
            value = loss  # Replicas that read the loss in `inner` must stay equal, too.
        extra_args = {**extra_args, "value": value, "emotion": emotion}
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        return updates, ShareEmotionState(emotion, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def track_emotion(
    *,
    short_factor: jax.typing.ArrayLike = 0.3,
    long_factor: jax.typing.ArrayLike = 0.01,
    gain: jax.typing.ArrayLike = 5.0,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Feels the loss, and does not change the updates: the emotion as a monitor.

    Args:
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.

    Returns:
        A transformation for `optax.chain` whose emotion `get_emotion` finds.

    Raises:
        ValueError: for a hyperparameter out of its range.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.chain(optax.adam(1e-3), emo_optax.track_emotion())
        >>> params = jnp.ones(2)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=3.0)
        >>> print(emo_optax.get_emotion(state).long)
        3.0

    Source: EmoSens v2.0 by muooon.
    """
    options = {"short_factor": short_factor, "long_factor": long_factor, "gain": gain}
    return share_emotion(optax.identity(), **options, axis_name=axis_name)


def shared_emotion(emotion: EmotionState | None) -> EmotionState:
    """Returns the emotion of the enclosing transformation, or raises an error if there is none."""
    if emotion is None:
        raise EmotionMissingError(EMOTION_MISSING)
    return emotion


def shared_scalar(emotion: EmotionState | None) -> jax.Array:
    """Returns the emotion scalar of the enclosing transformation, or raises an error if there is none."""
    if emotion is None:
        raise EmotionMissingError(EMOTION_MISSING)
    return emotion.numbers[2]
