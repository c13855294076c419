"""The methods that a subclass of `LossOptimizer` defines."""

from typing import Any

from torch import Tensor

from emo_torch._rules.recipe import Group, State


class MemberMethods:
    """The memory of the losses, and the step itself. `EmoOptimizer` defines them for an emotion."""

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        raise NotImplementedError

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the statistics of the losses before the first loss."""
        raise NotImplementedError

    def bind_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Uses these tensors as the memory from now on, and returns them by their names in the groups."""
        raise NotImplementedError

    def memory_from_group(self, group: Group) -> tuple[Tensor, ...]:
        """Returns the tensors of the memory from a group that was loaded or copied."""
        raise NotImplementedError

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names of the tensors of the memory in the groups."""
        raise NotImplementedError

    def named_memory(self) -> State:
        """Returns the tensors of the memory by the names that the bridge to `emo_optax` gives them."""
        raise NotImplementedError

    def step_count(self) -> Tensor:
        """Returns the number of steps, the current step included, as a tensor of shape `[]`."""
        raise NotImplementedError

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Any:
        """Updates the memory with the losses of a step; returns the scalars that the step needs."""
        raise NotImplementedError

    def step_tensors(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
        *,
        feeling: Any,
        group: Group,
    ) -> list[int]:
        """Moves the parameters of a group that have a gradient.

        Returns:
            The indices of the parameters that were not moved; see `Ways.step`.
        """
        raise NotImplementedError
