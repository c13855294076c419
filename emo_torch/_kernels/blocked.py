"""The way of the CPU without compiled code: PyTorch's own operations, a block of memory at a time.

Temporary tensors stay in the cache. Adam's rule is one call of the code that PyTorch has for its own AdamW.
This way takes dense, contiguous tensors of float32 and float64, and leaves all others to the other ways.
All ways give the same numbers, up to rounding.
"""

import math
from collections.abc import Callable, Iterator
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emo_torch._kernels import FusedRule, FusedStep, Signal
from emo_torch._kernels.overlaps import overlapping
from emo_torch._pieces.shadow_system import multi_tensor_blend_with_shadow
from emo_torch._rules.moments import multi_tensor_average

State = dict[str, Tensor]
Tensors = list[Tensor]

BLOCK = 2**18
"""The number of elements of a block: with moments a few megabytes, and enough to outweigh the calls."""
DTYPES = (torch.float32, torch.float64)
ELEMENTWISE = ("uncorrected_adam", "lion", "cautious_sign")
"""The rules that read one element at a time."""

# At this number of steps, Adam's bias correction divides by 1 - b**3e38 = 1.
_FAR = 3e38
_PLAIN = {Tensor, torch.nn.Parameter}


class _Numbers(NamedTuple):
    """The numbers of a step.

    Attributes:
        bound: an element moves if the size of its gradient is larger than this bound; `None` moves all.
        vector_bound: the bound for elements of vectors, if the rule has factors for matrices.
        row_bound: an element of a matrix moves if the mean squares of its row and of its column are both
            larger than this bound; `None` moves all.
        length: the factor of an update, lr (1 - |s|).
        decay: the share of a parameter that is subtracted from the parameter.
        decay_in_gradient: the share of a parameter that is added to its gradient.
        shadow_rate: how far a shadow follows; `None` if shadows do not move.
        sign: -1.0 to maximize, and 1.0 to minimize.
    """

    bound: float | None
    vector_bound: float | None
    row_bound: float | None
    length: float
    decay: float
    decay_in_gradient: float
    shadow_rate: float | None
    sign: float


class _Parts(NamedTuple):
    """Parts of tensors that are stepped together, with as many elements as a block.

    Attributes:
        params: the parameters.
        grads: the gradients.
        firsts: the first moments.
        seconds: the second moments; empty if the rule has no second moment.
        shadows: the shadows; empty if shadows do not move.
        exists: for each shadow, whether it has been made; empty if shadows do not move.
    """

    params: Tensors
    grads: Tensors
    firsts: Tensors
    seconds: Tensors
    shadows: Tensors
    exists: Tensors


def step(
    params: Tensors,
    grads: Tensors,
    states: list[State],
    spec: FusedStep,
    *,
    signal_of: Callable[[torch.dtype], Signal],
    group: dict[str, Any],
) -> list[int]:
    """Takes the step of all parameters that this way can take.

    Args:
        params: the parameters.
        grads: the gradients of the parameters.
        states: the states: moments, and shadows if the group has shadows.
        spec: the step.
        signal_of: returns the emotion's numbers in a dtype.
        group: the options.

    Returns:
        The indices of the unchanged parameters, which another way must step.
    """
    rule = _rule_of(spec)
    if rule is None:
        return list(range(len(params)))
    names = {ndim: rule.moments(ndim) for ndim in {param.ndim for param in params}}
    if group.get("use_shadow"):
        names = {ndim: (*moments, "shadow") for ndim, moments in names.items()}
    kept = [
        [state[name] for name in names[param.ndim]] for param, state in zip(params, states, strict=True)
    ]
    by_dtype: dict[torch.dtype, list[int]] = {}
    written = [[param, *others] for param, others in zip(params, kept, strict=True)]
    rest = sorted(overlapping(written, grads))
    if not rest and _are_plain([*params, *grads, *chain.from_iterable(kept)]):
        by_dtype[params[0].dtype] = list(range(len(params)))
    else:
        for index in sorted({*range(len(params))} - {*rest}):
            is_plain = _are_plain([grads[index], *written[index]])
            fit = by_dtype.setdefault(params[index].dtype, []) if is_plain else rest
            fit.append(index)
    for dtype, indices in by_dtype.items():
        own = [params[index] for index in indices]
        read = [grads[index] for index in indices]
        numbers = _numbers(spec, signal_of(dtype), group)
        moved = [states[index] for index in indices]
        _step(own, read, moved, rule, numbers, signal_of(dtype).shadow_ratio)
    return sorted(rest)


