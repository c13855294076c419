"""The two passes of EmoPilot in compiled C: one measures all tensors, one moves them. Neither makes a copy.

The ceiling needs the squares of the weights. They are added up when the weights move, and kept for the next
step: the pass that measures reads only the gradients, unless weights have changed between two steps.

Compiled code takes the same tensors as in `cpu.py`: contiguous, dense tensors in the CPU's memory. bfloat16
and float16 are copied to float32 for the computation, a thousand elements at a time.
"""

import ctypes
import operator
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emo_torch._kernels import RULES, FusedRule, FusedStep
from emo_torch._kernels.cpu import LEAST_SHARE, describe
from emo_torch._kernels.find import places_of
from emo_torch._kernels.job import DTYPES, FUNCTIONS, Job, Rule, kind_of, library
from emo_torch._kernels.overlaps import overlapping_parameters
from emo_torch._kernels.plan import (
    AVERAGE,
    COMPENSATION,
    GRAD,
    PARAM,
    STEP,
    Layout,
    Params,
    State,
    are_apart,
    ends_of,
    sort_written,
)
from emo_torch._kernels.streams import KEYS, names_of
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.rounding import ROUNDINGS
from emo_torch._pieces.weight_decay import MODES

Sums = NDArray[np.float64]
_FIRST = ("", "whole", "0")
_ROWS = ("", "factors", "0")
_WEIGHTS, _FACTORS = "weights", "factors"
_MARKS = 4
_version_of = operator.attrgetter("_version")


