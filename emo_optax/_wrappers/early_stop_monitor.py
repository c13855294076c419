"""The early-stop signal on its own, for a training with any optimizer, or with none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emo_optax._checks.states import with_arrays
from emo_optax._checks.validation import check_factor, check_loss, check_not_negative
from emo_optax._pieces.early_stop import went_quiet
from emo_optax._pieces.emotion import EmotionState, feel, init_emotion
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name


class EarlyStopState(NamedTuple):
    """The state of the monitor.

    Attributes:
        emotion: the statistics of the losses.
        is_quiet: whether training is quiet now, over the last 32 losses, bool of shape `[]`.
    """

    emotion: EmotionState
    is_quiet: jax.Array

    @property
    def should_stop(self) -> jax.Array:
        """Whether training has ever gone quiet, bool of shape `[]`; stays set."""
        return self.emotion.should_stop


class EarlyStop(NamedTuple):
    """A pair of pure functions.

    Attributes:
        init: makes the state of a monitor that has seen no loss; in float32, or float64 under x64.
        update: a state and a loss, a scalar of any real dtype, to the state after it; fit for `jax.jit`.
    """

    init: Callable[[], EarlyStopState]
    update: Callable[[EarlyStopState, Any], EarlyStopState]


def early_stop(
    *,
    short_factor: jax.typing.ArrayLike = 0.3,
    long_factor: jax.typing.ArrayLike = 0.01,
    gain: jax.typing.ArrayLike = 5.0,
    mean_below: jax.typing.ArrayLike = 0.05,
    variance_below: jax.typing.ArrayLike = 0.005,
    axis_name: AxisName = None,
) -> EarlyStop:
    r"""Makes a monitor that detects from the losses alone when a training has gone quiet.

    .. math::
        s = \tanh(5\,(short - long)), \qquad
        \frac{1}{32} \sum_i |s_i| < 0.05 \quad\text{and}\quad
        \frac{1}{32} \sum_i (s_i - \bar{s})^2 < 0.005

    See `feel` for the averages and `went_quiet` for the test. With the default options, training is quiet
    if the loss has changed by no more than about 0.01 over the last 100 steps. Change `gain` for a loss of
    another unit. A loss that is not finite changes nothing. Inside an optimizer `track_emotion` gives the
    same signals.

    Args:
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        mean_below: the bound on the mean of the last 32 |s|, in (0, 1].
        variance_below: the bound on their variance, in (0, 1].
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`.

    Returns:
        The functions `init` and `update`; their results have `should_stop` and `is_quiet`.

    Raises:
        ValueError: for an option out of its range; from `update`, for a loss that is not a scalar.
        LossMissingError: from `update`, for `None` as the loss.

    Example:
        >>> import emo_optax
        >>> stop = emo_optax.early_stop()
        >>> state = stop.init()
        >>> for step in range(100):
        ...     state = stop.update(state, 0.25)
        ...     if state.should_stop:
        ...         break
        >>> print(step, state.is_quiet)
        31 True

    Source: the early-stop notice of EmoNavi and EmoSens v2.0 by muooon.
    """
    check_factor("short_factor", short_factor)
    check_factor("long_factor", long_factor)
    check_not_negative("gain", gain)
    check_factor("mean_below", mean_below)
    check_factor("variance_below", variance_below)
    check_axis_name(axis_name)

    def init() -> EarlyStopState:
        return EarlyStopState(init_emotion(jnp.result_type(float)), jnp.zeros([], jnp.bool_))

    def update(state: EarlyStopState, loss: Any) -> EarlyStopState:
        state = with_arrays(state, lambda _: init(), None)
        emotion = feel(
            state.emotion,
            average_over_replicas(check_loss(loss, state.emotion.numbers.dtype), axis_name),
            short_factor=short_factor,
            long_factor=long_factor,
            gain=gain,
            mean_below=mean_below,
            variance_below=variance_below,
        )
        is_quiet = went_quiet(
            emotion.history, emotion.felt, mean_below=mean_below, variance_below=variance_below
        )
        return EarlyStopState(emotion, is_quiet)

    return EarlyStop(init, update)
