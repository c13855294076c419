"""The plan of a group's step: where its tensors lie, kept from one step to the next and checked by each.

A thousand small tensors take as long to look at as to step. So compiled code compares all of them with what
the plan says in one call, and one difference makes the step look at every tensor anew (`cpu.describe`).
Either way a step by compiled code has just checked everything that it relies on:

=====================  ==============================================================================
may change             what a plan compares at each step
=====================  ==============================================================================
dtype                  of parameter, gradient and every state tensor: `emo_find`, its bits and its kind
device                 of the same: `emo_find`, anything but the CPU's memory is never found
layout, stride         of the same: `emo_find`, what is sparse is not found, what is not contiguous is -1
storage, offset        of the same: `emo_find`, the address of the first element
shape                  of the same: `emo_find`, rows, columns and a hash of all dimensions
subclass               of the same: `emo_find`, only `torch.Tensor` and `torch.nn.Parameter` are found
overlap                of gradients that moved with what is written: `are_apart`
negative view          of gradients; of others where an address, shape, dtype or subclass has changed, too
inference mode         of parameters: `increment_version` refuses them at each step
identity of a          the objects in `group["params"]`, in their order, and which of them have a
parameter              gradient: `emo_gradients`; so replaced, added, removed, reordered, frozen
identity of a state    which parameter has which state, in order: `emo_is_dict` on the optimizer's state
identity of a moment   looked up by name in its state at each step: `emo_gather`
identity of a          asked of each parameter at each step: `emo_gradients`
gradient
names in the states    rules and `use_shadow`: `cpu.step` and `revalidate`
requires_grad          nothing depends on it: who has a gradient is stepped, as in `torch.optim`
options, loss          read at each step, never remembered
thread count           asked of torch at each step, never remembered
group's place          a plan belongs to an index; the parameters' identity tells whose group it is
=====================  ==============================================================================

Not seen is one thing alone: `param.data` that becomes a negative view of its own memory, as it was.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emo_torch._kernels.find import (
    Finder,
    Numbers,
    StateIdentity,
    TensorAddresses,
    places_of,
    prefetch_addresses,
)

State = dict[str, Tensor]
# By what it is for: a tensor for each parameter, or where that lies and how many elements it has.
Key = tuple[str, ...]
Streams = dict[Key, list[Tensor]]
Places = dict[Key, Numbers]
PARAM, GRAD, SHADOW, EXISTS, NORM = ("param",), ("grad",), ("shadow",), ("exists",), ("norm",)
COMPENSATION = ("compensation",)
STEP, AVERAGE = ("step",), ("average",)
# What a tensor is called in a state, by the number of dimensions of the parameter.
Names = dict[Key, dict[int, str]]


class Addresses(NamedTuple):
    """Where the arrays of a layout lie, as numbers that compiled code reads.

    Attributes:
        streams: the address of each array in `Layout.begins`.
        rows: the address of `Layout.rows`.
        columns: the address of `Layout.columns`.
        zeros: an array of zeros, for a stream that a rule does not have.
        nothing: the address of `zeros`.
        elements: how many elements all parameters have.
    """

    streams: dict[Key, int]
    rows: int
    columns: int
    zeros: Numbers
    nothing: int
    elements: int


# Compared by identity: are_alike compares what is in two layouts.
@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What compiled code has to know of parameters of one dtype that all fit.

    Attributes:
        begins: where each tensor lies.
        sizes: how many elements it has.
        rows: how many rows each parameter has as a matrix; its elements where it is none.
        columns: how many columns; 0 where it is none.
        names: what was looked at in the states.
        dtypes: the dtype of the tensors.
        is_apart: whether it is known that nothing overlaps with what is written to.
        prepared: the last job of compiled code, which the next step can use again.
    """

    begins: Places
    sizes: Places
    rows: Numbers
    columns: Numbers
    names: Names
    dtypes: dict[Key, torch.dtype]
    is_apart: bool = False
    prepared: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)

    @functools.cached_property
    def addresses(self) -> Addresses:
        """Where the arrays lie. They stay there: a plan writes into them and never replaces them."""
        zeros = np.zeros_like(self.rows)
        streams = dict(zip(self.begins, places_of(*self.begins.values()), strict=True))
        rows, columns, nothing = places_of(self.rows, self.columns, zeros)
        return Addresses(streams, rows, columns, zeros, nothing, int(self.sizes[PARAM].sum()))


