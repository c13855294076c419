"""Measures cells of one framework with one number of threads.

Run by `__main__` in a process of its own, never by hand: a framework must know its threads before it
starts.
"""

import gc
import json
import os
import sys
from typing import Any

from benchmarks.step_time.memory import give_back
from benchmarks.step_time.plan import GRAPHS, GROUPS, Cell, Variant
from benchmarks.step_time.problems import PROBLEMS, Arrays
from benchmarks.step_time.rounds import Row, measure, warm_up


class Worker:
    """One framework with one number of threads on one device, and the problem that it has in memory.

    Args:
        framework: "torch" or "jax".
        device: "cpu" or "cuda".
        threads: the number of threads.
    """

    def __init__(self, framework: str, device: str, threads: int) -> None:
        self._framework = framework
        self._device = device
        self._threads = threads
        self._problem = ""
        self._side: Any = None

    def device_name(self) -> str:
        """Returns the name of the device.

        Raises:
            RuntimeError: if a GPU was asked for, and none is seen.
        """
        if self._device == "cpu":
            return "CPU"
        if self._framework == "torch":
            import torch

            if torch.cuda.is_available():
                return torch.cuda.get_device_name()
        else:
            import jax

            if jax.default_backend() == "gpu":
                return str(jax.devices()[0].device_kind)
        raise RuntimeError(f"{self._framework} sees no GPU")

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Returns the result of a cell."""
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        found: dict[str, Any] = {"load": load, "device": self.device_name()}
        if cell.kind == "steps":
            found |= self._steps(cell)
        elif cell.kind == "traces":
            from benchmarks.step_time import jax_side

            found |= jax_side.count_traces(cell.group, PROBLEMS[cell.problem])
        elif cell.kind == "compilation":
            from benchmarks.step_time import jax_side

            found["seconds"] = jax_side.time_compilation(int(cell.problem), cell.rounds, _advance)
        else:
            from benchmarks.step_time import torch_side

            found["graphs"] = {
                name: torch_side.count_graphs(name, PROBLEMS[cell.problem]) for name in GRAPHS
            }
        return found

    def _open(self, problem: str) -> None:
        """Holds the arrays of one problem at a time."""
        if problem == self._problem:
            return
        if self._side is not None:
            self._side.close()
        self._problem = problem
        if self._framework == "torch":
            from benchmarks.step_time.torch_side import TorchSide

            self._side = TorchSide(PROBLEMS[problem], self._device, self._threads)
        else:
            from benchmarks.step_time.jax_side import JaxSide

            self._side = JaxSide(PROBLEMS[problem])

    def _steps(self, cell: Cell) -> dict[str, Any]:
        self._open(cell.problem)
        variants = GROUPS[self._framework][cell.group].variants
        runners = {variant.name: self._side.runner(variant) for variant in variants if not variant.written}
        rows = [
            Row(key, runners[variant.name], size)
            for variant in variants
            if variant.name in runners
            for key, size in variant.rows()
        ]
        rows += self._floors([variant for variant in variants if variant.written])
        warm_up(rows)
        found: dict[str, Any] = {**measure(rows, cell.rounds, 0, _advance)}
        found["seconds"] = {
            key: [float(f"{each:.5g}") for each in times] for key, times in found["seconds"].items()
        }
        found["costs"] = {name: runner.costs() for name, runner in runners.items()}
        runners.clear()
        rows.clear()
        gc.collect()
        give_back()  # Else frameworks' threads each keep some of it, and groups add up.
        return found

    def _floors(self, variants: list[Variant]) -> list[Row]:
        from benchmarks.step_time.floor import Floor, touch_function

        if self._device != "cpu" or not variants or touch_function() is None:
            return []
        grads: Arrays = self._side.gradient_arrays
        streams = [
            [array.copy() for array in self._side.parameter_arrays]
            for _ in range(max(variant.written for variant in variants))
        ]
        floors = [
            (each.name, Floor(grads, streams[: each.written], self._threads, each.before))
            for each in variants
        ]
        return [Row(name, FloorRunner(floor), None) for name, floor in floors]


class FloorRunner:
    """A floor, stepped like an optimizer.

    Args:
        floor: the floor.
    """

    def __init__(self, floor: Any) -> None:
        self.run = floor.touch

    def prepare(self, size: float | None) -> None:
        """Does nothing."""

    def check(self, size: float | None) -> None:
        """Does nothing."""

    def move(self) -> None:
        """Does nothing."""


def _advance() -> None:
    print("round", flush=True)


def main(arguments: list[str]) -> None:
    """Measures the cells of a job one after the other, and prints the result of each."""
    cells = [Cell(*fields) for fields in json.loads(arguments[0])]
    framework, device, threads = cells[0].process
    if framework == "jax" and device == "cpu" and hasattr(os, "sched_setaffinity"):
        # XLA makes as many threads as there are cores for it.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    worker = Worker(framework, device, threads)
    for cell in cells:
        print(f"begin {cell.key}", flush=True)
        print(f"found {json.dumps(worker.measure(cell))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
