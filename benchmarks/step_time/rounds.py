"""Interleaved rounds: everyone in turn, in another order each time, and a watch on who else is at work."""

import gc
import math
import os
import random
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

STAT = Path("/proc/stat")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
BUSY = 0.15
"""Cores that others may use in a round without spoiling it."""
WINDOW = 0.4
"""Seconds over which that is measured at least; the system counts in hundredths."""
FIRST_LOSS = 3.0


class Runner(Protocol):
    """One variant, held in memory."""

    def prepare(self, size: float | None) -> None:
        """Gets ready for a step at which the emotion scalar has this size."""

    def run(self) -> None:
        """Takes one step, to its very end; only this is timed."""

    def check(self, size: float | None) -> None:
        """Raises a `RuntimeError` if the step was not of the kind that was asked for."""

    def move(self) -> None:
        """Puts what it steps elsewhere in memory, if where that lies decides how long a step takes."""


class Row(NamedTuple):
    """What one line of a table shows.

    Attributes:
        key: its name.
        runner: the variant.
        size: the size of the emotion scalar.
    """

    key: str
    runner: Runner
    size: float | None


class Timing(TypedDict):
    """What was measured.

    Attributes:
        seconds: for each row the seconds of its step in each round.
        external: for each round how many cores others used, where that could be known.
    """

    seconds: dict[str, list[float]]
    external: list[float | None]


def loss_for(short: float, long: float, size: float) -> float:
    """Returns a falling loss that makes the emotion scalar -size, with the defaults' factors and gain.

    Args:
        short: the short average before it.
        long: the long average before it.
        size: |s|, in [0, 1).

    Example:
        >>> import math
        >>> from benchmarks.step_time.rounds import loss_for
        >>> loss = loss_for(3.0, 3.0, 0.4)
        >>> short, long = 0.3 * loss + 0.7 * 3.0, 0.01 * loss + 0.99 * 3.0
        >>> round(math.tanh(5 * (short - long)), 6)
        -0.4
    """
    difference = math.atanh(-size) / 5.0
    return (difference - 0.7 * short + 0.99 * long) / 0.29


def check_emotion(name: str, scalar: float, ratio: float, size: float, *, shadow: bool) -> None:
    """Raises a `RuntimeError` if a step was not at the scalar asked for, or did not blend there."""
    if abs(abs(scalar) - size) > 0.01:
        raise RuntimeError(f"{name} stepped at an emotion scalar of {scalar:.3f}, not at a size of {size}")
    if (ratio > 0.0) != (shadow and size > 0.1):
        raise RuntimeError(
            f"{name} blended with a ratio of {ratio:.3f} at an emotion scalar of {scalar:.3f}"
        )


class Watch:
    """Tells how many cores other processes used since it last told."""

    def __init__(self) -> None:
        self._last = self._read()

    @staticmethod
    def _read() -> tuple[float, float | None]:
        """Returns the time, and the processor time of all others together."""
        busy: float | None = None
        if STAT.exists():
            ticks = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:8]]
            user, nice, system, _idle, _wait, interrupt, soft = ticks
            own = resource.getrusage(resource.RUSAGE_SELF)
            busy = (user + nice + system + interrupt + soft) / TICKS - own.ru_utime - own.ru_stime
        return time.perf_counter(), busy

    def elapsed(self) -> float:
        """Returns the seconds since it last told."""
        return time.perf_counter() - self._last[0]

    def tell(self) -> float | None:
        """Returns the cores that others used, or `None` where the system does not count."""
        (start, before), (end, after) = self._last, self._read()
        self._last = end, after
        if before is None or after is None:
            return None
        return round(max(0.0, after - before) / (end - start), 3)


def is_quiet(external: float | None) -> bool:
    """Returns whether a round counts: nobody else was at work, or nobody can tell."""
    return external is None or external <= BUSY


def warm_up(rows: Sequence[Row]) -> None:
    """Takes a first step, for compilation and state, and one of each kind that will be timed."""
    for runner in {id(row.runner): row.runner for row in rows}.values():
        runner.prepare(None)
        runner.run()
    for row in rows:
        if row.size is None:
            continue
        # Twice: the first time that a shadow would blend, it is made.
        for _ in range(2):
            row.runner.prepare(row.size)
            row.runner.run()
        row.runner.check(row.size)


def measure(
    rows: Sequence[Row], rounds: int, seed: int, advance: Callable[[], None] = lambda: None
) -> Timing:
    """Times every row once a round, in shuffled order.

    Args:
        rows: what to time, warmed up.
        rounds: how many quiet rounds to wait for; there are at most twice as many in all.
        seed: for the order.
        advance: called after every round.

    Returns:
        The seconds of every row in every round, and who else was at work.
    """
    timing = Timing(seconds={row.key: [] for row in rows}, external=[])
    order, source = list(rows), random.Random(seed)
    gc.collect()
    gc.disable()
    try:
        watch, pending, count = Watch(), 0, 0
        while count < 2 * rounds and sum(map(is_quiet, timing["external"])) + pending < rounds:
            if count:
                for runner in {id(row.runner): row.runner for row in rows}.values():
                    runner.move()
            source.shuffle(order)
            for row in order:
                row.runner.prepare(row.size)
                start = time.perf_counter()
                row.runner.run()
                timing["seconds"][row.key].append(time.perf_counter() - start)
                row.runner.check(row.size)
            advance()
            count += 1
            pending += 1
            if watch.elapsed() >= WINDOW:
                timing["external"] += [watch.tell()] * pending
                pending = 0
        # Too short a rest to tell is as what was before it.
        timing["external"] += (timing["external"][-1:] or [None]) * pending
    finally:
        gc.enable()
    return timing
