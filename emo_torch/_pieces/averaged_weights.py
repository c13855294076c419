"""Averaged weights: train on the parameters, evaluate and export their average."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

STEP_IN_EVAL_MODE = (
    "The parameters hold the averaged weights, because `optimizer.eval()` was called. A step would train "
    "the averaged weights in place of the trained weights. Call `optimizer.train()` before the next step."
)
"""The error of a step in eval mode."""


def average_rate(step: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Returns how far the average follows the parameters in one step.

    .. math:: \min\bigl(1,\, \tfrac{9}{t+8}\bigr)

    Args:
        step: t, the number of the step, counted from 1, an integer tensor of shape `[]`.
        dtype: the floating-point dtype of the result.

    Returns:
        The rate, in (0, 1], shape `[]`.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> print(emo_torch.average_rate(torch.tensor(1), torch.float32))
        tensor(1.)

    Source: polynomial-decay averaging, Shamir and Zhang, 2013.
    """
    return (9.0 / (step.to(dtype) + 8.0)).clamp(max=1.0)


def check_average(name: str, value: Any, param: Tensor) -> None:
    """Raises a `ValueError` unless a saved value can be the average of a parameter, or its last change.

    Args:
        name: the name of the value in the state.
        value: the saved value.
        param: the parameter.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
        kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"The state is damaged: {name!r} must be a tensor of floats, and is {kind}")
    if value.shape != param.shape:
        raise ValueError(
            f"The state is damaged: {name!r} has another shape than its parameter, {tuple(param.shape)}"
        )


def swap_average(param: Tensor, state: dict[str, Tensor]) -> None:
    """Puts the average of a parameter into it, and the trained values into its state; no memory is kept.

    If a parameter has a lower precision than its average, the state keeps the trained values in addition to
    the average, so that neither is rounded.

    Args:
        param: the parameter.
        state: its state, with `"average"`.
    """
    average = state["average"]
    if average.dtype == param.dtype:
        _exchange(param, average)
    else:
        state["trained"] = param.clone()
        param.copy_(average)


def swap_back(param: Tensor, state: dict[str, Tensor]) -> None:
    """Puts the trained values back into a parameter, and its average back into its state.

    Args:
        param: the parameter, after `swap_average`.
        state: its state.
    """
    if "trained" in state:
        param.copy_(state.pop("trained"))
    else:
        # The trained values are in "average", also where the parameter got another dtype in eval mode.
        _exchange(param, state["average"])


def _exchange(param: Tensor, other: Tensor) -> None:
    kept = param.clone()
    param.copy_(other)
    other.copy_(kept)


def set_mode(groups: Iterable[dict[str, Any]], states: Mapping[Any, Any], *, is_training: bool) -> None:
    """Puts the averages of all parameters into them, or takes them out; nothing happens in that mode.

    Args:
        groups: parameter groups, each with its mode in `"train_mode"`.
        states: from a parameter to its state, with `"average"` where it is averaged.
        is_training: the mode to change to.
    """
    # Back in the opposite order: parameters may share their memory.
    order = -1 if is_training else 1
    for group in list(groups)[::order]:
        if group["train_mode"] is not is_training:
            # A parameter that is listed twice has one average.
            for param in list(dict.fromkeys(group["params"]))[::order]:
                state = states.get(param, {})
                if "average" in state:
                    (swap_back if is_training else swap_average)(param, state)
            group["train_mode"] = is_training
