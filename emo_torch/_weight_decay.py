"""Weight decay, in the three ways that the family knows."""

import torch
from torch import Tensor

MODES = ("decoupled", "absolute", "l2")
"""The modes: p <- p - eta wd p;  p <- p - wd p;  g <- g + wd p."""


def add_weight_decay(update: Tensor, param: Tensor, share: float | Tensor, *, sign: float = 1.0) -> None:
    r"""Adds a share of a parameter to an update, in place and without a host sync.

    .. math:: u \leftarrow u + share \cdot p

    Added to the gradient it is L2; added with `sign=-1` to the parameter itself it is decoupled
    (the share then holds the learning rate) or absolute.

    Args:
        update: what is added to, any shape.
        param: the parameter, same shape, dtype and device.
        share: the share, a number >= 0 or a tensor of shape `[]`.
        sign: 1, or -1 where the update is the parameter itself.

    Example:
        >>> import torch
        >>> from emo_torch import add_weight_decay
        >>> grad, param = torch.zeros(2), torch.tensor([1.0, 2.0])
        >>> add_weight_decay(grad, param, 0.1)
        >>> print(grad)
        tensor([0.1000, 0.2000])

    Source: SPEC section "Weight decay modes"; `decoupled_weight_decay` of EmoCats v2.0 by muooon.
    """
    # Not `p * (1 - share)`: in float32 that factor's rounding adds up over some hundred steps.
    if isinstance(share, Tensor):
        update.add_(param * (sign * share).to(param))
    else:
        update.add_(param, alpha=sign * share)


def multi_tensor_add_weight_decay(
    updates: list[Tensor], params: list[Tensor], share: float | Tensor, *, sign: float = 1.0
) -> None:
    """Does what `add_weight_decay` does for many parameters of one device and dtype."""
    if isinstance(share, Tensor):
        torch._foreach_add_(updates, torch._foreach_mul(params, (sign * share).to(params[0])))
    else:
        torch._foreach_add_(updates, params, alpha=sign * share)
