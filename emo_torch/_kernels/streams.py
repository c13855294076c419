"""The streams of a step: the tensors that compiled code reads, and their names in the states."""

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emo_shared.eight_bit import block_count
from emo_torch._kernels import RULES, STEERED, FusedRule
from emo_torch._kernels.find import PLAIN, Numbers
from emo_torch._kernels.job import NARROW
from emo_torch._kernels.plan import (
    AVERAGE,
    COMPENSATION,
    EXISTS,
    NORM,
    SHADOW,
    STEP,
    Key,
    Names,
    State,
    Streams,
)
from emo_torch._rules.eight_bit import scale_name

Kinds = tuple[tuple[str, str], ...]
"""The kind of each rule, and the prefix of its moments: both together give the names of the moments."""

KEYS = "rounding_keys"
"""The name of the option with the keys for rounding at random, one key for each parameter. With this
option, parameters of low precision are rounded as the group says; without the option, to the nearest."""

_dtype, _is_cpu = attrgetter("dtype"), attrgetter("is_cpu")


def are_plain(tensors: list[Tensor], *dtypes: torch.dtype) -> bool:
    """Returns whether compiled code can read tensors, and each tensor has one of some dtypes."""
    try:
        return (
            set(map(type, tensors)) <= PLAIN
            and set(map(_dtype, tensors)) <= set(dtypes)
            and all(map(_is_cpu, tensors))
            and all(map(Tensor.is_contiguous, tensors))
            and not any(map(Tensor.is_neg, tensors))
        )
    except RuntimeError:
        return False  # A tensor of another layout, such as a sparse tensor, has no such property.


def is_compensated(param: Tensor, group: dict[str, Any]) -> bool:
    """Returns whether a step of a group's parameters writes to their compensations."""
    return param.dtype in NARROW and KEYS in group and group["rounding"] == "kahan"


def names_of(kinds: Kinds, param: Tensor, group: dict[str, Any], dimensions: tuple[int, ...]) -> Names:
    """Returns the names of the state tensors that a step needs, for each number of dimensions.

    The scales of moments in 8 bits are not among the names: see `scales_of`.

    Args:
        kinds: the rules.
        param: one of the parameters.
        group: the options, which decide whether there are shadows, averages and compensations.
        dimensions: the numbers of dimensions of the parameters.
    """
    flags = (bool(group.get("use_shadow")), bool(group.get("average")), is_compensated(param, group))
    return names_with(kinds, *flags, dimensions)


@functools.lru_cache(maxsize=256)
def names_with(
    kinds: Kinds, use_shadow: bool, average: bool, compensated: bool, dimensions: tuple[int, ...]
) -> Names:
    """Returns the result of `names_of` for options that are already read."""
    names: Names = {}
    for kind, prefix in kinds:
        rule = FusedRule(kind, (0.0, 0.0), prefix=prefix)
        for key, place in rule.streams():
            # Rules that share their moments have the same key.
            names[key] = {n: rule.moments(n)[: place + 1][-1] for n in dimensions}
    if "ref" in dict(kinds):
        names[NORM] = dict.fromkeys(dimensions, "exp_avg_norm")
    is_steered = any(kind in STEERED for kind, _ in kinds)
    if is_steered:
        names[STEP] = dict.fromkeys(dimensions, "step")
    # `Autopilot` also has an option with the name "average", and stores its averages in other places.
    if average and is_steered:
        names[AVERAGE] = dict.fromkeys(dimensions, "average")
    if use_shadow:
        names[SHADOW] = dict.fromkeys(dimensions, "shadow")
        names[EXISTS] = dict.fromkeys(dimensions, "shadow_exists")
    if compensated:
        names[COMPENSATION] = dict.fromkeys(dimensions, "compensation")
    return names


@functools.lru_cache(maxsize=256)
def moments_of(kinds: Kinds) -> list[tuple[int, Key, Key]]:
    """Returns for each rule its number in compiled code, and the two keys of its moments in a layout."""
    rules = [FusedRule(kind, (0.0, 0.0), prefix=prefix) for kind, prefix in kinds]
    keys = [tuple((rule.prefix, rule.shape, place) for place in "01") for rule in rules]
    return [
        (RULES.index(rule.kind), first, second) for rule, (first, second) in zip(rules, keys, strict=True)
    ]


def streams_of(params: list[Tensor], states: list[State], names: Names) -> Streams:
    """Returns the tensors of each stream."""
    dimensions = [param.ndim for param in params]
    return {
        key: [state[own[ndim]] for state, ndim in zip(states, dimensions, strict=True)]
        for key, own in names.items()
    }


@functools.lru_cache(maxsize=4096)
def shape_of(key: Key, shape: torch.Size) -> torch.Size:
    """Returns the shape of a number or a factor in a state, for a parameter's shape."""
    if key in (NORM, EXISTS, STEP):
        return torch.Size()
    if len(shape) < 2:
        return shape
    first, *others = shape
    return torch.Size((first, *(1 for _ in others))) if key[2] == "0" else torch.Size((1, *others))


def scale_key(key: Key) -> Key:
    """Returns the key of the scales of a stream of moments in 8 bits."""
    return (*key, "scale")


class Scales(NamedTuple):
    """The scales of a stream of moments, some of them in 8 bits.

    Attributes:
        names: the name of the scales in each state. Small parameters keep their moments in float32. For
            these, it is the name of the moment itself, from which compiled code knows that it has no codes.
        tensors: the tensors with these names.
        is_coded: whether each moment is in 8 bits.
    """

    names: list[str]
    tensors: list[Tensor]
    is_coded: Numbers


def scales_of(
    moments: list[Tensor], own: dict[int, str], params: list[Tensor], states: list[State]
) -> Scales | None:
    """Returns the scales of a stream of moments; `None` if compiled code cannot take the moments.

    Args:
        moments: the moments, at least one of them in 8 bits.
        own: the names of the moments, by the number of dimensions.
        params: the parameters.
        states: the states of the parameters.
    """
    if not are_plain(moments, torch.uint8, torch.float32):
        return None
    names, tensors = [], []
    for moment, param, state in zip(moments, params, states, strict=True):
        name = own[param.ndim]
        if moment.dtype == torch.uint8:
            name = scale_name(name)
            if name not in state or state[name].shape != (block_count(moment.numel()),):
                return None
        names.append(name)
        tensors.append(state[name])
    if not are_plain(tensors, torch.float32):
        return None
    return Scales(names, tensors, np.array([moment.dtype == torch.uint8 for moment in moments]))


def numbers(of: Callable[[Tensor], int], tensors: list[Tensor]) -> Numbers:
    """Returns a number of each tensor as an array."""
    return np.fromiter(map(of, tensors), np.int64, len(tensors))


@functools.lru_cache(maxsize=4096)
def rows_and_columns(shape: torch.Size) -> tuple[int, int]:
    """Returns a tensor's rows and columns as a matrix; 0 columns below two dimensions."""
    return (shape.numel(), 0) if len(shape) < 2 else (shape[0], shape[1:].numel())
