"""The plan of a group's step: the addresses of the group's tensors, kept between steps, checked at each.

To check a thousand small tensors in Python takes as long as to step them. So one call of compiled code
compares all tensors with the plan. After one difference, the step checks every tensor again in Python
(`cpu.describe`). In both cases the step has just checked everything that compiled code relies on:

=====================  ==============================================================================
may change             the comparison at each step
=====================  ==============================================================================
dtype                  of parameter, gradient and every state tensor: `emo_find`, its bits and its kind
device                 of the same tensors: `emo_find`, its number is -1 outside of the CPU's memory
layout, stride         of the same tensors: `emo_find`, no sparse tensor; -1 if it is not contiguous
storage, offset        of the same tensors: `emo_find`, the address of the first element
shape                  of the same tensors: `emo_find`, rows, columns and a hash of all dimensions
subclass               of the same tensors: `emo_find`, only `torch.Tensor` and `torch.nn.Parameter`
overlap                of gradients at new addresses with the written tensors: `are_apart`
negative view          of gradients; of other tensors if an address, shape, dtype or subclass changed
inference mode         of parameters: `increment_version` refuses such parameters at each step
identity of a          the objects in `group["params"]`, in their order, and which of them have a
parameter              gradient: `emo_gradients`; so replaced, added, removed, reordered, frozen ones
identity of a state    which parameter has which state, in order: `emo_is_dict` on the optimizer's state
identity of a moment   looked up by name in its state at each step: `emo_gather`
identity of a          read from each parameter at each step: `emo_gradients`
gradient
names in the states    rules and `use_shadow`: `cpu.step` and `revalidate`
requires_grad          not compared: each parameter with a gradient is stepped, as in `torch.optim`
options, loss          read at each step, not in a plan
thread count           read from torch at each step, not in a plan
index of a group       a plan belongs to an index; the parameters' identity shows a change of groups
=====================  ==============================================================================

One change is not found: `param.data` becomes a negative view of its own memory, with the same layout.
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
# A key names a stream: one kind of tensor, such as the gradients, with a tensor for each parameter.
Key = tuple[str, ...]
Streams = dict[Key, list[Tensor]]
Places = dict[Key, Numbers]
PARAM, GRAD, SHADOW, EXISTS, NORM = ("param",), ("grad",), ("shadow",), ("exists",), ("norm",)
COMPENSATION = ("compensation",)
STEP, AVERAGE = ("step",), ("average",)
# The names of a stream's tensors in the states, by the number of dimensions of the parameter.
Names = dict[Key, dict[int, str]]


class Addresses(NamedTuple):
    """The addresses of the arrays of a layout, which compiled code reads.

    Attributes:
        streams: the address of each array in `Layout.begins`.
        rows: the address of `Layout.rows`.
        columns: the address of `Layout.columns`.
        zeros: an array of zeros, for a stream that a rule does not have.
        nothing: the address of `zeros`.
        elements: the number of elements of all parameters together.
    """

    streams: dict[Key, int]
    rows: int
    columns: int
    zeros: Numbers
    nothing: int
    elements: int


# Two layouts are compared by identity; `are_alike` compares their contents.
@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The addresses and sizes of the tensors of parameters that compiled code can step together.

    Attributes:
        begins: for each stream the addresses of its tensors.
        sizes: for each stream the numbers of elements of its tensors.
        rows: the rows of each parameter as a matrix; the number of elements below two dimensions.
        columns: the columns of each parameter as a matrix; 0 below two dimensions.
        names: the names of the streams' tensors in the states.
        dtypes: the dtype of each stream; uint8, with sizes in bytes, if some of its moments are in 8 bits.
        scales: for each stream of scales, the name of each parameter's scales; see `streams.Scales`.
        is_apart: whether a check has shown that no written tensor overlaps with another tensor.
        prepared: the last job of compiled code, which the next step can use again.
    """

    begins: Places
    sizes: Places
    rows: Numbers
    columns: Numbers
    names: Names
    dtypes: dict[Key, torch.dtype]
    scales: dict[Key, list[str]] = dataclasses.field(default_factory=dict)
    is_apart: bool = False
    prepared: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)

    @functools.cached_property
    def addresses(self) -> Addresses:
        """The addresses of the arrays. They stay valid: a plan writes into arrays and replaces none."""
        zeros = np.zeros_like(self.rows)
        streams = dict(zip(self.begins, places_of(*self.begins.values()), strict=True))
        rows, columns, nothing = places_of(self.rows, self.columns, zeros)
        return Addresses(streams, rows, columns, zeros, nothing, int(self.sizes[PARAM].sum()))


