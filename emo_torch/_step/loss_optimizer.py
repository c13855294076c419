"""The base of all optimizers of the package: takes the loss, steps, and has the parameter groups."""

import functools
from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._checks.errors import NOT_A_CLOSURE
from emo_torch._checks.gradients import check_closure_under_scaler, check_gradients
from emo_torch._checks.hints import warn_of_large_rate, with_hints
from emo_torch._checks.validation import (
    check_capture,
    check_duplicates,
    check_expanded,
    check_fused,
    check_group_form,
    check_loss,
    check_parameters,
    check_scheduled_rate,
)
from emo_torch._kernels import cuda, library
from emo_torch._kernels.memory import StepMemory
from emo_torch._kernels.plan import GroupTensors, Params
from emo_torch._kernels.streams import KEYS
from emo_torch._pieces.accumulation import CollectedLosses
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.replicas import LossGroup, Replicas
from emo_torch._rules.recipe import Group
from emo_torch._step.hooks import with_hooks
from emo_torch._step.loss_collector import LossCollector
from emo_torch._step.loss_memory import (
    MEMBER,
    LossMemory,
    check_kind_of_memory,
    check_member,
    check_saved_memory,
)
from emo_torch._step.member_methods import MemberMethods
from emo_torch._step.rounded import keys_of, step_copies
from emo_torch._step.state_keeper import StateKeeper


