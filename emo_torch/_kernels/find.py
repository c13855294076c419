"""Finds where tensors lie and what they are, many at once, by the standard for that: DLPack."""

import ctypes
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]
PLAIN = {Tensor, torch.nn.Parameter}
"""The types of which it is known what they are; a tensor of another may be anything."""

# What can be understood of DLPack.
_MAJOR_VERSION = 1

# What the compiled code answers where all is as it was, and the attribute that it asks for.
_KNOWN, _GRAD = 2, "grad"

_place, _count = ctypes.c_void_p, ctypes.c_int64
_object = ctypes.py_object


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


class _Python(ctypes.Structure):
    """Those of Python's functions that the compiled code calls, all of the stable interface."""

    _fields_ = (
        ("list_item", ctypes.c_void_p),
        ("set_list_item", ctypes.c_void_p),
        ("dict_item", ctypes.c_void_p),
        ("dict_next", ctypes.c_void_p),
        ("attribute", ctypes.c_void_p),
        ("type_of", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("none", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("plain", ctypes.c_void_p * len(PLAIN)),
    )


class StateIdentity:
    """Which parameter has which state, in the order of an optimizer's state; it keeps neither alive.

    Args:
        state: an optimizer's state.
    """

    def __init__(self, state: dict[Any, Any]) -> None:
        self.params, self.states = identities(state), identities(state.values())
        self.places = places_of(self.params, self.states)


class TensorAddresses:
    """The addresses of a group's tensors, and what it takes to find the tensors again.

    Args:
        group: all of the group's parameters.
        params: those of them that have a gradient.
        names: for each name a list of what it is in each of their states; it must live as long as this.
        prefetch: the `prefetch_addresses` of these tensors.
        found: what was found: of `params`, of what stands in their states by `names`, and of gradients.

    Attributes:
        found: what was found the last time.
        many: how many parameters have a gradient.
    """

    def __init__(
        self,
        group: list[Tensor],
        params: list[Tensor],
        names: list[list[str]],
        prefetch: Numbers,
        found: Numbers,
    ) -> None:
        self.found, self.many, self.rows = found, len(params), len(names)
        self.group = identities(group)
        self.found_now = np.empty_like(found)
        self._kept = (
            self.group,
            np.array([param.grad is not None for param in group]),
            np.array([identities(own) for own in names], np.int64).reshape(len(names), len(params)),
            prefetch,
            np.empty(found.shape[1], np.int64),
            found,
            self.found_now,
        )
        # Asked for once: that takes longer than many a tensor.
        self.places = places_of(*self._kept)


def identities(objects: Any) -> Numbers:
    """Returns what tells objects that live from each other."""
    return np.fromiter(map(id, objects), np.int64, len(objects))


def places_of(*arrays: NDArray[Any]) -> tuple[int, ...]:
    """Returns where arrays lie, which must live as long as that is used."""
    return tuple(int(array.ctypes.data) for array in arrays)


class Finder:
    """Finds tensors with compiled code, which looks at Python's objects for itself.

    What it returns has a column for each tensor, and as rows: where it lies; how many rows and columns it
    has as a matrix, or its elements and 0 where it is none; and a number for its dtype and shape, -1 for
    what is not contiguous or not in the CPU's memory. It returns `None` if that cannot be said of all.

    Args:
        handle: the compiled code.
        describe: DLPack's function for that, of torch.
    """

    def __init__(self, handle: ctypes.CDLL, describe: int) -> None:
        self._describe = describe
        api = ctypes.pythonapi
        functions = (
            *(api.PyList_GetItem, api.PyList_SetItem, api.PyDict_GetItem, api.PyDict_Next),
            *(api.PyObject_GetAttr, api.PyObject_Type, api.Py_DecRef),
        )
        at = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
        plain = (ctypes.c_void_p * len(PLAIN))(*map(id, PLAIN))
        self._python = _Python(*at, id(None), id(_GRAD), plain)
        self._at_python = ctypes.addressof(self._python)
        # None of it must run beside other threads of Python.
        library = ctypes.PyDLL(handle._name, handle=handle._handle)
        self._find, self._gather = library.emo_find, library.emo_gather
        self._gradients, self._is_dict = library.emo_gradients, library.emo_is_dict
        self._find.argtypes = (_place, _place, _place, _count, _place, _place, _place)
        self._gather.argtypes = (_place, _object, _object, _object, _count, _place, _count, _place)
        self._gradients.argtypes = (
            _place,
            _object,
            _place,
            _place,
            _count,
            _object,
            _count,
            _place,
            _count,
        )
        self._is_dict.argtypes = (_place, _object, _place, _place, _count)

    def find(self, tensors: list[Tensor]) -> Numbers | None:
        """Finds any tensors."""
        held = np.fromiter(tensors, object, len(tensors))
        found = np.empty((4, len(tensors)), np.int64)
        at_held, at_found = places_of(held, found)
        given = (self._at_python, self._describe, at_held, len(tensors), at_found, None, None)
        try:
            return found if self._find(*given) else None
        except (RuntimeError, BufferError):
            return None  # There is no memory that DLPack could name.

    def gradients(self, before: TensorAddresses, params: list[Tensor]) -> list[Tensor] | None:
        """Returns the gradients of a group's parameters; `None` where others are in it, or have one."""
        # A group may hold a tuple by now, which no function for lists may see.
        if not isinstance(params, list) or len(params) != len(before.group):
            return None
        grads: list[Any] = [None] * before.many
        group, had, _, prefetch, *_ = before.places
        given = (group, had, len(params), grads, before.many, prefetch, before.found.shape[1])
        return grads if self._gradients(self._at_python, params, *given) else None

    def find_again(
        self,
        before: TensorAddresses,
        params: list[Tensor],
        states: list[dict[str, Tensor]],
        grads: list[Tensor],
    ) -> Numbers | None:
        """Finds what was found before, or stands in its place.

        Args:
            before: what was found before.
            params: as many parameters as had a gradient then.
            states: their states.
            grads: their gradients.

        Returns:
            `before.found` where nothing has changed; else what the next search will write over.
        """
        _, _, names, prefetch, held, found, found_now = before.places
        if not self._gather(self._at_python, params, states, grads, before.many, names, before.rows, held):
            return None
        count = before.found.shape[1]
        try:
            answer = self._find(self._at_python, self._describe, held, count, found_now, prefetch, found)
        except (RuntimeError, BufferError):
            return None  # There is no memory that DLPack could name.
        return before.found if answer == _KNOWN else before.found_now if answer else None

    def is_same_state(self, state: dict[Any, Any], known: StateIdentity) -> bool:
        """Returns whether a state belongs to just those parameters, and is what it was."""
        count = len(state)
        return count == len(known.params) and bool(
            self._is_dict(self._at_python, state, *known.places, count)
        )


def finder(handle: ctypes.CDLL) -> Finder | None:
    """Returns what finds tensors; `None` where torch has no function for that, or Python no lock."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    exchange = _Exchange.from_address(pointer_of(capsule, b"dlpack_exchange_api"))
    if exchange.major != _MAJOR_VERSION or not exchange.describe:
        return None
    return Finder(handle, exchange.describe)


def prefetch_addresses(tensors: list[Tensor]) -> Numbers:
    """Returns where torch keeps what it knows of tensors, which makes finding them again quicker."""
    places = [[tensor._cdata, tensor.untyped_storage()._cdata] for tensor in tensors]
    return np.array(places, np.int64).T.copy()
