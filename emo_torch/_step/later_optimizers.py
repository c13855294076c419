"""The bases of the members of v3.6.1 and of the third generation, with other memories of the losses.

`DriveOptimizer` (v3.6.1) has an emotion with three averages. `PulseOptimizer` (v3.9.1) has no emotion. It
has a pulse: a learning rate that is made from the loss.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._checks.validation import (
    check_choice,
    check_decay_rates,
    check_flag,
    check_learning_rate,
    check_moment_dtype,
    check_not_negative,
    check_ways,
)
from emo_torch._pieces.arrays_in_place import ArraysInPlace
from emo_torch._pieces.drive import Drive, DriveState, drive_factor, init_drive
from emo_torch._pieces.drive_in_place import DriveArrays, feel_drive_in_place
from emo_torch._pieces.early_stop import went_quiet
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.pulse import (
    Pulse,
    PulseState,
    check_pulse_options,
    init_pulse,
    pulse_from,
    pulse_of,
)
from emo_torch._pieces.pulse_in_place import feel_pulse_in_place
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import check_rounding
from emo_torch._pieces.smoothed_norm import NO_NORM
from emo_torch._pieces.trust import shadow_shares, trust_of
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.recipe import Group, State
from emo_torch._rules.sign_rules import (
    HeldNorm,
    hold_norm,
    init_held_norm,
    is_over,
    relative_change,
)
from emo_torch._step.emo_optimizer import EmoOptimizer
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._step.norm_ways import check_values, counted, norm_of_groups
from emo_torch._step.ready_ways import step_by_ready_job
from emo_torch._step.ways import Feeling

PULSE_OPTIONS = ("stopcoef", "steady", "spike_limit", "loss_unit")

_logger = logging.getLogger("emo_torch")


def _check_group(options: Group) -> None:
    """Raises an error for an option out of its range; checks the options that both generations have."""
    check_learning_rate(options["lr"])
    check_not_negative("epsilon", options["eps"])
    check_decay_rates(options["betas"])
    check_not_negative("weight_decay", options["weight_decay"])
    check_flag("use_shadow", options["use_shadow"])
    check_choice("weight_decay_mode", options["weight_decay_mode"], MODES)
    check_moment_dtype(options.get("moment_dtype"))
    check_ways(options)
    check_rounding(options)


def _copy_into(tensors: tuple[Tensor, ...], news: tuple[Tensor, ...]) -> None:
    # In place: the groups, and captured graphs, hold these tensors.
    for tensor, new in zip(tensors, news, strict=True):
        tensor.copy_(new)


class DriveOptimizer(EmoOptimizer):
    """The base of EmoNavi, EmoFact and EmoLynx v3.6.1: an emotion with three averages, and emoDrive."""

    shared_options = ("maximize",)

    _medium: Tensor
    _drive_arrays: DriveArrays | None = None

    def __init__(self, params: ParamsT, options: Group, *, process_group: LossGroup = None) -> None:
        self._shadow_ratio_of = None
        LossOptimizer.__init__(self, params, options, process_group=process_group)

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        _check_group(options)

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Feeling:
        """Updates the emotion with the loss; returns the scalars of the step, such as emoDrive."""
        del extra_losses
        assert loss is not None
        if self.param_groups[0].get("maximize"):
            loss = -loss
        is_eager = not torch.compiler.is_compiling()
        before = self._drive_arrays if is_eager else None
        arrays = feel_drive_in_place(DriveState(self._emotion, self._medium), loss, before)
        if is_eager:
            self._drive_arrays = arrays
        scalar = self._emotion.scalar
        ratio, follow = _shares(self.param_groups, scalar, self._shadow_exists, self._shadow_ratio)
        return Feeling(scalar, ratio, follow=follow, scale=drive_factor(scalar))

    @property
    def drive(self) -> Drive:
        """The current emotion of v3.6.1, as copies; no sync with the device."""
        state = self._emotion
        return Drive(
            drive=drive_factor(state.scalar),
            short=state.short.clone(),
            medium=self._medium.clone(),
            long=state.long.clone(),
            scalar=state.scalar.clone(),
            trust=trust_of(state.scalar),
            shadow_ratio=self._shadow_ratio.clone(),
            should_stop=state.should_stop.clone(),
            is_quiet=went_quiet(state.history, state.felt),
            felt=state.felt.clone(),
            held=state.held.clone(),
        )

    def emotion_tensors(self) -> State:
        """Returns the tensors of the emotion by their names; not copies."""
        return {**super().emotion_tensors(), "medium": self._medium}

    # The tensors of the memory.

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the statistics of the losses before the first loss."""
        return (*super().first_memory(), init_drive(torch.float32).medium)

    def bind_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Uses these tensors as the memory from now on, and returns them by their names in the groups."""
        *emotion, self._medium = memory
        self._drive_arrays = None
        return {**super().bind_memory(tuple(emotion)), "emotion_medium": self._medium}

    def memory_from_group(self, group: Group) -> tuple[Tensor, ...]:
        """Returns the tensors of the memory from a group that was loaded or copied."""
        return (*super().memory_from_group(group), torch.as_tensor(group["emotion_medium"]))

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names of the tensors of the memory in the groups."""
        return (*super().memory_names(), "emotion_medium")


