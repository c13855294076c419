"""Autopilot: any optimizer of PyTorch, with steps whose length the losses and gradients steer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from emo_torch._checks.errors import STATE_WITHOUT_CHANGES
from emo_torch._checks.hints import warn_of_narrow_weights
from emo_torch._checks.validation import (
    check_flag,
    check_group_form,
    check_inner,
    check_not_negative,
    check_order,
    check_state_form,
)
from emo_torch._pieces.accumulation import CollectedLosses
from emo_torch._pieces.averaged_weights import average_rate
from emo_torch._pieces.ceiling import step_ceiling
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.pilot import PilotState, steer, with_agreement
from emo_torch._pieces.replicas import LossGroup, Replicas
from emo_torch._pieces.rounding import is_narrow
from emo_torch._rules.recipe import Group, State
from emo_torch._sharded import local_part, sum_of_parts
from emo_torch._step.loss_memory import check_saved_memory
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._step.steered import SteeredOptimizer
from emo_torch._wrappers.inner_check import check_follows
from emo_torch._wrappers.inner_state import (
    check_moments_of,
    check_saver,
    divide_state,
    make_inner_state,
    unshare,
)

USUAL_SIZE = 0.3
"""The usual root mean square of Adam's direction, for which `step_ceiling` was measured."""
_PREFIX = "autopilot_"
"""The text before the names of the tensors of this optimizer in the saved state of a parameter."""


