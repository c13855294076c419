"""The pulse as a transformation, as a schedule, and as the learning rate of a member."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_optax._checks.errors import EmotionMissingError
from emo_optax._checks.validation import check_flag, check_loss, check_not_negative, takes_extra_args
from emo_optax._pieces.compact_chain import compact_chain, stateless
from emo_optax._pieces.dtypes import keep_dtypes
from emo_optax._pieces.emotion import wide_dtype
from emo_optax._pieces.pulse import LossUnit, PulseOptions, PulseState, Scope, feel_pulse, init_pulse
from emo_optax._pieces.replicas import AxisName, average_over_replicas, check_axis_name
from emo_optax._pieces.rounding import Rounding
from emo_optax._pieces.trust import blend_by_trust
from emo_optax._pieces.weight_decay import WeightDecayMode, place_weight_decay

_PULSE_MISSING = (
    "A piece made with `shared=True` takes the pulse of an enclosing `emo_optax.share_pulse(...)`, and "
    "there is none around it. Wrap the piece in `emo_optax.share_pulse(...)`, or remove `shared=True`: the "
    "piece then keeps its own pulse."
)


class SharePulseState(NamedTuple):
    """The pulse, the steps of a scheduled scope, and the state of the inner transformation.

    Attributes:
        pulse: the pulse.
        scope_state: the state of a scheduled scope.
        inner_state: the state of the inner transformation.
    """

    pulse: PulseState
    scope_state: optax.OptState
    inner_state: optax.OptState


def share_pulse(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    stopcoef: jax.typing.ArrayLike = 0.04,
    steady: bool = False,
    spike_limit: jax.typing.ArrayLike | None = None,
    loss_unit: LossUnit = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes the pulse once a step, and passes it to all transformations inside.

    `inner` receives the extra argument `pulse`, a `PulseState`; transformations without extra arguments may
    be part of it, too. See `feel_pulse` for the formulas.

    Args:
        inner: the transformation that shares the pulse.
        learning_rate: the scope S, a number >= 0 or a schedule.
        stopcoef: the bound of the stop signal on the medium average, >= 0.
        steady: whether a loss above its trend may lower the level h only; an addition of this package.
        spike_limit: how many times the old short average a loss counts at most, > 1, or `None`; an
            addition of this package.
        loss_unit: the unit of the loss, a number > 0, "first" or `None`; an addition of this package.
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`; for
            replicas under `jax.shard_map` or `jax.pmap`, whose gradients you average yourself.

    Returns:
        A transformation whose `update` takes the loss as `value`, a scalar of any float dtype.

    Raises:
        ValueError: for an option out of its range; from `update`, for a loss that is not a scalar.
        LossMissingError: from `update`, without a loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = emo_optax.share_pulse(
        ...     optax.chain(optax.scale_by_adam(), emo_optax.scale_by_pulse(shared=True))
        ... )
        >>> params = jnp.ones(2)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
        >>> print(f"{updates[0]:.1e}")
        -1.0e-04

    Source: emoPulse of EmoSens v3.9.1 by muooon.
    """
    scope, options = Scope(learning_rate), PulseOptions(stopcoef, steady, spike_limit, loss_unit)
    scope.check()
    options.check()
    check_axis_name(axis_name)
    inner = takes_extra_args(inner)

    def init_fn(params: optax.Params) -> SharePulseState:
        scope_state = scope.init()
        pulse = init_pulse(wide_dtype(params), scope.at(scope_state))
        return SharePulseState(pulse, scope_state, inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: SharePulseState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharePulseState]:
        loss = average_over_replicas(check_loss(value, state.pulse.numbers.dtype), axis_name)
        pulse = feel_pulse(state.pulse, loss, scope.at(state.scope_state), **options._asdict())
        extra_args = {**extra_args, "value": value if axis_name is None else loss, "pulse": pulse}
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        return updates, SharePulseState(pulse, scope.count(state.scope_state), inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_pulse(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    flip_sign: bool = True,
    shared: bool = False,
    stopcoef: jax.typing.ArrayLike = 0.04,
    steady: bool = False,
    spike_limit: jax.typing.ArrayLike | None = None,
    loss_unit: LossUnit = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by the pulse, in the place of `optax.scale_by_learning_rate`.

    Args:
        learning_rate: the scope S, a number >= 0 or a schedule; unused where the pulse is shared, as all
            that follow but `flip_sign`.
        flip_sign: whether the updates are also multiplied by -1, so that they point downhill.
        shared: whether the pulse comes from an enclosing `share_pulse`.
        stopcoef: as in `share_pulse`.
        steady: as in `share_pulse`.
        spike_limit: as in `share_pulse`.
        loss_unit: as in `share_pulse`.
        axis_name: as in `share_pulse`.

    Returns:
        A transformation for `optax.chain` whose `update` takes the loss as `value`.

    Raises:
        ValueError: for an option out of its range.
        LossMissingError: from `update`, without a loss.
        EmotionMissingError: from `update`, with `shared=True` and no `share_pulse` around it.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.chain(optax.scale_by_adam(), emo_optax.scale_by_pulse(10.0, steady=True))
        >>> params = jnp.ones(2)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
        >>> print(f"{updates[0]:.1e} {emo_optax.get_pulse(state).pulse:.1e}")
        -1.0e-03 1.0e-03

    Source: emoPulse of EmoSens v3.9.1 by muooon.
    """
    check_flag("flip_sign", flip_sign)
    sign = -1.0 if flip_sign else 1.0

    def init_fn(params: optax.Params) -> optax.OptState:
        del params
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        pulse: PulseState | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        if pulse is None:
            raise EmotionMissingError(_PULSE_MISSING)
        rate = sign * pulse.pulse
        return jax.tree.map(lambda update: rate.astype(update.dtype) * update, updates), state

    piece = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    if shared:
        return stateless(piece)
    options = PulseOptions(stopcoef, steady, spike_limit, loss_unit)
    return share_pulse(piece, learning_rate, axis_name=axis_name, **options._asdict())


class _PulseSchedule:
    """The stateful schedule that `pulse_schedule` makes."""

    def __init__(
        self, scope: jax.typing.ArrayLike, ceiling: Any, options: PulseOptions, axis_name: AxisName
    ) -> None:
        self._scope, self._ceiling, self._options, self._axis_name = scope, ceiling, options, axis_name

    def init(self) -> PulseState:
        return init_pulse(jnp.result_type(float), self._scope, ceiling=self._ceiling)

    def update(self, state: PulseState, *, value: Any = None, **extra_args: Any) -> PulseState:
        del extra_args
        loss = average_over_replicas(check_loss(value, state.numbers.dtype), self._axis_name)
        return feel_pulse(state, loss, self._scope, ceiling=self._ceiling, **self._options._asdict())

    def __call__(self, state: PulseState, **extra_args: Any) -> jax.Array:
        # Optax asks without a loss once, in `init`; a step without one fails in `update`.
        return state.pulse if extra_args.get("value") is None else self.update(state, **extra_args).pulse


def pulse_schedule(
    learning_rate: jax.typing.ArrayLike = 1.0,
    *,
    ceiling: jax.typing.ArrayLike = 3e-3,
    stopcoef: jax.typing.ArrayLike = 0.04,
    steady: bool = False,
    spike_limit: jax.typing.ArrayLike | None = None,
    loss_unit: LossUnit = None,
    axis_name: AxisName = None,
) -> Any:
    """Makes a stateful schedule from the pulse, which drives any optimizer in `optax.inject_hyperparams`.

    Args:
        learning_rate: the scope S, a number >= 0.
        ceiling: the largest learning rate, >= 0; it does not rise with the scope, as published.
        stopcoef: the bound of the stop signal on the medium average, >= 0.
        steady: whether a loss above its trend may lower the level h only; an addition of this package.
        spike_limit: how many times the old short average a loss counts at most, > 1, or `None`; an
            addition of this package.
        loss_unit: the unit of the loss, a number > 0, "first" or `None`; an addition of this package.
        axis_name: the mapped axes over which the loss is averaged, a name, a tuple of names or `None`.

    Returns:
        An `optax.base.StatefulSchedule` in the place of a learning rate; `update` of the optimizer takes
        the loss as `value`, and `get_pulse` finds the pulse in its state.

    Raises:
        ValueError: for an option out of its range.
        LossMissingError: from `update` of the optimizer, without a loss.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import emo_optax
        >>> optimizer = optax.inject_hyperparams(optax.adamw)(emo_optax.pulse_schedule(steady=True))
        >>> params = jnp.ones(2)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
        >>> print(f"{state.hyperparams['learning_rate']:.1e} {emo_optax.get_pulse(state).felt}")
        1.0e-04 1

    Source: EmoPulseScheduler of EmoSens v3.9.1 by muooon.
    """
    options = PulseOptions(stopcoef, steady, spike_limit, loss_unit)
    check_not_negative("learning_rate", learning_rate)
    check_not_negative("ceiling", ceiling)
    options.check()
    check_axis_name(axis_name)
    return _PulseSchedule(learning_rate, ceiling, options, axis_name)


def pulsed_rule(
    rule: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any | Callable[[optax.Params], Any] | None,
    *,
    use_shadow: bool,
    weight_decay_mode: WeightDecayMode,
    rounding: Rounding,
    around: Callable[[optax.GradientTransformation], optax.GradientTransformation] = takes_extra_args,
    **pulse: Any,
) -> optax.GradientTransformationExtraArgs:
    """Puts a member of the third generation together: pulse, shadow, rule, weight decay, step.

    `around` wraps the transformations after the pulse, the shadow included.
    """
    check_flag("use_shadow", use_shadow)
    decay = place_weight_decay(weight_decay_mode, weight_decay, mask)
    step = compact_chain(
        decay["l2"], rule, decay["decoupled"], scale_by_pulse(shared=True), decay["absolute"]
    )
    member = share_pulse(around(blend_by_trust(step) if use_shadow else step), learning_rate, **pulse)
    return keep_dtypes(member, rounding)
