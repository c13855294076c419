"""The cost of `emo_torch.listen`, relative to a backward pass over 1000 tensors on the CPU.

    python -m benchmarks.listener --output docs/step_time

writes `listener.md`. One thread. In each pass the time inside and outside of PyTorch's own function is
measured, so that other processes disturb both alike. Beside the time, which is never free of noise, stands
the number of calls that the listener makes in a pass, which is.
"""

import argparse
from pathlib import Path

from examples.command import answer_early, positive_int


def at_least_100(text: str) -> int:
    """Returns a number of tensors: a hundred optimizers share them in one of the cases."""
    if int(text) < 100:
        raise argparse.ArgumentTypeError(f"{text} is below 100: a hundred optimizers share the tensors")
    return int(text)


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listener", description=__doc__)
    parser.add_argument(
        "--tensors", type=at_least_100, default=1000, help="how many, 100 or more (default: 1000)"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=101, help="how many pairs of passes (default: 101)"
    )
    parser.add_argument("--output", type=Path, help="the folder to write listener.md to")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "rich"))

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track
from torch import Tensor

import emo_torch
from benchmarks.step_time.store import environment
from benchmarks.step_time.tables import table

TENSORS = 1000
WIDTH, BATCH = 64, 16
HEAD = (
    *("optimizers", "a pass, ms", "the listener, ms", "share", "at most"),
    *("calls of the listener in a pass", "the first pass of a kind, ms"),
)


class Case(NamedTuple):
    """Optimizers that listen while one backward pass goes through all tensors.

    Attributes:
        title: its name in the table.
        owners: how many optimizers share the tensors of the pass.
        others: how many optimizers listen whose tensors the pass does not reach, with as many tensors each.
        most: how much of a backward pass the listener may take; `None` where nothing is promised.
    """

    title: str
    owners: int
    others: int
    most: float | None


CASES = (
    Case("one, which owns every tensor", 1, 0, 0.02),
    Case("four, which share the tensors", 4, 0, 0.05),
    Case("ten, which share the tensors", 10, 0, 0.05),
    Case("two, of which the pass reaches one", 1, 1, 0.05),
    Case("a hundred, which share the tensors", 100, 0, None),
)


class Row(NamedTuple):
    """The cost of a case: seconds, a share of the pass, calls, and the seconds of the first pass."""

    case: Case
    without: float
    extra: float
    share: float
    calls: int
    first: float

    def cells(self) -> tuple[str, ...]:
        """Returns the row of the table."""
        return (
            *(self.case.title, f"{1e3 * self.without:.3g}", f"{1e3 * self.extra:.2g}"),
            *(f"{self.share:.2%}", "-" if self.case.most is None else f"{self.case.most:.0%}"),
            *(str(self.calls), f"{1e3 * self.first:.3g}"),
        )


def model_of(tensors: int) -> torch.nn.Module:
    """Returns a deep network with so many tensors."""
    layers: list[torch.nn.Module] = []
    for _ in range(tensors // 2):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers)


def optimizers_of(case: Case, tensors: int) -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    """Returns a network and the optimizers that listen."""
    network = model_of(tensors)
    parameters: list[Tensor] = list(network.parameters())
    shares: list[Sequence[Tensor]] = [parameters[start :: case.owners] for start in range(case.owners)]
    shares += [list(model_of(tensors).parameters()) for _ in range(case.others)]
    return network, [emo_torch.EmoSens(list(share), lr=1e-3) for share in shares]


def calls_of(function: Callable[[], Any]) -> float:
    """Returns how many calls, of Python functions and of built-in ones, a function makes."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        del frame, argument
        count += event in ("call", "c_call")

    gc.collect()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@contextmanager
def inside_timed(spent: list[float]) -> Iterator[None]:
    """Writes down the seconds that each call of PyTorch's own backward function takes."""
    original = torch.autograd.backward

    def timed(*arguments: Any, **options: Any) -> None:
        start = time.thread_time_ns()
        try:
            original(*arguments, **options)
        finally:
            spent.append((time.thread_time_ns() - start) / 1e9)

    with mock.patch.object(torch.autograd, "backward", timed):
        yield


def measure(case: Case, tensors: int, rounds: int) -> Row:
    """Measures a case: medians over rounds, of which every other one is without the listener."""
    network, optimizers = optimizers_of(case, tensors)
    inputs = torch.ones(BATCH, WIDTH)
    inner: list[float] = []

    def run(is_on: bool, call: Callable[[Callable[[], Any]], float]) -> float:
        loss = network(inputs).square().mean()
        with emo_torch.listen(*optimizers) if is_on else nullcontext():
            result = call(loss.backward)
        for optimizer in optimizers:
            optimizer.zero_grad()
        return result

    def outside(backward: Callable[[], Any]) -> float:
        """Returns the seconds of a pass without the seconds of PyTorch's own function."""
        start = time.thread_time_ns()
        backward()
        return (time.thread_time_ns() - start) / 1e9 - inner[-1]

    gc.collect()
    with inside_timed(inner):
        run(False, outside)
        first = run(True, outside)
        del inner[:]
        seconds = [(run(True, outside), run(False, outside)) for _ in range(rounds)]
    passes = [min(pair) for pair in zip(inner[::2], inner[1::2], strict=True)]
    extra = statistics.median(on - off for on, off in seconds)
    shares = [(on - off) / whole for (on, off), whole in zip(seconds, passes, strict=True)]
    calls = int(run(True, calls_of) - run(False, calls_of))
    return Row(case, statistics.median(passes), extra, statistics.median(shares), calls, first)


def report(rows: list[Row], tensors: int, rounds: int) -> str:
    """Returns the page."""
    machine = "; ".join(f"{name} {value}" for name, value in environment().items() if "jax" not in name)
    return "\n\n".join(
        [
            "# The cost of the listener",
            "Written by `python -m benchmarks.listener`.",
            f"`emo_torch.listen` during a backward pass over {tensors} tensors (a network of linear "
            f"layers, {WIDTH} by {WIDTH}, and {BATCH} examples) on the CPU, one thread. In each pass the "
            "time inside and outside of PyTorch's own function is measured; passes with and without the "
            f"listener alternate. Medians of {rounds} pairs of passes. The first pass of a kind walks "
            "through the graph, and the ways that it finds are kept. "
            f"Machine and versions: {machine}.",
            table(HEAD, (row.cells() for row in rows), left=1),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 where a case costs more than it may."""
    given = options().parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    console = Console()
    try:
        rows = [
            measure(case, given.tensors, given.rounds)
            for case in track(CASES, "listening", console=console, transient=True)
        ]
    finally:
        torch.set_num_threads(threads)
    page = report(rows, given.tensors, given.rounds)
    console.print(Markdown(page))
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "listener.md").write_text(page + "\n")
    return int(any(row.case.most is not None and row.share > row.case.most for row in rows))


if __name__ == "__main__":
    sys.exit(main())