class Autopilot(SteeredOptimizer):
    r"""Steers the length of the steps of any optimizer, as `EmoPilot` steers its own.

    .. math::
        u &= inner(g\,\min(1,\, 2.5\,N / \lVert g \rVert)) \\
        p &\leftarrow p + k\,\min\Bigl(1,\, \frac{0.3\,C}{\mathrm{RMS}(u)}\Bigr)\,u, \qquad
            C = 0.08\,\min(0.1, \max(0.02, \mathrm{RMS}(p)))

    `gate`, `move_courage` and `step_ceiling` define N, k and C. The agreement is the cosine of the
    gradient and the last change by `inner`, and moves the courage of the next step; the last change is
    stored. A step whose loss or gradient is not finite is skipped, and the state of `inner` stays as it
    was: for this check a step waits once for the device. A step scales the gradients in place, as clipping
    does. A parameter whose change by `inner` is not finite stays as it is in this step. If `inner` raises
    an error, weights and gradients are as they were; the state of `inner` is as the error left it.

    Weights should be float32. Steps are read from the weights, so that weights of bfloat16 or float16 lose
    steps that are shorter than their rounding; a warning says this.

    `param_groups` and `state` are the groups and the state of `inner`. Call the step of this optimizer, and
    no longer the step of `inner`.

    Args:
        inner: an instance of a `torch.optim.Optimizer`, learning rate included; weight decay in it is
            scaled with the step.
        min_courage: the least courage, >= 0.
        max_courage: the largest courage, >= `min_courage`; with 1 no step is longer than the step of
            `inner`.
        gate_limit: how many times its running average the norm of a gradient may be, >= 0.
        average: whether to keep averaged weights, for `eval()` and `train()` (see `EmoPilot`).
        process_group: the processes over which the loss is averaged, so that replicas take the same steps:
            `None` for all processes, `False` for this process alone.

    Attributes:
        inner: the optimizer that moves the parameters.

    Raises:
        TypeError: for an optimizer that steers itself already, an optimizer that calls a closure itself, as
            `torch.optim.LBFGS` does, or an object that is no optimizer.
        ValueError: for an option out of its range, and for an `inner` that keeps track of where it moved
            the parameters.
        RuntimeError: from `step`, in eval mode.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = emo_torch.Autopilot(torch.optim.SGD([weight], lr=1e-3, momentum=0.9))
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> bool(loss < 1.0)  # SGD alone with this learning rate would be at 2.3.
        True

    Source: ours.
    """

    shared_options = ("min_courage", "max_courage", "gate_limit", "average", "train_mode")

    def __init__(
        self,
        inner: Optimizer,
        *,
        min_courage: float = 0.03,
        max_courage: float = 100.0,
        gate_limit: float = 2.5,
        average: bool = True,
        process_group: LossGroup = None,
    ) -> None:
        check_inner(inner)
        name = type(inner).__name__
        if isinstance(inner, SteeredOptimizer):
            raise TypeError(f"{name} steers its steps already: use it without Autopilot")
        options = {
            "min_courage": min_courage,
            "max_courage": max_courage,
            "gate_limit": gate_limit,
            "average": average,
            "train_mode": True,
        }
        self.check_options(options)
        check_follows(inner)
        self.inner = inner
        self._options = options
        self._beside: dict[Tensor, State] = {}
        self._loss: Tensor | None = None
        self._replicas = Replicas(process_group)
        self._collected = CollectedLosses()
        # The way in which torch makes an optimizer that has its groups already.
        Optimizer.__setstate__(self, {"defaults": {**getattr(inner, "defaults", {}), **options}})
        for group in self.param_groups:
            group.update(options)
        warn_of_narrow_weights("Autopilot", filter(is_narrow, self._params()))
        self._make_memory()

    @property
    def rule(self) -> str:  # type: ignore[override]
        """No rule: only members of the family have one."""
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

    def check_options(self, options: Group) -> None:
        """Raises an error for an option that is out of its range."""
        for name in ("min_courage", "max_courage", "gate_limit"):
            check_not_negative(name, options[name])
        check_order("min_courage", options["min_courage"], "max_courage", options["max_courage"])
        for name in ("average", "train_mode"):
            check_flag(name, options[name])

    def check_moments(self, options: Group) -> None:
        """Raises a `ValueError` for moments that the inner optimizer cannot have."""
        check_moments_of(self.inner, options)

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Tensor:
        """Keeps the loss for `inner`, which may read it; the scalars are updated later in the step."""
        del extra_losses
        assert loss is not None
        self._loss = loss
        return -loss if self.param_groups[0].get("maximize") else loss

    def averages(self) -> Mapping[Any, Any]:
        """Returns the object that holds the averaged weights."""
        return self._beside

    # The step.

    def _make_missing_state(self) -> None:
        params, average = list(self._params()), self.param_groups[0]["average"]
        if make_inner_state(self.inner, params):
            for param in params:
                if param.grad is not None:
                    self._state_beside(param, average=average)

    def _move(self, loss: Tensor, seen: Any) -> None:
        """Lets the inner optimizer step, and makes its step shorter or longer."""
        del seen
        before, group = self._pilot, self.param_groups[0]
        # The change of a parameter that is listed twice is scaled once.
        params = [param for param in dict.fromkeys(self._params()) if param.grad is not None]
        states = [self._state_beside(param, average=group["average"]) for param in params]
        total = torch.zeros(3, dtype=before.norm.dtype, device=before.norm.device)
        for param, state in zip(params, states, strict=True):
            pair: tuple[Any, Tensor] = (param.grad, state["last"])
            grad, last = (local_part(each).to(wide_dtype(param)) for each in pair)
            sums = torch.stack([(grad * grad).sum(), -(grad * last).sum(), (last * last).sum()])
            total = total + sum_of_parts(sums, param).to(total)
        if group.get("maximize"):
            total[1] = -total[1]
        pilot, is_finite = steer(
            before,
            loss,
            total[0],
            limit=group["gate_limit"],
            min_courage=group["min_courage"],
            max_courage=group["max_courage"],
            learning_rate=0.0,  # No warm-up: the rule of `inner` may need a step of another size.
        )
        pilot = with_agreement(pilot, total)
        may_step, gate = torch.stack([is_finite.to(pilot.gate), pilot.gate]).tolist()
        if not may_step:
            before.skipped.add_(1)
            return
        befores = [param.clone() for param in params]
        grads = [param.grad.clone() for param in params if param.grad is not None] if gate != 1.0 else []
        for param in params if grads else ():
            own: Any = param.grad
            own.mul_(pilot.gate.to(device=param.device, dtype=own.dtype))
        try:
            self._step_inner()
        except BaseException:
            for param, old in zip(params, befores, strict=True):
                param.copy_(old)
            for param, grad in zip(params, grads, strict=False):
                if param.grad is None:
                    param.grad = grad
                else:
                    param.grad.copy_(grad)
            raise
        lengths, bounds = [], []
        for param, old, state in zip(params, befores, states, strict=True):
            length, is_bound = self._scale(param, old, state, pilot)
            lengths.append(length.to(before.longest))
            bounds.append(is_bound.to(before.bound))
        if lengths:
            pilot = pilot._replace(longest=torch.stack(lengths).max(), bound=torch.stack(bounds).mean())
        for new, kept in zip(pilot, before, strict=True):
            kept.copy_(new)

    def _state_beside(self, param: Tensor, *, average: bool) -> State:
        """Returns the state of a parameter that this optimizer adds to the state of the inner optimizer."""
        state, dtype = self._beside.setdefault(param, {}), wide_dtype(param)
        if "last" not in state:
            state["last"] = torch.zeros_like(param, dtype=dtype)
        if not average:
            state.pop("average", None)  # An old average must not come back in eval mode.
        elif "average" not in state:
            state["average"] = param.detach().to(dtype, copy=True)
        return state

    def _scale(self, param: Tensor, old: Tensor, state: State, pilot: PilotState) -> tuple[Tensor, Tensor]:
        """Moves a parameter by the scaled change; returns its length, and whether the ceiling limits it."""
        dtype = wide_dtype(param)
        wide = old.to(dtype)
        change = param.to(dtype) - wide
        local = [local_part(each) for each in (change, wide)]
        sums = torch.stack([(each * each).sum() for each in local])
        size, mean = sum_of_parts(sums, param) / max(param.numel(), 1)
        # A change that is not finite, or too large to be measured, is none.
        is_known = size.isfinite()
        local[0].masked_fill_(~is_known, 0.0)
        size, ceiling = torch.where(is_known, size.sqrt(), 0.0), USUAL_SIZE * step_ceiling(mean)
        is_bound = size > ceiling
        share = torch.where(is_bound, ceiling / torch.where(is_bound, size, 1.0), 1.0)
        scale = pilot.courage.to(share) * share
        state["last"].copy_(change)
        change.mul_(scale)
        if wide is old:
            param.copy_(old + change)
        else:
            # Rounded as an update first, then added: the same numbers as optax.apply_updates.
            param.copy_(old + change.to(param.dtype))
        if "average" in state:
            average = state["average"]
            rate = average_rate(pilot.step.to(param.device), dtype)
            average.add_((wide + change - average) * rate)
        return scale * size, is_bound

    def _step_inner(self) -> None:
        if isinstance(self.inner, LossOptimizer):
            self.inner.step(loss=self._loss)
        else:
            self.inner.step()

    # Groups and state.

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients as the inner optimizer does, and discards the losses of these gradients.

        Args:
            set_to_none: whether gradients become `None`, and not 0.
        """
        self._collected.reset()
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group of parameters, which the same courage steers.

        Args:
            param_group: the parameters under `"params"`, and the options of this group.

        Raises:
            ValueError: for an option of this optimizer that differs from the value of the other groups.
        """
        check_group_form(param_group)
        shared = {name: self.param_groups[0][name] for name in self.shared_options}
        self._check_shared_options({**shared, **param_group}, shared)
        own = {key: value for key, value in param_group.items() if key not in self.shared_options}
        self.inner.add_param_group(own)
        self.param_groups[-1].update(shared)
        warn_of_narrow_weights("Autopilot", filter(is_narrow, self.param_groups[-1]["params"]))
        self._share_memory(self._memory.tensors, self._memory.first.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the inner optimizer, with the scalars, last changes and averages added."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        saved = self.inner.state_dict()
        saved = {**saved, "state": {key: dict(value) for key, value in saved["state"].items()}}
        for group, kept in zip(self.param_groups, saved["param_groups"], strict=True):
            for param, key in zip(group["params"], kept["params"], strict=True):
                own = {_PREFIX + name: value for name, value in self._beside.get(param, {}).items()}
                if own:
                    saved["state"].setdefault(key, {}).update(own)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; a state of the inner optimizer alone leaves scalars and averages as they are.

        Args:
            state_dict: the result of `state_dict()`; it is not changed.

        Raises:
            ValueError: before anything is changed, if a part of the scalars is missing or damaged, or
                averages are damaged or have other shapes; and any error of the inner optimizer.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        check_state_form(type(self).__name__, state_dict)
        check_saver(self.inner, state_dict)
        scalars, given, is_whole = self.memory_names(), state_dict["param_groups"], False
        names = (*self._options, *scalars)
        for saved in given:
            missing = [name for name in names if name not in saved]
            if 0 < len(missing) < len(names):
                raise ValueError(f"The state lacks a part of the pilot: {', '.join(missing)}")
            if not missing:
                is_whole = True
                self.check_options(saved)
        check_saved_memory(type(self).__name__, given, self.param_groups[0], scalars, self.memory_title)
        theirs, beside = divide_state(state_dict, self.param_groups, _PREFIX)
        if is_whole and not beside and given[0]["pilot_step"] > 0:
            raise ValueError(STATE_WITHOUT_CHANGES)
        here = [{name: group[name] for name in names} for group in self.param_groups]
        self.inner.load_state_dict(theirs)
        unshare(self.state, theirs)
        if is_whole or beside:
            self._beside = beside
        for group, old in zip(self.param_groups, here, strict=True):
            for name, value in old.items():
                group.setdefault(name, value)
        self._share_memory(self.memory_from_group(self.param_groups[0]), self._device())
        for done in self._optimizer_load_state_dict_post_hooks.values():
            done(self)

    def moment_names(self, param: Tensor) -> tuple[str, ...]:  # noqa: ARG002
        """Returns no names: the moments are the inner optimizer's."""
        return ()

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:  # noqa: ARG002
        """Returns no moments: they are the inner optimizer's."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        names = ("defaults", "inner", "_options", "_beside", "_replicas")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, copy.copy(state))
        self._loss, self._collected = None, CollectedLosses()
        self._share_memory(self.memory_from_group(self.param_groups[0]), self._device())

    def __repr__(self) -> str:
        name = type(self.inner).__name__
        return super().__repr__().replace("Autopilot (", f"Autopilot {name} (", 1)
