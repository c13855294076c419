"""Emotion: from the loss to one scalar, once a step for a whole optimizer."""

import ctypes
import math
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emo_torch._pieces.early_stop import WINDOW, went_quiet

_is_cpu = attrgetter("is_cpu")
# Whether numbers are read out of tensors on the CPU; False: every step is computed as on a device.
IS_CPU_READ = True


class EmotionState(NamedTuple):
    """The statistics of the losses that an optimizer keeps; every field is a tensor of shape `[]` but one.

    Attributes:
        felt: losses felt so far, int32.
        held: losses skipped because they were not finite, int32.
        short: the short average of the loss, in the loss's unit.
        long: the long average of the loss, in the loss's unit.
        scalar: the emotion scalar of the last finite loss, in [-1, 1]; 0 before any.
        history: the last 32 scalars, oldest first, shape `[32]`; 0 for steps not taken yet.
        should_stop: whether training has ever gone quiet, bool; stays set.
    """

    felt: Tensor
    held: Tensor
    short: Tensor
    long: Tensor
    scalar: Tensor
    history: Tensor
    should_stop: Tensor


class Emotion(NamedTuple):
    """The values of an emotion, to be read; every field is a tensor of shape `[]`.

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

    short: Tensor
    long: Tensor
    scalar: Tensor
    step_scale: Tensor
    shadow_ratio: Tensor
    should_stop: Tensor
    is_quiet: Tensor
    felt: Tensor
    held: Tensor


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns the dtype to compute in: float64 if a tensor is float64, else float32."""
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def init_emotion(dtype: torch.dtype, device: torch.device | str = "cpu") -> EmotionState:
    """Returns the emotion of an optimizer that has seen no loss, each field in its own tensor.

    Args:
        dtype: the floating-point dtype of the state, float32 or float64.
        device: the device of the tensors.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.init_emotion(torch.float32).history.shape)
        torch.Size([32])

    Source: EmoSens and EmoNavi v2.0 by muooon.
    """
    return EmotionState(
        felt=torch.zeros((), dtype=torch.int32, device=device),
        held=torch.zeros((), dtype=torch.int32, device=device),
        short=torch.zeros((), dtype=dtype, device=device),
        long=torch.zeros((), dtype=dtype, device=device),
        scalar=torch.zeros((), dtype=dtype, device=device),
        history=torch.zeros(WINDOW, dtype=dtype, device=device),
        should_stop=torch.zeros((), dtype=torch.bool, device=device),
    )


def feel(
    state: EmotionState,
    loss: Tensor,
    *,
    short_factor: float = 0.3,
    long_factor: float = 0.01,
    gain: float = 5.0,
    mean_below: float = 0.05,
    variance_below: float = 0.005,
) -> EmotionState:
    r"""Updates the state with the loss of one step, without a host sync.

    .. math::
        short &\leftarrow 0.3\,L + 0.7\,short \\
        long &\leftarrow 0.01\,L + 0.99\,long \\
        s &= \tanh(5\,(short - long))

    Both averages start at the first finite loss. A loss that is not finite, or that would make
    an average infinite, changes only the count of held losses.

    Args:
        state: the emotion before this step.
        loss: the loss at the parameters at which the gradient was taken; shape `[]`, in the state's
            dtype and on its device.
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        mean_below: the stop signal's bound on the mean of the last 32 |s|, in (0, 1].
        variance_below: its bound on their variance, in (0, 1].

    Returns:
        The emotion after this step, in new tensors.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> emotion = emo_torch.init_emotion(torch.float32)
        >>> for loss in (2.0, 1.0):
        ...     emotion = emo_torch.feel(emotion, torch.tensor(loss))
        >>> print(f"{emotion.short:.2f} {emotion.long:.2f} {emotion.scalar:.4f}")
        1.70 1.99 -0.8957

    Source: EmoSens and EmoNavi v2.0 by muooon.
    """
    is_first = state.felt == 0
    is_finite = torch.isfinite(loss)
    loss = torch.where(is_finite, loss, torch.zeros_like(loss))

    def average(before: Tensor, factor: float) -> Tensor:
        # In this form, and not `0.3 L + 0.7 before`, a constant loss leaves both averages alone to
        # the last bit, however large it is.
        moved = before + factor * (loss - before)
        return torch.where(is_first, loss, moved)

    short = average(state.short, short_factor)
    long = average(state.long, long_factor)
    is_felt = is_finite & torch.isfinite(short) & torch.isfinite(long)
    short = torch.where(is_felt, short, state.short)
    long = torch.where(is_felt, long, state.long)
    scalar = torch.tanh(gain * (short - long))
    felt = state.felt + is_felt
    held = state.held + ~is_felt
    extended = torch.cat([state.history[1:], scalar.unsqueeze(0)])
    history = torch.where(is_felt, extended, state.history)
    is_quiet = went_quiet(history, felt, mean_below=mean_below, variance_below=variance_below)
    should_stop = state.should_stop | (is_felt & is_quiet)
    return EmotionState(felt, held, short, long, scalar, history, should_stop)