class _Pilot(ctypes.Structure):
    """The structure `Pilot` of cpu.c."""

    _fields_ = (
        ("measures", ctypes.c_int64),
        ("weighs", ctypes.c_int64),
        ("products", ctypes.c_void_p),
        ("squares", ctypes.c_void_p),
        ("known", ctypes.c_void_p),
        ("marks", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("gate", ctypes.c_double),
        ("rate", ctypes.c_double),
        ("steps", ctypes.c_void_p),
        ("averages", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
    )


class _Weights:
    """The sums of squares of a layout's weights after a step, which the next step can use again.

    A sum is used if torch's version of the parameter is the same, and if a few elements, the marks, are the
    same: a write through `param.data` or NumPy changes no version. The sum of a new pass has the same bits.

    Args:
        count: the number of parameters.

    Attributes:
        versions: torch's version of each parameter after the step; -1 if there is no sum.
        seen: the versions before this step, which adds 1 to each of them.
        known: whether the version is still the same, as uint8.
        squares: the sum of the squares of each parameter.
        places: the addresses of `known`, `squares` and the marks.
    """

    def __init__(self, count: int) -> None:
        self.versions = self.seen = np.full(count, -1, np.int64)
        self.known = np.zeros(count, np.uint8)
        self.squares: Sums = np.zeros(count)
        self._marks = np.zeros(_MARKS * count)
        self.places = places_of(self.known, self.squares, self._marks)


class CompiledBatch(NamedTuple):
    """Parameters of one group and one dtype that compiled code moves.

    Attributes:
        kind: the name of the rule in `RULES`.
        group: the options of the parameter group, with keys for rounding at random.
        params: the parameters.
        layout: the layout of parameters, gradients and states.
    """

    kind: str
    group: dict[str, Any]
    params: list[Tensor]
    layout: Layout


def take(
    kind: str, params: list[Tensor], grads: list[Tensor], states: list[State], group: dict[str, Any]
) -> tuple[list[CompiledBatch], list[int]]:
    """Returns the parameters that compiled code can move, and the indices of the others.

    Args:
        kind: the name of the rule in `RULES`.
        params: the parameters of a group; as `Params` they keep their layout from step to step.
        grads: the gradients of the parameters.
        states: the states of the parameters.
        group: the options.
    """
    found = library()
    if found is None or not params:
        return [], list(range(len(params)))
    layout = params.layout if isinstance(params, Params) else None
    if layout is not None:
        dimensions = tuple(next(iter(layout.names.values())))
        # After a change of options, the states have other names.
        if layout.names != names_of(((kind, ""),), params[0], group, dimensions):
            layout = None
    if layout is None:
        layout = _layout_of(kind, params, grads, states, group)
    if layout is not None:
        if isinstance(params, Params):
            params.layout, params.finder = layout, found.finder
        return [CompiledBatch(kind, group, params, layout)], []
    by_dtype: dict[tuple[torch.dtype, ...], list[int]] = {}
    left = overlapping_parameters(params, grads, states)
    for index, (param, grad, state) in enumerate(zip(params, grads, states, strict=True)):
        fits = param.dtype in DTYPES and index not in left
        seen = _layout_of(kind, [param], [grad], [state], group) if fits else None
        if seen is not None:
            by_dtype.setdefault(tuple(seen.dtypes.values()), []).append(index)
    batches, rest = [], set(range(len(params)))
    for indices in by_dtype.values():
        own, read, kept = ([some[index] for index in indices] for some in (params, grads, states))
        keys = group.get(KEYS)
        given = group if keys is None else {**group, KEYS: keys[indices]}
        layout = _layout_of(kind, own, read, kept, given)  # type: ignore[arg-type]
        if layout is not None:
            batches.append(CompiledBatch(kind, given, own, layout))  # type: ignore[arg-type]
            rest.difference_update(indices)
    return batches, sorted(rest)


def measure(batch: CompiledBatch, *, weighs: bool) -> tuple[Sums, Sums]:
    """Returns the first product of `with_agreement` and zeros, and the mean square of each parameter.

    Args:
        batch: the parameters.
        weighs: whether mean squares are needed; otherwise the weights are not read, and mean squares are 0.
    """
    products = np.zeros(3)
    given = _Pilot(measures=1, weighs=weighs, products=products.ctypes.data)
    kept = _weights_of(batch, weighs=weighs)
    if not weighs:
        squares = np.zeros(len(batch.params))
    elif kept is None:
        squares = np.empty(len(batch.params))
        given.squares = squares.ctypes.data
    else:
        squares = kept.squares
        given.known, given.squares, given.marks = kept.places
        kept.seen = np.fromiter(map(_version_of, batch.params), np.int64, len(batch.params))
        np.equal(kept.versions, kept.seen, out=kept.known, casting="unsafe")
    _run(batch, given)
    if kept is not None:
        # New sums belong to no marks until the weights move, and a step that is skipped moves no weights.
        kept.versions = np.where(kept.known, kept.versions, -1)
    return products, squares / np.maximum(batch.layout.sizes[PARAM], 1)


def move(batch: CompiledBatch, lengths: NDArray[Any], gate: float, rate: float) -> Sums:
    """Takes one step; returns 0 and the second and the third product of `with_agreement`.

    Args:
        batch: the parameters, for which `measure` was called.
        lengths: the length of the step of each parameter, shape `[n]`, in the dtype of the computation.
        gate: the factor of the gradients.
        rate: how far the averaged weights follow, in [0, 1].
    """
    products = np.zeros(3)
    given = _Pilot(
        measures=0, lengths=lengths.ctypes.data, gate=gate, rate=rate, products=products.ctypes.data
    )
    kept: _Weights | None = batch.layout.prepared.get(_WEIGHTS)
    if kept is not None:
        given.weighs = 1
        _, given.squares, given.marks = kept.places
    # torch does not see writes of compiled code. Without new versions, a backward pass would not notice
    # that its saved parameters have changed.
    torch.autograd.graph.increment_version(batch.params)
    _run(batch, given)
    if kept is not None:
        kept.versions = kept.seen + 1
    return products


def _weights_of(batch: CompiledBatch, *, weighs: bool) -> _Weights | None:
    """Returns the kept sums of squares; `None` if no sums are needed, or if weights have a narrow dtype."""
    prepared = batch.layout.prepared
    if not weighs or kind_of(batch.layout.dtypes[PARAM]):
        prepared.pop(_WEIGHTS, None)
        return None
    kept: _Weights | None = prepared.get(_WEIGHTS)
    if kept is None:
        kept = prepared[_WEIGHTS] = _Weights(len(batch.params))
    return kept


def _factors_of(batch: CompiledBatch) -> int | None:
    """Returns the address of a number for each row and column of the matrices, kept for the next pass."""
    layout = batch.layout
    if _ROWS not in layout.begins:
        return None
    if _FACTORS not in layout.prepared:
        counts = np.where(layout.columns > 0, layout.rows + layout.columns, 0)
        real = np.float64 if wide_dtype(batch.params[0]) == torch.float64 else np.float32
        layout.prepared[_FACTORS] = np.zeros(max(1, int(counts.sum())), real)
    numbers: NDArray[Any] = layout.prepared[_FACTORS]
    return numbers.ctypes.data


def _layout_of(
    kind: str, params: list[Tensor], grads: list[Tensor], states: list[State], group: dict[str, Any]
) -> Layout | None:
    """Returns the layout of the tensors; `None` if compiled code cannot take all of them."""
    spec = FusedStep((FusedRule(kind, group["betas"], group["eps"]),), "all")
    # Tensors made in inference mode have no versions.
    if params[0].dtype not in DTYPES or any(param.is_inference() for param in params):
        return None
    layout = describe(params, grads, states, spec, group)
    if layout is None or layout.scales:
        return None
    written, read = sort_written(layout), layout.begins[GRAD]
    is_apart = written is not None and are_apart(written, read, ends_of(layout, GRAD, read))
    return layout if is_apart else None


def _run(batch: CompiledBatch, pilot: _Pilot) -> None:
    """Takes one pass; raises a `MemoryError` if memory is missing, before anything has changed."""
    found, group, dtypes = library(), batch.group, batch.layout.dtypes
    assert found is not None
    addresses = batch.layout.addresses
    at = addresses.streams
    pilot.steps, pilot.averages, pilot.rows = at[STEP], at.get(AVERAGE), at.get(_ROWS)
    pilot.factors = _factors_of(batch)
    enough = max(1, addresses.elements // LEAST_SHARE)
    # The averages of columns are in the place of the second moments.
    second = ("", "whole" if pilot.rows is None else "factors", "1")
    kinds = kind_of(dtypes[_FIRST]), kind_of(dtypes[second])
    rule = Rule(RULES.index(batch.kind), *group["betas"], group["eps"], at[_FIRST], at[second], *kinds)
    keys: Tensor | None = group.get(KEYS)
    job = Job(
        tensors=len(batch.params),
        # A forked process lacks the threads of its parent, and would wait for these threads forever.
        threads=min(torch.get_num_threads(), enough) if found.process == os.getpid() else 1,
        rows=addresses.rows,
        columns=addresses.columns,
        params=at[PARAM],
        grads=at[GRAD],
        weight_decay=group["weight_decay"],
        mode=MODES.index(group["weight_decay_mode"]),
        maximize=group["maximize"],
        rules=1,
        rule=(rule,),
        param_kind=kind_of(dtypes[PARAM]),
        grad_kind=kind_of(dtypes[GRAD]),
        rounding=ROUNDINGS.index(group["rounding"]) if KEYS in group else 0,
        compensations=at.get(COMPENSATION),
        keys=None if keys is None else keys.data_ptr(),
        pilot=ctypes.addressof(pilot),
    )
    if getattr(found.handle, FUNCTIONS[wide_dtype(batch.params[0])])(ctypes.byref(job)):
        raise MemoryError("There was no memory for the sums of a step of EmoPilot")
