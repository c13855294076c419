"""Finds where tensors lie and what they are, many at once, by the standard for that: DLPack."""

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]
Find = Callable[[list[Tensor], Numbers | None], Numbers | None]
"""Finds tensors by their hints, or without."""
PLAIN = {Tensor, torch.nn.Parameter}
"""The types of which it is known what they are; a tensor of another may be anything."""

# What can be understood of DLPack.
_MAJOR_VERSION = 1


class _Exchange(ctypes.Structure):
    """DLPack's table of functions."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("managed_to_object", ctypes.c_void_p),
        ("describe", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


def finder(handle: ctypes.CDLL) -> Find | None:
    """Returns what finds tensors; `None` where torch has no such function.

    Args:
        handle: the compiled code.

    Returns:
        A function of tensors, and of their `hints` or `None`. What it returns has a column for each, and
        as rows: where it lies; how many rows and columns it has as a matrix, or its elements and 0 where
        it is none; and a number for its dtype, -1 for what is not contiguous or not in the CPU's memory.
        It returns `None` if that cannot be said.
    """
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    exchange = _Exchange.from_address(pointer_of(capsule, b"dlpack_exchange_api"))
    if exchange.major != _MAJOR_VERSION or not exchange.describe:
        return None
    # It must not run beside other threads of Python.
    code = ctypes.PyDLL(handle._name, handle=handle._handle).emo_find
    code.restype = ctypes.c_int
    place = ctypes.c_void_p
    code.argtypes = (place, place, ctypes.c_int64, place, place)

    def find(tensors: list[Tensor], hints: Numbers | None) -> Numbers | None:
        if not set(map(type, tensors)) <= PLAIN:
            return None
        held = np.fromiter(tensors, object, len(tensors))
        found = np.empty((4, len(tensors)), np.int64)
        near = None if hints is None else hints.ctypes.data
        try:
            done = code(exchange.describe, held.ctypes.data, len(tensors), found.ctypes.data, near)
        except (RuntimeError, BufferError):
            return None  # There is no memory that it could name.
        return found if done else None

    return find


def hints(tensors: list[Tensor]) -> Numbers:
    """Returns where torch keeps what it knows of tensors, which makes finding them again quicker."""
    places = [[tensor._cdata, tensor.untyped_storage()._cdata] for tensor in tensors]
    return np.array(places, np.int64).T.copy()
