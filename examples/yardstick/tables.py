"""The results as tables in Markdown, no line longer than a terminal of 100 columns."""

import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.yardstick.optimizers import Contender, contenders
from examples.yardstick.plan import (
    DISTURBED_TASK,
    Cell,
    Settings,
    best_rate,
    is_at_the_edge,
    mean_loss,
)
from examples.yardstick.store import Result, Store
from examples.yardstick.surfaces import SURFACES
from examples.yardstick.sweeps import ARRIVED, WIDTH_GRID, WITHIN
from examples.yardstick.tasks import tasks

REFERENCE = "adamw"
NOTABLE = 0.02
"""The accuracy by which a disturbance's cost must differ from AdamW's to be told."""
CLOSE = 0.05
"""What a ratio may differ from 1 and still count as level."""


class Quality(NamedTuple):
    """How an optimizer did on a task with one learning rate, over all seeds.

    Attributes:
        rate: the learning rate.
        loss: the mean test loss, infinite if a run diverged.
        spread: the largest minus the smallest test loss.
        accuracy: the mean test accuracy.
        forgotten: by how much the loss on what was known before rose, or NaN.
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
        ratio: the best loss over that of AdamW at its best.
        rank: 1 for the lowest best loss.
    """

    default: Quality
    best: Quality
    is_edge: bool
    ratio: float
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
            ratio=pairs[name][1].loss / reference,
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


def write_all(settings: Settings, names: list[str], store: Store, path: Path) -> str:
    """Writes all tables into a file, and returns its text."""
    parts = ["# The yardstick", _introduction(settings), standings(settings, names, store)]
    for task, _ in settings.task_steps:
        parts.append(quality_table(settings, names, store, task))
    parts.append(robustness_table(settings, names, store))
    parts.append(tolerance_table(settings, names, store))
    parts.append(memory_table(names, store))
    text = "\n\n".join(parts) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


