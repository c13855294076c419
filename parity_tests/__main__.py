"""Holds every optimizer of the family to its twin, and says how close they are.

Run with `python -m parity_tests`. It drives the Optax and the PyTorch side of each optimizer with the
same parameters, gradients and losses, each in a process of its own, compares every leaf of parameters
and state after every step, prints a table, and ends with 1 where a bound is exceeded. Then it trains a
network in both frameworks, each on its own gradients. With `--report` it writes the page that
docs/how_equal.md links, with plots of the differences.
"""

import argparse
from pathlib import Path

from examples.command import answer_early, one_of
from parity_tests.tolerances import CLOSED_LOOP, LOCKSTEP, STEPS


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests", description=__doc__)
    parser.add_argument(
        "--optimizer", type=one_of(lambda: FAMILY), metavar="NAME", action="append", help="default: all"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument(
        "--dtype", default=",".join(LOCKSTEP), help="a list with commas; default: %(default)s"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--report", type=Path, help="write a Markdown page and a plot beside it")
    return parser


if __name__ == "__main__":
    answer_early(options, "dev", ("jax", "optax", "torch", "flax", "matplotlib", "rich"))

import functools
import importlib.metadata
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from examples.progress import Progress, track
from parity_tests import closed_loop, report, roundings
from parity_tests.cases import cases
from parity_tests.closed_loop import ClosedLoop
from parity_tests.drive import SIDES, Arrays
from parity_tests.family import FAMILY
from parity_tests.lockstep import Case, Lockstep, compare
from parity_tests.processes import find_gpu, trajectories


class Result(NamedTuple):
    """A case, the two sides that were compared, and the result."""

    case: Case
    pair: str
    lockstep: Lockstep


def run(chosen: list[Case], device: str) -> tuple[list[Result], dict[str, str]]:
    """Runs both sides of all cases and compares them; on a GPU also with a CPU in float64."""
    runs = [(side, device) for side in SIDES]
    if device != "cpu":
        runs += [(side, "cpu") for side in SIDES]
    arrays, names = {}, {}
    with tempfile.TemporaryDirectory() as folder, Progress(transient=True) as progress:

        def go(one: tuple[str, str]) -> tuple[str, list[Arrays]]:
            side, place = one
            bar = progress.add_task(f"{side} on {place}", total=len(chosen))
            job = Path(folder) / f"{side}_{place}"
            job.mkdir()
            return trajectories(side, chosen, place, job, functools.partial(progress.advance, bar))

        # Two at a time on CPUs; a GPU is for one alone.
        with ThreadPoolExecutor(1 if "cuda" in device else 2) as pool:
            for (side, place), (name, found) in zip(runs, pool.map(go, runs), strict=True):
                arrays[side, place], names[f"{side} on {place}"] = found, name
    pairs = [(("optax", device), ("torch", device))]
    if device != "cpu":
        pairs += [(("optax", device), ("optax", "cpu")), (("torch", device), ("torch", "cpu"))]
    results = []
    for one, other in pairs:
        for index, case in enumerate(chosen):
            lockstep = compare(arrays[one][index], arrays[other][index], case)
            pair = f"{one[0]} ({one[1]}), {other[0]} ({other[1]})"
            results.append(Result(case, pair, lockstep))
    return results, names


def print_table(console: Console, results: list[Result]) -> None:
    """Prints a row for each optimizer, dtype and group of leaves."""
    table = Table(title="Largest differences, Optax against PyTorch", box=None, padding=(0, 1, 0, 0))
    for column in ("optimizer", "dtype", "leaf"):
        table.add_column(column)
    for column in ("absolute", "relative", "ulp", "bit-equal", "of bound"):
        table.add_column(column, justify="right")
    for row in report.rows(results):
        table.add_row(*row)
    console.print(table)
    for result in results:
        if result.lockstep.first_excess is not None:
            step, leaf = result.lockstep.first_excess
            console.print(f"[red]bound exceeded[/red]: {result.case}, {result.pair}: {leaf} at step {step}")


def train(optimizers: list[str], dtypes: list[str]) -> list[ClosedLoop]:
    """Trains the network in both frameworks with the optimizers that the demo knows."""
    names = [FAMILY[name].optax.__name__ for name in optimizers]
    pairs = [pair for pair in closed_loop.pairs(names) if pair[1] in dtypes]
    return [closed_loop.run(*pair) for pair in track(pairs, "closed loop", transient=True)]


def print_loops(console: Console, loops: list[ClosedLoop]) -> None:
    """Prints a row for each training in both frameworks."""
    table = Table(title="Trained on gradients of their own", box=None, padding=(0, 1, 0, 0))
    for column in report.LOOP_COLUMNS:
        table.add_column(column, justify="left" if column in ("optimizer", "dtype") else "right")
    for row in report.loop_rows(loops):
        table.add_row(*row)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Compares, prints, reports; returns the exit status of the process."""
    parser = options()
    given = parser.parse_args(arguments)
    dtypes = given.dtype.split(",")
    unknown = [dtype for dtype in dtypes if dtype not in LOCKSTEP]
    if given.steps < 1:
        parser.error(f"--steps {given.steps}: there must be one at least")
    if unknown:
        parser.error(f"unknown dtype {', '.join(unknown)}; known are {', '.join(LOCKSTEP)}")
    console = Console()
    gpu = find_gpu()
    device = given.device
    if device == "cuda" and gpu is None:
        console.print("[yellow]NO GPU WAS SEEN: both processes run on the CPU instead.[/yellow]")
        device = "cpu"
    chosen = cases(given.optimizer or list(FAMILY), dtypes, given.steps)
    results, names = run(chosen, device)
    print_table(console, results)
    loops = train(given.optimizer or list(FAMILY), dtypes)
    print_loops(console, loops)
    if given.report is not None:
        members = [FAMILY[name].optax.__name__ for name in given.optimizer or FAMILY]
        held = [dtype for dtype in dtypes if dtype in CLOSED_LOOP]
        decided = roundings.decisions(members, held)
        report.write(given.report, results, loops, decided, names, gpu, versions())
        console.print(f"report: {given.report}")
    exceeded = [result for result in results if result.lockstep.first_excess is not None]
    apart = [loop for loop in loops if loop.first_excess is not None]
    console.print(
        f"{len(results)} comparisons of up to {given.steps} steps, {len(exceeded)} beyond a bound"
    )
    console.print(f"{len(loops)} closed loops, {len(apart)} out of the band")
    return 1 if exceeded or apart else 0


def versions() -> dict[str, str]:
    """Returns the versions that matter."""
    packages = ("jax", "jaxlib", "optax", "torch", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"Python": platform.python_version(), **found}


if __name__ == "__main__":
    sys.exit(main())
