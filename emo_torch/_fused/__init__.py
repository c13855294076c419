"""The fused way: a step of many tensors in one call of compiled C, which touches memory once.

It takes what it can take for sure, dense tensors in the CPU's memory, of one dtype and contiguous, and
leaves the rest to the other ways. The numbers are theirs, up to the rounding of sums.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emo_torch._fused.compiler import compile_library
from emo_torch._weight_decay import MODES

State = dict[str, Tensor]
Numbers = NDArray[np.int64]

RULES = ("uncorrected_adam", "lion", "cautious_sign", "softsign", "factored_moments", "ref")
"""The rules of `_rules` that it knows."""
FILTERS = ("all", "elements", "rows_and_columns")
"""What moves: everything, what `keep_elements` keeps, or what `keep_rows_and_columns` does."""
FIRST_STEPS = ("none", "softsign", "cautious_sign")
"""What a matrix may do before its rule."""
DTYPES = {torch.float32: "emo_step_float", torch.float64: "emo_step_double"}

# Sums over columns are kept for each thread: beyond this there would be as much of them as of weights.
MOST_COLUMNS = 2**18
# Fewer elements for a thread than these cost more to hand out than to do.
LEAST_SHARE = 2**15


class FusedRule(NamedTuple):
    """A rule and what it works with.

    Attributes:
        kind: its name in `RULES`.
        betas: its decay rates, each in [0, 1).
        eps: its eps, >= 0.
        prefix: what stands before the names of its moments.
    """

    kind: str
    betas: tuple[float, float]
    eps: float = 0.0
    prefix: str = ""

    @property
    def shape(self) -> str:
        """What its moments are: vectors of the parameter's shape, or factors of a matrix."""
        return "factors" if self.kind == "factored_moments" else "whole"

    @property
    def moments_each(self) -> int:
        """How many moments a parameter has."""
        return 2 if self.kind in ("uncorrected_adam", "factored_moments", "ref") else 1

    def moments(self, param: Tensor) -> tuple[str, ...]:
        """Returns the names of the moments of a parameter."""
        if self.kind == "factored_moments" and param.ndim >= 2:
            return (f"{self.prefix}row", f"{self.prefix}column")
        if self.moments_each == 2:
            return (f"{self.prefix}exp_avg", f"{self.prefix}exp_avg_sq")
        return (f"{self.prefix}exp_avg",)


class FusedStep(NamedTuple):
    """What a member does, as data.

    Attributes:
        rules: one, or up to three among which `chosen` says.
        filter: a name in `FILTERS`.
        chosen: the index of a rule, int64 of shape `[]` on the CPU.
        first_steps: names in `FIRST_STEPS`, among which `chosen_first` says.
        chosen_first: the index of a first step, likewise.
        share: of the rule "ref", how much of the weights goes into the first moment: makes a tensor of
            shape `[]` of a dtype on the CPU. Its other options stand in the group.
    """

    rules: tuple[FusedRule, ...]
    filter: str = "elements"
    chosen: Tensor | None = None
    first_steps: tuple[str, ...] = ()
    chosen_first: Tensor | None = None
    share: Callable[[torch.dtype], Tensor] | None = None


class Signal(NamedTuple):
    """The emotion as numbers of the parameters' dtype, each of shape `[]` on the CPU.

    Attributes:
        tolerance: theta (1 + |s|).
        scale: 1 - |s|.
        shadow_ratio: r(s).
        lr: the learning rate.
    """

    tolerance: Tensor
    scale: Tensor
    shadow_ratio: Tensor
    lr: Tensor


