"""Weight decay, in the three ways that the family knows."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Mask = Mapping[str, bool] | Callable[[dict[str, Tensor]], Mapping[str, bool]]
"""Booleans by the parameters' names, or a function from the named parameters to them."""

WeightDecayMode = Literal["decoupled", "absolute", "l2"]
MODES: tuple[str, ...] = get_args(WeightDecayMode)
"""The modes: p <- p - eta wd p;  p <- p - wd p;  g <- g + wd p."""


def add_weight_decay(update: Tensor, param: Tensor, weight_decay: float) -> None:
    r"""Adds a share of a parameter to an update, in place.

    .. math:: u \leftarrow u + wd\,p

    Its place in a step decides its meaning: on the gradient, before the rule, it is L2; between the
    rule and the learning rate decoupled; after the learning rate absolute.

    Args:
        update: the update to add to, any shape; like a gradient, it points to larger losses.
        param: the parameter, same shape, dtype and device.
        weight_decay: the share, >= 0.

    Example:
        >>> import torch
        >>> from emo_torch import add_weight_decay
        >>> update, param = torch.zeros(2), torch.tensor([1.0, 2.0])
        >>> add_weight_decay(update, param, 0.1)
        >>> print(update)
        tensor([0.1000, 0.2000])

    Source: `decoupled_weight_decay` of EmoCats v2.0 by muooon.
    """
    # Added to the update, so that the parameter is rounded once a step: decay alone is so small that
    # its rounding, always to the same side, would add up over some hundred steps.
    update.add_(param, alpha=weight_decay)


def multi_tensor_add_weight_decay(updates: list[Tensor], params: list[Tensor], weight_decay: float) -> None:
    """Like `add_weight_decay`, for many parameters of one device and dtype."""
    torch._foreach_add_(updates, params, alpha=weight_decay)


def decay_mask(params: Mapping[str, Tensor]) -> dict[str, bool]:
    """Returns the usual mask: weights of two or more dimensions decay, biases and norms don't.

    Args:
        params: parameters by name.

    Returns:
        Booleans by name, `True` where a parameter decays.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.decay_mask({"weight": torch.ones(2, 3), "bias": torch.ones(2)}))
        {'weight': True, 'bias': False}
    """
    return {name: param.ndim >= 2 for name, param in params.items()}


def decay_groups(
    named_params: torch.nn.Module | Iterable[tuple[str, Tensor]], mask: Mask = decay_mask
) -> list[dict[str, Any]]:
    """Splits parameters into two groups, with and without weight decay, as the `mask` of Optax does.

    Args:
        named_params: a model, or names and parameters, such as `model.named_parameters()`.
        mask: booleans by name, or a function from the named parameters to them; `True` decays.

    Returns:
        Two groups for any optimizer: the parameters that decay, as much as the optimizer says, and the
        others, whose `weight_decay` is 0. Either may be empty.

    Raises:
        TypeError: for parameters without names.
        ValueError: for a mask that lacks a parameter or names one that does not exist, and for two
            parameters of one name.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> groups = emo_torch.decay_groups(model)
        >>> print([len(group["params"]) for group in groups])
        [1, 3]
        >>> optimizer = emo_torch.EmoSens(groups, weight_decay=0.1)
        >>> print([group["weight_decay"] for group in optimizer.param_groups])
        [0.1, 0.0]
    """
    if isinstance(named_params, torch.nn.Module):
        named_params = named_params.named_parameters()
    pairs = list(named_params)
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise TypeError("Names and parameters are needed, such as model.named_parameters(), or the model")
    params = dict(pairs)
    if len(params) < len(pairs):
        raise ValueError("Two parameters have the same name, so that a mask cannot tell them apart")
    decays = mask(params) if callable(mask) else mask
    strangers = sorted(decays.keys() ^ params.keys())
    if strangers:
        raise ValueError(
            "The mask must have exactly one boolean for each parameter name. These names are only in the "
            f"mask or only in the parameters: {', '.join(map(repr, strangers))}"
        )
    return [
        {"params": [param for name, param in params.items() if decays[name]]},
        {"params": [param for name, param in params.items() if not decays[name]], "weight_decay": 0.0},
    ]
