"""`steer` in a state's own memory: on the CPU, calls of PyTorch take longer than the few numbers."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emo_torch._pieces.arrays_in_place import ArraysInPlace
from emo_torch._pieces.courage import USUAL_STEP
from emo_torch._pieces.pilot import PilotState
from emo_torch._pieces.relative_emotion import QUIET_STEPS


class Steered(NamedTuple):
    """The scalars after a step, as numbers of NumPy; the state does not have them yet.

    Attributes:
        step: the number of this step.
        emotion: the fields of `RelativeEmotionState`, in their order.
        norm: the running average of the gradient's norm.
        gate: the factor of the gradient.
        agreement_square: the average of the squared agreements.
        courage: the factor on the step.
    """

    step: int
    emotion: tuple[Any, ...]
    norm: Any
    gate: Any
    agreement_square: Any
    courage: Any


class PilotArrays(ArraysInPlace):
    """The memory of the tensors of a pilot on the CPU, as NumPy arrays.

    Only functions that differ between libraries are left to PyTorch. PyTorch divides a number by a tensor
    as the number times the reciprocal of the tensor.

    Args:
        state: the pilot, whose tensors are on the CPU.
    """

    def __init__(self, state: PilotState) -> None:
        super().__init__(state, state.norm.dtype)
        self._tensor = torch.zeros((), dtype=self.dtype, device="cpu")
        self._number = self._tensor.numpy()
        self._tiny = self.real(torch.finfo(self.dtype).tiny)
        self._most = self.real(torch.finfo(self.dtype).max)

    def fits(self, state: PilotState) -> bool:
        """Returns whether the state still has the tensors of these arrays."""
        return self.fit(state, state.norm.dtype)

    def steer(
        self,
        loss: float,
        square: Any,
        *,
        limit: float,
        min_courage: float,
        max_courage: float,
        learning_rate: float,
    ) -> Steered | None:
        """Returns the scalars of `steer` after a step; `None` if the step cannot be taken.

        Args:
            loss: as for `steer`.
            square: as for `steer`.
            limit: as for `steer`.
            min_courage: as for `steer`.
            max_courage: as for `steer`.
            learning_rate: as for `steer`.
        """
        real = self.real
        with np.errstate(all="ignore"):
            norm = self._root(real(square))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                return None
            step = self.fields.step.item() + 1
            factor, average = self._gate(norm, step, real(limit))
            emotion = self._feel(real(loss), step)
            if not math.isfinite(emotion[1] - emotion[2]):
                return None
            bounds = real(min_courage), real(max_courage), real(learning_rate)
            moved, courage = self._courage(emotion[-1], step, *bounds)
        return Steered(step, emotion, average, factor, moved, courage)

    def keep(self, steered: Steered, products: Any, longest: Any, bound: Any) -> None:
        """Writes the scalars after a step into the state, with the agreement of `with_agreement`.

        Args:
            steered: the result of `steer`.
            products: as for `with_agreement`, as an array of the dtype of the scalars.
            longest: the longest step of any parameter.
            bound: the share of the parameters whose step the ceiling bounded.
        """
        own, real = self.fields, self.real
        agreement = real(0.0)
        if steered.step > 1:
            with np.errstate(all="ignore"):
                size = self._root(products[0]) * self._root(products[2]) + self._tiny
                agreement = np.minimum(np.maximum(products[1] / size, real(-1.0)), real(1.0))
        new = (steered.step, own.skipped[()], *steered.emotion, steered.norm, steered.gate, agreement)
        new = (*new, steered.agreement_square, steered.courage, longest, bound)
        for field, value in zip(own, new, strict=True):
            field[()] = value

    def _of_torch(self, function: Any, value: Any) -> Any:
        """Returns the result for a number of a function of PyTorch that works in place."""
        self._number[()] = value
        function(self._tensor)
        return self._number[()]

    def _root(self, value: Any) -> Any:
        return self._of_torch(Tensor.sqrt_, value)

    def _gate(self, norm: Any, step: int, limit: Any) -> tuple[Any, Any]:
        """Returns the numbers of `gate`."""
        real, average = self.real, self.fields.norm[()]
        most = limit * average
        is_cut = norm > most and average > 0.0 and step > 1
        factor = most / norm if is_cut else real(1.0)
        rate = max(real(1.0) / real(step), real(0.05))
        return factor, average + rate * ((most if is_cut else norm) - average) if step > 1 else norm

    def _feel(self, loss: Any, step: int) -> tuple[Any, ...]:
        """Returns the numbers of `feel_relative`."""
        own, real, tiny = self.fields, self.real, self._tiny
        is_late = step > QUIET_STEPS
        before = own.previous[()], own.short[()], own.long[()]
        previous, short, long = (loss,) * 3 if step == 1 else before
        difference, limited = abs(loss - previous), loss
        if is_late:
            noise = self._root(own.square[()] / np.maximum(own.weight[()], tiny))
            difference = np.minimum(difference, real(4.0) * noise)
            limited = np.minimum(loss, short + real(8.0) * noise)
        short = short + real(0.3) * (limited - short)
        long = long + np.maximum(real(1.0) / (real(step) + real(1.0)), real(0.05)) * (limited - long)
        square = real(0.95) * own.square[()] + real(0.025) * difference * difference
        square = np.minimum(square, self._most)
        weight = real(0.95) * own.weight[()] + real(0.05)
        unit = real(2.0) * self._root(square / weight) + real(1e-7) * abs(long) + tiny
        scalar = self._of_torch(Tensor.tanh_, (short - long) / unit) if is_late else real(0.0)
        return loss, short, long, square, weight, scalar

    def _courage(self, scalar: Any, step: int, least: Any, most: Any, rate: Any) -> tuple[Any, Any]:
        """Returns the average of the squares and the courage of `move_courage`."""
        own, real = self.fields, self.real
        agreement, average, courage = own.agreement[()], own.agreement_square[()], own.courage[()]
        square = agreement * agreement
        moved = average + real(0.05) * (square - average)
        if step <= QUIET_STEPS:
            return moved, courage
        if scalar > 0.5:
            exponent = real(-0.2) * np.maximum(real(2.0) * scalar - real(1.0), real(0.0))
        else:
            z = self._of_torch(Tensor.tanh_, agreement / (self._root(moved) + self._tiny))
            fall = np.maximum(real(-2.0) * scalar - real(1.0), real(0.0))
            faster = real(1.0) + real(1.0) / (real(step) + real(10.0)) * real(40.0)
            growth = real(0.05) * faster * (z + real(0.4) * fall)
            exponent = growth + self._warm_up(courage, rate, step)
        moved_courage = courage * self._of_torch(Tensor.exp_, exponent)
        return moved, np.minimum(np.maximum(moved_courage, least), most)

    def _warm_up(self, courage: Any, rate: Any, step: int) -> Any:
        """Returns the number of `warm_up`."""
        real = self.real
        length = courage * rate
        share = real(1.0) / length * real(USUAL_STEP) if length > 0.0 else real(USUAL_STEP)
        distance = np.maximum(self._of_torch(Tensor.log_, share), real(0.0))
        return real(1.0) / (real(step) + real(20.0)) * real(6.0) * distance
