"""The state of the parameters: collected for a step, made where it is missing, loaded and checked."""

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_shared.eight_bit import EIGHT_BIT, check_may_be_coded, is_coded
from emo_torch._checks.validation import check_state_form
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.rounding import is_narrow
from emo_torch._rules import eight_bit
from emo_torch._rules.family_rules import MOMENTS
from emo_torch._rules.recipe import Group, Recipe, State

_CONTAINERS = (list, tuple, set, deque)


class StateKeeper(Optimizer):
    """The part of an optimizer that keeps a state for each parameter."""

    recipe: Recipe
    """A member as data."""

    # Defined by a member.

    def moment_names(self, param: Tensor) -> tuple[str, ...]:
        """Returns the names of a parameter's moments."""
        return self.recipe.moment_names(param.ndim)

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:
        """Returns the moments of a parameter that has seen no gradient."""
        return self.recipe.init(param, dtype)

    def check_moments(self, options: Group) -> None:
        """Raises a `ValueError` for moments in 8 bits, if the optimizer or a parameter cannot have them."""
        if options.get("moment_dtype") == EIGHT_BIT:
            check_may_be_coded(type(self).__name__, may_be=self.recipe.may_be_8bit)
            params = options.get("params")
            # Only lists and tuples are checked: an iterator can be read only once.
            for param in params if isinstance(params, list | tuple) else ():
                eight_bit.check_is_whole(param[1] if isinstance(param, tuple) else param)

    # The state of a step.

    def _params(self) -> Iterator[Tensor]:
        return (param for group in self.param_groups for param in group["params"])

    def _collect(self, group: Group) -> tuple[list[Tensor], list[Tensor], list[State]]:
        """Returns the parameters that have a gradient, with their state made where it is missing."""
        params, grads, states = [], [], []
        needed: dict[int, set[str]] = {}  # By the number of dimensions, which decides the moments.
        shadow = ("shadow", "shadow_exists") if group.get("use_shadow") else ()
        may_compensate = group.get("rounding") == "kahan"
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            state = self.state[param]
            ndim = param.ndim
            if ndim not in needed:
                needed[ndim] = {*self.moment_names(param), *shadow}
            is_compensated = may_compensate and _is_compensated(param, group)
            if not needed[ndim].issubset(state) or (is_compensated and "compensation" not in state):
                state.update(self._missing_state(param, group, state))
            # The dtype of the model may have changed.
            if shadow and state["shadow"].dtype != wide_dtype(param):
                state["shadow"] = state["shadow"].to(wide_dtype(param))
            if is_compensated and state["compensation"].dtype != param.dtype:
                state["compensation"] = state["compensation"].to(param.dtype)
            params.append(param)
            grads.append(grad)
            states.append(state)
        return params, grads, states

    def _missing_state(self, param: Tensor, group: Group, state: State) -> State:
        """Returns the missing parts of a parameter's state, newly made."""
        made: State = {}
        missing = [name for name in self.moment_names(param) if name not in state]
        moment_dtype = group["moment_dtype"] if missing else None
        if moment_dtype == EIGHT_BIT and is_coded(param.numel()):
            for name in missing:
                made.update(eight_bit.zeros(param, name))
        elif missing:
            dtype = None if moment_dtype == EIGHT_BIT else moment_dtype
            made.update(self.init_moments(param, dtype or wide_dtype(param)))
        if group.get("use_shadow") and not {"shadow", "shadow_exists"}.issubset(state):
            made["shadow"] = torch.zeros_like(param, dtype=wide_dtype(param))
            made["shadow_exists"] = torch.zeros((), dtype=torch.bool, device=param.device)
        if _is_compensated(param, group):
            made["compensation"] = torch.zeros_like(param)
        return {name: tensor for name, tensor in made.items() if name not in state}

    def full_state(self, param: Tensor, group: Group) -> State:
        """Returns a parameter's state with its missing parts newly made, without storing them."""
        state = self.state.get(param, {})
        full = {**state, **self._missing_state(param, group, state)}
        if not _is_compensated(param, group):
            full.pop("compensation", None)  # It is from before a change of rounding or dtype.
        return full

    # Saving and loading.

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; also a state of `torch.optim.AdamW` if the moments are the same.

        Options and an emotion that the state does not have stay unchanged. Every tensor keeps the
        dtype that it was saved with: float32 moments of bfloat16 parameters stay float32. Every tensor is
        copied, so that two optimizers never share a tensor. (Optimizers of `torch.optim` share tensors with
        the optimizer that the state came from.)

        Args:
            state_dict: the result of `state_dict()`; it is not changed.

        Raises:
            ValueError: before anything is changed, if the state is another kind of optimizer's, has
                other shapes, or lacks a part of the memory of the losses.
        """
        check_state_form(type(self).__name__, state_dict)
        final: dict[str, Any] = {}

        def check(_: Optimizer, loaded: dict[str, Any]) -> None:
            self._check_state_dict(loaded)
            final.update(loaded)

        def restore(_: Optimizer) -> None:
            self._restore_dtypes(final)
            given = tensors_in(final["state"])
            for key, value in self.state.items():
                self.state[key] = without_shared(value, given)

        # Runs between the hooks of the user, which see the state before and after loading.
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _saved_params(self, loaded: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yields each parameter that has a saved state, with the saved state."""
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=False):
            for param, key in zip(group["params"], saved["params"], strict=False):
                if loaded["state"].get(key):
                    yield param, loaded["state"][key]

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        owner = type(self).__name__
        check_state_form(owner, loaded)
        for param, saved in self._saved_params(loaded):
            blank = self.init_moments(torch.empty_like(param, device="meta"), torch.float32)
            if "shadow" in saved or "shadow_exists" in saved:
                blank["shadow"] = param
                blank["shadow_exists"] = torch.empty((), device="meta")
            if "compensation" in saved:
                blank["compensation"] = param
            # PyTorch's optimizers also count steps, so a count does not show the kind of optimizer.
            moments = {name for name in MOMENTS if name in saved and name != "step"}
            coded = [name for name in blank if self._is_in_codes(saved, name)]
            blank.update({name: eight_bit.blank_scale(param) for name in map(eight_bit.scale_name, coded)})
            missing = [name for name in blank if not isinstance(saved.get(name), Tensor)]
            if missing or moments - set(blank):
                raise ValueError(
                    f"The state is another kind of optimizer's, or damaged: {owner} needs "
                    f"{', '.join(blank)} for a parameter of the shape {tuple(param.shape)}, and the "
                    f"state has {', '.join(sorted(map(str, saved)))}"
                )
            for name, moment in blank.items():
                if saved[name].shape != moment.shape:
                    raise ValueError(
                        f"The state has other shapes: {name!r} is {tuple(saved[name].shape)} for a "
                        f"parameter of the shape {tuple(param.shape)}; {owner} needs {tuple(moment.shape)}"
                    )
                is_right = saved[name].is_floating_point() or name in (*coded, "shadow_exists")
                if not is_right or (name == "shadow_exists" and saved[name].dtype != torch.bool):
                    needed = "torch.bool" if name == "shadow_exists" else "a floating-point dtype"
                    raise ValueError(
                        f"The state is damaged: {name!r} has the dtype {saved[name].dtype}; "
                        f"it must be {needed}"
                    )

    def _is_in_codes(self, saved: dict[str, Any], name: str) -> bool:
        """Returns whether a moment of a saved state is in 8 bits, which the optimizer must allow."""
        is_code = getattr(saved.get(name), "dtype", None) == torch.uint8
        return is_code and name in MOMENTS and self.recipe.may_be_8bit

    def _restore_dtypes(self, loaded: dict[str, Any]) -> None:
        """Undoes the cast of every state to its parameter's dtype that loading makes."""
        for param, saved in self._saved_params(loaded):
            state = self.state[param]
            for name, value in saved.items():
                if isinstance(value, Tensor) and state[name].dtype != value.dtype:
                    state[name] = value.detach().to(device=state[name].device, copy=True)


def tensors_in(value: Any) -> set[int]:
    """Returns the identities of the tensors in a value, which may be nested containers."""
    if isinstance(value, Tensor):
        return {id(value)}
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, _CONTAINERS) else ()
    return set().union(*map(tensors_in, nested))


def without_shared(value: Any, given: set[int]) -> Any:
    """Returns a loaded value with a copy of every tensor that is among the given tensors."""
    if isinstance(value, Tensor):
        return _copied(value) if id(value) in given else value
    if isinstance(value, dict):
        own = copy.copy(value)  # Not in place: the value may belong to the other optimizer.
        own.update({key: without_shared(nested, given) for key, nested in value.items()})
        return own
    if isinstance(value, _CONTAINERS):
        items = [without_shared(nested, given) for nested in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _copied(tensor: Tensor) -> Tensor:
    """Returns a copy of a tensor; the tensor itself where its class has no copy, as in torchao."""
    try:
        return tensor.detach().clone()
    except (NotImplementedError, TypeError):
        return tensor


def _is_compensated(param: Tensor, group: Group) -> bool:
    """Returns whether the compensation of a parameter is stored."""
    return group.get("rounding") == "kahan" and is_narrow(param)