class PulseOptimizer(LossOptimizer):
    """The base of the third generation (v3.9.1): makes the learning rate of each step from the loss.

    `lr` is the scope S of the pulse, for each parameter group, and is never overwritten.
    """

    memory_title = "pulse"
    shared_options = (*PULSE_OPTIONS, "notify", "maximize")

    _pulse: PulseState
    _arrays: ArraysInPlace | None = None
    _shadow_exists: Tensor
    _shadow_ratio: Tensor

    def __init__(self, params: ParamsT, options: Group, *, process_group: LossGroup = None) -> None:
        self._is_notified = False
        super().__init__(params, options, process_group=process_group)

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        _check_group(options)
        check_pulse_options(**{name: options[name] for name in PULSE_OPTIONS})
        check_flag("notify", options["notify"])

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Feeling:
        """Updates the pulse with the loss; returns the scalars of the step, such as the shadow ratio."""
        del extra_losses
        assert loss is not None
        group = self.param_groups[0]
        options = {name: group[name] for name in PULSE_OPTIONS}
        loss = -loss if group.get("maximize") else loss
        # torch.compile of PyTorch 2.11 traces no attribute that is set on an optimizer.
        is_eager = not torch.compiler.is_compiling()
        before = self._arrays if is_eager else None
        arrays = feel_pulse_in_place(self._pulse, loss, group["lr"], arrays=before, **options)
        if is_eager:
            self._arrays = arrays
        if group["notify"] and not torch.compiler.is_compiling():
            self._notify()
        scalar = self._pulse.scalar
        ratio, follow = _shares(self.param_groups, scalar, self._shadow_exists, self._shadow_ratio)
        return Feeling(scalar, ratio, follow=follow)

    def _notify(self) -> None:
        """Logs the stop signal once."""
        if not self.__dict__.get("_is_notified") and self.should_stop:
            self._is_notified = True
            _logger.warning("%s: training has gone quiet (stop signal)", type(self).__name__)

    def step_count(self) -> Tensor:
        """Returns the number of steps, the current step included, as a tensor of shape `[]`."""
        return self._pulse.felt + self._pulse.held

    # The properties that show the pulse.

    @property
    def pulse(self) -> Pulse:
        """The current pulse, as copies; no sync with the device."""
        return pulse_from(self._pulse, self._shadow_ratio)

    @property
    def should_stop(self) -> bool:
        """Whether training has gone quiet; can become False again. Waits for the device, unlike `pulse`."""
        return bool(self._pulse.should_stop)

    def rate_of(self, group: Group) -> Tensor:
        """Returns the learning rate of the last step in a parameter group, shape `[]`; no sync."""
        return pulse_of(self._pulse.level, self._pulse.course, group["lr"])

    def step_tensors(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
        *,
        feeling: Feeling,
        group: Group,
    ) -> list[int]:
        """Moves the parameters of a group that have a gradient."""
        is_first = group is self.param_groups[0]
        feeling = feeling._replace(rate=self._pulse.pulse if is_first else self.rate_of(group))
        return step_by_ready_job(
            params, grads, states, recipe=self.recipe, feeling=feeling, group=group, memory=self._memory
        )

    def named_memory(self) -> State:
        """Returns the tensors of the memory by the names that the bridge to `emo_optax` gives them."""
        named = {f"pulse/{name}": tensor for name, tensor in self._pulse._asdict().items()}
        named["emotion/shadow_exists"] = self._shadow_exists
        named["emotion/shadow_ratio"] = self._shadow_ratio
        return named

    # The tensors of the memory.

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the statistics of the losses before the first loss."""
        dtype = wide_dtype(*self._params())
        never, none = torch.zeros((), dtype=torch.bool), torch.zeros((), dtype=dtype)
        return (*init_pulse(dtype, self.param_groups[0]["lr"]), never, none)

    def bind_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Uses these tensors as the memory from now on, and returns them by their names in the groups."""
        *pulse, self._shadow_exists, self._shadow_ratio = memory
        self._pulse, self._arrays = PulseState(*pulse), None
        flat = {f"pulse_{name}": tensor for name, tensor in self._pulse._asdict().items()}
        return {
            **flat,
            "pulse_shadow_exists": self._shadow_exists,
            "pulse_shadow_ratio": self._shadow_ratio,
        }

    def memory_from_group(self, group: Group) -> tuple[Tensor, ...]:
        """Returns the tensors of the memory from a group that was loaded or copied."""
        return tuple(torch.as_tensor(group[name]) for name in self.memory_names())

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names of the tensors of the memory in the groups."""
        names = tuple(f"pulse_{name}" for name in PulseState._fields)
        return (*names, "pulse_shadow_exists", "pulse_shadow_ratio")


def _shares(
    groups: list[Group], scalar: Tensor, exists: Tensor, shown: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Returns how far a step pulls to the shadow, and how far the shadow follows; updates the memory."""
    if not any(group["use_shadow"] for group in groups):
        return shown, None
    # A parameter without a shadow is not pulled: its own `shadow_exists` is False.
    ratio, follow = shadow_shares(scalar, torch.ones_like(exists))
    shown.copy_(ratio * exists)
    exists.fill_(True)
    return ratio, follow