def _rule_of(spec: FusedStep) -> FusedRule | None:
    """Returns the selected rule; `None` for a rule or a first step that only the other ways have."""
    first = None if spec.chosen_first is None else int(spec.chosen_first)
    if spec.first_steps and (first is None or spec.first_steps[first] != "none"):
        return None
    chosen = 0 if spec.chosen is None else min(max(int(spec.chosen), 0), len(spec.rules) - 1)
    rule = spec.rules[chosen]
    is_known = rule.kind in (*ELEMENTWISE, "factored_moments")
    return rule if is_known and hasattr(torch, "_fused_adamw_") else None


def _are_plain(tensors: Tensors) -> bool:
    """Returns whether tensors can be cut into blocks: of one dtype, dense, contiguous, not empty."""
    dtype = tensors[0].dtype
    return (
        dtype in DTYPES
        and set(map(type, tensors)) <= _PLAIN
        and set(map(attrgetter("dtype"), tensors)) == {dtype}
        and set(map(attrgetter("layout"), tensors)) == {torch.strided}
        and all(map(attrgetter("is_cpu"), tensors))
        and all(map(Tensor.numel, tensors))
        and all(map(Tensor.is_contiguous, tensors))
        and not any(map(Tensor.is_neg, tensors))
        and not any(map(Tensor.is_inference, tensors))
    )


def _numbers(spec: FusedStep, signal: Signal, group: dict[str, Any]) -> _Numbers:
    tolerance, lr = signal.tolerance, float(signal.lr)
    # The filter of elements keeps gradients as large as its bound, so that `bound` is the number below it.
    cube = tolerance * tolerance * tolerance
    bound = float(cube.nextafter(torch.zeros_like(cube))) if cube > 0.0 else -1.0
    mode, weight_decay = group["weight_decay_mode"], group["weight_decay"]
    share = weight_decay / (group.get("weight_decay_divisor") or 1.0)
    wakes = group.get("use_shadow") and float(signal.shadow_ratio) > 0.0
    is_all = spec.filter in ("all", "scaled")
    return _Numbers(
        bound=None if is_all else bound,
        vector_bound=None if is_all else float(tolerance * tolerance.sqrt()),
        row_bound=float(cube) if spec.filter == "rows_and_columns" else None,
        length=lr if spec.filter == "all" else lr * float(signal.scale),
        decay={"decoupled": lr * share, "absolute": weight_decay, "l2": 0.0}[mode],
        decay_in_gradient=weight_decay if mode == "l2" else 0.0,
        shadow_rate=group["shadow_rate"] if wakes else None,
        sign=-1.0 if group["maximize"] else 1.0,
    )


def _step(
    params: Tensors, grads: Tensors, states: list[State], rule: FusedRule, numbers: _Numbers, ratio: Tensor
) -> None:
    largest = min(BLOCK, sum(map(Tensor.numel, params)))
    room = params[0].new_empty(3 if rule.kind == "cautious_sign" else 2, largest)
    is_factored = rule.kind == "factored_moments"
    elements = [index for index, param in enumerate(params) if not is_factored or param.ndim < 2]
    matrices = [index for index, param in enumerate(params) if is_factored and param.ndim >= 2]
    if elements:
        kind = "uncorrected_adam" if is_factored else rule.kind
        bound = numbers.vector_bound if is_factored else numbers.bound
        own = rule._replace(kind=kind)
        chosen = _chosen(elements, params, grads, states, own.moments(1), numbers)
        for parts in _blocks(chosen):
            _step_elements(parts, own, numbers._replace(bound=bound), ratio, room)
    for some in _of_one_shape(matrices, params):
        chosen = _chosen(some, params, grads, states, rule.moments(2), numbers)
        _step_matrices(chosen, rule, numbers, ratio)
    if numbers.shadow_rate is not None:
        for state in states:
            state["shadow_exists"].fill_(True)


