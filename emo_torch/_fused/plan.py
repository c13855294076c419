"""What is kept of a group from one step to the next, so that looking at its tensors again is quick.

A thousand small tensors take as long to look at as to step. Nothing is taken for granted that can change
behind an optimizer's back, but that nothing has is seen of all tensors at once, at the speed of C. One
difference, and everything is looked at anew.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from emo_torch._fused.find import Finder, Numbers, Owners, Trail, hints

State = dict[str, Tensor]
# By what it is for: a tensor for each parameter, or where that lies and how many elements it has.
Key = tuple[str, ...]
Streams = dict[Key, list[Tensor]]
Places = dict[Key, Numbers]
PARAM, GRAD, SHADOW, EXISTS, NORM = ("param",), ("grad",), ("shadow",), ("exists",), ("norm",)
# What a tensor is called in a state, by the number of dimensions of the parameter.
Names = dict[Key, dict[int, str]]

MOST_PATIENCE = 64
"""After how many steps that are alike a plan is made, at the most."""


class Look(NamedTuple):
    """What compiled code has to know of parameters of one dtype that all fit.

    Attributes:
        begins: where each tensor lies.
        sizes: how many elements it has.
        rows: how many rows each parameter has as a matrix; its elements where it is none.
        columns: how many columns; 0 where it is none.
        names: what was looked at in the states.
        is_apart: whether it is known that nothing overlaps with what is written to.
    """

    begins: Places
    sizes: Places
    rows: Numbers
    columns: Numbers
    names: Names
    is_apart: bool = False


class Params(list[Tensor]):
    """Parameters, with what compiled code knows of them, their gradients and their states.

    Attributes:
        look: what was seen; `None` before any look, and where something does not fit.
        is_steady: whether parameters and states lay where they did at the step before.
        finder: what finds tensors quickly, where that is possible.
    """

    look: Look | None = None
    is_steady: bool = False
    finder: Finder | None = None


class Seen(NamedTuple):
    """What of a group has a gradient."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]


class Written(NamedTuple):
    """Where each tensor that is written to begins and ends, in bytes, as they lie in memory."""

    begins: Numbers
    ends: Numbers


class _Plan(NamedTuple):
    """What was seen of a group, and what it takes to see whether it is still so."""

    states: list[State]  # Kept, so that no other ever has their identity.
    owners: Owners
    use_shadow: bool
    finder: Finder
    trail: Trail
    written: Written
    width: int
    look: Look


class Plans:
    """The plans of an optimizer's groups, made once steps are alike."""

    def __init__(self) -> None:
        self._plans: dict[int, _Plan] = {}
        self._owners = Owners({})
        # How many steps were alike, and how many must be: more, where plans have been in vain.
        self._alike: dict[int, int] = {}
        self._patience: dict[int, int] = {}

    def look(self, groups: list[dict[str, Any]], state: dict[Any, State]) -> list[Seen | None]:
        """Returns what has a gradient in each group that is as it was; `None` for the others.

        Args:
            groups: an optimizer's groups.
            state: its state.
        """
        seen: list[Seen | None] = [None] * len(groups)
        if not self._plans:
            return seen
        # Compared once for all groups.
        finder = next(iter(self._plans.values())).finder
        known = self._owners if finder.are_owners(state, self._owners) else None
        for index, plan in list(self._plans.items()):
            if index < len(groups) and plan.owners is known:
                seen[index] = _look_again(plan, groups[index])
            if index >= len(groups) or seen[index] is None:
                self._forget(index)
            else:
                self._patience[index] = 1
        return seen

    def remember(self, index: int, group: dict[str, Any], state: dict[Any, State], seen: Seen) -> None:
        """Keeps what a step saw of a group, once it has seen the same before.

        Args:
            index: the group's place among the groups.
            group: the group.
            state: the optimizer's state.
            seen: what of the group has a gradient, with `Params` that the step has gone through.
        """
        params = seen.params
        look = params.look if isinstance(params, Params) else None
        if index in self._plans:
            if self._plans[index].look is look:
                return
            self._forget(index)
        if not isinstance(params, Params) or look is None or params.finder is None:
            return
        self._alike[index] = self._alike.get(index, 0) + 1 if params.is_steady else 0
        if self._alike[index] >= self._patience.get(index, 1):
            if not params.finder.are_owners(state, self._owners):
                self._owners = Owners(state)
            plan = _plan(look, params.finder, group, seen, self._owners)
            if plan is not None:
                self._plans[index] = plan

    def _forget(self, index: int) -> None:
        del self._plans[index]
        self._alike[index] = 0
        self._patience[index] = min(2 * self._patience.get(index, 1), MOST_PATIENCE)


