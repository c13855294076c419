"""How close is equal: every bound of the comparisons, in one place, with its reason.

A bound is met by a value `a` against a reference `b` where `|a - b| <= absolute + relative * |b|`.
"""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """A bound on a difference: `absolute + relative * |reference|`."""

    absolute: float
    relative: float


RECORDING = {
    # The figures of the published code in float64; only the order of additions differs.
    "float64": Tolerance(absolute=1e-12, relative=0.0),
    # The published code keeps its averages in Python's float64 and the rest in float32; ours keeps
    # all of it in float32.
    "float32": Tolerance(absolute=1e-5, relative=0.0),
}

LOCKSTEP = {
    # XLA contracts products and sums into one rounding, PyTorch does not.
    "float64": Tolerance(absolute=1e-12, relative=1e-12),
    # The same in float32; the absolute part is for values that pass through 0.
    "float32": Tolerance(absolute=1e-6, relative=1e-5),
}
