"""The tables of a soak, in the terminal and as a page."""

import os
import platform
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from parity_tests.__main__ import versions
from parity_tests.soak_plan import FAULTS, LOCKSTEP_STEPS, Result

COLUMNS = ("optimizer", "dtype", "leaf", "absolute", "of bound", "until 1%", "until 10%", "until the end")
MEMORY_COLUMNS = (
    "optimizer",
    "dtype",
    "tensors",
    "arrays",
    "MiB after the warm-up",
    "MiB at the end",
    "faults",
)


def rows(results: list[Result]) -> list[tuple[str, ...]]:
    """Returns a row for each run and group of leaves."""
    found = []
    for result in results:
        for group, gap in sorted(result.gaps.items()):
            growth = [f"{most:.1e}" for _, most in sorted(result.growth.items())]
            found.append(
                (
                    *(result.soak.optimizer, result.soak.dtype, group, f"{gap.absolute:.1e}"),
                    *(f"{gap.excess:.3f}", *(growth if group == "parameters" else [""] * 3)),
                )
            )
    return found


def memory_rows(results: list[Result]) -> list[tuple[str, ...]]:
    """Returns a row for each run, with the objects that it held after the warm-up and at the end."""
    return [
        (
            *(result.soak.optimizer, result.soak.dtype),
            f"{result.before.tensors} to {result.after.tensors}",
            f"{result.before.arrays} to {result.after.arrays}",
            *(f"{result.before.resident:.0f}", f"{result.after.resident:.0f}"),
            str(sum(count for name, count in result.faults.items() if name)),
        )
        for result in results
    ]


def print_tables(console: Console, results: list[Result]) -> None:
    """Prints both tables, and the errors."""
    for title, columns, cells in (
        ("Largest differences, Optax against PyTorch", COLUMNS, rows(results)),
        ("Memory", MEMORY_COLUMNS, memory_rows(results)),
    ):
        table = Table(title=title, box=None, padding=(0, 1, 0, 0))
        for column in columns:
            table.add_column(
                column, justify="left" if column in ("optimizer", "dtype", "leaf") else "right"
            )
        for row in cells:
            table.add_row(*row)
        console.print(table)
    for result in results:
        for failure in result.failures():
            console.print(f"[red]{result.soak.optimizer}, {result.soak.dtype}[/red]: {failure}")


def write(path: Path, results: list[Result]) -> None:
    """Writes the page."""

    def table(columns: tuple[str, ...], cells: list[tuple[str, ...]]) -> list[str]:
        rule = ["---" if column in ("optimizer", "dtype", "leaf") else "---:" for column in columns]
        return ["| " + " | ".join(row) + " |" for row in (columns, tuple(rule), *cells)]

    faults: Counter[str] = sum((result.faults for result in results), Counter())
    counts = ", ".join(f"{name} {faults[name]}" for name in FAULTS)
    failures = [failure for result in results for failure in result.failures()]
    steps = results[0].steps
    lines = [
        "# Soak of emo_optax and emo_torch",
        "",
        f"{len(results)} runs of {steps} steps; {len(failures)} beyond a bound.",
        "Written by `python -m parity_tests.soak --report`. Both sides get the same gradients and losses.",
        "The bounds are in `parity_tests/tolerances.py`. In float64 they are the bounds of",
        f"{LOCKSTEP_STEPS} steps. In float32 the bounds of averages are the bounds of {LOCKSTEP_STEPS}",
        "steps, too. A parameter and its shadow add up the roundings of all steps: after n steps their",
        f"bound is n / {LOCKSTEP_STEPS} times as wide.",
        "",
        f"Faults on the way: {counts}.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
        f"{platform.system()} on {platform.machine()}, {os.cpu_count()} processors, no GPU used.",
        "",
        "The largest differences; for parameters, also until so many of the steps:",
        "",
        *table(COLUMNS, rows(results)),
        "",
        "Objects alive after the warm-up of a tenth of the steps, and at the end:",
        "",
        *table(MEMORY_COLUMNS, memory_rows(results)),
        *(["", *(f"- {failure}" for failure in failures)] if failures else []),
    ]
    path.write_text("\n".join(lines) + "\n")