class NormOptimizer(PulseOptimizer):
    """The base of EmoTion and EmoVoid, which read the sum of the L1 norms of all parameters.

    The sum counts the parameters that require a gradient, also without a gradient at this step. A new
    parameter group resets the sum, as the first step does.
    """

    def take_norm(self) -> Tensor:
        """Returns the sum of the norms of the parameters before the step, before a shadow pulls them."""
        layouts = [] if torch.compiler.is_compiling() else self._step_memory.layouts()
        norm = norm_of_groups(self.param_groups, layouts)
        return norm.to(self._pulse.scalar.device, self._pulse.scalar.dtype)

    def check_tensors(self, params: list[Tensor]) -> None:
        """Raises a `RuntimeError` also for a parameter without values, which has no norm."""
        super().check_tensors(params)
        check_values(type(self).__name__, counted(params), "parameters")

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group of parameters, as every member does; resets the sum of the norms."""
        is_first = not self.param_groups
        super().add_param_group(param_group)
        if not is_first:
            self.norm_tensors()["kept"].fill_(NO_NORM)

    def norm_tensors(self) -> State:
        """Returns the tensors in which a member keeps the sum, by name; not copies."""
        raise NotImplementedError

    def hold_norm_tensors(self, tensors: tuple[Tensor, ...]) -> None:
        """Uses tensors to keep the sum in from now on."""
        raise NotImplementedError

    def first_norm(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Returns the tensors of `norm_tensors` before the first step."""
        raise NotImplementedError

    norm_names: tuple[str, ...]
    """The names in `norm_tensors`."""

    def named_memory(self) -> State:
        """Returns the tensors of the memory by the names that the bridge to `emo_optax` gives them."""
        norm = {f"norm/{name}": tensor for name, tensor in self.norm_tensors().items()}
        return {**super().named_memory(), **norm}

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the statistics of the losses before the first loss."""
        return (*super().first_memory(), *self.first_norm(wide_dtype(*self._params())))

    def bind_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Uses these tensors as the memory from now on, and returns them by their names in the groups."""
        count = len(memory) - len(self.norm_names)
        self.hold_norm_tensors(memory[count:])
        norm = {f"pulse_norm_{name}": tensor for name, tensor in self.norm_tensors().items()}
        return {**super().bind_memory(memory[:count]), **norm}

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names of the tensors of the memory in the groups."""
        return (*super().memory_names(), *(f"pulse_norm_{name}" for name in self.norm_names))


class FreshOptimizer(NormOptimizer):
    """The base of EmoTion: the momentum moves faster if the sum of the norms changes."""

    norm_names = ("kept",)
    _kept: Tensor

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Feeling:
        """Updates the pulse with the loss; returns scalars with the change of the sum of the norms."""
        feeling = super().update_memory(loss, **extra_losses)
        change, kept = relative_change(self._kept, self.take_norm())
        self._kept.copy_(kept)
        return feeling._replace(numbers={"change": change})

    def norm_tensors(self) -> State:
        """Returns the tensor in which the sum is kept, by name; not a copy."""
        return {"kept": self._kept}

    def hold_norm_tensors(self, tensors: tuple[Tensor, ...]) -> None:
        """Uses a tensor to keep the sum in from now on."""
        (self._kept,) = tensors

    def first_norm(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Returns the tensor of `norm_tensors` before the first step."""
        return (torch.full((), NO_NORM, dtype=dtype),)


class HeldNormOptimizer(NormOptimizer):
    """The base of EmoVoid: scales all parameters so that the sum of their norms stays the same."""

    norm_names = HeldNorm._fields
    _held_norm: HeldNorm

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Feeling:
        """Updates the pulse with the loss; returns scalars with the factor of the parameters."""
        feeling = super().update_memory(loss, **extra_losses)
        is_over_now = is_over(self._held_norm, self._pulse.should_stop)
        norm = self._held_norm.kept if is_over_now else self.take_norm()
        ratio, held = hold_norm(self._held_norm, norm, self._pulse.should_stop)
        _copy_into(self._held_norm, held)
        return feeling if is_over_now else feeling._replace(weights=ratio)

    def norm_tensors(self) -> State:
        """Returns the tensors in which the sum is kept, by name; not copies."""
        return self._held_norm._asdict()

    def hold_norm_tensors(self, tensors: tuple[Tensor, ...]) -> None:
        """Uses tensors to keep the sum in from now on."""
        self._held_norm = HeldNorm(*tensors)

    def first_norm(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Returns the tensors of `norm_tensors` before the first step."""
        return tuple(init_held_norm(dtype))
