"""Tables of the stored results: losses over AdamW's losses at its best learning rate."""

import statistics
from pathlib import Path

import numpy as np

from benchmarks.quality.contenders import DEFAULTS
from benchmarks.quality.plan import HELD_BACK, LOSSES_OVER_RATES, RATES, cells
from benchmarks.quality.ratios import (
    ALL_ROWS,
    OURS,
    WITH_AIRY,
    Losses,
    Rows,
    losses_by_seed,
    losses_over_rates,
    mean_of,
    mean_over_tasks,
    number,
    over_adamw,
    shared,
    single,
    table,
)
from benchmarks.quality.report_rules import directions_section, first_version_section, left_out_section
from examples.yardstick.store import Store


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


def _long_section(store: Store) -> Rows:
    found = single(store, "long")
    if not found:
        return []
    rates = found[0][0].rates
    rows = [
        [row, *(number(mean_of(losses)) for losses in result[row][0])]
        for _, result in found
        for row in result
    ]
    text = "Noisy labels, 10 000 steps, batches of 16, one seed: divergence from the truth, in nats."
    return ["## Long runs", "", text, "", *table(["optimizer", *(f"{rate:g}" for rate in rates)], rows)]


def _troubles_section(store: Store) -> Rows:
    found = single(store, "troubles")
    if not found:
        return []
    head, columns = ["disturbance, at step 150 of 300"], []
    for cell, result in found:
        for row, losses in result.items():
            for index, rate in enumerate(cell.rates):
                head.append(f"{row} {rate:g}")
                columns.append([mean_of(each[index]) for each in losses])
    names = [name for name, _ in found[0][0].troubles]
    # A loss in another unit is measured in the usual one.
    rows = [
        [name, *(number(column[index] / column[0]) for column in columns)]
        for index, name in enumerate(names)
    ]
    text = "Digits, perceptron: the final loss over that of the run in which nothing goes wrong, 3 seeds."
    return ["## Spikes, units and missing losses", "", text, "", *table(head, rows)]


def _batches_section(store: Store) -> Rows:
    found = single(store, "batches")
    if not found:
        return []
    sizes = sorted({cell.batch_size for cell, _ in found})
    rows: dict[str, dict[int, float]] = {}
    for cell, result in found:
        for row, losses in result.items():
            for index, rate in enumerate(cell.rates):
                rows.setdefault(f"{row} {rate:g}", {})[cell.batch_size] = mean_of(losses[0][index])
    lines = [[name, *(number(row.get(size, np.inf)) for size in sizes)] for name, row in rows.items()]
    text = "Digits, perceptron: the final loss after 300 steps, 3 seeds."
    return ["## Batch sizes", "", text, "", *table(["optimizer, rate", *map(str, sizes)], lines)]


def _fine_tuning_section(store: Store) -> Rows:
    found = single(store, "fine-tuning")
    if not found:
        return []
    rows = []
    for _, result in found:
        for row in [name for name in result if not name.endswith("known")]:
            pairs = zip(result[row][0], result[f"{row}, known"][0], strict=True)
            rows.append([row, *(f"{mean_of(new):.2f}, {mean_of(known):.2f}" for new, known in pairs)])
    text = (
        "A transformer that knows one text learns another one, in capitals, for 300 steps: the loss on the "
        "new text, and the loss on the text that it knew (forgetting), by learning rate."
    )
    head = ["optimizer", *(f"{rate:g}" for rate in found[0][0].rates)]
    return ["## Fine-tuning", "", text, "", *table(head, rows)]


def _seeds_section(store: Store) -> Rows:
    found = single(store, "seeds")
    if not found:
        return []
    count = len(found[0][0].seeds)
    rows = []
    for _, result in found:
        for row, losses in result.items():
            known = losses_by_seed(losses)
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


def _large_section(store: Store) -> Rows:
    found = [(cell, store.get(cell.key)) for cell in cells() if cell.task == "large" and cell.key in store]
    if not found:
        return []
    rates = sorted({rate for cell, _ in found for rate in cell.rates})
    rows: dict[str, dict[float, str]] = {}
    for cell, result in found:
        for row, losses in result.items():
            rows.setdefault(row, {})[cell.rates[0]] = number(mean_of(losses[0][0]))
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
        *first_version_section(store, losses),
        *_long_section(store),
        *_troubles_section(store),
        *_batches_section(store),
        *_fine_tuning_section(store),
        *left_out_section(store, losses),
        *directions_section(store, losses),
        *_large_section(store),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
