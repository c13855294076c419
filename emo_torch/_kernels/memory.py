"""The step memory: everything that compiled code keeps between two steps of one optimizer.

The step memory is an attribute of the optimizer, is deleted with the optimizer, and is neither pickled nor
copied. It has one entry for each parameter group, and stores the addresses of tensors. The only objects
that it keeps alive are the states in a plan, which the optimizer keeps alive, too. It holds no parameter,
no gradient, and no weak reference to a parameter or a gradient.
"""

from typing import Any

from torch import Tensor

from emo_torch._kernels.find import StateIdentity
from emo_torch._kernels.plan import (
    GroupTensors,
    Layout,
    Params,
    Plan,
    State,
    are_alike,
    make_plan,
    revalidate,
)

MOST_PATIENCE = 64
"""The largest number of layouts in a row that must be alike before a plan is made."""


class _GroupMemory:
    """The entry of one parameter group.

    Attributes:
        plan: the plan of the group; `None` until enough layouts in a row were alike.
        last: the layout of the last step that ran without a plan.
        alike: how many layouts in a row were like the layout before (see `are_alike`).
        patience: the number of such layouts that a plan needs. It doubles when a plan is no longer valid.
        uploads: the tables that the way of CUDA keeps in the device's memory.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.last: Layout | None = None
        self.alike = 0
        self.patience = 1
        self.uploads: dict[Any, Any] = {}

    def forget(self) -> None:
        """Deletes a plan that is no longer valid."""
        self.plan = self.last = None
        self.alike = 0
        self.patience = min(2 * self.patience, MOST_PATIENCE)


class StepMemory:
    """The step memory of one optimizer: an entry for each parameter group, in the order of the groups."""

    def __init__(self) -> None:
        self._groups: list[_GroupMemory] = []
        self._identity = StateIdentity({})

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepMemory":
        return StepMemory()

    def __reduce__(self) -> tuple[type["StepMemory"], tuple[()]]:
        return StepMemory, ()

    def look(self, groups: list[dict[str, Any]], state: dict[Any, State]) -> list[GroupTensors | None]:
        """Returns the tensors of each group whose plan is still valid; `None` for every other group.

        Args:
            groups: the groups of the optimizer.
            state: the state of the optimizer.
        """
        del self._groups[len(groups) :]
        tensors: list[GroupTensors | None] = [None] * len(groups)
        plans = [own.plan for own in self._groups if own.plan is not None]
        if not plans:
            return tensors
        # The state is compared once for all groups.
        is_same = plans[0].finder.is_same_state(state, self._identity)
        for index, own in enumerate(self._groups):
            if own.plan is None:
                continue
            if is_same and own.plan.identity is self._identity:
                tensors[index] = revalidate(own.plan, groups[index])
            if tensors[index] is None:
                own.forget()
            else:
                own.patience = 1
        return tensors

    def layouts(self) -> list[Layout | None]:
        """Returns the layout of each group whose plan `look` found valid; `None` for every other group."""
        return [None if own.plan is None else own.plan.layout for own in self._groups]

    def params(self, index: int, params: list[Tensor]) -> Params:
        """Returns the parameters of a group's step as `Params`, with the group's uploads.

        Args:
            index: the index of the group.
            params: the parameters of the group that have a gradient.
        """
        carried = params if isinstance(params, Params) else Params(params)
        self._groups += [_GroupMemory() for _ in range(index + 1 - len(self._groups))]
        carried.uploads = self._groups[index].uploads
        return carried

    def remember(
        self, index: int, group: dict[str, Any], state: dict[Any, State], tensors: GroupTensors
    ) -> None:
        """Keeps the layout of a group's step, and makes a plan after enough layouts that are alike.

        Args:
            index: the index of the group, for which `look` or `params` was called.
            group: the group.
            state: the state of the optimizer.
            tensors: the tensors of the group, with the `Params` that the step used.
        """
        own, params = self._groups[index], tensors.params
        layout = params.layout if isinstance(params, Params) else None
        if own.plan is not None:
            if own.plan.layout is layout:
                return
            own.forget()
        last, own.last = own.last, layout
        if layout is None or not isinstance(params, Params) or params.finder is None:
            own.alike = 0
            return
        own.alike = own.alike + 1 if last is not None and are_alike(last, layout) else 0
        if own.alike >= own.patience:
            if not params.finder.is_same_state(state, self._identity):
                self._identity = StateIdentity(state)
            own.plan = make_plan(layout, params.finder, group, tensors, self._identity)
