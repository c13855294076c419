"""`python -m benchmarks.quality`: trains, keeps each result at once, and writes tables and a picture."""

import argparse
from pathlib import Path

from examples.command import answer_early, file_to_write, folder_to_write, pattern, positive_int

FOLDER = Path("docs/pilot_study")
PICTURE = Path("docs/pictures/learning_rates.png")


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "--folder",
        type=folder_to_write,
        default=FOLDER,
        help="results and tables (default: %(default)s)",
    )
    parser.add_argument(
        "--picture",
        type=file_to_write,
        help=f"the picture (default: {PICTURE}, or in the folder if --folder is given)",
    )
    parser.add_argument("--held-back", action="store_true", help="also run the tasks that were held back")
    parser.add_argument(
        "--only", type=pattern, default="", help="run only cells whose name matches this pattern"
    )
    parser.add_argument("--most", type=positive_int, help="run at most so many cells")
    parser.add_argument("--report", action="store_true", help="run nothing: write tables and picture")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("jax", "optax", "torch", "flax", "matplotlib", "rich", "sklearn"))

import math
import re
import sys
from collections.abc import Sequence

from benchmarks.quality import compiler as compiler  # isort: skip - before JAX.

import numpy as np
from rich.console import Console

from benchmarks.quality.contenders import ALL
from benchmarks.quality.picture import draw
from benchmarks.quality.plan import HELD_BACK, Cell, cells
from benchmarks.quality.report import write
from benchmarks.quality.tasks import tasks
from benchmarks.quality.training import train
from examples.yardstick.store import Result, Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the missing cells, with the given command-line arguments or the arguments of the process."""
    parser = options()
    given = parser.parse_args(arguments)
    picture = given.picture or (PICTURE if given.folder == FOLDER else given.folder / PICTURE.name)
    results = given.folder / "results.json"
    if given.report and not results.exists():
        parser.error(f"there are no results in {given.folder}: run the command without --report")
    store = Store(results)
    wanted = [cell for cell in cells(held_back=True) if re.search(given.only, cell.key)]
    held_back = {name for name, task in tasks().items() if task.kind in HELD_BACK}
    wanted = [cell for cell in wanted if given.held_back or cell.task not in held_back]
    if not wanted:
        parser.error(f"no cell matches --only {given.only!r}")
    missing = [cell for cell in wanted if cell.key not in store][: 0 if given.report else given.most]
    console = Console(stderr=True)
    for index, cell in enumerate(missing):
        console.print(f"{index + 1} of {len(missing)}: {cell.key}", highlight=False)
        store.put(cell.key, run(cell))
        store.save()
    write(store, given.folder)
    draw(store, picture)
    return 0


def run(cell: Cell) -> Result:
    """Trains the runs of a cell; losses by row of the tables, trouble, learning rate and seed."""
    found = train(
        tasks()[cell.task],
        ALL[cell.contender],
        cell.rates,
        cell.seeds,
        cell.steps,
        troubles=[trouble for _, trouble in cell.troubles],
        batch_size=cell.batch_size or None,
    )
    return {row: _rounded(losses.tolist()) for row, losses in found.items()}


def _rounded(value: object) -> object:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    assert isinstance(value, float)
    return float(np.format_float_scientific(value, precision=4)) if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
