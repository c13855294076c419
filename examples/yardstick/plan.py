"""The plan of runs: the cells, and which cells are still missing.

The plan follows the results. A learning rate is searched with a few seeds on rungs of half a decade; as
long as the best one is the first or the last, the search goes on, up to two rungs further. Then the best
and the default one are run with all seeds, and, on one task, with every disturbance, too.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from examples.yardstick.memory import bytes_per_parameter
from examples.yardstick.optimizers import Contender, contenders
from examples.yardstick.store import Result, Store
from examples.yardstick.sweeps import run_surfaces
from examples.yardstick.tasks import tasks
from examples.yardstick.training import DISTURBANCES, train

FURTHER = 2
"""How many learning rates a search may add to the learning rates at its start."""
DISTURBED_TASK = "mlp"


@dataclass(frozen=True)
class Settings:
    """All options that decide which cells are run.

    Attributes:
        surface_steps: steps of each run on a surface.
        task_steps: steps of each training, by the task's name.
        reach: how many half decades the search begins with on either side of the middle.
        search_seeds: the seeds that choose the best learning rate.
        seeds: the seeds that are reported, `search_seeds` among them.
        disturbed_seeds: the part of `seeds` that is also run with every disturbance.
        disturbances: which disturbances are run.
    """

    surface_steps: int
    task_steps: tuple[tuple[str, int], ...]
    reach: int
    search_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    disturbed_seeds: tuple[int, ...]
    disturbances: tuple[str, ...] = DISTURBANCES


def fast() -> Settings:
    """Returns the settings of a run of some minutes: the search has one seed, a disturbance two."""
    steps = tuple((task.name, task.steps) for task in tasks().values())
    return Settings(
        surface_steps=150,
        task_steps=steps,
        reach=2,
        search_seeds=(0,),
        seeds=(0, 1, 2),
        disturbed_seeds=(0, 1),
    )


def full() -> Settings:
    """Returns the settings of a run of an hour or two: five times the steps, every seed for everything."""
    steps = tuple((task.name, 5 * task.steps) for task in tasks().values())
    return Settings(
        surface_steps=500,
        task_steps=steps,
        reach=3,
        search_seeds=(0, 1, 2),
        seeds=(0, 1, 2),
        disturbed_seeds=(0, 1, 2),
    )


class Cell(NamedTuple):
    """The smallest thing to be run, in a process of its own if need be.

    Attributes:
        kind: "surfaces", "memory" or "training".
        contender: the name of an optimizer.
        steps: how many steps it takes; 0 where that has no meaning, as the others below.
        task: the name of a task.
        rate: the learning rate.
        seed: of weights and batches.
        disturbance: a name in `DISTURBANCES`, or `""`.
    """

    kind: str
    contender: str
    steps: int = 0
    task: str = ""
    rate: float = 0.0
    seed: int = 0
    disturbance: str = ""

    @property
    def key(self) -> str:
        """The name under which the result is kept."""
        return " | ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in self)


def run_cell(cell: Cell) -> Result:
    """Runs a cell."""
    contender = contenders()[cell.contender]
    if cell.kind == "surfaces":
        return run_surfaces(contender, cell.steps)
    if cell.kind == "memory":
        return dict(bytes_per_parameter(contender))
    return train(tasks()[cell.task], contender, cell.rate, cell.seed, cell.steps, cell.disturbance)


def missing_cells(settings: Settings, names: list[str], store: Store) -> list[Cell]:
    """Returns the cells that can be run now and were not yet; none when everything is finished."""
    cells: list[Cell] = []
    for name in names:
        contender = contenders()[name]
        for task, steps in settings.task_steps:
            cells += _task_cells(settings, contender, task, steps, store)
        cells += [Cell("surfaces", name, settings.surface_steps), Cell("memory", name)]
    order = {task: place for place, task in enumerate(("transformer", "lora", "cnn", "mlp", ""))}
    # The long ones first, so that no process is left alone with one at the end.
    missing = dict.fromkeys(cell for cell in cells if cell.key not in store)
    return sorted(missing, key=lambda cell: order[cell.task])


def _task_cells(
    settings: Settings, contender: Contender, task: str, steps: int, store: Store
) -> list[Cell]:
    rates = searched_rates(settings, contender, task, steps, store)
    name = contender.name
    search = [
        Cell("training", name, steps, task, rate, seed) for rate in rates for seed in settings.search_seeds
    ]
    if any(cell.key not in store for cell in search):
        return search
    best = best_rate(settings, contender, task, steps, store)
    rest = [
        Cell("training", name, steps, task, rate, seed)
        for rate in (contender.default, best)
        for seed in settings.seeds
    ]
    if task == DISTURBED_TASK:
        rest += [
            Cell("training", name, steps, task, rate, seed, disturbance)
            for rate in (contender.default, best)
            for disturbance in settings.disturbances
            for seed in settings.disturbed_seeds
        ]
    return rest


def rung(index: int) -> float:
    """Returns a learning rate of the ladder 0.1, 0.3, 1 (index 0), 3, 10, ...

    Example:
        >>> from examples.yardstick.plan import rung
        >>> [rung(index) for index in (-3, -2, -1, 0, 1)]
        [0.03, 0.1, 0.3, 1.0, 3.0]
    """
    return float(f"{3 if index % 2 else 1}e{index // 2}")


def searched_rates(
    settings: Settings, contender: Contender, task: str, steps: int, store: Store
) -> list[float]:
    """Returns the learning rates to search, in order, as far as the results so far ask for them."""
    middle = round(2 * math.log10(contender.middle))
    low, high = middle - settings.reach, middle + settings.reach
    lowest, highest = low - FURTHER, high + FURTHER
    while True:
        rates = sorted({contender.default, *(rung(index) for index in range(low, high + 1))})
        losses = [_search_loss(settings, contender.name, task, steps, rate, store) for rate in rates]
        if any(loss is None for loss in losses):
            return rates
        best = losses.index(min(losses, key=_sortable))
        if best == 0 and low > lowest and rates[0] >= rung(low):
            low -= 1
        elif best == len(rates) - 1 and high < highest and rates[-1] <= rung(high):
            high += 1
        else:
            return rates


def best_rate(settings: Settings, contender: Contender, task: str, steps: int, store: Store) -> float:
    """Returns the searched learning rate with the lowest mean test loss over the search's seeds."""

    def loss(rate: float) -> float:
        return _sortable(_search_loss(settings, contender.name, task, steps, rate, store))

    return min(searched_rates(settings, contender, task, steps, store), key=loss)


def is_at_the_edge(settings: Settings, contender: Contender, task: str, steps: int, store: Store) -> bool:
    """Returns whether the best learning rate is the first or last searched: a better one may exist."""
    rates = searched_rates(settings, contender, task, steps, store)
    return best_rate(settings, contender, task, steps, store) in (rates[0], rates[-1])


def _search_loss(
    settings: Settings, name: str, task: str, steps: int, rate: float, store: Store
) -> float | None:
    """Returns the mean loss, infinite where a run diverged, or `None` if a run is missing."""
    keys = [Cell("training", name, steps, task, rate, seed).key for seed in settings.search_seeds]
    if any(key not in store for key in keys):
        return None
    return mean_loss([store.get(key) for key in keys])


def _sortable(loss: float | None) -> float:
    return math.inf if loss is None else loss


def mean_loss(results: list[dict[str, Any]]) -> float:
    """Returns the mean loss of some runs, infinite if one of them diverged."""
    losses = [result["loss"] for result in results]
    return math.inf if None in losses else statistics.fmean(losses)
