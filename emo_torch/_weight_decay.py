"""Weight decay, in the three ways that the family knows."""

import torch
from torch import Tensor

MODES = ("decoupled", "absolute", "l2")
"""The modes: p <- p - eta wd p;  p <- p - wd p;  g <- g + wd p."""


def add_weight_decay(update: Tensor, param: Tensor, weight_decay: float) -> None:
    r"""Adds a share of a parameter to an update, in place.

    .. math:: u \leftarrow u + wd\,p

    Its place in a step decides what it means: on the gradient, before the rule, it is L2; between the
    rule and the learning rate decoupled; behind the learning rate absolute.

    Args:
        update: what is added to, any shape; it points uphill, as a gradient does.
        param: the parameter, same shape, dtype and device.
        weight_decay: the share, >= 0.

    Example:
        >>> import torch
        >>> from emo_torch import add_weight_decay
        >>> update, param = torch.zeros(2), torch.tensor([1.0, 2.0])
        >>> add_weight_decay(update, param, 0.1)
        >>> print(update)
        tensor([0.1000, 0.2000])

    Source: SPEC section "Weight decay modes"; `decoupled_weight_decay` of EmoCats v2.0 by muooon.
    """
    # Added to the update, so that the parameter is rounded once a step: decay alone is so small that
    # its rounding, always to the same side, would add up over some hundred steps.
    update.add_(param, alpha=weight_decay)


def multi_tensor_add_weight_decay(updates: list[Tensor], params: list[Tensor], weight_decay: float) -> None:
    """Does what `add_weight_decay` does for many parameters of one device and dtype."""
    torch._foreach_add_(updates, params, alpha=weight_decay)
