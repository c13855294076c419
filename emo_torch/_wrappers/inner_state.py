"""Joins the state of an inner optimizer with emotion and shadows, and splits it again."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_torch._pieces.averaged_weights import check_average
from emo_torch._rules.recipe import Group, State
from emo_torch._sharded import copy_all, local_part
from emo_torch._step.loss_memory import MEMBER, check_member
from emo_torch._step.state_keeper import StateKeeper, tensors_in, without_shared

SHADOW = ("shadow", "shadow_exists")
EMOTION_PART, SHADOW_PART = "emotion", "shadows"
"""The place of emotion and shadows if the inner optimizer saves no `"param_groups"` and `"state"`."""

Saved = dict[str, Any]


def check_saver(inner: Optimizer, loaded: Any) -> None:
    """Raises a `ValueError` for the state of a member of the family if `inner` is no member."""
    if MEMBER in loaded and not isinstance(inner, StateKeeper):
        check_member(type(inner).__name__, None, loaded[MEMBER])


def make_inner_state(inner: Optimizer, params: Iterable[Tensor]) -> bool:
    """Makes the state that an inner optimizer lacks, and changes no parameter and no other state.

    Checkpoint libraries ask for the state of a new optimizer by a step with gradients of zeros. Other
    gradients would enter the state: then nothing is made.

    Args:
        inner: the inner optimizer, whose learning rates are 0.
        params: its parameters.

    Returns:
        Whether the inner optimizer has taken this step.
    """
    params = [param for param in params if param.grad is not None]
    missing = [param.grad for param in params if param.grad is not None and not inner.state.get(param)]
    if not missing or any(local_part(grad).any() for grad in missing):
        return False
    befores = [param.clone() for param in params]
    states = {param: copy.deepcopy(inner.state[param]) for param in params if inner.state.get(param)}
    inner.step()
    copy_all(params, befores)  # Some move by a learning rate of 0, too.
    for param, state in states.items():
        inner.state[param] = state
    return True


def check_moments_of(inner: Optimizer, options: dict[str, Any]) -> None:
    """Raises a `ValueError` for moments that `inner` cannot have, if `inner` is a member of the family."""
    if isinstance(inner, StateKeeper):
        inner.check_moments(options)


def has_groups(saved: Any) -> bool:
    """Returns whether a saved state has the form of the states of PyTorch's optimizers."""
    return isinstance(saved, Mapping) and "state" in saved and "param_groups" in saved


def as_standard(saved: Any) -> Any:
    """Returns saved emotion and shadows in the form of a state of a PyTorch optimizer."""
    if not isinstance(saved, Mapping):
        return saved
    if EMOTION_PART in saved:
        return {"param_groups": saved[EMOTION_PART], "state": saved.get(SHADOW_PART, {})}
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list | tuple) or not isinstance(states, Mapping):
        return saved
    # Some optimizers keep numbers of the whole run, in addition to the states of the parameters.
    keys = {key for group in groups if isinstance(group, dict) for key in group.get("params") or ()}
    return {**saved, "state": {key: state for key, state in states.items() if key in keys}}


def join(
    saved: Saved, ours: list[Saved], params: list[list[Tensor]], shadows: dict[Tensor, dict[str, Tensor]]
) -> Saved:
    """Returns the state of an inner optimizer, with options, emotion and shadows added.

    Args:
        saved: the state of the inner optimizer; it is not changed.
        ours: the options and the emotion of each group.
        params: the parameters of each group.
        shadows: the shadows of parameters.
    """
    if not has_groups(saved):
        numbers = iter(range(sum(map(len, params))))
        keys = [[next(numbers) for _ in group] for group in params]
        groups = [{**own, "params": key} for own, key in zip(ours, keys, strict=True)]
        return {**saved, EMOTION_PART: groups, SHADOW_PART: _by_key(keys, params, shadows)}
    groups = [{**group, **own} for group, own in zip(saved["param_groups"], ours, strict=True)]
    beside = _by_key([group["params"] for group in groups], params, shadows)
    state = {**saved["state"]}
    for key, shadow in beside.items():
        state[key] = {**state.get(key, {}), **shadow}
    return {**saved, "state": state, "param_groups": groups}


def _by_key(
    keys: list[list[Any]], params: list[list[Tensor]], shadows: dict[Tensor, dict[str, Tensor]]
) -> dict[Any, dict[str, Tensor]]:
    pairs = [
        pair for some, group in zip(keys, params, strict=True) for pair in zip(some, group, strict=True)
    ]
    return {key: shadows[param] for key, param in pairs if param in shadows}


def split(loaded: Any, names: tuple[str, ...]) -> tuple[Saved, Saved]:
    """Splits a state into the part of the inner optimizer, and the options, emotion and shadows.

    Args:
        loaded: the result of `join`, or the inner optimizer's state alone; it is not changed.
        names: the names of the options and of the emotion in a group.
    """
    if EMOTION_PART in loaded:
        parts = (EMOTION_PART, SHADOW_PART)
        theirs = {name: value for name, value in loaded.items() if name not in parts}
        return theirs, {"state": loaded.get(SHADOW_PART, {}), "param_groups": loaded[EMOTION_PART]}
    groups = [
        {name: value for name, value in group.items() if name not in names}
        for group in loaded["param_groups"]
    ]
    dicts = {key: state for key, state in loaded["state"].items() if isinstance(state, Mapping)}
    states = {
        key: {name: value for name, value in state.items() if name not in SHADOW}
        for key, state in dicts.items()
    }
    # A state with a shadow alone does not belong to the inner optimizer.
    kept = {
        key: states.get(key, state)
        for key, state in loaded["state"].items()
        if key not in states or states[key] or not state
    }
    theirs = {**loaded, "state": kept, "param_groups": groups}
    shadows = {key: {name: state[name] for name in SHADOW if name in state} for key, state in dicts.items()}
    ours = [
        {name: value for name, value in group.items() if name in (*names, "params")}
        for group in loaded["param_groups"]
    ]
    return theirs, {"state": {key: each for key, each in shadows.items() if each}, "param_groups": ours}


def unshare(states: Any, saved: Any) -> None:
    """Copies the tensors of a state that are still the loaded tensors themselves."""
    given = tensors_in(saved.get("state", {}))
    for key, state in states.items():
        states[key] = without_shared(state, given)


def divide_state(
    saved: Mapping[str, Any], groups: list[Group], prefix: str
) -> tuple[dict[str, Any], dict[Tensor, State]]:
    """Divides the state of an optimizer with another one inside of it.

    Args:
        saved: the state; it is not changed.
        groups: the parameter groups of the optimizer that loads the state.
        prefix: the text before the names of the outer optimizer's tensors.

    Returns:
        The state of the inner optimizer, and for each parameter copies of the outer optimizer's tensors.

    Raises:
        ValueError: for a damaged tensor of the outer optimizer.
    """
    theirs: dict[str, Any] = {**saved, "state": dict(saved["state"])}
    ours: dict[Tensor, State] = {}
    for group, kept in zip(groups, saved["param_groups"], strict=False):
        for param, key in zip(group["params"], kept["params"], strict=False):
            state = saved["state"].get(key, {})
            own = {name: value for name, value in state.items() if str(name).startswith(prefix)}
            theirs["state"][key] = {name: value for name, value in state.items() if name not in own}
            if not theirs["state"][key]:
                theirs["state"].pop(key, None)
            for name, value in own.items():
                check_average(name, value, param)
                copied = value.detach().to(device=param.device, copy=True)
                ours.setdefault(param, {})[name.removeprefix(prefix)] = copied
    return theirs, ours
