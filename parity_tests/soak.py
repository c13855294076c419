"""Trains both packages side by side for very long, with faults on the way: memory flat, and no drift.

Run with `python -m parity_tests.soak --steps 100000`. Both sides are given the same gradients and losses in
one process on the CPU. Now and then, as a seeded draw says, a loss is not finite or has a spike, is missing
or is no number (the error is caught), a gradient is NaN (the step is left out, as a user would), the
learning rate jumps, both sides go on from a file in a new optimizer, or change their places over the
bridge. It ends with 1 where the two are further apart than the bounds, or hold more memory than after the
warm-up.
"""

import argparse
import functools
import gc
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import emo_optax
import emo_torch
from parity_tests.__main__ import versions
from parity_tests.compare import Difference, differences
from parity_tests.drive import Arrays, to_numpy, to_torch
from parity_tests.family import FAMILY, optax_options
from parity_tests.tolerances import LOCKSTEP, Tolerance, bound

SHAPES: dict[str, tuple[int, ...]] = {"matrix": (4, 3), "vector": (5,), "scalar": ()}
LOCKSTEP_STEPS = 300
"""So many steps the bounds of `tolerances` are made for."""
POOL = 499
"""So many different gradients there are: a prime, so that they meet every kind of loss."""
MOST_GROWTH = 16.0
"""What resident memory may grow by after the warm-up, in MiB: the allocators' own noise."""


class Soak(NamedTuple):
    """One long run.

    Attributes:
        optimizer: the member's name in PyTorch.
        dtype: of parameters and gradients.
        options: its options, by PyTorch's names.
    """

    optimizer: str
    dtype: str
    options: dict[str, Any] = {}  # noqa: RUF012


SOAKS = [
    Soak(name, dtype, {"use_shadow": True} if name == "EmoNeco" else {})
    for dtype in ("float64", "float32")
    for name in ("EmoSens", "EmoAiry", "EmoCats", "EmoNeco")
]


class Memory(NamedTuple):
    """What a process holds.

    Attributes:
        tensors: live tensors of PyTorch.
        arrays: live arrays of JAX.
        resident: resident memory in MiB; 0 where the system does not tell.
    """

    tensors: int
    arrays: int
    resident: float

    @classmethod
    def now(cls) -> "Memory":
        """Looks at this process, once nothing is left to be freed."""
        gc.collect()
        tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
        pages = Path("/proc/self/statm")
        resident = 0.0
        if pages.exists():
            resident = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
        return cls(tensors, len(jax.live_arrays()), resident)


class Result(NamedTuple):
    """What a run showed.

    Attributes:
        soak: the run.
        steps: steps asked for, those that a fault stopped included.
        faults: how often each fault took place.
        gaps: the largest difference of each group of leaves.
        growth: the largest difference of a parameter until so many steps.
        first_excess: the first step after which a bound was exceeded, and the leaf; or `None`.
        before: the memory after the warm-up.
        after: the memory at the end.
    """

    soak: Soak
    steps: int
    faults: Counter[str]
    gaps: dict[str, Difference]
    growth: dict[int, float]
    first_excess: tuple[int, str] | None
    before: Memory
    after: Memory

    def failures(self) -> list[str]:
        """Returns what is wrong with the run, in words."""
        wrong = []
        if self.first_excess is not None:
            step, leaf = self.first_excess
            wrong.append(f"{leaf} was beyond its bound after step {step}")
        if self.after.tensors > self.before.tensors:
            wrong.append(f"{self.after.tensors - self.before.tensors} tensors more than after the warm-up")
        if self.after.arrays > self.before.arrays:
            wrong.append(f"{self.after.arrays - self.before.arrays} arrays more than after the warm-up")
        grown = self.after.resident - self.before.resident
        if grown > MOST_GROWTH:
            wrong.append(f"{grown:.0f} MiB more than after the warm-up")
        return wrong


class OptaxSide:
    """The run in Optax, one jitted step with the learning rate as an argument."""

    def __init__(self, soak: Soak, params: Arrays) -> None:
        self._make = FAMILY[soak.optimizer].optax
        self._options = optax_options(soak.options)
        self._step = jax.jit(self._stepped)
        self._params = {name: jnp.asarray(array) for name, array in params.items()}
        self._state = self._make(1e-3, **self._options).init(self._params)

    def _stepped(self, params: Any, state: Any, grads: Any, loss: Any, lr: Any) -> tuple[Any, Any]:
        optimizer = self._make(lr, **self._options)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    def gradients(self, grads: Arrays) -> Any:
        """Returns gradients as this side takes them."""
        return {name: jnp.asarray(array) for name, array in grads.items()}

    def step(self, grads: Any, loss: Any, lr: float) -> None:
        """Takes one step."""
        self._params, self._state = self._step(self._params, self._state, grads, loss, lr)

    def leave(self) -> tuple[Arrays, Arrays]:
        """Returns the parameters, and the state under names that both sides share."""
        params = {name: np.array(array) for name, array in self._params.items()}
        return params, emo_optax.to_arrays(self._state)

    def enter(self, params: Arrays, arrays: Arrays) -> None:
        """Goes on from what either side left, in a new state."""
        self._params = {name: jnp.array(array) for name, array in params.items()}
        fresh = self._make(1e-3, **self._options).init(self._params)
        self._state = emo_optax.from_arrays(arrays, fresh)

    def resume(self, folder: Path) -> None:
        """Writes a checkpoint, and goes on from it."""
        leaves, structure = jax.tree.flatten((self._params, self._state))
        np.savez(folder / "optax.npz", *map(np.asarray, leaves))
        with np.load(folder / "optax.npz") as kept:
            self._params, self._state = jax.tree.unflatten(structure, map(jnp.array, kept.values()))