class LossOptimizer(MemberMethods, LossCollector, StateKeeper):
    """The base of all optimizers here: it gets the loss, and has groups, state and validation.

    A subclass defines which statistics of the losses are kept, and how a step uses them (`EmoOptimizer`:
    an emotion). `loss_memory.py` stores these numbers. A member of the family adds its recipe (see
    `recipe.py`).

    Args:
        params: the parameters, or groups of parameters, which may have options of their own.
        defaults: the options of the groups, by name.
        process_group: the processes over which the loss is averaged; `None` for all, `False` for none.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import emo_torch
        >>> issubclass(emo_torch.EmoPilot, emo_torch.LossOptimizer)
        True
    """

    rule: str
    """The name of the recipe, which `to_arrays` writes into the arrays."""
    has_cuda_kernel = True
    """Whether `fused=True` can step the member on CUDA."""
    has_compiled_code = True
    """Whether `fused=True` can step the member at all."""
    loss_is_optional = False
    """Whether a step without a loss is allowed, and not an error."""
    shared_options: tuple[str, ...] = ("maximize",)
    """Options of the memory of the losses, of which an optimizer has one: no group sets them for itself."""
    memory_title = "memory"
    """The name of the memory of the losses in messages."""

    _replicas: Replicas

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "recipe" in cls.__dict__:
            cls.rule, cls.has_cuda_kernel = cls.recipe.name, cls.recipe.on_cuda
            cls.has_compiled_code = cls.recipe.has_kernel
        if "__init__" in cls.__dict__:
            cls.__init__ = with_hints(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, params: ParamsT, defaults: Group, *, process_group: LossGroup = None) -> None:
        self.check_options(defaults)
        self._replicas = Replicas(process_group)
        self._collected = CollectedLosses()
        super().__init__(check_parameters(type(self).__name__, params), defaults)

    # The step.

    @with_hooks
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor | float | None] | None = None,
        *,
        loss: Tensor | float | None = None,
    ) -> Tensor | float | None:
        """Takes one step, steered by the loss at the parameters at which the gradients were taken.

        The loss is `loss`. Without it, the losses that `watch` and `observe` collected since the last step
        count; without these, the losses of `emo_torch.listen`; without these, the result of the closure. If
        `torch.distributed` runs, the loss is averaged over processes.

        Args:
            closure: computes the gradients and returns the loss; runs with gradients enabled.
            loss: the loss, a tensor of one element or a number.

        Returns:
            The result of the closure, or else the loss.

        Raises:
            LossMissingError: without a loss, unless the lr of every group is 0 (such a step makes
                missing state and changes nothing), or the closure returned `None` and no parameter has
                a gradient (such a batch is skipped: nothing changes).
            TypeError: for a loss that is not a real number, or a closure that is no function.
            ValueError: for a loss that is not a scalar.
            RuntimeError: for sparse gradients and complex parameters, and for a closure that computes
                gradients while a gradient scaler steps: these gradients would be applied scaled.
        """
        return self.step_with(closure, loss)

    def step_with(
        self,
        closure: Callable[[], Tensor | float | None] | None,
        loss: Tensor | float | None,
        **extra_losses: Any,
    ) -> Tensor | float | None:
        """Takes one step; `update_memory` gets the extra losses, checked like the loss."""
        result = loss
        is_eager = not torch.compiler.is_compiling()
        if closure is not None:
            if not callable(closure):
                raise TypeError(NOT_A_CLOSURE.format(kind=f"of the type {type(closure).__name__}"))
            # A gradient scaler never calls a compiled step.
            params = list(self._params()) if is_eager else []
            before = [(param.grad, param.grad._version) for param in params if param.grad is not None]
            with torch.enable_grad():
                result = closure()
            check_closure_under_scaler(before, params)
        if is_eager:
            self._check_groups()
        given = loss
        if loss is None:
            collected = self._collected.heard() if self._collected.loss is None else self._collected.loss
            given = result if collected is None else collected
        if given is None and closure is not None and self._is_skipped():
            return None
        groups = self.param_groups
        if is_eager and torch.cuda.is_available():
            check_capture(type(self).__name__, groups, given)
        seen = self._known_tensors()
        if given is None and all(self._is_zero(group.get("lr", 1.0)) for group in groups):
            self._make_missing_state()
            return None
        # A plan holds at least one parameter.
        device = self._device() if seen[0] is None else seen[0].params[0].device
        memory = self._memory
        if groups[0].get(memory.name) is not memory.first or memory.first.device != device:
            self._move_memory(device)
        number = self._memory.number
        value = None
        if given is not None or not self.loss_is_optional:
            value = check_loss(given, number.dtype, number.device)
        others = {
            name: None if extra is None else self._checked_loss(extra, name)
            for name, extra in extra_losses.items()
        }
        # The average comes after all checks: if one process raised first, the others would wait forever.
        if value is not None:
            value = self._replicas.average(value)
        for name, extra in others.items():
            others[name] = None if extra is None else self._replicas.average(extra)
        feeling = self.update_memory(value, **others)
        self._collected.discard()
        self._move(feeling, seen)
        return given if closure is None else result

    def _is_skipped(self) -> bool:
        """Returns whether a closure without a loss has skipped its batch: no parameter has a gradient."""
        return not self.loss_is_optional and all(param.grad is None for param in self._params())

    def _check_groups(self) -> None:
        """Raises an error for groups that other code has changed so that no step is possible."""
        if not self.param_groups:
            raise ValueError("The optimizer has no parameter group left: add one with `add_param_group`")
        seen: list[list[Any]] = self.__dict__.setdefault("_looked_at", [])
        del seen[len(self.param_groups) :]
        for index, group in enumerate(self.param_groups):
            values = list(group.values())
            # Compared by identity, which is fast. A schedule changes the learning rate, and rarely more.
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
                # A schedule may round the rate to just below 0, so that only finite numbers are asked for.
                self.check_options({**group, "lr": 0.0})
                self.check_moments(group)
                self._check_shared_options(group, self.param_groups[0])
                check_duplicates(group["params"], foreach=group.get("foreach"))
            seen[index:] = [values]

    def _is_zero(self, lr: float | Tensor) -> bool:
        # If steps without a loss are common, they must not wait for the device.
        may_look = not (self.loss_is_optional and isinstance(lr, Tensor) and lr.device.type != "cpu")
        return may_look and float(lr) == 0.0

    def _make_missing_state(self) -> None:
        """Makes the state that parameters with a gradient lack, and changes nothing."""
        for group in self.param_groups:
            self._collect(group)

    @functools.cached_property
    def _step_memory(self) -> StepMemory:
        return StepMemory()

    def _known_tensors(self) -> list[GroupTensors | None]:
        """Returns the known tensors of each group, and checks the gradients of unknown groups."""
        groups = self.param_groups
        seen: list[GroupTensors | None] = [None] * len(groups)
        if not torch.compiler.is_compiling():
            seen = self._step_memory.look(groups, self.state)
        if None in seen:
            pairs = zip(groups, seen, strict=True)
            unknown = [param for group, known in pairs if known is None for param in group["params"]]
            self.check_tensors(unknown)
        return seen

    def check_tensors(self, params: list[Tensor]) -> None:
        """Raises a `RuntimeError` for parameters or gradients with which no step is possible."""
        check_gradients(type(self).__name__, params)

    def _move(self, feeling: Any, seen: list[GroupTensors | None]) -> None:
        """Moves every parameter that has a gradient."""
        is_eager = not torch.compiler.is_compiling()
        before = 0
        for index, group in enumerate(self.param_groups):
            params, grads, states = seen[index] or self._collect(group)
            if params:
                keys, options = None, group
                if group.get("rounding", "nearest") != "nearest":
                    keys = keys_of(params, group, before=before, steps=self.step_count())
                    options = {**group, KEYS: keys}
                layout = None
                if isinstance(params, Params):  # These come from a plan.
                    layout = params.layout
                elif is_eager:
                    params = self._step_memory.params(index, params)
                remaining = self.step_tensors(params, grads, states, feeling=feeling, group=options)
                # A step by a plan has no new layout to store.
                if is_eager and not (isinstance(params, Params) and params.layout is layout is not None):
                    tensors = GroupTensors(params, grads, states)
                    self._step_memory.remember(index, group, self.state, tensors)
                if remaining:
                    keys = keys if keys is None or len(remaining) == len(params) else keys[remaining]
                    params, grads = [params[i] for i in remaining], [grads[i] for i in remaining]
                    tensors = GroupTensors(params, grads, [states[i] for i in remaining])
                    step_copies(self.step_tensors, tensors, feeling=feeling, group=group, keys=keys)
            before += len(group["params"])

    # The memory of the losses in the groups.

    def _device(self) -> torch.device:
        """Returns the device of the first parameter that has a gradient, or of the first one."""
        with_gradient = (param for param in self._params() if param.grad is not None)
        first = next(chain(with_gradient, self._params()), None)
        return torch.device("cpu") if first is None else first.device

    def _move_memory(self, device: torch.device) -> None:
        """Moves the memory of the losses to the device of the parameters."""
        memory = self._memory
        tensors = memory.tensors
        # Some checkpointers replace the tensors in the groups with the loaded tensors.
        if self.param_groups[0].get(memory.name) is not memory.first:
            tensors = self.memory_from_group(self.param_groups[0])
        self._share_memory(tensors, device)

    def _make_memory(self) -> None:
        """Makes the memory of an optimizer that has seen no loss."""
        with torch.device("cpu"):  # A default device may be "meta", from which no number can be copied.
            tensors = self.first_memory()
        self._share_memory(tensors, self._device())

    def _share_memory(self, tensors: tuple[Tensor, ...], device: torch.device | None = None) -> None:
        """Puts copies of tensors, as the memory of the losses, into every group."""
        dtype = wide_dtype(*self._params())
        self._memory = LossMemory.share(
            tensors, self.param_groups, bind=self.bind_memory, dtype=dtype, device=device
        )

    # Groups and state.

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group of parameters, which shares the memory of the losses.

        Args:
            param_group: the parameters under `"params"`, and options of their own.

        Raises:
            ValueError: for an option out of its range, or one that belongs to the whole optimizer and
                differs from the other groups'.
            RuntimeError: for `fused=True` if no compiled code can step the parameters.
        """
        check_group_form(param_group)
        if isinstance(param_group, dict):
            # Options of a loaded state override the options that the optimizer was made with.
            first = self.param_groups[0] if self.param_groups else self.defaults
            shared = {name: first[name] for name in self.shared_options}
            options = {**self.defaults, **shared, **param_group}
            self.check_options(options)
            self.check_moments(options)
            self._check_shared_options(options, shared)
            check_duplicates(options["params"], foreach=options.get("foreach"))
            check_expanded(type(self).__name__, options["params"])
            if options.get("fused"):
                check_fused(
                    type(self).__name__,
                    options["params"],
                    is_compiled=library() is not None,
                    has_triton=cuda.is_available(),
                    has_kernel=self.has_cuda_kernel,
                    has_code=self.has_compiled_code,
                )
            for name, value in shared.items():
                param_group.setdefault(name, value)
        super().add_param_group(param_group)
        if len(self.param_groups) == 1:
            self._make_memory()
        else:
            self._share_memory(self._memory.tensors, self._memory.first.device)
        warn_of_large_rate(self, self.param_groups[-1].get("lr", 0.0))

    def _check_shared_options(self, options: Group, shared: Group) -> None:
        """Raises a `ValueError` if a group has another value of an option that all groups share."""
        for name in self.shared_options:
            if options.get(name) != shared.get(name):
                raise ValueError(
                    f"{name} belongs to the one {self.memory_title} of the optimizer, which all parameter "
                    f"groups share. This group has {options.get(name)!r}, and the optimizer has "
                    f"{shared.get(name)!r}. Remove {name} from the group, or use the value of the optimizer"
                )

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as `torch.optim` does, with the names of the member and of its rule.

        A state of another member is refused when it is loaded, unless both have the same rule.
        """
        return {**super().state_dict(), MEMBER: {"name": type(self).__name__, "rule": self.rule}}

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        owner = type(self).__name__
        if MEMBER in loaded:
            check_member(owner, self.rule, loaded[MEMBER])
        super()._check_state_dict(loaded)
        groups, saved_groups = self.param_groups, loaded["param_groups"]
        check_kind_of_memory(owner, saved_groups, self.memory_title)
        check_saved_memory(owner, saved_groups, groups[0], self.memory_names(), self.memory_title)
        together = [{**group, **saved} for group, saved in zip(groups, saved_groups, strict=False)]
        for options in together:
            self.check_options(options)
            self.check_moments({**options, "params": []})  # A state has numbers as "params".
            self._check_shared_options(options, together[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_replicas": self._replicas}

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        self._collected = CollectedLosses()
        for index, group in enumerate(self.param_groups):
            # Options that a state of another origin lacks stay unchanged. ("differentiable" is a default
            # of torch, and no option of these optimizers.)
            here = {**self.defaults, **(groups[index] if groups else {})}
            for name in (*self.defaults, *self.memory_names()):
                if name not in group and name != "differentiable":
                    group[name] = here[name]
        self._share_memory(self.memory_from_group(self.param_groups[0]), self._device())

    def __repr__(self) -> str:
        lines = super().__repr__().split("\n")
        hidden = tuple(self.memory_names())
        return "\n".join(line for line in lines if not line.strip().startswith(hidden))
