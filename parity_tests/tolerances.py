"""How close is equal: every bound of the comparisons, in one place, with its reason.

A value `a` is within the bound of a reference `b` where `|a - b| <= absolute + relative * |b|`, or where
the two are at most `ulp` units of the last place apart. Whole numbers and booleans are decisions, and
must be equal.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

STEPS = 300


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
    # EmoTion keeps a sum times the relative difference of two sums that agree in five to sixteen digits,
    # and divides the next sum by that number: a rounding of a sum can be all of it, in any dtype. So the
    # number itself has no bound. Its effect on moments and parameters has their bounds. The same holds for
    # the scale that EmoVoid takes from it.
    dtype: Tolerance(absolute=math.inf, relative=1.0)
    for dtype in ("float64", "float32", "bfloat16")
}
"""The bound of the kept sums of norms; the parameters, which they move, have the bounds of all others."""


FOLLOWING = {
    "float64": LOCKSTEP["float64"],
    "float32": LOCKSTEP["float32"],
    # With weight decay in the gradient, moments take in a hundredth of a bfloat16 parameter, which
    # may be two units apart: 0.01 * 2^-7 of parameters up to 8, and as much of the moment itself.
    "bfloat16": Tolerance(absolute=1e-3, relative=2.0**-7),
}


STEERED = {
    "float64": LOCKSTEP["float64"],
    # The courage is a product of as many factors as there are steps, and is off by some units of the last
    # place of float32 at the end. A parameter that took steps of 0.5 has travelled a length of 100 by then,
    # and may stand near 0 again: 1e-6 of its way.
    "float32": Tolerance(absolute=1e-4, relative=1e-5),
    "bfloat16": SHADOW["bfloat16"],
}
"""The bound of the values that EmoPilot moves by steps of its own length."""

RELATIVE_EMOTION = {
    # A difference of averages in the unit of the loss's own noise, at least 1e-7 of the loss: where the
    # loss hardly changes, the last place of the averages is divided by 1e-7.
    "float64": Tolerance(absolute=1e-8, relative=0.0),
    "float32": Tolerance(absolute=1e-2, relative=0.0),
    "bfloat16": Tolerance(absolute=1e-2, relative=0.0),
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


def bound(leaf: str, dtype: str, options: Mapping[str, Any], memory: str = "emotion") -> Tolerance:
    """Returns the bound for a leaf, by its name, in a run of a dtype with some options.

    Args:
        leaf: the name of the leaf.
        dtype: of the parameters.
        options: of the run.
        memory: in which the member remembers the losses (see `family.Member`).
    """
    if leaf == "pilot/scalar":
        return RELATIVE_EMOTION[dtype]
    if leaf.startswith("average/") or (memory == "pilot" and leaf.startswith("param/")):
        return STEERED[dtype] if leaf.startswith("average/") or dtype == "float32" else LOCKSTEP[dtype]
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