def _plan(look: Look, finder: Finder, group: dict[str, Any], seen: Seen, owners: Owners) -> _Plan | None:
    params, grads, states = seen
    names = [[own[param.ndim] for param in params] for own in look.names.values()]
    pairs = [zip(states, own, strict=True) for own in names]
    tensors = [*params, *(state[name] for each in pairs for state, name in each), *grads]
    found = finder.find(tensors)
    order = (PARAM, *look.names, GRAD)
    width = params[0].element_size()
    if found is None or not np.array_equal(found[0], np.concatenate([look.begins[key] for key in order])):
        return None
    # Parts of what was found, which is kept up to date.
    begins = dict(zip(order, np.split(found[0], len(order)), strict=True))
    look = look._replace(begins=begins, is_apart=True)
    written = sort_written(look, width)
    if written is None:
        return None
    return _Plan(
        states=states,
        owners=owners,
        use_shadow=bool(group.get("use_shadow")),
        finder=finder,
        trail=Trail(group["params"], params, names, hints(tensors), found),
        written=written,
        width=width,
        look=look,
    )


def _look_again(plan: _Plan, group: dict[str, Any]) -> Seen | None:
    """Returns what of a group has a gradient if all is as it was, but for where gradients lie."""
    params: list[Tensor] = group["params"]
    grads = plan.finder.gradients(plan.trail, params)
    if grads is None or bool(group.get("use_shadow")) != plan.use_shadow:
        return None
    known = Params(params)
    if len(grads) < len(params):
        known = Params(param for param in params if param.grad is not None)
    before = plan.trail.found
    found = plan.finder.find_again(plan.trail, known, plan.states, grads)
    if found is None or any(map(Tensor.is_neg, grads)):
        return None
    if found is not before:
        fixed = len(before[0]) - len(grads)
        begins = found[0, fixed:]
        if not np.array_equal(found[1:], before[1:]):
            return None
        if not np.array_equal(found[0, :fixed], before[0, :fixed]):
            return None
        if not are_apart(plan.written, begins, begins + plan.width * plan.look.sizes[GRAD]):
            return None
        before[0, fixed:] = begins
    known.look = plan.look
    return Seen(known, grads, plan.states)


def sort_written(look: Look, width: int) -> Written | None:
    """Returns where that lies which is written to; `None` if any two overlap.

    Args:
        look: what was seen.
        width: the bytes of an element.
    """
    keys = [key for key in look.begins if key not in (GRAD, EXISTS)]
    begins = np.concatenate([look.begins[key] for key in keys])
    ends = begins + width * np.concatenate([look.sizes[key] for key in keys])
    return _sorted(begins, ends)


def _sorted(begins: Numbers, ends: Numbers) -> Written | None:
    order = np.argsort(begins)
    begins, ends = begins[order], ends[order]
    return None if np.any(begins[1:] < ends[:-1]) else Written(begins, ends)


def are_apart(written: Written, begins: Numbers, ends: Numbers) -> bool:
    """Returns whether nothing that is read, from `begins` to `ends` in bytes, is written to."""
    # Those that begin before what is read ends must have ended before that begins.
    before = np.searchsorted(written.begins, ends) - 1
    return not np.any((before >= 0) & (written.ends[before] > begins) & (ends > begins))


def can_write(written: Iterable[list[Tensor]], read: list[Tensor]) -> bool:
    """Returns whether nothing that is written to shares memory with anything else.

    Args:
        written: tensors that are written to.
        read: tensors that are only read.
    """
    spans = [
        (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size())
        for tensor in (*chain.from_iterable(written), *read)
    ]
    begins, ends = np.array(spans, np.int64).reshape(-1, 2).T
    first = len(spans) - len(read)
    own = _sorted(begins[:first], ends[:first])
    return own is not None and are_apart(own, begins[first:], ends[first:])
