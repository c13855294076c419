"""emoPulse: the learning rate that the third generation makes from the loss."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from emo_torch._checks.validation import check_flag, check_not_negative
from emo_torch._pieces.trust import FLOOR, Averages, move_averages, relative_scalar, trust_of

LossUnit = float | Literal["first"] | None
"""The unit of the loss: a number > 0, "first" for the size of the first loss, `None` as published."""


class PulseState(NamedTuple):
    """The memory of the losses that the third generation keeps; every field is a tensor of shape `[]`.

    Attributes:
        felt: losses felt so far, int32.
        held: losses skipped because they were not finite, int32.
        short: the short average of the loss, in the unit of the loss.
        medium: the medium average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        unit: the size of the first loss that is not 0, in the unit of the loss; 0 before such a loss.
        scalar: the emotion scalar s of the last finite loss, in [-1, 1]; above 0 the loss is below its
            trend.
        level: h, the level of the pulse; 1 at first.
        noise: n, the average of |s|; 1 at first.
        distance: q, the average of |trust|; 0.02 at first.
        course: k, the average of s; 0 at first.
        pulse: the learning rate of the last step.
        should_stop: whether the last finite loss showed that training has gone quiet, bool; can become
            False again.
    """

    felt: Tensor
    held: Tensor
    short: Tensor
    medium: Tensor
    long: Tensor
    unit: Tensor
    scalar: Tensor
    level: Tensor
    noise: Tensor
    distance: Tensor
    course: Tensor
    pulse: Tensor
    should_stop: Tensor


class Pulse(NamedTuple):
    """The pulse of an optimizer; every field is a tensor of shape `[]`.

    Attributes:
        pulse: the learning rate of the last step, of the first parameter group.
        short: the short average of the loss, in the unit of the loss.
        medium: the medium average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is below its trend.
        trust: 1 - |s| with the sign of s, in [-1, 1].
        level: h, the level of the pulse.
        shadow_ratio: how far the last step pulled the weights to their shadow, in [0, 1]; 0 without one.
        should_stop: whether training has gone quiet, bool; can become False again.
        felt: losses felt so far, int32.
        held: losses skipped because they were not finite, int32.
    """

    pulse: Tensor
    short: Tensor
    medium: Tensor
    long: Tensor
    scalar: Tensor
    trust: Tensor
    level: Tensor
    shadow_ratio: Tensor
    should_stop: Tensor
    felt: Tensor
    held: Tensor


def pulse_from(state: PulseState, shadow_ratio: Tensor | None = None) -> Pulse:
    """Returns the values of a state that users read, in new tensors."""
    return Pulse(
        pulse=state.pulse.clone(),
        short=state.short.clone(),
        medium=state.medium.clone(),
        long=state.long.clone(),
        scalar=state.scalar.clone(),
        trust=trust_of(state.scalar),
        level=state.level.clone(),
        shadow_ratio=torch.zeros_like(state.scalar) if shadow_ratio is None else shadow_ratio.clone(),
        should_stop=state.should_stop.clone(),
        felt=state.felt.clone(),
        held=state.held.clone(),
    )


def check_pulse_options(
    stopcoef: Any = 0.04, steady: Any = False, spike_limit: Any = None, loss_unit: Any = None
) -> None:
    """Raises an error for an option of the pulse out of its range (see `feel_pulse`)."""
    check_not_negative("stopcoef", stopcoef)
    check_flag("steady", steady)
    if spike_limit is not None:
        _check_above("spike_limit", spike_limit, 1.0, "None, or finite and above 1")
    if isinstance(loss_unit, str):
        if loss_unit != "first":
            raise ValueError(f"Invalid loss_unit: {loss_unit!r}; it must be a number, 'first' or None")
    elif loss_unit is not None:
        _check_above("loss_unit", loss_unit, 0.0, "None, 'first', or finite and above 0")


def _check_above(name: str, value: Any, bound: float, needed: str) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not bound < value < math.inf:
        raise ValueError(f"Invalid {name}: {value}; it must be {needed}")


def init_pulse(
    dtype: torch.dtype, scope: float | Tensor = 1.0, *, ceiling: float | None = None
) -> PulseState:
    """Returns the state before the first loss, each field in its own memory.

    Args:
        dtype: the floating-point dtype of the state.
        scope: the learning rate that the optimizer is given, >= 0.
        ceiling: the largest pulse, >= 0; `None` for 3e-3 of the scope.

    Returns:
        The state, on the CPU; its pulse is 1e-4 of the scope, not above the ceiling and not below 1e-8.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.init_pulse(torch.float32, 0.5).pulse)
        tensor(5.0000e-05)

    Source: EmoSens v3.9.1 by muooon.
    """

    def number(value: float) -> Tensor:
        return torch.full((), value, dtype=dtype)

    level, course = number(1.0), number(0.0)
    return PulseState(
        felt=torch.zeros((), dtype=torch.int32),
        held=torch.zeros((), dtype=torch.int32),
        short=number(0.0),
        medium=number(0.0),
        long=number(0.0),
        unit=number(0.0),
        scalar=number(0.0),
        level=level,
        noise=number(1.0),
        distance=number(0.02),
        course=course,
        pulse=pulse_of(level, course, scope, ceiling),
        should_stop=torch.zeros((), dtype=torch.bool),
    )


def pulse_of(level: Tensor, course: Tensor, scope: float | Tensor, ceiling: float | None = None) -> Tensor:
    r"""Returns the learning rate that a level and a course make of a scope.

    .. math:: \max(\min(h\,S\,\max(100^k, 0.01)\,10^{-4},\; 3 \cdot 10^{-3}\,S),\; 10^{-8})

    Args:
        level: h, shape `[]`.
        course: k, shape `[]`, same dtype.
        scope: S, a number >= 0 or a tensor of one element.
        ceiling: the largest pulse, >= 0; `None` for 3e-3 of the scope.
    """
    if isinstance(scope, Tensor):
        scope = scope.detach().reshape(()).to(device=level.device, dtype=level.dtype)
    power = torch.pow(100.0, course).clamp(min=0.01)
    pulse = level * scope * power * 1e-4
    if ceiling is None and isinstance(scope, Tensor):
        pulse = torch.minimum(pulse, 3e-3 * scope)
    else:
        pulse = pulse.clamp(max=3e-3 * scope if ceiling is None else ceiling)
    return pulse.clamp(min=1e-8)


def feel_pulse(
    state: PulseState,
    loss: Tensor,
    scope: float | Tensor = 1.0,
    *,
    stopcoef: float = 0.04,
    steady: bool = False,
    spike_limit: float | None = None,
    loss_unit: LossUnit = None,
    ceiling: float | None = None,
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
        The state after this step, in new tensors.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> for steady in (False, True):
        ...     state = emo_torch.init_pulse(torch.float32)
        ...     for loss in [1.0] * 300 + [3.0] + [1.0] * 300:  # flat, with one spike
        ...         state = emo_torch.feel_pulse(state, torch.tensor(loss), steady=steady)
        ...     print(f"{state.pulse:.1e}")
        3.0e-03
        1.0e-04

    Source: emoPulse of EmoSens v3.9.1 by muooon.
    """
    before, most = Averages(state.short, state.medium, state.long), None
    if spike_limit is not None:  # Without a loss so far the short average is 0.
        limit = spike_limit * state.short
        most = torch.where(state.short > 0.0, limit, torch.full_like(limit, math.inf))
    averages, felt, held = move_averages(before, loss, state.felt, state.held, most)
    is_felt = held == state.held
    size = torch.where(is_felt, loss, torch.zeros_like(loss)).abs()
    unit = torch.where(state.unit == 0.0, size, state.unit)
    one = _unit(unit, loss_unit)
    base = averages.long if loss_unit is None else averages.long.abs()
    scalar = relative_scalar(averages, torch.maximum(base, FLOOR * one))
    trust = trust_of(scalar)

    def average(before: Tensor, new: Tensor, rate: float) -> Tensor:
        return torch.where(is_felt, rate * before + (1.0 - rate) * new, before)

    noise = average(state.noise, scalar.abs(), 0.97)
    distance = average(state.distance, trust.abs(), 0.97)
    course = average(state.course, scalar, 0.7)
    distrust = ((noise.clamp(min=1e-10) - distance).abs() + 0.1) / ((scalar - trust).abs() + 0.1)
    reach, old = distrust.square(), state.level
    settled = 0.8 * reach
    if steady:  # By the sign of s: a trust of -0.0, where s is -1, is not below 0.
        settled = torch.where(scalar < 0.0, torch.minimum(old, settled), settled)
    level = torch.where((trust >= -0.5) & (trust <= 0.5), settled, old)
    level = torch.where((reach >= old) & (trust >= 0.5), torch.minimum(reach, 1.5 * old), level)
    level = torch.where(is_felt, level, old)
    floored = torch.maximum(averages.medium, FLOOR * one)
    is_quiet = (distance - noise >= 0.3) & (floored <= stopcoef * one)
    return PulseState(
        felt,
        held,
        *averages,
        unit=unit,
        scalar=scalar,
        level=level,
        noise=noise,
        distance=distance,
        course=course,
        pulse=pulse_of(level, course, scope, ceiling),
        should_stop=torch.where(is_felt, is_quiet, state.should_stop),
    )


def _unit(first: Tensor, loss_unit: LossUnit) -> Tensor:
    """Returns the unit of the loss; 1 as long as "first" has no loss but 0."""
    if isinstance(loss_unit, str):
        return torch.where(first > 0.0, first, torch.ones_like(first))
    return torch.full_like(first, 1.0 if loss_unit is None else loss_unit)
