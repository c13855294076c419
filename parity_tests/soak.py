"""Trains both packages side by side for very long, with faults on the way: memory flat, and no drift.

Run with `python -m parity_tests.soak --steps 100000`. Both sides are given the same gradients and losses in
one process on the CPU. Now and then, as a seeded draw says, a loss is not finite or has a spike, is missing
or is no number (the error is caught), a gradient is NaN (the step is left out, as a user would), the
learning rate jumps, both sides go on from a file in a new optimizer, or change their places over the
bridge. It ends with 1 where the two are further apart than the bounds, or hold more memory than after the
warm-up.
"""

import argparse
from pathlib import Path

from examples.command import answer_early, one_of
from parity_tests.tolerances import LOCKSTEP


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="of each run; default: %(default)s")
    parser.add_argument(
        "--optimizer",
        type=one_of(lambda: [soak.optimizer for soak in SOAKS[:4]]),
        metavar="NAME",
        action="append",
    )
    parser.add_argument("--dtype", choices=[*LOCKSTEP][:2], action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: %(default)s")
    parser.add_argument("--report", type=Path, help="write a Markdown page")
    return parser


if __name__ == "__main__":
    answer_early(options, "dev", ("jax", "optax", "torch", "flax", "matplotlib", "rich"))

import functools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console

from examples.progress import Progress
from parity_tests.compare import Difference, differences
from parity_tests.soak_plan import (
    FAULTS,
    LOCKSTEP_STEPS,
    POOL,
    SHAPES,
    SOAKS,
    Memory,
    Result,
    Soak,
    draw_gradients,
    draw_loss,
)
from parity_tests.soak_report import print_tables, write
from parity_tests.soak_sides import OptaxSide, TorchSide
from parity_tests.tolerances import Tolerance, bound


def tolerance(leaf: str, soak: Soak, steps: int) -> Tolerance:
    """Returns the bound of a leaf after so many steps.

    In float64 it is the one of 300 steps, however many there were. In float32 averages forget what was
    rounded, and have that of 300 steps, too; a parameter and its shadow add up the roundings of all steps,
    and may be apart by that as often as there were 300 of them.
    """
    usual = bound(leaf, soak.dtype, soak.options)
    if soak.dtype == "float64" or not leaf.startswith(("param/", "shadow/")):
        return usual
    times = max(1.0, steps / LOCKSTEP_STEPS)
    return usual._replace(absolute=times * usual.absolute, relative=times * usual.relative)


def _refused(side: Any, grads: Any, loss: Any, lr: float) -> bool:
    try:
        side.step(grads, loss, lr)
    except (ValueError, TypeError):
        return True
    return False


def run(soak: Soak, steps: int, *, seed: int = 0, advance: Callable[[], None] = lambda: None) -> Result:
    """Runs both sides, compares them about 500 times, and looks at the memory."""
    random = np.random.default_rng(seed)
    start = {name: np.asarray(random.normal(size=shape), soak.dtype) for name, shape in SHAPES.items()}
    faults: Counter[str] = Counter()
    gaps: dict[str, Difference] = {}
    growth: dict[int, float] = {}
    first_excess: tuple[int, str] | None = None
    before = None
    lr = 1e-3
    names, chances = list(FAULTS), np.cumsum(list(FAULTS.values()))
    with jax.enable_x64(soak.dtype == "float64"), tempfile.TemporaryDirectory() as folder:
        sides: list[Any] = [OptaxSide(soak, start), TorchSide(soak, start)]
        drawn = [draw_gradients(soak.dtype, random) for _ in range(POOL)]
        pools = [[side.gradients(grads) for grads in drawn] for side in sides]
        every = max(1, steps // 500)
        for step in range(steps):
            index, loss = int(random.integers(POOL)), draw_loss(step, random)
            place = int(np.searchsorted(chances, random.random(), side="right"))
            fault = names[place] if place < len(names) else ""
            if step == 1 + steps // 10:  # Behind every kind of fault once, so that all is compiled.
                before = Memory.now()
            if step < len(names):
                fault = names[step]
            faults[fault] += 1
            given: Any = loss
            if fault == "NaN loss":
                given = float("nan")
            elif fault == "infinite loss":
                given = float(random.choice([np.inf, -np.inf]))
            elif fault == "spike":
                given = loss + float(10.0 ** random.uniform(-1.0, 1.0))
            elif fault == "learning rate":
                lr = float(10.0 ** random.uniform(-5.0, -2.0))
            elif fault == "file":
                for side in sides:
                    side.resume(Path(folder))
            elif fault == "bridge":
                ends = [side.leave() for side in sides]
                for side, (params, arrays) in zip(sides, reversed(ends), strict=True):
                    side.enter(params, arrays)
                del ends, params, arrays
            if fault in ("missing loss", "no number"):
                bad = None if fault == "missing loss" else "loss"
                if not all(
                    _refused(side, pool[index], bad, lr) for side, pool in zip(sides, pools, strict=True)
                ):
                    raise AssertionError(f"a step took {bad!r} for a loss")
            elif fault != "NaN gradient":  # That step is left out, as by a user who looks at the norm.
                for side, pool in zip(sides, pools, strict=True):
                    side.step(pool[index], given, lr)
            if step % every == 0 or step == steps - 1:
                gap, excess = _compare(sides, soak, step + 1)
                for leaf, difference in gap.items():
                    gaps[leaf] = gaps.get(leaf, Difference()).join(difference)
                if first_excess is None and excess is not None:
                    first_excess = (step, excess)
                for until in (steps // 100, steps // 10, steps):
                    if step < until:
                        growth[until] = max(growth.get(until, 0.0), gap["parameters"].absolute)
            advance()
        after = Memory.now()
    assert before is not None
    return Result(soak, steps, faults, gaps, growth, first_excess, before, after)


GROUPS = {
    "param": "parameters",
    "shadow": "shadow",
    "emotion": "emotion",
    "exp_avg": "moments",
    "exp_avg_sq": "moments",
    "row": "moments",
    "column": "moments",
}


def _compare(sides: list[Any], soak: Soak, steps: int) -> tuple[dict[str, Difference], str | None]:
    """Compares both sides; returns each group's difference, and the differences beyond their bounds."""
    (params, arrays), (references, expected) = (side.leave() for side in sides)
    ours = {f"param/{name}": array for name, array in params.items()} | arrays
    theirs = {f"param/{name}": array for name, array in references.items()} | expected
    gaps: dict[str, Difference] = {}
    excess = None
    for leaf in sorted(ours.keys() - {"version", "rule"}):
        [gap] = differences(ours[leaf][None], theirs[leaf][None], tolerance(leaf, soak, steps))
        group = GROUPS[leaf.split("/")[0]]
        gaps[group] = gaps.get(group, Difference()).join(gap)
        excess = leaf if gap.excess > 1.0 and excess is None else excess
    return gaps, excess


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints, reports; returns the exit status of the process."""
    parser = options()
    given = parser.parse_args(arguments)
    if given.steps < 100:
        parser.error(f"--steps {given.steps}: there must be 100 at least")
    chosen = [
        soak
        for soak in SOAKS
        if soak.optimizer in (given.optimizer or [soak.optimizer])
        and soak.dtype in (given.dtype or [soak.dtype])
    ]
    console = Console()
    results = []
    with Progress(transient=True, console=console) as progress:
        for soak in chosen:
            bar = progress.add_task(f"{soak.optimizer}, {soak.dtype}", total=given.steps)
            advance = functools.partial(progress.advance, bar)
            results.append(run(soak, given.steps, seed=given.seed, advance=advance))
    print_tables(console, results)
    if given.report is not None:
        write(given.report, results)
        console.print(f"report: {given.report}")
    return 1 if any(result.failures() for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