def _chosen(
    indices: list[int],
    params: Tensors,
    grads: Tensors,
    states: list[State],
    moments: tuple[str, ...],
    numbers: _Numbers,
) -> _Parts:
    """Returns the tensors of some parameters as `_Parts`."""
    kept = [[states[index][name] for index in indices] for name in moments]
    wakes = numbers.shadow_rate is not None
    return _Parts(
        params=[params[index] for index in indices],
        grads=[grads[index] for index in indices],
        firsts=kept[0],
        seconds=kept[1] if len(kept) > 1 else [],
        shadows=[states[index]["shadow"] for index in indices] if wakes else [],
        exists=[states[index]["shadow_exists"] for index in indices] if wakes else [],
    )


def _blocks(whole: _Parts) -> Iterator[_Parts]:
    """Yields blocks: cuts large tensors into blocks, and joins small tensors in one block."""
    begin = total = 0
    for index, param in enumerate(whole.params):
        size = param.numel()
        if total + size > BLOCK and index > begin:
            yield _Parts(*(tensors[begin:index] for tensors in whole))
            begin, total = index, 0
        total += size
        if size > BLOCK:
            alone = _Parts(*(tensors[index : index + 1] for tensors in whole))
            yield from (_cut(alone, start, BLOCK) for start in range(0, size, BLOCK))
            begin, total = index + 1, 0
    if begin < len(whole.params):
        yield _Parts(*(tensors[begin:] for tensors in whole))


def _cut(whole: _Parts, start: int, size: int) -> _Parts:
    """Returns `size` elements of each tensor, from the element `start`, as vectors."""
    *tensors, exists = whole
    parts = [[tensor.view(-1)[start : start + size] for tensor in some] for some in tensors]
    # Copies of the flags: the first block sets a flag, and the other blocks must read the old value.
    return _Parts._make([*parts, [one.clone() for one in exists]])


def _blend(parts: _Parts, numbers: _Numbers, ratio: Tensor) -> None:
    """Pulls parameters to their shadows, unless shadows do not move."""
    if numbers.shadow_rate is not None:
        rate = numbers.shadow_rate
        multi_tensor_blend_with_shadow(parts.params, parts.shadows, parts.exists, ratio, shadow_rate=rate)


def _uphill(parts: _Parts, numbers: _Numbers, room: Tensor) -> tuple[Tensor, Tensors]:
    """Returns the gradients that the rule reads, with sign and "l2" decay: as one vector, and as a list."""
    is_changed = numbers.sign < 0.0 or numbers.decay_in_gradient > 0.0
    if len(parts.params) == 1 and not is_changed:
        return parts.grads[0].view(-1), parts.grads
    together = _join(parts.grads, room)
    if not is_changed:
        return together, parts.grads
    together.mul_(numbers.sign)
    apart = _apart(together, parts.params)
    torch._foreach_add_(apart, parts.params, alpha=numbers.decay_in_gradient)
    return together, apart


def _join(tensors: Tensors, room: Tensor) -> Tensor:
    """Copies tensors to one vector."""
    size = sum(map(Tensor.numel, tensors))
    return torch.cat([tensor.view(-1) for tensor in tensors], out=room[:size])


def _apart(together: Tensor, shapes: Tensors) -> Tensors:
    """Returns a vector's parts in the shapes of tensors."""
    parts = together.split(list(map(Tensor.numel, shapes)))
    return [part.view_as(shape) for part, shape in zip(parts, shapes, strict=True)]


def _step_elements(parts: _Parts, rule: FusedRule, numbers: _Numbers, ratio: Tensor, room: Tensor) -> None:
    _blend(parts, numbers, ratio)
    grad, grads = _uphill(parts, numbers, room[0])
    update = room[1, : grad.numel()]
    updates = _apart(update, parts.params)
    b1, b2 = rule.betas
    if rule.kind == "uncorrected_adam":
        update.zero_()
        far = torch.tensor(_FAR, dtype=torch.float32, device="cpu")
        # AdamW steps zeros, without weight decay: the zeros become the update.
        torch._fused_adamw_(
            updates,
            grads,
            parts.firsts,
            parts.seconds,
            [],
            [far] * len(updates),
            lr=numbers.length,
            beta1=b1,
            beta2=b2,
            weight_decay=0.0,
            eps=rule.eps,
            amsgrad=False,
            maximize=False,
        )
    else:
        _join(parts.firsts, update).mul_(b1).add_(grad, alpha=1.0 - b1).sign_()
        multi_tensor_average(parts.firsts, grads, b2)
        if rule.kind == "cautious_sign":
            sign = torch.sign(grad, out=room[2, : grad.numel()])
            update.mul_(torch.eq(update, sign, out=sign))
        update.mul_(-numbers.length)
    if numbers.bound is not None:
        _filter(update, grad, numbers.bound)
    _move(parts.params, updates, numbers)


