"""Finds the address, shape and dtype of many tensors in one call, by the standard DLPack."""

import ctypes
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]
PLAIN = {Tensor, torch.nn.Parameter}
"""The types of tensors that compiled code reads. A subclass may store its elements in another way."""

# The major version of DLPack that this file reads.
_MAJOR_VERSION = 1

# The answer of `emo_find` if nothing has changed, and the name of the attribute with the gradient.
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
    """The functions of Python's stable C interface that the compiled code calls."""

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
    """The identities of parameters and of their states, in the order of an optimizer's state.

    It stores numbers, and keeps no parameter and no state alive.

    Args:
        state: the state of an optimizer.
    """

    def __init__(self, state: dict[Any, Any]) -> None:
        self.params, self.states = identities(state), identities(state.values())
        self.places = places_of(self.params, self.states)


class TensorAddresses:
    """The addresses of a group's tensors, with the arrays that `Finder` needs to find the tensors again.

    Args:
        group: all parameters of the group.
        params: the parameters of the group that have a gradient.
        names: a list for each tensor in a state, with the name of the tensor in the state of each of
            `params`. The names must live as long as this object.
        prefetch: the `prefetch_addresses` of the tensors.
        found: the result of `Finder.find` for `params`, for the tensors in their states by `names`, and for
            the gradients, in this order.

    Attributes:
        found: the result of the last search.
        found_now: the array that the next search writes.
        many: the number of parameters that have a gradient.
        rows: the number of lists in `names`.
        group: the identities of all parameters of the group.
        places: the addresses of the arrays that compiled code reads.
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
        # Computed once: to ask NumPy for these addresses takes longer than to find many tensors.
        self.places = places_of(*self._kept)


def identities(objects: Any) -> Numbers:
    """Returns the identities of objects. Two objects that exist at the same time never share one."""
    return np.fromiter(map(id, objects), np.int64, len(objects))


def places_of(*arrays: NDArray[Any]) -> tuple[int, ...]:
    """Returns the addresses of arrays. The arrays must live as long as their addresses are used."""
    return tuple(int(array.ctypes.data) for array in arrays)


class Finder:
    """Finds tensors with compiled code, which reads Python's objects directly.

    A search returns an array with a column for each tensor, and four rows. Row 0 is the address of the
    tensor. Rows 1 and 2 are the rows and columns of the tensor as a matrix; a tensor below two dimensions
    has its number of elements in row 1, and 0 in row 2. Row 3 is a number for dtype and shape, or -1 for a
    tensor that is not contiguous or not in the CPU's memory. A search returns `None` if DLPack cannot
    describe all of the tensors.

    Args:
        handle: the compiled code.
        describe: the address of torch's DLPack function that describes a tensor.
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
        # `PyDLL` keeps Python's lock: no other thread of Python may run during these functions.
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
        """Returns the array for any tensors; `None` if one cannot be described."""
        held = np.fromiter(tensors, object, len(tensors))
        found = np.empty((4, len(tensors)), np.int64)
        at_held, at_found = places_of(held, found)
        given = (self._at_python, self._describe, at_held, len(tensors), at_found, None, None)
        try:
            return found if self._find(*given) else None
        except (RuntimeError, BufferError):
            return None  # A tensor without memory: DLPack cannot describe it.

    def gradients(self, before: TensorAddresses, params: list[Tensor]) -> list[Tensor] | None:
        """Returns the gradients of a group's parameters.

        Returns `None` if the group has other parameters than before, or other parameters have a gradient.
        """
        # Somebody may have put a tuple into the group: the compiled code reads lists only.
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
        """Searches the tensors of an earlier search again, or the tensors that have replaced them.

        Args:
            before: the addresses from the earlier search.
            params: the parameters; as many as had a gradient at the earlier search.
            states: the states of the parameters.
            grads: the gradients of the parameters.

        Returns:
            `before.found` if nothing has changed, and otherwise `before.found_now`, which the next search
            overwrites. `None` if a tensor is missing or cannot be described.
        """
        _, _, names, prefetch, held, found, found_now = before.places
        if not self._gather(self._at_python, params, states, grads, before.many, names, before.rows, held):
            return None
        count = before.found.shape[1]
        try:
            answer = self._find(self._at_python, self._describe, held, count, found_now, prefetch, found)
        except (RuntimeError, BufferError):
            return None  # A tensor without memory: DLPack cannot describe it.
        return before.found if answer == _KNOWN else before.found_now if answer else None

    def is_same_state(self, state: dict[Any, Any], known: StateIdentity) -> bool:
        """Returns whether a state has the parameters and the states of `known`, in the same order."""
        count = len(state)
        return count == len(known.params) and bool(
            self._is_dict(self._at_python, state, *known.places, count)
        )


def finder(handle: ctypes.CDLL) -> Finder | None:
    """Returns a finder; `None` if torch has no such function of DLPack, or Python has no global lock."""
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
    """Returns the addresses of torch's descriptions of tensors and of their storages, to prefetch them."""
    places = [[tensor._cdata, tensor.untyped_storage()._cdata] for tensor in tensors]
    return np.array(places, np.int64).T.copy()
