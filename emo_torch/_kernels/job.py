"""The job of compiled code, as a structure of C, and the library that carries it out."""

import ctypes
import functools
import logging
import os
from typing import NamedTuple

import torch

from emo_torch._kernels.find import Finder, finder
from emo_torch._kernels.loader import REMEDY, load_library

logger = logging.getLogger("emo_torch")

JOB_VERSION = 7
"""Goes up with each change of `Job`. A library with another `JOB_VERSION` is not used."""
FUNCTIONS = {torch.float32: "emo_step_float", torch.float64: "emo_step_double"}
"""The function that carries out a job, by the dtype of the computation."""
NARROW = (torch.bfloat16, torch.float16)
"""The dtypes that compiled code copies to float32, in the order of the `enum` in cpu.c."""
DTYPES = (*FUNCTIONS, *NARROW)
"""The dtypes of the parameters that compiled code can step."""


def kind_of(dtype: torch.dtype) -> int:
    """Returns the number of a dtype in compiled code; 0 is the dtype of the computation."""
    if dtype == torch.uint8:
        return len(NARROW) + 1  # Moments in 8 bits.
    return NARROW.index(dtype) + 1 if dtype in NARROW else 0


class Rule(ctypes.Structure):
    """The structure `Rule` of cpu.c."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("b1", ctypes.c_double),
        ("b2", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("first_kind", ctypes.c_int64),
        ("second_kind", ctypes.c_int64),
        ("first_scales", ctypes.c_void_p),
        ("second_scales", ctypes.c_void_p),
    )


class Job(ctypes.Structure):
    """The structure `Job` of cpu.c: all that one call of compiled code reads."""

    _fields_ = (
        ("tensors", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("grads", ctypes.c_void_p),
        ("shadows", ctypes.c_void_p),
        ("shadows_exist", ctypes.c_void_p),
        ("tolerance", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("ratio", ctypes.c_void_p),
        ("lr", ctypes.c_void_p),
        ("weight_decay", ctypes.c_double),
        ("shadow_rate", ctypes.c_double),
        ("mode", ctypes.c_int64),
        ("maximize", ctypes.c_int64),
        ("filter", ctypes.c_int64),
        ("rules", ctypes.c_int64),
        ("chosen", ctypes.c_void_p),
        ("rule", Rule * 3),
        ("first_steps", ctypes.c_int64),
        ("chosen_first", ctypes.c_void_p),
        ("first_step", ctypes.c_int64 * 3),
        ("norms", ctypes.c_void_p),
        ("share", ctypes.c_void_p),
        ("norm_factor", ctypes.c_double),
        ("least_lr", ctypes.c_double),
        ("most_lr", ctypes.c_double),
        ("injection_bound", ctypes.c_double),
        ("param_kind", ctypes.c_int64),
        ("grad_kind", ctypes.c_int64),
        ("rounding", ctypes.c_int64),
        ("compensations", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("trusts", ctypes.c_int64),
        ("weights", ctypes.c_double),
        ("pilot", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
    )


class Library(NamedTuple):
    """The compiled code, the process that loaded the code, and the code's finder of tensors."""

    handle: ctypes.CDLL
    process: int
    finder: Finder | None = None


@functools.cache
def library() -> Library | None:
    """Returns the compiled code, loaded at the first call; `None` if there is no compiled code."""
    handle = load_library()
    if handle is None:
        return None
    complaint = _mismatch(handle)
    if complaint:
        logger.warning(
            "Stepping without compiled code, which takes longer: the library has another version (%s). %s.",
            complaint,
            REMEDY,
        )
        return None
    for name in FUNCTIONS.values():
        function = getattr(handle, name)
        function.argtypes = (ctypes.POINTER(Job),)
        function.restype = ctypes.c_int
    return Library(handle, os.getpid(), finder(handle))


def _mismatch(handle: ctypes.CDLL) -> str:
    """Returns how a library differs from the structures in this file; "" if it does not differ."""
    expected = {
        "emo_job_version": JOB_VERSION,
        "emo_job_size": ctypes.sizeof(Job),
        "emo_rule_size": ctypes.sizeof(Rule),
    }
    for name, value in expected.items():
        try:
            function = getattr(handle, name)
        except AttributeError:
            return f"{handle._name} has no function {name}"
        function.argtypes, function.restype = (), ctypes.c_int64
        if function() != value:
            return f"{handle._name} has {name}={function()}, and this version of emo_torch needs {value}"
    return ""
