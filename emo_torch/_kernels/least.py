"""Finds the gradients that have a small element: one pass over memory, in compiled code if possible."""

import ctypes
import functools
from array import array
from typing import Any

import torch
from torch import Tensor

from emo_torch._kernels.job import library

_FUNCTIONS = {torch.float32: "emo_any_below_float", torch.float64: "emo_any_below_double"}
_BLOCK = 2**16


@functools.cache
def _function_of(handle: ctypes.CDLL, dtype: torch.dtype) -> Any:
    """Returns the compiled function for a dtype, with the types of its arguments."""
    function = getattr(handle, _FUNCTIONS[dtype])
    function.restype = None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, count, ctypes.c_double, ctypes.c_int, pointer]
    return function


def which_are_below(tensors: list[Tensor], bound: float) -> list[bool]:
    """Returns for each tensor whether the size of one of its elements is below `bound`, or is NaN.

    Args:
        tensors: floating-point tensors on the CPU, of one dtype, any shapes.
        bound: the smallest size that is not small, >= 0, a number of that dtype or of float32.

    Example:
        >>> import torch
        >>> from emo_torch._kernels.least import which_are_below
        >>> print(which_are_below([torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])], 1.0))
        [False, True]
    """
    if not tensors:
        return []
    dtype = tensors[0].dtype
    compiled = library() if dtype in _FUNCTIONS else None
    are_plain = set(map(type, tensors)) == {Tensor} and all(map(Tensor.is_contiguous, tensors))
    if compiled is None or not are_plain:
        return [_is_below(tensor, bound) for tensor in tensors]
    count = len(tensors)
    parts, counts = (array("q", map(of, tensors)) for of in (Tensor.data_ptr, Tensor.numel))
    found = bytearray(count)
    run = _function_of(compiled.handle, dtype)
    at_found = ctypes.addressof(ctypes.c_char.from_buffer(found))
    run(parts.buffer_info()[0], counts.buffer_info()[0], count, bound, torch.get_num_threads(), at_found)
    return [value != 0 for value in found]


def _is_below(tensor: Tensor, bound: float) -> bool:
    """Compares one tensor with the bound, in blocks, so that no array of the tensor's size is written."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    limit = torch.tensor(bound, dtype=dtype, device=tensor.device)
    rows = tensor.reshape(-1) if tensor.is_contiguous() or tensor.ndim == 0 else tensor
    blocks = (block for block in rows.split(_BLOCK) if block.numel())
    return any(not bool((block.abs().to(limit.dtype) >= limit).all()) for block in blocks)
