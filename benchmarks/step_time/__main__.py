"""`python -m benchmarks.step_time`: measures the missing cells, and writes tables and a plot."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from examples.command import answer_early


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({_at_least_one(part) for part in text.split(",")}))


def _names(known: Callable[[], Collection[str]]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        given = text.split(",")
        for name in given:
            if name not in known():
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known())}")
        return tuple(name for name in known() if name in given)

    return names


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_time",
        description="Measure what one step of every optimizer costs, as ratios to AdamW's: time, memory, "
        "compilation. Finished results are kept, and not measured again.",
    )
    parser.add_argument(
        "--rounds", type=_at_least_one, default=15, help="quiet rounds to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--slow-rounds",
        type=_at_least_one,
        default=5,
        help="the same for slow rows that are shown for contrast (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=_numbers, default=(1, 2), help="numbers of threads (default: 1,2)"
    )
    parser.add_argument(
        "--problem",
        type=_names(lambda: PROBLEMS),
        default=("gpt2", "lora"),
        help="which tensors; a wrong name lists all (default: gpt2,lora)",
    )
    parser.add_argument(
        "--framework",
        type=_names(lambda: GROUPS),
        default=("torch", "jax"),
        help="which (default: torch,jax)",
    )
    parser.add_argument(
        "--group",
        type=_names(lambda: dict.fromkeys(name for each in GROUPS.values() for name in each)),
        default=(),
        help="only the steps of these groups of rows, such as steered; a wrong name lists all",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/step_time"),
        help="the folder for tables, plot and results (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds, 1 of slow rows; less of compilation and traces"
    )
    parser.add_argument(
        "--compile", action="store_true", help="count the graphs of torch.compile, too: some minutes"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="JAX's rows that have no bound with every number of threads, not just with the most",
    )
    parser.add_argument("--report", action="store_true", help="measure nothing: write the finished results")
    parser.add_argument("--fresh", action="store_true", help="forget the finished results")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("jax", "optax", "torch", "flax", "matplotlib", "rich", "sklearn"))

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.step_time import pictures, report
from benchmarks.step_time.plan import COMPILED, GROUPS, TRACED, Cell, Settings, cells
from benchmarks.step_time.problems import PROBLEMS
from benchmarks.step_time.store import ROOT, OtherOriginError, Store, environment
from examples.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark with the given command-line arguments, or with the arguments of the process."""
    given = parse(arguments)
    console = Console()
    path = given.output / "results.json"
    if given.fresh:
        path.unlink(missing_ok=True)
    settings = settings_of(given)
    try:
        store = Store(path, None if given.report else environment())
    except (OtherOriginError, ValueError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 2
    if not given.report:
        try:
            run_missing(cells(settings), store, console)
        except KeyboardInterrupt:
            print(f"Stopped. The finished results are kept in {path}: the same command resumes there.")
            return 130
    done = [cell for cell in cells(settings) if cell in store]
    text = report.write(given.output / "tables.md", done, store)
    pictures.draw(given.output / "ratios.png", done, store)
    console.print(Markdown(report.bounds(done, store)))
    print(f"{len(text.splitlines())} lines of tables, a plot and results: {given.output}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = options()
    given = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if max(given.threads) > cores and not given.report:
        parser.error(f"argument --threads: there are {cores} cores here")
    if given.report and given.fresh:
        parser.error("argument --report: not allowed with argument --fresh")
    return given


def settings_of(given: argparse.Namespace) -> Settings:
    """Returns the settings that a command line stands for."""
    leaves = (100,) if given.quick else (100, 500, 1000)
    return Settings(
        frameworks=given.framework,
        # A GPU's steps do not depend on the host's threads.
        threads=given.threads if given.device == "cpu" else given.threads[-1:],
        problems=given.problem,
        device=given.device,
        rounds=3 if given.quick else given.rounds,
        slow_rounds=1 if given.quick else given.slow_rounds,
        leaves=(2,) if given.problem == ("tiny",) else leaves,
        compilations=1 if given.quick else min(5, given.rounds),
        traced=COMPILED if given.quick else TRACED,
        graphs=given.compile,
        full=given.full,
        groups=given.group,
    )


def run_missing(plan: list[Cell], store: Store, console: Console) -> int:
    """Measures every cell that the store lacks, and returns the number of these cells."""
    missing = [cell for cell in plan if cell not in store]
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # A progress bar would take time from the measurements.
        refresh_per_second=1,
    )
    with bars:
        bar = bars.add_task("", total=sum(cell.rounds for cell in missing))
        for _, group in itertools.groupby(missing, key=lambda cell: cell.process):
            _run_process(list(group), store, bars, bar)
    return len(missing)


def _run_process(job: list[Cell], store: Store, bars: Progress, bar: TaskID) -> None:
    """Measures cells of one framework and one number of threads in a new process."""
    framework, device, threads = job[0].process
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": "cuda" if device == "cuda" else "cpu",
        # Compile times are measured in a first run.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, "-m", "benchmarks.step_time.worker", json.dumps(job)]
    waiting, rounds = list(job), 0
    # Errors go into a file: a pipe that nobody reads until the end would block when it is full.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                kind, _, rest = line.strip().partition(" ")
                if kind == "begin":
                    rounds = 0
                    bars.update(bar, description=rest)
                elif kind == "round" and rounds < waiting[0].rounds:
                    rounds += 1
                    bars.advance(bar)
                elif kind == "found":
                    cell = waiting.pop(0)
                    store.put(cell, json.loads(rest))
                    bars.advance(bar, cell.rounds - rounds)
        except BaseException:
            process.terminate()
            raise
        process.wait()
        log.seek(0)
        errors = log.read()
    if process.returncode != 0:
        raise RuntimeError(f"{framework} on {device} failed at {waiting[0].key}:\n{errors}")


if __name__ == "__main__":
    sys.exit(main())
