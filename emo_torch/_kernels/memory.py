"""What the fast way remembers between two steps of one optimizer: all of it, and nothing elsewhere.

It lives on the optimizer and ends with it, has one entry for each parameter group, and is neither pickled
nor copied. Of tensors it holds addresses. The only objects are the states of a plan, which belong to the
optimizer anyway; no parameter, no gradient and no weak reference to one.
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
"""After how many steps that are alike a plan is made, at the most."""


class _GroupMemory:
    """What is remembered of one group.

    Attributes:
        plan: its plan, once steps are alike.
        last: the layout of the last step, where that was not by a plan.
        alike: how many steps in a row were alike.
        patience: how many must be before a plan is made: more, where plans have been in vain.
        uploads: what the way of CUDA keeps in the device's memory.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.last: Layout | None = None
        self.alike = 0
        self.patience = 1
        self.uploads: dict[Any, Any] = {}

    def forget(self) -> None:
        """Forgets a plan that did not hold."""
        self.plan = self.last = None
        self.alike = 0
        self.patience = min(2 * self.patience, MOST_PATIENCE)


class StepMemory:
    """What one optimizer remembers of its groups, by their places among the groups."""

    def __init__(self) -> None:
        self._groups: list[_GroupMemory] = []
        self._identity = StateIdentity({})

    def __deepcopy__(self, memo: dict[int, Any]) -> "StepMemory":
        return StepMemory()

    def __reduce__(self) -> tuple[type["StepMemory"], tuple[()]]:
        return StepMemory, ()

    def look(self, groups: list[dict[str, Any]], state: dict[Any, State]) -> list[GroupTensors | None]:
        """Returns the tensors of each group whose plan still holds; `None` for the others.

        Args:
            groups: an optimizer's groups.
            state: its state.
        """
        del self._groups[len(groups) :]
        tensors: list[GroupTensors | None] = [None] * len(groups)
        plans = [own.plan for own in self._groups if own.plan is not None]
        if not plans:
            return tensors
        # Compared once for all groups.
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
        """Returns where the tensors of each group lie, by the plans that `look` found to hold."""
        return [None if own.plan is None else own.plan.layout for own in self._groups]

    def params(self, index: int, params: list[Tensor]) -> Params:
        """Returns the parameters of a group's step, to carry what is remembered of them.

        Args:
            index: the group's place among the groups.
            params: its parameters that have a gradient.
        """
        carried = params if isinstance(params, Params) else Params(params)
        self._groups += [_GroupMemory() for _ in range(index + 1 - len(self._groups))]
        carried.uploads = self._groups[index].uploads
        return carried

    def remember(
        self, index: int, group: dict[str, Any], state: dict[Any, State], tensors: GroupTensors
    ) -> None:
        """Keeps the layout of a group's step, and makes a plan once two are alike.

        Args:
            index: the group's place among the groups, for which `look` or `params` was called.
            group: the group.
            state: the optimizer's state.
            tensors: its tensors, with `Params` that the step has gone through.
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