def _introduction(settings: Settings) -> str:
    lengths = ", ".join(f"{steps} ({tasks()[name].title})" for name, steps in settings.task_steps)
    return _wrap(
        f"Steps: {lengths}; {settings.surface_steps} on the surfaces. Means over {len(settings.seeds)} "
        f"seeds. The best learning rate is the one with the lowest test loss over "
        f"{_count(len(settings.search_seeds), 'seed')}, on a ladder of half decades that is extended while "
        f"the best is at its edge; * marks a search that ended at the edge all the same. The family's "
        f"names are in bold."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quality_table(settings: Settings, names: list[str], store: Store, task: str) -> str:
    """Returns losses and accuracies at the default and the best learning rate, the best first."""
    forgets = tasks()[task].known is not None
    header = ["rank", "optimizer", "default", "loss", "acc.", "best", "loss", "spread", "acc.", "/ AdamW"]
    rows = []
    for name, standing in standings_on(settings, names, store, task).items():
        default, best = standing.default, standing.best
        row = [str(standing.rank), _title(contenders()[name]), f"{default.rate:g}", _loss(default.loss)]
        row += [f"{default.accuracy:.3f}", f"{best.rate:g}{'*' if standing.is_edge else ''}"]
        row += [_loss(best.loss), _loss(best.spread), f"{best.accuracy:.3f}", _ratio(standing.ratio)]
        rows.append([*row, f"{best.forgotten:+.2f}"] if forgets else row)
    text = f"## {tasks()[task].title}\n\n" + _table([*header, "forgets"] if forgets else header, rows)
    if forgets:
        text += "\n\n" + _wrap(
            "Forgets: by how much the loss on the first text rose, at the best learning rate."
        )
    return text


def robustness_table(settings: Settings, names: list[str], store: Store) -> str:
    """Returns the accuracy of undisturbed and disturbed trainings, at the best learning rate."""
    header = ["optimizer", "rate", "none", *(_short(each) for each in settings.disturbances)]
    rows = []
    for name in names:
        rate, accuracies = robustness(settings, name, store)
        rows.append(
            [
                _title(contenders()[name]),
                f"{rate:g}",
                *(f"{accuracy:.3f}" for accuracy in accuracies.values()),
            ]
        )
    note = _wrap(
        f"Test accuracy on {tasks()[DISTURBED_TASK].title}, at the best undisturbed learning rate. Spike: "
        "the gradient of the middle step times 100. Labels: 20 batches with random labels from the middle "
        "on. x 0.001 and so on: the loss, and so every gradient, times that."
    )
    return f"## Robustness\n\n{_table(header, rows)}\n\n{note}"


def robustness(settings: Settings, name: str, store: Store) -> tuple[float, dict[str, float]]:
    """Returns the learning rate, and the mean test accuracy by disturbance; `""` is none."""
    steps = dict(settings.task_steps)[DISTURBED_TASK]
    rate = best_rate(settings, contenders()[name], DISTURBED_TASK, steps, store)
    accuracies = {}
    for each in ("", *settings.disturbances):
        cells = [Cell("training", name, steps, DISTURBED_TASK, rate, seed, each) for seed in settings.seeds]
        accuracies[each] = statistics.fmean(store.get(cell.key)["accuracy"] for cell in cells)
    return rate, accuracies


def tolerance_table(settings: Settings, names: list[str], store: Store) -> str:
    """Returns how wide the good learning rates are on each surface, and how low the best one got."""
    header = ["optimizer"]
    for surface in SURFACES.values():
        header += [surface.title, "best"]
    rows = []
    for name in names:
        results = store.get(Cell("surfaces", name, settings.surface_steps).key)
        row = [_title(contenders()[name])]
        for result in results.values():
            row += [f"{result['width']:.2f}", f"{result['best']:.1e}"]
        rows.append(row)
    note = _wrap(
        f"Under each surface: the width in decades of the learning rates (of {WIDTH_GRID}, quarters of a "
        f"decade) whose final height, the median over 16 starts, is within {WITHIN:g} times of the "
        f"optimizer's own best; heights under {ARRIVED:g} of the start's count as arrived. Best: that "
        f"lowest height above the surface's lowest point. No weight decay here, so AdamW is Adam. To read "
        f"together: who hardly moves at any learning rate is tolerant, too."
    )
    return f"## Learning-rate tolerance on the surfaces\n\n{_table(header, rows)}\n\n{note}"


def memory_table(names: list[str], store: Store) -> str:
    """Returns the bytes of state for each trained parameter."""
    header = ["optimizer", "transformer", "adapters"]
    rows = []
    for name in names:
        result = store.get(Cell("memory", name).key)
        rows.append([_title(contenders()[name]), *(f"{result[column]:.2f}" for column in header[1:])])
    note = _wrap("Bytes of state a trained parameter, all float32; the weights and gradients are 8 more.")
    return f"## Memory\n\n{_table(header, rows)}\n\n{note}"


def standings(settings: Settings, names: list[str], store: Store) -> str:
    """Returns where the family loses and wins, computed from the results."""
    family = [name for name in names if contenders()[name].is_family]
    by_task = {task: standings_on(settings, names, store, task) for task, _ in settings.task_steps}
    header = ["optimizer", *by_task]
    rows = []
    for name in family:
        cells = [
            f"{verdict(of[name].ratio)} {_ratio(of[name].ratio)} ({of[name].rank})"
            for of in by_task.values()
        ]
        rows.append([_title(contenders()[name]), *cells])
    lines = [
        "## Where the family loses and wins",
        _table(header, rows),
        _wrap(
            f"The test loss at the best learning rate over AdamW's at its best, with the rank among "
            f"{len(names)} in parentheses; within {CLOSE:.0%} counts as level."
        ),
    ]
    for task, of in by_task.items():
        lines.append(_wrap(_sentence(tasks()[task].title, of, family), "- "))
    for sentence in _robustness_sentences(settings, names, family, store):
        lines.append(_wrap(sentence, "- "))
    lines.append(_wrap(_memory_sentence(family, store), "- "))
    return "\n\n".join([*lines[:3], "\n".join(lines[3:])])


def verdict(ratio: float) -> str:
    """Returns what a ratio of losses says in one word.

    Example:
        >>> from examples.yardstick.tables import verdict
        >>> [verdict(ratio) for ratio in (0.9, 1.02, 1.4, float("inf"))]
        ['wins', 'level', 'loses', 'loses']
    """
    if ratio < 1.0 - CLOSE:
        return "wins"
    return "level" if ratio <= 1.0 + CLOSE else "loses"


def _sentence(title: str, of: dict[str, Standing], family: Sequence[str]) -> str:
    winner = next(iter(of))
    groups: dict[str, list[str]] = {"loses": [], "level": [], "wins": []}
    for name in family:
        groups[verdict(of[name].ratio)].append(contenders()[name].title)
    parts = [f"{word}: {'; '.join(titles)}" for word, titles in groups.items() if titles]
    return f"{title} (best of all: {contenders()[winner].title}): {'. '.join(parts)}."


def _robustness_sentences(
    settings: Settings, names: list[str], family: Sequence[str], store: Store
) -> list[str]:
    losses = {}
    for name in names:
        _, accuracies = robustness(settings, name, store)
        losses[name] = {each: accuracies[""] - accuracies[each] for each in settings.disturbances}
    costs = losses[REFERENCE]

    def listed(is_meant: Callable[[float, float], bool]) -> str:
        parts = []
        for each in settings.disturbances:
            meant = [name for name in family if is_meant(losses[name][each], costs[each])]
            titles = ", ".join(f"{contenders()[name].title} {losses[name][each]:.2f}" for name in meant)
            parts.append(f"{each} ({costs[each]:.2f}): {titles or 'none'}")
        return "; ".join(parts)

    return [
        "Robustness, where a disturbance costs more accuracy than it costs AdamW (in parentheses) by over "
        f"{NOTABLE}: {listed(lambda ours, theirs: ours > theirs + NOTABLE)}.",
        f"Where it costs less by over {NOTABLE}: "
        f"{listed(lambda ours, theirs: ours < theirs - NOTABLE)}. Below 0: it helps.",
    ]


def _memory_sentence(family: Sequence[str], store: Store) -> str:
    def kept(name: str) -> float:
        return float(store.get(Cell("memory", name).key)["transformer"])

    reference = kept(REFERENCE)
    listed = ", ".join(f"{contenders()[name].title} {kept(name) / reference:.2f}" for name in family)
    return f"State on the transformer over AdamW's: {listed}."


def _title(contender: Contender) -> str:
    return f"**{contender.title}**" if contender.is_family else contender.title


def _short(disturbance: str) -> str:
    return disturbance.removeprefix("loss ")


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if loss < 1000 else ("diverged" if math.isinf(loss) else f"{loss:.1e}")


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1000 else ("-" if math.isinf(ratio) else f"{ratio:.0e}")


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown that is aligned as plain text, too: text left, numbers right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    left = [column for column, name in enumerate(header) if name == "optimizer"]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "|" + "|".join(cells) + "|"

    rule = [
        "-" * width if column in left else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    return "\n".join([line(header), "|" + "|".join(rule) + "|", *(line(row) for row in rows)])


def _wrap(text: str, bullet: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=bullet, subsequent_indent=" " * len(bullet))
