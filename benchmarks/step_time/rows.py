"""`python -m benchmarks.step_time.rows`: low precision, `Emotional` and small networks against bounds.

Every row has a baseline that takes the same tensors in the same dtype: `torch.optim.AdamW(fused=True)`
where the row names no other. All optimizers of a group run interleaved in one process, in another order
each round, with one thread if the row names no other number. A round in which the process had the processor
for less than 95 % of a step's time is disturbed. A ratio is the ratio of wall times in quiet rounds. If
fewer than half of the rounds are quiet, it is the ratio of CPU times (with two threads, of wall times), and
is marked by *. For each row that misses its bound, the command measures the parts that the row cannot do
without.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.step_time.row_steps import (
    JAX_ROWS,
    ROUNDS,
    ROWS,
    SHAPES,
    TINY,
    Result,
    Row,
    jax_results,
    torch_results,
    without_cache,
)
from examples.command import answer_early

KEPT = "rows.json"


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time.rows", description=__doc__)
    parser.add_argument("--framework", choices=("torch", "jax", "all"), default="all")
    parser.add_argument("--tensors", choices=tuple(SHAPES), action="append", help="default: all but tiny")
    parser.add_argument("--rounds", type=int, help="default: by the kind of tensors")
    parser.add_argument("--output", type=Path, help="a folder, for rows.md and rows.json")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the rows that the folder has, and measure the others; with --tensors or --framework, "
        "these rows are measured and all others kept",
    )
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "jax", "rich"))

from benchmarks.step_time.store import environment
from benchmarks.step_time.tables import BUSY_MACHINE
from benchmarks.step_time.why import section, why


def table(results: Sequence[Result]) -> str:
    """Returns the results as a table in Markdown."""
    lines = [
        "| full step | dtype | tensors | at least | ratio | a step, ms | quiet rounds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        middle, low, high = result.ratio
        verdict = "" if result.bound is None else " **fail**" if result.misses else " pass"
        verdict = verdict if result.is_judged else f" {BUSY_MACHINE}" if verdict else ""
        lines.append(
            f"| {result.row.title} | {result.row.dtype} | {result.tensors} | {result.bound or ''} | "
            f"{middle:.2f}{'' if result.is_wall else '*'} [{low:.2f}, {high:.2f}]{verdict} | "
            f"{result.milliseconds:.3g} | {result.quiet:.0%} |"
        )
    return "\n".join(lines)


def page(results: Sequence[Result], reasons: str) -> str:
    """Returns the whole page."""
    said = ", ".join(f"{name} {value}" for name, value in environment().items())
    parts = (
        "# Low precision, wrappers and small networks",
        "Written by `python -m benchmarks.step_time.rows`.",
        (__doc__ or "").partition("\n\n")[2].strip(),
        f"{said}.",
        table(results),
        reasons,
    )
    return "\n\n".join(parts) + "\n"


Key = tuple[str, str, str]


def keys_of(framework: str, kinds: Sequence[str]) -> dict[Key, Row]:
    """Returns the rows of a framework on some kinds of tensors, in the order of the table."""
    rows = ROWS if framework == "torch" else JAX_ROWS
    return {
        (row.title, row.dtype, kind): row
        for kind in kinds
        for row in rows
        if kind in row.bounds or kind == TINY
    }


def run(wanted: dict[Key, Row], framework: str, rounds: int | None = None) -> list[tuple[Key, Result]]:
    """Measures rows of a framework: all rows with the same tensors and the same dtype together."""
    found: list[tuple[Key, Result]] = []
    results = torch_results if framework == "torch" else jax_results
    for kind, dtype in dict.fromkeys((kind, dtype) for _, dtype, kind in wanted):
        own = {key: row for key, row in wanted.items() if key[1:] == (dtype, kind)}
        measured = results(kind, list(own.values()), rounds or ROUNDS[kind])
        found += zip(own, measured, strict=True)
    return found


def read(path: Path) -> dict[Key, Result]:
    """Returns the results in a file, of rows that there still are; none if there is no file."""
    if not path.exists():
        return {}
    rows = {**keys_of("torch", list(SHAPES)), **keys_of("jax", list(SHAPES))}
    found: dict[Key, Result] = {}
    for title, dtype, kind, ratio, *rest in json.loads(path.read_text(encoding="utf-8")):
        if (title, dtype, kind) in rows:
            found[title, dtype, kind] = Result(rows[title, dtype, kind], kind, tuple(ratio), *rest)
    return found


def write(path: Path, results: dict[Key, Result]) -> None:
    """Writes results into a file, for `read`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps([*key, *result[2:]]) for key, result in results.items()]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and the reasons, and writes them where `--output` says."""
    given = options().parse_args(arguments)
    kinds = given.tensors or [kind for kind in SHAPES if kind != TINY]
    frameworks = ("torch", "jax") if given.framework == "all" else (given.framework,)
    kept: dict[Key, Result] = {}
    if given.resume and given.output is not None:
        kept = read(given.output / KEPT)
    is_part = given.tensors is not None or given.framework != "all"
    with without_cache() if "jax" in frameworks else nullcontext():
        for framework in frameworks:
            for kind in kinds:
                wanted = keys_of(framework, [kind])
                if given.resume and not is_part:
                    wanted = {key: row for key, row in wanted.items() if key not in kept}
                kept.update(run(wanted, framework, given.rounds))
                if given.output is not None:
                    write(given.output / KEPT, kept)
        order: dict[Key, Any] = {**keys_of("torch", list(SHAPES)), **keys_of("jax", list(SHAPES))}
        results = [kept[key] for key in order if key in kept]
        missed = [result for result in results if result.misses]
        reasons = section([why(result, given.rounds) for result in missed], missed)
    print(table(results))
    print()
    print(reasons)
    if given.output is not None:
        (given.output / "rows.md").write_text(page(results, reasons), encoding="utf-8")


if __name__ == "__main__":
    main()
