"""Holds the twins to each other under several instruction sets, as other processors would compute.

Run with `python -m parity_tests.processors`. A processor decides how sums and products round: how long its
vectors are, in which order it adds, and whether it rounds between a product and a sum. PyTorch, oneDNN and
XLA let a process choose a smaller instruction set than the processor has. This command runs each framework
in processes of such sets, compares every set of one framework with every set of the other, prints how much
of the bounds was used, and ends with 1 where a bound is exceeded.

A processor that is not here may round in still another way. The third table therefore shows the closed loop
under random noise of the size of float32 roundings, see `parity_tests.roundings`.
"""

import argparse

from examples.command import answer_early, one_of
from parity_tests.tolerances import LOCKSTEP, STEPS


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.processors", description=__doc__)
    parser.add_argument(
        "--processor", type=one_of(lambda: PROCESSORS), metavar="NAME", action="append", help="default: all"
    )
    parser.add_argument("--short", action="store_true", help="only some processors")
    parser.add_argument(
        "--optimizer",
        type=one_of(lambda: FAMILY),
        metavar="NAME",
        action="append",
        help="default: the sensitive ones",
    )
    parser.add_argument("--dtype", choices=list(LOCKSTEP), action="append", help="default: all")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the lockstep; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=4, help="of the noise; default: %(default)s")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    answer_early(options, "dev", ("jax", "optax", "torch", "flax", "matplotlib", "rich"))

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from examples.progress import track
from parity_tests import closed_loop, roundings
from parity_tests.cases import cases
from parity_tests.drive import Arrays
from parity_tests.family import FAMILY
from parity_tests.lockstep import Case, compare
from parity_tests.processes import trajectories

ROOT = Path(__file__).parent.parent


class Processor(NamedTuple):
    """The settings of both frameworks about the processor.

    Attributes:
        torch: environment variables for PyTorch and oneDNN.
        jax: environment variables for JAX.
        capability: what PyTorch must then say of itself, or `None` where the processor decides.
    """

    torch: Mapping[str, str]
    jax: Mapping[str, str]
    capability: str | None = None


SWITCH = "EMO_TORCH_COMPILE"
_BASIC = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

PROCESSORS = {
    "as it is": Processor({}, {}),
    "AVX2": Processor(_AVX2, {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}, "AVX2"),
    # XLA calls its smallest set AVX: no product and sum in one rounding.
    "basic": Processor(_BASIC, {"XLA_FLAGS": "--xla_cpu_max_isa=AVX"}, "DEFAULT"),
    "AVX2, not compiled": Processor({**_AVX2, SWITCH: "0"}, {}, "AVX2"),
    "basic, not compiled": Processor({**_BASIC, SWITCH: "0"}, {}, "DEFAULT"),
}
"""The instruction sets, by name. PyTorch's own compiled step is left out in two of them."""

SHORT = ("as it is", "basic", "AVX2, not compiled")
"""The processors that show most: the widest and the narrowest vectors, and both ways to step."""

SENSITIVE = ("EmoSens", "EmoClan", "EmoZeal", "RefAdamWMiniScheduleFree")
"""Members whose lockstep uses most of its bounds, and members that choose a rule by the scalar."""


def environment(processor: Processor, folder: Path) -> dict[str, str]:
    """Returns the environment of a process on a processor, with a cache of compiled programs of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
    }
    return {**kept, **cache, **processor.torch, **processor.jax}


def loops(names: list[str], pairs: list[tuple[str, str]], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Trains every pair of a member and a dtype in a process for each processor."""
    found = {}
    for name in track(names, "closed loop", transient=True):
        processor = PROCESSORS[name]
        place = folder / name.replace(", ", "_")
        place.mkdir()
        command = [sys.executable, "-m", "parity_tests.processors", "--child", json.dumps(pairs)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(processor, place),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the closed loop under {name!r} failed:\n{done.stderr}")
        told = json.loads(done.stdout.splitlines()[-1])
        if processor.capability not in (None, told["capability"]):
            raise RuntimeError(f"asked for {processor.capability}, PyTorch has {told['capability']}")
        found[name] = told["loops"]
    return found


def child(pairs: list[list[str]]) -> None:
    """Trains in this process, and prints the numbers that `loops` reads."""
    import torch

    found = []
    for optimizer, dtype in pairs:
        loop = closed_loop.run(optimizer, dtype)
        found.append(
            {
                "optimizer": optimizer,
                "dtype": dtype,
                "of_band": loop.of_band,
                "first_excess": loop.first_excess,
                "last": [float(loop.flax_loss[-1]), float(loop.torch_loss[-1])],
            }
        )
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "loops": found}))


def lockstep(
    names: list[str], chosen: list[Case], folder: Path
) -> dict[tuple[str, str], list[tuple[Case, float, tuple[int, str] | None]]]:
    """Drives both sides of all cases under every processor and compares each side with all of the other.

    Returns:
        For a processor of Optax and one of PyTorch: each case, how much of its bounds was used at most,
        and the first step at which a bound was exceeded, and where.
    """
    arrays: dict[str, dict[str, list[Arrays]]] = {"optax": {}, "torch": {}}
    for name in track(names, "lockstep", transient=True):
        processor = PROCESSORS[name]
        for side, told in (("optax", processor.jax), ("torch", processor.torch)):
            # What differs in variables of the other framework alone is the same run.
            if any(told == _told(side, other) for other in arrays[side]):
                continue
            place = folder / f"{side}_{name.replace(', ', '_')}"
            place.mkdir()
            variables = environment(processor, place)
            driven = [_without_compiler(case) for case in chosen] if told.get(SWITCH) == "0" else chosen
            _, arrays[side][name] = trajectories(side, driven, "cpu", place, variables=variables)
    found = {}
    for ours, values in arrays["optax"].items():
        for theirs, references in arrays["torch"].items():
            found[ours, theirs] = [
                _used(value, reference, case)
                for value, reference, case in zip(values, references, chosen, strict=True)
            ]
    return found


