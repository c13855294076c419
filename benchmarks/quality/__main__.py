"""`python -m benchmarks.quality`: trains, keeps every result at once, and writes a table and a picture."""

import argparse
from pathlib import Path

from examples.command import answer_early


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="four tasks, four rates, one seed: CPU minutes")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/quality"),
        help="the folder of results, table and picture (default: %(default)s)",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier calls")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("jax", "optax", "torch", "flax", "matplotlib", "rich", "sklearn"))

import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from benchmarks.quality.plan import plan_of
from benchmarks.quality.report import draw, table
from benchmarks.quality.tasks import tasks
from benchmarks.quality.training import CONTENDERS, train
from examples.progress import track
from examples.yardstick.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is not in the store yet, with the given command-line arguments or those of the process."""
    parser = options()
    given = parser.parse_args(arguments)
    plan, known = plan_of(fast=given.fast), tasks()
    path = given.output / "results.json"
    if given.fresh:
        path.unlink(missing_ok=True)
    store = Store(path)
    console = Console(stderr=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # For networks this small several threads only wait for each other.
    try:
        open_cells = [cell for cell in plan.cells() if cell.key not in store]
        for cell in track(open_cells, description="runs", console=console, transient=True):
            result = train(known[cell.task], CONTENDERS[cell.contender], cell.rate, cell.seed, cell.steps)
            store.put(cell.key, result)
    finally:
        torch.set_num_threads(threads)
        store.save()
    losses = {cell: store.get(cell.key)["loss"] for cell in plan.cells()}
    text = table(losses, plan)
    (given.output / "quality.md").write_text(text, encoding="utf-8")
    draw(losses, plan, given.output / "quality.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
