"""An emotional optimizer that uses the groups and the state of the optimizer that it wraps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_torch._checks.validation import check_group_form, check_state_form
from emo_torch._pieces.accumulation import CollectedLosses
from emo_torch._rules.recipe import Group, State
from emo_torch._step.emo_optimizer import SHARED_OPTIONS, EmoOptimizer
from emo_torch._wrappers.inner_state import (
    EMOTION_PART,
    SHADOW,
    as_standard,
    check_moments_of,
    check_saver,
    has_groups,
    join,
    split,
    unshare,
)


class AroundInner(EmoOptimizer):
    """The base of `Emotional`: it wraps an optimizer, and passes on everything but the emotion.

    Attributes:
        inner: the optimizer that moves the parameters.
    """

    inner: Optimizer
    _options: Group
    """The options of the emotion, which are stored in the groups of the inner optimizer."""

    @property
    def rule(self) -> str:  # type: ignore[override]
        """No rule of `_rules`: only members of the family have one."""
        raise ValueError(
            f"The state of {type(self.inner).__name__} has no plain arrays that emo_optax could read: "
            "save its state_dict()"
        )

    @property
    def param_groups(self) -> list[Group]:  # type: ignore[override]
        """The groups of the inner optimizer."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the inner optimizer."""
        return self.inner.state

    def __getattr__(self, name: str) -> Any:
        """Passes on attributes that only the inner optimizer has, such as `train` and `eval`."""
        inner = self.__dict__.get("inner")
        # An optimizer further inside is not passed on: `unwrap` would then skip this optimizer.
        if name.startswith("_") or inner is None or isinstance(getattr(inner, name, None), Optimizer):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(inner, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients as the inner optimizer does, and discards the losses of these gradients.

        Args:
            set_to_none: whether gradients become `None`, and not 0.
        """
        self._collected.reset()
        self.inner.zero_grad(set_to_none=set_to_none)

    @contextmanager
    def _shadows_apart(self) -> Iterator[dict[Tensor, State]]:
        """Takes the shadows out of the state: some optimizers make their state only if it is empty."""
        shadows: dict[Tensor, State] = {}
        # Most optimizers have no shadows: to look up the state of each parameter takes longer.
        may_have = any(type(state) is not dict or "shadow" in state for state in self.state.values())
        for param in self._params() if may_have else ():
            state = self.state.get(param, {})
            if "shadow" in state:
                shadows[param] = {name: state.pop(name) for name in SHADOW}
                if not state:
                    del self.state[param]
        try:
            yield shadows
        finally:
            for param, shadow in shadows.items():
                self.state.setdefault(param, {}).update(shadow)

    # Groups and state.

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group of parameters, which shares the emotion of the other groups.

        Args:
            param_group: the parameters under `"params"`, and the options of this group.

        Raises:
            ValueError: for an option out of its range, or an option of the emotion that differs from the
                value of the other groups.
        """
        check_group_form(param_group)
        first = self.param_groups[0] if self.param_groups else self._options
        shared = {name: first[name] for name in SHARED_OPTIONS if name in self._options}
        if isinstance(param_group, dict):
            self.check_options({**self.defaults, **shared, **param_group})
            self._check_shared_options({**self.defaults, **shared, **param_group}, first)
        self.inner.add_param_group(param_group)
        for name, value in {**self._options, **shared}.items():
            self.param_groups[-1].setdefault(name, value)
        self._share_memory(self._memory.tensors, self._memory.first.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the inner optimizer, with emotion and shadows added.

        Both have their names in `"param_groups"` and `"state"`; if the inner optimizer saves no such
        parts, under `"emotion"` and `"shadows"`.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        with self._shadows_apart() as shadows:
            saved = self.inner.state_dict()
        names = (*self._options, *self.memory_names())
        ours = [{name: group[name] for name in names} for group in self.param_groups]
        params = [list(group["params"]) for group in self.param_groups]
        saved = join(saved, ours, params, shadows)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; a state of the inner optimizer alone leaves the emotion as it is.

        The inner optimizer loads its part by its own rules about dtypes and devices.

        Args:
            state_dict: the result of `state_dict()`; it is not changed.

        Raises:
            ValueError: before anything is changed, if the state lacks a part of the emotion, or shadows
                have other shapes; and any error of the inner optimizer.
        """
        loaded = state_dict.copy() if isinstance(state_dict, Mapping) else state_dict
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, loaded)
            loaded = loaded if changed is None else changed
        names = (*self._options, *self.memory_names())
        ours: dict[str, Any] = {"state": {}, "param_groups": [{"params": []} for _ in self.param_groups]}
        if self._is_of_nested(loaded):
            theirs = dict(loaded)
        else:
            check_state_form(type(self).__name__, as_standard(loaded))
            theirs, ours = split(loaded, names)
        check_saver(self.inner, theirs)
        self._check_state_dict(ours)
        here = [{name: group[name] for name in names} for group in self.param_groups]
        with self._shadows_apart() as shadows:
            self.inner.load_state_dict(theirs)
            unshare(self.state, theirs)
            shadows.clear()
            shadows.update(self._own_shadows(ours))
            for group, old, new in zip(self.param_groups, here, ours["param_groups"], strict=True):
                group.update({**old, **{name: new[name] for name in names if name in new}})
        self._share_memory(self.memory_from_group(self.param_groups[0]), self._device())
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _is_of_nested(self, loaded: Any) -> bool:
        """Returns whether a state is a state of the inner optimizer alone, in its own form."""
        parts = ("state", "param_groups", EMOTION_PART)
        is_other = isinstance(loaded, Mapping) and not any(name in loaded for name in parts)
        return is_other and not has_groups(self.inner.state_dict())

    def _own_shadows(self, loaded: dict[str, Any]) -> dict[Tensor, State]:
        """Returns loaded shadows as new tensors on the devices of their parameters."""
        return {
            param: {name: saved[name].detach().to(device=param.device, copy=True) for name in SHADOW}
            for param, saved in self._saved_params(loaded)
        }

    def check_moments(self, options: Group) -> None:
        """Raises a `ValueError` for moments that the inner optimizer cannot have."""
        check_moments_of(self.inner, options)

    def moment_names(self, param: Tensor) -> tuple[str, ...]:  # noqa: ARG002
        """Returns no names: the moments are the inner optimizer's."""
        return ()

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:  # noqa: ARG002
        """Returns no moments: they are the inner optimizer's."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)
        self._collected = CollectedLosses()
        self._share_memory(self.memory_from_group(self.param_groups[0]), self._device())

    def __repr__(self) -> str:
        name = type(self.inner).__name__
        return super().__repr__().replace("Emotional (", f"Emotional {name} (", 1)