def _without_compiler(case: Case) -> Case:
    """Returns a case for a process without compiled code: `foreach` in place of `fused`."""
    options = {name: value for name, value in case.options.items() if name != "fused"}
    return case._replace(options={**options, "foreach": True} if "fused" in case.options else options)


def _told(side: str, name: str) -> Mapping[str, str]:
    return PROCESSORS[name].jax if side == "optax" else PROCESSORS[name].torch


def _used(value: Arrays, reference: Arrays, case: Case) -> tuple[Case, float, tuple[int, str] | None]:
    result = compare(value, reference, case)
    return case, max(gap.excess for gap in result.leaves.values()), result.first_excess


def print_loops(console: Console, found: Mapping[str, list[dict[str, Any]]]) -> int:
    """Prints how much of the band each training used; returns how many left it."""
    table = Table(title="Closed loop: share of the band used", box=None, padding=(0, 1, 0, 0))
    for column in ("optimizer", "dtype"):
        table.add_column(column)
    for name in found:
        table.add_column(name, justify="right")
    for rows in zip(*found.values(), strict=True):
        table.add_row(rows[0]["optimizer"], rows[0]["dtype"], *(f"{row['of_band']:.4f}" for row in rows))
    different = len({json.dumps([row["last"] for row in rows]) for rows in found.values()})
    console.print(table)
    console.print(f"{different} of {len(found)} processors ended with numbers of their own")
    return sum(row["first_excess"] is not None for rows in found.values() for row in rows)


def print_lockstep(
    console: Console, found: Mapping[tuple[str, str], list[tuple[Case, float, tuple[int, str] | None]]]
) -> int:
    """Prints the largest share of the bounds for each member, dtype and pair; returns how many exceeded."""
    table = Table(title="Lockstep: largest share of the bounds used", box=None, padding=(0, 1, 0, 0))
    for column in ("Optax on", "PyTorch on", "optimizer", "dtype"):
        table.add_column(column)
    for column in ("cases", "of bound"):
        table.add_column(column, justify="right")
    exceeded = 0
    for (ours, theirs), results in found.items():
        for optimizer, dtype in dict.fromkeys((case.optimizer, case.dtype) for case, *_ in results):
            own = [used for case, used, _ in results if (case.optimizer, case.dtype) == (optimizer, dtype)]
            table.add_row(ours, theirs, optimizer, dtype, str(len(own)), f"{max(own):.3f}")
    console.print(table)
    for pair, results in found.items():
        for case, _, first in results:
            if first is not None:
                exceeded += 1
                console.print(f"[red]bound exceeded[/red]: {case}, {pair}: {first[1]} at step {first[0]}")
    return exceeded


def print_noise(console: Console, pairs: list[tuple[str, str]], seeds: int) -> int:
    """Prints the effect of noise as large as float32 roundings; returns how many trainings leave a band."""
    table = Table(title="Closed loop under float32 noise", box=None, padding=(0, 1, 0, 0))
    for column in ("optimizer", "steps", "of band"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    left = 0
    for optimizer in track([name for name, dtype in pairs if dtype == "float32"], transient=True):
        found = [roundings.share_of_band(optimizer, seed=seed) for seed in range(seeds)]
        left += sum(share > 1.0 for share in found)
        steps = closed_loop.epochs(optimizer, "float32") * closed_loop.STEPS_PER_EPOCH
        table.add_row(optimizer, str(steps), f"{max(found):.4f}")
    console.print(table)
    return left


def main(arguments: list[str] | None = None) -> int:
    """Runs the matrix and prints it; returns the exit status of the process."""
    parser = options()
    given = parser.parse_args(arguments)
    if given.child is not None:
        child(json.loads(given.child))
        return 0
    names = given.processor or list(SHORT if given.short else PROCESSORS)
    dtypes = given.dtype or list(LOCKSTEP)
    # All are trained: in the closed loop a rounding grows.
    trained = [FAMILY[name].optax.__name__ for name in given.optimizer or FAMILY]
    pairs = [pair for pair in closed_loop.pairs(trained) if pair[1] in dtypes]
    chosen = cases(given.optimizer or SENSITIVE, dtypes, given.steps)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        left = print_loops(console, loops(names, pairs, Path(folder))) if pairs else 0
        exceeded = print_lockstep(console, lockstep(names, chosen, Path(folder)))
    noisy = print_noise(console, pairs, given.seeds)
    console.print(f"{left} closed loops out of the band, {exceeded} lockstep runs beyond a bound")
    console.print(f"{noisy} closed loops out of the band under noise")
    return 1 if left or exceeded or noisy else 0


if __name__ == "__main__":
    sys.exit(main())
