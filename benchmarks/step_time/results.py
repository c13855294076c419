"""The measured times by row, and the ratios of two rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.step_time.plan import (
    GROUPS,
    Cell,
    Variant,
)
from benchmarks.step_time.rounds import is_quiet
from benchmarks.step_time.store import Found, Store

Place = tuple[str, str, str, int]
"""A framework, a device, a problem and a number of threads."""


class Ratio(NamedTuple):
    """How a row's time compares with another's in the same rounds.

    Attributes:
        median: the median of the ratios.
        lower: their first quartile.
        upper: their third quartile.
        rounds: how many rounds.
        is_quiet: whether they were quiet, all of them.
    """

    median: float
    lower: float
    upper: float
    rounds: int
    is_quiet: bool

    def __str__(self) -> str:
        mark = "" if self.is_quiet else "*"
        return f"{self.median:.3g}{mark} [{self.lower:.3g}, {self.upper:.3g}]"


def chosen_rounds(found: Found, wanted: int) -> list[int]:
    """Returns the rounds that count: the quiet rounds, or all rounds if too few are quiet."""
    external = found["external"]
    quiet = [index for index, cores in enumerate(external) if is_quiet(cores)]
    return quiet if len(quiet) >= wanted else list(range(len(external)))


def ratio(found: Found, row: str, against: str, wanted: int) -> Ratio:
    """Returns how one row compares with another, round by round.

    Args:
        found: the result of their cell.
        row: the row.
        against: the row that it is divided by.
        wanted: how many quiet rounds were asked for.
    """
    rounds = chosen_rounds(found, wanted)
    times, others = (np.array(found["seconds"][name])[rounds] for name in (row, against))
    lower, median, upper = np.quantile(times / others, [0.25, 0.5, 0.75])
    quiet = all(is_quiet(found["external"][index]) for index in rounds)
    return Ratio(float(median), float(lower), float(upper), len(rounds), quiet)


class Line(NamedTuple):
    """A row of a table, wherever it was measured.

    Attributes:
        variant: the measured variant.
        size: the size of the emotion scalar.
        key: the row's name.
        group: the name of the group that counts for it.
    """

    variant: Variant
    size: float | None
    key: str
    group: str


def lines(framework: str) -> list[Line]:
    """Returns the lines of a framework's tables, each once."""
    found: dict[str, Line] = {}
    for name, group in GROUPS[framework].items():
        for variant in group.variants:
            for key, size in variant.rows():
                found.setdefault(key, Line(variant, size, key, name))
    return list(found.values())


class Results:
    """The results, by cell and variant.

    Args:
        done: the cells that are finished.
        store: the results of the cells.
    """

    def __init__(self, done: Sequence[Cell], store: Store) -> None:
        self.done = list(done)
        self._store = store

    def found(self, cell: Cell) -> Found:
        """Returns the result of a cell."""
        return self._store.get(cell)

    def of_kind(self, kind: str) -> list[Cell]:
        """Returns the cells of a kind."""
        return [cell for cell in self.done if cell.kind == kind]

    def threads(self) -> list[int]:
        """Returns all numbers of threads."""
        return sorted({cell.threads for cell in self.done})

    def steps(self, framework: str, device: str, problem: str, threads: int, group: str) -> Cell | None:
        """Returns the cell of a group, if it is finished."""
        wanted = (framework, device, threads, "steps", problem, group)
        return next((cell for cell in self.done if cell[:-1] == wanted), None)

    def ratio(
        self, framework: str, device: str, problem: str, threads: int, key: str, against: str | None = None
    ) -> Ratio | None:
        """Returns how a row compares with its baseline, or with another row that ran beside it."""
        for name, group in GROUPS[framework].items():
            cell = self.steps(framework, device, problem, threads, name)
            seconds = self.found(cell)["seconds"] if cell else {}
            base = against or group.variants[0].name
            if cell and key in seconds and base in seconds:
                return ratio(self.found(cell), key, base, cell.rounds)
        return None
