"""Tables of other rules: the first version, EmoPilot without a piece, and other directions."""

from typing import Any

import numpy as np

from benchmarks.quality.contenders import DEFAULTS, FIRST, PILOT
from benchmarks.quality.plan import HELD_BACK, LOSSES_OVER_RATES, RATES, Cell
from benchmarks.quality.ratios import (
    DIVERGED,
    Losses,
    Rows,
    best_of_adamw,
    mean_of,
    means_of,
    names_of,
    number,
    single,
    table,
)
from examples.yardstick.store import Store


def first_version_section(store: Store, losses: Losses) -> Rows:
    """Returns the table of the first version of the rule beside the present one."""
    best = best_of_adamw(losses)
    found = {cell.task: (cell, result) for cell, result in single(store, "first version")}
    kinds = {"tuning": LOSSES_OVER_RATES, "held back": HELD_BACK}
    groups = {
        title: [name for name in names_of(losses, some) if name in found] for title, some in kinds.items()
    }
    groups = {title: names for title, names in groups.items() if names}
    if not groups:
        return []
    cell, _ = next(iter(found.values()))
    places = [RATES.index(rate) for rate in cell.rates]
    rows = []
    for title, names in groups.items():
        first = [[mean_of(each) / best[name] for each in found[name][1][FIRST][0]] for name in names]
        now = [list(losses[name, PILOT][places] / best[name]) for name in names]
        for row, ratios in ((FIRST, first), (PILOT, now)):
            rows.append([f"{row}: {len(names)} tasks, {title}", *map(number, means_of(ratios))])
    text = "The first version of the rule and the present one on the same tasks (geometric means)."
    head = ["rule, tasks", *(f"{rate:g}" for rate in cell.rates)]
    return ["## The first version of the rule", "", text, "", *table(head, rows)]


def left_out_section(store: Store, losses: Losses) -> Rows:
    """Returns the tables of EmoPilot without one of its pieces."""
    best = best_of_adamw(losses)
    found = [(cell, result) for cell, result in single(store, "left out") if cell.task in best]
    ratios: dict[str, list[list[float]]] = {}
    for cell, result in found:
        means = [min(mean_of(each) / best[cell.task], DIVERGED) for each in result[cell.contender][0]]
        ratios.setdefault(cell.contender, []).append(means)
    most = max((len(each) for each in ratios.values()), default=0)
    rows = [
        [name, *(number(float(value)) for value in np.exp(np.log(each).mean(0)))]
        for name, each in ratios.items()
        if len(each) == most
    ]
    if not rows:
        return []
    names = ", ".join(dict.fromkeys(cell.task for cell, _ in found))
    text = f"EmoPilot without one of its pieces, 2 seeds; the tasks are {names}."
    head = ["EmoPilot", *(f"{rate:g}" for rate in found[0][0].rates)]
    lines = ["## The value of each piece", "", text, "", *table(head, rows)]
    spikes = single(store, "left out, spikes")
    if spikes:
        text = "Digits, perceptron, with a disturbance at step 150 of 300: the final loss over that of the"
        lines += [f"{text} whole rule in the undisturbed run, 3 seeds.", "", *_spikes_table(spikes)]
    return lines


def _spikes_table(found: list[tuple[Cell, dict[str, Any]]]) -> Rows:
    first = found[0][0]
    calm = found[0][1][first.contender][0]
    head = ["EmoPilot"]
    rows = [[cell.contender] for cell, _ in found]
    for place, (trouble, _) in enumerate(first.troubles):
        for index, rate in enumerate(first.rates):
            head.append(f"{trouble}, {rate:g}")
            for row, (cell, result) in zip(rows, found, strict=True):
                row.append(number(mean_of(result[cell.contender][place][index]) / mean_of(calm[index])))
    return table(head, rows)


def directions_section(store: Store, losses: Losses) -> Rows:
    """Returns the table of EmoPilot's scalars with other directions."""
    best = best_of_adamw(losses)
    found = [(cell, result) for cell, result in single(store, "directions") if cell.task in best]
    if not found:
        return []
    rates = found[0][0].rates
    names = list(dict.fromkeys(cell.task for cell, _ in found))
    rows: dict[str, dict[str, list[float]]] = {"Adam's moments (EmoPilot)": {}}
    for name in names:
        if (name, PILOT) in losses:
            places = [RATES.index(rate) for rate in rates]
            rows["Adam's moments (EmoPilot)"][name] = list(losses[name, PILOT][places] / best[name])
    for cell, result in found:
        means = [mean_of(each) / best[cell.task] for each in result[cell.contender][0]]
        rows.setdefault(cell.contender, {})[cell.task] = means
    place = rates.index(DEFAULTS[PILOT])
    lines = [
        [
            *(row, *map(number, means_of(list(each.values())))),
            *(number(each[name][place]) for name in names),
        ]
        for row, each in rows.items()
        if set(names) <= set(each)
    ]
    head = ["direction", *(f"{rate:g}" for rate in rates), *names]
    text = (
        "EmoPilot's scalars with other directions, 2 seeds: the geometric mean over the tasks by learning "
        "rate, and each task at the learning rate of 0.01."
    )
    return ["## Other directions", "", text, "", *table(head, lines)]
