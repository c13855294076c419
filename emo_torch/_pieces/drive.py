"""The emotion of EmoNavi, EmoFact and EmoLynx v3.6.1: three averages, trust, and emoDrive."""

from typing import NamedTuple

import torch
from torch import Tensor

from emo_torch._pieces.early_stop import went_quiet
from emo_torch._pieces.emotion import EmotionState, init_emotion
from emo_torch._pieces.trust import FLOOR, Averages, move_averages, relative_scalar, trust_of


class DriveState(NamedTuple):
    """The memory of the losses that v3.6.1 keeps.

    Attributes:
        emotion: counts, short and long average, scalar, the last 32 scalars and the stop signal. The scalar
            is above 0 where the loss is below its trend: v3 has the opposite sign of v2.0.
        medium: the medium average of the loss, shape `[]`, in the unit of the loss.
    """

    emotion: EmotionState
    medium: Tensor


class Drive(NamedTuple):
    """The emotion of v3.6.1; every field is a tensor of shape `[]`.

    Attributes:
        drive: e, the factor of the update, in [0, 6.45].
        short: the short average of the loss, in the unit of the loss.
        medium: the medium average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is below its trend.
        trust: 1 - |s| with the sign of s, in [-1, 1].
        shadow_ratio: how far the last step pulled the weights to their shadow, in [0, 1]; 0 without one.
        should_stop: whether training has ever gone quiet, bool; stays set.
        is_quiet: whether training is quiet now, over the last 32 losses, bool.
        felt: losses felt so far, int32.
        held: losses skipped because they were not finite, int32.
    """

    drive: Tensor
    short: Tensor
    medium: Tensor
    long: Tensor
    scalar: Tensor
    trust: Tensor
    shadow_ratio: Tensor
    should_stop: Tensor
    is_quiet: Tensor
    felt: Tensor
    held: Tensor


def init_drive(dtype: torch.dtype) -> DriveState:
    """Returns the state before the first loss, each field in its own memory.

    Args:
        dtype: the floating-point dtype of the state, float32 or float64.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.init_drive(torch.float32).medium)
        tensor(0.)

    Source: EmoNavi v3.6.1 by muooon.
    """
    return DriveState(init_emotion(dtype), torch.zeros((), dtype=dtype))


def feel_drive(state: DriveState, loss: Tensor) -> DriveState:
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
        The state after this step, in new tensors.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> state = emo_torch.init_drive(torch.float32)
        >>> for loss in (2.0, 1.0):
        ...     state = emo_torch.feel_drive(state, torch.tensor(loss))
        >>> print(f"{state.medium:.2f} {state.emotion.scalar:.4f}")
        1.95 0.1447

    Source: EmoNavi v3.6.1 by muooon.
    """
    old = state.emotion
    averages, felt, held = move_averages(
        Averages(old.short, state.medium, old.long), loss, old.felt, old.held
    )
    is_felt = held == old.held
    scalar = relative_scalar(averages, averages.long.clamp(min=FLOOR))
    history = torch.where(is_felt, torch.cat([old.history[1:], scalar.unsqueeze(0)]), old.history)
    should_stop = old.should_stop | (is_felt & went_quiet(history, felt))
    emotion = EmotionState(felt, held, averages.short, averages.long, scalar, history, should_stop)
    return DriveState(emotion, averages.medium)


def drive_factor(scalar: Tensor) -> Tensor:
    r"""Returns emoDrive, the factor of the update of v3.6.1.

    .. math::
        e = 8\,|trust|\,(1 + 0.1\,trust) \;(0.25 < |s| < 0.5), \quad
        1 - |s| \;(|s| > 0.75), \quad 1 \text{ else}; \qquad trust = \mathrm{copysign}(1 - |s|, s)

    Args:
        scalar: the emotion scalar s, in [-1, 1], any shape.

    Returns:
        The factor, in [0, 6.45], same shape and dtype.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.drive_factor(torch.tensor([0.0, 0.3, -0.3, 0.5, -0.875])))
        tensor([1.0000, 5.9920, 5.2080, 1.0000, 0.1250])

    Source: emoDrive of EmoNavi, EmoFact and EmoLynx v3.6.1 by muooon.
    """
    size, trust = scalar.abs(), trust_of(scalar)
    fast = 8.0 * trust.abs() * (1.0 + 0.1 * trust)
    calm = torch.where(size > 0.75, 1.0 - size, torch.ones_like(scalar))
    return torch.where((size > 0.25) & (size < 0.5), fast, calm)
