"""The end of a step of low-precision parameters: float32 copies were moved, and are rounded back."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from torch import Tensor

from emo_torch._pieces.rounding import add_rounded, is_narrow, rounding_keys
from emo_torch._rules.recipe import Group, State
from emo_torch._step.ways import by_device_and_dtype, use_foreach


def round_into_params(
    params: list[Tensor],
    weights: list[Tensor],
    states: list[State],
    *,
    group: Group,
    before: int,
    steps: Tensor,
) -> None:
    """Moves low-precision parameters to their float32 copies, rounded as the group says.

    Args:
        params: the parameters of a group that have a gradient.
        weights: for each parameter a moved copy in full precision; changed in place.
        states: the state of each parameter.
        group: the options, with another rounding than "nearest".
        before: the number of parameters in the groups before this one.
        steps: the number of the step, an integer tensor of shape `[]`.
    """
    if group["rounding"] == "kahan":
        extras = [state.get("compensation", param) for param, state in zip(params, states, strict=True)]
    else:
        keys = rounding_keys(steps, before + len(group["params"])).unbind()[before:]
        pairs = zip(group["params"], keys, strict=True)
        extras = [key.to(param.device) for param, key in pairs if param.grad is not None]
    foreach = use_foreach(params, group)
    for indices in by_device_and_dtype(params).values():
        narrow = [params[index] for index in indices]
        if is_narrow(narrow[0]):
            moved = [weights[index] for index in indices]
            updates = [weight.sub_(param) for weight, param in zip(moved, narrow, strict=True)]
            own = [extras[index] for index in indices]
            add_rounded(narrow, updates, own, rounding=group["rounding"], foreach=foreach)
