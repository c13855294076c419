"""`feel_drive` in a state's own memory: on the CPU, calls of PyTorch take longer than the few numbers."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_torch._pieces.drive import DriveState, feel_drive
from emo_torch._pieces.early_stop import WINDOW, went_quiet
from emo_torch._pieces.emotion import EmotionArrays, is_on_cpu
from emo_torch._pieces.trust import FACTORS, FLOOR


class DriveArrays:
    """The memory of the tensors of a drive on the CPU, as NumPy arrays.

    Args:
        state: the drive, whose tensors are on the CPU.

    Attributes:
        places: the addresses of the tensors when the arrays were made.
        dtype: the dtype of the averages at that time.
        real: the type of NumPy's numbers of this dtype.
        emotion: the arrays of the emotion.
        medium: the array of the medium average.
    """

    def __init__(self, state: DriveState) -> None:
        # These arrays keep the memory alive, so that no new tensor can have one of these addresses.
        self.places, self.dtype = places_of(state), state.medium.dtype
        self.real: Any = np.float64 if self.dtype == torch.float64 else np.float32
        self.emotion, self.medium = EmotionArrays(state.emotion), state.medium.numpy()


def places_of(state: DriveState) -> list[int]:
    """Returns the addresses of the tensors of a drive."""
    return list(map(Tensor.data_ptr, (*state.emotion, state.medium)))


def feel_drive_in_place(
    state: DriveState, loss: Tensor, arrays: DriveArrays | None = None
) -> DriveArrays | None:
    """Like `feel_drive`, to the last bit, with the state's own tensors.

    Args:
        state: the drive before this step, and after it.
        loss: as for `feel_drive`.
        arrays: the result of the step before.

    Returns:
        The arrays of the state on the CPU, for the next step; `None` on other devices.
    """
    if torch.compiler.is_compiling() or not is_on_cpu(loss, state.medium):
        felt = feel_drive(state, loss)
        pairs = zip((*state.emotion, state.medium), (*felt.emotion, felt.medium), strict=True)
        for tensor, new in pairs:
            tensor.copy_(new)
        return None
    if arrays is None or arrays.places != places_of(state) or arrays.dtype != loss.dtype:
        arrays = DriveArrays(state)
    with np.errstate(all="ignore"):
        _move(arrays, state, loss.item())
    return arrays


def _move(arrays: DriveArrays, state: DriveState, number: float) -> None:
    own, real = arrays.emotion, arrays.real
    averages = (own.short, arrays.medium, own.long)
    is_felt = math.isfinite(number)
    if is_felt:
        loss, is_first = real(number), own.felt[()] == 0
        moved = [
            loss if is_first else old[()] + real(factor) * (loss - old[()])
            for old, factor in zip(averages, FACTORS, strict=True)
        ]
        is_felt = all(map(math.isfinite, moved))
        for old, new in zip(averages, moved, strict=True) if is_felt else ():
            old[()] = new
    long = own.long[()]
    own.scalar[()] = (long - own.short[()]) / max(long, real(FLOOR))
    state.emotion.scalar.tanh_()
    count = own.felt if is_felt else own.held
    count[()] = count.item() + 1
    if not is_felt:
        return
    own.older[...] = own.newer
    own.history[-1] = own.scalar.item()
    # A mean above its bound by more than rounding errors is not quiet: no call of PyTorch is needed.
    most = 1.01 * WINDOW * 0.05
    if own.felt.item() >= WINDOW and np.add.reduce(np.abs(own.history)) < most:
        quiet = went_quiet(state.emotion.history, state.emotion.felt)
        state.emotion.should_stop.logical_or_(quiet)
