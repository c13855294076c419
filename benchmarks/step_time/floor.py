"""The floor: a kernel that only touches the memory that a step has to read and write."""

import ctypes
import functools
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.step_time.problems import Arrays
from emo_torch.build import BuildError, compile_shared

SOURCE = Path(__file__).with_name("floor.c")


@functools.cache
def touch_function() -> "ctypes._NamedFuncPointer | None":
    """Returns the compiled kernel, or `None` where there is no compiler."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "floor.so"
            compile_shared(SOURCE, target, ("-march=native", "-mprefer-vector-width=512"))
            library = ctypes.CDLL(str(target))
    except (BuildError, OSError):
        return None
    touch = library.touch
    touch.restype = None
    touch.argtypes = [
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
        *(ctypes.c_int32, ctypes.c_int32, ctypes.c_float, ctypes.c_int32),
    ]
    return touch


class Floor:
    """Streams of a problem's shapes, and a kernel over them.

    Args:
        grads: the array that is only read.
        streams: the arrays that are read and written, 1 to 4 of them.
        threads: the number of threads.
        before: how many streams a pass before that reads; one more than there are for the gradient, too.

    Raises:
        RuntimeError: where there is no compiler.
    """

    def __init__(self, grads: Arrays, streams: list[Arrays], threads: int, before: int = 0) -> None:
        touch = touch_function()
        if touch is None:
            raise RuntimeError("There is no C compiler here, and so no floor")
        self._touch = touch
        self._kept = (grads, streams)
        self._reads = _addresses(grads)
        self._writes = _addresses([array for stream in streams for array in stream])
        self._ends = np.cumsum([array.size for array in grads], dtype=np.int64)
        self._counts = len(grads), len(streams)
        self._threads, self._before = threads, before

    def touch(self, scale: float = 0.0) -> None:
        """Adds `scale` times the gradient to every stream; with 0 the same memory moves."""
        tensors, streams = self._counts
        pointers = (self._reads.ctypes.data, self._writes.ctypes.data, self._ends.ctypes.data)
        self._touch(*pointers, tensors, streams, self._before, scale, self._threads)


def _addresses(arrays: Arrays) -> "np.ndarray[tuple[int], np.dtype[np.uintp]]":
    return np.array([array.ctypes.data for array in arrays], dtype=np.uintp)
