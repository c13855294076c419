"""Finds parameters that share memory: these parameters must be stepped one by one, in their order."""

from collections.abc import Sequence
from itertools import chain, repeat
from operator import attrgetter

import numpy as np
from torch import Tensor

from emo_torch._kernels.find import Numbers

_nbytes = attrgetter("nbytes")


def overlapping(written: Sequence[Sequence[Tensor]], read: Sequence[Tensor]) -> set[int]:
    """Returns the indices of the parameters whose step writes memory that another tensor uses, too.

    A way of stepping that changes the order of parameters must leave these parameters out. Two tensors may
    share memory if the step only reads both of them.

    Args:
        written: for each parameter the tensors that its step writes: the parameter and its state.
        read: the gradient of each parameter.
    """
    tensors = [*chain.from_iterable(written), *read]
    counts = [*map(len, written), *repeat(1, len(read))]
    owners = np.repeat([*range(len(written)), *range(len(read))], counts)
    are_written = np.arange(len(tensors)) < len(tensors) - len(read)
    begins, ends = _spans(tensors)
    order = np.argsort(begins, kind="stable")
    order = order[begins[order] < ends[order]]
    if not len(order):
        return set()
    begins, ends, owners, are_written = begins[order], ends[order], owners[order], are_written[order]
    # A piece of memory ends where the next tensor begins after the end of all earlier tensors.
    starts = np.flatnonzero(np.append(True, begins[1:] >= np.maximum.accumulate(ends)[:-1]))
    lengths = np.diff(starts, append=len(begins))
    is_shared = (lengths > 1) & np.logical_or.reduceat(are_written, starts)
    return set(owners[np.repeat(is_shared, lengths)].tolist())


def overlapping_parameters(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[dict[str, Tensor]]
) -> set[int]:
    """Returns the result of `overlapping` for parameters with their whole states.

    Args:
        params: the parameters.
        grads: the gradients of the parameters.
        states: the states of the parameters. All states may share one tensor `"shadow_exists"`.
    """
    written = [
        [param, *(state[name] for name in state if name != "shadow_exists")]
        for param, state in zip(params, states, strict=True)
    ]
    return overlapping(written, grads)


def _spans(tensors: list[Tensor]) -> tuple[Numbers, Numbers]:
    """Returns the addresses at which tensors begin and end."""
    count = len(tensors)
    try:
        begins = np.fromiter(map(Tensor.data_ptr, tensors), np.int64, count)
        ends = begins + np.fromiter(map(_nbytes, tensors), np.int64, count)
        odd = [index for index, tensor in enumerate(tensors) if not tensor.is_contiguous()]
    except RuntimeError:
        begins, ends, odd = np.zeros(count, np.int64), np.zeros(count, np.int64), list(range(count))
    for index in odd:
        begins[index], ends[index] = _span(tensors[index])
    return begins, ends


def _span(tensor: Tensor) -> tuple[int, int]:
    """Returns the addresses at which a tensor begins and ends; two zeros if the tensor has no address."""
    try:
        begin, count = tensor.data_ptr(), tensor.numel()
        if count and not tensor.is_contiguous():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            count = 1 + sum((size - 1) * stride for size, stride in steps)
    except RuntimeError:
        return 0, 0  # A tensor of another layout, such as a sparse tensor, has no address.
    return begin, begin + count * tensor.element_size()
