"""What is run: tasks, contenders, learning rates and seeds."""

from typing import NamedTuple

from benchmarks.quality.tasks import tasks
from benchmarks.quality.training import CONTENDERS


class Cell(NamedTuple):
    """One run.

    Attributes:
        task: the name of a task.
        contender: the name of a contender.
        rate: the learning rate.
        seed: of the first weights and of the batches.
        steps: how many steps the run takes.
    """

    task: str
    contender: str
    rate: float
    seed: int
    steps: int

    @property
    def key(self) -> str:
        """The name of the run in the store."""
        return f"{self.task}, {self.contender}, {self.rate:g}, seed {self.seed}, {self.steps} steps"


class Plan(NamedTuple):
    """All runs of one call.

    Attributes:
        tasks: the names of the tasks.
        rates: the learning rates of every contender; the defaults are among them.
        seeds: the seeds.
        steps: how many steps each run takes.
        is_fast: whether this is the fast setting.
    """

    tasks: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    is_fast: bool

    def cells(self) -> list[Cell]:
        """Returns every run, seed by seed."""
        return [
            Cell(task, name, rate, seed, self.steps)
            for seed in self.seeds
            for task in self.tasks
            for name in CONTENDERS
            for rate in self.rates
        ]


RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
FAST_TASKS = ("autoencoder", "teacher", "normalised", "density")


def plan_of(*, fast: bool) -> Plan:
    """Returns the plan of a setting: all tasks and three seeds, or a few CPU minutes."""
    if fast:
        return Plan(FAST_TASKS, (1e-4, 1e-3, 1e-2, 1e-1), (0,), 150, is_fast=True)
    return Plan(tuple(tasks()), RATES, (0, 1, 2), 300, is_fast=False)
