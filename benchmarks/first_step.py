"""How long the first PyTorch step takes on the CPU, compared with later steps.

    python -m benchmarks.first_step --output docs/step_time

writes `first_step.md`. Each optimizer steps in a new process, on one thread, with its defaults. Compiled
code comes with the package, so that no compiler runs. The first step loads the library, checks all tensors
and makes the state; later steps find all of that. Memory that is new to a process is zeroed by the system,
page by page. Another new process measures how long the zeros of the same state take by themselves.
"""

import argparse
from pathlib import Path

from examples.command import answer_early, one_of, positive_int


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_step", description=__doc__)
    parser.add_argument(
        "--problem",
        type=one_of(lambda: PROBLEMS),
        metavar="NAME",
        action="append",
        help="default: gpt2 and lora",
    )
    parser.add_argument(
        "--later", type=positive_int, default=15, help="later steps to measure (default: 15)"
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=3, help="new processes for each row (default: 3)"
    )
    parser.add_argument("--output", type=Path, help="the folder to write first_step.md to")
    return parser


if __name__ == "__main__":
    answer_early(options, "examples", ("torch", "jax", "rich"))

import json
import statistics
import subprocess
import sys
from typing import NamedTuple

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.step_time.problems import PROBLEMS
from benchmarks.step_time.store import environment
from benchmarks.step_time.tables import table
from emo_torch._kernels import library
from examples.progress import track

MEASURED = ("adamw", "emo_sens", "emo_airy", "emo_cats", "emo_clan")
"""Optimizers with compiled steps, by name; `adamw` is `torch.optim.AdamW(fused=True)`."""
AT_MOST = 5.0
"""How many times as long as a later step the first step may take."""

PROCESS = """
import json, sys, time
import torch
import emo_torch
from benchmarks.step_time.problems import PROBLEMS

make, problem, later = sys.argv[1], PROBLEMS[sys.argv[2]], int(sys.argv[3])
torch.set_num_threads(1)
params = [torch.nn.Parameter(torch.full(shape, 0.5)) for shape in problem.shapes]
for param in params:
    param.grad = torch.full_like(param, 0.01)
if make == "adamw":
    optimizer, given = torch.optim.AdamW(params, fused=True), {}
else:
    optimizer, given = emo_torch.create_optimizer(make, params), {"loss": torch.tensor(2.0)}
seconds = []
for _ in range(1 + later):
    start = time.perf_counter()
    optimizer.step(**given)
    seconds.append(time.perf_counter() - start)
layouts = [
    (list(value.shape), str(value.dtype).removeprefix("torch."))
    for state in optimizer.state.values()
    for value in state.values()
    if isinstance(value, torch.Tensor) and value.ndim
]
print(json.dumps([seconds, layouts]))
"""

ZEROS = """
import json, sys, time
import torch

torch.set_num_threads(1)
layouts = [(shape, getattr(torch, dtype)) for shape, dtype in json.load(sys.stdin)]
start = time.perf_counter()
state = [torch.zeros(shape, dtype=dtype) for shape, dtype in layouts]
for zeros in state:
    zeros.add_(0.0)  # Zeros of the system are given out at the first write.
print(time.perf_counter() - start)
"""


class Times(NamedTuple):
    """The times of one row, in seconds."""

    first: float
    """The first step."""
    later: float
    """The median of later steps."""
    state: float
    """Zeros for the state, in a process that does nothing else."""

    @property
    def whole(self) -> float:
        """How many times as long as a later step the first step takes."""
        return self.first / self.later

    @property
    def without_state(self) -> float:
        """The same, without the time that the zeros take."""
        return (self.first - self.state) / self.later


def measure(make: str, problem: str, later: int, repeats: int) -> Times:
    """Returns the times of one optimizer, each the least of several processes."""
    # Other work on the machine only adds time.
    command = [sys.executable, "-c", PROCESS, make, problem, str(later)]
    found = []
    for _ in range(repeats):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        (first, *others), layouts = json.loads(done.stdout)
        zeros = subprocess.run(
            [sys.executable, "-c", ZEROS],
            input=json.dumps(layouts),
            check=True,
            capture_output=True,
            text=True,
        )
        found.append((first, statistics.median(others), float(zeros.stdout)))
    return Times(*(min(column) for column in zip(*found, strict=True)))


def verdict(times: float) -> str:
    """Returns whether a number of times is within the bound."""
    return "pass" if times <= AT_MOST else "**fail**"


def report(found: dict[tuple[str, str], Times]) -> str:
    """Returns the page: a row for each optimizer and problem."""
    machine = "; ".join(f"{name} {value}" for name, value in environment().items() if "jax" not in name)
    rows = []
    for (make, problem), times in found.items():
        ratios = times.whole, times.without_state
        verdicts = ("", "") if make == "adamw" else tuple(verdict(ratio) for ratio in ratios)
        cells = [f"{1e3 * seconds:.3g}" for seconds in times]
        cells += [f"{ratio:.2f} {word}".strip() for ratio, word in zip(ratios, verdicts, strict=True)]
        rows.append((make, PROBLEMS[problem].title, *cells))
    heads = (
        "first step, ms",
        "later step, ms",
        "zeros of the state, ms",
        "first / later",
        "(first - zeros) / later",
    )
    return "\n\n".join(
        [
            "# The first step",
            "Written by `python -m benchmarks.first_step`. PyTorch on the CPU, one thread, each row in a "
            "new process. A later step is the median of all but the first. All times are the least of "
            "several processes. The first step makes the state, as AdamW's first step does. The zeros of "
            "the state are measured in a process that does nothing else. The system gives out memory page "
            "by page, which takes most of this time. "
            f"The bound of both ratios is {AT_MOST:g}. Machine and versions: {machine}.",
            table(("optimizer", "tensors", *heads), rows, left=2),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if a ratio is beyond the bound, 2 without compiled code."""
    given = options().parse_args(arguments)
    if library() is None:
        print("Compiled code is missing: run `python -m emo_torch.build` first", file=sys.stderr)
        return 2
    jobs = [(make, name) for name in given.problem or ["gpt2", "lora"] for make in MEASURED]
    console = Console()
    found = {
        (make, name): measure(make, name, given.later, given.repeats)
        for make, name in track(jobs, "first steps", console=console, transient=True)
    }
    page = report(found)
    console.print(Markdown(page))
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "first_step.md").write_text(page + "\n")
        console.print(f"written: {given.output / 'first_step.md'}")
    return 1 if "**fail**" in page else 0


if __name__ == "__main__":
    sys.exit(main())
