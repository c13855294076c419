"""The arithmetic of a step with narrow moments, on numbers that stay in the cache: no memory traffic."""

import ctypes
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from emo_torch import _kernels
from emo_torch._kernels.codes import codes
from emo_torch.build import LEVELS, BuildError, compile_shared

SOURCE = Path(__file__).with_name("parts.c")
PARTS = ("decoding", "rule", "encoding", "coded step", "narrow step")
"""The parts of parts.c, in the order of its `enum`."""


@functools.cache
def _function() -> "ctypes._NamedFuncPointer | None":
    """Returns the compiled parts, with the flags of the library's level; `None` without a compiler."""
    found = _kernels.library()
    if found is None:
        return None
    flags = LEVELS[list(LEVELS)[found.handle.emo_use_level(-1)]][0]
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "parts.so"
            compile_shared(SOURCE, target, (*flags, "-fwhole-program"))
            function = ctypes.CDLL(str(target)).emo_part
    except (BuildError, OSError):
        return None
    function.restype = None
    function.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return function


def part(name: str, rule: str, count: int) -> Callable[[], None] | None:
    """Returns a function that runs a part for so many elements; `None` without a compiler.

    Args:
        name: a name in `PARTS`.
        rule: the rule of the step, "uncorrected_adam" or "lion".
        count: the number of elements.
    """
    function = _function()
    if function is None:
        return None
    tables = codes()
    given = (PARTS.index(name), _kernels.RULES.index(rule), count, ctypes.addressof(tables))
    return lambda: function(*given)
