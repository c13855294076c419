"""How close is equal: every bound of the comparisons, in one place, with its reason.

A value `a` is within the bound of a reference `b` where `|a - b| <= absolute + relative * |b|`, or where
the two are at most `ulp` units of the last place apart. Whole numbers and booleans are decisions, and
must be equal.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Tolerance(NamedTuple):
    """A bound on a difference.

    Attributes:
        absolute: added to the relative part.
        relative: in units of the reference.
        ulp: in units of the last place of the reference.
        equal: the share of values that must be equal to the last bit, in [0, 1].
    """

    absolute: float
    relative: float
    ulp: float = 0.0
    equal: float = 0.0


RECORDING = {
    # The figures of the published code in float64; only the order of additions differs.
    "float64": Tolerance(absolute=1e-12, relative=0.0),
    # The published code keeps its averages in Python's float64 and the rest in float32; ours keeps
    # all of it in float32.
    "float32": Tolerance(absolute=1e-5, relative=0.0),
}

RECORDING_OF_ONE = {
    # Its second moments were float32 in the published code, whatever its parameters were.
    ("EmoClan", "float64"): Tolerance(absolute=1e-7, relative=0.0),
    # The published code takes the root of second moments in float32, and injected moments over small
    # roots make more of the difference.
    ("RefAdamWMiniScheduleFree", "float64"): Tolerance(absolute=1e-7, relative=0.0),
}

LOCKSTEP = {
    # XLA contracts products and sums into one rounding, PyTorch does not.
    "float64": Tolerance(absolute=1e-12, relative=1e-12),
    # The same in float32; the absolute part is for values that pass through 0.
    "float32": Tolerance(absolute=1e-6, relative=1e-5),
    # Both compute in float32 and round the update once, so a difference in the seventh digit shows
    # only where it crosses a rounding of bfloat16; there it is one unit, and may meet another.
    "bfloat16": Tolerance(absolute=0.0, relative=0.0, ulp=2.0, equal=0.8),
}

MOMENTS = {
    "float64": LOCKSTEP["float64"],
    "float32": LOCKSTEP["float32"],
    # Moments of bfloat16 parameters are float32, and see the same gradients on both sides.
    "bfloat16": LOCKSTEP["float32"],
}

SHADOW = {
    "float64": LOCKSTEP["float64"],
    "float32": LOCKSTEP["float32"],
    # A float32 average of bfloat16 parameters, which may be two of their units apart: 2 * 2^-8.
    "bfloat16": Tolerance(absolute=1e-6, relative=2.0**-7),
}

COMPENSATED = {
    # The sum of a bfloat16 parameter and what rounding kept back of it. That is at most half a unit, and
    # rounded itself once a step: it may fall on the other side some times, by 2^-17 of the parameter.
    "bfloat16": Tolerance(absolute=2.0**-14, relative=2.0**-14),
}


NORM = {
    # What EmoTion keeps of a sum is the difference of two sums that agree in five to seven digits, and the
    # next kept number is divided by that difference: their last digits are in no dtype those of the sums.
    "float64": Tolerance(absolute=1e-12, relative=1e-7),
    "float32": Tolerance(absolute=1e-6, relative=1.0),
    "bfloat16": Tolerance(absolute=1e-6, relative=1.0),
}
"""The bound of the kept sums of norms; the parameters, which they move, have the bounds of all others."""


FOLLOWING = {
    "float64": LOCKSTEP["float64"],
    "float32": LOCKSTEP["float32"],
    # With weight decay in the gradient, moments take in a hundredth of a bfloat16 parameter, which
    # may be two units apart: 0.01 * 2^-7 of parameters up to 8, and as much of the moment itself.
    "bfloat16": Tolerance(absolute=1e-3, relative=2.0**-7),
}


CLOSED_LOOP = {
    # Each framework takes its own gradients, so roundings feed back. Some hundred steps let them grow
    # a hundredfold; where a filter or a sign stands on its threshold, one weight takes another step. How
    # long float32 is held to it, on every processor, stands in `closed_loop.FLOAT32_EPOCHS`.
    "float64": Tolerance(absolute=1e-12, relative=1e-10),
    "float32": Tolerance(absolute=1e-5, relative=1e-3),
}
"""The band in which the losses of two trainings must lie."""

VISIBLE = {"float64": 2.0**-50, "float32": 2.0**-21}
"""The difference of a weight beyond which rounding counts as visible: four units of the last place of 1."""


def recording(optimizer: str, dtype: str) -> Tolerance:
    """Returns the bound for a recorded run of an optimizer."""
    return RECORDING_OF_ONE.get((optimizer, dtype), RECORDING[dtype])


def bound(leaf: str, dtype: str, options: Mapping[str, Any]) -> Tolerance:
    """Returns the bound for a leaf, by its name, in a run of a dtype with some options."""
    if leaf.startswith("param/"):
        return LOCKSTEP[dtype]
    if leaf == "norm/kept":
        return NORM[dtype]
    if options.get("weight_decay_mode") == "l2" and not leaf.startswith(
        ("emotion/", "divergence/", "pulse/", "shadow/")
    ):
        return FOLLOWING[dtype]
    if leaf.startswith("compensated/"):
        return COMPENSATED[dtype]
    return SHADOW[dtype] if leaf.startswith("shadow/") else MOMENTS[dtype]
