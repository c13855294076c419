"""The fused way on CUDA: a few launches of Triton kernels step many tensors; most rules need one launch.

Only `fused=True` selects this way. It takes dense, contiguous tensors of float32, float64 and bfloat16, and
leaves all others to the other ways. The step never waits for the device, and a CUDA graph can capture it.
"""

import functools
import importlib.util
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emo_torch._kernels import FIRST_STEPS, FusedRule, FusedStep, Signal
from emo_torch._kernels import cuda_layouts as layouts
from emo_torch._kernels.cuda_layouts import Numbers
from emo_torch._kernels.overlaps import overlapping
from emo_torch._kernels.plan import Params
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.eight_bit import scale_name
from emo_torch._rules.family_rules import KERNELS

State = dict[str, Tensor]
Tensors = list[Tensor]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
DEVICES = ("cuda",)
"""The types of devices of this way. (In tests, Triton's interpreter also takes the CPU's memory.)"""
RULES = tuple(rule.name for rule in KERNELS if rule.on_cuda)
"""The rules that have a kernel, in the order of their numbers in the kernels."""

_PLAIN = {Tensor, torch.nn.Parameter}
_Kind = tuple[Any, ...]


@functools.cache
def is_available() -> bool:
    """Returns whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


class _Uploaded(NamedTuple):
    """Tables in the device's memory.

    Attributes:
        made_of: the arrays on the host from which the tables were made.
        tables: the tables, by name.
        pinned: the memory of the host from which the tables are copied.
    """

    made_of: tuple[Numbers, ...]
    tables: dict[str, Tensor]
    pinned: Tensor


class _Tables(NamedTuple):
    """The tables that the kernels read, and the numbers of programs and of temporary elements.

    Attributes:
        pointers: the addresses of tensors: a row each for parameters, gradients, each moment, shadows, and
            the flags of shadows.
        constants: the options, as float64; a row for each rule.
        layout: the tensors and elements of each program; see `layout_of`.
        counts: the numbers of programs, and of elements of temporary memory.
    """

    pointers: _Uploaded
    constants: _Uploaded
    layout: _Uploaded
    counts: dict[str, int]


# Under this key an optimizer keeps the tables of captured graphs alive: a graph reads them at each replay.
_CAPTURED = "captured"


def step(
    params: Tensors,
    grads: Tensors,
    states: list[State],
    spec: FusedStep,
    *,
    signal_of: Callable[[torch.dtype, torch.device], Signal],
    group: dict[str, Any],
) -> list[int]:
    """Takes the step of all parameters that the kernels can take.

    Args:
        params: the parameters.
        grads: the gradients of the parameters.
        states: the states: moments, and shadows if the group has shadows.
        spec: the step; its indices may be on any device.
        signal_of: returns the emotion's numbers in a dtype on a device.
        group: the options.

    Returns:
        The indices of the unchanged parameters, which another way must step.
    """
    if any(rule.kind not in RULES for rule in spec.rules) or spec.first_steps not in ((), FIRST_STEPS):
        return list(range(len(params)))
    kept = [_kept(param, state, spec, group) for param, state in zip(params, states, strict=True)]
    kinds: dict[_Kind, list[int]] = {}
    left = overlapping([[param, *others] for param, others in zip(params, kept, strict=True)], grads)
    rest: list[int] = []
    uploads = params.uploads if isinstance(params, Params) else None
    uploads = {} if uploads is None else uploads
    for index, (param, grad, others) in enumerate(zip(params, grads, kept, strict=True)):
        if index in left or not _fits(param, grad, others, states[index].get("shadow_exists")):
            rest.append(index)
            continue
        dtypes = tuple(other.dtype for other in others)
        kinds.setdefault((param.device, param.dtype, grad.dtype, dtypes, param.ndim >= 2), []).append(index)
    for name in [name for name in uploads if name != _CAPTURED and name[1] not in kinds]:
        del uploads[name]
    for kind, indices in kinds.items():
        some = [params[index] for index in indices]
        read = [grads[index] for index in indices]
        written = [kept[index] for index in indices]
        try:
            # torch does not see writes of kernels. Without new versions, a backward pass would not notice
            # that its saved parameters have changed.
            torch.autograd.graph.increment_version(some)
        except RuntimeError:
            rest += indices  # Tensors made in inference mode have no versions.
            continue
        exists = [states[index]["shadow_exists"] for index in indices] if group.get("use_shadow") else []
        signal = signal_of(wide_dtype(some[0]), some[0].device)
        with torch.cuda.device_of(some[0]):
            _run(kind, some, read, written, exists, spec, signal, group, uploads)
    return sorted(rest)


def _kept(param: Tensor, state: State, spec: FusedStep, group: dict[str, Any]) -> Tensors:
    """Returns the moments of each rule, the scales of codes, and the shadow if the group has shadows."""
    names = _moment_names(spec, param)
    scales = [scale_name(name) for name in names if state[name].dtype == torch.uint8]
    shadow = ("shadow",) if group.get("use_shadow") else ()
    return [state[name] for name in (*names, *scales, *shadow)]


def _moment_names(spec: FusedStep, param: Tensor) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(rule.moments(param.ndim) for rule in spec.rules)))


def _fits(param: Tensor, grad: Tensor, others: Tensors, exists: Tensor | None) -> bool:
    tensors = [param, grad, *others]
    return all(
        type(tensor) in _PLAIN
        and (tensor.dtype in DTYPES or (tensor.dtype == torch.uint8 and place >= 2))
        and tensor.device == param.device
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
        for place, tensor in enumerate(tensors)
    ) and (
        param.device.type in DEVICES
        and param.numel() > 0
        and grad.shape == param.shape
        and (exists is None or exists.device == param.device)
    )


def _run(
    kind: _Kind,
    params: Tensors,
    grads: Tensors,
    kept: list[Tensors],
    exists: Tensors,
    spec: FusedStep,
    signal: Signal,
    group: dict[str, Any],
    uploads: dict[Any, Any],
) -> None:
    """Takes the step of parameters of one kind, all of which the kernels can take."""
    names = _moment_names(spec, params[0])
    streams = [params, grads, *(list(stream) for stream in zip(*kept, strict=True))]
    if exists:
        streams.append(exists)
    tables = _tables(kind, params, streams, spec, group, uploads)
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        uploads.setdefault(_CAPTURED, []).append(tables)
    for index, rule in enumerate(spec.rules):
        # A rule without moments reads no moment, but its kernel needs a stream as an argument.
        moments = [2 + names.index(name) for name in rule.moments(params[0].ndim)] or [0]
        is_coded = streams[moments[0]][0].dtype == torch.uint8
        scales = [moment + len(names) * is_coded for moment in moments]
        _launch(index, rule, (moments, scales), tables, streams, spec, signal, group)
    if exists:
        # By the rule of trust, a shadow is made at the first step.
        wakes = signal.shadow_ratio > 0 if spec.follow is None else signal.shadow_ratio >= 0
        torch._foreach_copy_(exists, list((torch.stack(exists) | wakes).unbind()))


def _tables(
    kind: _Kind,
    params: Tensors,
    streams: list[Tensors],
    spec: FusedStep,
    group: dict[str, Any],
    uploads: dict[Any, Any],
) -> _Tables:
    """Returns the tables of parameters; tables that have not changed come from `uploads`."""
    count = len(params)
    # With an even length, each row begins at a multiple of 16 bytes, which Triton reads faster.
    pointers = np.zeros((len(streams), count + count % 2), np.int64)
    for row, stream in zip(pointers, streams, strict=True):
        row[:count] = layouts.numbers(tensor.data_ptr() for tensor in stream)
    shapes = np.array([layouts.rows_and_columns(param) for param in params], np.int64).T
    is_decoupled = group["weight_decay_mode"] == "decoupled"
    divisor = group.get("weight_decay_divisor") if is_decoupled else None
    sign = -1.0 if group["maximize"] else 1.0
    shared = (sign, group["weight_decay"] / (divisor or 1.0), group.get("shadow_rate", 0.0))
    constants = np.array(
        [(*shared, b1, 1.0 - b1, b2, 1.0 - b2, eps) for _, (b1, b2), eps, _ in spec.rules], np.float64
    )
    device = params[0].device

    def table(name: str, made_of: tuple[Any, ...], make: Callable[..., dict[str, Any]]) -> _Uploaded:
        found: _Uploaded | None = uploads.get((name, kind))
        if found is None or not all(map(np.array_equal, found.made_of, made_of)):
            uploads[name, kind] = found = _upload(made_of, make(*made_of), device)
        return found

    # Without moments, the third stream is a shadow or a flag.
    block = layouts.block_of(streams[min(2, len(streams) - 1)][0].dtype)
    make_layout = functools.partial(layouts.layout_of, block=block, is_matrix=kind[-1])
    layout = table("layout", tuple(shapes), make_layout)
    return _Tables(
        table("pointers", (pointers,), lambda own: {"pointers": own}),
        table("constants", (constants,), lambda own: {"constants": own.view(np.int64)}),
        layout,
        layouts.counts_of(shapes[0], shapes[1], block),
    )


def _upload(made_of: tuple[Any, ...], arrays: dict[str, Numbers], device: torch.device) -> _Uploaded:
    """Copies tables to the device, without waiting for the device."""
    # Each table begins at a multiple of 16 bytes, which Triton reads faster.
    ends = np.cumsum([array.size + array.size % 2 for array in arrays.values()]).tolist()
    starts = [0, *ends[:-1]]
    host = torch.zeros(ends[-1], dtype=torch.int64, device="cpu")
    for start, array in zip(starts, arrays.values(), strict=True):
        host[start : start + array.size] = torch.from_numpy(array.reshape(-1))
    if device.type == "cuda":
        host = host.pin_memory()
    there = host.to(device, non_blocking=True)
    pairs = zip(starts, arrays.items(), strict=True)
    tables = {name: there[start : start + array.size].view(array.shape) for start, (name, array) in pairs}
    return _Uploaded(made_of, tables, host)


def _launch(
    index: int,
    rule: FusedRule,
    moments_and_scales: tuple[list[int], list[int]],
    tables: _Tables,
    streams: list[Tensors],
    spec: FusedStep,
    signal: Signal,
    group: dict[str, Any],
) -> None:
    """Launches the kernel of a rule; before it, the kernels of the sums that the rule reads."""
    from emo_torch._kernels import cuda_kernels as kernels
    from emo_torch._kernels.cuda_codes import tables_on

    layout, counts = tables.layout.tables, tables.counts
    constants = tables.constants.tables["constants"].view(torch.float64)[index]
    rows = tables.pointers.tables["pointers"].unbind()
    moments, scales = moments_and_scales
    params, grads, first, second = rows[0], rows[1], rows[moments[0]], rows[moments[-1]]
    has_shadow = bool(group.get("use_shadow"))
    shadows, exists = rows[-2:] if has_shadow else (params, params)
    param = streams[0][0]
    wide = wide_dtype(param)
    is_factored = rule.kind == "factored_moments"
    is_matrix = is_factored and param.ndim >= 2
    # Whether a matrix takes a first step before its rule.
    steps_first = bool(spec.first_steps) and param.ndim >= 2
    never = layout["never"][0]
    chosen = never if spec.chosen is None else spec.chosen
    dtypes = {
        "PARAM": _named(param),
        "GRAD": _named(streams[1][0]),
        "SHADOW": _named(streams[-2 if has_shadow else 0][0]),
        "WIDE": _named(torch.empty(0, dtype=wide)),
    }
    block = layouts.block_of(streams[moments[0]][0].dtype)
    is_coded = streams[moments[0]][0].dtype == torch.uint8
    codes = tables_on(param.device) if is_coded else (constants, constants)
    # Without fused multiplications and additions, the numbers are the same as in the other ways.
    plain = {"enable_fp_fusion": False}
    options = {"MODE": MODES.index(group["weight_decay_mode"]), "BLENDS": has_shadow}
    kinds = {"FIRST": _named(streams[moments[0]][0]), "SECOND": _named(streams[moments[-1]][0])}
    row_means = column_means = norms = constants
    row_starts, column_starts = (
        layout.get(name, layout["sizes"]) for name in ("row_starts", "column_starts")
    )
    blocks = (layout["tensor_of"], layout["start_of"], layout["sizes"])
    if is_matrix:
        row_means = param.new_empty(counts["rows"], dtype=wide)
        column_means = param.new_empty(counts["columns"], dtype=wide)
        parts = param.new_empty(counts["parts"], dtype=wide)
        tiles = {"INDEX": index, "HEIGHT": layouts.HEIGHT, "WIDTH": layouts.WIDTH}
        shape = (layout["heights"], layout["columns"])
        kernels.rows[(counts["high"],)](
            *(params, grads, first, shadows, exists),
            *(layout["tensor_of_rows"], layout["row_of"], *shape),
            *(row_starts, row_means, layout["part_starts"], parts),
            *(constants, signal.shadow_ratio, chosen),
            **plain,
            **tiles,
            **options,
            **dtypes,
            FIRST=kinds["FIRST"],
        )
        kernels.columns_of[(counts["wide"],)](
            *(second, layout["tensor_of_columns"], layout["column_of"], *shape),
            *(column_starts, column_means, layout["part_starts"], parts),
            *(constants, chosen),
            **plain,
            **tiles,
            SECOND=kinds["SECOND"],
            WIDE=dtypes["WIDE"],
        )
    if rule.kind == "softsign" or steps_first:
        norms = param.new_empty(counts["tensors"], dtype=wide)
        parts = param.new_empty(counts["blocks"], dtype=wide)
        kernels.squares[(counts["blocks"],)](
            *(params, grads, shadows, exists, *blocks, parts, constants, signal.shadow_ratio),
            **options,
            **dtypes,
            BLOCK=block,
            **plain,
        )
        kernels.norms_of[(counts["tensors"],)](
            parts, layout["first_blocks"], layout["blocks"], norms, BLOCK=block, **plain
        )
    # These numbers stay in the memory of the device.
    given = (spec.weights, None if spec.share is None else spec.share(wide), spec.follow)
    scalars = [never if one is None else one.to(param.device, wide) for one in given]
    filters = {"elements": 1, "rows_and_columns": 2}
    kind = RULES.index("uncorrected_adam" if is_factored and not is_matrix else rule.kind)
    is_all = spec.filter in ("all", "scaled")
    kernels.elements[(counts["blocks"],)](
        *(params, grads, first, second, shadows, exists, *blocks, layout["columns"]),
        *(row_starts, row_means, column_starts, column_means, norms, constants),
        *(signal.tolerance, signal.scale, signal.shadow_ratio, signal.lr, *scalars),
        *(chosen, never if spec.chosen_first is None else spec.chosen_first),
        *(rows[scales[0]], rows[scales[-1]], *codes),
        INDEX=index,
        STEPS_FIRST=steps_first,
        RULE=kind,
        # If matrices filter rows and columns, vectors have a filter of their own.
        FILTER=3 if is_factored and not is_matrix and not is_all else filters.get(spec.filter, 0),
        SCALES=spec.filter != "all",
        TRUSTS=has_shadow and spec.follow is not None,
        WEIGHS=spec.weights is not None,
        **options,
        **dtypes,
        **kinds,
        BLOCK=block,
        **plain,
    )


def _named(tensor: Tensor) -> Any:
    """Returns the dtype of Triton for a tensor."""
    import triton.language as tl

    names = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16}
    return {**names, torch.uint8: tl.uint8}[tensor.dtype]
