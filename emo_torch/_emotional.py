"""Putting it together: what every emotional optimizer shares, and a look at its emotion."""

import copy
import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _default_to_fused_or_foreach

from emo_torch._accumulation import CollectedLosses
from emo_torch._early_stop import WINDOW, went_quiet
from emo_torch._emotion import Emotion, EmotionState, feel_in_place, init_emotion, wide_dtype
from emo_torch._errors import NOT_A_CLOSURE
from emo_torch._fused import FusedStep, Signal, cuda, library
from emo_torch._fused.blocked import step as step_blocked
from emo_torch._fused.cpu import step as step_fused
from emo_torch._fused.memory import StepMemory
from emo_torch._fused.plan import GroupTensors
from emo_torch._replicas import LossGroup, Replicas
from emo_torch._rounding import add_rounded, check_rounding, is_narrow, rounding_keys
from emo_torch._rules import store
from emo_torch._shadow_effect import Keep, filter_by_emotion, keep_elements, keeps_all, step_scale
from emo_torch._shadow_system import (
    ShadowRatio,
    blend_with_shadow,
    multi_tensor_blend_with_shadow,
    shadow_ratio_function,
)
from emo_torch._sharded import copy_all, mesh_of
from emo_torch._validation import (
    check_capture,
    check_choice,
    check_closure_under_scaler,
    check_duplicates,
    check_factor,
    check_flag,
    check_function,
    check_fused,
    check_gradients,
    check_group,
    check_group_form,
    check_has_graph,
    check_inner,
    check_loss,
    check_not_negative,
    check_scheduled_rate,
    check_shadow_ratio,
    check_state_form,
    has_duplicates,
)
from emo_torch._weight_decay import MODES, add_weight_decay, multi_tensor_add_weight_decay

Group = dict[str, Any]
State = dict[str, Tensor]
Rule = Callable[[Tensor, State], Tensor]
"""A gradient and the parameter's moments, which it moves, to an update."""
MultiTensorRule = Callable[[list[Tensor], list[State]], list[Tensor]]
"""The same for many tensors of one device and dtype."""

HISTORY = tuple(f"emotion_history_{index:02d}" for index in range(WINDOW))
MOMENTS = (
    *("exp_avg", "exp_avg_sq", "exp_avg_norm", "row", "column"),
    # Of EmoClan, whose rules have each their own.
    *("navi_exp_avg", "navi_exp_avg_sq"),
    *("fact_exp_avg", "fact_exp_avg_sq", "fact_row", "fact_column"),
    "lynx_exp_avg",
)
"""The names of the moments that a rule moves; what else stands in a state is not the rule's."""
_CONTAINERS = (list, tuple, set, deque)
SHARED_OPTIONS = ("short_factor", "long_factor", "gain", "shadow_ratio", "maximize")
"""Options of the one emotion, which a group cannot have for itself."""


class Feeling(NamedTuple):
    """What the emotion asks of one step, as tensors of shape `[]`.

    Attributes:
        scalar: the emotion scalar, in [-1, 1].
        shadow_ratio: how far to pull a parameter to its shadow, where that exists, in [0, 1].
    """

    scalar: Tensor
    shadow_ratio: Tensor


