"""Tables and a picture of the stored results: losses over AdamW's losses at its best learning rate."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.quality.contenders import ADAMW, AVERAGED, DEFAULTS, PILOT
from benchmarks.quality.plan import RATES, Cell, cells
from benchmarks.quality.tasks import tasks
from examples.yardstick.store import Store

FEWEST = 4
"""A row with fewer tasks is left out of the tables and the picture."""

DIVERGED = 1e3
"""The ratio that stands for a run that diverged, and the largest that counts in a mean."""

TUNED = ("yardstick", "other")
OURS = (PILOT, ADAMW, AVERAGED)
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


def losses_over_rates(store: Store) -> Losses:
    """Returns the mean loss over the seeds by task and row, shape `[rates]`; infinite where it diverged."""
    found: Losses = {}
    for cell in cells(held_back=True):
        if cell.study == "rates" and cell.key in store:
            for row, losses in store.get(cell.key).items():
                known = np.asarray([[np.inf if x is None else x for x in rate] for rate in losses[0]])
                found[cell.task, row] = known.mean(-1)
    return found


def over_adamw(losses: Losses) -> Losses:
    """Returns the same over the loss of AdamW at its best learning rate, without losses on known data."""
    best = {task: float(found.min()) for (task, row), found in losses.items() if row == ADAMW}
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


def _names(ratios: Losses, kinds: tuple[str, ...]) -> list[str]:
    return [name for name, task in tasks().items() if task.kind in kinds and (name, PILOT) in ratios]


def shared(ratios: Losses, kinds: tuple[str, ...], rows: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Returns the tasks that many of the given rows share, and these rows."""
    names = _names(ratios, kinds)
    counts = {row: [name for name in names if (name, row) in ratios] for row in rows}
    many = [row for row, some in counts.items() if len(some) >= min(FEWEST, len(names)) > 0]
    return [name for name in names if all(name in counts[row] for row in many)], many


def _rates_section(
    ratios: Losses, title: str, kinds: tuple[str, ...], rows_of_table: tuple[str, ...]
) -> Rows:
    names, some = shared(ratios, kinds, rows_of_table)
    if not names:
        return []
    means = {row: mean_over_tasks(ratios, row, names) for row in some}
    whole = {row: mean for row, mean in means.items() if mean is not None}
    best = {row: min(mean) for row, mean in whole.items()}
    head = ["optimizer", *(f"{rate:g}" for rate in RATES), "best rate", "default rate"]
    rows = [
        [row, *map(number, mean), number(best[row]), number(mean[RATES.index(DEFAULTS[row])])]
        for row, mean in whole.items()
    ]
    lines = [f"## {title}", "", f"Geometric mean over {len(names)} tasks: {', '.join(names)}.", ""]
    lines += table(head, rows)
    lines += [
        "Each task at the best learning rate of each optimizer on this task (tuned against tuned):",
        "",
    ]
    lines += table(
        ["optimizer", *names, "mean"],
        [
            [
                row,
                *(number(ratios[name, row].min()) for name in names),
                number(statistics.geometric_mean(float(ratios[name, row].min()) for name in names)),
            ]
            for row in whole
        ],
    )
    lines += ["Each task at the default learning rate of each optimizer:", ""]
    defaults = {row: RATES.index(rate) for row, rate in DEFAULTS.items()}
    lines += table(
        ["optimizer", *names],
        [[row, *(number(ratios[name, row][defaults[row]]) for name in names)] for row in whole],
    )
    return lines


def _single(store: Store, study: str) -> list[tuple[Cell, dict[str, Any]]]:
    return [(cell, store.get(cell.key)) for cell in cells() if cell.study == study and cell.key in store]


def _mean(losses: Any) -> float:
    return float(np.mean([np.inf if loss is None else loss for loss in losses]))


