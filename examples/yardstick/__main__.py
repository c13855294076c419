"""`python -m examples.yardstick`: runs the missing cells, and writes tables and pictures."""

import argparse
import os
from pathlib import Path

from examples.command import answer_early, one_of


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.yardstick",
        description="Measure every optimizer of the family and its rivals in the same way: on four "
        "surfaces and four small real tasks. Finished results are kept, and not run again.",
    )
    parser.add_argument(
        "--full", action="store_true", help="five times the steps, every seed searches: an hour or two"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/yardstick"),
        help="the folder for tables, pictures and results (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        type=one_of(lambda: contenders()),
        metavar="NAME",
        help="measure only these, and AdamW; a wrong name lists all names",
    )
    parser.add_argument(
        "--workers",
        type=_not_negative,
        default=os.cpu_count() or 1,
        help="how many processes; 0 for none but this one (default: one a core)",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the finished results")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("jax", "optax", "torch", "flax", "matplotlib", "rich", "sklearn"))

import argparse
import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from examples.progress import Progress
from examples.yardstick import pictures, tables
from examples.yardstick.optimizers import REFERENCE, contenders
from examples.yardstick.plan import Cell, Settings, fast, full, missing_cells, run_cell
from examples.yardstick.store import Result, Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the yardstick with the given command-line arguments, or with the arguments of the process."""
    given = parse(arguments)
    console = Console()
    results = given.output / "results.json"
    if given.fresh:
        results.unlink(missing_ok=True)
    store = Store(results)
    settings = full() if given.full else fast()
    try:
        run_missing(settings, given.only, store, given.workers, console)
    except KeyboardInterrupt:
        print(f"Stopped. The finished results are kept in {results}: the same command resumes there.")
        return 130
    with console.status("Drawing"):
        text = tables.write_all(settings, given.only, store, given.output / "tables.md")
        pictures.draw_all(settings, given.only, store, given.output)
    console.print(Markdown(tables.standings(settings, given.only, store)))
    print(f"{len(text.splitlines())} lines of tables, pictures and results: {given.output}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line; `only` names everyone if it was not given."""
    parser = options()
    given = parser.parse_args(arguments)
    given.only = [name for name in contenders() if name in {*(given.only or contenders()), REFERENCE}]
    return given


def run_missing(
    settings: Settings,
    names: list[str],
    store: Store,
    workers: int,
    console: Console,
    run: Callable[[Cell], Result] = run_cell,
) -> int:
    """Runs every cell that the store lacks, and returns the number of these cells."""
    count = 0
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    try:
        with _pool(workers) as pool, bars:
            # Results may ask for more: each round plans with the results of the last round.
            while cells := missing_cells(settings, names, store):
                bar = bars.add_task(f"Round of {len(cells)}", total=len(cells))
                for cell, result in _run_round(cells, pool, run):
                    store.put(cell.key, result)
                    bars.advance(bar)
                    count += 1
    finally:
        if count:
            store.save()
    return count


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    # Results are to be the same bit for bit, in whichever process: one thread everywhere.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if workers == 0:
            yield None
            return
        # Not forked: neither framework survives that once it has threads.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(threads)


def _run_round(
    cells: list[Cell], pool: ProcessPoolExecutor | None, run: Callable[[Cell], Result]
) -> Iterator[tuple[Cell, Result]]:
    if pool is None:
        for cell in cells:
            yield cell, _named(cell, partial(run, cell))
        return
    futures: dict[Future[Result], Cell] = {pool.submit(run, cell): cell for cell in cells}
    for future in as_completed(futures):
        yield futures[future], _named(futures[future], future.result)


def _named(cell: Cell, result: Callable[[], Result]) -> Result:
    """Returns a result, or says in which cell it failed."""
    try:
        return result()
    except Exception as error:
        error.add_note(f"in the cell: {cell.key}")
        raise


if __name__ == "__main__":
    sys.exit(main())