class LossOptimizer(Optimizer):
    """The base of all optimizers here: it is given the loss, and owns groups, state and validation.

    What it remembers of the losses lives as flat tensors in the parameter groups, the same ones in
    each: the one place that every way to save and load an optimizer keeps. What that is, and what a
    step makes of it, a class below says (`EmoOptimizer`: an emotion); a member of the family adds its
    rule: the names and the beginning of its moments, and how it steps.
    """

    rule: str
    """The name of its rule in `_rules`, without the `scale_by_`, or the member's own."""
    has_cuda_kernel = True
    """Whether `fused=True` can step it on CUDA."""
    loss_is_optional = False
    """Whether a step without a loss is one, and not an error."""
    shared_options: tuple[str, ...] = ("maximize",)
    """Options that go with what is remembered of the losses, which a group cannot have for itself."""
    memory_title = "memory"
    """What messages call what is remembered of the losses."""

    _memory: tuple[Tensor, ...]
    _held: State
    """The same as it stands in the groups, by name."""
    _replicas: Replicas

    def __init__(self, params: ParamsT, defaults: Group, *, process_group: LossGroup = None) -> None:
        self.check_options(defaults)
        self._replicas = Replicas(process_group)
        self._collected = CollectedLosses()
        super().__init__(params, defaults)

    # What a class below defines of the losses.

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        raise NotImplementedError

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns what is remembered before any loss."""
        raise NotImplementedError

    def hold_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Takes tensors to remember in, and returns them, flat, by the names that groups know them by."""
        raise NotImplementedError

    def memory_of(self, group: Group) -> tuple[Tensor, ...]:
        """Returns what is remembered, from a group that came out of a file or a copy."""
        raise NotImplementedError

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names that groups know the memory by."""
        raise NotImplementedError

    def named_memory(self) -> State:
        """Returns the tensors of the memory by the names that the bridge to `emo_optax` gives them."""
        raise NotImplementedError

    def step_count(self) -> Tensor:
        """Returns how many steps were taken, the one under way included, as a tensor of shape `[]`."""
        raise NotImplementedError

    def take_in(self, loss: Tensor | None, **beside: Any) -> Any:
        """Takes in the loss of a step, and what was given beside it; returns what the step needs."""
        raise NotImplementedError

    # What a member defines.

    def moment_names(self, param: Tensor) -> tuple[str, ...]:
        """Returns the names of a parameter's moments."""
        raise NotImplementedError

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:
        """Returns the moments of a parameter that has seen no gradient."""
        raise NotImplementedError

    def step_tensors(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
        *,
        feeling: Any,
        group: Group,
    ) -> None:
        """Moves those parameters of a group that have a gradient."""
        raise NotImplementedError

    # The step.

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor | float | None] | None = None,
        *,
        loss: Tensor | float | None = None,
    ) -> Tensor | float | None:
        """Takes one step, steered by the loss at the parameters at which the gradients were taken.

        The loss is `loss`; without it, what `watch` and `observe` collected since the last step; without
        those, what the closure returns. Where `torch.distributed` runs, it is averaged over processes.

        Args:
            closure: computes the gradients and returns the loss; runs with gradients enabled.
            loss: the loss, a tensor of one element or a number.

        Returns:
            What the closure returned, or else the loss.

        Raises:
            LossMissingError: without a loss, unless the lr of every group is 0: such a step makes
                missing state and changes nothing.
            TypeError: for a loss that is not a real number, or a closure that is no function.
            ValueError: for a loss that is not a scalar.
            RuntimeError: for sparse gradients and complex parameters, and for a closure that computes
                gradients while a gradient scaler steps: those would be applied scaled.
        """
        return self.step_with(closure, loss)

    def watch(self, loss: Tensor, weight: float = 1.0, reduction: str = "mean") -> Tensor:
        r"""Collects a loss for the next step as soon as a backward pass reaches it.

        .. math:: L = \frac{\sum_i w_i L_i}{\sum_i w_i}

        Call it where the loss is computed, before anything divides or scales that: gradient accumulation
        and gradient scalers then don't matter. A loss without a backward pass does not count, one with
        two counts twice.

        Args:
            loss: the loss, a tensor of one element with a graph behind it. While gradients are off, as
                in an evaluation, it is passed through and not watched.
            weight: its weight among the losses of one step, above 0, for example how many examples it
                is of.
            reduction: what becomes of several losses in one step, "mean" or "sum" (of weight times
                loss); the same for all of them.

        Returns:
            The loss, as it was given.

        Raises:
            TypeError: for what is no tensor of real numbers, or a weight that is no number.
            ValueError: for a loss that is not a scalar or has no graph, a weight out of its range, and
                another reduction than that of the losses collected so far.

        Example:
            >>> import torch
            >>> import emo_torch
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = emo_torch.EmoSens([weight], lr=1e-3)
            >>> for part in (1.0, 3.0):
            ...     loss = optimizer.watch(part * weight.sum())
            ...     (loss / 2).backward()
            >>> _ = optimizer.step()
            >>> print(optimizer.emotion.long)
            tensor(4.)
        """
        collected = self._collected
        collected.check(weight, reduction)
        value = self._checked_loss(loss)
        if torch.is_grad_enabled():
            check_has_graph(loss)

            def count(gradient: Tensor) -> None:
                del gradient
                collected.add(value, weight, reduction)

            loss.register_hook(count)
        return loss

    def observe(self, loss: Tensor | float, weight: float = 1.0, reduction: str = "mean") -> None:
        r"""Collects a loss for the next step, at any time between two steps.

        .. math:: L = \frac{\sum_i w_i L_i}{\sum_i w_i}

        Call it after the backward pass, with the loss as it was before anything divided or scaled it;
        `zero_grad` forgets it. No sync with the device.

        Args:
            loss: the loss, a tensor of one element or a number.
            weight: its weight among the losses of one step, above 0, for example how many examples it
                is of.
            reduction: what becomes of several losses in one step, "mean" or "sum" (of weight times
                loss); the same for all of them.

        Raises:
            TypeError: for what is no real number.
            ValueError: for a loss that is not a scalar, a weight out of its range, and another
                reduction than that of the losses collected so far.

        Example:
            >>> import torch
            >>> import emo_torch
            >>> weight = torch.nn.Parameter(torch.ones(2))
            >>> optimizer = emo_torch.EmoSens([weight], lr=1e-3)
            >>> for examples, loss in ((8, 2.0), (4, 5.0)):
            ...     optimizer.observe(loss, weight=examples)
            >>> _ = optimizer.step()
            >>> print(optimizer.emotion.long)
            tensor(3.)
        """
        self._collected.check(weight, reduction)
        self._collected.add(self._checked_loss(loss), weight, reduction)

    def discard_observed(self) -> None:
        """Forgets the losses collected since the last step, as `zero_grad` does, too.

        Example:
            >>> import torch
            >>> import emo_torch
            >>> optimizer = emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))])
            >>> optimizer.observe(2.0)
            >>> optimizer.discard_observed()
            >>> try:
            ...     optimizer.step()
            ... except emo_torch.LossMissingError:
            ...     print("forgotten")
            forgotten
        """
        self._collected.discard()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients, as every optimizer does, and forgets the losses that go with them.

        Args:
            set_to_none: whether gradients become `None`, and not 0.
        """
        self._collected.discard()
        super().zero_grad(set_to_none)

    def _checked_loss(self, loss: Any, name: str = "loss") -> Tensor:
        kind = next(tensor for tensor in self._memory if tensor.is_floating_point())
        return check_loss(loss, kind.dtype, kind.device, name)

    def step_with(
        self,
        closure: Callable[[], Tensor | float | None] | None,
        loss: Tensor | float | None,
        **beside: Any,
    ) -> Tensor | float | None:
        """Takes one step; `take_in` is given what stands beside the loss, checked like it."""
        result = loss
        if closure is not None:
            if not callable(closure):
                raise TypeError(NOT_A_CLOSURE.format(kind=f"of the type {type(closure).__name__}"))
            # No scaler calls what is compiled.
            params = [] if torch.compiler.is_compiling() else list(self._params())
            before = [(param.grad, param.grad._version) for param in params if param.grad is not None]
            with torch.enable_grad():
                result = closure()
            check_closure_under_scaler(before, params)
        self._check_groups()
        given = loss
        if loss is None:
            given = result if self._collected.loss is None else self._collected.loss
        check_capture(type(self).__name__, self.param_groups, given)
        seen = self._look()
        if given is None and all(self._is_zero(group.get("lr", 1.0)) for group in self.param_groups):
            self._make_missing_state()
            return None
        self._bring_memory(self._device())
        value = None if given is None and self.loss_is_optional else self._checked_loss(given)
        others = {
            name: None if extra is None else self._checked_loss(extra, name)
            for name, extra in beside.items()
        }
        # Behind all checks: a process that failed one would let the others wait.
        value, *means = (
            None if each is None else self._replicas.average(each) for each in (value, *others.values())
        )
        feeling = self.take_in(value, **dict(zip(others, means, strict=True)))
        self._collected.discard()
        self._move(feeling, seen)
        return given if closure is None else result

    def _check_groups(self) -> None:
        """Raises an error for groups that somebody has changed so that they cannot be stepped."""
        if torch.compiler.is_compiling():
            return
        if not self.param_groups:
            raise ValueError("The optimizer has no parameter group left: add one with `add_param_group`")
        seen: list[list[Any]] = self.__dict__.setdefault("_looked_at", [])
        del seen[len(self.param_groups) :]
        for index, group in enumerate(self.param_groups):
            values = list(group.values())
            # By identity, which is quick. A schedule changes the learning rate, and hardly anything else.
            if index < len(seen) and len(values) == len(seen[index]) and all(map(is_, values, seen[index])):
                continue
            if "lr" in group:
                check_scheduled_rate(group["lr"])
            changed = set(group)
            if index < len(seen) and len(values) == len(seen[index]):
                pairs = zip(group, values, seen[index], strict=True)
                changed = {name for name, value, old in pairs if value is not old}
            if not changed <= {"lr"}:
                names = ("params", *self.defaults, *self.memory_names())
                missing = [name for name in names if name not in group and name != "differentiable"]
                if missing:
                    raise ValueError(f"The parameter group {index} lacks {', '.join(map(repr, missing))}")
                # What a schedule does to the rate, even a rounding under 0, is its own matter.
                self.check_options({**group, "lr": 0.0})
                self._check_shared_options(group, self.param_groups[0])
                check_duplicates(group["params"], foreach=group.get("foreach"))
            seen[index:] = [values]

    def _is_zero(self, lr: float | Tensor) -> bool:
        # Where a step without a loss is an everyday one, it must not wait for the device.
        may_look = not (self.loss_is_optional and isinstance(lr, Tensor) and lr.device.type != "cpu")
        return may_look and float(lr) == 0.0

    def _make_missing_state(self) -> None:
        """Makes the state that parameters with a gradient lack, and changes nothing."""
        for group in self.param_groups:
            self._collect(group)

    @functools.cached_property
    def _step_memory(self) -> StepMemory:
        return StepMemory()

    def _look(self) -> list[GroupTensors | None]:
        """Returns what is known of each group, and looks whether gradients can be used where nothing is."""
        seen: list[GroupTensors | None] = [None] * len(self.param_groups)
        if not torch.compiler.is_compiling():
            seen = self._step_memory.look(self.param_groups, self.state)
        pairs = zip(self.param_groups, seen, strict=True)
        check_gradients(
            type(self).__name__, [param for group, known in pairs if not known for param in group["params"]]
        )
        return seen

    def _move(self, feeling: Any, seen: list[GroupTensors | None]) -> None:
        """Moves every parameter that has a gradient."""
        before = 0
        for index, group in enumerate(self.param_groups):
            params, grads, states = seen[index] or self._collect(group)
            if params and group.get("rounding", "nearest") == "nearest":
                if not torch.compiler.is_compiling():
                    params = self._step_memory.params(index, params)
                self.step_tensors(params, grads, states, feeling=feeling, group=group)
                if not torch.compiler.is_compiling():
                    tensors = GroupTensors(params, grads, states)
                    self._step_memory.remember(index, group, self.state, tensors)
            elif params:
                # In full precision, to the side; those that have it anyway step as ever.
                weights = [param.to(wide_dtype(param)) for param in params]
                wide = [grad.to(weight.dtype) for grad, weight in zip(grads, weights, strict=True)]
                if not torch.compiler.is_compiling():
                    weights = self._step_memory.params(index, weights)
                self.step_tensors(weights, wide, states, feeling=feeling, group=group)
                self._take_on(params, weights, states, group, before)
            before += len(group["params"])

    def _take_on(
        self, params: list[Tensor], weights: list[Tensor], states: list[State], group: Group, before: int
    ) -> None:
        """Moves narrow parameters to what they became to the side, rounded as their group says."""
        if group["rounding"] == "kahan":
            beside = [state.get("compensation", param) for param, state in zip(params, states, strict=True)]
        else:
            keys = rounding_keys(self.step_count(), before + len(group["params"])).unbind()[before:]
            pairs = zip(group["params"], keys, strict=True)
            beside = [key.to(param.device) for param, key in pairs if param.grad is not None]
        foreach = use_foreach(params, group)
        for indices in _by_device_and_dtype(params).values():
            narrow = [params[index] for index in indices]
            if is_narrow(narrow[0]):
                moved = [weights[index] for index in indices]
                updates = [weight.sub_(param) for weight, param in zip(moved, narrow, strict=True)]
                extras = [beside[index] for index in indices]
                add_rounded(narrow, updates, extras, rounding=group["rounding"], foreach=foreach)

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
            if not state.keys() >= needed[ndim] or (is_compensated and "compensation" not in state):
                state.update(self._missing_state(param, group, state))
            # The model may have changed its dtype.
            if shadow and state["shadow"].dtype != wide_dtype(param):
                state["shadow"] = state["shadow"].to(wide_dtype(param))
            if is_compensated and state["compensation"].dtype != param.dtype:
                state["compensation"] = state["compensation"].to(param.dtype)
            params.append(param)
            grads.append(grad)
            states.append(state)
        return params, grads, states

    def _missing_state(self, param: Tensor, group: Group, state: State) -> State:
        """Returns what a parameter's state lacks, newly made."""
        made: State = {}
        if any(name not in state for name in self.moment_names(param)):
            made.update(self.init_moments(param, group["moment_dtype"] or wide_dtype(param)))
        if group.get("use_shadow") and not {"shadow", "shadow_exists"} <= state.keys():
            made["shadow"] = torch.zeros_like(param, dtype=wide_dtype(param))
            made["shadow_exists"] = torch.zeros((), dtype=torch.bool, device=param.device)
        if _is_compensated(param, group):
            made["compensation"] = torch.zeros_like(param)
        return {name: tensor for name, tensor in made.items() if name not in state}

    def full_state(self, param: Tensor, group: Group) -> State:
        """Returns a parameter's state with what it lacks newly made, without keeping that."""
        state = self.state.get(param, {})
        full = {**state, **self._missing_state(param, group, state)}
        if not _is_compensated(param, group):
            full.pop("compensation", None)  # What it had before its rounding, or its dtype, was changed.
        return full

    # Where the memory lives.

    def _device(self) -> torch.device:
        """Returns the device of the first parameter that has a gradient, or of the first one."""
        with_gradient = (param for param in self._params() if param.grad is not None)
        first = next(chain(with_gradient, self._params()), None)
        return torch.device("cpu") if first is None else first.device

    def _bring_memory(self, device: torch.device) -> None:
        """Moves what is remembered to where the parameters are now."""
        name, tensor = next(iter(self._held.items()))
        if self.param_groups[0].get(name) is not tensor:  # Some write into groups what they loaded.
            self._share_memory(self.memory_of(self.param_groups[0]), device)
        elif tensor.device != device:
            self._share_memory(self._memory, device)

    def _share_memory(self, memory: tuple[Tensor, ...], device: torch.device | None = None) -> None:
        """Puts the memory, as tensors of its own, into every group."""
        device = torch.device("cpu") if device is None or device.type == "meta" else device
        dtype = wide_dtype(*self._params())

        def own(tensor: Tensor) -> Tensor:
            target = dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(device=device, dtype=target, copy=True)

        self._memory = tuple(own(tensor) for tensor in memory)
        self._held = self.hold_memory(self._memory)
        for group in self.param_groups:
            group.update(self._held)

    # Groups and state.

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group of parameters, which shares what the others remember of the losses.

        Args:
            param_group: the parameters under `"params"`, and options of their own.

        Raises:
            ValueError: for an option out of its range, or one that belongs to the whole optimizer and
                differs from the other groups'.
            RuntimeError: for `fused=True` where it cannot be.
        """
        check_group_form(param_group)
        if isinstance(param_group, dict):
            # What a loaded state brought goes before what the optimizer was made with.
            first = self.param_groups[0] if self.param_groups else self.defaults
            shared = {name: first[name] for name in self.shared_options}
            options = {**self.defaults, **shared, **param_group}
            self.check_options(options)
            self._check_shared_options(options, shared)
            check_duplicates(options["params"], foreach=options.get("foreach"))
            if options.get("fused"):
                check_fused(
                    type(self).__name__,
                    options["params"],
                    is_compiled=library() is not None,
                    has_triton=cuda.is_available(),
                    has_kernel=self.has_cuda_kernel,
                )
            for name, value in shared.items():
                param_group.setdefault(name, value)
        super().add_param_group(param_group)
        if len(self.param_groups) == 1:
            self._share_memory(self.first_memory(), self._device())
        else:
            self._share_memory(self._memory, self._memory[0].device)

    def _check_shared_options(self, options: Group, shared: Group) -> None:
        """Raises a `ValueError` if options of a group differ that can only be one for all."""
        for name in self.shared_options:
            if options.get(name) != shared.get(name):
                raise ValueError(
                    f"{name} belongs to the one {self.memory_title} of the optimizer: a parameter group "
                    f"cannot have {options.get(name)!r} where the optimizer has {shared.get(name)!r}"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, also one of `torch.optim.AdamW` where the moments are the same.

        Options and an emotion that the state does not have stay as they are. Every tensor keeps the
        dtype that it was saved with: float32 moments of bfloat16 parameters stay float32. Every tensor is
        copied, so that the optimizer that the state came from keeps its own. (Those of `torch.optim`
        share them.)

        Args:
            state_dict: what `state_dict()` returned; it is not changed.

        Raises:
            ValueError: before anything is changed, if the state is another kind of optimizer's, has
                other shapes, or lacks a part of the emotion.
        """
        check_state_form(type(self).__name__, state_dict)
        final: dict[str, Any] = {}

        def check(_: Optimizer, loaded: dict[str, Any]) -> None:
            self._check_state_dict(loaded)
            final.update(loaded)

        def restore(_: Optimizer) -> None:
            self._restore_dtypes(final)
            given = _tensors_in(final["state"])
            for key, value in self.state.items():
                self.state[key] = _without_shared(value, given)

        # Between the user's own hooks: those see what is loaded, and what has become of it.
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _saved_params(self, loaded: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yields each parameter that has saved state, with it."""
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
            moments = {name for name in MOMENTS if name in saved}
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
                is_right = saved[name].is_floating_point() or name == "shadow_exists"
                if not is_right or (name == "shadow_exists" and saved[name].dtype != torch.bool):
                    raise ValueError(f"The state is damaged: {name!r} is of {saved[name].dtype}")
        names, groups = self.memory_names(), self.param_groups
        has_memory = any(name in saved for saved in loaded["param_groups"] for name in names)
        for saved in loaded["param_groups"]:
            missing = [name for name in names if name not in saved]
            if has_memory and missing:
                raise ValueError(f"The state lacks a part of the {self.memory_title}: {', '.join(missing)}")
            for name in names if has_memory else ():
                value = saved[name]
                is_one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)
                if not is_one:
                    raise ValueError(f"The state is damaged: {name!r} must be one number, and is {value!r}")
                is_count = not groups[0][name].is_floating_point()
                if not math.isfinite(value) or (is_count and not (value >= 0 and value == int(value))):
                    raise ValueError(f"The state is damaged: {name!r} is {value!r}, which no loss makes it")
        pairs = zip(self.param_groups, loaded["param_groups"], strict=False)
        together = [{**group, **saved} for group, saved in pairs]
        for options in together:
            self.check_options(options)
            self._check_shared_options(options, together[0])

    def _restore_dtypes(self, loaded: dict[str, Any]) -> None:
        """Undoes the cast of every state to its parameter's dtype that loading makes."""
        for param, saved in self._saved_params(loaded):
            state = self.state[param]
            for name, value in saved.items():
                if isinstance(value, Tensor) and state[name].dtype != value.dtype:
                    state[name] = value.detach().to(device=state[name].device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_replicas": self._replicas}

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        self._collected = CollectedLosses()
        for index, group in enumerate(self.param_groups):
            # What a state of another origin lacks stays as it is here. ("differentiable" is torch's
            # own addition to the defaults, and no option of these optimizers.)
            here = {**self.defaults, **(groups[index] if groups else {})}
            for name in (*self.defaults, *self.memory_names()):
                if name not in group and name != "differentiable":
                    group[name] = here[name]
        self._share_memory(self.memory_of(self.param_groups[0]), self._device())

    def __repr__(self) -> str:
        lines = super().__repr__().split("\n")
        hidden = tuple(self.memory_names())
        return "\n".join(line for line in lines if not line.strip().startswith(hidden))


class EmoOptimizer(LossOptimizer):
    """The base of those with an emotion: it feels the loss once a step, and blends with a shadow."""

    memory_title = "emotion"
    shared_options = SHARED_OPTIONS
    shadow_effect: bool = True
    """Whether its update is filtered and scaled."""

    _emotion: EmotionState
    _shadow_exists: Tensor
    _shadow_ratio: Tensor

    def __init__(
        self,
        params: ParamsT,
        defaults: Group,
        *,
        shadow_ratio: ShadowRatio,
        process_group: LossGroup = None,
    ) -> None:
        check_shadow_ratio(shadow_ratio)
        # A function cannot be loaded safely from a file, so the groups only say that there is one.
        self._shadow_ratio_of = shadow_ratio if callable(shadow_ratio) else None
        defaults["shadow_ratio"] = "function" if callable(shadow_ratio) else shadow_ratio
        super().__init__(params, defaults, process_group=process_group)

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        check_group(options, MODES)
        check_choice("shadow_ratio", options["shadow_ratio"], ("v2.0", "v1.0", "function"))
        check_rounding(options)

    def take_in(self, loss: Tensor | None, **beside: Any) -> Feeling:
        """Takes in the loss, and settles how far this step pulls to the shadow."""
        del beside
        assert loss is not None
        group = self.param_groups[0]
        # In place: the groups, and captured graphs, hold these tensors.
        feel_in_place(
            self._emotion,
            -loss if group.get("maximize") else loss,
            short_factor=group["short_factor"],
            long_factor=group["long_factor"],
            gain=group["gain"],
        )
        scalar = self._emotion.scalar
        if not any(group["use_shadow"] for group in self.param_groups):
            return Feeling(scalar, self._shadow_ratio)
        # A name that came from a file goes before a function that the optimizer was made with.
        name: ShadowRatio = group["shadow_ratio"]
        if name == "function" and self._shadow_ratio_of is not None:
            name = self._shadow_ratio_of
        ratio_of = shadow_ratio_function(name)
        ratio = torch.as_tensor(ratio_of(scalar), dtype=scalar.dtype, device=scalar.device)
        self._shadow_ratio.copy_(ratio * self._shadow_exists)
        self._shadow_exists.logical_or_(ratio > 0)
        return Feeling(scalar, ratio)

    def step_count(self) -> Tensor:
        """Returns how many steps were taken, the one under way included, as a tensor of shape `[]`."""
        return self._emotion.felt + self._emotion.held

    # A look at the emotion.

    @property
    def emotion(self) -> Emotion:
        """The emotion as it is now, in tensors of its own; no sync with the device."""
        state = self._emotion
        return Emotion(
            short=state.short.clone(),
            long=state.long.clone(),
            scalar=state.scalar.clone(),
            step_scale=step_scale(state.scalar),
            shadow_ratio=self._shadow_ratio.clone(),
            should_stop=state.should_stop.clone(),
            is_quiet=went_quiet(state.history, state.felt),
            felt=state.felt.clone(),
            held=state.held.clone(),
        )

    @property
    def should_stop(self) -> bool:
        """Whether training has ever gone quiet; waits for the device (`emotion.should_stop` doesn't)."""
        return bool(self._emotion.should_stop)

    def keep_of(self, group: Group) -> Keep:  # noqa: ARG002
        """Returns which elements the filter keeps in a group."""
        return keep_elements

    def emotion_tensors(self) -> State:
        """Returns the tensors that the emotion lives in, by their names; not copies."""
        shadow = {"shadow_exists": self._shadow_exists, "shadow_ratio": self._shadow_ratio}
        return {**self._emotion._asdict(), **shadow}

    def named_memory(self) -> State:
        """Returns the tensors of the memory by the names that the bridge to `emo_optax` gives them."""
        return {f"emotion/{name}": tensor for name, tensor in self.emotion_tensors().items()}

    # Where the emotion lives.

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns what is remembered before any loss."""
        never, none = torch.zeros((), dtype=torch.bool), torch.zeros(())
        return (*init_emotion(torch.float32), never, none)

    def hold_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Takes tensors to remember in, and returns them, flat, by the names that groups know them by."""
        *emotion, self._shadow_exists, self._shadow_ratio = memory
        self._emotion = EmotionState(*emotion)
        flat = {f"emotion_{name}": tensor for name, tensor in self._emotion._asdict().items()}
        del flat["emotion_history"]
        flat["emotion_shadow_exists"] = self._shadow_exists
        flat["emotion_shadow_ratio"] = self._shadow_ratio
        # One by one: some checkpointers compare a group's values, which only scalars survive.
        flat.update(zip(HISTORY, self._emotion.history.unbind(), strict=True))
        return flat

    def memory_of(self, group: Group) -> tuple[Tensor, ...]:
        """Returns what is remembered, from a group that came out of a file or a copy."""
        fields = {name: group[f"emotion_{name}"] for name in EmotionState._fields if name != "history"}
        fields["history"] = torch.stack([torch.as_tensor(group[name]) for name in HISTORY])
        emotion = EmotionState(**{name: torch.as_tensor(value) for name, value in fields.items()})
        exists = torch.as_tensor(group["emotion_shadow_exists"])
        ratio = torch.as_tensor(group["emotion_shadow_ratio"])
        return (*emotion, exists, ratio)

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names that groups know the memory by."""
        names = [f"emotion_{name}" for name in EmotionState._fields if name != "history"]
        return (*names, "emotion_shadow_exists", "emotion_shadow_ratio", *HISTORY)

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        super()._check_state_dict(loaded)
        for saved in loaded["param_groups"]:
            if saved.get("shadow_ratio") == "function" and self._shadow_ratio_of is None:
                raise ValueError(
                    "The state was saved with a function for shadow_ratio, which no file keeps: make "
                    f"the {type(self).__name__} with the same function before loading"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_shadow_ratio_of": self._shadow_ratio_of}


def _tensors_in(value: Any) -> set[int]:
    """Returns the identities of the tensors in a value, which may be nested containers."""
    if isinstance(value, Tensor):
        return {id(value)}
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, _CONTAINERS) else ()
    return set().union(*map(_tensors_in, nested))


def _without_shared(value: Any, given: set[int]) -> Any:
    """Returns a loaded value with a copy of every tensor that is one of those given."""
    if isinstance(value, Tensor):
        return value.detach().clone() if id(value) in given else value
    if isinstance(value, dict):
        own = copy.copy(value)  # Not in place: it may be the other optimizer's.
        own.update({key: _without_shared(nested, given) for key, nested in value.items()})
        return own
    if isinstance(value, _CONTAINERS):
        items = [_without_shared(nested, given) for nested in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _is_compensated(param: Tensor, group: Group) -> bool:
    """Returns whether what rounding keeps back of a parameter is kept."""
    return group.get("rounding") == "kahan" and is_narrow(param)


def use_foreach(params: list[Tensor], group: Group) -> bool:
    """Returns whether to step with all tensors at once: as the group says, or as torch.optim would.

    Never with a parameter that is there twice: its second step must begin where the first one ended.
    """
    foreach: bool | None = group.get("foreach")
    if foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, differentiable=False, use_fused=False)
    return foreach and (torch.compiler.is_compiling() or not has_duplicates(params))


def use_fused(params: list[Tensor], group: Group) -> bool:
    """Returns whether to step in compiled code, or in blocks: unless the group names another way."""
    fused: bool | None = group.get("fused")
    if torch.compiler.is_compiling() or fused is False:
        return False
    if params[0].device.type in cuda.DEVICES:  # There it is never chosen by itself.
        return fused is True and cuda.is_available()
    return params[0].device.type == "cpu" and (fused is True or group.get("foreach") is None)


class Ways(NamedTuple):
    """The ways to take one and the same step, of which a group's options choose.

    Attributes:
        single: one tensor after the other; the reference.
        multi: all tensors of one device and dtype at once.
        fused: in compiled code, or in blocks where there is none; returns the indices of the tensors
            that it leaves to the others.
    """

    single: Callable[..., None]
    multi: Callable[..., None]
    fused: Callable[..., list[int]]

    def step(
        self, params: list[Tensor], grads: list[Tensor], states: list[State], *, group: Group, **given: Any
    ) -> None:
        """Takes the step, in the fastest way that fits the tensors where the group names none."""
        if use_fused(params, group):
            rest = self.fused(params, grads, states, group=group, **given)
            params = [params[index] for index in rest]
            grads = [grads[index] for index in rest]
            states = [states[index] for index in rest]
        if params:
            way = self.multi if use_foreach(params, group) else self.single
            way(params, grads, states, group=group, **given)


class _Signal(NamedTuple):
    """The feeling as one group needs it, in one dtype on one device."""

    tolerance: Tensor
    scale: Tensor
    shadow_ratio: Tensor
    lr: float | Tensor


def _signal(feeling: Feeling, group: Group, device: torch.device, dtype: torch.dtype) -> _Signal:
    scalar = feeling.scalar.to(device=device)
    lr = group["lr"]
    return _Signal(
        tolerance=(group.get("theta", 0.0) * (1.0 + scalar.abs())).to(dtype),
        scale=step_scale(scalar).to(dtype),
        shadow_ratio=feeling.shadow_ratio.to(device=device, dtype=dtype),
        lr=lr.reshape(()).to(dtype) if isinstance(lr, Tensor) else lr,
    )


def single_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    rule: Rule,
    *,
    feeling: Feeling,
    group: Group,
    keep: Keep = keep_elements,
    shadow_effect: bool = True,
    first: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Steps with one tensor after the other: shadow, weight decay, rule, effect. The reference.

    What `first` makes of the gradient is a step of its own, before weight decay.
    """
    signals: dict[tuple[torch.device, torch.dtype], _Signal] = {}
    for param, grad, state in zip(params, grads, states, strict=True):
        # Low precision is computed wide: weight decay alone would be rounded away.
        dtype = wide_dtype(param)
        if (param.device, dtype) not in signals:
            signals[param.device, dtype] = _signal(feeling, group, param.device, dtype)
        signal = signals[param.device, dtype]
        weight = param.to(dtype)
        grad = grad.to(dtype)
        moved = {name: state[name].to(dtype) for name in MOMENTS if name in state}
        if group["maximize"]:
            grad = -grad

        if group["use_shadow"]:
            blend_with_shadow(
                weight,
                state["shadow"],
                state["shadow_exists"],
                signal.shadow_ratio,
                shadow_rate=group["shadow_rate"],
            )
        mode, weight_decay = group["weight_decay_mode"], group["weight_decay"]
        if mode == "l2":
            grad = grad.clone()
            add_weight_decay(grad, weight, weight_decay)
        if first is not None:
            weight.sub_(first(grad).mul_(signal.lr))
        update = rule(grad, moved)
        if shadow_effect:
            if not keeps_all(keep, grad, group["theta"]):
                update = filter_by_emotion(update, grad, signal.tolerance, keep)
            update.mul_(signal.scale)
        if mode == "decoupled":
            add_weight_decay(update, weight, weight_decay / (group["weight_decay_divisor"] or 1.0))
        update.mul_(signal.lr)
        if mode == "absolute":
            add_weight_decay(update, weight, weight_decay)
        weight.sub_(update)

        for name, moment in moved.items():
            store(name, moment, state[name])
        if weight is not param:
            # Rounded as an update first, then added: what optax.apply_updates does.
            param.add_((weight - param.to(dtype)).to(param.dtype))


def multi_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    rule: MultiTensorRule,
    *,
    feeling: Feeling,
    group: Group,
    keep: Keep = keep_elements,
    shadow_effect: bool = True,
    first: Callable[[list[Tensor]], list[Tensor]] | None = None,
) -> None:
    """Does what `single_tensor` does, for all tensors of one device and dtype at a time."""
    for (device, *_), indices in _by_device_and_dtype(params).items():
        narrow = [params[index] for index in indices]
        dtype = wide_dtype(narrow[0])
        signal = _signal(feeling, group, device, dtype)
        weights = [param.to(dtype) for param in narrow]
        gradients = [grads[index].to(dtype) for index in indices]
        saved = [states[index] for index in indices]
        moved = [{name: state[name].to(dtype) for name in MOMENTS if name in state} for state in saved]
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))

        if group["use_shadow"]:
            multi_tensor_blend_with_shadow(
                weights,
                [state["shadow"] for state in saved],
                [state["shadow_exists"] for state in saved],
                signal.shadow_ratio,
                shadow_rate=group["shadow_rate"],
            )
        mode, weight_decay = group["weight_decay_mode"], group["weight_decay"]
        if mode == "l2":
            gradients = [grad.clone() for grad in gradients]
            multi_tensor_add_weight_decay(gradients, weights, weight_decay)
        if first is not None:
            steps = first(gradients)
            torch._foreach_mul_(steps, signal.lr)
            torch._foreach_sub_(weights, steps)
        updates = rule(gradients, moved)
        if shadow_effect:
            updates = [
                update
                if keeps_all(keep, grad, group["theta"])
                else filter_by_emotion(update, grad, signal.tolerance, keep)
                for update, grad in zip(updates, gradients, strict=True)
            ]
            torch._foreach_mul_(updates, signal.scale)
        if mode == "decoupled":
            share = weight_decay / (group["weight_decay_divisor"] or 1.0)
            multi_tensor_add_weight_decay(updates, weights, share)
        torch._foreach_mul_(updates, signal.lr)
        if mode == "absolute":
            multi_tensor_add_weight_decay(updates, weights, weight_decay)
        torch._foreach_sub_(weights, updates)

        for state, news in zip(saved, moved, strict=True):
            for name, moment in news.items():
                store(name, moment, state[name])
        if weights[0] is not narrow[0]:
            before = [param.to(dtype) for param in narrow]
            changes = [change.to(narrow[0].dtype) for change in torch._foreach_sub(weights, before)]
            torch._foreach_add_(narrow, changes)