def _of_one_shape(indices: list[int], params: Tensors) -> Iterator[list[int]]:
    """Yields lists of matrices of one shape: many small matrices, or one that fills a block."""
    by_shape: dict[torch.Size, list[int]] = {}
    for index in indices:
        by_shape.setdefault(params[index].shape, []).append(index)
    for shape, same in by_shape.items():
        count = max(1, BLOCK // shape.numel())
        yield from (same[start : start + count] for start in range(0, len(same), count))


def _step_matrices(whole: _Parts, rule: FusedRule, numbers: _Numbers, ratio: Tensor) -> None:
    """Steps matrices of one shape by the averages of their rows and columns."""
    rows, columns = whole.params[0].shape[0], whole.params[0].shape[1:].numel()
    height = max(1, min(rows, BLOCK // (len(whole.params) * columns)))
    room = whole.params[0].new_empty(2, len(whole.params) * height * columns)
    weights = whole._replace(firsts=[], seconds=[])
    blocks = [_cut(weights, start * columns, height * columns) for start in range(0, rows, height)]
    row_means = room.new_empty(len(whole.params), rows, 1)
    column_means = room.new_zeros(len(whole.params), 1, columns)
    starts = range(0, rows, height)
    for start, parts in zip(starts, blocks, strict=True):
        _blend(parts, numbers, ratio)
        grad = _uphill(parts, numbers, room[0])[0].view(len(whole.params), -1, columns)
        square = torch.mul(grad, grad, out=room[1, : grad.numel()].view(grad.shape))
        row_means[:, start : start + height] = square.mean(dim=2, keepdim=True)
        column_means += square.sum(dim=1, keepdim=True)
    column_means /= rows
    factors = []
    for means, moments in ((row_means, whole.firsts), (column_means, whole.seconds)):
        means += rule.eps
        averages = [moment.view(mean.shape) for moment, mean in zip(moments, means, strict=True)]
        multi_tensor_average(averages, list(means.sqrt().unbind()), rule.betas[0])
        factors.append(torch.stack(averages))
    row, column = factors
    for start, parts in zip(starts, blocks, strict=True):
        if len(blocks) > 1:
            grad = _uphill(parts, numbers, room[0])[0].view(len(whole.params), -1, columns)
        part = slice(start, start + height)
        update = torch.mul(row[:, part], column, out=room[1, : grad.numel()].view(grad.shape))
        torch.div(grad, update.sqrt_().add_(rule.eps), out=update).mul_(-numbers.length)
        if numbers.row_bound is not None:
            keeps = (row_means[:, part] > numbers.row_bound) & (column_means > numbers.row_bound)
            update.masked_fill_(~keeps, 0.0)
        _move(parts.params, list(update.view(len(parts.params), -1).unbind()), numbers)


def _filter(update: Tensor, grad: Tensor, bound: float) -> None:
    """Sets elements of an update to 0 if the size of their gradient is not larger than a bound, or NaN."""
    if math.isfinite(float(grad.sum())):
        torch.ops.aten.hardshrink_backward.grad_input(update, grad, bound, grad_input=update)
    else:  # The result of that operation for a NaN depends on the position of the NaN.
        update.masked_fill_(~(grad.abs() > bound), 0.0)


def _move(params: Tensors, updates: Tensors, numbers: _Numbers) -> None:
    """Adds updates to parameters, and subtracts weight decay, with one rounding."""
    if numbers.decay > 0.0:
        torch._foreach_add_(updates, params, alpha=-numbers.decay)
    torch._foreach_add_(params, updates)
