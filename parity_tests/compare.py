"""Differences between two runs, measured."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from parity_tests.tolerances import Tolerance


class Difference(NamedTuple):
    """How far apart two arrays, or many pairs of them, are.

    Attributes:
        absolute: the largest absolute difference.
        relative: the largest difference relative to the reference, where that is not 0.
        ulp: the largest difference in units of the last place of the reference.
        equal: how many values are equal to the last bit.
        values: how many values there are.
        excess: the largest difference in units of the bound; the bound is met where it is at most 1.
    """

    absolute: float = 0.0
    relative: float = 0.0
    ulp: float = 0.0
    equal: int = 0
    values: int = 0
    excess: float = 0.0

    def join(self, other: "Difference") -> "Difference":
        """Returns the difference of both pairs taken together."""
        return Difference(
            max(self.absolute, other.absolute),
            max(self.relative, other.relative),
            max(self.ulp, other.ulp),
            self.equal + other.equal,
            self.values + other.values,
            max(self.excess, other.excess),
        )


def with_sums(leaves: dict[str, Any]) -> dict[str, Any]:
    """Puts the sum of a parameter and its compensation in the place of the compensation.

    Kahan's summation keeps this sum. Where one side has gone a unit further than the other, which
    the bounds allow, the compensations are that unit apart, and the sums equal as before.
    """
    summed = {}
    for name, leaf in leaves.items():
        kind, _, param = name.partition("/")
        if kind == "compensation":
            summed[f"compensated/{param}"] = leaf + leaves[f"param/{param}"].astype(leaf.dtype)
        else:
            summed[name] = leaf
    return summed


def differences(value: Any, reference: Any, tolerance: Tolerance) -> list[Difference]:
    """Measures a leaf of two runs, step by step; the first axis of the arrays counts the steps.

    Whole numbers and booleans are decisions: there a difference has no bound.
    """
    if value.shape != reference.shape:
        raise AssertionError(f"shapes differ: {value.shape} and {reference.shape}")
    if value.dtype != reference.dtype:
        raise AssertionError(f"dtypes differ: {value.dtype} and {reference.dtype}")
    steps = value.shape[0]
    value, reference = value.reshape(steps, -1), reference.reshape(steps, -1)
    if value.size == 0:
        return [Difference()] * steps
    a, b = value.astype(np.float64), reference.astype(np.float64)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    is_number = jnp.issubdtype(value.dtype, jnp.floating)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        gap = np.where(equal, 0.0, np.abs(a - b))
        gap = np.where(np.isnan(gap), np.inf, gap)
        size = np.abs(b)
        relative = np.where((gap == 0.0) | (size == 0.0), 0.0, gap / size)
        unit = np.spacing(np.abs(reference)).astype(np.float64) if is_number else np.ones_like(b)
        allowed = np.maximum(tolerance.absolute + tolerance.relative * size, tolerance.ulp * unit)
        ulp = np.where(gap == 0.0, 0.0, gap / unit)
        excess = np.where(gap == 0.0, 0.0, gap / allowed if is_number else np.inf)
    columns = [gap.max(1), relative.max(1), ulp.max(1), equal.sum(1), excess.max(1)]
    return [
        Difference(float(most), float(rest), float(units), int(same), value.shape[1], float(over))
        for most, rest, units, same, over in zip(*columns, strict=True)
    ]
