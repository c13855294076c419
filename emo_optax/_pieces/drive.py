"""The emotion of EmoNavi, EmoFact and EmoLynx v3.6.1: three averages, trust, and emoDrive."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.validation import check_flag, check_learning_rate, check_loss, takes_extra_args
from emo_optax._pieces.compact_chain import compact_chain, stateless
from emo_optax._pieces.dtypes import keep_dtypes, scale_by_learning_rate
from emo_optax._pieces.emotion import (
    LENGTH,
    EmotionState,
    check_emotion,
    remember,
    shared_scalar,
    wide_dtype,
)
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.trust import (
    FLOOR,
    Averages,
    blend_by_trust,
    move_averages,
    relative_scalar,
    trust_of,
)
from emo_optax._pieces.weight_decay import WeightDecayMode, place_weight_decay


class DriveState(NamedTuple):
    """The memory of the losses that v3.6.1 keeps, in two arrays.

    Attributes:
        emotion: counts, short and long average, scalar, the last 32 scalars and the stop signal; the medium
            average is the last of its numbers. The scalar is above 0 where the loss is below its trend: v3
            has the opposite sign of v2.0.
    """

    emotion: EmotionState

    @property
    def medium(self) -> jax.Array:
        """The medium average of the loss, shape `[]`, in the unit of the loss."""
        return self.emotion.numbers[..., LENGTH]


def init_drive(dtype: Any) -> DriveState:
    """Returns the state before the first loss, each array in its own buffer.

    Args:
        dtype: the floating-point dtype of the state, float32 or float64.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.init_drive(jnp.float32).medium)
        0.0

    Source: EmoNavi v3.6.1 by muooon.
    """
    return DriveState(EmotionState(jnp.zeros([LENGTH + 1], dtype), jnp.zeros([3], jnp.int32)))


def feel_drive(state: DriveState, loss: jax.Array) -> DriveState:
    r"""Updates the state with the loss of one step, by the formulas of v3.6.1.

    .. math::
        short &\leftarrow 0.3\,L + 0.7\,short, \quad medium \leftarrow 0.05\,L + 0.95\,medium, \quad
        long \leftarrow 0.01\,L + 0.99\,long \\
        s &= \tanh\left(\frac{long - short}{\max(long, 10^{-5})}\right)

    A loss that is not finite changes only the count of held losses. The stop signal is that of
    `went_quiet` over the last 32 scalars, and stays set.

    Args:
        state: the state before this step.
        loss: the loss at the parameters at which the gradient was taken; shape `[]`, in the dtype of the
            state.

    Returns:
        The state after this step.

    Raises:
        ValueError: for a state whose arrays have other shapes or dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> state = emo_optax.init_drive(jnp.float32)
        >>> for loss in (2.0, 1.0):
        ...     state = emo_optax.feel_drive(state, jnp.asarray(loss))
        >>> print(f"{state.medium:.2f} {state.emotion.scalar:.4f}")
        1.95 0.1447

    Source: EmoNavi v3.6.1 by muooon.
    """
    check_emotion(state.emotion, 1)
    old = state.emotion
    averages, felt, held = move_averages(
        Averages(old.short, state.medium, old.long), loss, old.felt, old.held
    )
    is_felt = held == old.held
    scalar = relative_scalar(averages, jnp.maximum(averages.long, FLOOR))
    short, medium, long = averages
    return DriveState(remember(old, is_felt, short, long, scalar, felt, held, [medium]))


def drive_factor(scalar: jax.Array) -> jax.Array:
    r"""Returns emoDrive, the factor of the update of v3.6.1.

    .. math::
        e = 8\,|trust|\,(1 + 0.1\,trust) \;(0.25 < |s| < 0.5), \quad
        1 - |s| \;(|s| > 0.75), \quad 1 \text{ else}; \qquad trust = \mathrm{copysign}(1 - |s|, s)

    Args:
        scalar: the emotion scalar s, in [-1, 1], any shape.

    Returns:
        The factor, in [0, 6.45], same shape and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(emo_optax.drive_factor(jnp.asarray([0.0, 0.3, -0.3, 0.5, -0.875])))
        [1.    5.992 5.208 1.    0.125]

    Source: emoDrive of EmoNavi, EmoFact and EmoLynx v3.6.1 by muooon.
    """
    size, trust = jnp.abs(scalar), trust_of(scalar)
    fast = 8.0 * jnp.abs(trust) * (1.0 + 0.1 * trust)
    calm = jnp.where(size > 0.75, 1.0 - size, jnp.ones([], scalar.dtype))
    return jnp.where((size > 0.25) & (size < 0.5), fast, calm)


class ShareDriveState(NamedTuple):
    """The memory of the losses, and the state of the transformation that shares it.

    Attributes:
        drive: the averages of the losses.
        inner_state: the state of the inner transformation.
    """

    drive: DriveState
    inner_state: optax.OptState


def share_drive(
    inner: optax.GradientTransformation, *, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    """Feels the loss once a step, by the formulas of v3.6.1, and passes the emotion to `inner`.

    `inner` receives the extra argument `emotion`, an `EmotionState`. See `feel_drive` for the formulas.

    Args:
        inner: the transformation that shares the emotion.
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.

    Returns:
        A transformation whose `update` takes the loss as `value`, a scalar of any float dtype.

    Raises:
        ValueError: from `update`, for a loss that is not a scalar.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.share_drive(optax.chain(optax.sgd(0.1), emo_optax.scale_by_drive()))
        >>> params = jnp.ones(2)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
        >>> print(updates.shape, int(state.drive.emotion.felt))
        (2,) 1

    Source: EmoNavi v3.6.1 by muooon.
    """
    check_axis_name(axis_name)
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> ShareDriveState:
        return ShareDriveState(init_drive(wide_dtype(params)), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: ShareDriveState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ShareDriveState]:
        loss = average_over_replicas(check_loss(value, state.drive.emotion.numbers.dtype), axis_name)
        drive = feel_drive(state.drive, loss)
        extra_args = {
            **extra_args,
            "value": value if axis_name is None else loss,
            "emotion": drive.emotion,
        }
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        return updates, ShareDriveState(drive, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_drive(
    *, shared: bool = False, axis_name: AxisName = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by emoDrive (see `drive_factor`).

    Args:
        shared: whether the emotion comes from an enclosing `share_drive`.
        axis_name: as in `share_drive`; unused where the emotion is shared.

    Returns:
        A transformation for `optax.chain` whose `update` takes the loss as `value`.

    Raises:
        LossMissingError: from `update`, without a loss.
        EmotionMissingError: from `update`, with `shared=True` and no `share_drive` around it.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.chain(optax.sgd(1.0), emo_optax.scale_by_drive())
        >>> params = jnp.ones(2)
        >>> state = optimizer.init(params)
        >>> for loss in (2.0, 0.1):
        ...     updates, state = optimizer.update(params, state, params, value=loss)
        >>> print(updates.round(3))
        [-6.255 -6.255]

    Source: emoDrive of EmoNavi v3.6.1 by muooon.
    """

    def init_fn(params: optax.Params) -> optax.OptState:
        del params
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        emotion: EmotionState | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        factor = drive_factor(shared_scalar(emotion))
        return jax.tree.map(lambda update: factor.astype(update.dtype) * update, updates), state

    piece = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return stateless(piece) if shared else share_drive(piece, axis_name=axis_name)


def driven_rule(
    rule: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any | Callable[[optax.Params], Any] | None,
    *,
    use_shadow: bool,
    weight_decay_mode: WeightDecayMode,
    rounding: Rounding,
    axis_name: AxisName,
) -> optax.GradientTransformationExtraArgs:
    """Puts a member of v3.6.1 together: emotion, shadow, rule, emoDrive, weight decay, learning rate."""
    check_learning_rate(learning_rate)
    check_flag("use_shadow", use_shadow)
    decay = place_weight_decay(weight_decay_mode, weight_decay, mask)
    step = compact_chain(
        decay["l2"],
        rule,
        scale_by_drive(shared=True),
        decay["decoupled"],
        scale_by_learning_rate(learning_rate),
        decay["absolute"],
    )
    member = share_drive(blend_by_trust(step) if use_shadow else step, axis_name=axis_name)
    return keep_dtypes(member, rounding)