class EmotionArrays:
    """The memory of an emotion's tensors on the CPU, as NumPy arrays.

    To read or write a number in such an array takes much less time than a call of PyTorch.

    Args:
        state: the emotion, whose tensors are on the CPU.

    Attributes:
        places: the addresses of the tensors when the arrays were made.
        dtype: the dtype of the averages at that time.
        real: the type of C that rounds a number to this dtype.
        older: all of `history` but the newest scalar.
        newer: all of `history` but the oldest scalar.
    """

    def __init__(self, state: EmotionState) -> None:
        # These arrays keep the memory alive, so that no new tensor can have one of these addresses.
        self.places, self.dtype = list(map(Tensor.data_ptr, state)), state.short.dtype
        self.felt, self.held = state.felt.numpy(), state.held.numpy()
        self.short, self.long, self.scalar = state.short.numpy(), state.long.numpy(), state.scalar.numpy()
        self.history, self.should_stop = state.history.numpy(), state.should_stop.numpy()
        self.older, self.newer = self.history[:-1], self.history[1:]
        is_double = state.short.dtype == torch.float64
        self.real: Any = ctypes.c_double if is_double else ctypes.c_float


def feel_in_place(
    state: EmotionState,
    loss: Tensor,
    *,
    short_factor: float,
    long_factor: float,
    gain: float,
    arrays: EmotionArrays | None = None,
    **bounds: float,
) -> EmotionArrays | None:
    """Like `feel`, to the last bit, with the state's own tensors.

    On the CPU a call of PyTorch costs ten times as much as the one number that it computes. There Python
    computes all but the hyperbolic tangent, which differs between libraries. A sum or a product of two
    float32 numbers has the same bits if it is computed in float64 and then rounded to float32.

    Args:
        state: the emotion before this step, and after it.
        loss: the loss, as for `feel`.
        short_factor: as for `feel`.
        long_factor: as for `feel`.
        gain: as for `feel`.
        arrays: the result of the step before.
        **bounds: `mean_below` and `variance_below`, as for `feel`.

    Returns:
        The arrays of the state on the CPU, for the next step; `None` on other devices.
    """
    # As `is_on_cpu` says, without a call.
    is_plain = type(loss) is type(state.short) is Tensor
    is_readable = IS_CPU_READ and is_plain and loss.is_cpu and state.short.is_cpu
    if torch.compiler.is_compiling() or not is_readable:
        felt = feel(state, loss, short_factor=short_factor, long_factor=long_factor, gain=gain, **bounds)
        for tensor, new in zip(state, felt, strict=True):
            tensor.copy_(new)
        return None
    places = list(map(Tensor.data_ptr, state))
    if arrays is None or arrays.places != places or arrays.dtype != state.short.dtype:
        arrays = EmotionArrays(state)
    number, real = loss.item(), arrays.real  # Every operation is rounded to this type, as in PyTorch.
    short, long = arrays.short.item(), arrays.long.item()
    is_felt = math.isfinite(number)
    if is_felt:
        new_short = new_long = number
        if arrays.felt.item() != 0:
            change = real(real(short_factor).value * real(number - short).value).value
            new_short = real(short + change).value
            change = real(real(long_factor).value * real(number - long).value).value
            new_long = real(long + change).value
        is_felt = math.isfinite(new_short) and math.isfinite(new_long)
        if is_felt:
            arrays.short[()], arrays.long[()] = short, long = new_short, new_long
    arrays.scalar[()] = real(real(gain).value * real(short - long).value).value
    state.scalar.tanh_()
    count = arrays.felt if is_felt else arrays.held
    count[()] = count.item() + 1
    if is_felt:
        history = arrays.history
        arrays.older[...] = arrays.newer
        history[-1] = arrays.scalar.item()
        # A mean above its bound by more than rounding errors is not quiet: no call of PyTorch is needed.
        most = 1.01 * WINDOW * bounds.get("mean_below", 0.05)
        if (
            not arrays.should_stop.item()
            and arrays.felt.item() >= WINDOW
            and np.add.reduce(np.abs(history)) < most
        ):
            state.should_stop.copy_(went_quiet(state.history, state.felt, **bounds))
    return arrays


def is_on_cpu(*tensors: Tensor) -> bool:
    """Returns whether the numbers of tensors can be read without a wait for a device."""
    return IS_CPU_READ and set(map(type, tensors)) == {Tensor} and all(map(_is_cpu, tensors))
