"""A scale-free emotion: the loss against its trend, in units of the noise of the loss."""

from typing import NamedTuple

import torch
from torch import Tensor

QUIET_STEPS = 5
"""For so many steps the scalar stays 0: the averages know too little of the loss."""


class RelativeEmotionState(NamedTuple):
    """The statistics of the losses of the scale-free emotion; every field has the shape `[]`.

    Attributes:
        previous: the loss of the last step, in the unit of the loss.
        short: the short average of the loss, in the unit of the loss.
        long: the long average of the loss, in the unit of the loss.
        square: the average of half the squared differences between the losses of neighbouring steps.
        weight: the sum of the weights in `square`, in [0, 1).
        scalar: the emotion scalar s, in [-1, 1]; above 0 the loss is above its trend.
    """

    previous: Tensor
    short: Tensor
    long: Tensor
    square: Tensor
    weight: Tensor
    scalar: Tensor


def init_relative_emotion(dtype: torch.dtype, device: torch.device | str = "cpu") -> RelativeEmotionState:
    """Returns the emotion before any loss.

    Args:
        dtype: the floating-point dtype of every field.
        device: the device of every field.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.init_relative_emotion(torch.float32).scalar)
        tensor(0.)
    """
    fields = (torch.zeros((), dtype=dtype, device=device) for _ in RelativeEmotionState._fields)
    return RelativeEmotionState(*fields)


def feel_relative(state: RelativeEmotionState, loss: Tensor, step: Tensor) -> RelativeEmotionState:
    r"""Updates the state with the loss of one step.

    .. math::
        d &= \min(|L - L_{prev}|,\, 4\,\sigma), \quad L' = \min(L,\, short + 8\,\sigma)
            \quad\text{(both limits for } t > 5) \\
        short &\leftarrow short + 0.3\,(L' - short) \\
        long &\leftarrow long + \max(0.05,\, \tfrac{1}{t+1})\,(L' - long) \\
        q &\leftarrow 0.95\,q + 0.05\,d^2/2, \quad c \leftarrow 0.95\,c + 0.05, \quad \sigma = \sqrt{q/c} \\
        s &= \tanh\frac{short - long}{2\,\sigma} \quad\text{for } t > 5, \text{ else } 0

    The noise :math:`\sigma` comes from differences between neighbouring steps, so that a trend does not
    inflate it. A loss in another unit gives the same scalar, up to rounding.

    Args:
        state: the emotion before this step.
        loss: the loss of this step; finite, shape `[]`, in the dtype of the state.
        step: the number of this step, counted from 1, an integer tensor of shape `[]`.

    Returns:
        The emotion after this step.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> for unit in (1.0, 1000.0):
        ...     emotion = emo_torch.init_relative_emotion(torch.float32)
        ...     for step, loss in enumerate((5.0, 4.0, 4.5, 3.0, 3.5, 2.0, 2.5)):
        ...         emotion = emo_torch.feel_relative(
        ...             emotion, torch.tensor(unit * loss), torch.tensor(step + 1)
        ...         )
        ...     print(f"{emotion.scalar:.3f}")
        -0.404
        -0.404

    Source: ours (EmoPilot), after the averages of EmoSens by muooon.
    """
    dtype = state.scalar.dtype
    tiny = torch.finfo(dtype).tiny
    t = step.to(dtype)
    is_first, is_late = step == 1, step > QUIET_STEPS
    previous, short, long = (
        torch.where(is_first, loss, old) for old in (state.previous, state.short, state.long)
    )
    noise = torch.sqrt(state.square / state.weight.clamp(min=tiny))
    difference = torch.abs(loss - previous)
    difference = torch.where(is_late, torch.minimum(difference, 4.0 * noise), difference)
    limited = torch.where(is_late, torch.minimum(loss, short + 8.0 * noise), loss)
    short = short + 0.3 * (limited - short)
    long = long + (1.0 / (t + 1.0)).clamp(min=0.05) * (limited - long)
    square = 0.95 * state.square + 0.025 * difference * difference
    square = square.clamp(max=torch.finfo(dtype).max)  # An infinite average would never fall again.
    weight = 0.95 * state.weight + 0.05
    # Where the loss never changes, rounding alone must not look like a trend.
    unit = 2.0 * torch.sqrt(square / weight) + 1e-7 * torch.abs(long) + tiny
    scalar = torch.where(is_late, torch.tanh((short - long) / unit), torch.zeros_like(unit))
    return RelativeEmotionState(loss, short, long, square, weight, scalar)
