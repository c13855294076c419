"""The sum of the L1 norms of many tensors in compiled code: one pass over memory, without a copy."""

import ctypes
import functools
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emo_torch._kernels.find import PLAIN, Numbers
from emo_torch._kernels.job import library
from emo_torch._kernels.plan import PARAM, Layout

_FUNCTIONS = {torch.float32: "emo_sum_of_sizes_float", torch.float64: "emo_sum_of_sizes_double"}


@functools.cache
def _function_of(handle: ctypes.CDLL, dtype: torch.dtype) -> Any:
    """Returns the compiled function for a dtype, with the types of its arguments."""
    function = getattr(handle, _FUNCTIONS[dtype])
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.restype = ctypes.c_int
    function.argtypes = [
        *(pointer, pointer, count, ctypes.c_int),
        ctypes.POINTER(ctypes.c_double),
    ]
    return function


def are_readable(tensors: list[Tensor], dtype: torch.dtype) -> bool:
    """Returns whether compiled code can read tensors: plain, contiguous, of one dtype, on the CPU."""
    try:
        return (
            dtype in _FUNCTIONS
            and set(map(type, tensors)) <= PLAIN
            and {tensor.dtype for tensor in tensors} == {dtype}
            and all(tensor.is_cpu for tensor in tensors)
            and all(map(Tensor.is_contiguous, tensors))
            and not any(map(Tensor.is_neg, tensors))
        )
    except RuntimeError:
        return False  # A tensor of another layout, such as a sparse tensor, has no such property.


def addresses_of(tensors: list[Tensor]) -> tuple[Numbers, Numbers]:
    """Returns the address and the number of elements of each tensor."""
    begins = np.fromiter(map(Tensor.data_ptr, tensors), np.int64, len(tensors))
    return begins, np.fromiter(map(Tensor.numel, tensors), np.int64, len(tensors))


def addresses_in(layout: Layout, dtype: torch.dtype) -> tuple[Numbers, Numbers] | None:
    """Returns the addresses and sizes of a layout's parameters; `None` for parameters of another dtype.

    The numbers come from the layout: no tensor is read.
    """
    is_known = dtype in _FUNCTIONS and layout.dtypes[PARAM] == dtype
    return (layout.begins[PARAM], layout.sizes[PARAM]) if is_known else None


def sum_of_sizes(begins: Numbers, sizes: Numbers, dtype: torch.dtype) -> float | None:
    r"""Returns the sum of :math:`|p|` over all elements; `None` without compiled code.

    Args:
        begins: the address of each tensor p, contiguous, on the CPU.
        sizes: the number of elements of each tensor.
        dtype: float32 or float64, the dtype of all tensors.
    """
    found = library()
    if found is None:
        return None
    total = ctypes.c_double()
    # A forked process does not have the threads of its parent, and would wait for these threads forever.
    threads = torch.get_num_threads() if found.process == os.getpid() else 1
    run = _function_of(found.handle, dtype)
    fails = run(begins.ctypes.data, sizes.ctypes.data, len(begins), threads, ctypes.byref(total))
    return None if fails else total.value
