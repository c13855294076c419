"""`feel_pulse` in a state's own memory: on the CPU, calls of PyTorch take longer than the few numbers."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_torch._pieces.arrays_in_place import ArraysInPlace
from emo_torch._pieces.emotion import is_on_cpu
from emo_torch._pieces.pulse import LossUnit, PulseState, feel_pulse
from emo_torch._pieces.trust import FACTORS, FLOOR


def feel_pulse_in_place(
    state: PulseState,
    loss: Tensor,
    scope: float | Tensor,
    *,
    stopcoef: float,
    steady: bool,
    spike_limit: float | None,
    loss_unit: LossUnit,
    arrays: ArraysInPlace | None = None,
) -> ArraysInPlace | None:
    """Like `feel_pulse`, to the last bit, with the state's own tensors.

    On the CPU, NumPy's numbers are computed with the same roundings as tensors. Only the hyperbolic tangent
    and the power, which differ between libraries, are left to PyTorch.

    Args:
        state: the pulse before this step, and after it.
        loss: as for `feel_pulse`.
        scope: as for `feel_pulse`.
        stopcoef: as for `feel_pulse`.
        steady: as for `feel_pulse`.
        spike_limit: as for `feel_pulse`.
        loss_unit: as for `feel_pulse`.
        arrays: the result of the step before.

    Returns:
        The arrays of the state on the CPU, for the next step; `None` on other devices.
    """
    rates = (scope,) if isinstance(scope, Tensor) else ()
    if torch.compiler.is_compiling() or not is_on_cpu(loss, state.short, *rates):
        felt = feel_pulse(
            state,
            loss,
            scope,
            stopcoef=stopcoef,
            steady=steady,
            spike_limit=spike_limit,
            loss_unit=loss_unit,
        )
        for tensor, new in zip(state, felt, strict=True):
            tensor.copy_(new)
        return None
    if arrays is None or not arrays.fit(state, loss.dtype):
        arrays = ArraysInPlace(state, state.short.dtype)
    with np.errstate(all="ignore"):
        is_felt = _move(arrays, loss.item(), spike_limit, loss_unit)
        state.scalar.tanh_()
        _beat(arrays, is_felt, stopcoef, steady, loss_unit)
        power = torch.pow(100.0, state.course).item()
        arrays.fields.pulse[()] = _pulse(arrays, power, scope)
    return arrays


def _unit(arrays: ArraysInPlace, loss_unit: LossUnit) -> Any:
    if isinstance(loss_unit, str):
        first = arrays.fields.unit[()]
        return first if first > 0.0 else arrays.real(1.0)
    return arrays.real(1.0 if loss_unit is None else loss_unit)


def _move(arrays: ArraysInPlace, number: float, spike_limit: float | None, loss_unit: LossUnit) -> bool:
    """Moves the averages and the unit; leaves the quotient of which s is the tangent in `scalar`."""
    own, real = arrays.fields, arrays.real
    is_felt = math.isfinite(number)
    given = real(number)
    loss = given if is_felt else real(0.0)
    if spike_limit is not None and own.short[()] > 0.0:
        loss = min(loss, real(spike_limit) * own.short[()])
    averages = (own.short, own.medium, own.long)
    if is_felt:
        is_first = own.felt[()] == 0
        moved = [
            loss if is_first else old[()] + real(factor) * (loss - old[()])
            for old, factor in zip(averages, FACTORS, strict=True)
        ]
        is_felt = all(map(math.isfinite, moved))
        if is_felt:
            for old, new in zip(averages, moved, strict=True):
                old[()] = new
    count = own.felt if is_felt else own.held
    count[()] = count.item() + 1
    if own.unit[()] == 0.0:
        own.unit[()] = abs(given) if is_felt else real(0.0)
    long = own.long[()]
    base = long if loss_unit is None else abs(long)
    own.scalar[()] = (long - own.short[()]) / max(base, real(FLOOR) * _unit(arrays, loss_unit))
    return is_felt


def _beat(arrays: ArraysInPlace, is_felt: bool, stopcoef: float, steady: bool, loss_unit: LossUnit) -> None:
    """Moves the averages of the scalar, the level and the stop signal."""
    if not is_felt:
        return
    own, real = arrays.fields, arrays.real
    scalar = own.scalar[()]
    trust = np.copysign(real(1.0) - abs(scalar), scalar)
    pairs = ((own.noise, abs(scalar), 0.97), (own.distance, abs(trust), 0.97), (own.course, scalar, 0.7))
    for average, new, rate in pairs:
        average[()] = real(rate) * average[()] + real(1.0 - rate) * new
    noise, distance, old = own.noise[()], own.distance[()], own.level[()]
    least = real(0.1)
    distrust = (abs(max(noise, real(1e-10)) - distance) + least) / (abs(scalar - trust) + least)
    reach = distrust * distrust
    settled = real(0.8) * reach
    if steady and scalar < 0.0:  # By the sign of s, as in `feel_pulse`.
        settled = min(old, settled)
    if reach >= old and trust >= 0.5:
        own.level[()] = min(reach, real(1.5) * old)
    elif -0.5 <= trust <= 0.5:
        own.level[()] = settled
    one = _unit(arrays, loss_unit)
    is_low = max(own.medium[()], real(FLOOR) * one) <= real(stopcoef) * one
    own.should_stop[()] = bool(distance - noise >= real(0.3) and is_low)


def _pulse(arrays: ArraysInPlace, power: float, scope: float | Tensor) -> Any:
    """Returns the pulse of a level and of a power of the course, as `pulse_of`."""
    real = arrays.real
    if isinstance(scope, Tensor):
        given = real(scope.item())
        most = real(3e-3) * given
    else:
        given, most = real(scope), real(3e-3 * scope)
    pulse = arrays.fields.level[()] * given * max(real(power), real(0.01)) * real(1e-4)
    return max(min(pulse, most), real(1e-8))
