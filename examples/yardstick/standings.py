"""The rank of each optimizer on a task, and the cost of disturbances."""

import math
import statistics
from typing import NamedTuple

from examples.yardstick.optimizers import REFERENCE, contenders
from examples.yardstick.plan import (
    DISTURBED_TASK,
    Cell,
    Settings,
    best_rate,
    is_at_the_edge,
    mean_loss,
)
from examples.yardstick.store import Result, Store

CLOSE = 0.05
"""The difference from 1 up to which a ratio counts as level."""


class Quality(NamedTuple):
    """How an optimizer did on a task with one learning rate, over all seeds.

    Attributes:
        rate: the learning rate.
        loss: the mean test loss, infinite if a run diverged.
        spread: the largest minus the smallest test loss.
        accuracy: the mean test accuracy.
        forgotten: by how much the loss on the first task rose, or NaN.
    """

    rate: float
    loss: float
    spread: float
    accuracy: float
    forgotten: float


class Standing(NamedTuple):
    """An optimizer on one task, at its default and its best learning rate, among all others.

    Attributes:
        default: with the default learning rate.
        best: with the best one.
        is_edge: whether the search ended at its edge, so that a better learning rate may exist.
        default_ratio: the default's loss over that of AdamW at its best.
        ratio: the best loss over that of AdamW at its best.
        default_rank: 1 for the lowest loss at the default learning rates.
        rank: 1 for the lowest best loss.
    """

    default: Quality
    best: Quality
    is_edge: bool
    default_ratio: float
    ratio: float
    default_rank: int
    rank: int


def standings_on(settings: Settings, names: list[str], store: Store, task: str) -> dict[str, Standing]:
    """Returns where everyone stands on a task, the lowest loss first."""
    steps = dict(settings.task_steps)[task]

    def quality(name: str, rate: float) -> Quality:
        cells = [Cell("training", name, steps, task, rate, seed) for seed in settings.seeds]
        return _summarise(rate, [store.get(cell.key) for cell in cells])

    pairs = {}
    for name in names:
        contender = contenders()[name]
        best = best_rate(settings, contender, task, steps, store)
        pairs[name] = quality(name, contender.default), quality(name, best)
    reference = pairs[REFERENCE][1].loss
    order = sorted(names, key=lambda name: pairs[name][1].loss)
    return {
        name: Standing(
            default=pairs[name][0],
            best=pairs[name][1],
            is_edge=is_at_the_edge(settings, contenders()[name], task, steps, store),
            default_ratio=pairs[name][0].loss / reference,
            ratio=pairs[name][1].loss / reference,
            default_rank=1 + sum(pairs[other][0].loss < pairs[name][0].loss for other in names),
            rank=1 + sum(pairs[other][1].loss < pairs[name][1].loss for other in names),
        )
        for name in order
    }


def _summarise(rate: float, results: list[Result]) -> Quality:
    losses = [math.inf if result["loss"] is None else result["loss"] for result in results]
    return Quality(
        rate=rate,
        loss=mean_loss(results),
        spread=0.0 if math.inf in losses else max(losses) - min(losses),
        accuracy=statistics.fmean(result["accuracy"] for result in results),
        forgotten=statistics.fmean(result.get("forgotten", math.nan) for result in results),
    )


class Robustness(NamedTuple):
    """The effect of disturbances on an optimizer with one learning rate.

    Attributes:
        rate: the learning rate.
        accuracies: the mean test accuracy by disturbance; `""` is none.
    """

    rate: float
    accuracies: dict[str, float]

    def cost(self, disturbance: str) -> float:
        """Returns the accuracy that a disturbance costs."""
        return self.accuracies[""] - self.accuracies[disturbance]


def robustness(settings: Settings, name: str, store: Store) -> tuple[Robustness, Robustness]:
    """Returns the effect of disturbances at the default and at the best learning rate."""
    steps = dict(settings.task_steps)[DISTURBED_TASK]
    contender = contenders()[name]

    def at(rate: float) -> Robustness:
        accuracies = {}
        for each in ("", *settings.disturbances):
            cells = [
                Cell("training", name, steps, DISTURBED_TASK, rate, seed, each)
                for seed in settings.disturbed_seeds
            ]
            accuracies[each] = statistics.fmean(store.get(cell.key)["accuracy"] for cell in cells)
        return Robustness(rate, accuracies)

    return at(contender.default), at(best_rate(settings, contender, DISTURBED_TASK, steps, store))


def ratios(of: dict[str, Standing], name: str) -> tuple[float, float]:
    """Returns the loss over AdamW's: the default with its default, and the best with its best."""
    reference = of[REFERENCE]
    # Who diverges loses, even to an AdamW that diverges, too.
    default = (
        math.inf if math.isinf(of[name].default.loss) else of[name].default.loss / reference.default.loss
    )
    return default, of[name].ratio


def verdict(ratio: float) -> str:
    """Returns the meaning of a ratio of losses in one word.

    Example:
        >>> from examples.yardstick.standings import verdict
        >>> [verdict(ratio) for ratio in (0.9, 1.02, 1.4, float("inf"))]
        ['wins', 'level', 'loses', 'loses']
    """
    if ratio < 1.0 - CLOSE:
        return "wins"
    return "level" if ratio <= 1.0 + CLOSE else "loses"