class Params(list[Tensor]):
    """Parameters, with the objects that are kept for them between two steps.

    Attributes:
        layout: the layout of the parameters, their gradients and their states; `None` before compiled code
            has made one, and if compiled code cannot take all of the parameters.
        finder: the finder of tensors; `None` if torch or Python has no support for one.
        uploads: the tables that the way of CUDA keeps in the device's memory; `None` to keep no tables.
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
    """The addresses at which the written tensors begin and end, in the order of the addresses."""

    begins: Numbers
    ends: Numbers


class Plan(NamedTuple):
    """The layout of a group, with the values that show whether the layout is still valid."""

    states: list[State]  # Kept alive, so that no new object gets the identity of a state.
    identity: StateIdentity
    use_shadow: bool
    finder: Finder
    addresses: TensorAddresses
    written: Written
    layout: Layout


def make_plan(
    layout: Layout, finder: Finder, group: dict[str, Any], tensors: GroupTensors, identity: StateIdentity
) -> Plan | None:
    """Returns a plan for the next steps of a group; `None` if there can be no plan.

    Args:
        layout: the layout that the last step made.
        finder: the finder of tensors.
        group: the group.
        tensors: the parameters of the group that have a gradient, with gradients and states.
        identity: the identities of the optimizer's parameters and states.
    """
    params, grads, states = tensors
    names = [[own[param.ndim] for param in params] for own in layout.names.values()]
    names += layout.scales.values()
    pairs = [zip(states, own, strict=True) for own in names]
    every = [*params, *(state[name] for each in pairs for state, name in each), *grads]
    found = finder.find(every)
    order = (PARAM, *layout.names, *layout.scales, GRAD)
    if found is None or not np.array_equal(found[0], np.concatenate([layout.begins[key] for key in order])):
        return None
    # Views of `found`: `revalidate` writes new addresses into `found`.
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
    """Returns a group's tensors if only the addresses of gradients differ from the plan; else `None`."""
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
    """Returns whether two layouts are equal, apart from the addresses of gradients."""
    return (
        one.names == other.names
        and one.scales == other.scales
        and one.dtypes == other.dtypes
        and one.begins.keys() == other.begins.keys()
        and all(np.array_equal(one.begins[key], other.begins[key]) for key in one.begins if key != GRAD)
        and np.array_equal(one.rows, other.rows)
        and np.array_equal(one.columns, other.columns)
    )


def ends_of(layout: Layout, key: Key, begins: Numbers) -> Numbers:
    """Returns the addresses at which the tensors of a stream end."""
    return begins + layout.dtypes[key].itemsize * layout.sizes[key]


def sort_written(layout: Layout) -> Written | None:
    """Returns the addresses of the written tensors; `None` if two of these tensors overlap."""
    keys = [key for key in layout.begins if key not in (GRAD, EXISTS)]
    begins = np.concatenate([layout.begins[key] for key in keys])
    ends = np.concatenate([ends_of(layout, key, layout.begins[key]) for key in keys])
    # A moment without codes has no scales, and a vector no averages of rows.
    is_there = ends > begins
    return _sorted(begins[is_there], ends[is_there])


def _sorted(begins: Numbers, ends: Numbers) -> Written | None:
    order = np.argsort(begins)
    begins, ends = begins[order], ends[order]
    return None if np.any(begins[1:] < ends[:-1]) else Written(begins, ends)


def are_apart(written: Written, begins: Numbers, ends: Numbers) -> bool:
    """Returns whether no tensor that is read, from `begins` to `ends`, overlaps with a written tensor."""
    # A written tensor that begins before a read tensor ends must end before the read tensor begins.
    before = np.searchsorted(written.begins, ends) - 1
    return not np.any((before >= 0) & (written.ends[before] > begins) & (ends > begins))