class TorchSide:
    """The run in PyTorch."""

    def __init__(self, soak: Soak, params: Arrays) -> None:
        self._soak = soak
        self._begin(params)

    def _begin(self, params: Arrays) -> None:
        self._params = {name: torch.nn.Parameter(to_torch(array)) for name, array in params.items()}
        ordered = [self._params[name] for name in sorted(self._params)]
        # In the way that a user gets who names none: compiled code, where there is a compiler.
        self.optimizer = FAMILY[self._soak.optimizer].torch(ordered, lr=1e-3, **self._soak.options)

    def gradients(self, grads: Arrays) -> Any:
        """Returns gradients as this side takes them."""
        return {name: to_torch(array) for name, array in grads.items()}

    def step(self, grads: Any, loss: Any, lr: float) -> None:
        """Takes one step."""
        for name, param in self._params.items():
            param.grad = grads[name]
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step(loss=loss)

    def leave(self) -> tuple[Arrays, Arrays]:
        """Returns the parameters, and the state under names that both sides share."""
        params = {name: to_numpy(param) for name, param in self._params.items()}
        return params, emo_torch.to_arrays(self.optimizer, self._params.items())

    def enter(self, params: Arrays, arrays: Arrays) -> None:
        """Goes on from what either side left, in a new optimizer."""
        self._begin(params)
        emo_torch.from_arrays(arrays, self.optimizer, self._params.items())

    def resume(self, folder: Path) -> None:
        """Writes a checkpoint, and goes on from it in a new optimizer."""
        params = {name: param.detach() for name, param in self._params.items()}
        torch.save({"params": params, "optimizer": self.optimizer.state_dict()}, folder / "torch.pt")
        kept = torch.load(folder / "torch.pt", weights_only=True)
        self._begin({name: to_numpy(tensor) for name, tensor in kept["params"].items()})
        self.optimizer.load_state_dict(kept["optimizer"])


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


def draw_gradients(dtype: str, random: np.random.Generator) -> Arrays:
    """Draws one gradient: of any size, with zeros, and now and then a hundred times as large."""
    size = 10.0 ** random.uniform(-3.0, 0.0) * (100.0 if random.random() < 0.03 else 1.0)
    return {
        name: np.asarray(size * random.normal(size=shape) * (random.random(shape) > 0.1), dtype)
        for name, shape in SHAPES.items()
    }


def draw_loss(step: int, random: np.random.Generator) -> float:
    """Draws one loss: it falls, and begins anew every 5000 steps."""
    return float(0.3 * np.exp(-(step % 5000) / 1500.0) + 0.1 + 0.02 * random.normal())


FAULTS = {
    "NaN loss": 0.005,
    "infinite loss": 0.005,
    "spike": 0.01,
    "missing loss": 0.0005,
    "no number": 0.0005,
    "NaN gradient": 0.01,
    "learning rate": 0.002,
    "file": 0.001,
    "bridge": 0.001,
}
"""How likely each fault is in a step."""


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
    """Compares all that both sides hold; returns each group's difference, and what is beyond its bound."""
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
    """Returns a row for each run, with what it held after the warm-up and at the end."""
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
    """Prints both tables, and what is wrong."""
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
        "Written by `python -m parity_tests.soak --report`, which says what is done. Both sides are given",
        "the same gradients and losses; the bounds stand in `parity_tests/tolerances.py`. In float64 they",
        f"are those of {LOCKSTEP_STEPS} steps. In float32 so are those of averages; a parameter and its",
        "shadow add up the roundings of all steps: after n steps their bound is",
        f"n / {LOCKSTEP_STEPS} times as wide.",
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
        "What was alive after the warm-up of a tenth of the steps, and at the end:",
        "",
        *table(MEMORY_COLUMNS, memory_rows(results)),
        *(["", *(f"- {failure}" for failure in failures)] if failures else []),
    ]
    path.write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints, reports; returns what the process ends with."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="of each run; default: %(default)s")
    parser.add_argument("--optimizer", choices=[soak.optimizer for soak in SOAKS[:4]], action="append")
    parser.add_argument("--dtype", choices=[*LOCKSTEP][:2], action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: %(default)s")
    parser.add_argument("--report", type=Path, help="write a Markdown page")
    options = parser.parse_args(arguments)
    if options.steps < 100:
        parser.error(f"--steps {options.steps}: there must be 100 at least")
    chosen = [
        soak
        for soak in SOAKS
        if soak.optimizer in (options.optimizer or [soak.optimizer])
        and soak.dtype in (options.dtype or [soak.dtype])
    ]
    console = Console()
    results = []
    with Progress(transient=True, console=console) as progress:
        for soak in chosen:
            bar = progress.add_task(f"{soak.optimizer}, {soak.dtype}", total=options.steps)
            advance = functools.partial(progress.advance, bar)
            results.append(run(soak, options.steps, seed=options.seed, advance=advance))
    print_tables(console, results)
    if options.report is not None:
        write(options.report, results)
        console.print(f"report: {options.report}")
    return 1 if any(result.failures() for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
