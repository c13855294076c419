"""The pulse as a schedule: it reads the loss, and sets the learning rate of any optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from emo_torch._checks.validation import check_loss, check_not_negative
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.pulse import (
    LossUnit,
    Pulse,
    PulseState,
    check_pulse_options,
    feel_pulse,
    init_pulse,
    pulse_from,
)
from emo_torch._pieces.replicas import LossGroup, Replicas
from emo_torch._step.later_optimizers import PulseOptimizer


class EmoPulseScheduler(LRScheduler):
    """Sets the learning rate of an optimizer to the pulse, which is made from the loss of each step.

    `feel_pulse` has the formulas. Call `scheduler.step(loss=loss)` once a step. If you call it before
    `optimizer.step()`, each step has the rate of its own loss, as with `emo_optax.pulse_schedule`. If you
    call it after `optimizer.step()`, as other schedules, each step has the rate of the loss before.

    Args:
        optimizer: any optimizer that has no pulse; all parameter groups get the same
            learning rate. Before the first loss the learning rate is 1e-4 of the scope.
        lr: the scope S, a number >= 0.
        ceiling: the largest learning rate, >= 0; it does not rise with the scope, as published.
        stopcoef: the bound of the stop signal on the medium average, >= 0.
        steady: whether a loss above its trend may lower the level h only; an addition of this package.
        spike_limit: how many times the old short average a loss counts at most, > 1, or `None`; an
            addition of this package.
        loss_unit: the unit of the loss, a number > 0, "first" or `None`; an addition of this package.
        process_group: the processes over which the loss is averaged, so that replicas take the same steps:
            `None` for all processes, `False` for this process alone.

    Raises:
        ValueError: for an option out of its range.
        TypeError: for an optimizer that has a pulse, and for an object that is no optimizer.

    Example:
        >>> import torch
        >>> import emo_torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.AdamW([weight], lr=1.0)
        >>> scheduler = emo_torch.EmoPulseScheduler(optimizer, steady=True)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     scheduler.step(loss=loss)
        ...     optimizer.step()
        >>> print(f"{scheduler.get_last_lr()[0]:.1e} {scheduler.pulse.felt}")
        1.0e-04 3

    Source: EmoPulseScheduler of EmoSens v3.9.1 by muooon.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: float = 1.0,
        *,
        ceiling: float = 3e-3,
        stopcoef: float = 0.04,
        steady: bool = False,
        spike_limit: float | None = None,
        loss_unit: LossUnit = None,
        process_group: LossGroup = None,
    ) -> None:
        check_not_negative("lr", lr)
        check_not_negative("ceiling", ceiling)
        check_pulse_options(stopcoef, steady, spike_limit, loss_unit)
        if isinstance(optimizer, PulseOptimizer):
            raise TypeError(
                f"{type(optimizer).__name__} already has a pulse: use it without EmoPulseScheduler, or "
                "give EmoPulseScheduler another optimizer"
            )
        self.scope, self.ceiling = lr, ceiling
        self.stopcoef, self.steady = stopcoef, steady
        self.spike_limit, self.loss_unit = spike_limit, loss_unit
        self._replicas = Replicas(process_group)
        self._state = init_pulse(wide_dtype(torch.empty(0)), lr, ceiling=ceiling)
        super().__init__(optimizer)

    def _initial_step(self) -> None:
        """Sets the learning rate before any loss."""
        self._step_count = 1
        self._update_lr()

    def step(self, loss: Tensor | float | None = None) -> None:
        """Updates the averages with the loss, and sets the learning rate; waits for the loss's device.

        Args:
            loss: the loss, a tensor of one element or a number; a loss that is not finite is only counted.

        Raises:
            LossMissingError: without a loss.
            TypeError: for a loss that is not a real number.
            ValueError: for a loss that is not a scalar.
        """
        here = loss.device if isinstance(loss, Tensor) else self._state.level.device
        value = self._replicas.average(check_loss(loss, self._state.level.dtype, here))
        self._state = feel_pulse(
            self._state,
            value.to(self._state.level.device),
            self.scope,
            stopcoef=self.stopcoef,
            steady=self.steady,
            spike_limit=self.spike_limit,
            loss_unit=self.loss_unit,
            ceiling=self.ceiling,
        )
        self._step_count += 1
        self._update_lr()

    def get_lr(self) -> list[float | Tensor]:
        """Returns the learning rate of each parameter group: the pulse."""
        return [self._state.pulse.item() for _ in self.optimizer.param_groups]

    @property
    def pulse(self) -> Pulse:
        """The current pulse, in new tensors."""
        return pulse_from(self._state)

    @property
    def should_stop(self) -> bool:
        """Whether training is quiet now."""
        return bool(self._state.should_stop)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain numbers, which `torch.load` reads with its safe defaults."""
        left_out = ("_state", "_replicas")
        state = {name: value for name, value in super().state_dict().items() if name not in left_out}
        return {**state, "pulse": {name: field.item() for name, field in self._state._asdict().items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a state that `state_dict()` returned.

        Args:
            state_dict: the state; not changed.

        Raises:
            ValueError: for a state of another scheduler, before anything has changed.
        """
        saved = state_dict.get("pulse") if isinstance(state_dict, Mapping) else None
        if not isinstance(saved, Mapping) or set(saved) != set(PulseState._fields):
            raise ValueError("This is not a state of EmoPulseScheduler: it lacks the fields of the pulse")
        fields = {
            name: torch.tensor(saved[name], dtype=field.dtype, device=field.device)
            for name, field in self._state._asdict().items()
        }
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "pulse"})
        self._state = PulseState(**fields)
