"""Steps many tensors in one call of compiled C, which reads and writes their memory once.

Compiled code takes contiguous, dense tensors in the CPU's memory, and leaves all others to the other ways.
All ways give the same numbers, up to the rounding of sums. bfloat16 and float16 are copied to float32 for
the computation, some hundred elements at a time, so that the copies stay in the cache.

Compiled code gives the same bits with any number of threads. The other ways leave sums (norms, means of
rows and columns) to PyTorch, whose last bits depend on `torch.get_num_threads()` for large tensors.
"""

import ctypes
import os
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_shared.eight_bit import BLOCK
from emo_torch._kernels import FILTERS, FIRST_STEPS, FusedStep, Signal
from emo_torch._kernels.codes import codes
from emo_torch._kernels.job import DTYPES, FUNCTIONS, NARROW, Job, Library, Rule, kind_of, library
from emo_torch._kernels.overlaps import overlapping_parameters
from emo_torch._kernels.plan import (
    AVERAGE,
    COMPENSATION,
    EXISTS,
    GRAD,
    NORM,
    PARAM,
    SHADOW,
    STEP,
    Key,
    Layout,
    Params,
    State,
    are_apart,
    ends_of,
    sort_written,
)
from emo_torch._kernels.streams import (
    KEYS,
    Scales,
    are_plain,
    is_compensated,
    moments_of,
    names_of,
    names_with,
    numbers,
    rows_and_columns,
    scale_key,
    scales_of,
    shape_of,
    streams_of,
)
from emo_torch._pieces.rounding import ROUNDINGS
from emo_torch._pieces.weight_decay import MODES

# Each thread keeps sums over columns: with more columns, the sums would take as much memory as the weights.
MOST_COLUMNS = 2**18
# With fewer elements than these, a thread takes longer to start than to step.
LEAST_SHARE = 2**15

# Rules that read a whole tensor before they step it. With "l2" they read the weights, too, after the pull
# to the shadow. Weights in low precision cannot store the pulled values until the second reading.
_SEE_PULLED = ("softsign", "factored_moments")

_WIDE = {dtype: torch.float32 if dtype in NARROW else dtype for dtype in DTYPES}
"""The dtype of the computation, for each dtype of parameters."""
_REALS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}

_dtype, _shape = attrgetter("dtype"), attrgetter("shape")


def step(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    spec: FusedStep,
    *,
    signal_of: Callable[[torch.dtype], Signal],
    group: dict[str, Any],
) -> list[int]:
    """Takes the step of all parameters that compiled code can take.

    Args:
        params: the parameters; as `Params` they keep their layout from step to step.
        grads: the gradients of the parameters.
        states: the states: moments, and shadows if the group has shadows.
        spec: the step.
        signal_of: returns the emotion's numbers in a dtype.
        group: the options.

    Returns:
        The indices of the unchanged parameters, which another way must step.
    """
    found = library()
    if found is None:
        return list(range(len(params)))
    layout = params.layout if isinstance(params, Params) else None
    if layout is not None:
        # After a change of the rules or of `use_shadow`, the states have other names.
        kinds = tuple([(rule.kind, rule.prefix) for rule in spec.rules])
        dimensions = tuple(next(iter(layout.names.values()), ()))
        # The same as `names_of`, without a call.
        compensated = params[0].dtype in NARROW and is_compensated(params[0], group)
        flags = (bool(group.get("use_shadow")), bool(group.get("average")), compensated)
        if layout.names != names_with(kinds, *flags, dimensions):
            layout = None
    if layout is None:
        layout = describe(params, grads, states, spec, group)
    if layout is not None:
        is_done = _run(params, layout, spec, signal_of(_WIDE[params[0].dtype]), group, found)
        if is_done and isinstance(params, Params):
            params.layout, params.finder = layout, found.finder
        return [] if is_done else list(range(len(params)))
    by_dtypes: dict[tuple[torch.dtype, ...], list[int]] = {}
    left = overlapping_parameters(params, grads, states)
    for index, (param, grad, state) in enumerate(zip(params, grads, states, strict=True)):
        # `describe` refuses other dtypes, so that a call would be useless.
        fits = param.dtype in DTYPES and index not in left
        seen = describe([param], [grad], [state], spec, group) if fits else None
        if seen is not None:
            by_dtypes.setdefault((param.dtype, *seen.dtypes.values()), []).append(index)
    rest = set(range(len(params)))
    for (dtype, *_), indices in by_dtypes.items():
        own = [params[index] for index in indices]
        read = [grads[index] for index in indices]
        kept = [states[index] for index in indices]
        layout = describe(own, read, kept, spec, group)
        keys = group.get(KEYS)
        given = group if keys is None else {**group, KEYS: keys[indices]}
        if layout is not None and _run(own, layout, spec, signal_of(_WIDE[dtype]), given, found):
            rest.difference_update(indices)
    return sorted(rest)


