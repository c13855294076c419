"""The results as tables in Markdown, no line longer than a terminal of 100 columns."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from examples.yardstick.optimizers import LENGTH, REFERENCE, Contender, contenders
from examples.yardstick.plan import (
    DISTURBED_TASK,
    Cell,
    Settings,
)
from examples.yardstick.standings import CLOSE, Standing, ratios, robustness, standings_on, verdict
from examples.yardstick.store import Store
from examples.yardstick.surfaces import SURFACES
from examples.yardstick.sweeps import ARRIVED, WIDTH_GRID, WITHIN
from examples.yardstick.tasks import tasks

NOTABLE = 0.02
"""The accuracy by which a disturbance's cost must differ from AdamW's to be told."""


def write_all(settings: Settings, names: list[str], store: Store, path: Path) -> str:
    """Writes all tables into a file, and returns its text."""
    parts = ["# The yardstick", _introduction(settings, names), standings(settings, names, store)]
    for task, _ in settings.task_steps:
        parts.append(quality_table(settings, names, store, task))
    parts.append(robustness_table(settings, names, store))
    parts.append(tolerance_table(settings, names, store))
    parts.append(memory_table(names, store))
    text = "\n\n".join(parts) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


def _introduction(settings: Settings, names: list[str]) -> str:
    lengths = ", ".join(f"{steps} ({tasks()[name].title})" for name, steps in settings.task_steps)
    return _wrap(
        f"Steps: {lengths}; {settings.surface_steps} on the surfaces. Means over {len(settings.seeds)} "
        f"seeds. The best learning rate is the one with the lowest test loss over "
        f"{_count(len(settings.search_seeds), 'seed')}, on a ladder of half decades that is extended while "
        f"the best is at its edge; * marks a search that ended at the edge all the same. Inf: diverged. "
        f"The family's names are in bold.{_length_note(names)}"
    )


def _length_note(names: list[str]) -> str:
    told = [contenders()[name].title for name in names if contenders()[name].takes_length]
    if not told:
        return ""
    return (
        f" Told the number of steps of every run, on the surfaces, too, as {LENGTH}: {', '.join(told)}; "
        "nobody else of the family knows it."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quality_table(settings: Settings, names: list[str], store: Store, task: str) -> str:
    """Returns losses and accuracies at the default and the best learning rate, the best first."""
    forgets = tasks()[task].known is not None
    header = ["#", "optimizer", "default", "loss", "acc.", "ratio"]
    header += ["best", "loss", "spread", "acc.", "ratio"]
    rows = []
    for name, standing in standings_on(settings, names, store, task).items():
        default, best = standing.default, standing.best
        row = [str(standing.rank), _title(contenders()[name]), f"{default.rate:g}", _loss(default.loss)]
        row += [f"{default.accuracy:.3f}", _ratio(standing.default_ratio)]
        row += [f"{best.rate:g}{'*' if standing.is_edge else ''}", _loss(best.loss), _loss(best.spread)]
        row += [f"{best.accuracy:.3f}", _ratio(standing.ratio)]
        rows.append([*row, f"{best.forgotten:+.2f}"] if forgets else row)
    text = f"## {tasks()[task].title}\n\n" + _table([*header, "forgets"] if forgets else header, rows)
    note = "Ratio: the loss, at the default and at the best learning rate, over AdamW's at its best."
    if forgets:
        note += " Forgets: by how much the loss on the first text rose, at the best learning rate."
    return f"{text}\n\n{_wrap(note)}"


def robustness_table(settings: Settings, names: list[str], store: Store) -> str:
    """Returns the accuracy of undisturbed and disturbed trainings, at the default and the best rate."""
    header = ["optimizer", "rate", "none", *(_short(each) for each in settings.disturbances)]
    parts = ["## Robustness"]
    for place, heading in enumerate(("At the default learning rate", "At the best learning rate")):
        rows = []
        for name in names:
            rate, accuracies = robustness(settings, name, store)[place]
            numbers = [f"{accuracy:.3f}" for accuracy in accuracies.values()]
            rows.append([_title(contenders()[name]), f"{rate:g}", *numbers])
        parts += [f"{heading}:", _table(header, rows)]
    parts.append(
        _wrap(
            f"Test accuracy on {tasks()[DISTURBED_TASK].title}, means over "
            f"{_count(len(settings.disturbed_seeds), 'seed')}; the best learning rate is that of the "
            "undisturbed search, which may lie near the edge of stability. Spike: the gradient of the "
            "middle step times 100. Labels: 20 batches with random labels from the middle on. x 0.001 and "
            "so on: the loss, and so every gradient, times that."
        )
    )
    return "\n\n".join(parts)


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
    parts = [
        "## Where the family loses and wins",
        "At the default learning rates, by which is judged:",
        _standings_table(by_task, family, 0),
        "At the best learning rates:",
        _standings_table(by_task, family, 1),
        _wrap(
            f"The test loss over AdamW's, the default with its default and the best with its best, and the "
            f"rank among {len(names)} in parentheses; within {CLOSE:.0%} counts as level."
        ),
    ]
    sentences = [_sentence(tasks()[task].title, of, family) for task, of in by_task.items()]
    sentences += _robustness_sentences(settings, names, family, store)
    sentences.append(_memory_sentence(family, store))
    return "\n\n".join([*parts, "\n".join(_wrap(sentence, "- ") for sentence in sentences)])


def _standings_table(by_task: dict[str, dict[str, Standing]], family: Sequence[str], place: int) -> str:
    rows = []
    for name in family:
        row = [_title(contenders()[name])]
        for of in by_task.values():
            ratio = ratios(of, name)[place]
            rank = (of[name].default_rank, of[name].rank)[place]
            row.append(f"{verdict(ratio)} {_ratio(ratio)} ({rank})")
        rows.append(row)
    return _table(["optimizer", *by_task], rows)


def _sentence(title: str, of: dict[str, Standing], family: Sequence[str]) -> str:
    """Returns who loses and wins on a task, and at which of the two learning rates only."""
    groups: dict[str, list[str]] = {}
    for word in ("loses", "level", "wins"):
        suffixes = {(True, True): "", (True, False): " at the default only"}
        if word != "level":
            # Level at the best only: listed by its result at the default only.
            suffixes[False, True] = " at the best only"
        for holds, suffix in suffixes.items():
            for name in family:
                words = tuple(verdict(ratio) == word for ratio in ratios(of, name))
                if words == holds:
                    groups.setdefault(word + suffix, []).append(contenders()[name].title)
    parts = [f"{words}: {'; '.join(titles)}" for words, titles in groups.items()]
    winner = next(iter(of))
    return f"{title} (lowest loss of all: {contenders()[winner].title}): {'. '.join(parts)}."


def _robustness_sentences(
    settings: Settings, names: list[str], family: Sequence[str], store: Store
) -> list[str]:
    measured = {name: robustness(settings, name, store) for name in names}

    def listed(sign: int, place: int) -> str:
        """Lists where costs differ notably: all at the default, or only the costs at the best."""
        parts = []
        for each in settings.disturbances:
            titles = []
            for name in family:
                costs = [at.cost(each) for at in measured[name]]
                differs = [
                    sign * (cost - at.cost(each)) > NOTABLE
                    for cost, at in zip(costs, measured[REFERENCE], strict=True)
                ]
                if differs[place] and not (place == 1 and differs[0]):
                    only = "" if differs[1] or place == 1 else " (at the default only)"
                    titles.append(f"{contenders()[name].title} {costs[place]:.2f}{only}")
            if titles:
                cost = measured[REFERENCE][place].cost(each)
                parts.append(f"{each} ({cost:.2f}): {', '.join(titles)}")
        return "; ".join(parts) or "nowhere"

    return [
        "Robustness, where a disturbance at the default learning rate costs more accuracy than it costs "
        f"AdamW at its default (in parentheses) by over {NOTABLE}: {listed(1, 0)}.",
        f"Where it costs less by over {NOTABLE}: {listed(-1, 0)}. Below 0: it helps.",
        "Where it costs more than AdamW at the best learning rates only, and not at the default: "
        f"{listed(1, 1)}.",
        f"Where it costs less at the best learning rates only: {listed(-1, 1)}.",
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
    # Five characters at most, as in the ratios: the table of the adapters has no room for more.
    if loss < 9.9995:
        return f"{loss:.3f}"
    return f"{loss:.1f}" if loss < 999 else f"{loss:.0e}"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 99 else ("-" if math.isinf(ratio) else f"{ratio:.0e}")


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown that is aligned as plain text, too: text left, numbers right."""
    # The rule below a header needs two characters.
    widths = [max(2, *(len(row[column]) for row in [header, *rows])) for column in range(len(header))]
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
