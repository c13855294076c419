"""The end of a step of low-precision parameters: rounds the moved float32 copies into the parameters."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from collections.abc import Callable
from typing import Any

from torch import Tensor

from emo_torch._kernels.plan import GroupTensors
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.rounding import add_rounded, is_narrow, rounding_keys
from emo_torch._rules.recipe import Group, State
from emo_torch._step.ways import by_device_and_dtype, use_foreach


def keys_of(params: list[Tensor], group: Group, *, before: int, steps: Tensor) -> Tensor | None:
    """Returns the keys for rounding parameters at random in one step; `None` for another rounding.

    Args:
        params: the parameters of a group that have a gradient.
        group: the group.
        before: the number of parameters in the groups before this one.
        steps: the number of the step, an integer tensor of shape `[]`.
    """
    if group["rounding"] != "stochastic":
        return None
    own = group["params"]
    keys = rounding_keys(steps, before + len(own))[before:]
    if len(params) == len(own):
        return keys
    return keys[[index for index, param in enumerate(own) if param.grad is not None]]


def step_copies(
    step_tensors: Callable[..., Any],
    tensors: GroupTensors,
    *,
    feeling: Any,
    group: Group,
    keys: Tensor | None,
) -> None:
    """Steps float32 copies of low-precision parameters, and rounds them into the parameters.

    Args:
        step_tensors: moves parameters of full precision, as `LossOptimizer.step_tensors`.
        tensors: parameters, gradients and states; parameters of full precision are stepped directly.
        feeling: the scalars of the step, from the memory of the losses.
        group: the options, with another rounding than "nearest".
        keys: as for `round_into_params`.
    """
    params, grads, states = tensors
    weights = [param.to(wide_dtype(param)) for param in params]
    wide = [grad.to(weight.dtype) for grad, weight in zip(grads, weights, strict=True)]
    step_tensors(weights, wide, states, feeling=feeling, group=group)
    round_into_params(params, weights, states, group=group, keys=keys)


def round_into_params(
    params: list[Tensor],
    weights: list[Tensor],
    states: list[State],
    *,
    group: Group,
    keys: Tensor | None,
) -> None:
    """Moves low-precision parameters to their float32 copies, rounded as the group says.

    Args:
        params: parameters of a group that have a gradient.
        weights: for each parameter a moved copy in full precision; changed in place.
        states: the state of each parameter.
        group: the options, with another rounding than "nearest".
        keys: the key of each parameter for rounding at random, shape `[len(params)]`.
    """
    if keys is None:
        extras = [state.get("compensation", param) for param, state in zip(params, states, strict=True)]
    else:
        extras = [key.to(param.device) for key, param in zip(keys.unbind(), params, strict=True)]
    foreach = use_foreach(params, group)
    for indices in by_device_and_dtype(params).values():
        narrow = [params[index] for index in indices]
        if is_narrow(narrow[0]):
            moved = [weights[index] for index in indices]
            updates = [weight.sub_(param) for weight, param in zip(moved, narrow, strict=True)]
            own = [extras[index] for index in indices]
            add_rounded(narrow, updates, own, rounding=group["rounding"], foreach=foreach)
