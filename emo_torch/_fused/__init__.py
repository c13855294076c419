"""The fused way: a step of many tensors in one call of compiled C, which touches memory once.

It takes what it can take for sure, dense tensors in the CPU's memory, of one dtype and contiguous, and
leaves the rest to the other ways. The numbers are theirs, up to the rounding of sums.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterable
from operator import attrgetter, is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from emo_torch._fused.find import PLAIN, Finder, Numbers, finder
from emo_torch._fused.loader import load_library
from emo_torch._fused.plan import (
    EXISTS,
    GRAD,
    NORM,
    PARAM,
    SHADOW,
    Look,
    Names,
    Params,
    Places,
    State,
    Streams,
    are_apart,
    sort_written,
)
from emo_torch._weight_decay import MODES

RULES = ("uncorrected_adam", "lion", "cautious_sign", "softsign", "factored_moments", "ref")
"""The rules of `_rules` that it knows."""
FILTERS = ("all", "elements", "rows_and_columns", "matrices")
"""What moves: everything, what `keep_elements` keeps, or what `keep_rows_and_columns` does; the last one
where that keeps all of a matrix anyway."""
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

    def moments(self, ndim: int) -> tuple[str, ...]:
        """Returns the names of the moments of a parameter of so many dimensions."""
        if self.kind == "factored_moments" and ndim >= 2:
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
    """The compiled code, the process that loaded it, and what it finds tensors with."""

    handle: ctypes.CDLL
    process: int
    finder: Finder | None = None


@functools.cache
def library() -> Library | None:
    """Returns the compiled code, loaded at the first call; `None` where there is none."""
    handle = load_library()
    if handle is None:
        return None
    for name in DTYPES.values():
        function = getattr(handle, name)
        function.argtypes = (ctypes.POINTER(_Job),)
        function.restype = ctypes.c_int
    return Library(handle, os.getpid(), finder(handle))


def fits(param: Tensor, grad: Tensor, others: Iterable[Tensor]) -> bool:
    """Returns whether a parameter, its gradient and its moments are what compiled code can take.

    Args:
        param: the parameter.
        grad: its gradient.
        others: its moments and, where there is one, its shadow.
    """
    tensors = [param, grad, *others]
    few_columns = _rows_and_columns(param.shape)[1] <= MOST_COLUMNS
    is_known = param.dtype in DTYPES and not param.is_inference() and param.numel() > 0
    is_dense = all(tensor.layout == torch.strided for tensor in tensors)
    is_plain = is_dense and _are_plain(tensors, param.dtype) and not any(map(Tensor.is_neg, tensors))
    return is_plain and few_columns and is_known


_dtype, _is_cpu = attrgetter("dtype"), attrgetter("is_cpu")


class _Known(NamedTuple):
    """What was seen of parameters and moments at an earlier step, which is seldom worth another look."""

    streams: Streams
    begins: Places
    sizes: Places
    size: Numbers
    shapes: list[torch.Size]
    rows: Numbers
    columns: Numbers


# By the first parameter, which a known tensor does not keep alive.
_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


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
    look = _known_look(params, what, group) or _look_at(params, grads, states, what, group)
    if look is not None:
        is_done = _run(params, look, what, signal_of(params[0].dtype), group, found)
        if is_done and isinstance(params, Params):
            params.look, params.finder = look, found.finder
        return [] if is_done else list(range(len(params)))
    by_dtype: dict[torch.dtype, list[int]] = {}
    rest: list[int] = []
    streams = _streams(params, states, _names(what, group, {param.ndim for param in params}))
    for index, (param, grad, *others) in enumerate(zip(params, grads, *streams.values(), strict=True)):
        fit = by_dtype.setdefault(param.dtype, []) if fits(param, grad, others) else rest
        fit.append(index)
    for dtype, indices in by_dtype.items():
        own = [params[index] for index in indices]
        read = [grads[index] for index in indices]
        kept = [states[index] for index in indices]
        look = _look_at(own, read, kept, what, group) if own else None
        if look is None or not _run(own, look, what, signal_of(dtype), group, found):
            rest += indices
    return sorted(rest)


def _names(what: FusedStep, group: dict[str, Any], dimensions: Iterable[int]) -> Names:
    """Returns what stands in the states of parameters of so many dimensions, and is needed."""
    names: Names = {}
    for rule in what.rules:
        for place in range(rule.moments_each):
            # Rules that share their moments share them here.
            names[rule.prefix, rule.shape, str(place)] = {n: rule.moments(n)[place] for n in dimensions}
    if any(rule.kind == "ref" for rule in what.rules):
        names[NORM] = dict.fromkeys(dimensions, "exp_avg_norm")
    if group.get("use_shadow"):
        names[SHADOW] = dict.fromkeys(dimensions, "shadow")
        names[EXISTS] = dict.fromkeys(dimensions, "shadow_exists")
    return names


def _streams(params: list[Tensor], states: list[State], names: Names) -> Streams:
    dimensions = [param.ndim for param in params]
    return {
        key: [state[own[ndim]] for state, ndim in zip(states, dimensions, strict=True)]
        for key, own in names.items()
    }


def _known_look(params: list[Tensor], what: FusedStep, group: dict[str, Any]) -> Look | None:
    """Returns what is known of parameters that are as they were, if it is what the step needs."""
    look = params.look if isinstance(params, Params) else None
    if look is None or look.names != _names(what, group, next(iter(look.names.values()))):
        return None
    return look


def _look_at(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    what: FusedStep,
    group: dict[str, Any],
) -> Look | None:
    """Looks at parameters: quickly, what `fits` looks at one by one; `None` if one does not fit.

    Moments that lie where they lay at an earlier step are taken for what they were.
    """
    dtype = params[0].dtype
    size = _numbers(Tensor.numel, params)
    if dtype not in DTYPES or not size.all():
        return None
    if not _are_plain(params, dtype):
        return None
    if not _are_plain(grads, dtype) or any(map(Tensor.is_neg, grads)):
        return None
    if not np.array_equal(_numbers(Tensor.numel, grads), size):
        return None
    names = _names(what, group, {param.ndim for param in params})
    streams = _streams(params, states, names)
    begins = {key: _numbers(Tensor.data_ptr, tensors) for key, tensors in streams.items()}
    by_shape = any(rule.kind == "factored_moments" for rule in what.rules)
    shapes = [param.shape for param in params] if by_shape else []
    known = _known.get(params[0])
    if known is None or not _is_still(known, streams, begins, size, shapes):
        known = _get_to_know(dtype, size, shapes, streams, begins)
        if known is None:
            return None
        _known[params[0]] = known
    elif isinstance(params, Params):
        params.is_steady = True
    begins = {PARAM: _numbers(Tensor.data_ptr, params), **begins}
    sizes = {PARAM: size, **known.sizes}
    begins[GRAD], sizes[GRAD] = _numbers(Tensor.data_ptr, grads), size
    return Look(begins, sizes, known.rows, known.columns, names)


def _are_plain(tensors: list[Tensor], dtype: torch.dtype) -> bool:
    return (
        set(map(type, tensors)) <= PLAIN
        and set(map(_dtype, tensors)) == {dtype}
        and all(map(_is_cpu, tensors))
        and all(map(Tensor.is_contiguous, tensors))
    )


def _is_still(
    known: _Known, streams: Streams, begins: Places, size: Numbers, shapes: list[torch.Size]
) -> bool:
    """Returns whether the very same tensors lie where they lay."""
    return (
        np.array_equal(known.size, size)
        and known.shapes == shapes
        and known.streams.keys() == streams.keys()
        and all(np.array_equal(known.begins[key], begins[key]) for key in begins)
        and all(all(map(is_, known.streams[key], streams[key])) for key in streams)
        # But for what they may have become in place.
        and all(all(map(Tensor.is_contiguous, tensors)) for tensors in streams.values())
        and all(np.array_equal(known.sizes[key], _numbers(Tensor.numel, streams[key])) for key in streams)
    )


def _get_to_know(
    dtype: torch.dtype,
    size: Numbers,
    shapes: list[torch.Size],
    streams: Streams,
    begins: Places,
) -> _Known | None:
    """Looks at moments closely; `None` if one does not fit."""
    rows, columns = size, np.zeros_like(size)
    if shapes:
        rows, columns = np.array([_rows_and_columns(shape) for shape in shapes], np.int64).T.copy()
    by_factor = {"0": np.where(columns > 0, rows, size), "1": np.where(columns > 0, columns, size)}
    expected = {key: by_factor[key[2]] if "factors" in key else size for key in streams}
    expected[NORM] = expected[EXISTS] = np.ones_like(size)
    if columns.max() > MOST_COLUMNS:
        return None
    for key, tensors in streams.items():
        sizes = _numbers(Tensor.numel, tensors)
        own = torch.bool if key == EXISTS else dtype
        if not _are_plain(tensors, own) or not np.array_equal(sizes, expected[key]):
            return None
    return _Known(streams, begins, {key: expected[key] for key in streams}, size, shapes, rows, columns)


def _run(
    params: list[Tensor],
    look: Look,
    what: FusedStep,
    signal: Signal,
    group: dict[str, Any],
    found: Library,
) -> bool:
    """Takes the step of parameters that all fit and have one dtype; returns whether it did."""
    begins, sizes = look.begins, look.sizes
    if not look.is_apart:
        width = params[0].element_size()
        written = sort_written(look, width)
        read = begins[GRAD]
        if written is None or not are_apart(written, read, read + width * sizes[GRAD]):
            return False
    nothing = np.zeros(len(params), np.int64)

    def rule_of(rule: FusedRule) -> _Rule:
        first, second = (begins.get((rule.prefix, rule.shape, place), nothing) for place in "01")
        return _Rule(RULES.index(rule.kind), *rule.betas, rule.eps, _at(first), _at(second))

    is_decoupled = group["weight_decay_mode"] == "decoupled"
    divisor = group.get("weight_decay_divisor") if is_decoupled else None
    share = None if what.share is None else what.share(params[0].dtype)
    bound = group.get("injection_bound")
    enough = max(1, int(sizes[PARAM].sum()) // LEAST_SHARE)
    job = _Job(
        tensors=len(params),
        # Threads are not inherited: a forked process would wait for them for ever.
        threads=min(torch.get_num_threads(), enough) if found.process == os.getpid() else 1,
        rows=_at(look.rows),
        columns=_at(look.columns),
        params=_at(begins[PARAM]),
        grads=_at(begins[GRAD]),
        shadows=_at(begins[SHADOW]) if SHADOW in begins else None,
        shadows_exist=_at(begins[EXISTS]) if EXISTS in begins else None,
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
        norms=_at(begins[NORM]) if NORM in begins else None,
        share=None if share is None else share.data_ptr(),
        norm_factor=group.get("schedulefree_alpha", 0.0),
        least_lr=group.get("min_lr", 0.0),
        most_lr=group.get("max_lr", 0.0),
        injection_bound=-1.0 if bound is None else bound,
    )
    try:
        # What torch does not see it must be told, or a graph would be built on what is no more.
        torch.autograd.graph.increment_version(params)
    except RuntimeError:
        return False  # Tensors made in inference mode have no versions.
    return bool(getattr(found.handle, DTYPES[params[0].dtype])(ctypes.byref(job)) == 0)


def _numbers(of: Callable[[Tensor], int], tensors: list[Tensor]) -> Numbers:
    return np.fromiter(map(of, tensors), np.int64, len(tensors))


def _at(numbers: Numbers) -> int:
    return int(numbers.ctypes.data)


@functools.lru_cache(maxsize=4096)
def _rows_and_columns(shape: torch.Size) -> tuple[int, int]:
    """Returns a tensor's shape as a matrix; 0 columns for what is none."""
    return (shape.numel(), 0) if len(shape) < 2 else (shape[0], shape[1:].numel())
