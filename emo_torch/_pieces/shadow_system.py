"""Shadow-system: pulls the weights back to a slow copy of themselves."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from emo_torch._sharded import copy_all

ShadowRatio = Literal["v2.0", "v1.0"] | Callable[[Tensor], Tensor]
""" "v2.0", "v1.0", or a function of the scalar (shape `[]`) to a ratio in [0, 1]."""


def shadow_ratio_v2(scalar: Tensor) -> Tensor:
    r"""Returns the ratio of v2.0: :math:`|s|` where :math:`|s| > 0.1`, else 0.

    Args:
        scalar: the emotion scalar s in [-1, 1], a floating-point tensor of any shape.

    Example:
        >>> import torch
        >>> from emo_torch import shadow_ratio_v2
        >>> print(shadow_ratio_v2(torch.tensor([-0.5, 0.05, 0.75])))
        tensor([0.5000, 0.0000, 0.7500])

    Source: EmoSens and EmoNavi v2.0 by muooon.
    """
    size = scalar.abs()
    return torch.where(size > 0.1, size, torch.zeros_like(size))


def shadow_ratio_v1(scalar: Tensor) -> Tensor:
    r"""Returns the ratio of v1.0.

    .. math:: 0.7 + 0.2 s \;(s > 0.6), \quad 0.1 \;(s < -0.6), \quad 0.3 \;(|s| > 0.3), \quad 0

    Args:
        scalar: the emotion scalar s in [-1, 1], a floating-point tensor of any shape.

    Example:
        >>> import torch
        >>> from emo_torch import shadow_ratio_v1
        >>> print(shadow_ratio_v1(torch.tensor([-0.7, -0.4, 0.2, 0.5, 0.75])))
        tensor([0.1000, 0.3000, 0.0000, 0.3000, 0.8500])

    Source: EmoNavi v1.0 by muooon.
    """
    zeros = torch.zeros_like(scalar)
    ratio = torch.where(scalar.abs() > 0.3, zeros + 0.3, zeros)
    ratio = torch.where(scalar < -0.6, zeros + 0.1, ratio)
    return torch.where(scalar > 0.6, 0.7 + 0.2 * scalar, ratio)


def shadow_ratio_function(ratio: ShadowRatio) -> Callable[[Tensor], Tensor]:
    """Returns the function that a ratio's name stands for, or the function itself."""
    if callable(ratio):
        return ratio
    return {"v2.0": shadow_ratio_v2, "v1.0": shadow_ratio_v1}[ratio]


def blend_with_shadow(
    param: Tensor, shadow: Tensor, exists: Tensor, ratio: Tensor, *, shadow_rate: float = 0.05
) -> None:
    r"""Pulls a parameter towards its shadow, in place and without a host sync.

    .. math::
        p &\leftarrow (1 - r(s))\,p + r(s)\,shadow \\
        shadow &\leftarrow shadow + 0.05\,(p - shadow)

    The first time that :math:`r(s) > 0` the shadow becomes a copy of :math:`p`, and nothing else
    happens; if :math:`r(s) = 0`, the shadow does not change.

    Args:
        param: the parameter, any shape, float32 or wider.
        shadow: its shadow, same shape and dtype.
        exists: whether the shadow has been made, bool of shape `[]`.
        ratio: r(s), shape `[]`, same dtype, in [0, 1].
        shadow_rate: how far the shadow follows the parameter, in (0, 1].

    Example:
        >>> import torch
        >>> from emo_torch import blend_with_shadow
        >>> param, shadow, exists = torch.tensor([1.0]), torch.zeros(1), torch.tensor(False)
        >>> blend_with_shadow(param, shadow, exists, torch.tensor(0.5))
        >>> print(param, shadow, exists)
        tensor([1.]) tensor([1.]) tensor(True)
        >>> _ = param.fill_(3.0)
        >>> blend_with_shadow(param, shadow, exists, torch.tensor(0.5))
        >>> print(param, shadow)
        tensor([2.]) tensor([1.0500])

    Source: the shadow-system of EmoNavi and EmoSens v2.0 by muooon.
    """
    wakes = ratio > 0
    pulls = exists & wakes
    # Chosen by `where`, not multiplied by 0: 0 times infinity would be NaN where the shadow is inactive.
    param.copy_(torch.where(pulls, param * (1.0 - ratio) + shadow * ratio, param))
    moved = torch.where(exists, shadow.lerp(param, torch.full_like(ratio, shadow_rate)), param)
    shadow.copy_(torch.where(wakes, moved, shadow))
    exists.logical_or_(wakes)


def multi_tensor_blend_with_shadow(
    params: list[Tensor],
    shadows: list[Tensor],
    exists: list[Tensor],
    ratio: Tensor,
    *,
    shadow_rate: float = 0.05,
) -> None:
    """Like `blend_with_shadow`, for many parameters of one device and dtype."""
    wakes = ratio > 0
    many = len(params)
    pulled = torch._foreach_mul(params, [1.0 - ratio] * many)
    torch._foreach_add_(pulled, torch._foreach_mul(shadows, [ratio] * many))
    # Chosen by `where`, not multiplied by 0: 0 times infinity would be NaN where the shadow is inactive.
    pairs = zip(exists, pulled, params, strict=True)
    copy_all(params, [torch.where(exist & wakes, new, old) for exist, new, old in pairs])
    rates = [torch.full_like(ratio, shadow_rate)] * many
    followed = torch._foreach_lerp(shadows, params, rates)
    rows = zip(exists, followed, params, shadows, strict=True)
    moved = [
        torch.where(wakes, torch.where(exist, new, param), shadow) for exist, new, param, shadow in rows
    ]
    copy_all(shadows, moved)
    torch._foreach_copy_(exists, list((torch.stack(exists) | wakes).unbind()))
