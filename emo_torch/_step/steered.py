"""The base of optimizers whose steps EmoPilot steers: scalars, averaged weights, and their two modes."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emo_torch._pieces.averaged_weights import STEP_IN_EVAL_MODE, set_mode
from emo_torch._pieces.pilot import Pilot, PilotState, describe, init_pilot
from emo_torch._rules.recipe import Group, State
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._step.norm_ways import check_values


class SteeredOptimizer(LossOptimizer):
    """The base of `EmoPilot` and `Autopilot`."""

    memory_title = "pilot"

    _pilot: PilotState

    def averages(self) -> Mapping[Any, Any]:
        """Returns the holder of the averaged weights: from a parameter to its state, with `"average"`."""
        return self.state

    # Averaged weights.

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the averaged weights into the parameters, to evaluate, save or export the model.

        Nothing happens if the parameters already hold the averaged weights. A checkpoint that is made in
        eval mode resumes in eval mode.
        """
        set_mode(self.param_groups, self.averages(), is_training=False)

    @torch.no_grad()
    def train(self) -> None:
        """Puts the training weights back into the parameters, to continue the training.

        Nothing happens in train mode, which is the mode of a new optimizer.
        """
        set_mode(self.param_groups, self.averages(), is_training=True)

    # The scalars.

    @property
    def pilot(self) -> Pilot:
        """The current scalars, as copies; no sync with the device."""
        return describe(self._pilot)

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the scalars before the first loss."""
        return init_pilot(torch.float32)

    def bind_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Uses tensors as the scalars from now on, and returns them by their names in the groups."""
        self._pilot = PilotState(*memory)
        return {f"pilot_{name}": tensor for name, tensor in self._pilot._asdict().items()}

    def memory_from_group(self, group: Group) -> tuple[Tensor, ...]:
        """Returns the scalars from a group that was loaded or copied."""
        return tuple(torch.as_tensor(group[name]) for name in self.memory_names())

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names of the scalars in the groups."""
        return tuple(f"pilot_{name}" for name in PilotState._fields)

    def step_count(self) -> Tensor:
        """Returns how many steps were taken or skipped, as a tensor of shape `[]`."""
        return self._pilot.step + self._pilot.skipped

    def named_memory(self) -> State:
        """Returns the scalars by the names that the bridge to `emo_optax` gives them."""
        return {f"pilot/{name}": tensor for name, tensor in self._pilot._asdict().items()}

    # The step.

    def check_tensors(self, params: list[Tensor]) -> None:
        """Raises a `RuntimeError` also for a gradient without values, which has no norm."""
        super().check_tensors(params)
        with_gradient = (param for param in params if param.grad is not None)
        check_values(type(self).__name__, with_gradient, "gradients")

    def step_with(
        self,
        closure: Callable[[], Tensor | float | None] | None,
        loss: Tensor | float | None,
        **extra_losses: Any,
    ) -> Tensor | float | None:
        """Takes one step; raises an error in eval mode."""
        if not all(group["train_mode"] for group in self.param_groups):
            # torch.distributed.checkpoint makes the missing state with a step at a learning rate of 0.
            is_without_loss = loss is None and closure is None and self._collected.loss is None
            rates = [group.get("lr", 1.0) for group in self.param_groups]
            if not is_without_loss or not all(map(self._is_zero, rates)):
                raise RuntimeError(STEP_IN_EVAL_MODE)
        return super().step_with(closure, loss, **extra_losses)