def _long_section(store: Store) -> Rows:
    found = _single(store, "long")
    if not found:
        return []
    rates = found[0][0].rates
    rows = [
        [row, *(number(_mean(losses)) for losses in result[row][0])]
        for _, result in found
        for row in result
    ]
    text = "Noisy labels, 10 000 steps, batches of 16, one seed: divergence from the truth, in nats."
    return ["## Long runs", "", text, "", *table(["optimizer", *(f"{rate:g}" for rate in rates)], rows)]


def _troubles_section(store: Store) -> Rows:
    found = _single(store, "troubles")
    if not found:
        return []
    head, columns = ["disturbance, at step 150 of 300"], []
    for cell, result in found:
        for row, losses in result.items():
            for index, rate in enumerate(cell.rates):
                head.append(f"{row} {rate:g}")
                columns.append([_mean(each[index]) for each in losses])
    names = [name for name, _ in found[0][0].troubles]
    # A loss in another unit is measured in the usual one.
    rows = [
        [name, *(number(column[index] / column[0]) for column in columns)]
        for index, name in enumerate(names)
    ]
    text = "Digits, perceptron: the final loss over that of the run in which nothing goes wrong, 3 seeds."
    return ["## Spikes, units and missing losses", "", text, "", *table(head, rows)]


def _batches_section(store: Store) -> Rows:
    found = _single(store, "batches")
    if not found:
        return []
    sizes = sorted({cell.batch_size for cell, _ in found})
    rows: dict[str, dict[int, float]] = {}
    for cell, result in found:
        for row, losses in result.items():
            for index, rate in enumerate(cell.rates):
                rows.setdefault(f"{row} {rate:g}", {})[cell.batch_size] = _mean(losses[0][index])
    lines = [[name, *(number(row.get(size, np.inf)) for size in sizes)] for name, row in rows.items()]
    text = "Digits, perceptron: the final loss after 300 steps, 3 seeds."
    return ["## Batch sizes", "", text, "", *table(["optimizer, rate", *map(str, sizes)], lines)]


def _fine_tuning_section(store: Store) -> Rows:
    found = _single(store, "fine-tuning")
    if not found:
        return []
    rows = []
    for _, result in found:
        for row in [name for name in result if not name.endswith("known")]:
            pairs = zip(result[row][0], result[f"{row}, known"][0], strict=True)
            rows.append([row, *(f"{_mean(new):.2f}, {_mean(known):.2f}" for new, known in pairs)])
    text = (
        "A transformer that knows one text learns another one, in capitals, for 300 steps: the loss on the "
        "new text, and the loss on the text that it knew (forgetting), by learning rate."
    )
    head = ["optimizer", *(f"{rate:g}" for rate in found[0][0].rates)]
    return ["## Fine-tuning", "", text, "", *table(head, rows)]


def _left_out_section(store: Store, losses: Losses) -> Rows:
    best = {task: float(found.min()) for (task, row), found in losses.items() if row == ADAMW}
    found = [(cell, result) for cell, result in _single(store, "left out") if cell.task in best]
    ratios: dict[str, list[list[float]]] = {}
    for cell, result in found:
        means = [min(_mean(each) / best[cell.task], DIVERGED) for each in result[cell.contender][0]]
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
    return ["## The value of each piece", "", text, "", *table(head, rows)]