def fused(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    what: FusedStep,
    *,
    feeling: Feeling,
    group: Group,
) -> list[int]:
    """Does what `single_tensor` does in compiled code, or in blocks; returns the indices of the rest."""
    device = params[0].device if params[0].device.type in cuda.DEVICES else torch.device("cpu")

    def signal_of(dtype: torch.dtype, device: torch.device = device) -> Signal:
        signal = _signal(feeling, group, device, dtype)
        lr = signal.lr
        if not isinstance(lr, Tensor) or lr.device != device:
            # Filled, not copied: a copy would wait for the device.
            lr = torch.full((), float(lr), dtype=dtype, device=device)
        return Signal(signal.tolerance, signal.scale, signal.shadow_ratio, lr)

    def choice(chosen: Tensor | None) -> Tensor | None:
        return None if chosen is None else chosen.to(device)

    what = what._replace(chosen=choice(what.chosen), chosen_first=choice(what.chosen_first))
    if device.type in cuda.DEVICES:
        return cuda.step(params, grads, states, what, signal_of=signal_of, group=group)
    take = step_blocked if library() is None else step_fused
    return take(params, grads, states, what, signal_of=signal_of, group=group)


class Emotional(EmoOptimizer):
    r"""Makes any optimizer of PyTorch emotional.

    One emotion, felt once a step; with the shadow, `inner` steps from the blended parameters
    :math:`p' = (1-r)\,p + r\,shadow`; then what it changed is filtered and scaled:

    .. math:: p \leftarrow p' + (1 - |s|)\,[\,|g|^{1/3} \ge \theta\,(1+|s|)\,]\,(inner(p') - p')

    Groups and state are those of `inner`, under its own names, with the options and the emotion
    beside them in the groups: schedulers, gradient scalers and checkpoints see an optimizer like any
    other. During a step it holds a copy of the parameters that have a gradient, and a byte an
    element. From then on, step with this optimizer, not with `inner`.

    Args:
        inner: an instance of a `torch.optim.Optimizer`, learning rate included. Its groups may have
            `shadow_effect`, `theta`, `use_shadow` and `shadow_rate` of their own.
        shadow_effect: whether to filter and scale what `inner` changes.
        theta: the filter's threshold on the cube root of the gradient's size, >= 0; 0 for none.
        keep: which elements the filter keeps, `keep_elements` or `keep_rows_and_columns(eps)`.
        use_shadow: whether to pull the weights back to their shadow (see `blend_with_shadow`).
        shadow_ratio: r(s): "v2.0", "v1.0", or a function from a scalar tensor to a ratio in [0, 1].
        shadow_rate: how far the shadow follows the parameters, in (0, 1].
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: what the difference of the averages is multiplied by, per unit of the loss, >= 0.
        process_group: the processes over which the loss is averaged, so that replicas step alike:
            `None` for all of them, `False` for this one alone.

    Attributes:
        inner: the optimizer that moves the parameters.

    Raises:
        TypeError: for an optimizer that is emotional already, one that calls a closure for itself, as
            `torch.optim.LBFGS` does, or no optimizer.
        ValueError: for an option out of its range, one that `inner` has for itself, or one that
            belongs to the one emotion and differs between groups.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = emo_torch.Emotional(torch.optim.AdamW([weight], lr=1e-1))
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> print(weight.detach())
        tensor([ 0.8616, -1.8602])

    Source: EmoSens v2.0 by muooon.
    """

    inner: Optimizer
    _loss: Tensor | None = None

    def __init__(
        self,
        inner: Optimizer,
        *,
        shadow_effect: bool = True,
        theta: float = 1e-4,
        keep: Keep = keep_elements,
        use_shadow: bool = False,
        shadow_ratio: ShadowRatio = "v2.0",
        shadow_rate: float = 0.05,
        short_factor: float = 0.3,
        long_factor: float = 0.01,
        gain: float = 5.0,
        process_group: LossGroup = None,
    ) -> None:
        check_inner(inner)
        if isinstance(inner, EmoOptimizer):
            raise TypeError(f"{type(inner).__name__} is emotional already: use it as it is")
        check_shadow_ratio(shadow_ratio)
        check_function("keep", keep)
        options = {
            "shadow_effect": shadow_effect,
            "theta": theta,
            "use_shadow": use_shadow,
            "shadow_ratio": "function" if callable(shadow_ratio) else shadow_ratio,
            "shadow_rate": shadow_rate,
            "short_factor": short_factor,
            "long_factor": long_factor,
            "gain": gain,
        }
        taken = [name for name in options if name in inner.defaults]
        if taken:
            raise ValueError(
                f"{type(inner).__name__} has an option {taken[0]!r} of its own, which would be mistaken "
                "for that of the emotion: this optimizer cannot be made emotional"
            )
        for group in inner.param_groups:
            self.check_options({**options, **group})
            self._check_shared_options({**options, **group}, {**inner.param_groups[0], **options})
        self.inner = inner
        self._options = options
        self._shadow_ratio_of = shadow_ratio if callable(shadow_ratio) else None
        self._keep = keep
        self._replicas = Replicas(process_group)
        self._collected = CollectedLosses()
        # The way in which torch makes an optimizer that has its groups already.
        Optimizer.__setstate__(self, {"defaults": {**inner.defaults, **options}})
        for group in self.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)
        self._share_memory(self.first_memory(), self._device())

    @property
    def rule(self) -> str:  # type: ignore[override]
        """None of `_rules`; what asks for one is for the family alone."""
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

    # The step.

    def moment_names(self, param: Tensor) -> tuple[str, ...]:  # noqa: ARG002
        """Returns no names: the moments are the inner optimizer's."""
        return ()

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:  # noqa: ARG002
        """Returns no moments: they are the inner optimizer's."""
        return {}

    def _missing_state(self, param: Tensor, group: Group, state: State) -> State:
        return super()._missing_state(param, {**group, "moment_dtype": None}, state)

    def keep_of(self, group: Group) -> Keep:  # noqa: ARG002
        """Returns which elements the filter keeps in a group."""
        return self._keep

    def take_in(self, loss: Tensor | None, **beside: Any) -> Feeling:
        """Takes in the loss, and keeps it for an inner optimizer that reads it, too."""
        self._loss = loss
        return super().take_in(loss, **beside)

    def _step_inner(self) -> None:
        if isinstance(self.inner, LossOptimizer):
            self.inner.step(loss=self._loss)
        else:
            self.inner.step()

    def _make_missing_state(self) -> None:
        params = [param for param in self._params() if param.grad is not None]
        if all(self.state.get(param) for param in params):
            return
        befores = [param.clone() for param in params]
        states = {param: copy.deepcopy(self.state[param]) for param in params if self.state.get(param)}
        self.inner.step()
        copy_all(params, befores)  # Some move by a learning rate of 0, too.
        for param, state in states.items():
            self.state[param] = state

    def _move(self, feeling: Feeling, seen: list[GroupTensors | None]) -> None:  # noqa: ARG002
        """Lets the inner optimizer move the parameters, and keeps as much of it as is felt."""
        moves: list[tuple[list[Tensor], list[Tensor], list[Tensor], Group]] = []
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if group["use_shadow"] and params:
                self._blend(group, feeling)
            if group["shadow_effect"] and params:
                befores = [param.clone() for param in params]
                moves.append((params, befores, self._kept(params, group, feeling), group))
        shadows = self._take_shadows()
        try:
            self._step_inner()
        finally:
            for param, shadow in shadows.items():
                self.state[param].update(shadow)
        scale = step_scale(feeling.scalar)
        for params, befores, kept, group in moves:
            scale_change(params, befores, scale, kept=kept, foreach=use_foreach(params, group))

    def _blend(self, group: Group, feeling: Feeling) -> None:
        """Pulls the parameters of a group to their shadows."""
        params, _, states = self._collect(group)
        is_multi = use_foreach(params, group)
        for indices in _by_device_and_dtype(params).values():
            narrow = [params[index] for index in indices]
            weights = [param.to(wide_dtype(param)) for param in narrow]
            shadows = [states[index]["shadow"] for index in indices]
            exists = [states[index]["shadow_exists"] for index in indices]
            ratio = feeling.shadow_ratio.to(device=weights[0].device, dtype=weights[0].dtype)
            rate = group["shadow_rate"]
            if is_multi:
                multi_tensor_blend_with_shadow(weights, shadows, exists, ratio, shadow_rate=rate)
            else:
                for weight, shadow, exist in zip(weights, shadows, exists, strict=True):
                    blend_with_shadow(weight, shadow, exist, ratio, shadow_rate=rate)
            if weights[0] is not narrow[0]:
                copy_all(narrow, weights)

    def _kept(self, params: list[Tensor], group: Group, feeling: Feeling) -> list[Tensor]:
        """Returns which elements may move, before the inner optimizer can change a gradient."""
        tolerance = group["theta"] * (1.0 + feeling.scalar.abs())
        kept = []
        for param in params:
            grad = param.grad.to(wide_dtype(param))  # type: ignore[union-attr]
            if keeps_all(self._keep, grad, group["theta"]):
                kept.append(torch.ones_like(grad, dtype=torch.bool))
            else:
                kept.append(self._keep(grad, tolerance.to(device=grad.device, dtype=grad.dtype)))
        return kept

    def _take_shadows(self) -> dict[Tensor, State]:
        """Takes the shadows out of the state: some optimizers begin theirs only where it is empty."""
        shadows: dict[Tensor, State] = {}
        for param in self._params():
            state = self.state.get(param, {})
            if "shadow" in state:
                shadows[param] = {name: state.pop(name) for name in ("shadow", "shadow_exists")}
                if not state:
                    del self.state[param]
        return shadows

    # Groups and state.

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        check_flag("shadow_effect", options["shadow_effect"])
        check_flag("use_shadow", options["use_shadow"])
        check_not_negative("theta", options["theta"])
        check_factor("shadow_rate", options["shadow_rate"])
        check_factor("short_factor", options["short_factor"])
        check_factor("long_factor", options["long_factor"])
        check_not_negative("gain", options["gain"])

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group of parameters, which shares the emotion that the others have.

        Args:
            param_group: the parameters under `"params"`, and options of their own.

        Raises:
            ValueError: for an option out of its range, or one that belongs to the one emotion and
                differs from the other groups'.
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
        self._share_memory(self._memory, self._memory[0].device)

    def _saved_params(self, loaded: dict[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yields each parameter that has a saved shadow, with it: the moments are the inner's matter."""
        for param, saved in super()._saved_params(loaded):
            names = [name for name in saved if name in ("shadow", "shadow_exists")]
            shadow = {name: saved[name] for name in names}
            if shadow:
                yield param, shadow

    def __getstate__(self) -> dict[str, Any]:
        names = ("defaults", "inner", "_options", "_keep", "_shadow_ratio_of", "_replicas")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "param_groups" not in state:  # A copy, or out of a pickle.
            Optimizer.__setstate__(self, state)
            self._collected = CollectedLosses()
        else:  # Out of a file, in which the inner optimizer may have more to settle.
            groups = self.inner.param_groups
            self.inner.__setstate__(state)
            for group, here in zip(self.param_groups, groups, strict=True):
                for name in (*self._options, *self.memory_names()):
                    group.setdefault(name, here[name])
        self._share_memory(self.memory_of(self.param_groups[0]), self._device())

    def __repr__(self) -> str:
        name = type(self.inner).__name__
        return super().__repr__().replace("Emotional (", f"Emotional {name} (", 1)


def scale_change(
    params: list[Tensor],
    befores: list[Tensor],
    scale: Tensor,
    *,
    kept: list[Tensor] | None = None,
    foreach: bool = False,
) -> None:
    """Goes a part of the way from what parameters were to what they are, in place, without a sync.

    Args:
        params: the parameters as they are, any shapes; what is kept of the way goes here.
        befores: as they were.
        scale: the part, shape `[]`: 1 leaves them to the last bit as they are, 0 as they were.
        kept: the elements that may move, as booleans in the parameters' shapes; `None` for all.
        foreach: whether to move all tensors of one device and dtype at once.
    """
    for indices in _by_device_and_dtype(params).values():
        narrow = [params[index] for index in indices]
        dtype = wide_dtype(narrow[0])
        part = scale.to(device=narrow[0].device, dtype=dtype)
        starts = [befores[index].to(dtype) for index in indices]
        ends = [param.to(dtype) for param in narrow]
        if foreach:
            moved = list(torch._foreach_lerp(starts, ends, [part] * len(starts)))
        else:
            moved = [start.lerp(end, part) for start, end in zip(starts, ends, strict=True)]
        if kept is not None:
            masks = [kept[index] for index in indices]
            moved = [
                torch.where(mask, there, start)
                for mask, there, start in zip(masks, moved, starts, strict=True)
            ]
        copy_all(narrow, moved)


def _by_device_and_dtype(tensors: list[Tensor]) -> dict[tuple[torch.device, torch.dtype, Any], list[int]]:
    """Returns the places of the tensors of each device and dtype, and of each device mesh."""
    buckets: dict[tuple[torch.device, torch.dtype, Any], list[int]] = {}
    for index, tensor in enumerate(tensors):
        buckets.setdefault((tensor.device, tensor.dtype, mesh_of(tensor)), []).append(index)
    return buckets
