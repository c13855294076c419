"""emoPulse: the learning rate that the third generation makes from the loss."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emo_optax._checks.validation import (
    _known,
    check_flag,
    check_learning_rate,
    check_not_negative,
    hyperparameter,
)
from emo_optax._pieces.packed import PackedState, Part, check_packed
from emo_optax._pieces.trust import FLOOR, Averages, move_averages, relative_scalar, trust_of

LossUnit = jax.typing.ArrayLike | Literal["first"] | None
"""The unit of the loss: a number > 0, "first" for the size of the first loss, `None` as published."""


class PulseState(PackedState):
    """The memory of the losses that the third generation keeps, in two arrays.

    Each value has the shape `[]` and is read by its name, as in `state.pulse`:

    - `felt`: losses felt so far, int32.
    - `held`: losses skipped because they were not finite, int32.
    - `short`, `medium`, `long`: the averages of the loss, in the unit of the loss.
    - `unit`: the size of the first loss that is not 0, in the unit of the loss; 0 before such a loss.
    - `scalar`: the emotion scalar s of the last finite loss, in [-1, 1]; above 0 the loss is below its
      trend.
    - `level`: h, the level of the pulse; 1 at first.
    - `noise`: n, the average of |s|; 1 at first.
    - `distance`: q, the average of |trust|; 0.02 at first.
    - `course`: k, the average of s; 0 at first.
    - `pulse`: the learning rate of the last step.
    - `should_stop`: whether the last finite loss showed that training has gone quiet, bool; can become
      False again.

    Attributes:
        numbers: the values from `short` to `pulse`, in this order, shape `[10]`.
        counts: `felt`, `held` and `should_stop`, int32, shape `[3]`.
    """

    __slots__ = ()
    felt = Part("counts", 0)
    held = Part("counts", 1)
    short = Part("numbers", 0)
    medium = Part("numbers", 1)
    long = Part("numbers", 2)
    unit = Part("numbers", 3)
    scalar = Part("numbers", 4)
    level = Part("numbers", 5)
    noise = Part("numbers", 6)
    distance = Part("numbers", 7)
    course = Part("numbers", 8)
    pulse = Part("numbers", 9)
    should_stop = Part("counts", 2, is_flag=True)


_RATES = np.asarray([0.97, 0.97, 0.7])
"""The rates of `noise`, `distance` and `course`."""


class PulseOptions(NamedTuple):
    """The options of the pulse, as `share_pulse` and `feel_pulse` describe them."""

    stopcoef: jax.typing.ArrayLike = 0.04
    steady: bool = False
    spike_limit: jax.typing.ArrayLike | None = None
    loss_unit: LossUnit = None

    def check(self) -> None:
        """Raises an error for an option out of its range."""
        check_not_negative("stopcoef", self.stopcoef)
        check_flag("steady", self.steady)
        if self.spike_limit is not None:
            _check_above("spike_limit", self.spike_limit, 1.0, "None, or finite and above 1")
        if isinstance(self.loss_unit, str):
            if self.loss_unit != "first":
                raise ValueError(
                    f"Invalid loss_unit: {self.loss_unit!r}; it must be a number, 'first' or None"
                )
        elif self.loss_unit is not None:
            _check_above("loss_unit", self.loss_unit, 0.0, "None, 'first', or finite and above 0")


def _check_above(name: str, value: Any, bound: float, needed: str) -> None:
    known = _known(name, value)
    if known is not None and not bound < known < float("inf"):
        raise ValueError(f"Invalid {name}: {value}; it must be {needed}")


def init_pulse(
    dtype: Any, scope: jax.typing.ArrayLike = 1.0, *, ceiling: jax.typing.ArrayLike | None = None
) -> PulseState:
    """Returns the state before the first loss, each array in its own buffer.

    Args:
        dtype: the floating-point dtype of the state.
        scope: the learning rate that the optimizer is given, >= 0.
        ceiling: the largest pulse, >= 0; `None` for 3e-3 of the scope.

    Returns:
        The state; its pulse is 1e-4 of the scope, not above the ceiling and not below 1e-8.

    Example:
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> print(f"{emo_optax.init_pulse(jnp.float32, 0.5).pulse:.0e}")
        5e-05

    Source: EmoSens v3.9.1 by muooon.
    """
    pulse = _pulse_of(jnp.ones([], dtype), jnp.zeros([], dtype), scope, ceiling)
    averages_unit_scalar, level_noise_distance_course = [0.0] * 5, [1.0, 1.0, 0.02, 0.0]
    known = jnp.array([*averages_unit_scalar, *level_noise_distance_course], dtype)
    return PulseState(jnp.concatenate([known, pulse[None]]), jnp.zeros([3], jnp.int32))


def _pulse_of(level: jax.Array, course: jax.Array, scope: Any, ceiling: Any) -> jax.Array:
    scope = hyperparameter(scope, level.dtype)
    most = 3e-3 * scope if ceiling is None else hyperparameter(ceiling, level.dtype)
    power = jnp.maximum(jnp.power(jnp.asarray(100.0, level.dtype), course), 0.01)
    pulse: jax.Array = jnp.maximum(jnp.minimum(level * scope * power * 1e-4, most), 1e-8)
    return pulse


def feel_pulse(
    state: PulseState,
    loss: jax.Array,
    scope: jax.typing.ArrayLike = 1.0,
    *,
    stopcoef: jax.typing.ArrayLike = 0.04,
    steady: bool = False,
    spike_limit: jax.typing.ArrayLike | None = None,
    loss_unit: LossUnit = None,
    ceiling: jax.typing.ArrayLike | None = None,
) -> PulseState:
    r"""Updates the state with the loss of one step and makes the pulse, the learning rate of that step.

    .. math::
        short &\leftarrow 0.3\,L + 0.7\,short, \quad medium \leftarrow 0.05\,L + 0.95\,medium, \quad
        long \leftarrow 0.01\,L + 0.99\,long \\
        s &= \tanh\left(\frac{long - short}{\max(long, 10^{-5})}\right), \quad
        trust = \mathrm{copysign}(1 - |s|, s) \\
        n &\leftarrow 0.97\,n + 0.03\,|s|, \quad q \leftarrow 0.97\,q + 0.03\,|trust|, \quad
        k \leftarrow 0.7\,k + 0.3\,s \\
        x &= \left(\frac{|\max(n, 10^{-10}) - q| + 0.1}{|s - trust| + 0.1}\right)^2 \\
        h &\leftarrow \min(x, 1.5\,h) \;(x \ge h,\; trust \ge 0.5), \quad
        \text{else } 0.8\,x \;(-0.5 \le trust \le 0.5), \quad \text{else } h \\
        pulse &= \max(\min(h\,S\,\max(100^k, 0.01)\,10^{-4},\; 3 \cdot 10^{-3}\,S),\; 10^{-8})

    The stop signal is set where :math:`q - n \ge 0.3` and :math:`\max(medium, 10^{-5}) \le stopcoef`.
    A loss that is not finite changes only the count of held losses; the pulse is then made from the same
    h and k. `steady`, `spike_limit` and `loss_unit` are additions of this package, off by default.

    Args:
        state: the state before this step.
        loss: the loss at the parameters at which the gradient was taken; shape `[]`, in the dtype of the
            state.
        scope: S, the learning rate that the optimizer is given, >= 0. A scope of 0 still makes a pulse of
            1e-8, as published.
        stopcoef: the bound of the stop signal on the medium average, >= 0.
        steady: whether a loss above its trend (s < 0) may lower h only:
            :math:`h \leftarrow \min(h, 0.8\,x)`.
        spike_limit: how many times the old short average a loss counts at most, > 1; `None` for no limit.
            Without effect while the short average is not above 0.
        loss_unit: the unit u of the loss, a number > 0 or "first" for the size of the first loss that is
            not 0. The floors become :math:`10^{-5} u`, the base of s becomes :math:`\max(|long|, 10^{-5}
            u)`, and the bound of the stop signal becomes `stopcoef` times u. `None` as published.
        ceiling: the largest pulse, >= 0; `None` for 3e-3 of the scope.

    Returns:
        The state after this step.

    Raises:
        ValueError: for a state whose arrays have other shapes or dtypes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import emo_optax
        >>> feel = jax.jit(emo_optax.feel_pulse, static_argnames="steady")
        >>> for steady in (False, True):
        ...     state = emo_optax.init_pulse(jnp.float32)
        ...     for loss in [1.0] * 300 + [3.0] + [1.0] * 300:  # flat, with one spike
        ...         state = feel(state, jnp.asarray(loss), steady=steady)
        ...     print(f"{state.pulse:.1e}")
        3.0e-03
        1.0e-04

    Source: emoPulse of EmoSens v3.9.1 by muooon.
    """
    check_packed("pulse", state, PulseState, 10, 3)
    dtype = state.numbers.dtype
    before, most = Averages(state.short, state.medium, state.long), None
    if spike_limit is not None:  # Without a loss so far the short average is 0.
        most = jnp.where(state.short > 0.0, hyperparameter(spike_limit, dtype) * state.short, jnp.inf)
    averages, felt, held = move_averages(before, loss, state.felt, state.held, most)
    is_felt = held == state.held
    size = jnp.abs(jnp.where(is_felt, loss, jnp.zeros([], dtype)))
    unit = jnp.where(state.unit == 0.0, size, state.unit)
    one = _unit(unit, loss_unit)
    base = averages.long if loss_unit is None else jnp.abs(averages.long)
    scalar = relative_scalar(averages, jnp.maximum(base, FLOOR * one))
    trust = trust_of(scalar)
    # A held loss keeps all of the old averages and adds nothing. As one array the averages compile in half
    # the time. In this form a compiler can fuse an addition only with the product of the old average, so
    # all programs round alike.
    kept = jnp.where(is_felt, _RATES.astype(dtype), jnp.ones([], dtype))
    new = jnp.stack([jnp.abs(scalar), jnp.abs(trust), scalar])
    added = jnp.where(is_felt, (1.0 - _RATES).astype(dtype) * new, jnp.zeros([], dtype))
    smoothed = kept * state.numbers[6:9] + added
    noise, distance, course = smoothed
    distrust = (jnp.abs(jnp.maximum(noise, 1e-10) - distance) + 0.1) / (jnp.abs(scalar - trust) + 0.1)
    reach, old = jnp.square(distrust), state.level
    settled = 0.8 * reach
    if steady:  # By the sign of s: a trust of -0.0, where s is -1, is not below 0.
        settled = jnp.where(scalar < 0.0, jnp.minimum(old, settled), settled)
    level = jnp.where((trust >= -0.5) & (trust <= 0.5), settled, old)
    level = jnp.where((reach >= old) & (trust >= 0.5), jnp.minimum(reach, 1.5 * old), level)
    level = jnp.where(is_felt, level, old)
    floored = jnp.maximum(averages.medium, FLOOR * one)
    is_quiet = (distance - noise >= 0.3) & (floored <= hyperparameter(stopcoef, dtype) * one)
    pulse = _pulse_of(level, course, scope, ceiling)
    should_stop = jnp.where(is_felt, is_quiet, state.should_stop)
    return PulseState(
        jnp.concatenate([jnp.stack([*averages, unit, scalar, level]), smoothed, pulse[None]]),
        jnp.stack([felt, held, should_stop.astype(felt.dtype)]),
    )


def _unit(first: jax.Array, loss_unit: LossUnit) -> jax.Array:
    """Returns the unit of the loss; 1 as long as "first" has no loss but 0."""
    if isinstance(loss_unit, str):
        return jnp.where(first > 0.0, first, jnp.ones([], first.dtype))
    return jnp.asarray(1.0 if loss_unit is None else loss_unit, first.dtype)


class Scope(NamedTuple):
    """The scope of a pulse: a number, or a schedule and how to count for it."""

    learning_rate: optax.ScalarOrSchedule

    def check(self) -> None:
        """Raises an error unless the scope is a schedule or finite and >= 0."""
        check_learning_rate(self.learning_rate)

    def init(self) -> optax.OptState:
        """Returns the count of steps for a schedule, or an empty state for a number."""
        is_schedule = callable(self.learning_rate)
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)) if is_schedule else optax.EmptyState()

    def at(self, state: Any) -> Any:
        """Returns the scope of this step."""
        return self.learning_rate(state.count) if callable(self.learning_rate) else self.learning_rate

    def count(self, state: Any) -> optax.OptState:
        """Returns the state of the next step."""
        if not callable(self.learning_rate):
            return state
        return optax.ScaleByScheduleState(optax.safe_increment(state.count))
