"""The emotion since v3: three averages, a relative scalar, its trust, and the shadow that trust moves.

EmoNavi, EmoFact and EmoLynx v3.6.1 and the third generation share these pieces.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from emo_torch._sharded import copy_all

FLOOR = 1e-5
"""The least base of the relative difference of the averages, in the unit of the loss."""


class Averages(NamedTuple):
    """Three exponential averages of the loss, tensors of shape `[]`."""

    short: Tensor
    medium: Tensor
    long: Tensor


FACTORS = (0.3, 0.05, 0.01)


def move_averages(
    before: Averages, loss: Tensor, felt: Tensor, held: Tensor, most: Tensor | None = None
) -> tuple[Averages, Tensor, Tensor]:
    r"""Moves the three averages by one loss and counts that loss.

    .. math::
        short \leftarrow 0.3\,L + 0.7\,short, \quad medium \leftarrow 0.05\,L + 0.95\,medium, \quad
        long \leftarrow 0.01\,L + 0.99\,long

    All averages start at the first finite loss. A loss that is not finite, or that would make an average
    infinite, changes only the count of held losses.

    Args:
        before: the averages before this step, shape `[]`.
        loss: the loss of this step, shape `[]`, in the dtype of the averages.
        felt: how many losses were felt before, shape `[]`, integer.
        held: how many losses were held before, shape `[]`, integer.
        most: the most that a finite loss counts, shape `[]`; `None` for no limit.

    Returns:
        The averages, and both counts, after this step.
    """
    is_first = felt == 0
    is_finite = torch.isfinite(loss)
    loss = torch.where(is_finite, loss, torch.zeros_like(loss))
    if most is not None:
        loss = torch.minimum(loss, most)
    # In this form a constant loss leaves the averages alone to the last bit.
    moved = [
        torch.where(is_first, loss, old + factor * (loss - old))
        for old, factor in zip(before, FACTORS, strict=True)
    ]
    is_felt = is_finite
    for average in moved:
        is_felt = is_felt & torch.isfinite(average)
    averages = Averages(*(torch.where(is_felt, new, old) for new, old in zip(moved, before, strict=True)))
    return averages, felt + is_felt, held + ~is_felt


def relative_scalar(averages: Averages, base: Tensor) -> Tensor:
    r"""Returns the scalar :math:`s = \tanh((long - short) / base)`; above 0 the loss is below its trend."""
    return torch.tanh((averages.long - averages.short) / base)


def trust_of(scalar: Tensor) -> Tensor:
    r"""Returns the trust, :math:`1 - |s|` with the sign of `s`.

    Args:
        scalar: the emotion scalar s, in [-1, 1], any shape.

    Returns:
        The trust, in [-1, 1], same shape and dtype.

    Example:
        >>> import torch
        >>> from emo_torch import trust_of
        >>> print(trust_of(torch.tensor([0.0, 0.25, -0.75])))
        tensor([ 1.0000,  0.7500, -0.2500])

    Source: EmoNavi v3.6.1 and EmoSens v3.9.1 by muooon.
    """
    return torch.copysign(1.0 - scalar.abs(), scalar)


def shadow_shares(scalar: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns how far the parameters are pulled to their shadow, and how far the shadow follows.

    .. math:: (|trust|, 0) \;\text{where } |s| > 0.625, \quad (0, 0.1\,|trust|) \;\text{else}

    Args:
        scalar: the emotion scalar s, in [-1, 1], shape `[]`.
        exists: whether there is a shadow yet, bool of shape `[]`; without one nothing is pulled.
    """
    trust = 1.0 - scalar.abs()
    is_far, zero = scalar.abs() > 0.625, torch.zeros_like(scalar)
    return torch.where(is_far & exists, trust, zero), torch.where(is_far, zero, 0.1 * trust)


def blend_by_trust(param: Tensor, shadow: Tensor, exists: Tensor, ratio: Tensor, follow: Tensor) -> None:
    r"""Pulls a parameter to its shadow by the rule of v3.6.1 and v3.9.1, in place.

    .. math::
        p &\leftarrow |s|\,p + |trust|\,shadow & \text{where } |s| > 0.625 \\
        shadow &\leftarrow shadow + 0.1\,|trust|\,(p - shadow) & \text{else}

    The first time, the shadow becomes a copy of the parameter. The published bound :math:`|s| < 1` of
    v3.6.1 changes nothing: with :math:`|s| = 1` the trust is 0, and both lines leave all values as they
    are.

    Args:
        param: the parameter, any shape, float32 or wider.
        shadow: its shadow, same shape and dtype.
        exists: whether the shadow has been made, bool of shape `[]`; set afterwards.
        ratio: how far the parameter is pulled (see `shadow_shares`), shape `[]`, same dtype.
        follow: how far the shadow follows, shape `[]`, same dtype.
    """
    shadow.copy_(torch.where(exists, shadow + follow * (param - shadow), param))
    # Where the shadow pulls it does not move: the blend may read the new shadow.
    param.copy_(torch.where(exists, (1.0 - ratio) * param + ratio * shadow, param))
    exists.fill_(True)


def multi_tensor_blend_by_trust(
    params: list[Tensor], shadows: list[Tensor], exists: list[Tensor], ratio: Tensor, follow: Tensor
) -> None:
    """Like `blend_by_trust`, for many parameters of one device and dtype."""
    followed = torch._foreach_sub(params, shadows)
    torch._foreach_mul_(followed, follow)
    torch._foreach_add_(followed, shadows)
    rows = zip(exists, followed, params, strict=True)
    copy_all(shadows, [torch.where(exist, new, param) for exist, new, param in rows])
    pulled = torch._foreach_mul(params, 1.0 - ratio)
    torch._foreach_add_(pulled, torch._foreach_mul(shadows, ratio))
    rows = zip(exists, pulled, params, strict=True)
    copy_all(params, [torch.where(exist, new, param) for exist, new, param in rows])
    for exist in exists:
        exist.fill_(True)