def describe(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    spec: FusedStep,
    group: dict[str, Any],
) -> Layout | None:
    """Returns the layout of parameters, gradients and states; `None` if compiled code cannot take all.

    Every call checks every tensor. In a layout, all are plain, contiguous tensors in the CPU's memory, no
    tensor is empty or a negative view, and each moment has the shape of its rule. All tensors of one stream
    (the gradients, the first moments, ...) have one dtype: the dtype of the computation or a narrower one.
    """
    dtype = params[0].dtype
    wide = _WIDE.get(dtype, dtype)
    # Narrow dtypes are computed in float32, so that float64 cannot be combined with another dtype.
    known = {torch.float64} if wide == torch.float64 else {torch.float32, *NARROW}
    if dtype not in known or not are_plain(params, dtype):
        return None
    if grads[0].dtype not in known or not are_plain(grads, grads[0].dtype):
        return None
    shapes = list(map(_shape, params))
    if list(map(_shape, grads)) != shapes:
        return None
    size = numbers(Tensor.numel, params)
    if not size.all():
        return None
    kinds = tuple([(rule.kind, rule.prefix) for rule in spec.rules])
    dimensions = tuple({param.ndim for param in params})
    use_shadow = bool(group.get("use_shadow"))
    is_l2 = group["weight_decay_mode"] == "l2"
    if use_shadow and is_l2 and dtype in NARROW and any(rule.kind in _SEE_PULLED for rule in spec.rules):
        return None
    names = names_of(kinds, params[0], group, dimensions)
    streams = streams_of(params, states, names)
    scales: dict[Key, Scales] = {}
    for key, tensors in streams.items():
        is_whole = key in (SHADOW, COMPENSATION, AVERAGE) or "whole" in key
        if list(map(_shape, tensors)) != (shapes if is_whole else [shape_of(key, s) for s in shapes]):
            return None
        known_dtypes: dict[Key, torch.dtype] = {
            EXISTS: torch.bool,
            STEP: torch.float32,
            COMPENSATION: dtype,
            **dict.fromkeys((SHADOW, NORM, AVERAGE), wide),
        }
        fixed = known_dtypes.get(key)
        if fixed is None and torch.uint8 in set(map(_dtype, tensors)):
            found = scales_of(tensors, names[key], params, states)
            if found is None or not is_whole or wide != torch.float32:
                return None
            scales[key] = found
            continue
        if not are_plain(tensors, fixed or tensors[0].dtype):
            return None
        if fixed is None and tensors[0].dtype not in known:
            return None
    rows, columns = size, np.zeros_like(size)
    if any(rule.shape == "factors" for rule in spec.rules):
        rows, columns = np.array(list(map(rows_and_columns, shapes)), np.int64).T.copy()
        if columns.max() > MOST_COLUMNS:
            return None
    for key, found in scales.items():
        streams[scale_key(key)] = found.tensors
    streams = {PARAM: params, **streams, GRAD: grads}
    try:
        begins = {key: numbers(Tensor.data_ptr, tensors) for key, tensors in streams.items()}
    except RuntimeError:
        return None  # Tensors of this layout have no address.
    by_factor = {"0": np.where(columns > 0, rows, size), "1": np.where(columns > 0, columns, size)}
    if spec.rules[0].is_steered:  # The averages of a vector are in the second stream only.
        by_factor["0"] = np.where(columns > 0, rows, 0)
    sizes = {key: by_factor[key[2]] if "factors" in key else size for key in streams}
    sizes.update({key: np.ones_like(size) for key in (NORM, EXISTS, STEP) if key in streams})
    dtypes = {key: tensors[0].dtype for key, tensors in streams.items()}
    for key, found in scales.items():
        # Sizes in bytes: a small parameter has float32 moments among moments of uint8, and no scales.
        dtypes[key] = torch.uint8
        sizes[key] = np.where(found.is_coded, size, torch.float32.itemsize * size)
        sizes[scale_key(key)] = np.where(found.is_coded, -(-size // BLOCK), 0)
    for rule in spec.rules:  # Compiled code copies averages of rows and of columns to float32 together.
        if rule.shape == "factors" and len({dtypes[rule.prefix, "factors", place] for place in "01"}) > 1:
            return None
    kept = {scale_key(key): found.names for key, found in scales.items()}
    return Layout(begins, sizes, rows, columns, names, dtypes, kept)


def _run(
    params: list[Tensor],
    layout: Layout,
    spec: FusedStep,
    signal: Signal,
    group: dict[str, Any],
    found: Library,
) -> bool:
    """Takes the step of the parameters of a layout; returns whether the step was taken."""
    if not layout.is_apart:
        written = sort_written(layout)
        read = layout.begins[GRAD]
        if written is None or not are_apart(written, read, ends_of(layout, GRAD, read)):
            return False
    wide = _WIDE[params[0].dtype]
    job = _job(layout, spec, group, len(params), wide)
    share = None if spec.share is None else spec.share(wide)
    keys: Tensor | None = group.get(KEYS)
    values = (_REALS[wide] * 4)(*map(float, signal))
    at = ctypes.addressof(values)
    step = ctypes.sizeof(_REALS[wide])
    job.tolerance, job.scale, job.ratio, job.lr = at, at + step, at + 2 * step, at + 3 * step
    # A forked process does not have the threads of its parent, and would wait for these threads forever.
    enough = max(1, layout.addresses.elements // LEAST_SHARE)
    job.threads = min(torch.get_num_threads(), enough) if found.process == os.getpid() else 1
    job.chosen = None if spec.chosen is None else spec.chosen.data_ptr()
    job.chosen_first = None if spec.chosen_first is None else spec.chosen_first.data_ptr()
    job.share = None if share is None else share.data_ptr()
    job.keys = None if keys is None else keys.data_ptr()
    job.trusts = spec.follow is not None and SHADOW in layout.begins
    job.weights = 1.0 if spec.weights is None else spec.weights.item()
    if spec.follow is not None:
        job.shadow_rate = spec.follow.item()
    try:
        # torch does not see writes of compiled code. Without new versions, a backward pass would not notice
        # that its saved parameters have changed.
        torch.autograd.graph.increment_version(params)
    except RuntimeError:
        return False  # Tensors made in inference mode have no versions.
    layout.prepared["taken"] = job
    return bool(getattr(found.handle, FUNCTIONS[wide])(ctypes.byref(job)) == 0)


def _job(layout: Layout, spec: FusedStep, group: dict[str, Any], count: int, wide: torch.dtype) -> Job:
    """Returns the job of a layout, without the values of a single step; other options need a new job."""
    is_decoupled = group["weight_decay_mode"] == "decoupled"
    bound = group.get("injection_bound")
    options = {
        "weight_decay": group["weight_decay"]
        / ((group.get("weight_decay_divisor") if is_decoupled else None) or 1.0),
        "shadow_rate": group.get("shadow_rate", 0.0),
        "mode": MODES.index(group["weight_decay_mode"]),
        "maximize": group["maximize"],
        "norm_factor": group.get("schedulefree_alpha", 0.0),
        "least_lr": group.get("min_lr", 0.0),
        "most_lr": group.get("max_lr", 0.0),
        "injection_bound": -1.0 if bound is None else bound,
        "rounding": ROUNDINGS.index(group["rounding"]) if KEYS in group else 0,
    }
    known: tuple[Any, ...] = (spec.rules, spec.filter, spec.first_steps, options, wide)
    if layout.prepared.get("known") == known:
        made: Job = layout.prepared["job"]
        return made
    addresses = layout.addresses
    at, nothing = addresses.streams, addresses.nothing
    kinds = tuple([(rule.kind, rule.prefix) for rule in spec.rules])
    dtypes = layout.dtypes
    rules = [
        Rule(
            kind,
            *rule.betas,
            rule.eps,
            at.get(first, nothing),
            at.get(second, nothing),
            kind_of(dtypes[first]) if first in dtypes else 0,
            kind_of(dtypes[second]) if second in dtypes else 0,
            at.get(scale_key(first)),
            at.get(scale_key(second)),
        )
        for rule, (kind, first, second) in zip(spec.rules, moments_of(kinds), strict=True)
    ]
    job = Job(
        tensors=count,
        rows=addresses.rows,
        columns=addresses.columns,
        params=at[PARAM],
        grads=at[GRAD],
        shadows=at.get(SHADOW),
        shadows_exist=at.get(EXISTS),
        filter=FILTERS.index(spec.filter),
        rules=len(spec.rules),
        rule=tuple(rules),
        first_steps=len(spec.first_steps),
        first_step=tuple(map(FIRST_STEPS.index, spec.first_steps)),
        norms=at.get(NORM),
        param_kind=kind_of(dtypes[PARAM]),
        grad_kind=kind_of(dtypes[GRAD]),
        compensations=at.get(COMPENSATION),
        tables=ctypes.addressof(codes()) if layout.scales else None,
        **options,
    )
    layout.prepared.update(known=known, job=job)
    return job
