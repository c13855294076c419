"""Tables of the stored results: losses over AdamW's losses at its best learning rate."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.contenders import ADAMW, AVERAGED, DEFAULTS, PILOT
from benchmarks.quality.plan import HELD_BACK, LOSSES_OVER_RATES, RATES, Cell, cells
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


def _by_seed(losses: Any) -> NDArray[np.float64]:
    """Returns the losses of the runs without trouble, `[rates, seeds]`; infinite where one diverged."""
    return np.asarray([[np.inf if loss is None else loss for loss in rate] for rate in losses[0]])


def losses_over_rates(store: Store) -> Losses:
    """Returns the mean loss over the seeds by task and row, shape `[rates]`; infinite where it diverged."""
    found: Losses = {}
    for cell in cells(held_back=True):
        if cell.study == "rates" and cell.key in store:
            for row, losses in store.get(cell.key).items():
                known = _by_seed(losses)
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


def _summary_section(ratios: Losses) -> Rows:
    names, some = shared(ratios, (*LOSSES_OVER_RATES, *HELD_BACK), ALL_ROWS)
    from_rate, to_rate = RATES.index(1e-4), RATES.index(1e-1)
    rows = []
    for row in some:
        mean = mean_over_tasks(ratios, row, names)
        if mean is not None:
            default = mean[RATES.index(DEFAULTS[row])]
            worst = mean[from_rate : to_rate + 1].max()
            rows.append([row, *map(number, (default, mean.min(), worst))])
    head = ["optimizer", "default rate", "best rate for all tasks", "worst rate from 1e-4 to 1e-1"]
    return [
        "## All optimizers on all tasks",
        "",
        f"Geometric mean over {len(names)} tasks: those for tuning, and those that were held back.",
        "",
        *table(head, rows),
    ]


def _single(store: Store, study: str) -> list[tuple[Cell, dict[str, Any]]]:
    return [
        (cell, store.get(cell.key))
        for cell in cells(held_back=True)
        if cell.study == study and cell.key in store
    ]


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
    lines = ["## The value of each piece", "", text, "", *table(head, rows)]
    spikes = _single(store, "left out, spikes")
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
                row.append(number(_mean(result[cell.contender][place][index]) / _mean(calm[index])))
    return table(head, rows)


def _seeds_section(store: Store) -> Rows:
    found = _single(store, "seeds")
    if not found:
        return []
    count = len(found[0][0].seeds)
    rows = []
    for _, result in found:
        for row, losses in result.items():
            known = _by_seed(losses)
            error = known.std(-1, ddof=1) / count**0.5
            rows.append([row, *(f"{m:.3f} ± {e:.3f}" for m, e in zip(known.mean(-1), error, strict=True))])
    text = (
        f"The transformer on patches of images, {count} seeds: the mean test loss and its standard error."
    )
    return [
        "## A held-back task with more seeds",
        "",
        text,
        "",
        *table(["optimizer", *(f"{r:g}" for r in RATES)], rows),
    ]


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
        *_summary_section(ratios),
        *_rates_section(
            ratios, "Learning rates: EmoPilot and AdamW, tasks for tuning", LOSSES_OVER_RATES, OURS
        ),
        *_rates_section(ratios, "Learning rates: tasks that were held back", ("held back",), OURS),
        *_rates_section(
            ratios, "Learning rates: tasks that were held back later", ("held back later",), WITH_AIRY
        ),
        *_seeds_section(store),
        *_rates_section(
            ratios, "Learning rates: all optimizers, tasks for tuning", LOSSES_OVER_RATES, ALL_ROWS
        ),
        *_rates_section(
            ratios, "Learning rates: all optimizers, all tasks that were held back", HELD_BACK, ALL_ROWS
        ),
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
