"""Where the time of a PyTorch step goes on the CPU: part by part, in the readable way and by default.

    python -m benchmarks.step_profile --output docs/step_time

writes `profile.md`. One thread; each way steps alone, on parameters of its own.
"""

import argparse
from pathlib import Path

from examples.command import answer_early, one_of, positive_int


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile", description=__doc__)
    parser.add_argument(
        "--problem",
        type=one_of(lambda: PROBLEMS),
        metavar="NAME",
        action="append",
        help="default: gpt2, lora, four and thirty",
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=9, help="how many steps to measure (default: 9)"
    )
    parser.add_argument("--output", type=Path, help="the folder to write profile.md to")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "jax", "rich"))

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.step_time import problems
from benchmarks.step_time.members import MEMBERS
from benchmarks.step_time.plan import Variant
from benchmarks.step_time.problems import Problem
from benchmarks.step_time.row_steps import FOUR, SHAPES, THIRTY
from benchmarks.step_time.store import environment
from benchmarks.step_time.tables import table
from benchmarks.step_time.torch_side import TorchSide
from emo_torch import _kernels as _fused
from emo_torch._kernels.job import FUNCTIONS
from examples.progress import track

PROBLEMS = {
    **problems.PROBLEMS,
    "four": Problem(FOUR, SHAPES[FOUR], more_rounds=50),
    "thirty": Problem(THIRTY, SHAPES[THIRTY], more_rounds=20),
}
WAYS = {"one by one": False, "the default": None}
"""The ways to step, by the value of `foreach`: the readable reference, and compiled code."""
PARTS = ("look", "feel", "move", "in C")
HEAD = (
    *("optimizer", "tensors", "way", "a step, ms", "look at tensors", "feel the loss", "move the tensors"),
    *("of that in compiled C", "the rest"),
)
MEASURED = ("emo_sens", "emo_cats", "emo_airy")
WARM = 8
"""How many steps come first: plans are made at the third, and the job is kept after the fifth."""


class Row(NamedTuple):
    """The time of a step, in seconds: the whole step, and each of `PARTS`."""

    make: str
    problem: str
    way: str
    whole: float
    parts: dict[str, float]

    def cells(self) -> tuple[str, ...]:
        """Returns the row of the table."""
        parts = self.parts
        rest = self.whole - parts["look"] - parts["feel"] - parts["move"]
        shares = (f"{1e3 * part:.3g} ({part / self.whole:.0%})" for part in (*parts.values(), rest))
        return (
            *(MEMBERS[self.make].title, PROBLEMS[self.problem].title, self.way),
            *(f"{1e3 * self.whole:.3g}", *shares),
        )


@contextmanager
def watched(optimizer: Any, spent: dict[str, float]) -> Iterator[None]:
    """Adds the times of the parts of an optimizer's steps to `spent`, in seconds."""

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[part] += time.perf_counter() - start

        return call

    methods = {
        "_known_tensors": "look",
        "_collect": "look",
        "update_memory": "feel",
        "step_tensors": "move",
    }
    watches = [
        mock.patch.object(optimizer, name, timed(part, getattr(optimizer, name)))
        for name, part in methods.items()
    ]
    library = _fused.library()
    if library is not None:
        name = FUNCTIONS[torch.float32]
        compiled = timed("in C", getattr(library.handle, name))
        watches.append(mock.patch.object(library.handle, name, compiled))
    for watch in watches:
        watch.start()
    try:
        yield
    finally:
        for watch in reversed(watches):
            watch.stop()


def measure(make: str, name: str, problem: Problem, way: str, rounds: int) -> Row:
    """Measures the steps of one optimizer in one way: medians over rounds."""
    variant = Variant(way, make, MappingProxyType({"foreach": WAYS[way]}))
    optimizer: Any = TorchSide(problem, "cpu", threads=1).runner(variant).optimizer
    loss = torch.tensor(2.0)
    for _ in range(WARM):
        optimizer.step(loss=loss)
    wholes: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(rounds * problem.more_rounds):
        spent = dict.fromkeys(PARTS, 0.0)
        with watched(optimizer, spent):
            start = time.perf_counter()
            optimizer.step(loss=loss)
            wholes.append(time.perf_counter() - start)
        for part, seconds in spent.items():
            parts[part].append(seconds)
    medians = {part: statistics.median(seconds) for part, seconds in parts.items()}
    return Row(make, name, way, statistics.median(wholes), medians)


def report(rows: list[Row], rounds: int) -> str:
    """Returns the page."""
    machine = "; ".join(f"{name} {value}" for name, value in environment().items() if "jax" not in name)
    return "\n\n".join(
        [
            "# Where a step's time goes",
            "Written by `python -m benchmarks.step_profile`.",
            f"PyTorch on the CPU, one thread. Milliseconds, medians of {rounds} steps (50 and 20 times as "
            "many with 4 and 30 tensors), and their share of the step. One by one is the readable "
            "reference, which calls PyTorch for every operation on every tensor; the default is compiled "
            f"C. Machine and versions: {machine}.",
            table(HEAD, (row.cells() for row in rows), left=3),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes."""
    parser = options()
    given = parser.parse_args(arguments)
    problems = given.problem or ["gpt2", "lora", "four", "thirty"]
    jobs = [(make, name, way) for name in problems for make in MEASURED for way in WAYS]
    console = Console()
    rows = [
        measure(make, name, PROBLEMS[name], way, given.rounds)
        for make, name, way in track(jobs, "profiling", console=console, transient=True)
    ]
    page = report(rows, given.rounds)
    console.print(Markdown(page))
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "profile.md").write_text(page + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
