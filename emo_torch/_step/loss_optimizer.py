"""Putting it together: what every emotional optimizer shares, and a look at its emotion."""

import copy
import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from emo_torch._checks.errors import NOT_A_CLOSURE
from emo_torch._checks.hints import warn_of_large_rate, with_hints
from emo_torch._checks.validation import (
    check_capture,
    check_choice,
    check_closure_under_scaler,
    check_divisor,
    check_duplicates,
    check_flag,
    check_fused,
    check_gradients,
    check_group,
    check_group_form,
    check_has_graph,
    check_learning_rate,
    check_loss,
    check_scheduled_rate,
    check_shadow_ratio,
    check_state_form,
)
from emo_torch._kernels import cuda, library
from emo_torch._kernels.memory import StepMemory
from emo_torch._kernels.plan import GroupTensors
from emo_torch._pieces.accumulation import CollectedLosses
from emo_torch._pieces.early_stop import WINDOW, went_quiet
from emo_torch._pieces.emotion import Emotion, EmotionState, feel_in_place, init_emotion, wide_dtype
from emo_torch._pieces.replicas import LossGroup, Replicas
from emo_torch._pieces.rounding import add_rounded, check_rounding, is_narrow, rounding_keys
from emo_torch._pieces.shadow_effect import Keep, step_scale
from emo_torch._pieces.shadow_system import (
    ShadowRatio,
    shadow_ratio_function,
)
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.family_rules import MOMENTS
from emo_torch._step.recipe import Group as Group
from emo_torch._step.recipe import Recipe
from emo_torch._step.recipe import State as State
from emo_torch._step.ways import WAYS, Feeling, by_device_and_dtype, use_foreach

HISTORY = tuple(f"emotion_history_{index:02d}" for index in range(WINDOW))
_CONTAINERS = (list, tuple, set, deque)
SHARED_OPTIONS = ("short_factor", "long_factor", "gain", "shadow_ratio", "maximize")
"""Options of the one emotion, which a group cannot have for itself."""


class LossOptimizer(Optimizer):
    """The base of all optimizers here: it is given the loss, and owns groups, state and validation.

    What it remembers of the losses lives as flat tensors in the parameter groups, the same ones in
    each: the one place that every way to save and load an optimizer keeps. What that is, and what a
    step makes of it, a class below says (`EmoOptimizer`: an emotion); a member of the family adds its
    recipe (see `_recipe.py`).
    """

    recipe: Recipe
    """What a member does, as data; the next two attributes derive from the recipe."""
    rule: str
    """The name of the recipe, which `to_arrays` writes into the arrays."""
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

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "recipe" in cls.__dict__:
            cls.rule, cls.has_cuda_kernel = cls.recipe.name, cls.recipe.on_cuda
        if "__init__" in cls.__dict__:
            cls.__init__ = with_hints(cls.__init__)  # type: ignore[method-assign]

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
        return self.recipe.moment_names(param.ndim)

    def init_moments(self, param: Tensor, dtype: torch.dtype) -> State:
        """Returns the moments of a parameter that has seen no gradient."""
        return self.recipe.init(param, dtype)

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
        those, what `emo_torch.listen` heard; without that, what the closure returns. Where
        `torch.distributed` runs, it is averaged over processes.

        Args:
            closure: computes the gradients and returns the loss; runs with gradients enabled.
            loss: the loss, a tensor of one element or a number.

        Returns:
            What the closure returned, or else the loss.

        Raises:
            LossMissingError: without a loss, unless the lr of every group is 0 (such a step makes
                missing state and changes nothing), or the closure returned `None` and no parameter has
                a gradient (such a batch is skipped: nothing changes).
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

        `zero_grad` forgets the losses whose backward passes came before it, with one exception: losses
        that were all watched before the first of their backward passes belong to one step, and a
        `zero_grad` between those passes forgets none of them. Methods that take the gradients of several
        losses apart (such as PCGrad) call `zero_grad` there. If such a method computes a loss only after
        the backward pass of another one, observe the sum before the step: `observe(sum(losses))`.

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
            watched = collected.watch(value, weight, reduction)

            def count(gradient: Tensor) -> None:
                del gradient
                collected.add_watched(watched)

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
        self._collected.reset()
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
            collected = self._collected.heard() if self._collected.loss is None else self._collected.loss
            given = result if collected is None else collected
        if given is None and closure is not None and self._is_skipped():
            return None
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

    def _is_skipped(self) -> bool:
        """Returns whether a closure without a loss has skipped its batch: no parameter has a gradient."""
        return not self.loss_is_optional and all(param.grad is None for param in self._params())

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
        for indices in by_device_and_dtype(params).values():
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
        if group.get("use_shadow") and "shadow" not in state:
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
        warn_of_large_rate(self, self.param_groups[-1].get("lr", 0.0))

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
    """The base of those with an emotion: it feels the loss once a step, and blends with a shadow.

    A member sets `recipe`, and hands over its options (see `options_of`).
    """

    memory_title = "emotion"
    shared_options = SHARED_OPTIONS
    shadow_effect: bool = True
    """Whether its update is filtered and scaled; derives from the recipe."""

    _emotion: EmotionState
    _shadow_exists: Tensor
    _shadow_ratio: Tensor

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "recipe" in cls.__dict__:
            cls.shadow_effect = cls.recipe.filter is not None

    def __init__(self, params: ParamsT, options: Group, *, process_group: LossGroup = None) -> None:
        shadow_ratio = options["shadow_ratio"]
        check_shadow_ratio(shadow_ratio)
        # A function cannot be loaded safely from a file, so the groups only say that there is one.
        self._shadow_ratio_of = shadow_ratio if callable(shadow_ratio) else None
        options["shadow_ratio"] = "function" if callable(shadow_ratio) else shadow_ratio
        options["weight_decay_divisor"] = _divisor(options)
        super().__init__(params, options, process_group=process_group)

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
        given: ShadowRatio = group["shadow_ratio"]
        if group["shadow_ratio"] == "function" and self._shadow_ratio_of is not None:
            given = self._shadow_ratio_of
        ratio_of = shadow_ratio_function(given)
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

    def keep_of(self, group: Group) -> Keep:
        """Returns which elements the filter keeps in a group."""
        return self.recipe.keep(group)

    def step_tensors(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
        *,
        feeling: Feeling,
        group: Group,
    ) -> None:
        """Moves those parameters of a group that have a gradient."""
        WAYS.step(params, grads, states, recipe=self.recipe, feeling=feeling, group=group)

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


def _divisor(options: Group) -> float | None:
    """Takes `decoupled_weight_decay` out of the options; returns the divisor of the weight decay."""
    is_divided = options.pop("decoupled_weight_decay", False)
    check_learning_rate(options["lr"])
    check_flag("decoupled_weight_decay", is_divided)
    if not is_divided:
        return None
    check_divisor(options["lr"], options["weight_decay_mode"])
    return float(options["lr"])


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
