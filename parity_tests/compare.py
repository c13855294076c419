"""Differences between two runs, measured."""

from typing import NamedTuple

import numpy as np

from parity_tests.tolerances import Tolerance

Arrays = dict[str, np.ndarray]


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


def difference(value: np.ndarray, reference: np.ndarray, tolerance: Tolerance) -> Difference:
    """Measures one pair of arrays, which must agree in shape, and in dtype but for width.

    Whole numbers and booleans are decisions: there a difference has no bound.
    """
    if value.shape != reference.shape:
        raise AssertionError(f"shapes differ: {value.shape} and {reference.shape}")
    if value.dtype != reference.dtype:
        raise AssertionError(f"dtypes differ: {value.dtype} and {reference.dtype}")
    if value.size == 0:
        return Difference()
    if not np.issubdtype(value.dtype, np.floating):
        same = int(np.sum(value == reference))
        gap = float(np.max(np.abs(value.astype(np.float64) - reference.astype(np.float64))))
        return Difference(gap, gap, gap, same, value.size, 0.0 if same == value.size else np.inf)
    equal = (value == reference) | (np.isnan(value) & np.isnan(reference))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        a, b = value.astype(np.float64), reference.astype(np.float64)
        gap = np.where(equal, 0.0, np.abs(a - b))
        gap = np.where(np.isnan(gap), np.inf, gap)
        relative = np.where(gap == 0.0, 0.0, gap / np.abs(b))
        unit = np.spacing(np.abs(reference)).astype(np.float64)
        ulp = np.where(gap == 0.0, 0.0, gap / unit)
        excess = np.where(gap == 0.0, 0.0, gap / (tolerance.absolute + tolerance.relative * np.abs(b)))
    finite = relative[np.isfinite(relative)]
    return Difference(
        float(np.max(gap)),
        float(np.max(finite, initial=0.0)),
        float(np.max(ulp)),
        int(np.sum(equal)),
        value.size,
        float(np.max(excess)),
    )
