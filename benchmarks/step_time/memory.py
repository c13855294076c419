"""How much memory a call takes while it runs, in any library."""

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def give_back() -> None:
    """Gives pages that were freed, but kept by the allocator, back to the system."""
    with contextlib.suppress(OSError, AttributeError):  # Not every C library can.
        ctypes.CDLL(None).malloc_trim(0)


def peak_growth(call: Callable[[], None]) -> int | None:
    """Returns by how many bytes the memory of this process grows at most during a call.

    The kernel counts pages, so that compiled code's allocations are seen as well as a framework's.
    Pages that were freed but kept by the allocator would hide some: they are given back before.

    Args:
        call: the function to run.

    Returns:
        The bytes, good to some pages; `None` where that cannot be known (no Linux).

    Example:
        >>> from benchmarks.step_time.memory import peak_growth
        >>> grown = peak_growth(lambda: None)
        >>> grown is None or grown < 2**20
        True
    """
    if not sys.platform.startswith("linux"):
        call()
        return None
    give_back()
    try:
        RESET.write_text("5")  # The high-water mark falls to what is in use now.
    except OSError:
        call()
        return None
    before = _high_water()
    call()
    return _high_water() - before


def _high_water() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
