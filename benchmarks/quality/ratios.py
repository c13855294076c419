"""Stored losses over AdamW's losses at its best learning rate, and tables of numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.contenders import ADAMW, AVERAGED, DEFAULTS, PILOT
from benchmarks.quality.plan import Cell, cells
from benchmarks.quality.tasks import tasks
from examples.yardstick.store import Store

FEWEST = 4
"""A row with fewer tasks is left out of the tables and the picture."""

DIVERGED = 1e3
"""The ratio that stands for a run that diverged, and the largest that counts in a mean."""

OURS = (PILOT, ADAMW, AVERAGED)
WITH_AIRY = (*OURS, "EmoPilotAiry")
ALL_ROWS = tuple(DEFAULTS)

Losses = dict[tuple[str, str], NDArray[np.float64]]
Rows = list[str]


def table(head: Rows, rows: list[Rows]) -> Rows:
    """Returns the lines of a table in Markdown."""
    line = "| " + " | ".join("---" if index == 0 else "---:" for index in range(len(head))) + " |"
    return [f"| {' | '.join(head)} |", line, *(f"| {' | '.join(row)} |" for row in rows), ""]


def number(value: float) -> str:
    """Returns three digits of a number, or the sign for a run that diverged."""
    return "diverged" if not value < 0.999 * DIVERGED else f"{value:.3g}"


def losses_by_seed(losses: Any) -> NDArray[np.float64]:
    """Returns the losses of the runs without trouble, `[rates, seeds]`; infinite where one diverged."""
    return np.asarray([[np.inf if loss is None else loss for loss in rate] for rate in losses[0]])


def losses_over_rates(store: Store) -> Losses:
    """Returns the mean loss over the seeds by task and row, shape `[rates]`; infinite where it diverged."""
    found: Losses = {}
    for cell in cells(held_back=True):
        if cell.study == "rates" and cell.key in store:
            for row, losses in store.get(cell.key).items():
                known = losses_by_seed(losses)
                found[cell.task, row] = known.mean(-1)
    return found


def best_of_adamw(losses: Losses) -> dict[str, float]:
    """Returns the loss of AdamW at its best learning rate, by task."""
    return {task: float(found.min()) for (task, row), found in losses.items() if row == ADAMW}


def over_adamw(losses: Losses) -> Losses:
    """Returns the same over the loss of AdamW at its best learning rate, without losses on known data."""
    best = best_of_adamw(losses)
    return {
        (task, row): np.minimum(found / best[task], DIVERGED)
        for (task, row), found in losses.items()
        if task in best and not row.endswith("known")
    }


def mean_over_tasks(ratios: Losses, row: str, names: list[str]) -> NDArray[np.float64] | None:
    """Returns the geometric mean over tasks, shape `[rates]`; `None` if a task is missing."""
    if not names or any((name, row) not in ratios for name in names):
        return None
    logarithms = np.log([ratios[name, row] for name in names])
    mean: NDArray[np.float64] = np.exp(logarithms.mean(0))
    return mean


def names_of(ratios: Losses, kinds: tuple[str, ...]) -> list[str]:
    """Returns the tasks of some kinds on which EmoPilot was measured."""
    return [name for name, task in tasks().items() if task.kind in kinds and (name, PILOT) in ratios]


def shared(ratios: Losses, kinds: tuple[str, ...], rows: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Returns the tasks that many of the given rows share, and these rows."""
    names = names_of(ratios, kinds)
    counts = {row: [name for name in names if (name, row) in ratios] for row in rows}
    many = [row for row, some in counts.items() if len(some) >= min(FEWEST, len(names)) > 0]
    return [name for name in names if all(name in counts[row] for row in many)], many


def single(store: Store, study: str) -> list[tuple[Cell, dict[str, Any]]]:
    """Returns the cells of a study that have results, and these results."""
    return [
        (cell, store.get(cell.key))
        for cell in cells(held_back=True)
        if cell.study == study and cell.key in store
    ]


def mean_of(losses: Any) -> float:
    """Returns the mean of stored losses; infinite if a run diverged."""
    return float(np.mean([np.inf if loss is None else loss for loss in losses]))


def means_of(rows: list[list[float]]) -> list[float]:
    """Returns the geometric means over the first axis."""
    finite = np.nan_to_num(np.asarray(rows), nan=DIVERGED, posinf=DIVERGED)
    means: list[float] = np.exp(np.log(np.minimum(finite, DIVERGED)).mean(0)).tolist()
    return means