class Params(list[Tensor]):
    """Parameters, with what is remembered of them between two steps.

    Attributes:
        layout: where they, their gradients and their states lie; `None` before anyone looked, and where
            something does not fit.
        finder: what finds tensors quickly, where that is possible.
        uploads: what the way of CUDA keeps in the device's memory; `None` to keep nothing.
    """

    layout: Layout | None = None
    finder: Finder | None = None
    uploads: dict[Any, Any] | None = None


class GroupTensors(NamedTuple):
    """The parameters of a group that have a gradient, with their gradients and states."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]


class Written(NamedTuple):
    """Where each tensor that is written to begins and ends, in bytes, as they lie in memory."""

    begins: Numbers
    ends: Numbers


class Plan(NamedTuple):
    """The layout of a group, and what it takes to see whether it still holds."""

    states: list[State]  # Kept, so that no other ever has their identity.
    identity: StateIdentity
    use_shadow: bool
    finder: Finder
    addresses: TensorAddresses
    written: Written
    layout: Layout


def make_plan(
    layout: Layout, finder: Finder, group: dict[str, Any], tensors: GroupTensors, identity: StateIdentity
) -> Plan | None:
    """Returns a plan for the next steps of a group; `None` where none can be made.

    Args:
        layout: the layout that the last step made.
        finder: what finds tensors.
        group: the group.
        tensors: its parameters with a gradient, gradients and states.
        identity: which parameter has which state.
    """
    params, grads, states = tensors
    names = [[own[param.ndim] for param in params] for own in layout.names.values()]
    pairs = [zip(states, own, strict=True) for own in names]
    every = [*params, *(state[name] for each in pairs for state, name in each), *grads]
    found = finder.find(every)
    order = (PARAM, *layout.names, GRAD)
    if found is None or not np.array_equal(found[0], np.concatenate([layout.begins[key] for key in order])):
        return None
    # Parts of what was found, which is kept up to date.
    begins = dict(zip(order, np.split(found[0], len(order)), strict=True))
    layout = dataclasses.replace(layout, begins=begins, is_apart=True)
    written = sort_written(layout)
    if written is None:
        return None
    return Plan(
        states=states,
        identity=identity,
        use_shadow=bool(group.get("use_shadow")),
        finder=finder,
        addresses=TensorAddresses(group["params"], params, names, prefetch_addresses(every), found),
        written=written,
        layout=layout,
    )


def revalidate(plan: Plan, group: dict[str, Any]) -> GroupTensors | None:
    """Returns a group's tensors if all is as the plan says, but for where gradients lie; else `None`."""
    params: list[Tensor] = group["params"]
    grads = plan.finder.gradients(plan.addresses, params)
    if grads is None or bool(group.get("use_shadow")) != plan.use_shadow:
        return None
    known = Params(params)
    if len(grads) < len(params):
        known = Params(param for param in params if param.grad is not None)
    before = plan.addresses.found
    found = plan.finder.find_again(plan.addresses, known, plan.states, grads)
    if found is None or any(map(Tensor.is_neg, grads)):
        return None
    if found is not before:
        fixed = len(before[0]) - len(grads)
        begins = found[0, fixed:]
        if not np.array_equal(found[1:], before[1:]):
            return None
        if not np.array_equal(found[0, :fixed], before[0, :fixed]):
            return None
        if not are_apart(plan.written, begins, ends_of(plan.layout, GRAD, begins)):
            return None
        before[0, fixed:] = begins
    known.layout = plan.layout
    return GroupTensors(known, grads, plan.states)


def are_alike(one: Layout, other: Layout) -> bool:
    """Returns whether two layouts are the same, but for where gradients lie."""
    return (
        one.names == other.names
        and one.dtypes == other.dtypes
        and one.begins.keys() == other.begins.keys()
        and all(np.array_equal(one.begins[key], other.begins[key]) for key in one.begins if key != GRAD)
        and np.array_equal(one.rows, other.rows)
        and np.array_equal(one.columns, other.columns)
    )


def ends_of(layout: Layout, key: Key, begins: Numbers) -> Numbers:
    """Returns where the tensors of a stream end, in bytes."""
    return begins + layout.dtypes[key].itemsize * layout.sizes[key]


def sort_written(layout: Layout) -> Written | None:
    """Returns where that lies which is written to; `None` if any two overlap."""
    keys = [key for key in layout.begins if key not in (GRAD, EXISTS)]
    begins = np.concatenate([layout.begins[key] for key in keys])
    ends = np.concatenate([ends_of(layout, key, layout.begins[key]) for key in keys])
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