def _directions_section(store: Store, losses: Losses) -> Rows:
    best = {task: float(found.min()) for (task, row), found in losses.items() if row == ADAMW}
    found = [(cell, result) for cell, result in _single(store, "directions") if cell.task in best]
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
        means = [_mean(each) / best[cell.task] for each in result[cell.contender][0]]
        rows.setdefault(cell.contender, {})[cell.task] = means
    place = rates.index(DEFAULTS[PILOT])
    lines = [
        [
            *(row, *map(number, _means(list(each.values())))),
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


def _means(rows: list[list[float]]) -> list[float]:
    """Returns the geometric means over the first axis."""
    finite = np.nan_to_num(np.asarray(rows), nan=DIVERGED, posinf=DIVERGED)
    means: list[float] = np.exp(np.log(np.minimum(finite, DIVERGED)).mean(0)).tolist()
    return means


def _large_section(store: Store) -> Rows:
    found = [(cell, store.get(cell.key)) for cell in cells() if cell.task == "large" and cell.key in store]
    if not found:
        return []
    rates = sorted({rate for cell, _ in found for rate in cell.rates})
    rows: dict[str, dict[float, str]] = {}
    for cell, result in found:
        for row, losses in result.items():
            rows.setdefault(row, {})[cell.rates[0]] = number(_mean(losses[0][0]))
    lines = [[row, *(each.get(rate, "-") for rate in rates)] for row, each in rows.items()]
    text = (
        "A transformer of 3.2 million weights over the characters of Python's help texts, 300 steps, "
        "batches of 8 times 64 characters, one seed: the loss on test data, by learning rate."
    )
    return ["## A larger network", "", text, "", *table(["optimizer", *(f"{r:g}" for r in rates)], lines)]


def write(store: Store, folder: Path) -> None:
    """Writes the tables of the stored results."""
    losses = losses_over_rates(store)
    ratios = over_adamw(losses)
    lines = [
        "# Tables of the study of EmoPilot",
        "",
        "Written by `python -m benchmarks.quality --report` from `results.json`. Where nothing else is",
        "said, a number is the loss on test data after 300 steps over the loss of AdamW at its best of 11",
        "learning rates, 3 seeds. Less is better. EmoPilot, AdamW + average and schedule-free AdamW are",
        "evaluated with their averaged weights.",
        "",
        *_rates_section(ratios, "Learning rates: EmoPilot and AdamW, tasks for tuning", TUNED, OURS),
        *_rates_section(ratios, "Learning rates: tasks that were held back", ("held back",), OURS),
        *_rates_section(ratios, "Learning rates: all optimizers, tasks for tuning", TUNED, ALL_ROWS),
        *_long_section(store),
        *_troubles_section(store),
        *_batches_section(store),
        *_fine_tuning_section(store),
        *_left_out_section(store, losses),
        *_directions_section(store, losses),
        *_large_section(store),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


STYLES = {
    PILOT: ("#c2255c", "-", 4.0),
    ADAMW: ("#1864ab", "-", 2.2),
    AVERAGED: ("#1864ab", "--", 2.2),
    "AdamW + cosine": ("#4dabf7", ":", 2.2),
    "AdamW, schedule-free": ("#2b8a3e", "-", 2.2),
    "MoMo-Adam": ("#e67700", "-", 2.2),
    "Prodigy": ("#5f3dc4", "-.", 2.2),
    "Muon": ("#868e96", "-", 2.2),
    "EmoSens": ("#212529", ":", 2.2),
}
"""Colour, line and width by row; the rows that the picture shows."""


def draw(store: Store, path: Path) -> None:
    """Draws the final loss over learning rates, the mean over the tasks that every shown row has."""
    ratios = over_adamw(losses_over_rates(store))
    names, rows = shared(ratios, ("yardstick", "other", "held back"), tuple(STYLES))
    figure = Figure(figsize=(10, 6.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (colour, line, width) in STYLES.items():
        mean = mean_over_tasks(ratios, row, names)
        if mean is not None and row in rows:
            # Later rows below earlier ones: EmoPilot stays visible.
            order = 10.0 - list(STYLES).index(row)
            options: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": width}
            axes.plot(RATES, mean, label=row, marker="o", markersize=width + 2, zorder=order, **options)
    axes.axhline(1.0, color="#495057", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.6, 150.0)
    ticks = (0.7, 1, 2, 5, 10, 20, 50)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.tick_params(labelsize=15)
    axes.set_xlabel("learning rate", fontsize=17)
    axes.set_ylabel("test loss / AdamW's at its best rate", fontsize=17)
    axes.set_title(f"Final loss over learning rates, mean of {len(names)} small tasks", fontsize=18)
    axes.grid(color="#dee2e6", linewidth=0.8)
    axes.legend(fontsize=14, ncols=2, loc="upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})