class _Rule(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int64),
        ("b1", ctypes.c_double),
        ("b2", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        ("tensors", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("grads", ctypes.c_void_p),
        ("shadows", ctypes.c_void_p),
        ("shadows_exist", ctypes.c_void_p),
        ("tolerance", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("ratio", ctypes.c_void_p),
        ("lr", ctypes.c_void_p),
        ("weight_decay", ctypes.c_double),
        ("shadow_rate", ctypes.c_double),
        ("mode", ctypes.c_int64),
        ("maximize", ctypes.c_int64),
        ("filter", ctypes.c_int64),
        ("rules", ctypes.c_int64),
        ("chosen", ctypes.c_void_p),
        ("rule", _Rule * 3),
        ("first_steps", ctypes.c_int64),
        ("chosen_first", ctypes.c_void_p),
        ("first_step", ctypes.c_int64 * 3),
        ("norms", ctypes.c_void_p),
        ("share", ctypes.c_void_p),
        ("norm_factor", ctypes.c_double),
        ("least_lr", ctypes.c_double),
        ("most_lr", ctypes.c_double),
        ("injection_bound", ctypes.c_double),
    )


class Library(NamedTuple):
    """The compiled code, and the process that loaded it."""

    handle: ctypes.CDLL
    process: int


@functools.cache
def library() -> Library | None:
    """Returns the compiled code, made at the first call; `None` where it cannot be."""
    handle = compile_library(Path(__file__).parent / "cpu.c")
    if handle is None:
        return None
    for name in DTYPES.values():
        function = getattr(handle, name)
        function.argtypes = (ctypes.POINTER(_Job),)
        function.restype = ctypes.c_int
    return Library(handle, os.getpid())


def fits(param: Tensor, grad: Tensor, others: Iterable[Tensor]) -> bool:
    """Returns whether a parameter, its gradient and its moments are what compiled code can take.

    Args:
        param: the parameter.
        grad: its gradient.
        others: its moments and, where there is one, its shadow.
    """
    plain = all(
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.dtype == param.dtype
        and tensor.is_contiguous()
        and not tensor.is_neg()
        for tensor in (param, grad, *others)
    )
    few_columns = _rows_and_columns(param.shape)[1] <= MOST_COLUMNS
    is_known = param.dtype in DTYPES and not param.is_inference() and param.numel() > 0
    return plain and few_columns and is_known


_dtype, _is_cpu = attrgetter("dtype"), attrgetter("is_cpu")
_PLAIN = {Tensor, torch.nn.Parameter}


def _all_fit(params: list[Tensor], grads: list[Tensor], others: list[Tensor]) -> bool:
    """Returns, quickly, whether `fits` is true of all, and all have one dtype; a `False` may be wrong."""
    every = [*params, *grads, *others]
    return (
        set(map(type, every)) <= _PLAIN
        and len(set(map(_dtype, every))) == 1
        and params[0].dtype in DTYPES
        and all(map(_is_cpu, every))
        and all(map(Tensor.is_contiguous, every))
        and not any(map(Tensor.is_neg, every))
        and not any(map(Tensor.is_inference, params))
        and all(map(Tensor.numel, params))
        and all(_rows_and_columns(param.shape)[1] <= MOST_COLUMNS for param in params)
    )


def step(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    what: FusedStep,
    *,
    signal_of: Callable[[torch.dtype], Signal],
    group: dict[str, Any],
) -> list[int]:
    """Takes the step of those parameters that compiled code can take.

    Args:
        params: the parameters.
        grads: their gradients.
        states: their moments, and their shadows where the group has any.
        what: what is done.
        signal_of: makes the emotion's numbers of a dtype.
        group: the options.

    Returns:
        The indices of the parameters that are as they were, for another way to step.
    """
    found = library()
    if found is None:
        return list(range(len(params)))
    streams = _streams(params, states, what, group)
    by_dtype: dict[torch.dtype, list[int]] = {}
    rest: list[int] = []
    if _all_fit(params, grads, [tensor for stream in streams.values() for tensor in stream]):
        by_dtype[params[0].dtype] = list(range(len(params)))
    else:
        for index, (param, grad, *others) in enumerate(zip(params, grads, *streams.values(), strict=True)):
            fit = by_dtype.setdefault(param.dtype, []) if fits(param, grad, others) else rest
            fit.append(index)
    for dtype, indices in by_dtype.items():
        own = [params[index] for index in indices]
        read = [grads[index] for index in indices]
        kept = [states[index] for index in indices]
        if own and not _step_alike(own, read, kept, what, signal_of(dtype), group, found):
            rest += indices
    return sorted(rest)


# What compiled code writes to, beside the parameters: a tensor for each of them, by where it stands.
_Streams = dict[tuple[str, ...], list[Tensor]]


def _streams(params: list[Tensor], states: list[State], what: FusedStep, group: dict[str, Any]) -> _Streams:
    streams: _Streams = {}
    for rule in what.rules:
        for place in range(rule.moments_each):
            # Rules that share their moments share them here.
            key = (rule.prefix, rule.shape, str(place))
            if key not in streams:
                names = [rule.moments(param)[place] for param in params]
                streams[key] = [state[name] for state, name in zip(states, names, strict=True)]
    if any(rule.kind == "ref" for rule in what.rules):
        streams["norm",] = [state["exp_avg_norm"] for state in states]
    if group.get("use_shadow"):
        streams["shadow",] = [state["shadow"] for state in states]
    return streams


def _step_alike(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    what: FusedStep,
    signal: Signal,
    group: dict[str, Any],
    found: Library,
) -> bool:
    """Takes the step of parameters that all fit and have one dtype; returns whether it did."""
    streams = _streams(params, states, what, group)
    sizes = _numbers(Tensor.numel, params)
    rows, columns = sizes, np.zeros_like(sizes)
    if any(rule.kind == "factored_moments" for rule in what.rules):
        pairs = [_rows_and_columns(param.shape) for param in params]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T.copy()
    pointers: dict[tuple[str, ...], Numbers] = {("param",): _numbers(Tensor.data_ptr, params)}
    extents: dict[tuple[str, ...], Numbers] = {("param",): sizes}
    for key, tensors in streams.items():
        extents[key] = sizes
        if key == ("norm",):
            extents[key] = np.ones_like(sizes)
        if "factors" in key:
            extents[key] = np.where(columns > 0, columns if "1" in key else rows, sizes)
        if not np.array_equal(_numbers(Tensor.numel, tensors), extents[key]):
            return False  # Another way says what is wrong.
        pointers[key] = _numbers(Tensor.data_ptr, tensors)
    read = _numbers(Tensor.data_ptr, grads)
    width = params[0].element_size()
    begins = np.concatenate(list(pointers.values()))
    ends = begins + width * np.concatenate(list(extents.values()))
    if not _are_apart(begins, ends, read, read + width * sizes):
        return False
    nothing = np.zeros(len(params), np.int64)

    def rule_of(rule: FusedRule) -> _Rule:
        first, second = (pointers.get((rule.prefix, rule.shape, place), nothing) for place in "01")
        return _Rule(RULES.index(rule.kind), *rule.betas, rule.eps, _at(first), _at(second))

    is_decoupled = group["weight_decay_mode"] == "decoupled"
    divisor = group.get("weight_decay_divisor") if is_decoupled else None
    use_shadow = group.get("use_shadow", False)
    share = None if what.share is None else what.share(params[0].dtype)
    bound = group.get("injection_bound")
    exist = _numbers(Tensor.data_ptr, [state["shadow_exists"] for state in states if "shadow" in state])
    enough = max(1, int(sizes.sum()) // LEAST_SHARE)
    job = _Job(
        tensors=len(params),
        # Threads are not inherited: a forked process would wait for them for ever.
        threads=min(torch.get_num_threads(), enough) if found.process == os.getpid() else 1,
        rows=_at(rows),
        columns=_at(columns),
        params=_at(pointers["param",]),
        grads=_at(read),
        shadows=_at(pointers["shadow",]) if use_shadow else None,
        shadows_exist=_at(exist) if use_shadow else None,
        tolerance=signal.tolerance.data_ptr(),
        scale=signal.scale.data_ptr(),
        ratio=signal.shadow_ratio.data_ptr(),
        lr=signal.lr.data_ptr(),
        weight_decay=group["weight_decay"] / (divisor or 1.0),
        shadow_rate=group.get("shadow_rate", 0.0),
        mode=MODES.index(group["weight_decay_mode"]),
        maximize=group["maximize"],
        filter=FILTERS.index(what.filter),
        rules=len(what.rules),
        chosen=None if what.chosen is None else what.chosen.data_ptr(),
        rule=tuple(rule_of(rule) for rule in what.rules),
        first_steps=len(what.first_steps),
        chosen_first=None if what.chosen_first is None else what.chosen_first.data_ptr(),
        first_step=tuple(FIRST_STEPS.index(name) for name in what.first_steps),
        norms=None if share is None else _at(pointers["norm",]),
        share=None if share is None else share.data_ptr(),
        norm_factor=group.get("schedulefree_alpha", 0.0),
        least_lr=group.get("min_lr", 0.0),
        most_lr=group.get("max_lr", 0.0),
        injection_bound=-1.0 if bound is None else bound,
    )
    if getattr(found.handle, DTYPES[params[0].dtype])(ctypes.byref(job)) != 0:
        return False
    # What torch did not see it must be told, or a graph would be built on what is no more.
    torch.autograd.graph.increment_version(params)
    for tensors in streams.values():
        torch.autograd.graph.increment_version(tensors)
    return True


def _numbers(of: Callable[[Tensor], int], tensors: list[Tensor]) -> Numbers:
    return np.fromiter(map(of, tensors), np.int64, len(tensors))


def _at(numbers: Numbers) -> int:
    return int(numbers.ctypes.data)


@functools.lru_cache(maxsize=4096)
def _rows_and_columns(shape: torch.Size) -> tuple[int, int]:
    """Returns a tensor's shape as a matrix; 0 columns for what is none."""
    return (shape.numel(), 0) if len(shape) < 2 else (shape[0], shape[1:].numel())


def _are_apart(begins: Numbers, ends: Numbers, read_begins: Numbers, read_ends: Numbers) -> bool:
    """Returns whether nothing that is written to overlaps with anything else, in bytes."""
    order = np.argsort(begins)
    begins, ends = begins[order], ends[order]
    if np.any(begins[1:] < ends[:-1]):
        return False
    # Those that begin before what is read ends must have ended before that begins.
    before = np.searchsorted(begins, read_ends) - 1
    return not np.any((before >= 0) & (ends[before] > read_begins) & (read_ends > read_begins))
